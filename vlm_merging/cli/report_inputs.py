"""What a report is made of: two runs, and the probe and the sweep that belong to them."""
# A probe and a sweep may stand beside the runs, if they are of the same models. What does not belong together
# is refused before anything is drawn; what is missing, a picture say, is told and stands on the page.
from __future__ import annotations
import json, re, warnings
from dataclasses import dataclass, field
from pathlib import Path
from vlm_merging.checkpoints.places import path_of, same_place
from vlm_merging.checkpoints.texts import json_of, name_in_line
from vlm_merging.cli.files import read_scores, read_table
from vlm_merging.cli.page_parts import shown_rows

PICTURES = 4            # Of a question, at most

@dataclass(frozen=True)
class Reported:
    "All that a page is made of"
    scores:list         # Score tables, one a run: the first before, the last after; what is between, beside
    compared:object     # From `compare`: the last against the first
    tags:list           # It was split by
    shown:list          # From `shown_rows`
    pictures:dict=field(default_factory=dict) # (benchmark, split, id) -> pictures of a question, or why not
    profile:object=None # From `profile_table`; None: nothing was probed
    change:object=None  # From `profile_change`
    tried:object=None   # From `sweep`; None: no weights were tried
    method:str='linear' # Of those merges
    others:bool|None=None # Were weights tried on other questions? None: nobody knows
    weight:float|None=None # That was taken
    made:dict=field(default_factory=dict) # How it was made: name -> text
    unlike:list=field(default_factory=list) # Sentences: how the runs were asked otherwise
    options:dict=field(default_factory=dict) # (benchmark, split, id) -> what could be chosen

def place_of_question(
    row:dict,           # Of a run or a table
)->tuple:               # (benchmark, split, id), as comparisons name them
    "Which question a row is of"
    return row.get('benchmark') or 'unnamed', row.get('split') or 'all', str(row['index'])

# What lies in the folders of runs, probes and sweeps

def run_config(
    run,                # Folder, path of a table, or a table
)->dict:
    "What the run.json of a folder holds; empty: it is a table"
    from vlm_merging.asking.folder import config_at
    if not isinstance(run, (str, Path)): return {}
    path = path_of(run)/'run.json'
    return config_at(path) if path.is_file() else {}

def weights_of_run(
    config:dict,        # From `run_config`
)->str|None:            # None: nobody knows
    "The hash of the weights that were asked"
    return (config.get('about') or {}).get('weights')

def work_folder(
    folder,             # Of a probe or a sweep
    what:str,           # Which of the two
)->tuple[Path, dict]:   # Path, run.json
    "A folder of parts; raise ValueError if it is none, or of something else"
    path, verb = path_of(folder), dict(probe='profile').get(what, what)
    config = run_config(path)
    if config.get('what')!=what or not (path/'parts').is_dir():
        why = 'is not there' if not path.exists() else f'is no folder of a {what}'
        raise ValueError(f'{path} {why}. Name the folder that {verb} wrote.')
    return path, config

def check_same_models(
    path:Path,          # Of a probe or a sweep
    theirs,             # Beginnings of the hashes of its models
    configs:list[dict], # Of the runs
    done:str,           # What was done to models
)->None:
    "Raise ValueError if a probe or a sweep is known to be of other models than the runs"
    ours = [w for w in map(weights_of_run, configs) if w]
    if len(ours)==len(configs) and theirs and not any(w.startswith(tuple(theirs)) for w in ours):
        names = ' and '.join(name_in_line(c.get('run', 'a run')) for c in configs)
        raise ValueError(f'{path} {done} other models than those that {names} asked: their weights differ. '
                         f'Leave it out, or make it anew with these models.')

