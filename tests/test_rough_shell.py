"The shell in a rough world: Ctrl-C, readers that leave, full disks, terminals of few letters, odd names"
import ast, errno, json, os, signal, subprocess, sys
from pathlib import Path

import polars as pl
import pytest
from vlm_merging.asking.ask import ask
from vlm_merging.asking.replies import replies
from vlm_merging.benchmarks.items import Item
from vlm_merging.benchmarks.pictures import as_picture
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.cli.commands import COMMANDS
from vlm_merging.cli.completion import candidates
from vlm_merging.cli.files import write_table
from vlm_merging.cli.main import told_fault
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.plan import plan
from vlm_merging.merging.recipe import Recipe

PROGRAM = [sys.executable, '-m', 'vlm_merging']
PACKAGE = Path(__file__).parent.parent/'vlm_merging'


def ended(*argv, env={}, **kw):
    "The finished process of a command line"
    return subprocess.run([*PROGRAM, *map(str, argv)], env=os.environ|env, timeout=200, **kw)

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "Replies about a place that ASCII cannot spell"
    path = tmp_path_factory.mktemp('t')/'Größe.csv'
    rows = [dict(benchmark='b', run='Zoë', index=str(i), question='Wie groß? 大', answer='7', prediction='7',
                 category='Ärger') for i in range(12)]
    pl.DataFrame(rows).write_csv(path)
    return path


@pytest.mark.parametrize('command', ['', 'merge', 'score'])
def test_help_does_not_hang_on_docstrings(command):
    "`python -OO` has none"
    plain, bare = (ended(*command.split(), '--help', env=env, capture_output=True, text=True).stdout
                   for env in ({}, dict(PYTHONOPTIMIZE='2')))
    assert plain==bare and 'None' not in plain.splitlines()[2]


# --- Ctrl-C

STAGED = '''import os, signal, sys
module, converted = sys.argv[1:3]
class Finder:
    "Presses Ctrl-C while a module is imported"
    def find_spec(self, name, *_):
        if name!=module: return
        sys.meta_path.remove(self)
        try: os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if converted=='no': raise
            raise ImportError('a library turns it into this')
sys.meta_path.insert(0, Finder())
sys.argv[1:] = sys.argv[3:]
from vlm_merging.__main__ import program
program()'''

@pytest.mark.parametrize('converted', ['no', 'yes'])
@pytest.mark.parametrize('module', ['vlm_merging.cli.main', 'argparse', 'numpy', 'vlm_merging.merging.plan'])
def test_ctrl_c_while_something_is_imported(module, converted):
    argv = [sys.executable, '-c', STAGED, module, converted, 'plan', 'lab/vlm', 'lab/llm']
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode==130, done.stderr
    assert done.stderr=='vlm-merging: stopped. The same command goes on from here.\n' and not done.stdout

@pytest.mark.parametrize('module', ['vlm_merging.cli.process', 'vlm_merging.cli'])
def test_ctrl_c_before_there_is_anything_to_say(module):
    argv = [sys.executable, '-c', STAGED, module, 'no', 'plan', 'lab/vlm', 'lab/llm']
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout+done.stderr)==(-signal.SIGINT, '')      # To a shell that is 130

INSIDE = '''import os, signal, sys
where, name, times = sys.argv[1:4]
from importlib import import_module
import vlm_merging.cli.main
room = import_module(where)
def pressed(*a, **k):
    try: os.kill(os.getpid(), signal.SIGINT)
    finally:
        if times=='2': os.kill(os.getpid(), signal.SIGINT)
setattr(room, name, pressed)
sys.argv[1:] = sys.argv[4:]
from vlm_merging.__main__ import program
program()'''
ASKED = '--benchmark lab -n 4 --max-new-tokens 2'
WORK = {'plan': ('merging.plan', 'check', 'plan lab/vlm lab/llm'),
        'merge': ('merging.merge', 'merge_one', 'merge lab/vlm lab/llm --out OUT'),
        'inspect': ('checkpoints.adapted', 'side_summary', 'inspect lab/vlm'),
        'relayout': ('checkpoints.relayout', 'drafting', 'relayout lab/vlm --to hub --out OUT'),
        'methods': ('cli.merging_commands', 'methods_read', 'methods'),
        'diagnose': ('probing.diagnose', 'weight_stats', 'diagnose lab/vlm lab/llm'),
        'prepare': ('benchmarks.prepare', 'pattern_of', 'prepare MathVista'),
        'ask': ('asking.models', '_generate', f'ask lab/vlm {ASKED} --out OUT'),
        'score': ('scoring.score', 'score', 'score TABLE'),
        'compare': ('comparing.compare', 'compare', 'compare TABLE TABLE'),
        'report': ('cli.report', 'page', 'report TABLE TABLE --out OUT.html'),
        'agreement': ('comparing.agreement', 'agreement', 'agreement TABLE --with TABLE'),
        'profile': ('probing.probe', 'probe_part', f'profile lab/vlm {ASKED} --out OUT'),
        'sweep': ('probing.sweep', '_ask_all', f'sweep lab/vlm lab/llm --weights .5,.6 {ASKED} --out OUT')}

