"""Take the pictures of widgets that stand in the tutorials: `python .ci/pictures.py`, or with the names of
some tutorials. Each is run in JupyterLab down to the cell that shows the widget, and nothing is turned by
hand. The picture carries the cell that made the widget and what could be read on it;
`tests/test_widget_pictures.py` compares that with the tutorial as it stands."""
import io, json, re, shutil, sys, tempfile
from pathlib import Path

project = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(project/'tests'))
SCALE = 2                           # Pixels of the picture for one of the page
PICTURE = re.compile(r'!\[([^\]]*)\]\(\.\./images/(widget_\w+\.png)\)')

READ = '''area => {
    const plain = text => text?.replaceAll('\u00a0', ' ').replaceAll('\u200b', '').trim(), controls = {}
    for (const o of area.querySelectorAll('.jupyter-widgets:is(.widget-inline-hbox)')) {
        const field = o.querySelector('select, input'), label = plain(o.querySelector('label')?.textContent)
        if (!o.offsetParent) continue
        if (field?.type=='checkbox') controls[plain(o.textContent)] = field.checked
        else if (label) controls[label] = plain(o.querySelector('.widget-readout')?.textContent
                                                ?? field?.selectedOptions?.[0].text ?? field?.value)
    }
    for (const o of area.querySelectorAll('select')) o.replaceChildren(o.selectedOptions[0])
    return {controls, text: plain(area.innerText)}
}'''

def source(cell): return ''.join(cell['source'])

def shown_widgets(path):
    "Of a notebook: picture -> number of the cell that makes its widget, of that which shows it, and alt text"
    cells, found = json.loads(path.read_text(encoding='utf-8'))['cells'], {}
    for n, cell in enumerate(cells):
        name = source(cells[n-1]).strip() if n else ''
        if cell['cell_type']!='markdown' or not name.isidentifier(): continue
        for alt, picture in PICTURE.findall(source(cell)):
            made = next(i for i in range(n-2, -1, -1) if re.search(rf'^{name} = ', source(cells[i]), re.M))
            found[picture] = made, n-1, alt
    return found

def take(play, tutorial, made, shown):
    "The picture of a widget as its tutorial opens it, and what can be read on it"
    from lab_page import done, lab_page, lab_server
    book = json.loads(tutorial.read_text(encoding='utf-8'))
    record = dict(cell=source(book['cells'][made]))
    book['cells'] = [dict(c, outputs=[], execution_count=None) for c in book['cells'][:shown+1]
                     if c['cell_type']=='code']
    with tempfile.TemporaryDirectory() as room:
        work = Path(room)/'work'
        shutil.copytree(project/'nbs', work, ignore=shutil.ignore_patterns('.*', '_*'))
        path = tutorial.relative_to(project/'nbs')
        (work/path).write_text(json.dumps(book), encoding='utf-8')
        with lab_server(Path(room)) as address, lab_page(play, address, path, device_scale_factor=SCALE,
                                                         viewport=dict(width=1440, height=1300)) as (page, _):
            area = page.locator('.jp-Cell').last.locator('.jp-OutputArea-output:has(.jupyter-widgets)')
            done(area)
            for drawn in area.locator('.vega-embed').all(): drawn.locator('svg.marks').wait_for()
            area.scroll_into_view_if_needed()
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)
            return area.screenshot(), record|area.evaluate(READ)

def keep(data, record, out):
    "Write a picture with its record inside"
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    told = PngInfo()
    told.add_itxt('widget', json.dumps(record, ensure_ascii=False))
    picture = Image.open(io.BytesIO(data)).convert('RGB')
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        out, optimize=True, pnginfo=told)

def main(names):
    from playwright.sync_api import sync_playwright
    tutorials = {p.stem: p for p in sorted((project/'nbs').rglob('*.ipynb')) if shown_widgets(p)}
    if unknown := [o for o in names if o not in tutorials]:
        sys.exit(f'No widget is shown in {", ".join(unknown)}. There are: {", ".join(tutorials)}.')
    with sync_playwright() as play:
        for name in names or tutorials:
            for picture, (made, shown, _) in shown_widgets(tutorials[name]).items():
                keep(*take(play, tutorials[name], made, shown), project/'nbs/images'/picture)
                print(f'{name}: nbs/images/{picture}', flush=True)

if __name__=='__main__': main(sys.argv[1:])
