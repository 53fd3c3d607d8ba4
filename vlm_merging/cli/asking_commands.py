"""Evaluation from the shell: `prepare`, `ask`, `score`, `compare`; each reads what the last one wrote."""
#     prepare -> files of the benchmark           once, where there is a network
#     ask     -> RUN/replies.jsonl, RUN/run.json  each reply at once; goes on where it was
#     score   -> SCORES.parquet                   no model, no network
#     compare -> a verdict in words, TABLE, PAGE  two runs, item by item
#     agreement -> where two graders differ, TABLE, ROWS   one run, two verdicts on each reply
from __future__ import annotations
import os, shlex, sys, warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from vlm_merging.checkpoints.places import path_of, same_place
from vlm_merging.checkpoints.texts import name_in_line
from vlm_merging.cli.commands import as_called, command, taken
from vlm_merging.cli.files import (
    PAGES, TABLES, read_scores, read_table, ready_to_write, with_run, write_table)

FETCHED = 'benchmarks.prepare:prepare name=names split folder=data source=from revision'
LOADED = 'benchmarks.load:load what=benchmark split n seed folder=data'
QUESTIONS = 'cli.asking_commands:questions_of benchmark', LOADED
OPENED = 'asking.opening:open_model dtype device trust_remote_code'
ASKED_HOW = 'asking.models:LocalModel batch_size max_new_tokens temperature seed=sampling_seed system'
SERVED = 'asking.endpoint:Endpoint base_url=endpoint weights=serves processor trust_prompt'
SAMPLED = 'asking.ask:ask samples repeat'
ENGINED = 'asking.engines:open_engine engine engine_args'
AS_SERVED = SERVED+' concurrency=batch_size max_tokens=max_new_tokens temperature seed=sampling_seed system'

def tell(
    text:str,           # A sentence about the work
)->None:
    "Say something beside the result"
    warnings.warn(text, stacklevel=2)

@command(shows=dict(options=FETCHED), also=dict(to='data'),
         example='vlm-merging prepare MathVista\nvlm-merging prepare MathVista --from downloads/MathVista')
def prepare_command(
    names:tuple=(),     # Benchmarks; none: list what there is
    **given,            # Option -> value, as typed
)->int:                 # Exit code
    "Fetch benchmarks once, for work without network"
    from vlm_merging.benchmarks.items import BENCHMARKS
    from vlm_merging.benchmarks.prepare import prepare
    if not names:
        for b in BENCHMARKS.values():
            print(f"{b.name:16} {b.source:32} {', '.join(b.splits)}   [{b.licence}]")
    for name in names: print(name_in_line(f'{name}: {prepare(name, **taken(given, FETCHED))}', 4000))
    return 0

def only_one(
    served:list[str],   # Names of models
)->str:
    "The model of a server that has just one; raise ValueError if it has more, or does not tell"
    if len(served)==1: return served[0]
    there = ', '.join(served[:10])+', ...'*(len(served)>10) or 'no list of its models'
    raise ValueError(f'--model is missing. The server has {there}: name the one to ask.')

def quiet_libraries()->None:
    "No bars of transformers where nobody looks"
    if sys.stderr.isatty(): return
    from transformers.utils import logging
    logging.disable_progress_bar()

def asker_of(
    given:dict,         # Option -> value, as typed
):
    "The model that a command line names; raise ValueError if it names none"
    if 'endpoint' in given:
        from vlm_merging.asking.endpoint import Endpoint
        from vlm_merging.asking.fingerprints import served_folder
        if (serves := given.get('serves')) and not served_folder(serves):
            tell(f'--serves {serves} is no folder here, so it is taken as a label of the weights.')
        model = given.get('model') or only_one(Endpoint(given['endpoint'], '').served())
        return Endpoint(model=model, **taken(given, AS_SERVED))
    if not given.get('model'):
        raise ValueError('--model is missing. Name a folder or hub id, or a server with --endpoint.')
    for name in ('serves', 'processor', 'trust_prompt'): # To an engine of its own only the last belongs
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')} goes with --endpoint: a folder says itself what "
                             f"it is.")
    from vlm_merging.asking.opening import open_model
    quiet_libraries()
    return open_model(given['model'], **taken(given, OPENED, ASKED_HOW))

