"""Two runs on one page that needs nothing but itself: verdict, intervals, replies, length, layers."""
from __future__ import annotations
from pathlib import Path
from vlm_merging.checkpoints.places import path_of, same_place
from vlm_merging.checkpoints.texts import name_in_line
from vlm_merging.cli.commands import command
from vlm_merging.cli.files import ready_to_write
from vlm_merging.cli.page_parts import (
    OVER_ALL, correction, drawn_chart, gain_said, main_places, needed_layers, place_key, place_said,
    question_parts, template, two_lines, verdict_parts)
from vlm_merging.cli.report_inputs import Reported, gathered, place_of_question

MARK = '<meta name="generator" content="vlm-merging report">' # Such a page is written anew
CHARTS = 4              # Of a sweep, at most: one a benchmark and place

def tables_of(
    f:Reported,         # All that was found
    sums,               # From `summarize`
)->dict:                # cards, right, lengths
    "How often each run was right, and how long its replies were"
    from vlm_merging.comparing.findings import p_said, points
    places = [r for r in f.compared.to_dicts() if r['n']]
    several, runs = f.compared['benchmark'].n_unique()>1, [t['run'][0] for t in f.scores]
    known = {(r['run'], r['what'], *place_key(r)):r for r in sums.to_dicts()}
    def cells(what, row, form): return [form(known.get((run, what, *place_key(row)))) for run in runs]
    def change(r):
        ends = f"{points(r['low'])} to {points(r['high'])}"
        return points(r['difference']), f"{ends}, {p_said(r['p_holm'])}{correction(r)}"
    def long(row): return '' if row is None else f"{row['value']:.1f}"
    cards = [dict(name=place_said(r, several), before=f"{r['a']:.1%}", after=f"{r['b']:.1%}",
                  note=gain_said(r)) for r in main_places(f.compared)]
    heads = [*map(name_in_line, runs)]
    right = [[place_said(r, several), *cells('accuracy', r, two_lines), change(r)] for r in places]
    lengths = [[place_said(r, several), *cells('length', r, long)] for r in places]
    told = dict(cards=cards, right=dict(head=['', *heads, 'change, points'], rows=right), lengths=None)
    longs = [r for r in places if r['tag']=='all' and r['length_a'] is not None and r['length_b'] is not None]
    if not longs: return told
    a, b = (sum(r[f'length_{s}']*r['n'] for r in longs)/sum(r['n'] for r in longs) for s in 'ab')
    cards.append(dict(name='length of a reply', before=f'{a:.1f}', after=f'{b:.1f}',
                      note='characters, on average'))
    return told|dict(lengths=dict(head=['mean length, characters', *heads], rows=lengths))

def weight_title(
    rows,               # Of a sweep: one quantity, one tag
    weight,             # That was taken, or None
    length:bool,        # Is it the length of replies?
)->str|None:            # None: the chart finds its own
    "`From the VLM (1) to 0.6: perception 100.0% → 98.5%, reasoning 38.2% → 78.0%`"
    values = {(r['weight'], r['where']):r['value'] for r in rows.to_dicts()}
    kinds = list(dict.fromkeys(rows['where']))
    if not all({(1., k), (weight, k)}<={*values} for k in kinds):
        return 'Mean length of a reply, along the weight' if length else None
    form, unit = ('.1f', ' characters') if length else ('.1%', '')
    way = (f'{name_in_line(k, 40)} {values[1., k]:{form}} → {values[weight, k]:{form}}' for k in kinds)
    return f"From the VLM (1) to {weight:g}: {', '.join(way)}{unit}"

