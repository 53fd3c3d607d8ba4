"""The three widgets in a real JupyterLab, in a headless Chromium: sliders by keyboard, charts by click,
dark pages, and nothing from the network"""
import json, os, re, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from conftest import CHROMIUM, FLAGS

pytestmark = pytest.mark.xdist_group('browser')

project = Path(__file__).resolve().parent.parent
SHOTS = Path(os.environ.get('SCREENSHOTS') or project/'_screenshots')
WAIT = 240_000          # Milliseconds; a busy machine is slow
CELLS = ['''import torch
torch.set_num_threads(1)
from vlm_merging import LayerExplorer, MergeExplorer
merging = MergeExplorer(pause=.1)
merging''', '''merging.wait()
layers = LayerExplorer(pause=.1)
layers''', '''layers.wait()
replies = merging.browse()
replies''', '''from vlm_merging import scores_chart
scores_chart(merging.table, 'category')''', '''print('the kernel is', 'free')''']
SETTINGS = {'apputils-extension/notification':dict(fetchNews='false', checkForUpdates=False),
            'notebook-extension/tracker':dict(windowingMode='none', autoStartDefaultKernel=True),
            'docmanager-extension/plugin':dict(autosave=False)}

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "A JupyterLab of its own, without a token, that touches nothing of the user"
    pytest.importorskip('jupyterlab', reason='the package jupyterlab is not there')
    room, port = tmp_path_factory.mktemp('lab'), free_port()
    for name, held in SETTINGS.items():
        file = room/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held))
    cells = [dict(cell_type='code', id=f'c{i}', source=s, metadata={}, outputs=[], execution_count=None)
             for i, s in enumerate(CELLS)]
    about = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
                 language_info=dict(name='python'))
    (room/'work').mkdir()
    (room/'work'/'widgets.ipynb').write_text(json.dumps(dict(cells=cells, metadata=about, nbformat=4,
        nbformat_minor=5)))
    places = {f'JUPYTER_{k}_DIR':k.lower() for k in ('CONFIG', 'DATA', 'RUNTIME')}|dict(
        JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython',
        JUPYTER_PLATFORM_DIRS='platform')
    env = os.environ|{k:str(room/v) for k, v in places.items()}|dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1',
        JUPYTER_PLATFORM_DIRS='0', PYTHONPATH=str(project))
    options = dict(ip='127.0.0.1', port=port, port_retries=0, open_browser=False, root_dir=str(room/'work'),
                   allow_root=True)
    command = [sys.executable, '-m', 'jupyterlab', '--IdentityProvider.token=',
               '--LabApp.expose_app_in_browser=True', *(f'--ServerApp.{k}={v}' for k, v in options.items())]
    with open(room/'log', 'w') as log:
        server = subprocess.Popen(command, env=env, cwd=room, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic()+WAIT/1000
        while server.poll() is None:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=5).read()
                break
            except OSError: time.sleep(.25)
            if time.monotonic()>end: server.kill()
        assert server.poll() is None, 'JupyterLab did not come up: '+(room/'log').read_text()[-2000:]
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait(20)

class Seen:
    "What the page asked for and complained about"
    def __init__(self): self.asked, self.strange, self.errors = 0, [], []

def run_all(page):
    "Run all cells; on a busy machine the menu does nothing while the kernel is still connecting"
    begun = page.locator('.jp-InputPrompt').filter(has_text=re.compile(r'\[(\*|\d+)\]'))
    for _ in range(12):
        page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
        page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
        for _ in range(100):
            if begun.count(): return
            page.wait_for_timeout(200)
    pytest.fail('no cell began to run')