@contextmanager
def engine_of(
    given:dict,         # Option -> value, as typed
    items,              # Questions, of which some may have pictures
    log,                # Where a server that is started leaves its log
):
    "Who is asked, for as long as the block runs: an engine of its own, or what `asker_of` gives"
    if 'engine' not in given:
        if 'engine_args' in given: raise ValueError('--engine-args goes with --engine.')
        yield asker_of(given)
        return
    for name in ('endpoint', 'serves', 'processor'):
        if name in given: raise ValueError(f'--{name} and --engine do not go together: one server is enough.')
    if not given.get('model'): raise ValueError('--model is missing. Name the folder or hub id to open.')
    from vlm_merging.asking.engines import open_engine
    from vlm_merging.asking.opening import check_pictures
    check_pictures(given['model'], items)
    quiet_libraries()
    wanted = taken(given, 'asking.engines:open_engine engine engine_args trust_prompt', OPENED, ASKED_HOW)
    with open_engine(given['model'], log=log, **wanted) as model: yield model

def questions_of(
    given:dict,         # Option -> value, as typed
    benchmark:tuple,    # Prepared benchmarks, or tables of your own; lab: questions for the embedded models
)->list:                # Items, with `.left`: rows that cannot be asked
    "The items that a command line names; what is wrong with their tables is told"
    from vlm_merging.benchmarks.items import Items
    from vlm_merging.benchmarks.load import load
    from vlm_merging.benchmarks.tables import IMAGES
    items = Items()
    for name in benchmark:
        loaded = load(**taken(given, LOADED)|dict(what=name))
        for sentence in loaded.problems: tell(sentence)
        known = any('no row has a picture' in sentence for sentence in loaded.problems)
        if os.path.isfile(name) and not known and not any(i.images for i in loaded):
            tell(f"{name}: no row has a picture; pictures are read from the columns {', '.join(IMAGES)}.")
        items += loaded
    items.problems.clear()                                   # They are told
    return items

def folder_wanted(
    given:dict,         # Option -> value, as typed
)->Path:
    "The folder that a command writes to"
    out = path_of(given['out'])
    if out.is_file(): raise ValueError(f"{given['out']} is a file. Name a folder for the run.")
    return out

def power_sentences(
    items,              # Items
    **assumed,          # change and discordance of `power_said`
):                      # Yields a sentence for each benchmark
    "What a comparison of two runs on these items could see"
    from collections import Counter
    from vlm_merging.comparing.findings import power_said
    for name, n in Counter(i.benchmark for i in items).items(): yield power_said(n, name=name, **assumed)

def print_flips(
    replies,            # A reply table
)->None:
    "Say what share of verdicts flips by itself, where questions have several replies"
    from vlm_merging.comparing.findings import flips_said
    from vlm_merging.scoring.score import score
    if told := flips_said(score(replies)): print(told)

ASSUMED = 'comparing.findings:power_said change discordance'

@command(shows=dict(what='benchmarks.load:load split n seed folder=data', options=ASSUMED), spaced='items',
         example='vlm-merging power 1000\nvlm-merging power MathVista --change .02 --discordance .1')
def power_command(
    items:tuple,        # How many items both runs will have; or prepared benchmarks, or tables of your own
    **given,            # Option -> value, as typed
)->int:                 # Exit code
    "Say, before anything is asked, how small a change could be seen, and how many items it takes"
    from vlm_merging.comparing.findings import power_said
    for what in items:
        assumed = taken(given, ASSUMED)
        if what.isdecimal(): print(power_said(int(what), **assumed))
        else: print(*power_sentences(questions_of(given, (what,)), **assumed), sep='\n')
    return 0

@command(shows=dict(who=(OPENED, ENGINED, SERVED), what=QUESTIONS, how=(ASKED_HOW, SAMPLED),
                    output='asking.ask:ask out'),
         places='model', needs='benchmark out', spaced='benchmark', was=dict(weights='serves'),
         example='vlm-merging ask --model lab/vlm --benchmark lab -n 100 --out runs/vlm\n'
                 'vlm-merging ask merged --engine server --benchmark mine.csv --out runs/engine\n'
                 'vlm-merging ask --endpoint http://127.0.0.1:8000/v1 --benchmark mine.csv --out runs/served')
