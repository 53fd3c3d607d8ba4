"The face: what `vlm_merging` lends, from where, and that it costs nothing until it is asked for"
import importlib, inspect, subprocess, sys
from pkgutil import resolve_name

import pytest
import vlm_merging
from test_house import MODULES, module_text

def python(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)

def test_importing_the_package_brings_nothing_along():
    "No other module of ours, and none but the standard library's"
    done = python('''import sys
before = {*sys.modules}
import vlm_merging
print(sorted(o for o in {*sys.modules}-before if o.partition('.')[0] not in sys.stdlib_module_names))''')
    assert done.stdout.strip()=="['vlm_merging']", done.stdout+done.stderr

@pytest.mark.parametrize('name', vlm_merging.__all__)
def test_a_name_of_the_face_is_there_and_is_what_its_module_has(name):
    value = getattr(vlm_merging, name)
    assert value is getattr(importlib.import_module(f'vlm_merging.{vlm_merging._HOMES[name]}'), name)
    if callable(value): assert value.__doc__, f'{name} does not say what it is for'

def test_a_name_is_no_package():
    houses = {o.partition('.')[0] for o in MODULES}
    assert not houses & {*vlm_merging.__all__}

def test_an_unknown_name_is_told_by_name():
    with pytest.raises(AttributeError, match="has no 'marge'. Did you mean merge?"): vlm_merging.marge
    with pytest.raises(AttributeError, match="has no 'xyzzy'. dir"): vlm_merging.xyzzy
    assert {*vlm_merging.__all__}<={*dir(vlm_merging)}

def test_results_are_drawn_by_charts_that_exist():
    "A result names its chart as text, since charts stand above it"
    said = [o.split('=')[1].strip().strip("'\"") for module in MODULES
            for o in module_text(module).splitlines() if 'DRAWN_BY = ' in o]
    assert len(said)>3
    for o in said: assert callable(resolve_name(o)), o

VERBS = ('plan merge ask score compare agreement masked profile sweep diagnose load open_model prepare '
         'masks').split()
@pytest.mark.parametrize('name', [*VERBS, *'Recipe Item Picture Mask Endpoint linear ties della'.split()])
def test_help_tells_what_each_parameter_means(name):
    "`merge?` shows the docstring; the comments beside the parameters are in it"
    verb = getattr(vlm_merging, name)
    told = verb.__doc__.splitlines()
    for parameter in inspect.signature(verb).parameters:
        assert any(o.startswith(f'{parameter} ') for o in told), parameter

@pytest.mark.parametrize('name,rest', [
    ('merge', 'weight density'), ('plan', 'weight elect'), ('ask', 'batch_size dtype'),
    ('open_model', 'max_new_tokens'), ('profile', 'parts how layers target batch_size device'),
    ('sweep', 'density dtype')])
def test_tab_finds_what_stands_behind_two_stars(name, rest):
    known = inspect.signature(getattr(vlm_merging, name)).parameters
    assert {*rest.split()}<={*known} and 'weight' not in inspect.signature(vlm_merging.sweep).parameters
    assert not {'where', 'processor', 'name'}&{*inspect.signature(vlm_merging.ask).parameters}