def along_the_weight(
    f:Reported,         # With `tried`
)->dict:                # charts, table, verdict, n, weight, others
    "What the weights did to right answers and to the length of replies"
    import altair as alt, polars as pl
    from vlm_merging.charts.pages import INK
    from vlm_merging.charts.score_charts import weights_chart
    from vlm_merging.cli.probing_commands import sweep_parts
    from vlm_merging.comparing.findings import sweep_verdict
    rule = alt.Chart(pl.DataFrame(dict(weight=[f.weight]))).mark_rule(color=INK, strokeDash=[4, 4])
    charts = []
    for what in ('accuracy', 'length'):
        for part, axis in sweep_parts(f.tried, f.method, what)[:CHARTS]:
            tag = next((t for t in part['tag'].unique(maintain_order=True) if t not in OVER_ALL), 'all')
            title = weight_title(part.filter(tag=tag), f.weight, what=='length')
            chart = weights_chart(part, tag, what, title, axis)
            if f.weight is not None: chart = chart+rule.encode(x='weight:Q')
            charts.append(drawn_chart(chart, f'weight{len(charts)}', 580))
    right = f.tried.filter(what='accuracy').sort('weight', descending=True, nulls_last=True,
                                                 maintain_order=True)
    places, several = main_places(right), right['benchmark'].n_unique()>1
    cell = {(r['run'], *place_key(r)):two_lines(r) for r in right.to_dicts()}
    rows = [[name_in_line(run), *(cell.get((run, *place_key(p)), ('', '')) for p in places)]
            for run in right['run'].unique(maintain_order=True)]
    return dict(charts=charts, n=right['n'].max(), others=f.others, weight=f.weight,
                verdict=sweep_verdict(right),
                table=dict(head=['', *(place_said(p, several) for p in places)], rows=rows))

def layers_of(
    f:Reported,         # With `profile`
)->dict:                # chart, needed, verdict, n
    "Which layers matter, before and after"
    from vlm_merging.charts.layer_charts import before_after_chart, profile_chart
    from vlm_merging.comparing.layer_findings import change_verdict, profile_verdict
    part = f.profile['part'][0]
    said = profile_verdict(f.profile)
    if f.change is None: chart = profile_chart(f.profile)
    else:
        chart = before_after_chart(f.profile, change=f.change, part=part)
        said = f'{said}\n{change_verdict(f.change, f.profile)}'
    return dict(chart=drawn_chart(chart, 'masks', 500), needed=needed_layers(f.profile),
                n=f.profile['n'].max(), layers=f.profile['layer'].n_unique(), verdict=verdict_parts(said),
                answers=f.profile['measure'][0]=='answer', part=part)

def questions_of_page(
    f:Reported,         # All that was found
)->list:                # Heading, and parts of questions
    "What was won and lost, with pictures and replies"
    from vlm_merging.widgets.panels import literal_text, picture_html
    replies = [{place_of_question(r):r for r in t.to_dicts()[::-1]} for t in f.scores] # Of samples the first
    n = f.compared.filter(tag='all')['n'].sum()
    def card(row):
        place = place_of_question(row)
        images = f.pictures.get(place, ())
        if isinstance(images, str): pictures = [literal_text(images)]
        else: pictures = [picture_html(p, 160) for p in images]
        kind = ', '.join(str(row[t]) for t in f.tags if row.get(t))
        said = [(t['run'][0], by.get(place)) for t, by in zip(f.scores, replies)]
        return question_parts(row, pictures, said, kind, f.options.get(place, ()))
    return [(f'{name}: {size} of {n}', [*map(card, rows)]) for name, size, rows in f.shown]