def ask_command(
    *,
    model:str|None=None, # Folder or hub id; with --endpoint the name under which it is served
    run:str|None=None,  # Name in tables; default: that of the folder
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some items failed
    "Ask a model every question, and keep each reply at once; a run that was stopped goes on where it was"
    from vlm_merging.asking.ask import ask, in_samples
    from vlm_merging.asking.replies import prompt_record, run_report, unique_rows
    from vlm_merging.asking.same_prompt import prompts_said
    out = folder_wanted(given)
    items = questions_of(given, given['benchmark'])
    several = taken(given, SAMPLED)
    with engine_of(given|dict(model=model), items, f'{out}.engine.log') as model, warnings.catch_warnings():
        for sentence in power_sentences(items): tell(sentence)
        warnings.filterwarnings('ignore', r'\d+ of \d+ items have a reply') # `run_report` says the same
        replies = ask(model, items, out, run, **several)
    print(*filter(None, (run_report(out), prompts_said(prompt_record(out)))), sep='\n')
    if several: print_flips(replies)
    line = shlex.join(['Next:', as_called(), 'score', str(out), '--out', f'{out}.parquet'])
    print(name_in_line(line, 9000))
    asked = in_samples(unique_rows(items), **several)
    return 0 if replies.height==len(asked) and not items.left else 4

def incomplete(
    problems:list,      # What `table_at` says
    *scores,            # Tables of scores
)->bool:
    "Is anything without a reply, or could not be read?"
    from vlm_merging.asking.replies import NO_REPLY
    return bool(problems) or any(NO_REPLY in t['outcome'] for t in scores if 'outcome' in t.columns)

QUESTIONS_OF_OTHERS = 'asking.reading:table_at items'

@command(shows=dict(options=QUESTIONS_OF_OTHERS),
         example='vlm-merging score runs/a --out a.parquet\n'
                 'vlm-merging score LLaVA-CoT.jsonl --items MathVision\n'
                 'vlm-merging score runs/a --protocol judge --judge localhost:8000 --judge-model NAME')
def score_command(
    table:str,          # Folder of a run, parquet, jsonl or csv file, or a result file of another harness
    *,
    protocol:Literal['offline', 'strict', 'judge']='offline', # offline reads the reply; strict is the
                        # official rule without a judge; judge asks a model where no rule is sure
    judge:str|None=None, # Address of an OpenAI-compatible server; the judge never sees the question
    judge_model:str|None=None, # Name under which the judge is served
    judge_cache:Path|None=None, # Folder that keeps what the judge said, so that the second time costs
                        # nothing; default: TABLE.judge
    thinking:str='general', # What is thought, not answered: in any known tag; none; a dialect (think,
                        # thinking, thought, reasoning, seed, channels, llava_cot); or a tag: '<ponder>'
    by:tuple=(),        # Split by these tags
    out:Path|None=None, # Write the scores there, anew if it is there: .parquet, .jsonl or .csv
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some questions have no reply
    "Score replies: accuracy with intervals, how many replies could be read, and what is wrong with the table"
    from vlm_merging.comparing.findings import accuracy_said
    from vlm_merging.comparing.statistics import no_kinds
    from vlm_merging.scoring.problems import problems
    from vlm_merging.scoring.score import score
    ready_to_write(out, TABLES, table)
    if (protocol=='judge')!=bool(judge): raise ValueError('--protocol judge and --judge URL go together.')
    frame = with_run(read_table(table, left := [], given.get('items')), table)
    for sentence in left: tell(sentence)
    if judge:
        from vlm_merging.asking.endpoint import Endpoint
        from vlm_merging.scoring.judge import judge_report, judged
        if not judge_model: raise ValueError('--judge-model is missing. Name the model that shall judge.')
        cache = judge_cache or Path(f'{path_of(table)}.judge')
        scores = judged(frame, Endpoint(judge, judge_model, max_tokens=512), cache, thinking=thinking)
        print(judge_report(scores))
    else: scores = score(frame, protocol, thinking)
    if out: write_table(scores, out)
    for sentence in (*problems(scores), *no_kinds(scores, by)): tell(sentence)
    print(accuracy_said(scores, by))
    return 4 if incomplete(left, scores) else 0

def tags_in_both(
    by:tuple|None,      # As typed; None: category, where there is one
    a,                  # A table
    b,                  # Another
)->tuple:
    "The tags to split two runs by"
    return tuple(t for t in ('category',) if t in a.columns and t in b.columns) if by is None else by

def worst_cases(
    a,                  # Scores before
    b,                  # Scores after
    names,              # Of benchmarks
):                      # Yields tables of `comparison_table`
    "Of benchmarks that ask each question in variants: all variants of a question right"
    import polars as pl
    from vlm_merging.comparing.pairs import comparison_table
    from vlm_merging.comparing.summary import VARIANTS, worst_case
    for name in {n.lower() for n in VARIANTS}&{n.lower() for n in names}:
        try: worst = [worst_case(t.filter(pl.col('benchmark').str.to_lowercase()==name)) for t in (a, b)]
        except ValueError: continue         # No question is there with all its variants
        worst = [t.with_columns(benchmark=pl.col('benchmark')+', worst case') for t in worst]
        if {*worst[0]['index']}&{*worst[1]['index']}: yield comparison_table(*worst)

@command(shows=dict(options=('comparing.compare:compare a=before b=after protocol unpaired thinking '
                             'trust_prompt', QUESTIONS_OF_OTHERS)),
         choices=dict(protocol='scoring.score:PROTOCOLS'),
         example='vlm-merging compare runs/vlm runs/merged --by category --chart page.html')
def compare_command(
    before:str,         # Folder of a run, or a table of replies or scores
    after:str,          # The same of the run that is compared with it
    *,
    by:tuple|None=None, # Split by these tags; default: category, where there is one
    out:Path|None=None, # Write the numbers there, anew if it is there: .parquet, .jsonl or .csv
    chart:Path|None=None, # A page with charts (.html), or one chart (.svg, .png)
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some questions have no reply
    "Compare two runs item by item, and say in words what the numbers allow to say"
    import polars as pl
    from vlm_merging.comparing.compare import compare
    from vlm_merging.comparing.findings import verdict
    ready_to_write(out, TABLES, before, after)
    ready_to_write(chart, PAGES, before, after)
    left = []
    how = given.get('protocol', 'offline'), left, given.get('items'), given.get('thinking', 'general')
    a, b = (read_scores(p, *how) for p in (before, after))
    for sentence in left: tell(sentence)
    if same_place(before, after): tell(f'{before} is compared with itself, so nothing can differ.')
    runs = [t['run'].unique().to_list() if 'run' in t.columns else [] for t in (a, b)]
    if runs[0]==runs[1]!=[]:                # Told apart by where they lie
        a, b = (t.with_columns(run=pl.lit(str(p))) for t, p in ((a, before), (b, after)))
    by = tags_in_both(by, a, b)
    unpaired = given.get('unpaired', False)
    table = compare(a, b, by, unpaired=unpaired, trust_prompt=given.get('trust_prompt', False)).table
    worst = [] if unpaired else worst_cases(a, b, table['benchmark'].unique())
    table = pl.concat([table, *worst], how='diagonal')
    print(verdict(table))
    if out: write_table(table, out)
    if chart:
        from vlm_merging.charts.pages import save_chart
        save_chart(comparison_charts(table, a, b, by), chart)
    return 4 if incomplete(left, a, b) else 0

@command(shows=dict(options=('comparing.agreement:agreement other=with protocol verdict thinking',
                             QUESTIONS_OF_OTHERS)),
         choices=dict(protocol='scoring.score:PROTOCOLS'),
         example='vlm-merging agreement output_llava.json --by task --rows differ.jsonl\n'
                 'vlm-merging agreement offline.parquet --with judge.parquet')
def agreement_command(
    scores:str,         # Folder of a run, a table of replies or scores, or a result file of another harness
    *,
    by:tuple=(),        # Split by these tags
    out:Path|None=None, # Write the numbers there, anew if it is there: .parquet, .jsonl or .csv
    rows:Path|None=None, # Write the rows on which the two differ there: .parquet, .jsonl or .csv
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some questions have no reply
    "Show where two graders of the same replies differ: how often, in which direction, and the rows"
    from vlm_merging.comparing.agreement import agreement
    other, items, left = given.get('with'), given.get('items'), []
    for path in (out, rows): ready_to_write(path, TABLES, scores, *filter(None, [other]))
    if out and rows and same_place(out, rows): raise ValueError('--out and --rows are one file. Name two.')
    a, b = (p and read_table(p, left, items) for p in (scores, other))
    for sentence in left: tell(sentence)
    more = {k:given[k] for k in ('protocol', 'verdict', 'thinking') if given.get(k) is not None}
    found = agreement(a, b, by, **more)
    print(found.verdict)
    if out: write_table(found.table, out)
    if rows: write_table(found.rows, rows)
    return 4 if incomplete(left, a) else 0

def comparison_charts(
    table,              # From `compare`
    a,                  # Scores before
    b,                  # Scores after
    by:tuple=(),        # Tags
):
    "Scores, items won and lost, and accuracy against length, on one page"
    import polars as pl
    from vlm_merging.charts.pages import together
    from vlm_merging.charts.score_charts import length_chart, pairs_chart, scores_chart
    from vlm_merging.comparing.summary import by_length, summarize
    sums = summarize([a, b], by)
    tags = ['all', *(t for t in ('split', *by) if table.filter(pl.col('tag')==t, pl.col('n')>0).height)]
    charts = [draw(t, tag=tag) for tag in tags for draw, t in ((scores_chart, sums), (pairs_chart, table))]
    if 'length' in a.columns and 'length' in b.columns: charts.append(length_chart(by_length([a, b])))
    return together(*charts)
