"""What the demo tells: ten lines for a terminal, and one page that needs nothing but itself."""
# It can be opened from a disk, mailed, and read on a phone or in the dark. It has no scripts and loads
# nothing: charts are drawn into it as SVG (some 30 kB each; the scripts that would draw them in a browser
# are 0.9 MB), pictures of questions are PNG within it. A chart is drawn wide and narrow, since a shrunken
# one cannot be read; the page shows the one that fits. The same pieces of text go into the lines and onto
# the page, so that no number is told in two ways.
from __future__ import annotations
import base64, io, json, shlex
from functools import lru_cache
from pathlib import Path
from vlm_merging.checkpoints.places import path_of
from vlm_merging.checkpoints.texts import name_in_line, visible
from vlm_merging.cli.commands import as_called

MODELS = ('VLM', 'LLM', 'merged') # Names in tables; the LLM is put into the VLM: the weight 0
NARROWER = 300          # By how many pixels a chart is narrower on a phone
YOURS = '''# do they fit? what stays, and why
vlm-merging plan    --vlm VLM --llm LLM
# which weight? on questions that are not reported
vlm-merging sweep   --vlm VLM --llm LLM --weights 0.6,0.7,0.8,0.9 \\
                    --benchmark dev.csv --out runs/sweep --chart sweep.html
vlm-merging merge   --vlm VLM --llm LLM --weight 0.8 --out OUT
# did it help?
vlm-merging ask     --model VLM --benchmark MathVista --out runs/vlm
vlm-merging ask     --model OUT --benchmark MathVista --out runs/merged
vlm-merging compare runs/vlm runs/merged --by category --chart page.html
# which layers matter?
vlm-merging profile VLM --against OUT --benchmark MathVista -n 200 \\
                    --out runs/probe --chart layers.html'''

# Pieces of text

def share_said(
    row:dict,           # Of `summarize`: a share
)->str:
    "`39.5% (95% 34.4 to 44.9)`"
    return f"{row['value']:.1%} (95% {100*row['low']:.1f} to {100*row['high']:.1f})"

def gain_said(
    row:dict,           # Of `compare`
)->str:
    "`+26.8 points (95% +20.0 to +33.0), p < .001`; p is corrected for the number of kinds"
    from vlm_merging.comparing.findings import p_said, points
    gain, low, high = (points(row[k]) for k in ('difference', 'low', 'high'))
    return f"{gain} points (95% {low} to {high}), {p_said(row['p_holm'])}"

def length_said(
    row:dict,           # Of `compare`
)->str:
    "`3 to 11 characters`"
    return f"{row['length_a']:.1f} to {row['length_b']:.1f} characters"

def masks_said(
    profile,            # From `profile_table`
    kind:str,           # perception or reasoning
)->str:
    "`VLM 0, merged 0-2`: the layers whose loss costs right answers, beyond chance"
    from vlm_merging.checkpoints.texts import ranges_said
    from vlm_merging.probing.profile import matters
    hurt = profile.filter(matters(-1), tag='category', where=kind)
    layers = {m:ranges_said(hurt.filter(model=m)['layer'].to_list()) or 'none' for m in ('VLM', 'merged')}
    return ', '.join(f'{m} {said}' for m, said in layers.items())

def kind_rows(
    table,              # From `summarize` or `compare`
    **given,            # Column and value
)->dict:                # Kind -> row
    "The rows of the two kinds of questions"
    return {r['where']:r for r in table.filter(tag='category', **given).sort('where').to_dicts()}

