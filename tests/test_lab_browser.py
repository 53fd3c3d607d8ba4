"""The three widgets in a real JupyterLab, in a headless Chromium: sliders by keyboard, charts by click,
dark pages, and nothing from the network"""
import json, os, re, time
from pathlib import Path
import pytest
from lab_page import WAIT, done, lab_page, lab_server, notebook, troubles

pytestmark = pytest.mark.xdist_group('browser')

project = Path(__file__).resolve().parent.parent
SHOTS = Path(os.environ.get('SCREENSHOTS') or project/'_screenshots')
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

@pytest.fixture(scope='module')
def lab(tmp_path_factory, playing):
    "The notebook with the three widgets, run; and what the page asked for"
    pytest.importorskip('jupyterlab', reason='the package jupyterlab is not there')
    room = tmp_path_factory.mktemp('lab')
    (room/'work').mkdir()
    (room/'work'/'widgets.ipynb').write_text(json.dumps(notebook(CELLS)))
    SHOTS.mkdir(parents=True, exist_ok=True)
    with lab_server(room) as address, lab_page(playing, address, 'widgets.ipynb') as (page, seen):
        try: yield page, seen
        finally: page.screenshot(path=SHOTS/'last.png')

def area(page, n):
    "The widget that cell `n` shows; of all widgets on the page the `n`th may be another, such as a chart"
    return page.locator('.jp-Cell').nth(n).locator('.jp-OutputArea-output:has(.jupyter-widgets)')
def slider(place, name): return place.locator(f'.widget-hslider:has(> label:text-is("{name}")) .noUi-handle')
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
    end = time.monotonic()+WAIT/1000
    while not page.get_by_text('the kernel is free').count() and not troubles(page) and time.monotonic()<end:
        page.wait_for_timeout(200)
    said = [*troubles(page), *page.locator('[role=status]').all_inner_texts(),
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
    colours, aside = cells(), place.locator('[aria-busy=true]')
    def turn():
        for k in ['PageDown']*2+['ArrowLeft']*5: handle.press(k)
        aside.first.wait_for()
        assert aside.first.inner_text().endswith('of the settings before')
    after(place, marks, turn)
    assert not aside.count()
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
