"The program: the names of the Python calls, exit codes for scripts, quiet where nobody looks"
import errno, fcntl, inspect, json, os, re, shlex, struct, subprocess, sys, termios
from dataclasses import fields

import pytest, torch
from safetensors.torch import load_file, save_file
from vlm_merging import __version__
from vlm_merging.cli.commands import COMMANDS, shell_options
from vlm_merging.cli.demo import demo
from vlm_merging.cli.main import read_line
from vlm_merging.cli.merging_commands import asked_recipe
from vlm_merging.cli.typed import knob_value
from vlm_merging.merging.merge import merge
from vlm_merging.merging.methods import METHODS
from vlm_merging.merging.recipe import Recipe
from vlm_merging.lab.tiny import make_trio

torch.set_num_threads(1)
PROGRAM = [sys.executable, '-m', 'vlm_merging']


@pytest.fixture(scope='module')
def trio(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('trio'))


@pytest.fixture
def who(trio): return ['--vlm', str(trio.vlm), '--llm', str(trio.llm)]


def shell(*argv, **kw):
    "Exit code, output and errors of the program in a process of its own"
    done = subprocess.run([*PROGRAM, *map(str, argv)], capture_output=True, text=True, timeout=120, **kw)
    return done.returncode, done.stdout, done.stderr


def recipe_in(folder): return json.loads((folder/'recipe.json').read_text())['recipe']
def files(folder): return {f.name:f.read_bytes() for f in folder.iterdir()}


# --- In a process of its own

def test_plan_merge_and_inspect(who, trio, tmp_path):
    code, out, err = shell('plan', *who, '--layers', '2-')
    assert code==0 and not err and 'layers 2-' in out and 'merged' in out and 'kept' in out
    code, out, err = shell('merge', *who, '--weight', .7, '--out', 'done', cwd=tmp_path)
    assert code==0 and 'done' in out
    assert all(said.startswith('warn: ') for said in err.splitlines()), 'a bar, where nobody looks'
    assert {x.name for x in tmp_path.iterdir()}=={'done'}
    (tmp_path/'python').mkdir()
    python = merge(Recipe(trio.vlm, trio.llm, knobs=dict(weight=.7)), out=tmp_path/'python'/'done')
    assert files(python)==files(tmp_path/'done')
    code, out, err = shell('inspect', tmp_path/'done')
    assert code==0 and not err and 'language_model' in out and '"weight": 0.7' in out
    code, out, err = shell('merge', *who, '--out', tmp_path/'done')
    assert code==3 and not out and 'already there' in err and 'Traceback' not in err
    assert files(python)==files(tmp_path/'done')


@pytest.mark.parametrize('more,bar', [((), True), (('--quiet',), False)], ids=['bar', 'quiet'])
def test_a_bar_only_on_a_terminal(more, bar, who, tmp_path):
    mine, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    argv = [*PROGRAM, 'merge', *who, '--out', str(tmp_path/'out'), *more]
    done = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said = b''
    try:
        while data := os.read(mine, 4096): said += data
    except OSError: pass        # the other end is closed
    done.communicate(timeout=120)
    os.close(mine)
    assert done.returncode==0
    assert (b'B/s' in said)==bar and (b'merging' in said)==bar


def test_the_demo_gets_its_arguments(call, monkeypatch):
    seen = []
    def fake(**given):
        seen.append({k:v for k, v in given.items() if k!='step'})
        raise ValueError('Far enough.')
    monkeypatch.setattr('vlm_merging.cli.demo.demo', fake)          # What it does is tested in test_demo.py
    assert call('demo')[0]==3 and call('demo', '--out', 'x', '-n', 50, '--weight', .3, '--seed', 7)[0]==3
    assert seen==[{}, dict(out='x', n=50, weight=.3, seed=7)]
    assert options('demo')==inspect.signature(demo).parameters.keys() - {'step'}


HEAVY = {'torch', 'transformers', 'numpy', 'polars', 'tqdm'}

@pytest.mark.parametrize('words,said', [(('--help',), 'COMMAND'), (('--version',), __version__),
                                        *(((c, '--help'), 'for example') for c in COMMANDS)],
                         ids=lambda o: ' '.join(o) if isinstance(o, tuple) else '')
def test_help_and_version_are_light(words, said):
    code = f'''import sys, time
from vlm_merging.cli.main import main
try: main({list(words)!r})
except SystemExit as e: code = e.code
print(code, sorted({HEAVY!r} & set(sys.modules)), time.process_time()<1)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert said in done.stdout and done.stdout.splitlines()[-1]=='0 [] True'


def test_a_plan_needs_no_torch(who, tmp_path):
    code = f'''import sys
