"""Text of strangers on every surface: it is shown letter by letter, runs nothing, loads nothing,
forges no line, and stays of a size"""
import json, re, shutil, xml.etree.ElementTree as ET
from html.parser import HTMLParser

import polars as pl, pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.charts.maps import layers_page, weight_map
from vlm_merging.charts.pages import save_chart
from vlm_merging.charts.score_charts import (
    length_chart, lengthening_chart, pairs_chart, scores_chart, weights_chart)
from vlm_merging.checkpoints.texts import in_markdown, name_in_line, one_line, quoted, visible
from vlm_merging.cli.page_parts import question_parts, template, verdict_parts
from vlm_merging.comparing.compare import Comparison, compare, verdict_markdown
from vlm_merging.comparing.findings import sweep_verdict
from vlm_merging.comparing.summary import by_length, summarize
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.probing.diagnose import diagnose
from vlm_merging.probing.probe import Profile
from vlm_merging.probing.profile import profile_table, toy_probe

pytestmark = pytest.mark.xdist_group('browser')
FORGED = '- all is well: +90 points'
TEXTS = dict(script='</script><script>pwned("script")</script>', image='<img src=x onerror=pwned("image")>',
             drawing='<svg onload=pwned("svg")>', comment='<!--<script>', cdata=']]><b>',
             attribute='"\' onmouseover="pwned(1)" onfocus=\'pwned(2)\' x="',
             entity='&lt;img src=x&gt; &quot;',
             field='datum["a.b"][0].c\'',
             markdown='![p](http://evil.invalid/p.png) | `x` [l](javascript:pwned(3)) $x$',
             newline=f'mine\n{FORGED}', carriage=f'mine\r{FORGED}', lines='a\u2028b\u2029c\x85d\x0be',
             heading='# h', rule='---', item='1. one',
             terminal='\x1b[2J\x1b]0;title\x07\x1b[1A\x9b31m',
             turned='\u202eexe.txt\u2066', nul='a\0b', template='{{7*7}}{% raw %}%s {0}',
             yaml='a: b #c\n---\nx: !!python/object',
             blank=' ', long='x'*1_000_000)
NAMES = [*TEXTS.values()]
UNSEEN = re.compile('[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')

def harmless_line(text):
    "May this stand in a terminal?"
    assert not UNSEEN.search(text), ascii(UNSEEN.search(text)[0])
    assert not [o for o in text.splitlines() if o.strip().startswith(FORGED)]
    assert len(text)<60_000

class Tags(HTMLParser):
    "The tags and the text of a piece of HTML; comments and instructions are none of ours"
    def __init__(self, text):
        super().__init__()
        self.tags, self.on, self.links, self.text = set(), [], [], ''
        self.feed(text)
        self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.on += [a for a, _ in attrs if a.startswith('on')]
        self.links += [v for a, v in attrs if a in ('href', 'src') and not v.startswith('#')]
    def handle_data(self, data): self.text += data
    def handle_comment(self, data): raise AssertionError(f'a comment: {data[:80]}')

def scores(run, shift=0, names=NAMES):
    "A score table in which every name is a stranger's"
    n = 12*len(names)
    return pl.DataFrame(dict(benchmark='Toy', run=run, split='test', index=[f'q{i}' for i in range(n)],
        correct=[(7*i+shift)%10<5 for i in range(n)], outcome='answered',
        length=[3+i*37%900 for i in range(n)],
        category=[names[i%len(names)] for i in range(n)]))

def two_runs(names=NAMES, a=TEXTS['script']+TEXTS['image'], b=TEXTS['newline']+TEXTS['terminal']):
    "Two runs with names of strangers"
    return scores(a, names=names), scores(b, 2, names)

def toy_profile(model=TEXTS['script']):
    "A profile whose model and kinds of questions are named by strangers"
    rows = pl.concat([toy_probe(m, n=30, depth=4) for m in (model, TEXTS['image'])])
    kinds = dict(perception=TEXTS['comment'], reasoning=TEXTS['attribute'])
    return rows.with_columns(category=pl.col('kind').replace(kinds), benchmark=pl.lit(TEXTS['drawing']))

