"The site as a reader meets it: every page in a browser at two widths; README and guide are in step"
import ast, csv, functools, importlib, importlib.util, io, json, os, re, subprocess, sys, threading
from configparser import ConfigParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl, pytest
from PIL import Image
from pyflakes import checker, messages
import vlm_merging

project = Path(__file__).resolve().parent.parent
WIDE, PHONE = (1280, 800), (390, 844)
PATIENCE = 120_000     # Milliseconds for one page, on a busy machine
SHOWN = ('index.html', 'guide/methods.html', 'guide/faq.html', 'tutorials/merge_and_look.html',
         'probing/layers.html', 'merging/merge.html')

def docs():
    "`.ci/docs.py` as a module"
    spec = importlib.util.spec_from_file_location('docs', project/'.ci/docs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

# In step with their sources

def test_the_readme_is_made_from_the_index():
    made, there = docs().readme(), (project/'README.md').read_text(encoding='utf-8')
    assert there==made, ('README.md differs from nbs/index.ipynb. Run `python .ci/docs.py readme`, '
                         'and change only the index.')
    assert made.count('\n')<150, 'The README has grown too long to be read. Trim nbs/index.ipynb.'

def test_the_readme_keeps_what_other_tests_take_from_it():
    made = docs().readme()
    for marker in 'demo', 'test':
        assert re.search(rf'^<!-- {marker} -->\n```bash\n(.+\n)+```', made, flags=re.M), marker
    pictures = re.findall(r'!\[([^]]*)\]\(([^)]+)\)', made)
    assert pictures and all(len(text)>20 and (project/path).is_file() for text, path in pictures)

def test_all_that_is_installed_is_told():
    about = ConfigParser(delimiters='=', interpolation=None)
    about.read(project/'settings.ini', encoding='utf-8')
    extras = {k.removesuffix('_requirements') for k in about['DEFAULT'] if k.endswith('_requirements')}
    page = (project/'nbs/guide/install.ipynb').read_text(encoding='utf-8')
    assert extras==set(re.findall(r'`vlm_merging\[(\w+)\]`', page))

@pytest.mark.parametrize('name', ['methods', 'families', 'donors', 'benchmarks', 'protocols'])
def test_the_tables_of_the_guide_are_those_of_the_code(name, monkeypatch):
    monkeypatch.chdir(project/'nbs/guide')          # Where the notebook finds its data
    cells = json.loads((project/f'nbs/guide/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    space, seen = {}, 0
    for cell in cells:
        if cell['cell_type']!='code' or '#| eval: false' in ''.join(cell['source']): continue
        tree = ast.parse(''.join(cell['source']))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, 'exec'), space)
        value = eval(compile(ast.Expression(last.value), name, 'eval'), space) if last else None
        for o in cell['outputs']:
            if text := ''.join(o.get('data', {}).get('text/markdown', [])):
                seen += 1
                assert text==value.data, (f'A table of nbs/guide/{name}.ipynb is old. '
                                          'Run the notebook and keep its outputs.')
    assert seen>1

def test_what_is_said_of_donors_is_well_formed():
    models, pairs = (list(csv.DictReader(open(project/f'nbs/guide/{name}.csv', encoding='utf-8')))
                     for name in ('donors', 'donor_pairs'))
    assert len({m['id'] for m in models})==len(models)>40
    assert {m for p in pairs for m in (p['vlm'], p['llm'])}<={m['id'] for m in models}
    assert len({(p['vlm'], p['llm']) for p in pairs})==len(pairs)
    kinds = {m['id']: m['what'] for m in models}
    assert {(kinds[p['vlm']], kinds[p['llm']]) for p in pairs}=={('vlm', 'llm')}
    numbers = [c for c in models[0] if c.endswith('_size') or c.startswith('num_') or c=='rope_theta']
    for m in models:
        assert None not in m and all(re.fullmatch(r'[1-9]\d*|', m[c]) for c in numbers), m['id']
        assert m['tie_word_embeddings'] in ('true', 'false', '') and re.fullmatch(r'[\w.-]+/[\w.-]+', m['id'])
        assert re.fullmatch(r'https://\S+|', m['source'])
        assert m['seen'] in ('its own config', 'config of a copy or fine-tune', 'card', 'not found')
        known = any(m[c] for c in ('model_type', 'base', 'licence', *numbers))
        assert bool(m['source'])==known==(m['seen']!='not found'), f"{m['id']}: what is known has a page"

def test_the_index_lists_every_room():
    index = (project/'nbs/index.ipynb').read_text(encoding='utf-8')
    lost = [o.name for o in sorted((project/'nbs').glob('*/[0-9]*.ipynb'))
            if f']({o.parent.name}/{o.name})' not in index]
    assert not lost, f'nbs/index.ipynb does not list {lost}.'

# What a reader can paste

HIDDEN = re.compile(r'^#\| *(hide|export|(echo|include): *false)\b', re.M)
LEARNED_FROM = sorted(o.relative_to(project).as_posix() for o in
                      [project/'nbs/index.ipynb', *(project/'nbs/guide').glob('*.ipynb'),
                       *(project/'nbs/tutorials').glob('*.ipynb')])

def unbound(cells):
    "Names that the shown code of a page uses, and no shown code before it binds: (cell, name)"
    shown = [(o['id'], line) for o in cells
             if o['cell_type']=='code' and not HIDDEN.search(''.join(o['source']))
             for line in ''.join(o['source']).split('\n')]
    tree = ast.parse('\n'.join(line for _, line in shown))
    stars = [o for o in tree.body if isinstance(o, ast.ImportFrom) and o.names[0].name=='*']
    tree.body = [o for o in tree.body if o not in stars]
    known = {name for o in stars for name in vars(importlib.import_module(o.module))}
    return [(shown[o.lineno-1][0], o.message_args[0]) for o in checker.Checker(tree, builtins=known).messages
            if isinstance(o, (messages.UndefinedName, messages.UndefinedLocal))]

def test_a_name_of_a_hidden_cell_is_seen():
    def cell(name, source): return dict(cell_type='code', id=name, source=source)
    hidden = [cell(f'h{i}', f'#| {o}\na{i} = 1') for i, o in enumerate(('hide', 'echo: false',
                                                                       'include: false'))]
    shown = [cell('s', '#| alt: x\nb = [x+a0 for x in range(a1)]'), cell('t', 'def f(): return a2+later'),
             cell('u', 'later = len(b)\nf()'), cell('v', 'from string import *\ncapwords(digits+a1)')]
    assert sorted(unbound([*hidden, *shown]))==[('s', 'a0'), ('s', 'a1'), ('t', 'a2'), ('v', 'a1')]
    assert unbound([shown[2], shown[0]])[0]==('u', 'b')

@pytest.mark.parametrize('path', LEARNED_FROM)
def test_who_pastes_what_a_page_shows_has_every_name(path):
    cells = json.loads((project/path).read_text(encoding='utf-8'))['cells']
    lost = [f'{cell} uses {name}' for cell, name in unbound(cells)]
    assert not lost, f'{path}: {lost}. Show where the name comes from, or hide what uses it.'

# What a picture says to those who do not see it

def test_a_picture_is_told_in_words():
    o = docs()
    def shown(source, data, kind='display_data'):
        cell = dict(cell_type='code', source=source, outputs=[dict(output_type=kind, data=data)])
        return o.told_cell(cell)['outputs'][0]['data']['text/html']
    assert 'alt="Two &lt;cats&gt;"' in shown('#| alt: Two <cats>\ndraw()', {'image/png': 'AAAA'})
    assert 'alt="Picture, made by the code above: draw()"' in shown('x = 1\ndraw()', {'image/png': 'AAAA'})
    assert '<svg role="img" aria-label="A line"' in shown('#| fig-alt: A line\ndraw()',
                                                          {'image/svg+xml': '<svg width="1"></svg>'})
    chart = ('<div id="altair-viz-1"></div><script>maybeLoadScript("vega", "6")(function(spec, o){vegaEmbed('
             'a, spec, o)})({"vconcat": [{"title": {"text": ["Up", "and on"]}}]}, {});</script>')
    still = shown('chart', {'text/html': chart})
    assert 'role="figure" aria-label="Chart: Up and on"' in still
    assert o.VEGA in still

def test_a_formula_is_set_without_the_net():
    page = docs().as_mathml('<link href="https://x.y/katex.css">'
                            '<span class="math inline">\\(a&lt;b_1\\)</span>')
    assert 'katex' not in page and '<math' in page and '<msub>' in page and '&#x0003C;' in page

def test_a_table_is_written_for_people():
    "p as it is written, numbers below each other, no types; other columns, and other HTML, as they were"
    o = docs()
    table = pl.DataFrame(dict(where=['a<b', 'c'], p_holm=[1.2e-9, .0312], change=[-.25, 3e-9], pp=[.5, None]))
    made = o.told_table(table._repr_html_())
    assert re.findall(r'<td.*?>(.*?)</td>', made)==[
        '&quot;a&lt;b&quot;', '&lt; .001', '-0.25', '0.5', '&quot;c&quot;', '.031', '3.0000e-9', 'null']
    assert made.count('class="number"')==6 and 'f64' not in made and '<style' not in made
    assert table['p_holm'].dtype==pl.Float64 and o.told_table('<p>p</p>')=='<p>p</p>'

# What a notebook offers, and what it keeps to itself

def test_code_with_public_names_only_is_told_by_its_documentation():
    o = docs()
    for shown in 'import re\nfrom x import y', 'def go(): pass\ndef _how(): pass':
        assert o.folded(shown) is None
    private = '_A, _B = 1, 2\nasync def _how(): return _A'
    assert o.folded(private)==f'#| code-fold: true\n#| code-summary: "How it is done: _how"\n{private}'
    assert '"Constants: LIMIT"' in o.folded('LIMIT, _rest = 1, 2')

def test_what_a_notebook_offers_is_told_at_its_top():
    tree = ast.parse('__all__ = ["N", "go", "Face"]\nN = 1\ndef go():\n    "Go on\\nand on"\n'
                     'class Face: "Seen first"')
    said = docs().offer('a.b', tree, {'Face'})
    assert [o for o in said.splitlines() if '`' in o]==[
        'From `vlm_merging`:', '- [`Face`](#Face): Seen first',
        'From `vlm_merging.a.b`:', '- [`go`](#go): Go on',
        'Constants of `vlm_merging.a.b`: `N`']
    assert docs().offer('', ast.parse(''), {})==''

def test_every_public_name_stands_at_the_top_of_its_page(site):
    "And a cell of private names is folded"
    page = (site/'scoring/letters.html').read_text(encoding='utf-8')
    top, _, rest = page.partition('<section')
    for name in 'letter_in', 'undenied': assert f'href="#{name}"' in top and f'id="{name}"' in rest
    assert '<summary>How it is done: _bare_text' in rest and 'def' in rest

def test_the_gallery_shows_every_chart():
    "Each chart of the face, in a cell of at most three lines that draws it"
    here = [n for n, home in vlm_merging._HOMES.items()
            if home in ('charts.score_charts', 'charts.layer_charts', 'charts.maps')] + ['together']
    cells = [''.join(o['source']) for o in json.loads(
        (project/'nbs/guide/gallery.ipynb').read_text(encoding='utf-8'))['cells'] if o['cell_type']=='code']
    assert len(here)>9
    for name in here: assert any(f'{name}(' in o and o.count('\n')<3 for o in cells), name
    for module in 'score_charts', 'layer_charts', 'maps':
        tree = ast.parse((project/f'vlm_merging/charts/{module}.py').read_text(encoding='utf-8'))
        charts = {o.name for o in tree.body if isinstance(o, ast.FunctionDef) and o.name[0]!='_'}
        charts = {o for o in charts if o.endswith('_chart')}
        assert charts<={*here}, f'{module} has a chart that is not in the face'

# Every page, in a browser

@pytest.fixture(scope='module')
def site():
    "The pages that the check `docs` made, or new ones where these are not of the present notebooks"
    o = docs()
    made_from = o.site/'made_from'
    if not made_from.is_file() or made_from.read_text()!=o.fingerprint():
        done = subprocess.run([sys.executable, project/'.ci/docs.py'], capture_output=True, text=True)
        assert not done.returncode, done.stdout + done.stderr
    return o.site

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@pytest.fixture(scope='module')
def address(site):
    "The site, served on this machine"
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

LOOK = '''() => ({
    titles: document.querySelectorAll('h1').length,
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    widest: [...document.querySelectorAll('main *')].map(o => [o.getBoundingClientRect().right, o])
        .filter(([r, o]) => r>innerWidth+1 && !o.closest('pre, table, .cell-output, .sd-table, math'))
        .map(([r, o]) => o.outerHTML.slice(0, 80)).slice(0, 3),
    unshaded: [...document.querySelectorAll('main *')].filter(o => o.scrollWidth>o.clientWidth+1)
        .filter(o => /auto|scroll/.test(getComputedStyle(o).overflowX)
            && !getComputedStyle(o).backgroundAttachment.includes('local'))
        .map(o => o.outerHTML.slice(0, 80)).slice(0, 3),
    mute: [...document.images].filter(o => !o.alt.trim()).map(o => o.src.slice(0, 60)),
    broken: [...document.images].filter(o => o.complete && !o.naturalWidth).map(o => o.src.slice(0, 60)),
    untold: [...document.querySelectorAll('[id^=altair-viz]')]
        .filter(o => !o.getAttribute('aria-label')).length,
    menu: document.querySelector('#quarto-sidebar')?.checkVisibility({visibilityProperty: true}) ?? null,
    skipped: [...document.querySelectorAll('h1, main :is(h2, h3, h4, h5, h6)')]
        .filter((o, i, all) => i && +o.tagName[1]>+all[i-1].tagName[1]+1).map(o => o.textContent),
    top: document.querySelector('h1').getBoundingClientRect().top })'''
# Words below the contrast that WCAG asks for (AA), a sample of each colour
FAINT = '''() => {
    const dot = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
        .getContext('2d', {willReadFrequently: true}), seen = {}, grounds = new Map(), faint = {}
    const rgba = s => seen[s] ??= (dot.clearRect(0, 0, 1, 1), dot.fillStyle = s, dot.fillRect(0, 0, 1, 1),
        [...dot.getImageData(0, 0, 1, 1).data].map(v => v/255))
    const on = ([r, g, b, a], under) => [r, g, b].map((v, i) => v*a + under[i]*(1-a))
    const light = c => c.map(v => v<=.04045 ? v/12.92 : ((v+.055)/1.055)**2.4)
        .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0)
    const ground = o => {
        if (!grounds.has(o)) grounds.set(o,
            o ? on(rgba(getComputedStyle(o).backgroundColor), ground(o.parentElement)) : [1, 1, 1])
        return grounds.get(o) }
    const clear = o => o ? getComputedStyle(o).opacity*clear(o.parentElement) : 1
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) {
        const o = walker.currentNode.parentElement, svg = o.closest('svg')
        const text = walker.currentNode.data.trim()
        if (!text || o.closest('script, style, noscript, .mark-text.role-mark, [disabled]')
            || !o.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue
        const css = getComputedStyle(o), colour = svg ? css.fill : css.color
        const under = ground(svg ?? o), [r, g, b, a] = rgba(colour)
        const ink = light(on([r, g, b, a*clear(o)], under)), paper = light(under)
        const size = parseFloat(css.fontSize), large = size>=24 || size>=18.66 && css.fontWeight>=700
        const ratio = (Math.max(ink, paper)+.05)/(Math.min(ink, paper)+.05)
        if (ratio<(large ? 3 : 4.5)) faint[`${ratio.toFixed(2)} ${colour}`] ??= text.slice(0, 40)
    }
    return faint }'''
MARKS = '''() => [...document.querySelectorAll('[id^=altair-viz]')].map(o => {
    const drawn = o.querySelectorAll(
        'svg [class*=mark-] path[d], svg [class*=mark-] line, svg [class*=mark-] text').length
    if (drawn) return drawn
    const c = o.querySelector('canvas')
    if (!c || !c.width) return 0
    const points = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
    let inked = 0
    for (let i = 3; i < points.length; i += 4) if (points[i]) inked++
    return inked })'''

def faint_words(page):
    "What is hard to read, also when the page has had time to turn from light to dark"
    for _ in range(20):
        if not (faint := page.evaluate(FAINT)): break
        page.wait_for_timeout(200)
    return faint

def walk(page, address, path, shots, errors, fetched):
    "What is wrong with one page, at both widths"
    errors.clear()
    fetched.clear()
    page.set_viewport_size(dict(width=WIDE[0], height=WIDE[1]))
    page.goto(address+path, wait_until='load')
    charts = page.locator('[id^=altair-viz]').count()
    if charts:
        try:
            page.wait_for_function("() => [...document.querySelectorAll('[id^=altair-viz]')].every(o => "
                                   "o.querySelector('canvas, svg'))")
        except Exception as e: yield f'a chart is not drawn: {str(e)[:100]}'
        drawn = page.evaluate(MARKS)
        if bare := [i for i, n in enumerate(drawn) if n<10]:
            yield f'charts {bare} of {charts} are empty: {drawn}'
    for name, (width, height) in dict(wide=WIDE, phone=PHONE).items():
        page.set_viewport_size(dict(width=width, height=height))
        found = page.evaluate(LOOK)
        if found['titles']!=1: yield f"{found['titles']} titles (h1)"
        if found['over']>0: yield f"{width} px: the page is {found['over']} px too wide: {found['widest']}"
        if found['unshaded']: yield f"{width} px: scrolls, and does not show it: {found['unshaded']}"
        for what in 'mute', 'broken', 'untold':
            if found[what]: yield f'{what} pictures: {found[what]}'
        if found['skipped']: yield f"headings that skip a level: {found['skipped']}"
        if found['menu'] is (name=='phone'): yield f"{width} px: is the list of pages open? {found['menu']}"
        if found['top']>230: yield f"{width} px: the title comes only {found['top']:.0f} px down"
        for scheme in ('light', 'dark') if path in SHOWN or name=='wide' else ():
            page.emulate_media(color_scheme=scheme)
            if faint := name=='wide' and faint_words(page): yield f'hard to read when {scheme}: {faint}'
            if path in SHOWN:
                called = path.removesuffix('.html').replace('/', '-')
                page.screenshot(path=shots/f'{called}-{name}-{scheme}.png')
        page.emulate_media(color_scheme='light')
    if errors: yield f'errors: {errors[:3]}'
    outside = [o for o in fetched if not o.startswith((address, 'data:', 'blob:'))]
    if outside: yield f'fetched from outside: {outside[:3]}'

@pytest.mark.xdist_group('browser')
def test_every_page_in_a_browser(site, address, browser):
    shots = Path(os.environ.get('SCREENSHOTS') or project/'_screenshots')
    shots.mkdir(parents=True, exist_ok=True)
    wrong, (page, errors, fetched) = [], listened(browser.new_page())
    for path in sorted(o.relative_to(site).as_posix() for o in site.rglob('*.html')):
        wrong += [f'{path}: {said}' for said in walk(page, address, path, shots, errors, fetched)]
    page.close()
    assert not wrong, '\n'.join(wrong)

def listened(page):
    "A page's errors and the addresses it fetches, as they come"
    errors, fetched = [], []
    page.set_default_timeout(PATIENCE)
    page.on('console', lambda o: errors.append(o.text) if o.type=='error' else None)
    page.on('pageerror', lambda o: errors.append(str(o)))
    page.on('request', lambda o: fetched.append(o.url))
    return page, errors, fetched

BAD = """<h1>One</h1><h3>Three</h3><h1 style="margin-top:300px">Two</h1><div id="quarto-sidebar">all</div>
<main><p style="color:#888">faint</p><div style="overflow:auto"><p style="width:2000px">long</p></div>
<h3>Lost</h3><p style="width:700px">wide</p>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<div id="altair-viz-1"><canvas width="9" height="9"></canvas></div></main>
<script src="http://127.0.0.1:9/x.js"></script><script>nowhere()</script>"""

@pytest.mark.xdist_group('browser')
def test_the_walk_sees_what_is_wrong(tmp_path, browser):
    (tmp_path/'bad.html').write_text(BAD)
    page, errors, fetched = listened(browser.new_page())
    said = '\n'.join(walk(page, tmp_path.as_uri()+'/', 'bad.html', tmp_path, errors, fetched))
    page.close()
    for told in ('2 titles', 'skip a level', '390 px: the page is', 'mute pictures', 'untold pictures',
                 'are empty', '1280 px: scrolls, and does not show it',
                 '390 px: is the list of pages open? True',
                 "hard to read when light: {'3.54 rgb(136, 136, 136)': 'faint'",
                 'nowhere', 'fetched from outside'): assert told in said, told + '\n' + said

@pytest.mark.xdist_group('browser')
def test_the_pages_are_reached_on_a_phone_by_keyboard(site, address, browser):
    page = browser.new_page(viewport=dict(width=PHONE[0], height=PHONE[1]))
    page.set_default_timeout(PATIENCE)
    page.goto(address+'index.html')
    link = page.locator('#quarto-sidebar a', has_text='Merge and look')
    assert not link.is_visible()
    page.locator('.quarto-btn-toggle').focus()
    page.keyboard.press('Enter')
    link.wait_for(state='visible')
    link.click()
    page.wait_for_url('**/tutorials/merge_and_look.html')
    page.close()

WIDER = '''([kind, at]) => {
    const o = [...document.querySelectorAll(kind)].find(o => o.scrollWidth>o.clientWidth+40)
    o.scrollIntoView({behavior: 'instant', block: 'center'})
    o.scrollTo({left: at*(o.scrollWidth - o.clientWidth), behavior: 'instant'})
    const {left, right, top, bottom} = o.getBoundingClientRect()
    return [left+o.clientLeft, right, Math.max(top, 120), Math.min(bottom, innerHeight)]
        .map(Math.round) }'''

@pytest.mark.xdist_group('browser')
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('path, kind', [('guide/donors', '.sd-table'),
                                        ('tutorials/what_the_lab_shows', '.cell-output')])
def test_a_table_shows_on_which_side_there_is_more(site, address, browser, path, kind, scheme):
    page = browser.new_page(viewport=dict(width=PHONE[0], height=PHONE[1]), color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(f'{address}{path}.html')
    page.wait_for_timeout(500)                                   # Until it has turned dark
    shaded = []
    for at in 0, .5, 1:
        left, right, top, bottom = page.evaluate(WIDER, [kind, at])
        page.wait_for_timeout(100)
        seen = Image.open(io.BytesIO(page.screenshot())).convert('L')
        def ground(x): return sorted(seen.getpixel((x, y)) for y in range(top, bottom))[(bottom-top)//2]
        plain = seen.getpixel((3, (top+bottom)//2))
        shaded.append(tuple(abs(ground(x)-plain)>25 for x in (left+1, right-2)))
    page.close()
    assert shaded==[(False, True), (True, True), (True, False)]

@pytest.mark.xdist_group('browser')
def test_a_chart_fits_a_phone_and_opens_in_full_size_by_keyboard(site, address, browser):
    page = browser.new_page(viewport=dict(width=PHONE[0], height=PHONE[1]))
    page.set_default_timeout(PATIENCE)
    page.goto(address+'charts/score_charts.html')
    chart = page.locator('[id^=altair-viz]').first.locator('svg.marks')
    chart.wait_for()
    small = chart.bounding_box()['width']
    assert small<PHONE[0]
    page.locator('.full-size').first.focus()
    page.keyboard.press('Enter')
    shown = page.locator('dialog.whole-picture')
    shown.wait_for()
    assert shown.get_attribute('aria-label').startswith('Chart: ')
    large = shown.locator('svg.marks').bounding_box()['width']
    assert large>=chart.evaluate('o => o.viewBox.baseVal.width')>small
    page.keyboard.press('Escape')
    shown.wait_for(state='detached')
    assert page.evaluate("document.activeElement.matches('.full-size')")
    page.close()

@pytest.mark.xdist_group('browser')
def test_a_word_is_found_code_is_copied_and_the_theme_turned(site, address, browser):
    page = browser.new_page(viewport=dict(width=WIDE[0], height=WIDE[1]))
    page.set_default_timeout(PATIENCE)
    page.goto(address+'tutorials/merge_and_look.html')
    assert page.locator('.code-copy-button').count()>5
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.locator('.quarto-color-scheme-toggle').first.click()
    page.wait_for_function(f"before => ({ground})()!==before", arg=before)
    page.locator('input[type=search]').first.fill('mcnemar')
    page.locator('a', has_text='air').first.wait_for()
    page.close()

TEACHES = 'index', 'guide/', 'tutorials/'

@pytest.mark.xdist_group('browser')
def test_a_search_finds_first_what_teaches_then_public_functions_then_the_rest(site, address, browser):
    page = browser.new_page(viewport=dict(width=WIDE[0], height=WIDE[1]))
    page.set_default_timeout(PATIENCE)
    page.goto(address+'index.html')
    box = page.locator('input[type=search]').first
    def found(words):
        page.evaluate("document.querySelector('.smalldocs-search-results').innerHTML = ''")
        box.fill(words)
        page.locator('.search-result').first.wait_for()
        return [o.get_attribute('href').removeprefix('./') for o in page.locator('.search-result').all()]
    for word in 'merge', 'weight', 'lora', 'score', 'serve', 'noise', 'benchmark', 'which weight':
        places = found(word)
        assert all(o.startswith(TEACHES) for o in places[:2]), (word, places)
        others = [o for o in places if not o.startswith(TEACHES)]
        named = [o for o in others if o.partition('#')[2].lower()==word]
        teaching = [o for o in places if o not in others]
        assert [o for o in places if o not in named]==teaching + [o for o in others if o not in named], word
        assert all(map(public, named)) and len(named)==len({*named}), (word, named)
    assert found('choose_weight')[0]=='comparing/which_weight.html#choose_weight'
    assert 'guide/faq.html#which-weight' in found('sweep')[:4]
    assert found('lora')[0]=='guide/lora.html' and 'scoring/score.html#score' in found('score')[:8]
    for word in 'letter_in', 'unscorabel': assert found(word), word         # What is internal, and mistyped
    page.close()

def public(place):
    "Is a place of the site about a name that `vlm_merging` itself has?"
    page, _, name = place.partition('.html#')
    return vlm_merging._HOMES.get(name)==page.replace('/', '.')

def test_programs_find_all_pages(site):
    said = (site/'llms.txt').read_text(encoding='utf-8')
    assert said.startswith('# vlm_merging\n\n> ')
    pages = re.findall(r'\]\(([\w/.]+\.llms\.md)\)', said)
    there = {o.relative_to(site).as_posix() for o in site.rglob('*.llms.md')}
    assert set(pages)==there and len(pages)==len(there)>100
