"""The pictures of widgets show what the cells beside them make: each carries the cell it was taken from and
what could be read on it"""
import ast, importlib.util, json, re
from pathlib import Path
import pytest
from PIL import Image

project = Path(__file__).resolve().parent.parent
HELP = 'Take it anew: python .ci/pictures.py'

def module():
    spec = importlib.util.spec_from_file_location('pictures', project/'.ci/pictures.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made

PICTURES = module()
PAGES = sorted((project/'nbs').rglob('[!_.]*.ipynb'))
SHOWN = {picture: (path, *found) for path in PAGES for picture, found in PICTURES.shown_widgets(path).items()}

def record(picture):
    with Image.open(project/'nbs/images'/picture) as image:
        image.load()
        assert 'widget' in image.text, f'{picture} does not say what it shows. {HELP}'
        return json.loads(image.text['widget'])

def cells_of(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def set_values(code):
    "What a cell sets: name of the control -> value"
    found = re.findall(r"""^\w+\.(?:knobs\[['"](\w+)['"]\]|(\w+))\.value = (.+)$""", code, re.M)
    return {knob or name: ast.literal_eval(value) for knob, name, value in found}

def same(shown, value):
    "Does a control show this value? A list shows it among other words, as `lost (3)`"
    if isinstance(value, bool): return shown is value
    if isinstance(value, (int, float)): return float(shown)==value
    return str(shown).split(' (')[0]==str(value)

def printed(cell):
    "Lines and texts that a cell stores: what it printed, and the values of a dict that it ends with"
    for out in cell['outputs']:
        if out['output_type']=='stream': yield from ''.join(out['text']).splitlines()
        else: yield from map(str, ast.literal_eval(''.join(out['data']['text/plain'])).values())

def test_every_picture_stands_beside_a_cell():
    assert {o.name for o in (project/'nbs/images').glob('widget_*.png')}=={*SHOWN} and len(SHOWN)==3

@pytest.mark.parametrize('picture', SHOWN)
def test_a_picture_shows_what_its_cell_makes(picture):
    path, made, _, alt = SHOWN[picture]
    cell, seen = cells_of(path)[made], record(picture)
    assert seen['cell']==PICTURES.source(cell), f'{picture} is of another cell of {path.name}. {HELP}'
    wanted = set_values(seen['cell'])
    assert wanted
    for name, value in wanted.items():
        assert same(seen['controls'].get(name), value), f'{picture}: {name} is {seen["controls"]}. {HELP}'
    texts = [o for o in printed(cell) if o.strip()]
    assert texts
    flat = ' '.join(seen['text'].split())
    for text in texts: assert ' '.join(text.split()) in flat, f'{picture} does not say {text!r}. {HELP}'

@pytest.mark.parametrize('picture', SHOWN)
def test_wherever_it_stands_it_is_said_to_be_still_and_of_which_settings(picture):
    path, made, *_ = SHOWN[picture]
    wanted = set_values(record(picture)['cell'])
    alts = {alt for page in PAGES for cell in cells_of(page) if cell['cell_type']=='markdown'
            for alt, name in PICTURES.PICTURE.findall(PICTURES.source(cell)) if name==picture}
    assert len(alts)==1, alts
    for alt in alts:
        assert alt.startswith('A still picture of ')
        for name, value in wanted.items(): assert f'{name} {value}' in alt, alt

def test_a_picture_of_other_settings_is_found():
    "What the tests above compare can differ"
    cell = "e = f()\ne.knobs['weight'].value = .6\ne.layer.value = 1\nb.verdict.value = 'lost'"
    assert set_values(cell)==dict(weight=.6, layer=1, verdict='lost')
    assert same('0.60', .6) and same('lost (3)', 'lost') and same(True, True)
    assert not same('0.90', .6) and not same('5', 1) and not same('won (3)', 'lost')