WEIGHTS = pl.DataFrame([dict(layer=l, module=m, what=w, value=.1*l) for l in range(4)
                        for m in (TEXTS['image'], TEXTS['newline'])
                        for w in (TEXTS['script'], TEXTS['field'])])

# One function for each place

@pytest.mark.parametrize('kind', TEXTS)
def test_each_place_is_safe(kind):
    text = TEXTS[kind]
    for line in (name_in_line(text), one_line(text), quoted(text)):
        harmless_line(line)
        assert '\n' not in line and len(line)<130
    assert not UNSEEN.search(visible(text)) and len(visible(text))<21_000
    assert name_in_line(name_in_line(text))==name_in_line(text)
    if kind not in ('newline', 'carriage', 'lines', 'terminal', 'turned', 'nul', 'yaml', 'long'):
        assert name_in_line(text)==visible(text)==text

def test_names_stay_apart():
    names = [*NAMES, 'x'*1_000_001, 'mine '+FORGED, 'a b', '']
    assert len({name_in_line(n) for n in names})==len(names)
    assert len({name_in_line(n, 30) for n in names})==len(names)

def test_half_a_character_is_shown_not_raised():
    for function in (visible, name_in_line, one_line, quoted, in_markdown):
        assert 'ud83d' in function('a\ud83d'+'b'*9)
        function('\ud83d'*5000).encode()

# Words

def said():
    "All that is told in words, and how it shows itself: name -> text"
    a, b = two_runs()
    both, probe = compare(a, b, 'category'), Profile(toy_profile(), 'category')
    sums = summarize(pl.concat([a, b]).with_columns(benchmark=pl.lit(TEXTS['newline'])), 'category')
    best = sums.with_columns(best=pl.col('run')==sums['run'][0], p_best=pl.lit(.5))
    longest = Comparison(both.table.with_columns(run_a=pl.lit(TEXTS['long']),
                                                  benchmark=pl.lit(TEXTS['yaml'])))
    hostile = Item(TEXTS['newline'], '\n'.join(NAMES), TEXTS['terminal'], benchmark=TEXTS['turned'])
    return dict(verdict=both.verdict, shown=repr(both), longest=repr(longest), sweep=sweep_verdict(best),
                profile=probe.verdict, profile_shown=repr(probe), change=str(probe),
                item=repr(hostile), one_item=repr(Item('1', TEXTS['long'])))

def test_no_word_is_a_command_and_no_name_a_line():
    for name, text in said().items(): harmless_line(text)

def test_a_table_of_accuracies_is_a_line_a_run():
    from vlm_merging.comparing.findings import accuracy_said
    a, b = two_runs()
    text = accuracy_said(pl.concat([a, b]))
    harmless_line(text)
    assert text.count('\n')==1

def marked(text):
    "Markdown as Jupyter shows it"
    convert = pytest.importorskip('nbconvert.filters.markdown_mistune', reason='nbconvert is not installed')
    return convert.markdown2html_mistune(text)

MARKDOWN = dict(
    comparison=lambda text: compare(*two_runs([text, 'plain'], text, 'b'), 'category')._repr_markdown_(),
    verdict=lambda text: verdict_markdown(f'a: {name_in_line(text)}\n- {name_in_line(text)}'),
    table=lambda text: f'| a | b |\n|---|---|\n| {in_markdown(text)} | 1 |',
    heading=lambda text: f'# {in_markdown(text)}', point=lambda text: f'- {in_markdown(text)}')

@pytest.mark.parametrize('kind', TEXTS)
@pytest.mark.parametrize('place', MARKDOWN)
def test_markdown_shows_it_letter_by_letter(place, kind):
    text = MARKDOWN[place](TEXTS[kind])
    assert not UNSEEN.search(text) and len(text)<60_000
    page = Tags(marked(text))
    assert not page.tags & {'script', 'img', 'svg', 'hr', 'ol', 'code', 'pre'} and not page.on+page.links
    shown, text = ' '.join(page.text.split()), TEXTS[kind]
    if kind!='long': assert ' '.join(name_in_line(text).split()) in shown

# Charts

