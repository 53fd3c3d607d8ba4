"""Understanding from the shell: `diagnose`, `profile` and `sweep` print words, keep tables, draw a page."""
#     diagnose -> a verdict with reasons, TABLE, PAGE      no model is loaded
#     profile  -> OUT/parts/*.parquet                      each part at once; goes on where it was
#                 OUT/profile.parquet, depth.parquet       what each mask costs, and how deep
#                 (plateau.parquet with --how blind)       from where on the picture is not needed
#                 (change.parquet with --against)          what the merge changed
#     sweep    -> OUT/parts/*.parquet, OUT/sweep.parquet   replies and scores; no model is written
#                 (held_out.parquet with --gain, --keep)   chosen on one half, reported on the other
from __future__ import annotations
from pathlib import Path
from vlm_merging.cli.asking_commands import (OPENED, QUESTIONS, folder_wanted, questions_of, quiet_libraries,
                                             tell)
from vlm_merging.cli.commands import KNOBS, PROGRAM, command, knobs_shown, taken
from vlm_merging.cli.merging_commands import WHAT, WHO
from vlm_merging.cli.files import PAGES, TABLES, ready_to_write, write_table
from vlm_merging.cli.typed import decimal_comma, knob_value, unknown

PAIR = 'probing.diagnose:diagnose vlm llm base'
LOOKED_AT = 'probing.diagnose:diagnose candidates subspace'
BATCHES = 'asking.models:LocalModel batch_size max_new_tokens'
PROBED = 'probing.probe:probe_folder how parts layers target ray other'
TRIED = 'probing.sweep:sweep weights layers modules gain keep penalty'
SPREAD = 'probing.probe:probe_folder ray'
MIXED = 'probing.sweep:sweep vlm llm base method'

def save_page(
    draw,               # Gives a chart
    path:Path|None,     # Where to; None: nowhere
)->None:
    "Draw a page, if one is wanted"
    if path is None: return
    from vlm_merging.charts.pages import save_chart
    save_chart(draw(), path)

@command(shows=dict(who=(WHO, PAIR), options=LOOKED_AT), places='vlm llm base', needs='vlm llm',
         spaced='candidates', example='vlm-merging diagnose --vlm lab/vlm --llm lab/llm --base lab/base')