def probe_tables_at(
    folder,             # Of a probe
    configs:list[dict], # Of the runs
    tags:list[str],     # To split by, where no table is there yet
)->tuple:               # As `profile_table` and, of two models, `profile_change` make them
    "What a probe found; raise ValueError if it is of other models"
    import polars as pl
    from vlm_merging.asking.jobs import read_part
    from vlm_merging.probing.probe import Profile
    path, _ = work_folder(folder, 'probe')
    parts = sorted((path/'parts').glob('*.parquet'))
    hashes = {m[1] for p in parts if (m := re.search(r'-([0-9a-f]{8})-\d+$', p.stem))}
    check_same_models(path, hashes, configs, 'masked')
    profile, change = (read_part(path/f'{name}.parquet') for name in ('profile', 'change'))
    if profile is not None: return profile, change
    first = weights_of_run(configs[0]) or ' '
    parts.sort(key=lambda p: first[:8] not in p.stem)       # Before and after
    rows = [f for p in parts if (f := read_part(p)) is not None]
    if not rows: raise ValueError(f'{path} holds nothing yet. Let the probe end first.')
    rows = pl.concat(rows, how='diagonal_relaxed')
    found = Profile(rows, [t for t in tags if t in rows.columns])
    return found.table, found.change

def sweep_table_at(
    folder,             # Of a sweep
    configs:list[dict], # Of the runs
    tags:list[str],     # To split by, where no table is there yet
    asked:set,          # (benchmark, split, id) of the questions of the runs
)->tuple:               # As `sweep` makes it; the method of the merges; were it other questions?
    "What a sweep found; raise ValueError if it is of another VLM"
    import polars as pl
    from vlm_merging.asking.jobs import read_part
    from vlm_merging.probing.sweep import score_mixture, sweep_table
    path, config = work_folder(folder, 'sweep')
    check_same_models(path, [config.get('weights', {}).get('vlm')], configs, 'mixed into')
    parts = [f for p in sorted((path/'parts').glob('*.parquet')) if (f := read_part(p)) is not None]
    if not parts: raise ValueError(f'{path} holds nothing yet. Let the sweep end first.')
    replies = pl.concat(parts, how='diagonal_relaxed')
    places = replies.select('benchmark', 'split', 'index').unique().to_dicts()
    shared = len(asked & {*map(place_of_question, places)})
    if shared:
        warnings.warn(f'{shared} questions on which weights were tried are among those reported, so the '
                      f'weight may fit them by luck. Report others, or choose on others.', stacklevel=3)
    tried = read_part(path/'sweep.parquet')
    if tried is None:
        scored = score_mixture(replies.sort('weight', maintain_order=True), [], None)
        tried = sweep_table(scored, [t for t in tags if t in scored.columns])
    return tried, config.get('recipe', {}).get('method', 'linear'), not shared

def recipe_of_run(
    config:dict,        # From `run_config`
)->dict:                # Empty: there is none
    "The recipe of the merged model that a run asked, if its folder is still there and is what was asked"
    from vlm_merging.asking.fingerprints import weights_hash
    from vlm_merging.checkpoints.headers import Checkpoint
    name = next((s['how'].get('model') for s in config.get('sessions', [])[::-1] if s.get('how')), None)
    if not isinstance(name, str) or not (path_of(name)/'recipe.json').is_file(): return {}
    try:
        if weights_hash(Checkpoint.open(name))!=weights_of_run(config): return {}
        recipe = json_of((path_of(name)/'recipe.json').read_bytes()).get('recipe', {})
    except (ValueError, OSError, AttributeError): return {}
    return recipe if isinstance(recipe, dict) else {}

def without_places(
    recipe:dict,        # As a dict
)->dict:
    "A recipe that names models, not where they lie on this machine"
    def named(value): return [*map(named, value)] if isinstance(value, list) else value and Path(value).name
    return {k:named(v) if k in ('vlm', 'llm', 'base') else v for k, v in recipe.items()}

OTHER_NAMES = dict(max_tokens='max_new_tokens') # Setting of a server -> that of a model that is opened here
NO_SETTING = 'weights', 'url', 'model', 'engine', 'ask', 'own', 'greedy' # Who is asked, and what others say
OF_DRAWS = 'top_p', 'seed'  # They say something only where replies are drawn