@pytest.fixture(scope='module')
def lab(address, playing):
    "The notebook with the three widgets, run; and what the page asked for"
    seen = Seen()
    def asked(route):
        url = route.request.url
        seen.asked += 1
        if re.match(r'(http|ws)://127\.0\.0\.1[:/]|data:|blob:', url): route.continue_()
        else:
            seen.strange.append(url)
            route.abort()
    browser = playing.chromium.launch(executable_path=CHROMIUM,
                                      args=[*FLAGS, '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE '
                                                    '127.0.0.1'])
    page = browser.new_page(viewport=dict(width=1440, height=1000))
    page.set_default_timeout(WAIT)
    page.set_default_navigation_timeout(WAIT)
    page.route('**/*', asked)
    page.on('websocket', lambda w: None if '127.0.0.1' in w.url else seen.strange.append(w.url))
    page.on('console', lambda m: seen.errors.append(m.text) if m.type=='error' else None)
    page.on('pageerror', lambda e: seen.errors.append(str(e)))
    page.goto(f'{address}/lab/workspaces/widgets/tree/widgets.ipynb?reset')
    page.locator('.jp-Notebook').wait_for()
    page.get_by_text('Python 3').or_(page.get_by_text('python3')).first.wait_for()
    run_all(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    try: yield page, seen
    finally:
        page.screenshot(path=SHOTS/'last.png')
        browser.close()

def area(page, n): return page.locator('.jp-OutputArea-output:has(.jupyter-widgets)').nth(n)
def slider(place, name): return place.locator(f'.widget-hslider:has(> label:text-is("{name}")) .noUi-handle')
def done(place): place.locator('[data-kind="done"]').wait_for(timeout=WAIT)
def after(place, what, do):
    "Do something, and wait until what is shown is another and the work is done"
    before = what()
    do()
    end = time.monotonic()+WAIT/1000
    while what()==before and time.monotonic()<end: place.page.wait_for_timeout(50)
    done(place)
    assert what()!=before
    return what()
def shot(page, name):
    for n, what in enumerate(('merge', 'layers', 'replies')):
        area(page, n).scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        area(page, n).screenshot(path=SHOTS/f'{name}_{what}.png')

def test_all_three_are_drawn(lab):
    page, seen = lab
    trouble = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], '
                           '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    end = time.monotonic()+WAIT/1000
    while not page.get_by_text('the kernel is free').count() and not trouble.count() and time.monotonic()<end:
        page.wait_for_timeout(200)
    said = [*trouble.all_inner_texts(), *page.locator('[role=status]').all_inner_texts(),
            *page.locator('.jp-InputPrompt').all_inner_texts()]
    assert page.get_by_text('the kernel is free').count(), said
    for n in range(3): done(area(page, n))
    assert area(page, 0).locator('svg .mark-symbol path').count()>=6
    assert area(page, 0).locator('svg .mark-rect path').count()>=32
    area(page, 1).locator('.vega-embed svg.marks').wait_for(timeout=WAIT)
    assert area(page, 1).locator('.vega-embed svg .mark-symbol path').count()>=48
    assert area(page, 2).locator('img').count()==1

def test_a_chart_that_is_no_part_of_a_widget_is_drawn_without_network(lab):
    page, seen = lab
    drawn = page.locator('.jp-Cell').filter(has_text='scores_chart(').locator('.vega-embed svg.marks')
    drawn.scroll_into_view_if_needed()
    drawn.wait_for(timeout=WAIT)
    assert drawn.locator('.mark-symbol path').count()>=6

UNNAMED = '''() => [...document.querySelectorAll('.jupyter-widgets')]
    .flatMap(o => [...o.querySelectorAll('input, select, button, [role=slider]')])
    .filter(o => o.getClientRects().length && !o.getAttribute('aria-label')?.trim() && !o.textContent.trim()
                 && ![...o.labels ?? []].some(l => l.textContent.trim()))
    .map(o => o.outerHTML.slice(0, 120))'''

def test_every_control_has_a_name(lab):
    page, seen = lab
    for n in range(3): area(page, n).locator('.noUi-handle').first.wait_for(timeout=WAIT)
    page.wait_for_function(f'() => !({UNNAMED})().length', timeout=WAIT)
    names = page.locator('.noUi-handle').evaluate_all('all => all.map(o => o.getAttribute("aria-label"))')
    assert {'weight', 'layers, from', 'layers, to', 'layer', 'reply'}<={*names}

def test_a_weight_moves_by_keyboard_and_the_charts_follow(lab):
    page, seen = lab
    place = area(page, 0)
    handle = slider(place, 'weight')
    def marks():
        return place.locator('svg .mark-symbol path').evaluate_all('all => all.map(e => '
                                                                   'e.getAttribute("transform")).join()')
    def cells():
        return place.locator('svg .mark-rect path').evaluate_all(
            'all => all.map(e => e.getAttribute("fill")+e.getAttribute("aria-label")).join()')
    handle.focus()
    colours = cells()
    after(place, marks, lambda: [handle.press(k) for k in ['PageDown']*2+['ArrowLeft']*5])
    assert float(handle.get_attribute('aria-valuenow'))<.86 and cells()!=colours
    place.locator('select').first.select_option('ties')
    place.locator('.widget-hslider:has(> label:text-is("density"))').wait_for(timeout=WAIT)
    done(place)
    assert place.locator('.widget-hslider').count()==4