def diagnose_command(
    *,
    out:Path|None=None, # Write the measures of every tensor there: .parquet, .jsonl or .csv
    chart:Path|None=None, # A page with the change by layer and module (.html, .svg or .png)
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 3 if the pair cannot be merged
    "Say before a merge how far the weights of a pair lie apart, and what that lets expect"
    ready_to_write(out, TABLES)
    ready_to_write(chart, PAGES)
    from vlm_merging.probing.diagnose import diagnose
    found = diagnose(**taken(given, PAIR, LOOKED_AT))
    print(found)
    if found.stats is not None and found.stats.height:
        if out: write_table(found.stats, out)
        from vlm_merging.charts.maps import layers_page
        from vlm_merging.probing.weights import weights_by_layer
        save_page(lambda: layers_page(None, weights_by_layer(found.stats)), chart)
    elif out or chart: tell('no weights could be compared, so nothing was written.')
    return 3 if any(f.level=='stop' for f in found.findings) else 0

def tags_asked(
    by:tuple|None,      # As typed; None: category, where there is one
    items:list,         # What is asked
)->tuple[str, ...]:
    "The tags to split by; raise ValueError if no item has one of them"
    known = {t for i in items for t in i.tags}
    if by is None: return tuple(t for t in ('category',) if t in known)
    from vlm_merging.probing.profile import OWN
    if used := [t for t in by if t in OWN]:
        raise ValueError(f'--by: {used[0]} is a column of the result. Rename that column of your table.')
    if lost := [t for t in by if t not in known]:
        there = ', '.join(sorted(known)) or 'none'
        raise ValueError(f'--by: no item has the tag {lost[0]!r}; they have {there}.')
    return by

def named_models(
    model:str,          # Folder or hub id
    against:str|None,   # The same of a second model
)->dict[str, str]:      # Name in tables -> folder or hub id
    "Models by the last part of their name, or by all of it where that is the same"
    from vlm_merging.checkpoints.headers import Checkpoint, local_model
    from vlm_merging.checkpoints.identity import same_weights
    where = [w for w in (model, against) if w]
    short = [Path(w).name or w for w in where]
    here = [Checkpoint.open(w) for w in where if local_model(w)]    # Of the hub, the name tells
    if len(set(where))<len(where) or len(here)>1 and same_weights(*here):
        raise ValueError(f'--against is {against}, which is the model itself. Name the merged one.')
    return dict(zip(short if len(set(short))==len(short) else where, where))

@command(shows=dict(what=QUESTIONS, masks=PROBED, asking=(OPENED, BATCHES)), places='model',
         needs='benchmark', spaced='benchmark how parts measure', bare=dict(ray='local'),
         was=dict(weights='diagnosis', measures='measure'),
         choices=dict(how='probing.masks:WAYS', parts='probing.masks:PARTS'),
         example='vlm-merging profile lab/vlm --benchmark lab -n 60 --parts layer --out runs/p\n'
                 'vlm-merging profile VLM --against OUT --benchmark MathVista --how skip,uniform --out b')
def profile_command(
    *,
    model:str,          # Folder or hub id
    against:str|None=None, # A second model, say the merged one: probed, too, and compared with the first
    measure:tuple=('likelihood',), # likelihood of the right answer (cheap; for models that answer at once),
                        # answer (score of the reply; needs generation), or both
    heads:bool=False,   # Every head by itself, too
    by:tuple|None=None, # Split by these tags; default: category, where there is one
    diagnosis:Path|None=None, # A table that diagnose --out wrote, drawn below the profile on the same axis
    out:Path,           # Folder of the probe; made, or gone on with
    chart:Path|None=None, # A page with charts (.html), or a picture of it (.svg, .png)
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some rows of a benchmark made no item
    "Mask one part of one layer at a time, and see which questions suffer"
    out = folder_wanted(dict(out=out))
    ready_to_write(chart, PAGES)
    from vlm_merging.comparing.layer_findings import MEASURES
    if odd := [m for m in measure if m not in (*MEASURES, 'both')]:
        raise ValueError(f"--measure: {unknown(odd[0], (*MEASURES, 'both'))}")
    if ('weights' in given.get('how', ()))!=('other' in given):
        raise ValueError('--how weights and --other go together: the layers of OTHER are put in.')
    from vlm_merging.probing.probe import refuse_idle_parts
    refuse_idle_parts(given.get('parts'), given.get('how', ()))
    from vlm_merging.probing.weights import weights_by_layer
    from vlm_merging.scoring.score import table_at
    models = named_models(model, against)
    drawn = weights_by_layer(table_at(diagnosis, [])) if diagnosis else None
    from vlm_merging.benchmarks.questions import shown_items
    items = shown_items(questions_of(given, given['benchmark']))
    by = tags_asked(by, items)
    quiet_libraries()
    from vlm_merging.probing.probe import probe_folder
    how = taken(given, PROBED, OPENED, BATCHES)
    if heads: how['parts'] = tuple(dict.fromkeys([*how.get('parts', ('layer', 'attention', 'mlp')), 'head']))
    rows = probe_folder(models, items, out, measures=tuple(MEASURES) if 'both' in measure else measure, **how)
    if rows['before'].is_null().all():
        raise ValueError('No reply could be scored: the table has no readable answers. '
                         'Measure likelihood with --target reply, which needs none.')
    tables = probe_tables(rows, out, by, tuple(models))
    from vlm_merging.charts.maps import layers_page
    save_page(lambda: layers_page(tables['profile'], drawn, tables.get('change')), chart)
    return 4 if items.left else 0

def probe_tables(
    rows,               # A probe table
    out:Path,           # Folder of the probe
    by:tuple[str, ...], # Tags
    models:tuple[str, ...], # One or two, before and after
)->dict:                # profile, depth; plateau, where there is one; and, of two models, change
    "Write what a probe says as tables, and print it in words"
    from vlm_merging.probing.profile import profile_change, profile_table
    from vlm_merging.comparing.layer_findings import change_verdict, profile_verdict
    from vlm_merging.probing.depth import depth_table, plateau_table
    tables = dict(profile=profile_table(rows, by), depth=depth_table(rows, by))
    plateaus = plateau_table(tables['profile'])
    if plateaus.height: tables['plateau'] = plateaus
    print(profile_verdict(tables['profile'], tables['depth'], plateaus))
    if len(models)>1:
        tables['change'] = profile_change(rows, *models, by)
        print(change_verdict(tables['change'], tables['profile']))
    for name, table in tables.items(): write_table(table, out/f'{name}.parquet')
    return tables

def sweep_knobs(
    knobs:list,         # 'density=0.5'
    given:dict,         # Option -> value, as typed
)->dict:                # Knob -> value
    "The knobs that all weights share, by their options or as NAME=X"
    out = {k:given[k] for k in knobs_shown() if k in given}
    whole = []
    for text in knobs:                          # A curve has commas, as the list itself
        if '=' in text or not whole: whole.append(text)
        else: whole[-1] += f',{text}'
    for text in whole:
        name, mark, value = text.partition('=')
        if not mark or not value:
            raise ValueError(f'--knobs {text!r} is no name and value, such as density=0.5.')
        if unclear := decimal_comma(value): raise ValueError(f'--knobs: {unclear}')
        out[name] = knob_value(value)
    return out

@command(shows=dict(who=(WHO, WHAT, MIXED), what=(TRIED, f'{KNOBS} but weight'), questions=QUESTIONS,
                    asking=(OPENED, BATCHES, SPREAD)), places='vlm llm base',
         needs='vlm llm weights benchmark', spaced='benchmark knobs layers modules', bare=dict(ray='local'),
         choices=dict(method=KNOBS),
         example='vlm-merging sweep lab/vlm lab/llm --weights .5,.6 --benchmark lab --split dev --out runs/w')
def sweep_command(
    *,
    knobs:list=[],      # Knobs as NAME=X; the same as their options
    by:tuple|None=None, # Split by these tags; default: category, where there is one
    out:Path,           # Folder of the sweep; made, or gone on with
    chart:Path|None=None, # A page with the scores along the weight (.html, .svg or .png)
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some rows of a benchmark made no item
    "Try the weights of a merge in memory, and say whether the best differs from the rest"
    out = folder_wanted(dict(out=out))
    ready_to_write(chart, PAGES)
    if unclear := decimal_comma(','.join(given['weights'])): raise ValueError(f'--weights: {unclear}')
    try: weights = [float(w) for w in given['weights']]
    except ValueError:
        raise ValueError(f"--weights is {','.join(given['weights'])!r}; "
                         f"it is numbers with commas between, such as 0.7,0.8,0.9 (what auto is, "
                         f"{PROGRAM} plan says).") from None
    knobs = sweep_knobs(knobs, given)
    from vlm_merging.benchmarks.questions import shown_items
    items = shown_items(questions_of(given, given['benchmark']))
    by = tags_asked(by, items)
    quiet_libraries()
    from vlm_merging.probing.sweep import sweep
    how = taken(given, MIXED, TRIED, SPREAD, OPENED, BATCHES)
    tried = sweep(**how|dict(weights=weights, items=items, knobs=knobs, by=by, out=out))
    table = tried.table
    print('\n'.join([*tried.lines, tried.verdict]))
    write_table(table, out/'sweep.parquet')
    if tried.held is not None: write_table(tried.held.table, out/'held_out.parquet')
    save_page(lambda: sweep_charts(table, given.get('method', 'linear')), chart)
    return 4 if items.left else 0

def sweep_parts(
    table,              # From `sweep`
    method:str,         # Of the merges
    what:str='accuracy', # Which quantity
)->list[tuple]:         # Rows of one benchmark and place, and what the axis is called
    "A sweep in parts of which each can be drawn along the weight"
    import polars as pl
    def place(layers, modules):
        return ''.join(f', {k} {v}' for k, v in (('layers', layers), ('modules', modules)) if v!='all')
    where = pl.Series([place(*p) for p in table.select('layers', 'modules').rows()], dtype=pl.String)
    named = table.with_columns(benchmark=pl.col('benchmark')+where).drop_nulls(['value', 'weight'])
    axis = f"weight of {method}: factor of the VLM's task vector"
    if method in ('linear', 'slerp'): axis = 'share of the VLM (1: the VLM as it was)'
    return [(part, axis) for _, part in named.filter(what=what).group_by('benchmark', maintain_order=True)]

def sweep_charts(
    table,              # From `sweep`
    method:str,         # Of the merges
):
    "Accuracy along the weight, or agreement where nobody knows the answers; one chart a benchmark and tag"
    from vlm_merging.charts.pages import together
    from vlm_merging.charts.score_charts import weights_chart
    parts = sweep_parts(table, method) or sweep_parts(table, method, 'agreement')
    if not parts:
        raise ValueError('There is nothing to draw: no answer is known, and no weight has two neighbours.')
    return together(*(weights_chart(part, tag=tag, what=part['what'][0], axis=axis)
                      for part, axis in parts for tag in part['tag'].unique(maintain_order=True)))