def drawn():
    "All charts, with names of strangers in every place: name -> chart"
    a, b = two_runs()
    both, names = pl.concat([a, b]), ('category',)
    sums, pairs = summarize(both, names), compare(a, b, names).table
    sweep = sums.with_columns(weight=pl.when(pl.col('run')==a['run'][0]).then(1.).otherwise(.5))
    long = by_length(both.with_columns(benchmark=pl.col('category')))
    return dict(scores=scores_chart(sums, 'category'), pairs=pairs_chart(pairs, 'category'),
                length=length_chart(long.filter(pl.col('benchmark').is_in(NAMES[:4]))),
                lengthening=lengthening_chart(pairs.with_columns(length_a=3., length_b=5.)),
                weights=weights_chart(sweep, 'category', title=TEXTS['script']+'\n'+TEXTS['long']),
                map=weight_map(WEIGHTS, title=TEXTS['image']),
                layers=layers_page(profile_table(toy_profile(), 'category'), WEIGHTS))

@pytest.fixture(scope='module')
def charts(): return drawn()

CHARTS = ('scores', 'pairs', 'length', 'lengthening', 'weights', 'map', 'layers')

@pytest.mark.parametrize('name', CHARTS)
def test_a_specification_has_no_tag_and_no_command_in_it(name, charts):
    "It goes into notebooks, widgets and mails as it is"
    text = json.dumps(charts[name].to_dict(), ensure_ascii=False)
    assert not re.search('<[a-zA-Z/!?]', text) and not UNSEEN.search(text) and len(text)<3_000_000
    for kind, bundle in charts[name]._repr_mimebundle_().items():
        if kind=='text/html': assert bundle.count('<script')==1==bundle.count('</script>')

@pytest.mark.parametrize('name', CHARTS)
def test_a_drawing_is_well_formed_and_says_the_names(name, charts, tmp_path):
    svg = save_chart(charts[name], tmp_path/'a.svg').read_text(encoding='utf-8')
    root = ET.fromstring(svg)
    tags = {e.tag.rpartition('}')[2] for e in root.iter()}
    assert not tags & {'script', 'image', 'foreignObject', 'a', 'img'}
    assert not [a for e in root.iter() for a in e.attrib if a.startswith('on') or a.endswith('href')]
    words = ''.join(root.itertext()).replace('\u2060', '')
    assert '<svg onload=' in words or '<img src=x' in words or '</script>' in words

@pytest.mark.parametrize('name', CHARTS)
def test_a_saved_page_holds_nothing_that_ends_its_script(name, charts, tmp_path):
    page = save_chart(charts[name], tmp_path/'a.html').read_text(encoding='utf-8')
    spec = page[page.index('const spec ='):]
    assert spec.count('</script>')==1 and '<!--' not in spec and not re.search(r'<(img|svg|b)\b', spec)

def test_any_chart_can_be_saved(tmp_path):
    "Also one that somebody else made, whose names were not looked at"
    import altair as alt
    chart = alt.Chart(pl.DataFrame(dict(x=[TEXTS['script']], y=[1]))).mark_bar().encode(x='x:N', y='y:Q')
    page = save_chart(chart, tmp_path/'a.html').read_text(encoding='utf-8')
    assert page[page.index('const spec ='):].count('</script>')==1 and 'pwned' in page

# In a browser

WATCH = "window.fired = []; window.pwned = window.alert = x => { window.fired.push(String(x)) }"