def settings_meant(
    about:dict,         # Of a run.json
)->dict:
    "What the settings of a run mean, whoever was asked: one name each, and none that changes nothing"
    meant = {OTHER_NAMES.get(k, k):v for k, v in about.items() if k not in NO_SETTING}
    if about.get('greedy'): meant['temperature'] = 0
    unused = OF_DRAWS if meant.get('temperature')==0 else ()
    nothing = (*((k, v) for k in meant for v in (None, {}, '')), ('top_p', 1), ('dtype', 'auto'))
    return {k:v for k, v in meant.items() if k not in unused and (k, v) not in nothing}

def asked_unlike(
    configs:list[dict], # Of the runs
    names:list[str],    # Of the runs
)->list[str]:           # Sentences
    "How two runs were asked otherwise, beside their weights"
    if not all(c.get('about') for c in configs): return []
    abouts = [settings_meant(c['about']) for c in configs]
    return [f'{k} was {json.dumps(a)} for {names[0]} and {json.dumps(b)} for {names[-1]}.'
            for k in dict.fromkeys(k for o in abouts for k in o)
            if (a := abouts[0].get(k))!=(b := abouts[-1].get(k))
            and not (k=='dtype' and None in (a, b))]        # A server does not say it

# Pictures

def questions_at(
    benchmark:str,      # As a run names it
    split:str,          # The same
    ids:list[str],      # Of the questions that are shown
):                      # Items; raise ValueError or LookupError if they cannot be found
    "The questions of a prepared benchmark, or of the lab"
    from vlm_merging.benchmarks.load import load
    if benchmark!='lab': return load(benchmark, None if split=='all' else split)
    numbers = [i.rsplit('-', 2)[1:] for i in ids]
    most = {int(seed):max(int(n) for s, n in numbers if s==seed) for seed, _ in numbers}
    return [i for seed, n in most.items() for i in load('lab', split, n+1, seed)]

def pictures_of(
    shown:list[dict],   # Rows of `matched`
    items,              # As for `report`
    run,                # The first run
)->dict:                # (benchmark, split, id) -> pictures, or a sentence why there are none
    "The pictures of some questions, where they are those that were asked"
    from vlm_merging.asking.fingerprints import reply_key
    from vlm_merging.asking.replies import ASKED_LAST, run_lines
    from vlm_merging.comparing.pairs import SHARED
    from vlm_merging.benchmarks.questions import as_items
    groups, known, why, config = {}, {}, {}, run_config(run)
    for r in shown: groups.setdefault((r['benchmark'], r['split']), []).append(r['index'])
    if items is not None: known = as_items(items)
    else:
        found = []
        for (benchmark, split), ids in groups.items():
            try: found += questions_at(benchmark, split, ids)
            except LookupError: continue            # Of that name nothing is known here
            except ValueError as e: why[benchmark] = str(e)
        known = found
    by = {(i.benchmark or 'unnamed', i.split or 'all', str(i.id)):i for i in known}
    lines = run_lines(path_of(run), ASKED_LAST)[0] if config else ()
    keys = {place_of_question(r):r.get('key') for r in lines}
    def seen(place):
        if (item := by.get(place)) is None: return 'no picture is known'
        try: same = place not in keys or keys[place]==reply_key(item, config['about'])
        except ValueError as e: return str(e)
        return item.images[:PICTURES] if same else 'question or picture are others by now than those asked'
    out = {p:seen(p) for p in map(place_of_question, shown)}
    lost = [p for p, o in out.items() if isinstance(o, str)]
    if lost:
        more = next((f' {why[b]}' for b, *_ in lost if b in why), '')
        def told(place): return ', '.join(f'{c} {name_in_line(v, 60)}' for c, v in zip(SHARED, place))
        if items is None: more += ' If there are pictures, name their table or benchmark with `items`.'
        elif known and lost[0] not in by: more += f' In `items` they are named as in {told(next(iter(by)))}.'
        warnings.warn(f'{len(lost)} of {len(out)} questions that are shown have no picture here, such as '
                      f'{told(lost[0])}: {out[lost[0]]}.{more}', stacklevel=3)
    return out

