"""The pieces of a report: shares in words, drawings, tables, and questions with pictures and replies."""
# A page can be opened from a disk, mailed, and read on a phone or in the dark. It has no scripts and loads
# nothing: charts are drawn into it as SVG (some 30 kB each; the scripts that would draw them in a browser
# are 0.9 MB), pictures of questions are PNG within it. A chart is drawn wide and narrow, since a shrunken
# one cannot be read; the page shows the one that fits.
from __future__ import annotations
import io
from functools import lru_cache
from vlm_merging.checkpoints.texts import name_in_line, ranges_said, visible

NARROWER = 300          # By how many pixels a chart is narrower on a phone
SLIM_LABELS = 110       # Pixels that a label beside it may take there
OVER_ALL = 'all', 'split' # Tags that are no kinds of questions
FEW_PLACES = 4          # Kinds of questions that stand side by side, at most

# Numbers in words

def share_said(
    row:dict,           # Of `summarize`: a share
)->str:
    "`39.5% (95% 34.4 to 44.9)`"
    return f"{row['value']:.1%} (95% {100*row['low']:.1f} to {100*row['high']:.1f})"

def two_lines(
    row:dict|None,      # As for `share_said`; None: there is none
)->tuple:               # The share, and the ends of its interval below
    "A share as a cell of a table"
    if row is None: return '', ''
    ends = '' if row['low'] is None else f"{100*row['low']:.1f}–{100*row['high']:.1f}"
    return f"{row['value']:.1%}", ends

def correction(
    row:dict,           # Of `compare`
)->str:                 # ', corrected', or nothing
    "What is said of a p that is larger for the number of kinds; the interval beside it is that of one kind"
    return ', corrected'*(row['p_holm']!=row['p'])

def gain_said(
    row:dict,           # Of `compare`
)->str:
    "`+26.8 points (95% +20.0 to +33.0), p < .001, corrected`"
    from vlm_merging.comparing.findings import p_said, points
    gain, low, high = (points(row[k]) for k in ('difference', 'low', 'high'))
    return f"{gain} points (95% {low} to {high}), {p_said(row['p_holm'])}"+correction(row)

def needed_layers(
    profile,            # From `profile_table`
)->list:                # Kind of questions; `VLM 0, merged 0-2`
    "The layers whose loss costs right answers, beyond chance, of the first measure and way in the table"
    import polars as pl
    from vlm_merging.probing.profile import matters
    same = {c:profile[c][0] for c in ('measure', 'how', 'part')}
    tags = [t for t in profile['tag'].unique(maintain_order=True) if t not in OVER_ALL]
    rows = profile.filter(pl.col('layers')==pl.col('layer').cast(pl.String), tag=(tags or ['all'])[0], **same)
    models = profile['model'].unique(maintain_order=True)
    def said(kind, model):
        hurt = rows.filter(matters(-1), where=kind, model=model)['layer'].to_list()
        return f"{name_in_line(model)} {ranges_said(hurt) or 'none'}"
    return [(name_in_line(k), ', '.join(said(k, m) for m in models)) for k in rows['where'].unique().sort()]

# Rows of tables

def place_key(
    row:dict,           # Of `summarize` or `compare`
)->tuple:
    "What tells one kind of questions from another"
    return tuple(row[c] for c in ('benchmark', 'tag', 'where'))

def place_said(
    row:dict,           # Of `summarize` or `compare`
    several:bool,       # Are there several benchmarks?
)->str:
    "The name of a kind of questions"
    from vlm_merging.comparing.findings import CATEGORY_NAMES
    if row['tag']=='all': return name_in_line(row['benchmark']) if several else 'all'
    where = name_in_line(CATEGORY_NAMES.get(row['where'], row['where']))
    return f"{name_in_line(row['benchmark'], 40)}, {where}" if several else where

def main_places(
    table,              # From `summarize` or `compare`
)->list[dict]:          # Rows, at most `FEW_PLACES`, one a place
    "The kinds of questions that a page begins with: those of the first tag if they are few, else all"
    rows = {place_key(r):r for r in table.to_dicts() if r['n']}.values()
    tags = [t for t in dict.fromkeys(r['tag'] for r in rows) if t not in OVER_ALL]
    kinds = [r for r in rows if tags and r['tag']==tags[0]]
    some = kinds if 1<len(kinds)<=FEW_PLACES else [r for r in rows if r['tag']=='all']
    return some[:FEW_PLACES]

# Drawings