def facts(
    f,                  # `Findings` of the demo
    out,                # Folder of the demo
)->list[str]:           # Ten lines
    "What was found, for a terminal"
    gains, w = kind_rows(f.compared), f.recipe.knobs['weight']
    how = f"chosen on {f.tried['n'].max()} other questions" if f.picked else 'as given'
    lines = [f'merged: {w:g} of the VLM and {1-w:g} of the LLM ({how}); '
             f'asked {len(f.questions)} questions about pictures']
    for name in MODELS:
        shares = kind_rows(f.sums, run=name, what='accuracy')
        lines.append(f'{name:<7} '+'   '.join(f'{kind} {share_said(r)}' for kind, r in shares.items()))
    out = path_of(out)
    needed = '; '.join(f'{k}: {masks_said(f.profile, k)}' for k in gains)
    return [*lines, 'change: '+'; '.join(f'{kind} {gain_said(r)}' for kind, r in gains.items()),
            'replies: '+'; '.join(f'{kind} {length_said(r)}' for kind, r in gains.items()),
            f'layers whose loss costs right answers: {needed}',
            *(name_in_line(line, 9000) for line in (
                f"report: {out/'report.html'}", f"merged model, for from_pretrained: {out/'merged'}",
                shlex.join(['next:', as_called(), 'compare', str(out/'replies'/'VLM'),
                            str(out/'replies'/'merged'), '--by', 'topic'])))]

def groups(
    scores,             # Score table of `MODELS`
    most:int=6,         # Groups
):                      # category, right or wrong for each of `MODELS`, `size`, `index` of the first question
    "The most common outcomes, each with its first question: the prettiest ones would be advertising"
    import polars as pl
    wide = scores.pivot(on='run', index=['index', 'category'], values='correct')
    alike = wide.group_by('category', *MODELS, maintain_order=True)
    counted = alike.agg(size=pl.len(), index=pl.col('index').first())
    return counted.sort('size', descending=True, maintain_order=True).head(most)

# What the template puts in

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
    "The same chart with frames of another width"
    made = chart.copy()
    if isinstance(getattr(made, 'width', None), int): made.width = frame
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
    from vlm_merging.charts.pages import INK
    def joined(text, between): return between.join(text) if isinstance(text, list) else text
    title, note = joined(chart.title.text, ' '), joined(chart.title.subtitle, '; ')
    chart, made = chart.copy(), dict(title=title, note=note[:1].upper()+note[1:])
    chart.title = alt.Undefined
    for kind, width in (('wide', frame), ('slim', frame-NARROWER)):
        file, own = io.StringIO(), f'{name}-{kind}-'
        widen_chart(chart, width).save(file, format='svg')
        svg = file.getvalue().replace(f'"{INK}"', '"currentColor"')
        made[kind] = svg.replace('id="', f'id="{own}').replace('url(#', f'url(#{own}') # Its parts have names
    return made

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

def question_parts(
    q,                  # The lab's question
    row:dict,           # Of `groups`
    replies:dict,       # Model -> reply
    n:int,              # Questions in all
)->dict:
    "A question with its picture and what the models said"
    file = io.BytesIO()
    q.image.save(file, format='PNG')
    picture = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
    return dict(picture=picture, scene=q.scene, ask=q.ask, kind=q.kind, answer=q.answer, size=row['size'],
                n=n, replies=[(m, replies[m], bool(row[m])) for m in MODELS])

def _two_lines(row): return tuple(share_said(row).strip(')').split(' (95% '))

def along_the_weight(
    f,                  # `Findings` of the demo
    kinds,              # Of questions
)->dict:                # Two charts and the table beneath
    "What the weights did to accuracy and length"
    import altair as alt, polars as pl
    from vlm_merging.charts.pages import INK
    from vlm_merging.charts.score_charts import weights_chart
    w = f.recipe.knobs['weight']
    rule = alt.Chart(pl.DataFrame(dict(weight=[w]))).mark_rule(color=INK, strokeDash=[4, 4])
    def at(what):
        rows = f.tried.filter(what=what, tag='category').to_dicts()
        return {(r['weight'], r['where']):r for r in rows}
    def drawn(what, name, form, unit=''):
        values = {place:format(r['value'], form) for place, r in at(what).items()}
        way = ', '.join(f'{k} {values[1, k]} → {values[w, k]}' for k in kinds)
        title = f'From the VLM (1) to {w:g}: {way}{unit}'
        chart = weights_chart(f.tried.filter(what=what), 'category', what=what, title=title)
        return drawn_chart(chart+rule.encode(x='weight:Q'), name, 580)
    right = at('accuracy')
    weights = sorted({x for x, _ in right}, reverse=True)
    return dict(weight_chart=drawn('accuracy', 'weight', '.1%'),
                length_chart=drawn('length', 'length', '.1f', ' characters'),
                tried=[[f'{x:g}', *(_two_lines(right[x, k]) for k in kinds)] for x in weights])