from vlm_merging.cli.main import main
assert main(["plan", *{who!r}, "--weight", "0.5"])==0
print(sorted({{'torch', 'transformers'}} & set(sys.modules)))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1]=='[]'


def test_inspect_is_light(trio):
    code = f'''import sys
from vlm_merging.cli.main import main
assert main(["inspect", {str(trio.vlm)!r}])==0
print(sorted({{'torch', 'transformers'}} & set(sys.modules)))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1]=='[]'


# --- Names

def options(command):
    "Names of a command's options"
    return {n for n, o in shell_options(COMMANDS[command]).items() if not o.place}


KNOBS = {k for m in METHODS.values() for k in m.knobs}
RECIPE = {f.name for f in fields(Recipe)} - {'knobs', 'inputs'}     # The second is what a recipe was made of


def test_options_are_those_of_the_python_calls():
    about = set(inspect.signature(merge).parameters) - {'progress', 'knobs'} - RECIPE - KNOBS
    assert options('plan')==RECIPE | KNOBS | {'recipe', 'layer_swap'}
    assert options('merge')==options('plan') | about | {'quiet'}
    assert not RECIPE & KNOBS and not (about | {'quiet', 'recipe', 'layer_swap'}) & (RECIPE | KNOBS)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_names_every_option(command, call):
    code, out, err = call(command, '--help')
    assert code==0 and not err
    assert all(o.flag in out for o in shell_options(COMMANDS[command]).values())
    assert f'for example:\n  vlm-merging {command}' in out and not re.search(r'None|`|\bField', out), out
    if command=='merge': assert all(m in out for m in METHODS)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_option_is_explained(command):
    bare = [o.flag for o in shell_options(COMMANDS[command]).values() if not o.parameter.about]
    assert not bare


@pytest.mark.parametrize('command', COMMANDS)
def test_the_examples_are_understood(command):
    lines = COMMANDS[command].example.splitlines()
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert program=='vlm-merging' and read_line(words)[0].name==command


def test_a_word_means_one_thing():
    "An option has one explanation, unless it is listed here with the reason"
    apart = {'out', 'chart'}  # Where the result appears: a folder, a table, a page, as the command makes it
    apart |= {'seed'}               # Of what the command leaves to chance: coin flips, or which questions
    apart |= {'weight', 'n', 'vlm', 'llm', 'base', 'method', 'layers', 'modules', 'model', 'protocol',
              'split', 'by', 'device', 'data', 'items', 'thinking',
              'trust_prompt'} # Said in the words of the command
    said = {}
    for c in COMMANDS.values():
        for o in shell_options(c).values():
            if not o.place: said.setdefault(o.name, set()).add(o.parameter.about)
    assert {n for n, texts in said.items() if len(texts)>1}<=apart
    for name in ('weights', 'modules', 'parts', 'serves', 'diagnosis'):
        assert len({o.parameter.about for c in COMMANDS.values()
                    for o in shell_options(c).values() if o.name==name and c.name!='sweep'})<=1


@pytest.mark.parametrize('text,value', [
    ('0.9', .9), ('1', 1.), ('1,0.9,0.7', [1., .9, .7]), ('no', False), ('True', True),
    ('weighted', 'weighted'), ('1e-3', .001), ('1,x', '1,x')])
def test_a_knob_as_it_is_written(text, value):
    assert knob_value(text)==value and type(knob_value(text)) is type(value)


VALUES = dict(vlm='v', llm='l', base='b', method='ties', layers='1-', modules='mlp', embeddings=True, seed=7,
              as_run=True, layout='hub')


@pytest.mark.parametrize('name', VALUES)
def test_each_option_sets_its_field(name):
    assert set(VALUES)==RECIPE
    need = dict(vlm='v', llm='l') | (dict(base='b') if name=='method' else {}) | {name:VALUES[name]}
    argv = []
    for k, v in need.items(): argv += ['--'+k.replace('_', '-')] + ([] if v is True else [str(v)])
    assert asked_recipe(**read_line(['plan', *argv])[1])==Recipe(**need)


@pytest.mark.parametrize('method', METHODS)
def test_each_knob_sets_itself(method):
    knobs = {k.name: k.choices[-1] if k.choices else k.low+(k.high-k.low)/4
             for k in METHODS[method].knobs.values()}
    argv = [x for k, v in knobs.items() for x in ('--'+k.replace('_', '-'), str(v))]
    names = ['--vlm', 'v', '--llm', 'l', '--base', 'b', '--method', method]
    assert asked_recipe(**read_line(['merge', *names, *argv])[1])==Recipe('v', 'l', 'b', method, knobs)


def test_merge_gets_its_arguments(who, tmp_path, monkeypatch, call):
    seen = {}
    def fake(recipe, *, out, **kw):
        seen.update(kw, out=out)
        out.mkdir()
        return out
    monkeypatch.setattr('vlm_merging.merging.merge.merge', fake)
    assert call('merge', *who, '--out', tmp_path/'a')[0]==0
    assert seen==dict(out=tmp_path/'a', progress=None), 'what was not typed is left to Python'
    more = ['--overwrite', '--workers', 3, '--device', 'cuda:1', '--sha256', '--allow-nonfinite', '--quiet']
    assert call('merge', *who, '--out', tmp_path/'b', *more)[0]==0
    assert seen==dict(overwrite=True, workers=3, device='cuda:1', sha256=True, allow_nonfinite=True,
                      progress=False, out=tmp_path/'b')


# --- Recipes

def test_a_recipe_file_and_what_overrides_it(trio, tmp_path, call):
    Recipe(*trio, 'ties', dict(density=.3, weight=[1.5, 1.]), layers='1-', seed=5).write(tmp_path/'r.json')
    assert call('merge', '--recipe', tmp_path/'r.json', '--out', tmp_path/'one')[0]==0
    assert recipe_in(tmp_path/'one')==Recipe.read(tmp_path/'r.json').dict()
    change = ['--density', .5, '--layers', 'all']
    assert call('merge', '--recipe', tmp_path/'one', *change, '--out', tmp_path/'two')[0]==0
    assert Recipe.read(tmp_path/'two')==Recipe(*trio, 'ties', dict(density=.5, weight=[1.5, 1.]), seed=5)
    assert call('merge', '--recipe', tmp_path/'one', '--method', 'linear', '--out', tmp_path/'three')[0]==0
    # knobs of another method do not come along
    assert Recipe.read(tmp_path/'three')==Recipe(*trio, layers='1-', seed=5)
    assert call('merge', '--recipe', tmp_path/'one', '--out', tmp_path/'four')[0]==0
    assert files(tmp_path/'four')['model.safetensors']==files(tmp_path/'one')['model.safetensors']


def test_layer_swap_has_a_name(who, trio, tmp_path, call):
    assert call('merge', *who, '--layer-swap', 1, '--weight', .8, '--out', tmp_path/'out')[0]==0
    assert Recipe.read(tmp_path/'out')==Recipe.layer_swap(trio.vlm, trio.llm, last=1, weight=.8)
    for more in (['--layers', '1-'], ['--method', 'ties']):
        code, _, err = call('plan', *who, '--layer-swap', 1, *more)
        assert code==3 and '--layer-swap is linear' in err


def test_overwrite(who, tmp_path, call):
    out = tmp_path/'out'
    assert call('merge', *who, '--out', out)[0]==0
    first = files(out)
    assert call('merge', *who, '--weight', .5, '--out', out)[0]==3 and files(out)==first
    assert call('merge', *who, '--weight', .5, '--out', out, '--overwrite')[0]==0
    assert files(out).keys()==first.keys() and files(out)['model.safetensors']!=first['model.safetensors']


# --- Exit codes

@pytest.mark.parametrize('argv', [
    [], ['mix'], ['merge', '--wieght', '1'], ['merge', '--method', 'liner'], ['merge', '--seed', 'x'],
    ['merge', '--workers', 'many'], ['merge', '--vlm'], ['compare', 'a'], ['profile', 'm', '--how', 'erase'],
    ['plan', 'a', 'b', 'c', 'd'], ['plan', 'a', '--vlm', 'b'], ['inspect'], ['demo', '-n', 'few'],
    ['plan', '--out', 'x']], ids=' '.join)
def test_2_cannot_be_understood(argv, call):
    code, out, err = call(*argv)
    assert code==2 and not out and 'usage: vlm-merging' in err


@pytest.mark.parametrize('words,meant', [
    ('mehtods', 'methods'), ('merge --wieght 1', '--weight'), ('merge --method tis', 'ties'),
    ('ask --weights x', '--serves'),
    ('profile --weights x', '--diagnosis'), ('profile --measures answer', '--measure'),
    ('evaluate m', 'ask'), ('probe m', 'profile'),
    ('sweep --layer 2-', '--layers'), ('profile m --parts heads', 'head')])
def test_did_you_mean(words, meant, call):
    code, out, err = call(*words.split())
    assert code==2 and not out and (f'Did you mean {meant}?' in err or f'is called {meant} here' in err)


def test_what_stands_before_the_options_is_as_in_python(who, trio, tmp_path):
    for words in ([str(trio.vlm), str(trio.llm)], [str(trio.vlm), '--llm', str(trio.llm)],
                  ['--layers', '2-', str(trio.vlm), str(trio.llm)]):
        given = read_line(['plan', *words])[1]
        assert (given['vlm'], given['llm'])==(str(trio.vlm), str(trio.llm))
    assert read_line(['profile', '--against', 'b', 'a', '--benchmark', 'x,y', 'z', '--out',
                      'r'])[1]['model']=='a'


@pytest.mark.parametrize('argv,said', [
    (['--weight', '1.5'], 'from 0 to 1'), (['--weight', 'much'], 'from 0 to 1'),
    (['--weight', '-1'], 'from 0 to 1'), (['--density', '.5'], "no knob 'density'"),
    (['--layers', '9-'], 'layers 0-3'), (['--modules', 'eyes'], 'no part'),
    (['--method', 'ties'], 'needs --base'), (['--llm', 'no/such/folder'], 'not a folder'),
    (['--recipe', 'nowhere.json'], 'not there'), (['--weight', '1.5'], '--weight is 1.5')])
@pytest.mark.parametrize('command', ['plan', 'merge'])
def test_3_refused(command, argv, said, who, tmp_path, call):
    out = ['--out', tmp_path/'out'] if command=='merge' else []
    given = who[:2] if '--llm' in argv else who             # Two of them would be two LLMs
    code, printed, err = call(command, *given, *out, *argv)
    assert code==3 and not printed and said in err
    assert err.startswith('vlm-merging: ') and err.count('\n')==1
    assert not list(tmp_path.iterdir())


def test_3_what_does_not_fit(who, tmp_path, call):
    other = make_trio('llava_onevision', tmp_path/'other')
    code, out, err = call('plan', *who[:2], '--llm', other.llm)
    assert code==3 and 'stop: ' in out and 'biases' in out
    code, out, err = call('merge', *who[:2], '--llm', other.llm, '--out', tmp_path/'out')
    assert code==3 and not out and 'biases' in err and not (tmp_path/'out').exists()
    for missing in ('--vlm', '--llm'):
        given = [x for name, folder in zip(who[::2], who[1::2]) if name!=missing for x in (name, folder)]
        code, _, err = call('plan', *given)
        assert code==3 and f'{missing} is missing' in err
    assert '--out is missing: Folder that shall appear' in call('merge', *who)[2]
    assert call('merge', *who, '--out', tmp_path/'x', '--workers', 0)[::2]==(3,
        'vlm-merging: --workers is 0; the least is 1.\n')
    assert call('inspect', tmp_path)[0]==3


def test_3_a_number_that_is_none(who, trio, tmp_path, call):
    llm = tmp_path/'llm'
    llm.mkdir()
    for f in trio.llm.iterdir(): (llm/f.name).write_bytes(f.read_bytes())
    held = load_file(llm/'model.safetensors')
    held['model.norm.weight'][3] = float('nan')
    save_file(held, llm/'model.safetensors', metadata={'format':'pt'})
    code, _, err = call('merge', *who[:2], '--llm', llm, '--out', tmp_path/'out')
    assert code==3 and 'model.norm.weight' in err
    assert {x.name for x in tmp_path.iterdir()}<={'llm', '.out.draft', '.out.lock'}
    assert call('merge', *who[:2], '--llm', llm, '--out', tmp_path/'out', '--allow-nonfinite')[0]==0


@pytest.mark.parametrize('fault,code,said', [
    (OSError(errno.ENOSPC, 'Full', 'x.part'), 1, 'x.part cannot be written: Full.'),
    (OSError(errno.EIO, 'Torn', 'x.csv'), 1, 'x.csv cannot be read: Torn.'),
    (PermissionError(errno.EACCES, 'Permission denied'), 1, 'Permission denied.'),
    (LookupError('No such thing.'), 3, 'No such thing.'),
    (KeyboardInterrupt(), 130, 'goes on from here')], ids=['full', 'torn', 'forbidden', 'lookup', 'ctrl-c'])
def test_1_and_130(fault, code, said, who, tmp_path, call, monkeypatch):
    def fail(*a, **k): raise fault
    monkeypatch.setattr('vlm_merging.merging.merge.merge', fail)
    got, out, err = call('merge', *who, '--out', tmp_path/'out')
    assert (got, out)==(code, '')
    assert err.splitlines()[-1].startswith('vlm-merging: ') and said in err and 'Traceback' not in err
