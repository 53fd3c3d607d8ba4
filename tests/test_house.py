"The house stands: imports go downward, light rooms stay light, and the package needs only what it asks for"
import ast, io, json, re, subprocess, sys, tokenize
from configparser import ConfigParser
from pathlib import Path

import pytest

project = Path(__file__).resolve().parent.parent
package = 'vlm_merging'
NO_TORCH = '01 02 06 08 09 10 11 12 13 14'.split()        # Rooms which import without torch
NEVER_TORCH = '08 09 10 11 12'.split()                 # Rooms which never import it, not even later

def cells(path): return [''.join(o['source']) for o in json.loads(path.read_text(encoding='utf-8'))['cells']
                         if o['cell_type']=='code']

def room(path):
    "The module a notebook exports to, or None"
    for source in cells(path):
        if m := re.search(r'^#\| *default_exp +(\S+)', source, flags=re.M): return m[1]

ROOMS = {room(o): o for o in sorted((project/'nbs').glob('[0-9]*.ipynb'))}
MODULES = list(ROOMS)
def number(module): return ROOMS[module].name[:2]
def module_text(module): return (project/package/f'{module}.py').read_text(encoding='utf-8')

def without_magics(source):
    return '' if source.startswith('%%') else re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)

def imported(source):
    "Every module that `source` imports, by its full name, and whether by a star"
    for o in ast.walk(ast.parse(source)):
        if isinstance(o, ast.Import): yield from ((a.name, False) for a in o.names)
        if isinstance(o, ast.ImportFrom):
            stem = '.'.join(filter(None, [package if o.level else '', o.module or '']))
            star = any(a.name=='*' for a in o.names)
            if stem==package: yield from ((f'{package}.{a.name}', star) for a in o.names)
            else: yield stem, star

def own(names): return {o.split('.')[1] for o, _ in names if re.match(rf'{package}\.[a-z]', o)}

def test_every_room_has_one_notebook():
    assert None not in ROOMS, 'A numbered notebook has no `#| default_exp`'
    there = {o.stem for o in (project/package).glob('*.py') if o.stem[0]!='_'}
    assert there==set(ROOMS), 'The package has other modules than the notebooks. Run `nbdev-export`.'

@pytest.mark.parametrize('module', MODULES)
def test_a_room_imports_only_lower_rooms(module):
    lower = set(MODULES[:MODULES.index(module)])
    upward = own(imported(module_text(module))) - lower
    assert not upward, f'{module} imports {upward}, which are not lower'
    lesson = set().union(*(own(imported(without_magics(o))) for o in cells(ROOMS[module])))
    upward = (lesson & set(MODULES)) - lower - {module}
    assert not upward, f'{ROOMS[module].name} imports {upward}, which are not lower'

@pytest.mark.parametrize('module', MODULES)
def test_a_room_imports_by_name_and_only_what_is_required(module):
    names = list(imported(module_text(module)))
    assert not [o for o, star in names if star], f'{module} has star imports'
    about = ConfigParser(delimiters='=', interpolation=None)
    about.read(project/'settings.ini', encoding='utf-8')
    asked = [o for key in about['DEFAULT'] if key.endswith('requirements') and key!='dev_requirements'
             for o in about['DEFAULT'][key].split('\n') if o]
    required = {re.split(r'[<>=!~ ;\[]', o)[0].replace('-', '_') for o in asked}
    required = {'PIL' if o=='pillow' else o for o in required} | {'IPython', package}
    unasked = {o.split('.')[0] for o, _ in names} - required - sys.stdlib_module_names
    assert not unasked, f'{module} imports {unasked}, which settings.ini does not require'

@pytest.mark.parametrize('path', sorted((project/'nbs').rglob('[!_.]*.ipynb')), ids=lambda o: o.stem)
def test_a_cell_that_imports_does_nothing_else(path):
    "The site runs every cell that imports, and nothing else but exported code"
    for source in cells(path):
        if re.match(r'#\| *export', source): continue
        kinds = {isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(without_magics(source)).body}
        assert kinds!={True, False}, f'{path.name} has a cell of imports and work:\n{source}'

def test_rooms_of_tables_never_import_torch():
    for module in [o for o in MODULES if number(o) in NEVER_TORCH]:
        heavy = {'torch', 'transformers'} & {o.split('.')[0] for o, _ in imported(module_text(module))}
        assert not heavy, f'{module} imports {heavy}'

def test_light_rooms_import_without_torch():
    light = [o for o in MODULES if number(o) in NO_TORCH]
    code = f'''import sys, importlib
for o in {light}:
    importlib.import_module("{package}." + o)
    heavy = {{"torch", "transformers"}} & set(sys.modules)
    if heavy: sys.exit(f"{{o}} brings in {{heavy}}")'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert not done.returncode, done.stderr

@pytest.mark.parametrize('module', [o for o in MODULES if number(o)>='06'])
def test_every_parameter_of_a_public_function_is_explained(module):
    text = module_text(module)
    said = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type==tokenize.COMMENT}
    public = [f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef) and f.name[0]!='_']
    assert all(map(ast.get_docstring, public))
    bare = [f'{f.name}({p.arg})' for f in public
            for p in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *filter(None, (f.args.vararg, f.args.kwarg))]
            if p.lineno not in said or p.lineno==f.lineno]
    assert not bare, f'{module}: {", ".join(bare)}'