def options_by_question(
    run,                # Folder, path of a table, or a table
    items,              # Path of the questions of result files that have none
)->dict:                # (benchmark, split, id) -> its options, of questions that have some
    "What could be chosen, as the replies of a run have it; a table of scores has nothing of it"
    import polars as pl
    from vlm_merging.scoring.choices import choices_of
    from vlm_merging.scoring.score import typed_replies
    frame = run if isinstance(run, pl.DataFrame) else read_table(run, [], items)
    if 'correct' in frame.columns: return {}
    return {place_of_question(r):choices for r in typed_replies(frame).to_dicts()
            if (choices := choices_of(r['choices']))}

def _as_named(items): return items if isinstance(items, (str, Path)) else None

def _scores_of_both(a, b, itself, items, protocol, thinking):
    "The scores of both runs, under two names"
    import polars as pl
    from vlm_merging.scoring.problems import scores_of
    left = []
    def scored(run):
        if isinstance(run, pl.DataFrame): return scores_of(run, protocol, thinking, 5)
        return read_scores(run, protocol, left, _as_named(items), thinking)
    scores = [*map(scored, (a, b))]
    for sentence in left: warnings.warn(sentence, stacklevel=4)
    if not all('run' in t.columns for t in scores) or scores[0]['run'][0]!=scores[1]['run'][0]: return scores
    return [t.with_columns(run=pl.lit(name if itself or isinstance(r, pl.DataFrame) else str(r)))
            for t, r, name in zip(scores, (a, b), ('before', 'after'))]

def gathered(
    a, b,               # The runs, as for `report`
    by, probe, sweep, items, protocol, thinking, trust_prompt, # As for `report`
)->Reported:
    "All that a page is made of; raise ValueError if it does not belong together"
    from vlm_merging.asking.folder import versions
    from vlm_merging.cli.asking_commands import tags_in_both
    from vlm_merging.comparing.compare import asked_otherwise
    from vlm_merging.comparing.pairs import comparison_table, matched
    itself = a is b or all(isinstance(r, (str, Path)) for r in (a, b)) and same_place(a, b)
    scores, configs = _scores_of_both(a, b, itself, items, protocol, thinking), [*map(run_config, (a, b))]
    doubts = [] if itself else asked_otherwise(*scores, trust_prompt)
    tags = [by] if isinstance(by, str) else [*tags_in_both(by, *scores)]
    compared, pairs = comparison_table(*scores, tags), matched(*scores)
    if not compared['n'].sum():
        raise ValueError('No reply of both runs could be scored, so there is nothing to report. '
                         'Have the questions answers, and were both runs asked them?')
    runs = [t['run'][0] for t in scores]
    shown = [*shown_rows(pairs, tags)]
    pictures = pictures_of([r for *_, rows in shown for r in rows], items, a)
    options = options_by_question(b, _as_named(items)) | options_by_question(a, _as_named(items))
    profile, change = probe_tables_at(probe, configs, tags) if probe is not None else (None, None)
    asked = {*pairs.select('benchmark', 'split', 'index').iter_rows()}
    tried, method, others = None, 'linear', None
    if sweep is not None: tried, method, others = sweep_table_at(sweep, configs, tags, asked)
    recipe = recipe_of_run(configs[1])
    weight = recipe.get('knobs', {}).get('weight')
    unlike = asked_unlike(configs, [*map(name_in_line, runs)])+doubts
    for sentence in unlike: warnings.warn(sentence, stacklevel=3)
    def last(config): return (config.get('sessions') or [{}])[-1].get('versions')
    how = {name_in_line(r):dict(asked=c.get('about'), versions=last(c)) for r, c in zip(runs, configs) if c}
    made = {'The recipe of the merge':json.dumps(without_places(recipe), indent=1)} if recipe else {}
    made['How the runs were asked, and versions'] = json.dumps(how|dict(scored=protocol, here=versions()),
                                                               indent=1)
    return Reported(scores, compared, tags, shown, pictures, profile, change, tried, method, others,
                    weight if isinstance(weight, (int, float)) else None, made, unlike, options)