def answer_tables(
    f,                  # `Findings` of the demo
    gains:dict,         # Kind -> row of the comparison
)->dict:                # Rows of the cards and tables
    "How often each model was right, and how long its replies were"
    shares = {m:kind_rows(f.sums, run=m, what='accuracy') for m in MODELS}
    whole = {m:f.sums.filter(tag='all', run=m, what='accuracy').to_dicts()[0] for m in MODELS}
    said = {m:{k:f"{r['value']:.1%}" for k, r in kinds.items()} for m, kinds in shares.items()}
    def card(name, before, after, note): return dict(name=name, before=before, after=after, note=note)
    cards = [card(k.capitalize(), said['VLM'][k], said['merged'][k], gain_said(r)) for k, r in gains.items()]
    before, after = (f"{gains['reasoning'][c]:.1f}" for c in ('length_a', 'length_b'))
    cards.append(card('Length of a reply', before, after, 'characters, to questions of reasoning'))
    right = [[m, *map(_two_lines, shares[m].values()), _two_lines(whole[m])] for m in MODELS]
    long = {m:kind_rows(f.sums, run=m, what='length').values() for m in MODELS}
    lengths = [[m, *(f"{r['value']:.1f}" for r in long[m])] for m in MODELS]
    return dict(cards=cards, right=right, lengths=lengths)

def page(
    f,                  # `Findings` of the demo
)->str:                 # A whole page
    "The report"
    from vlm_merging.asking.folder import versions
    from vlm_merging.charts.score_charts import pairs_chart
    from vlm_merging.charts.layer_charts import before_after_chart
    from vlm_merging.charts.maps import weight_map
    from vlm_merging.comparing.findings import sweep_verdict, verdict
    from vlm_merging.comparing.layer_findings import change_verdict
    from vlm_merging.probing.weights import weights_by_layer
    n, w, gains = len(f.questions), f.recipe.knobs['weight'], kind_rows(f.compared)
    each = f.compared.filter(tag='all').to_dicts()[0]
    said = {(r['run'], r['index']):r['prediction'] or '' for r in f.scores.to_dicts()}
    asked = {q.id:q for q in f.questions}
    cards = [question_parts(asked[r['index']], r, {m:said[m, r['index']] for m in MODELS}, n)
             for r in groups(f.scores).to_dicts()]
    title = f"{each['won']} of {n} questions won, {each['lost']} lost"
    moved = weight_map(weights_by_layer(f.weights.stats), ('relative_vlm', 'relative_llm', 'cosine'))
    recipe = {k:Path(v).name if k in ('vlm', 'llm') else v for k, v in f.recipe.dict().items()}
    return template().render(
        n=n, share=f'{w:g}', rest=f'{1-w:g}', kinds=list(gains), picked=f.picked, dev=f.tried['n'].max(),
        questions=cards, **along_the_weight(f, gains), **answer_tables(f, gains),
        sweep_verdict=sweep_verdict(f.tried.filter(what='accuracy')),
        pairs=drawn_chart(pairs_chart(f.compared, 'category', title=title), 'pairs', 545),
        compared=verdict_parts(verdict(f.compared)),
        layers=f.profile['layer'].n_unique(), masked=f.profile['n'].max(),
        masks=drawn_chart(before_after_chart(f.profile, change=f.change), 'masks', 500),
        needed=[(k, masks_said(f.profile, k)) for k in gains],
        changed=verdict_parts(change_verdict(f.change, f.profile)), moved=drawn_chart(moved, 'moved', 500),
        diagnosis=f.weights.verdict, sure=f.weights.sure, yours=YOURS, plan=f.plan,
        recipe=json.dumps(dict(recipe=recipe, questions=n, seed=f.seed, versions=versions()), indent=1))