def page(
    f:Reported,         # All that was found
    **words,            # Of a caller who has more to say: title, lead, notes, moved, yours
)->str:                 # A whole page
    "The page, as text"
    from vlm_merging.charts.score_charts import length_chart, pairs_chart
    from vlm_merging.comparing.findings import verdict
    from vlm_merging.comparing.summary import by_length, summarize
    first, last = (name_in_line(f.compared[c][0]) for c in ('run_a', 'run_b'))
    ends, said = [f.scores[0], f.scores[-1]], verdict(f.compared)
    tag = next((r['tag'] for r in main_places(f.compared)), 'all')
    whole = f.compared.filter(tag='all')
    n, won, lost = (whole[c].sum() for c in ('n', 'won', 'lost'))
    told = f'{won} were won, right in {last} alone, and {lost} were lost'
    of = ', '.join(map(name_in_line, whole['benchmark'].head(6)))+', ...'*(whole.height>6)
    told = dict(title=f'{last} against {first}', lead=f'{n} questions of {of}: {told}.', notes=[], moved=None,
                yours='', right_note='')|words
    sums = summarize(f.scores, f.tags)
    told |= tables_of(f, sums)
    long = by_length(ends) if told['lengths'] else None
    return template().render(
        **told, mark=MARK, n=n,
        pairs=drawn_chart(pairs_chart(f.compared, tag), 'pairs', 545), compared=verdict_parts(said),
        questions=questions_of_page(f), unlike=f.unlike,
        length_chart=drawn_chart(length_chart(long), 'length', 545) if long is not None else None,
        tried=along_the_weight(f) if f.tried is not None else None,
        probed=layers_of(f) if f.profile is not None else None, made=f.made)

def check_page(
    out:str|Path,       # Where a page shall appear
    *inputs,            # What is read, and must stay
)->Path:
    "Raise ValueError if a page cannot appear there, or something that is no report is there already"
    ready_to_write(path_of(out), ('.html',), *(i for i in inputs if isinstance(i, (str, Path))))
    path = path_of(out)
    if path.exists() and MARK not in path.read_bytes()[:2000].decode(errors='replace'):
        raise ValueError(f'{path} is there, and is no report: it is left as it is. Choose another name.')
    return path

def report(
    a,                  # The run before: its folder, or a table of replies or of scores (or the path of one)
    b,                  # The run after: the same
    out:str|Path='report.html', # The page that shall appear; an earlier report is replaced
    by=None,            # Split by these tags; None: category, where there is one
    probe=None,         # Folder of a profile: which layers matter
    sweep=None,         # Folder of a sweep: what other weights do
    items=None,         # Questions with their pictures: a table file, a prepared benchmark, or `Item`s;
                        # None: those of the lab and of prepared benchmarks are found by their names
    protocol:str='offline', # How replies are scored that have no score yet: offline or strict
    thinking:str='general', # What is thought in replies that have no score yet: as `score` takes it
    trust_prompt:bool=False, # Compare also a run of a server that was not seen to build the model's prompts?
)->Path:
    "Write two runs onto one page that needs nothing but itself; raise ValueError if it cannot be done"
    from vlm_merging.checkpoints.disk import replace_text
    path = check_page(out, a, b)
    replace_text(path, page(gathered(a, b, by, probe, sweep, items, protocol, thinking, trust_prompt)))
    return path

@command(shows=dict(options='cli.report:report a=before b=after probe sweep items protocol '
                      'thinking trust_prompt'),
         choices=dict(protocol='scoring.score:PROTOCOLS'),
         example='vlm-merging report runs/vlm runs/merged --out page.html\n'
                 'vlm-merging report runs/vlm runs/merged --probe runs/probe --sweep runs/sweep --out a.html')
def report_command(
    before:str,         # Folder of a run, or a table of replies or scores
    after:str,          # The same of the run that is compared with it
    *,
    by:tuple|None=None, # Split by these tags; default: category, where there is one
    out:Path,           # The page that shall appear (.html); an earlier report is replaced
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 4 if some questions have no reply
    "Put two runs on one page: verdict, intervals, replies with their pictures, length, layers"
    from vlm_merging.checkpoints.disk import replace_text
    from vlm_merging.cli.asking_commands import incomplete, tell
    path = check_page(out, before, after)
    if same_place(before, after): tell(f'{before} is compared with itself, so nothing can differ.')
    found = gathered(before, after, by, *(given.get(k) for k in ('probe', 'sweep', 'items')),
                     given.get('protocol', 'offline'), given.get('thinking', 'general'),
                     given.get('trust_prompt', False))
    replace_text(path, page(found))
    from vlm_merging.comparing.findings import verdict
    print(verdict(found.compared))
    print(name_in_line(f'report: {path}', 4000))
    return 4 if incomplete([], *found.scores) else 0