TWICE = 'plan', 'merge', 'ask'
@pytest.mark.parametrize('command,times', [*((c, '1') for c in WORK), *((c, '2') for c in TWICE)])
def test_ctrl_c_in_the_middle_of_each_verb(command, times, table, tmp_path):
    where, name, line = WORK[command]
    words = [w.replace('OUT', str(tmp_path/'out')).replace('TABLE', str(table)) for w in line.split()]
    argv = [sys.executable, '-c', INSIDE, f'vlm_merging.{where}', name, times, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.returncode==130, done.stderr
    assert 'Traceback' not in done.stderr and done.stderr.count('stopped. The same command goes on')==1
    if command=='merge': assert not (tmp_path/'out').exists()

def test_every_verb_was_stopped():
    assert COMMANDS.keys()-WORK.keys()=={'demo', 'completion', 'power'} # test_demo.py has the first

def test_after_ctrl_c_the_same_command_goes_on(tmp_path):
    words = f'ask lab/vlm {ASKED} --out {tmp_path}/run'.split()
    argv = [sys.executable, '-c', INSIDE, 'vlm_merging.asking.models', '_generate', '1', *words]
    assert subprocess.run(argv, capture_output=True, timeout=200).returncode==130
    assert ended(*words, capture_output=True).returncode==0

def test_ctrl_c_is_left_alone_where_it_was_ignored():
    "As for a job in the background of a script"
    code = "import signal, os; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv({!r}, {!r})"
    argv = [sys.executable, '-c', INSIDE, *'vlm_merging.merging.plan check 1 plan lab/vlm lab/llm'.split()]
    argv = [sys.executable, '-c', code.format(sys.executable, argv)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode!=130 and 'stopped' not in done.stderr


# --- Readers that leave

def unread(*argv, stream='stdout'):
    "A process whose reader has left before the first letter"
    read, write = os.pipe()
    os.close(read)
    other = dict(stdout='stderr', stderr='stdout')[stream]
    done = ended(*argv, **{stream:write, other:subprocess.PIPE}, text=True)
    os.close(write)
    return done.returncode, getattr(done, other)

VERBS = ['methods', '--help', 'plan --help', 'inspect lab/vlm', 'plan lab/vlm lab/llm', 'prepare',
         'completion']

@pytest.mark.parametrize('line', VERBS)
def test_a_reader_that_left(line):
    assert unread(*line.split())==(141, '')
    assert unread(*line.split(), stream='stderr')[0]==0

def test_the_work_is_done_whoever_reads(table, tmp_path):
    assert unread('merge', 'lab/vlm', 'lab/llm', '--out', tmp_path/'m')[0]==141
    assert {p.name for p in tmp_path.iterdir()}=={'m'} and Recipe.read(tmp_path/'m').method=='linear'
    line = f'sweep lab/vlm lab/llm --weights .5,.6 {ASKED} --out {tmp_path}/s'
    code, err = unread(*line.split())
    assert code==141 and 'Traceback' not in err and (tmp_path/'s'/'sweep.parquet').is_file()
    assert unread('merge', 'lab/vlm', 'lab/llm', '--out', tmp_path/'m')[0]==3      # A refusal stays one

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full')
@pytest.mark.parametrize('line', VERBS)
def test_a_full_disk_behind_the_output(line):
    with open('/dev/full', 'w') as full:
        done = ended(*line.split(), stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode==1
        assert done.stderr=='vlm-merging: the output could not be written: No space left on device.\n'
        assert ended(*line.split(), stdout=subprocess.PIPE, stderr=full).returncode==0

@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&- <&-'])
def test_streams_that_are_closed(closed, table, tmp_path):
    "What is opened next must not be given the number of the output, and be printed into"
    lines = [f'merge lab/vlm lab/llm --out {tmp_path}/m', f'score {table} --out {tmp_path}/s.jsonl',
             'merge lab/vlm nowhere --out n']
    for line, code in zip(lines, (0, 0, 3)):
        whole = f'{" ".join(PROGRAM)} {line} {closed}'
        done = subprocess.run(whole, shell=True, capture_output=True, cwd=tmp_path)
        assert done.returncode==code, (line, done.stderr)
        assert '2>&-' not in closed or not done.stdout or b'vlm-merging:' not in done.stdout
    assert pl.read_ndjson(tmp_path/'s.jsonl').height==12
    assert Checkpoint.open(tmp_path/'m').tensors.keys()==Checkpoint.open('lab/vlm').tensors.keys()


# --- Terminals of few letters

@pytest.mark.parametrize('env', [dict(PYTHONIOENCODING='ascii'), dict(PYTHONIOENCODING='latin-1')],
                         ids=str)
def test_a_terminal_of_few_letters(env, table, tmp_path):
    lines = [f'score {table} --out {tmp_path}/b.csv', f'compare {table} {tmp_path}/b.csv --by category',
             f'ask lab/vlm {ASKED} --run Zoë --out {tmp_path}/run', 'methods größe', f'inspect {tmp_path}/ö',
             f'ask lab/vlm --benchmark {table} --out {tmp_path}/o --max-new-tokens 2', 'plan --wé']
    for line, code in zip(lines, (0, 0, 0, 3, 3, 0, 2)):
        done = ended(*line.split(), env=env, capture_output=True)
        assert done.returncode==code and b'Traceback' not in done.stderr, (line, done.stderr)
    first = (tmp_path/'run'/'replies.jsonl').read_text(encoding='utf-8').splitlines()[0]
    assert json.loads(first)['run']=='Zoë'

def test_text_is_read_and_written_as_utf_8():
    "Wherever a file is opened as text, its encoding stands beside"
    bare = []
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.Call): continue
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            mode = next((k.value for k in node.keywords if k.arg=='mode'), None)
            opens = name=='open' and isinstance(node.func, ast.Name) or name=='fdopen'
            if opens and len(node.args)>1: mode = node.args[1]
            binary = isinstance(mode, ast.Constant) and 'b' in mode.value
            words = {k.arg for k in node.keywords}
            text = name in ('run', 'Popen') and {'text', 'universal_newlines'} & words
            if name in ('read_text', 'write_text') or text or opens and not binary:
                if 'encoding' not in words: bare.append(f'{path.name}:{node.lineno}')
    assert not bare

def test_what_is_written_in_one_locale_is_read_in_another(tmp_path):
    "A recipe that names a folder with an umlaut"
    made = tmp_path/'r.json'
    Recipe('mödel', 'l').write(made)
    env = dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    code = f'from vlm_merging import Recipe; Recipe.read({str(made)!r}).write({str(tmp_path/"two")!r})'
    subprocess.run([sys.executable, '-c', code], env=os.environ|env, check=True)
    assert Recipe.read(tmp_path/'two')==Recipe('mödel', 'l')


# --- Paths

def test_a_home_is_meant_everywhere(call, table, tmp_path, monkeypatch):
    home = tmp_path/'home'
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(tmp_path)
    (home/'t.csv').write_bytes(table.read_bytes())
    for line in ('merge lab/vlm lab/llm --out ~/m', 'plan --recipe ~/m', 'inspect ~/m',
                 'score ~/t.csv --out ~/s.csv',
                 f'ask ~/m {ASKED} --out ~/run', 'score ~/run --out ~/r.parquet',
                 'compare ~/t.csv ~/s.csv --out ~/c.csv --chart ~/c.html',
                 'ask ~/m --benchmark ~/t.csv --out ~/run2',
                 'diagnose ~/m lab/llm --out ~/d.parquet --chart ~/d.html',
                 f'profile ~/m {ASKED} --parts layer --diagnosis ~/d.parquet --out ~/p --chart ~/p.svg',
                 f'sweep ~/m lab/llm --weights .5,.6 {ASKED} --out ~/w --chart ~/w.html'):
        code, out, err = call(*line.split())
        assert code==0, (line, err)
    assert [p.name for p in tmp_path.iterdir()]==['home'] and not any('~' in p.name for p in home.rglob('*'))
    assert {'m', 's.csv', 'run', 'r.parquet', 'c.csv', 'c.html', 'd.parquet', 'd.html', 'p', 'p.svg', 'w',
            'w.html'}<={p.name for p in home.iterdir()}

def test_one_mechanism_reads_paths():
    other = [p.name for p in PACKAGE.rglob('*.py') if 'expanduser' in p.read_text(encoding='utf-8')]
    assert other==['places.py']

def test_addresses_of_a_file_manager(call, table, tmp_path):
    odd = tmp_path/'my runs'
    odd.mkdir()
    (odd/'t 1.csv').write_bytes(table.read_bytes())
    address = (odd/'t 1.csv').as_uri()
    assert call('score', address)[0]==0 and call('inspect', (lab_folder()/'vlm').as_uri())[0]==0
    assert as_picture(address).source==odd/'t 1.csv'
    for name in (f'{odd}/run/', (odd/'run').as_uri()):
        code, out, err = call('ask', 'lab/vlm', *ASKED.split(), '--out', name)
        assert code==0 and f"score '{odd}/run' --out '{odd}/run.parquet'" in out, err

@pytest.mark.parametrize('line', [
    'score NAME', 'inspect NAME', 'plan NAME lab/llm', 'merge lab/vlm lab/llm --out NAME',
    'plan --recipe NAME', 'ask lab/vlm --benchmark NAME --out x', f'ask lab/vlm {ASKED} --out NAME',
    'compare NAME NAME', 'diagnose lab/vlm lab/llm --out NAME'])
def test_a_name_that_is_no_text(line, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsencode(tmp_path)+b'/caf\xe9'
    code, out, err = call(*(os.fsdecode(name) if w=='NAME' else w for w in line.split()))
    assert code in (2, 3) and not out and 'that are no text' in err
    assert not [*tmp_path.iterdir()]


# --- Numbers and ranges

@pytest.mark.parametrize('line', ['plan lab/vlm lab/llm --weight 0,1', 'plan lab/vlm lab/llm --weight 0,85',
                                  'merge lab/vlm lab/llm --out x --weight 1,0,1', 'demo --weight 0,5',
                                  f'sweep lab/vlm lab/llm --weights 0,5 {ASKED} --out x',
                                  f'ask lab/vlm {ASKED} --out x --temperature 0,7',
                                  f'sweep lab/vlm lab/llm --weights 0.5 --knobs density=0,5 {ASKED} --out x'])
def test_a_decimal_comma(line, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*line.split())
    assert code in (2, 3) and not out and not [*tmp_path.iterdir()]
    assert 'may be' in err or 'Did you mean 0.' in err

@pytest.mark.parametrize('words', [
    ['-n', '9'*25], ['-n', '1e5'], ['--temperature', 'nan'], ['--max-new-tokens', '1,5'],
    ['--temperature', 'inf']])
def test_numbers_that_cannot_be_meant(words, call):
    code, out, err = call('ask', 'lab/vlm', '--benchmark', 'lab', '--out', 'x', *words)
    assert code==2 and not out and 'Traceback' not in err and ' int ' not in err and 'float' not in err

@pytest.mark.parametrize('words,said', [
    ('--layers 31-6', '31-6 runs backwards. Write 6-31.'), ('--layers -3', 'counted from 0'),
    ('--layers 0-3,', "cannot be read at ''"), ('--layers 6-31', '31 is not within the layers 0-7'),
    ('--layers 99-', '98 is not within'),
    ('--layers 99999999999', 'cannot be read'), ('--layers all,3', "at 'all'"),
    ('--layer-swap 99', '--layer-swap 99: what is behind 99 is not within the layers 0-7 of this'),
    ('--layer-swap -2', '--layer-swap is -2; the least is 0')])
@pytest.mark.parametrize('command', ['plan', 'merge'])
def test_ranges(command, words, said, call, tmp_path):
    out = ['--out', tmp_path/'out'] if command=='merge' else []
    code, printed, err = call(command, 'lab/vlm', 'lab/llm', *out, *words.split())
    assert code==3 and said in err and '100-' not in err and err.count('\n')==1 and not [*tmp_path.iterdir()]

def test_a_range_is_read_once(monkeypatch):
    "However many tensors there are"
    from vlm_merging.merging import recipe
    recipe.layer_ranges.cache_clear(); recipe.layer_set.cache_clear()
    seen, real = [], recipe._range
    monkeypatch.setattr(recipe, '_range', lambda *a: seen.append(a) or real(*a))
    plan('lab/vlm', 'lab/llm', layers='0-1,3,5-6')
    assert len(seen)==3

MANY = 1_000_000
@pytest.mark.parametrize('field', [
    dict(layers=','.join(['1']*MANY)), dict(modules=','.join(['mlp']*MANY)), dict(weight=[.5]*MANY),
    dict(method='x'*MANY), dict(vlm='x'*MANY)], ids=lambda o: next(iter(o)))
def test_a_recipe_of_megabytes_is_a_sentence(field, call, tmp_path):
    whole = dict(vlm='lab/vlm', llm='lab/llm')|{k:v for k, v in field.items() if k!='weight'}
    if 'weight' in field: whole['knobs'] = field
    (tmp_path/'r.json').write_text(json.dumps(whole))
    code, out, err = call('plan', '--recipe', tmp_path/'r.json')
    assert code==3 and not out and len(err)<400


# --- The same model twice

@pytest.fixture
def spelled(tmp_path, monkeypatch):
    "Other names of the lab's models"
    (tmp_path/'link').symlink_to(lab_folder()/'vlm')
    monkeypatch.chdir(tmp_path)
    return [os.path.relpath(lab_folder()/'vlm'), 'link/', 'lab/vlm', (lab_folder()/'vlm').as_uri()]

def test_one_model_twice(spelled, call, tmp_path):
    for other in spelled:
        assert 'VLM and LLM are the same files' in call('plan', 'lab/vlm', other)[1]
        assert 'VLM and base are the same files' in call('plan', 'lab/vlm', 'lab/llm', other)[1]
        assert 'are the same files' in call('diagnose', other, 'lab/vlm')[1]
        code, _, err = call('profile', 'lab/vlm', '--against', other, *ASKED.split(), '--out', 'p')
        assert code==3 and 'which is the model itself' in err
    code, _, err = call('merge', 'lab/vlm', spelled[0], '--out', 'm')
    assert code==0 and 'are the same files' in err
    err = call('sweep', 'lab/vlm', spelled[0], '--weights', '.5', *ASKED.split(), '--out', 's')[2]
    assert err.count('are the same files')==1
    assert 'same files' not in call('plan', 'lab/vlm', 'lab/llm', 'lab/base')[1]

def test_a_run_is_compared_with_itself(table, call, tmp_path):
    (tmp_path/'same.csv').symlink_to(table)
    assert 'compared with itself' in call('compare', table, tmp_path/'same.csv')[2]
    (tmp_path/'copy.csv').write_bytes(table.read_bytes())
    assert 'itself' not in call('compare', table, tmp_path/'copy.csv')[2]


# --- Errors of the machine, completion

@pytest.mark.parametrize('fault,said', [
    (OSError(errno.EIO, 'Input/output error', 'in.parquet'), 'in.parquet cannot be read'),
    (PermissionError(errno.EACCES, 'Permission denied', 'runs/a/t.jsonl'), 't.jsonl cannot be written'),
    (PermissionError(errno.EACCES, 'Permission denied', 'runs/.a.draft/x'), '.a.draft/x cannot be written'),
    (PermissionError(errno.EACCES, 'Permission denied', 'runs/b/x'), 'b/x cannot be read'),
    (OSError(errno.EROFS, 'Read-only file system', 'in'), 'in cannot be written'),
    (MemoryError(), 'not enough memory')], ids=str)
def test_reading_and_writing_are_told_apart(fault, said):
    told, code = told_fault(fault, dict(out='runs/a'))
    assert code==1 and said in told and told_fault(TypeError('x'), {}) is None

@pytest.mark.parametrize('line,words', [
    ('vlm-merging ', [*COMMANDS]), ('vlm-merging pl', ['plan']), ('vlm-merging plan --wei', ['--weight']),
    ('vlm-merging plan a b --method ti', ['ties']), ('vlm-merging ask --out ', []),
    ('vlm-merging nothing --x', []),
    ('vlm-merging profile --how sk', ['skip']), ('vlm-merging completion --h', [])])
def test_completion(line, words): assert candidates(line)==words

def test_completion_as_bash_asks(tmp_path):
    env = dict(COMP_LINE='vlm-merging merge --over', COMP_POINT='24')
    done = ended('completion', 'vlm-merging', '--over', 'merge', env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout)==(0, '--overwrite\n')
    assert 'complete -o default' in ended('completion', capture_output=True, text=True).stdout


# --- What is read stays

@pytest.mark.parametrize('argv', ['score {t} --out {t}', 'score {run} --out {run}/replies.jsonl',
                                  'compare {t} {u} --out {u}', 'score {t} --out {run}/new.jsonl',
                                  'score {link} --out {t}'])
def test_no_input_is_written_over(argv, tmp_path, call):
    run = tmp_path/'run'
    ask(lambda item: '7', [Item(str(i), 'How many?', '7') for i in range(3)], run, 'r')
    t, u, link = (tmp_path/f'{n}.csv' for n in 'tul')
    for p in t, u: write_table(replies(run), p)
    link.symlink_to(t)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    code, out, err = call(*argv.format(t=t, u=u, run=run, link=link).split())
    assert code==3 and not out and ('stays as it is' in err or 'is a run' in err)
    assert before=={p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert call('score', run, '--out', run/'scores.parquet')[0]==0