@lru_cache
def template(
    name:str='report.html', # Or parts.html
):                      # Of Jinja
    "A page with holes; whatever is put in is escaped"
    from jinja2 import Environment, PackageLoader, StrictUndefined
    loader = PackageLoader('vlm_merging.cli')
    def seen(value): return visible(value, len(value)) if type(value) is str else value # Markup is ours
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined,
                       finalize=seen).get_template(name)

def widen_chart(
    chart,              # Of Altair
    frame:int,          # Pixels, without axes
):                      # A copy
    "The same chart with frames of another width; panels side by side come one below the other"
    made = chart.copy()
    if isinstance(getattr(made, 'width', None), int): made.width = frame
    if hasattr(made, 'spec'): made.spec, made.columns = widen_chart(made.spec, frame), 1
    for inside in ('layer', 'vconcat'):
        if isinstance(parts := getattr(made, inside, None), list):
            setattr(made, inside, [widen_chart(p, frame) for p in parts])
    return made

def drawn_chart(
    chart,              # Of Altair, with its title
    name:str,           # Letters, to tell charts of a page apart
    frame:int,          # Width on a wide page, pixels without axes
)->dict:                # title, note, and two drawings: wide, slim
    "A chart for the page: its title and note as text, so that a reader can be told them"
    import altair as alt
    from vlm_merging.charts.pages import INK, theme
    def joined(text, between): return between.join(text) if isinstance(text, list) else text
    title, note = joined(chart.title.text, ' '), joined(chart.title.subtitle, '; ')
    chart, made = chart.copy(), dict(title=title, note=note[:1].upper()+note[1:])
    chart.title = alt.Undefined
    for kind, width in (('wide', frame), ('slim', frame-NARROWER)):
        look = theme()
        if kind=='slim': look['axis']['labelLimit'] = SLIM_LABELS
        file, own, drawn = io.StringIO(), f'{name}-{kind}-', widen_chart(chart, width)
        drawn.config = alt.Config.from_dict(look)
        drawn.save(file, format='svg')
        svg = file.getvalue().replace(f'"{INK}"', '"currentColor"')
        made[kind] = svg.replace('id="', f'id="{own}').replace('url(#', f'url(#{own}') # Its parts have names
    return made

# Words

def verdict_parts(
    text:str,           # A heading, lines that begin with `- `, and lines indented below them
)->dict:                # heading: lines; points: each with its remarks
    "A verdict as a paragraph and a list"
    heading, points = [], []
    for line in text.splitlines():
        if line.startswith('- '): points.append((line[2:], []))
        elif points: points[-1][1].append(line.strip())
        else: heading.append(line.strip())
    return dict(heading=heading, points=points)

# Questions and replies

OUTCOMES = {'Won':6, 'Lost':6, 'Both wrong':3, 'Both right':2} # Questions of each that are shown, at most

def shown_rows(
    pairs,              # From `matched`
    tags:list[str],     # The first of them spreads the choice
)->list[tuple]:         # Outcome, how many came out so, and the rows that are shown
    "Of each outcome the first questions, kind by kind: the prettiest ones would be advertising"
    import polars as pl
    gain = pl.col('value_b')-pl.col('value')
    rules = gain>0, gain<0, (gain==0) & ~pl.col('correct'), (gain==0) & pl.col('correct')
    for name, rule in zip(OUTCOMES, rules):
        rows = pairs.filter(rule, state='paired')
        turn = pl.int_range(pl.len()).over(tags[:1]) if tags else pl.int_range(pl.len())
        some = rows.sort(turn, maintain_order=True).head(OUTCOMES[name])
        if rows.height: yield name, rows.height, some.to_dicts()

def question_parts(
    row:dict,           # Of `matched`
    pictures:list,      # Markup; what cannot be shown says why
    replies:list,       # Run, its row of a score table or None
    kind:str='',        # Of the question
    options=(),         # What could be chosen, in letter order
)->dict:
    "A question with its pictures and what the models said"
    from vlm_merging.benchmarks.items import LETTERS
    def said(row):
        if row is None: return '', None, ''
        text, picked = row.get('prediction') or '', row.get('picked') or ''
        why = ', '.join(str(row[c]) for c in ('tier', 'reason') if row.get(c))
        read = f"read as {name_in_line(picked)}"+f' ({name_in_line(why)})'*bool(why)
        return visible(text), row['correct'], read if picked and picked!=text.strip() else ''
    return dict(pictures=pictures, ask=visible(row.get('question') or row['index']), kind=name_in_line(kind),
                options=[f'{letter}. {visible(o)}' for letter, o in zip(LETTERS, options)],
                answer=name_in_line(row.get('answer') or ''),
                replies=[(name_in_line(m), *said(r)) for m, r in replies])