@pytest.fixture
def visit(browser, tmp_path):
    "Open a page, look for what ran, was asked for, or went wrong; touch everything on it"
    def run(text, within=None):
        file = tmp_path/'page.html'
        file.write_text(text, encoding='utf-8')
        page, faults = browser.new_page(), []
        page.add_init_script(WATCH)
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.on('console', lambda m: faults.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('dialog', lambda d: (faults.append(d.message), d.dismiss()))
        page.on('request', lambda r: None if r.url.startswith(('data:', 'blob:')) or r.url==file.as_uri()
                else faults.append(r.url))
        page.goto(file.as_uri())
        if within: page.locator(within).first.wait_for(timeout=30_000)
        page.evaluate("document.querySelectorAll('*').forEach(e => ['mouseover', 'focus', 'click'].forEach("
                      "k => e.closest('a, summary, button') || e.dispatchEvent(new Event(k))))")
        page.wait_for_timeout(100)
        assert not page.evaluate('window.fired') and not faults, (page.evaluate('window.fired'), faults[:3])
        return page
    return run

@pytest.mark.parametrize('name', CHARTS)
def test_a_page_of_charts_in_a_browser(name, charts, visit, tmp_path):
    text = save_chart(charts[name], tmp_path/'a.html').read_text(encoding='utf-8')
    page = visit(text, 'svg.marks')
    page.locator('details summary').click()
    links = page.locator('.vega-actions a').all_inner_texts()
    assert links==['Save as SVG', 'Save as PNG']        # The others open a window that reads it as HTML
    assert page.locator('body > *').count()==2                  # The chart and its script
    page.close()

@pytest.mark.parametrize('kind', ['script', 'comment', 'attribute', 'field', 'lines', 'long'])
def test_the_page_of_a_comparison_in_a_browser(kind, visit, call, tmp_path):
    "From the shell, with a stranger's name in every column"
    for name, table in zip('ab', two_runs([TEXTS[kind], 'plain'], TEXTS[kind], TEXTS['image'])):
        table.with_columns(benchmark=pl.lit(TEXTS[kind])).write_parquet(tmp_path/f'{name}.parquet')
    code, out, err = call('compare', tmp_path/'a.parquet', tmp_path/'b.parquet', '--chart', tmp_path/'c.html')
    assert code==0
    harmless_line(out+err)
    page = visit((tmp_path/'c.html').read_text(encoding='utf-8'), 'svg.marks')
    shown = page.locator('svg.marks').text_content().replace('\u2060', '')
    assert name_in_line(TEXTS[kind])[:30] in shown
    page.close()

def widgets():
    "HTML that widgets show, from text of strangers: name -> text"
    from vlm_merging.widgets.background import say_in, status_line
    from vlm_merging.widgets.layer_explorer import figures_html
    from vlm_merging.widgets.panels import (
        asked_html, lines_html, literal_text, picture_html, reply_text, still, table_html)
    from vlm_merging.widgets.reply_browser import reply_html
    all_, status = '\n'.join(NAMES[:-1]), status_line()
    say_in(status)('trouble', all_)
    columns = 'prediction picked reason tier question answer index run outcome benchmark'.split()
    row = dict.fromkeys(columns, all_)
    return dict(literal=literal_text(all_), reply=reply_text(all_), table=table_html(NAMES, [NAMES, NAMES]),
                lines=lines_html(NAMES), asked=asked_html(all_, all_), status=status.value,
                picture=picture_html(Picture(Image.new('RGB', (8, 8)), TEXTS['attribute'])),
                broken=picture_html(Picture(b'no picture', all_)), row=reply_html(row|dict(correct=None)),
                long=literal_text(TEXTS['long']),
                chart=still(scores_chart(summarize(scores(TEXTS['image'])))),
                item=Item('1', all_, all_, benchmark=all_)._repr_html_(),
                figures=figures_html(profile_table(toy_profile(), 'category'), 1))

def test_widgets_in_a_browser(visit):
    parts = widgets()
    for name, text in parts.items():
        assert len(str(text))<100_000, name
        assert not UNSEEN.search(str(text)), name
    page = visit(f'<meta charset="utf-8"><body>{"".join(map(str, parts.values()))}')
    shown = page.inner_text('body')
    for kind in ('script', 'image', 'drawing', 'comment', 'attribute', 'entity', 'field', 'markdown'):
        assert TEXTS[kind] in shown, kind
    page.close()

def test_lists_of_a_widget_have_short_labels_that_stay_apart():
    from vlm_merging.widgets.reply_browser import tag_values
    a, b = (t.with_columns(question=pl.lit(TEXTS['script']), prediction=pl.lit(TEXTS['image']),
                           answer=pl.lit('x'), picked=pl.lit('x'), reason=pl.lit('x'),
                           tier=pl.lit(TEXTS['newline']),
                           value=pl.col('correct').cast(float)) for t in two_runs())
    labels = tag_values(a)
    assert len(labels)==len(TEXTS) and max(map(len, labels))<130
    for label in labels: harmless_line(label)

REPORT = lab_folder().parents[1]/'cli/templates/report.html'
GUARD = re.search('<meta http-equiv[^>]+>', REPORT.read_text(encoding='utf-8'))[0]

def test_the_report_in_a_browser(visit):
    from vlm_merging.widgets.panels import literal_text
    said = '\n'.join(NAMES[:-1])
    replies = [(said, dict(prediction=said, correct=c, picked=said, tier=said)) for c in (True, False, None)]
    card = question_parts(dict(question=said, answer=said, index='1'), [literal_text(said)], replies, said)
    module = template('parts.html').module
    parts = [module.question(card), module.verdict(verdict_parts(verdict_text(said)))]
    page = visit(f'<meta charset="utf-8">{GUARD}<body>{"".join(map(str, parts))}')
    assert TEXTS['script'] in page.inner_text('body')
    page.close()

def verdict_text(said):
    line = name_in_line(said, 900)
    return f'{line}\n- {line}\n    {line}'

def test_the_report_lets_nothing_run(browser, tmp_path):
    "Should something slip through in spite of all: the page itself forbids it"
    file = tmp_path/'a.html'
    file.write_text(f'<html><head>{GUARD}</head><body>{TEXTS["script"]}{TEXTS["image"]}')
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(file.as_uri())
    page.wait_for_timeout(100)
    assert not page.evaluate('window.fired')
    page.close()

# Models

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A VLM and an LLM in whose files strangers wrote"
    room = tmp_path_factory.mktemp('models')
    vlm, llm = (shutil.copytree(lab_folder()/w, room/w) for w in ('vlm', 'llm'))
    tensors = load_file(vlm/'model.safetensors')
    tensors[f'vision_tower.{TEXTS["newline"]}{TEXTS["terminal"]}'] = tensors.pop(
        next(n for n in tensors if 'vision' in n)).clone()
    save_file(tensors, vlm/'model.safetensors', {'format':'pt'})
    config = json.loads((llm/'config.json').read_text())
    config |= dict(hidden_act=TEXTS['newline']+TEXTS['image'], rms_norm_eps=TEXTS['long'])
    (llm/'config.json').write_text(json.dumps(config))
    tokenizer = json.loads((llm/'tokenizer.json').read_text())
    vocab = tokenizer['model']['vocab']
    vocab['<img src=http://evil.invalid/x>|\n# h '+'x'*3_000_000] = vocab.pop('question')
    (llm/'tokenizer.json').write_text(json.dumps(tokenizer))
    card = f'---\nlicense: other\nlicense_name: "<img src=x>|{"y"*40_000}\x1b[2J"\n---\n'
    (llm/'README.md').write_text(card)
    return vlm, llm

@pytest.mark.parametrize('command', ['plan', 'diagnose', 'inspect', 'merge'])
def test_models_of_strangers_in_the_shell(command, models, call, tmp_path):
    vlm, llm = models
    both = ('--vlm', vlm, '--llm', llm)
    words = dict(inspect=(vlm,), merge=(*both, '--out', tmp_path/f'out\n{FORGED}')).get(command, both)
    code, out, err = call(command, *words)
    assert code in (0, 3), err
    harmless_line(out+err)

def test_a_plan_and_a_diagnosis_show_themselves(models):
    for shown in (plan(*models), diagnose(*models)):
        harmless_line(repr(shown))
        harmless_line(str(shown))
        if hasattr(shown, '_repr_markdown_'): harmless_line(shown._repr_markdown_())

def test_a_card_is_text(models, tmp_path):
    import yaml
    out = merge(*models, out=tmp_path/('out '+TEXTS['image'][1:9]+' | # *'))
    card = (out/'README.md').read_text(encoding='utf-8')
    assert max(map(len, card.splitlines()))<2500 and len(card)<20_000 and not UNSEEN.search(card)
    front, body = card.split('---\n', 2)[1:]
    assert set(yaml.safe_load(front))=={'tags', 'library_name', 'pipeline_tag'}
    page = Tags(marked(body))
    assert not page.tags & {'img', 'script', 'svg'} and not page.links and '<img src=' in page.text
    assert (out/'recipe.json').stat().st_size<100_000

def test_the_hub_reads_of_a_card_what_was_meant():
    import yaml
    from types import SimpleNamespace as Plan
    from vlm_merging.merging.card import _front
    sides = {w:Plan(source=f'maker/{w}\nlicense: mit', revision='a'*40, adapters=()) for w in ('vlm', 'llm')}
    front = yaml.safe_load(_front(Plan(sides=sides)).strip('-\n'))
    assert 'license' not in front and front['base_model']==[c.source for c in sides.values()]

# The shell

@pytest.mark.parametrize('words', [('compare', TEXTS['terminal'], 'b'), ('score', TEXTS['newline']),
    (TEXTS['terminal'],), ('plan', '--vlm', TEXTS['newline'], '--llm', TEXTS['turned']),
    ('methods', TEXTS['terminal']),
    ('ask', '--'+TEXTS['terminal']),
    ('ask', '--model', 'lab/vlm', '--benchmark', TEXTS['newline'], '--out', 'x'),
    ('merge', '--vlm', 'a', '--llm', 'b', '--method', TEXTS['newline'], '--out', 'x'),
    ('inspect', TEXTS['nul']),
    ('score', TEXTS['long'])],
    ids=lambda w: w[0] if w[0].isalpha() else 'command')
def test_what_was_typed_is_told_in_a_line(words, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert code in (1, 2, 3)
    harmless_line(out+err)

def test_a_table_of_strangers_in_the_shell(call, tmp_path):
    rows = [dict(index=TEXTS['newline'], question=TEXTS['script'], answer='x',
                 prediction=TEXTS['terminal'], run=TEXTS['carriage'],
                 benchmark=TEXTS['turned'], image=TEXTS['lines'])]*3
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    for command in (('score', tmp_path/'a.jsonl'), ('compare', tmp_path/'a.jsonl', tmp_path/'a.jsonl')):
        code, out, err = call(*command)
        harmless_line(out+err)

def test_progress_bars_are_drawn_and_nothing_else(capsys):
    import sys
    from vlm_merging.cli.terminal import all_seen
    @all_seen
    def run():
        from tqdm import tqdm
        for _ in tqdm(range(3), desc='merging\x1b[2J', file=sys.stderr, disable=False): pass
        print('\rforged\x1b[1A', TEXTS['newline'])
    run()
    out, err = capsys.readouterr()
    assert '\x1b[2J' not in err and '\r' in err and '100%' in err
    assert out.startswith(r'\rforged\x1b[1A')

def test_an_output_cannot_leave_its_block_on_the_site(tmp_path):
    from smalldocs.config import load
    from smalldocs.site import Site
    from test_site import docs
    from nbformat import v4
    said = '`'*20+'{=html}\n</code></pre><script>pwned(1)</script>\n# [x](javascript:pwned(1))'
    outputs = [v4.new_output('stream', text=said), v4.new_output('execute_result', {'text/plain': said})]
    nb = v4.new_notebook(cells=[v4.new_markdown_cell('# A page'), v4.new_code_cell('say()', outputs=outputs)])
    nb['cells'] = [docs().told_cell(o) for o in nb['cells']]
    (tmp_path/'index.ipynb').write_text(json.dumps(nb))
    (tmp_path/'_quarto.yml').write_text('project: {type: website}\nwebsite: {title: x}\n')
    Site(load(tmp_path), quiet=True).build()
    page = next(tmp_path.rglob('index.html')).read_text()
    assert page.count('pwned(1)')>=2 and '<script>pwned' not in page and 'href="javascript' not in page

# Data

@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_tables_keep_every_letter(kind, tmp_path):
    "They are read by programs: -5 and =2+3 are replies, and one that is changed would be another"
    from vlm_merging.cli.files import write_table
    from vlm_merging.scoring.score import table_at
    cells = [*TEXTS.values(), '-5', '=2+3', '@x', '+1', '=cmd|\' /C calc\'!A0']
    table = pl.DataFrame(dict(index=[str(i) for i in range(len(cells))], prediction=cells))
    back = table_at(write_table(table, tmp_path/f'a.{kind}'), [])
    assert back['prediction'].to_list()==cells