def test_a_layer_is_taken_by_slider_and_by_click(lab):
    page, seen = lab
    place = area(page, 1)
    handle = slider(place, 'layer')
    def told(): return place.get_by_text(re.compile('masked, .* replies are others')).inner_text()
    def marked():
        return place.locator('.vega-embed svg .mark-rect path').evaluate_all(
            'all => all.map(e => e.getAttribute("opacity")).join()')
    handle.focus()
    strips = marked()
    assert 'layer 1 masked' in after(place, told, lambda: handle.press('ArrowRight'))
    assert marked()!=strips
    chart = place.locator('.vega-embed svg.marks').first
    strip = place.locator('.vega-embed svg .mark-rect path').nth(5)
    box, whole = strip.bounding_box(), chart.bounding_box()
    spot = dict(x=box['x']-whole['x']+box['width']/2, y=box['y']-whole['y']+box['height']/4)
    assert 'layer 5 masked' in after(place, told, lambda: chart.click(position=spot))
    assert handle.get_attribute('aria-valuenow')=='5.0'

def test_replies_are_browsed_and_filtered(lab):
    page, seen = lab
    place = area(page, 2)
    def told(): return place.locator('[role=status]').inner_text()
    handle = slider(place, 'reply')
    handle.focus()
    assert 'Reply 2 of 120' in after(place, told, lambda: handle.press('ArrowRight'))
    assert 'Reply 3 of 120' in after(place, told,
                                     lambda: place.get_by_role('button', name='next').press('Enter'))
    def choose(): place.locator('select').first.select_option(index=index_of(place, 'reasoning'))
    assert 'that fit, of 120' in after(place, told, choose)
    place.locator('input[type=text]').first.fill('top-left')
    page.wait_for_timeout(800)
    assert 'top-left' in place.inner_text()
    chosen = place.locator('select').evaluate_all('all => all.map(s => s.selectedOptions[0]?.text)')
    assert 'reasoning' in chosen[0] and chosen[1:]==['all', 'all']

def index_of(place, word):
    "Number of the option in which a word stands"
    return next(n for n, o in enumerate(place.locator('select').first.locator('option').all_inner_texts())
                if word in o)

CONTRAST = '''box => {
  const linear = x => x<=.03928 ? x/12.92 : ((x+.055)/1.055)**2.4
  const lum = c => { const v = c.map(x => linear(x/255)); return .2126*v[0]+.7152*v[1]+.0722*v[2] }
  const read = t => { const m = t.match(/[\\d.]+/g).map(Number); return m.length<4 ? [...m,1] : m }
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = read(getComputedStyle(e).backgroundColor)
      if (c[3]>.5) return c.slice(0,3)
    }
    return [255,255,255] }
  const out = []
  for (const e of box.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType==3 && n.textContent.trim())) continue
    if (!e.getClientRects().length || e.getAttribute('aria-hidden')) continue
    if (e.closest('[aria-hidden="true"]') || ['STYLE','SCRIPT','OPTION'].includes(e.tagName)) continue
    const ink = read(e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color)
    const a = lum(ink.slice(0,3)), b = lum(behind(e))
    out.push([(Math.max(a,b)+.05)/(Math.min(a,b)+.05), e.textContent.trim().slice(0,40), !!e.closest('svg')])
  }
  return out }'''

def readable(page):
    for n in range(3):
        found = area(page, n).evaluate(CONTRAST)
        assert len(found)>10
        poor = [f for f in found if f[0]<(3.8 if f[2] else 4.5)]
        assert not poor, poor[:5]

def test_it_can_be_read_on_a_light_and_on_a_dark_page(lab):
    page, seen = lab
    shot(page, 'light')
    readable(page)
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_function("document.body.dataset.jpThemeLight == 'false'", timeout=WAIT)
    page.wait_for_timeout(1500)
    shot(page, 'dark')
    readable(page)

def test_nothing_came_from_elsewhere_and_nothing_complained(lab):
    page, seen = lab
    assert seen.asked>50 and not seen.strange, seen.strange[:5]
    assert not seen.errors, seen.errors[:5]
