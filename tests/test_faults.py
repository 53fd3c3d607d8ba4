"What goes wrong ends in one sentence, leaves inputs alone and nothing half-done; the same command goes on"
import cProfile, contextlib, errno, hashlib, io, json, multiprocessing, os, random, re
import shutil, signal, subprocess, sys, threading, time, warnings
from pathlib import Path

import pytest
import torch
from conftest import patched
from safetensors.torch import load, save_file
from vlm_merging.merging import merge as room
from vlm_merging.checkpoints import writer as writer
from vlm_merging.checkpoints.headers import Checkpoint, read_header
from vlm_merging.cli.main import main
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.merging.methods import METHODS
from vlm_merging.merging.recipe import Recipe

TEXT = dict(model_type='llama', hidden_size=16, num_hidden_layers=3, num_attention_heads=2, rope_theta=1e4)
CONFIGS = dict(vlm=dict(model_type='llava', text_config=TEXT), llm=TEXT, base=TEXT)
STEMS = dict(vlm='language_model.model.', llm='model.', base='model.')
UP = 'layers.1.mlp.up_proj.weight'                     # The tensor to which things happen


# Three small models

def decoder(stem, seed, dtype=torch.bfloat16):
    "Tensors of a language model of three layers"
    rng = torch.Generator().manual_seed(seed)
    sizes = {f'layers.{i}.{n}.weight': s for i in range(3) for n, s in {'self_attn.q_proj': (16, 16),
             'mlp.up_proj': (64, 16), 'mlp.down_proj': (16, 64), 'input_layernorm': (16,)}.items()}
    sizes |= {'embed_tokens.weight': (40, 16), 'norm.weight': (16,)}
    return {stem+n: torch.randn(s, generator=rng).to(dtype) for n, s in sizes.items()}

def write(folder, state, config, shards=1):
    "A checkpoint folder"
    folder.mkdir(parents=True)
    names = [f'model-{i+1:05}-of-{shards:05}.safetensors' for i in range(shards)]
    where = {n: names[i*shards//len(state)] for i, n in enumerate(state)}
    if shards==1: save_file(state, folder/'model.safetensors', {'format': 'pt'})
    else:
        for f in names: save_file({n: x for n, x in state.items() if where[n]==f}, folder/f, {'format': 'pt'})
        (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=where)))
    (folder/'config.json').write_text(json.dumps(config))
    return folder

def write_trio(tmp, shards=1, dtype=torch.bfloat16):
    "A VLM with side files, an LLM and their base, in `tmp/in`; gives a recipe"
    base = decoder('', 0, dtype)
    for seed, who in enumerate(STEMS, 1):
        away = decoder('', seed)
        near = {STEMS[who]+n: x if who=='base' else (x+.1*away[n]).to(dtype) for n, x in base.items()}
        if who=='vlm': near = {f'vision.{i}.w': torch.full((9, 9), i).to(dtype) for i in range(3)} | near
        write(tmp/'in'/who, near, CONFIGS[who], shards)
    for f in 'chat_template.jinja', 'generation_config.json', 'code/modeling.py':
        (tmp/'in'/'vlm'/f).parent.mkdir(exist_ok=True)
        (tmp/'in'/'vlm'/f).write_text('{}')
    return Recipe(tmp/'in'/'vlm', tmp/'in'/'llm', tmp/'in'/'base', method='dare_ties', knobs=dict(density=.5))

def files(folder):
    "What is in a folder: hash by name"
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob('*')) if p.is_file()}

def load_file(path): return load(path.read_bytes())         # no map of a file that is about to change

def names(folder):
    "What is in a folder, but for the lock of a target: a killed process leaves it, without a lock on it"
    return {p.name for p in folder.iterdir()}-{'.out.lock'}

def a_sentence(text):
    "Is this what a person can read and act on?"
    assert '\n' not in text and text.endswith('.') and len(text.split())>5, text
    assert not re.search(r'Traceback|Error\(|errno|<class', text), text
    return text

def refused(recipe, out, match, left=(), **how):
    "Call and command line refuse the merge alike; nothing but `left` is left, nothing was touched"
    around = names(out.parent)|{*left}
    inputs = {w: files(Path(w)) for w in (recipe.vlm, recipe.llm, recipe.base) if w}
    with pytest.raises(ValueError, match=match) as e: merge(recipe, out=out, **how)
    a_sentence(str(e.value))
    recipe.write(card := out.parent.parent/'recipe.json')
    flags = ['--overwrite'] if how.get('overwrite') else []
    code, said = shell('merge', '--recipe', card, '--out', out, *flags)
    assert code==3 and re.search(match, said), said
    a_sentence(said.splitlines()[-1])
    assert names(out.parent)==around, 'something was left behind'
    assert {w: files(Path(w)) for w in inputs}==inputs, 'an input was touched'

def shell(*argv):
    "Exit code and what was printed to stderr"
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said): code = main(argv)
    return code, said.getvalue().strip()

@pytest.fixture
def out(tmp_path):
    "Where the result goes, with nothing beside it"
    (tmp_path/'there').mkdir()
    return tmp_path/'there'/'out'

@pytest.fixture(scope='module')
def sharded(tmp_path_factory):
    "A recipe for three shards, and what an undisturbed merge makes of it"
    tmp = tmp_path_factory.mktemp('sharded')
    recipe = write_trio(tmp, shards=3)
    before = files(tmp/'in')
    (tmp/'there').mkdir()
    right = files(merge(recipe, out=tmp/'there'/'out'))
    assert len(right)==3+1+1+3+2       # shards, index, configuration, side files, recipe and card
    yield recipe, right
    assert files(tmp/'in')==before, 'an input was touched'


# Trouble at a chosen call

CALLS = 'pwrite copy_file_range fsync ftruncate rename replace unlink mkdir rmdir open'.split()

@contextlib.contextmanager
def watched(act, calls=CALLS):
    "`act(count, name, call, args)` is called before each call that changes the disk; gives their names"
    seen, lock = [], threading.Lock()
    def wrap(name, call):
        def wrapped(*args, **kw):
            with lock: seen.append(name); n = len(seen)
            act(n, name, call, args)
            return call(*args, **kw)
        return wrapped
    def opens(path, flags, *args, **kw):
        writes = 'open' in calls and flags&(os.O_WRONLY|os.O_RDWR)
        return (made if writes else os_open)(path, flags, *args, **kw)
    os_open, made = os.open, wrap('open', os.open)
    new = {n: wrap(n, getattr(os, n)) for n in calls if n!='open' and hasattr(os, n)}
    with patched(os, open=opens, **new): yield seen

def calm(*_): pass

def calls_of(recipe, out):
    "How many calls that change the disk a whole merge makes"
    with watched(calm) as seen: merge(recipe, out=out)
    shutil.rmtree(out)
    return len(seen)

def pieces(draft): return sum(map(len, writer.journal_of(draft/'.journal').values()))

def kept_in(draft, total):
    "How many pieces a draft holds: what is noted, or all once it is whole and the notes are gone"
    if (draft/'README.md').exists() and not (draft/'.journal').exists(): return total
    return pieces(draft) if draft.exists() else 0

def resumed(recipe, out, **how):
    "Merge; gives how many pieces were made now"
    made, done = [], writer.Shard.done
    with patched(writer.Shard, done=lambda self, *args: (made.append(args), done(self, *args))[1]):
        merge(recipe, out=out, **how)
    return len(made)
LEFT = '.out.draft',

@pytest.fixture(autouse=True)
def note_each_piece(monkeypatch): monkeypatch.setattr(writer, 'FLUSH', 1)


# Another process, which can be killed

context = multiprocessing.get_context('forkserver' if sys.platform=='linux' else 'spawn')
context.set_forkserver_preload(['vlm_merging.merging.merge', 'vlm_merging.cli.main', 'pytest',
                                'safetensors.torch'])

def child(recipe, out, act, by=merge):
    "Merge in a process of its own, in which `act` looks on"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    writer.FLUSH = 1
    torch.set_num_threads(1)
    listdir = os.listdir                               # in the order that is worst for what marks a draft
    with watched(act), patched(os, listdir=lambda *args: sorted(listdir(*args))):
        if by is main: sys.exit(main(['merge', '--recipe', str(recipe), '--out', str(out)]))
        try: merge(recipe, out=out)
        except ValueError: sys.exit(3)

def start(*args):
    process = context.Process(target=child, args=args)
    process.start()
    return process

class Slow:
    "Each call that changes the disk takes its time"
    def __init__(self, seconds): self.seconds = seconds
    def __call__(self, *_): time.sleep(self.seconds)

class Die:
    "Kill this process at its n-th call; a write is half done then"
    def __init__(self, n): self.n = n
    def __call__(self, n, name, call, args):
        if n!=self.n: return
        if name=='pwrite': call(args[0], args[1][:len(args[1])//2], args[2])
        if name=='open':
            with contextlib.suppress(FileExistsError): call(*args)
        os.kill(os.getpid(), signal.SIGKILL)

def wait_for(path, process):
    while not path.exists() and process.is_alive(): time.sleep(.002)


# Killed

def test_killed_at_twenty_moments(sharded, out):
    (recipe, right), rng, draft = sharded, random.Random(0), out.with_name('.out.draft')
    total, inside, saved = resumed(recipe, out.with_name('again')), 0, 0
    for _ in range(20):
        process, moment = start(recipe, out, Slow(.004)), rng.random()*total
        wait_for(draft, process)
        while process.is_alive() and draft.exists() and pieces(draft)<moment: time.sleep(.002)
        time.sleep(rng.uniform(0, .01))
        process.kill()
        process.join()
        assert names(out.parent) in ({'out', 'again'}, {'.out.draft', 'again'})
        if not out.exists():
            before, keyed = pieces(draft), (draft/'.key').exists()
            made = resumed(recipe, out)
            inside += process.exitcode==-signal.SIGKILL and 0<before<total
            saved += total-made
            assert made==total-before or not keyed, 'a finished piece was made again'
        assert files(out)==right and names(out.parent)=={'out', 'again'}
        shutil.rmtree(out)
    assert inside>=10 and saved>inside, (inside, saved)

def test_killed_at_any_call(sharded, out):
    recipe, right = sharded
    for n in range(1, calls_of(recipe, out)+1, 6):
        process = start(recipe, out, Die(n))
        process.join()
        assert process.exitcode==-signal.SIGKILL and names(out.parent)<={'out', '.out.draft'}, n
        assert not out.exists() or files(out)==right
        if not out.exists(): merge(recipe, out=out)
        assert files(out)==right and names(out.parent)=={'out'}, n
        shutil.rmtree(out)

def test_the_lock_of_a_target_goes_with_the_work(sharded, tmp_path, out):
    def stop(*_): raise KeyboardInterrupt
    with patched(room, copy_sides=stop), pytest.raises(KeyboardInterrupt): merge(sharded[0], out=out)
    assert [p.name for p in out.parent.iterdir()]==['.out.draft']
    process = start(sharded[0], out, Die(9))
    process.join()
    assert (out.parent/'.out.lock').exists()
    merge(sharded[0], out=out)
    assert [p.name for p in out.parent.iterdir()]==['out']

def test_killed_again_and_again(sharded, out):
    "Each run adds to the same draft, until it is whole"
    (recipe, right), draft, held = sharded, out.with_name('.out.draft'), []
    for _ in range(40):
        start(recipe, out, Die(50)).join()
        if out.exists(): break
        held.append(pieces(draft))
    assert files(out)==right and held==sorted(held) and len(set(held))>2, held

@pytest.mark.parametrize('harm', [Path.unlink, lambda p: os.truncate(p, 100), lambda p: p.write_bytes(b'')])
def test_a_draft_that_lost_what_it_notes_as_finished(sharded, out, harm):
    (recipe, right), draft = sharded, out.with_name('.out.draft')
    start(recipe, out, Die(45)).join()
    assert pieces(draft)>0
    harm(next(draft.glob('*.part')))
    merge(recipe, out=out)
    assert files(out)==right and names(out.parent)=={'out'}

def test_a_draft_of_another_recipe_or_input_is_not_continued(sharded, tmp_path, out):
    recipe = write_trio(tmp_path)
    process = start(recipe, out, Die(30))
    process.join()
    assert pieces(out.with_name('.out.draft'))>0
    with open(Path(recipe.llm)/'model.safetensors', 'r+b') as f: f.seek(-4, 2); f.write(b'\0\x3f\0\x3f')
    total = resumed(recipe, tmp_path/'fresh')
    assert resumed(recipe, out)==total
    (tmp_path/'fresh'/'README.md').write_bytes((out/'README.md').read_bytes())         # it says its name
    assert files(out)==files(tmp_path/'fresh')
    assert names(out.parent)=={'out'}


def test_killed_while_a_draft_is_started_over(tmp_path, out):
    "The draft of another recipe is taken away; whatever is left of it then is still known as a draft"
    recipe = write_trio(tmp_path)
    other = Recipe(recipe.vlm, recipe.llm, knobs=dict(weight=.3))
    right = files(merge(other, out=out))
    for n in range(1, 10):
        shutil.rmtree(out)
        for how, k in (recipe, 28), (other, n): start(how, out, Die(k)).join()
        assert not out.exists(), n
        merge(other, out=out)
        assert files(out)==right and names(out.parent)=={'out'}, n

def test_killed_while_a_refused_draft_is_taken_away(tmp_path, out):
    "An input changes meanwhile, so that nothing of the draft can be used"
    recipe, ends = write_trio(tmp_path), set()
    path = Path(recipe.llm)/'model.safetensors'
    with watched(Touch(path)) as seen, pytest.raises(ValueError, match='changed while'):
        merge(recipe, out=out)
    for n in range(len(seen)-8, len(seen)+1):
        process = start(recipe, out, Touch(path, n))
        process.join()
        ends.add(process.exitcode)
        with watched(Touch(path)), pytest.raises(ValueError, match='changed while'): merge(recipe, out=out)
        assert not names(out.parent), n
    assert -signal.SIGKILL in ends

class Touch:
    "An input is touched at the 30th call; perhaps this process is killed at a later one"
    def __init__(self, path, n=0): self.path, self.die = path, Die(n)
    def __call__(self, n, *args):
        if n==30: os.utime(self.path)
        self.die(n, *args)


# Stopped by hand

def test_ctrl_c(sharded, tmp_path, out):
    (recipe, right), draft = sharded, out.with_name('.out.draft')
    recipe.write(tmp_path/'recipe.json')
    process = start(tmp_path/'recipe.json', out, Slow(.01), main)
    wait_for(draft/'.journal', process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode==130 and names(out.parent)=={'.out.draft'}
    before, code = pieces(draft), shell('merge', '--recipe', tmp_path/'recipe.json', '--out', out)[0]
    assert before>0 and code==0 and files(out)==right and names(out.parent)=={'out'}

def test_stopped_at_any_call(sharded, out):
    "At each step: a piece, a shard, the index, a side file, the recipe, the card, the last rename"
    recipe, right = sharded
    def stop_at(k):
        def act(n, *_):
            if n==k: raise KeyboardInterrupt
        return act
    for k in range(1, calls_of(recipe, out)+1, 4):
        with watched(stop_at(k)) as seen, contextlib.suppress(KeyboardInterrupt): merge(recipe, out=out)
        assert len(seen)>=k and names(out.parent)<={'out', '.out.draft'}, seen[-1]
        assert not out.exists() or files(out)==right, 'half of a result has its name'
        if not out.exists(): merge(recipe, out=out)
        assert files(out)==right and names(out.parent)=={'out'}, seen[-1]
        shutil.rmtree(out)

@pytest.mark.parametrize('step', ['copy_sides', 'replace_text', '_publish'])
def test_stopped_at_a_step(sharded, out, step):
    (recipe, right), where = sharded, writer if step=='_publish' else room
    call = getattr(where, step)
    def stop(path, *more):
        if Path(path).suffix=='.json' and Path(path).stem!='recipe': return call(path, *more)   # the index
        raise KeyboardInterrupt
    with patched(where, **{step: stop}), pytest.raises(KeyboardInterrupt): merge(recipe, out=out)
    assert names(out.parent)=={'.out.draft'}
    assert resumed(recipe, out)==0, 'a finished piece was made again'
    assert files(out)==right and names(out.parent)=={'out'}


# No room

FILLED = 'pwrite', 'copy_file_range', 'fsync', 'mkdir', 'open'

def test_the_disk_is_full_from_any_call_on(sharded, tmp_path, out):
    (recipe, right), draft = sharded, out.with_name('.out.draft')
    with watched(calm, FILLED) as seen: total = resumed(recipe, out)
    shutil.rmtree(out)
    recipe.write(tmp_path/'recipe.json')
    def full_from(k):
        def act(n, name, call, args):
            if n>=k: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act
    for k in [*range(1, len(seen)-15, 4), *range(len(seen)-15, len(seen)+1)]:
        with watched(full_from(k), FILLED):
            code, said = shell('merge', '--recipe', tmp_path/'recipe.json', '--out', out)
        assert code==1 and 'No space left on device' in said and said.startswith('vlm-merging: '), (k, said)
        if out.exists():                               # The very last flush
            assert 'is whole, but a power cut may lose it' in said and files(out)==right
            shutil.rmtree(out)
            continue
        assert '\n' not in said and names(out.parent)<={'.out.draft'}, (k, said)
        if k>1: assert 'make room and run the same again' in said and str(draft) in said, (k, said)
        kept = kept_in(draft, total)
        assert resumed(recipe, out)==total-kept, f'{k}: a finished piece was made again'
        assert files(out)==right and names(out.parent)=={'out'}, k
        shutil.rmtree(out)

@contextlib.contextmanager
def mount(folder, *how):
    "Something mounted at a folder; skips where that is not allowed"
    folder.mkdir(exist_ok=True)
    if sys.platform!='linux' or os.geteuid(): pytest.skip('needs the right to mount')
    done = subprocess.run(['mount', *how, str(folder)], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'cannot mount: {done.stderr.strip()}')
    try: yield folder
    finally: subprocess.run(['umount', str(folder)], check=True)

def test_a_disk_that_fills_up(sharded, tmp_path):
    recipe, right = sharded
    with mount(tmp_path/'small', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs') as small:
        check = room.need_room
        def fill(*args):                               # after the check another program takes what is free
            check(*args)
            (small/'other').write_bytes(bytes(shutil.disk_usage(small).free-16_000))
        with patched(room, need_room=fill), pytest.raises(OSError, match='No space left on device') as e:
            merge(recipe, out=small/'out')
        assert e.value.errno==errno.ENOSPC and 'make room and run the same again' in str(e.value)
        assert names(small)=={'other', '.out.draft'}
        (small/'other').unlink()
        merge(recipe, out=small/'out')
        assert files(small/'out')==right and names(small)=={'out'}
        (small/'other').write_bytes(bytes(shutil.disk_usage(small).free-4000))
        with pytest.raises(ValueError, match='free.*Make room'): merge(recipe, out=small/'out2')
        assert names(small)=={'out', 'other'}

def test_files_may_not_grow(sharded, out):
    "A limit that needs no rights to set: the kernel refuses, and the draft stays"
    recipe, right = sharded
    process = context.Process(target=limited, args=(recipe, out))
    process.start(); process.join()
    assert process.exitcode==27 and names(out.parent)=={'.out.draft'}
    merge(recipe, out=out)
    assert files(out)==right

def limited(recipe, out):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try: merge(recipe, out=out)
    except OSError as e: sys.exit(e.errno if 'make room' in str(e) else 1)

def test_room_is_looked_for_before_the_start(sharded, out, monkeypatch):
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    refused(sharded[0], out, 'free.*Make room')


# Damaged inputs

def reheaded(path, change):
    "Write a file's header anew"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], 'little')
    table = json.loads(raw[8:8+n])
    text = change(table)
    head = (json.dumps(table) if text is None else text).encode()
    path.write_bytes(len(head).to_bytes(8, 'little')+head+raw[8+n:])

def of_up(change):
    "Change what a header says of one tensor"
    return lambda p: reheaded(p, lambda table: change(table, next(n for n in table if n.endswith(UP))))

def claim(table, n, **new): table[n] |= new
def moved(a, b):
    def change(table, n):
        first, last = table[n]['data_offsets']
        claim(table, n, data_offsets=[first+a, last+b])
    return of_up(change)
def says(**new): return of_up(lambda table, n: claim(table, n, **new))
gap, twin = of_up(lambda table, n: table.pop(n) and None), of_up(lambda table, n: table.update(twin=table[n]))
twice = of_up(lambda table, n: json.dumps(table)[:-1]+', '+json.dumps({n: table[n]})[1:])
def cut(n): return lambda p: os.truncate(p, n if n>=0 else p.stat().st_size+n)
def grow(p): p.write_bytes(p.read_bytes()+b'\0\0')
def long_header(p): p.write_bytes((2**40).to_bytes(8, 'little')+p.read_bytes()[8:])
def pickled(p): torch.save(load_file(p), p)
def old_pickled(p): torch.save(load_file(p), p, _use_new_zipfile_serialization=False)

DAMAGE = dict(
    one_byte_short=(cut(-1), 'cut off'), half=(cut(4000), 'cut off'), longer=(grow, 'added to'),
    seven_bytes=(cut(7), 'not fit'), empty=(cut(0), 'not fit'), long_header=(long_header, 'not fit'),
    moved=(moved(8, 8), 'gap|overlaps'), beyond=(moved(2**40, 2**40), 'gap|cut off'), gap=(gap, 'gap'),
    backwards=(moved(0, -2**20), 'offsets'), overlap=(twin, 'overlaps'), twice=(twice, 'twice'),
    larger=(says(shape=[64, 17]), 'claims'), other_type=(says(dtype='F32'), 'claims'),
    no_type=(says(dtype='Q4'), 'type'), endless=(says(shape=[2**62]*30), 'claims'),
    pickle=(pickled, 'pickle'), old_pickle=(old_pickled, 'pickle'))

@pytest.mark.parametrize('what', DAMAGE)
def test_damaged_weights(what, tmp_path, out):
    recipe, (damage, match) = write_trio(tmp_path), DAMAGE[what]
    for who in STEMS if what in ('one_byte_short', 'overlap') else [random.Random(what).choice(list(STEMS))]:
        path = tmp_path/'in'/who/'model.safetensors'
        whole = path.read_bytes()
        damage(path)
        refused(recipe, out, f'{re.escape(str(path))}.*({match})')
        path.write_bytes(whole)

def indexed(change):
    "Change an index, as text or as its `weight_map`"
    def act(folder):
        path = folder/'model.safetensors.index.json'
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held) if (text := change(held['weight_map'])) is None else text)
    return act

def named(file): return indexed(lambda where: where.update({list(where)[-1]: file}))
def elsewhere(where): where.update({list(where)[0]: list(where.values())[-1]})
def unknown(where): where['nobody.weight'] = list(where.values())[0]
def repeated(folder):
    first, last = sorted(folder.glob('*.safetensors'))[::2]
    state = load_file(last)
    save_file(state | dict([next(iter(load_file(first).items()))]), last)

PLAIN = 'not a plain'
INDEXES = dict(
    missing=(named('model-9.safetensors'), 'missing'), other_kind=(named('model.gguf'), PLAIN),
    escape=(named('../escape.safetensors'), PLAIN), absolute=(named('/escape.safetensors'), PLAIN),
    hidden=(named('.escape.safetensors'), PLAIN), below=(named('sub/escape.safetensors'), PLAIN),
    dots=(named('..safetensors'), PLAIN), number=(named(5), PLAIN), list=(named([]), PLAIN),
    elsewhere=(indexed(elsewhere), 'index says'), unknown=(indexed(unknown), 'nowhere'),
    repeated=(repeated, 'again in'), no_map=(indexed(lambda where: '{}'), 'weight_map'),
    no_json=(indexed(lambda where: '{"weight_map": '), 'JSON'),
    a_list=(indexed(lambda where: '[]'), 'object'),
    twice=(indexed(lambda where: '{"a": 1, "a": 2}'), 'twice'))

@pytest.mark.parametrize('what', INDEXES)
def test_damaged_indexes(what, tmp_path, out):
    recipe, (damage, match) = write_trio(tmp_path, shards=3), INDEXES[what]
    vlm = tmp_path/'in'/'vlm'
    (vlm/'sub').mkdir()
    for folder in vlm.parent, vlm/'sub':
        shutil.copy(vlm/'model-00001-of-00003.safetensors', folder/'escape.safetensors')
    damage(vlm)
    refused(recipe, out, f'{re.escape(str(vlm))}.*({match})')

def test_folders_that_are_no_checkpoint(tmp_path, out):
    recipe = write_trio(tmp_path)
    llm = Path(recipe.llm)
    (llm/'config.json').rename(tmp_path/'config.json')
    refused(recipe, out, 'no config.json')
    for text in '{', '[]', '{"a": 1, "a": 2}', '\ufeff{}', '['*10**5:
        (llm/'config.json').write_text(text)
        refused(recipe, out, 'config.json cannot be read')
    (llm/'config.json').write_bytes(b'\xff\xfe')
    refused(recipe, out, 'config.json cannot be read')
    shutil.move(tmp_path/'config.json', llm/'config.json')
    (llm/'model.safetensors').unlink()
    refused(recipe, out, 'holds no weights')
    (llm/'adapter_config.json').write_text('{}')
    refused(recipe, out, 'adapter')
    for nobody in tmp_path/'nobody', llm/'config.json', '~nobody/model', 'x'*5000:
        refused_quietly(Recipe(recipe.vlm, nobody), out, 'not a folder')

class Trap:
    "Unpickling this leaves a file behind"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)

@pytest.mark.parametrize('kind', ['zip', 'inside', 'old'])
def test_a_pickle_never_runs(kind, tmp_path, out):
    recipe, trap = write_trio(tmp_path), tmp_path/'sprung'
    llm = Path(recipe.llm)
    state = load_file(llm/'model.safetensors')
    (llm/'model.safetensors').unlink()
    made = state | {'x': Trap(trap)} if kind=='inside' else Trap(trap)
    torch.save(made, llm/'pytorch_model.bin', _use_new_zipfile_serialization=kind!='old')
    refused(recipe, out, re.escape(str(llm/'pytorch_model.bin')))
    shutil.move(llm/'pytorch_model.bin', llm/'model.safetensors')
    refused(recipe, out, re.escape(str(llm/'model.safetensors')))
    assert not trap.exists()
    shutil.copy(llm/'model.safetensors', tmp_path/'copy.bin')
    torch.load(tmp_path/'copy.bin', weights_only=False)
    assert trap.exists(), 'it was no trap'


# Numbers that are none

def poke(folder, name, value, at=7):
    "Write a number into a tensor on disk"
    e = read_header(folder/'model.safetensors')[0][name]
    raw = value.view(torch.uint8).numpy().tobytes()
    with open(e.file, 'r+b') as f: f.seek(e.start+at*len(raw)); f.write(raw)

@pytest.mark.parametrize('who', STEMS)
@pytest.mark.parametrize('method', METHODS)
def test_nan_and_inf_are_named(method, who, tmp_path, out):
    write_trio(tmp_path)
    folders = [tmp_path/'in'/w for w in STEMS]
    recipe, name = Recipe(*folders, method=method), STEMS[who]+UP
    if who=='base' and 'base' not in METHODS[method].fills:
        poke(tmp_path/'in'/who, name, torch.tensor([torch.nan]).bfloat16())
        merge(recipe, out=out)             # not read, so not minded
        return
    at = random.Random(method).randrange(1024)
    for value in torch.nan, torch.inf, -torch.inf:
        warnings.simplefilter('error')                 # and numpy does not grumble besides
        poke(tmp_path/'in'/who, name, torch.tensor([value]).bfloat16(), at)
        refused(recipe, out, f'{re.escape(name)} in .*{who}.*NaN or Inf.*allow[-_]nonfinite.*kept in', LEFT)
    before = pieces(out.with_name('.out.draft'))
    total = resumed(recipe, out.with_name('all'), allow_nonfinite=True)
    assert 0<before==total-resumed(recipe, out, allow_nonfinite=True)
    merged = load_file(out/'model.safetensors')
    assert [n for n, x in merged.items() if not x.isfinite().all()]==[STEMS['vlm']+UP]

def test_numbers_that_do_not_fit(tmp_path, out):
    write_trio(tmp_path, dtype=torch.float16)
    folders = [tmp_path/'in'/w for w in STEMS]
    recipe = Recipe(*folders, method='task_arithmetic', knobs=dict(weight=3.))
    poke(folders[0], STEMS['vlm']+UP, torch.tensor([6e4]).half())
    refused(recipe, out, f'{re.escape(UP)}.*do not fit F16', LEFT)
    merge(recipe, out=out, allow_nonfinite=True)
    x = load_file(out/'model.safetensors')[STEMS['vlm']+UP].flatten()
    assert x[7]==torch.inf and x.isfinite().sum()==len(x)-1

def test_nan_in_what_is_not_merged_travels(tmp_path, out):
    recipe = write_trio(tmp_path)
    poke(Path(recipe.vlm), 'vision.1.w', torch.tensor([torch.nan]).bfloat16())
    merge(recipe, out=out)
    assert load_file(out/'model.safetensors')['vision.1.w'].isnan().sum()==1


# Others at work

def test_two_merges_to_one_target(sharded, out):
    recipe, right = sharded
    first = start(recipe, out, Slow(.01))
    wait_for(out.with_name('.out.draft')/'.key', first)
    for other in recipe, Recipe(recipe.vlm, recipe.llm, knobs=dict(weight=.3)):
        with pytest.raises(ValueError, match='Another merge is writing') as e: merge(other, out=out)
        a_sentence(str(e.value))
    assert first.is_alive()
    first.join()
    assert first.exitcode==0 and files(out)==right and names(out.parent)=={'out'}

def test_many_merges_to_one_target(sharded, out):
    recipe, right = sharded
    all_ = [start(recipe, out, Slow(.002)) for _ in range(5)]
    for p in all_: p.join()
    assert sum(p.exitcode==0 for p in all_)==1 and files(out)==right and names(out.parent)=={'out'}

def test_somebody_else_makes_the_target_meanwhile(sharded, out):
    recipe, sides = sharded[0], room.copy_sides
    def meanwhile(*args):
        sides(*args)
        out.mkdir()
        (out/'mine').write_text('mine')
    with patched(room, copy_sides=meanwhile), pytest.raises(ValueError, match='already there'):
        merge(recipe, out=out)
    assert names(out)=={'mine'} and names(out.parent)=={'out', '.out.draft'}
    shutil.rmtree(out)
    assert resumed(recipe, out)==0 and files(out)==sharded[1], 'the work of an hour was thrown away'

@pytest.mark.parametrize('kind', ['folder', 'link', 'file'])
@pytest.mark.parametrize('name', ['.out.draft', '.out.old'])
def test_what_somebody_else_keeps_under_a_hidden_name_is_left_alone(sharded, tmp_path, out, name, kind):
    mine = tmp_path/'mine'
    if kind=='file': mine.write_text('mine')
    else:
        mine.mkdir()
        (mine/'precious').write_text('mine')
    if kind=='link': out.with_name(name).symlink_to(mine)
    else: mine.rename(out.with_name(name))
    if name=='.out.draft': refused(sharded[0], out, '.out.draft')
    else:
        with contextlib.suppress(ValueError): merge(sharded[0], out=out)
        assert not out.exists() or files(out)==sharded[1]
    held = out.with_name(name)
    assert (held if kind=='file' else held/'precious').read_text()=='mine'

CHANGES = dict(shrinks=lambda p: os.truncate(p, p.stat().st_size//3), is_replaced=lambda p: replaced(p),
               changes=lambda p: poke(p.parent, next(n for n in load_file(p) if 'vision' in n or UP in n),
                                      torch.tensor([9.]).bfloat16(), at=3),
               grows=grow)
def replaced(p):
    shutil.copy(p, new := p.with_name('new'))
    with open(new, 'r+b') as f: f.seek(-2, 2); f.write(b'\0\0')
    new.rename(p)

@pytest.mark.parametrize('big', [False, True], ids=['small', 'big'])
@pytest.mark.parametrize('who', ['vlm', 'llm'])
@pytest.mark.parametrize('what', CHANGES)
def test_an_input_that_changes_while_it_is_read(what, who, big, tmp_path, out):
    recipe, once, one = write_trio(tmp_path), [], room.merge_one
    path = tmp_path/'in'/who/'model.safetensors'
    if big: save_file({'vision.big': torch.ones(2_000_001).bfloat16()} | load_file(path), path)
    os.utime(path, (10**9, 10**9))
    def meanwhile(*args, **kw):
        if not once: once.append(CHANGES[what](path))
        return one(*args, **kw)
    with patched(room, merge_one=meanwhile), pytest.raises(ValueError, match='became shorter|changed') as e:
        merge(recipe, out=out, workers=1)
    a_sentence(str(e.value))
    assert once and not names(out.parent)


# Targets

def test_a_target_that_exists(sharded, tmp_path, out):
    recipe, inside = sharded[0], tmp_path/'inside'
    out.write_text('mine')
    for how in {}, {'overwrite': True}: refused(recipe, out, 'already there|was not made by', **how)
    out.unlink()
    for to in (inside, tmp_path/'nowhere'):            # a link is not followed, wherever it leads
        inside.mkdir(exist_ok=True)
        (inside/'recipe.json').write_text('{}')
        out.symlink_to(to)
        for how in {}, {'overwrite': True}: refused(recipe, out, 'already there|was not made by', **how)
        assert names(inside)=={'recipe.json'}
        out.unlink()
    out.mkdir()
    refused(recipe, out, 'already there')
    (out/'mine').write_text('mine')
    for how in {}, {'overwrite': True}: refused(recipe, out, 'already there|was not made by', **how)
    assert (out/'mine').read_text()=='mine'

def test_overwriting_replaces_all_or_nothing(sharded, tmp_path, out):
    recipe, right = sharded
    other = Recipe(recipe.vlm, recipe.llm, knobs=dict(weight=.3))
    merge(other, out=out)
    (out/'stale').write_text('of the old one')
    old = files(out)
    bad = write_trio(tmp_path)
    poke(Path(bad.llm), STEMS['llm']+UP, torch.tensor([torch.nan]).bfloat16())
    refused(bad, out, 'NaN', LEFT, overwrite=True)
    shutil.rmtree(out.with_name('.out.draft'))
    assert files(out)==old
    with watched(calm) as seen: merge(recipe, out=out, overwrite=True)
    assert files(out)==right and names(out.parent)=={'out'}
    for n in range(len(seen)-8, len(seen)+1):          # killed around the exchange
        shutil.rmtree(out)
        merge(other, out=out)
        (out/'stale').write_text('of the old one')
        process = context.Process(target=overwriting, args=(recipe, out, Die(n)))
        process.start(); process.join()
        assert process.exitcode==-signal.SIGKILL
        held = [files(p) for p in out.parent.iterdir() if p.name!='.out.draft']
        assert old in held or right in held, 'neither the old nor the new one is whole'
        merge(recipe, out=out, overwrite=True)
        assert files(out)==right and names(out.parent)=={'out'}, n

def overwriting(recipe, out, act):
    writer.FLUSH = 1
    with watched(act): merge(recipe, out=out, overwrite=True)

def linger(n, name, *_):
    "Take a long time over each rename"
    if name=='rename': time.sleep(.3)

def test_the_moment_of_the_exchange_belongs_to_one_merge(sharded, out):
    recipe, right = sharded
    other = Recipe(recipe.vlm, recipe.llm, knobs=dict(weight=.3))
    merge(other, out=out)
    process = context.Process(target=overwriting, args=(recipe, out, linger))
    process.start()
    while process.is_alive() and out.exists(): time.sleep(.002)
    with pytest.raises(ValueError, match='Another merge is writing'): merge(other, out=out, overwrite=True)
    process.join()
    assert process.exitcode==0 and files(out)==right and names(out.parent)=={'out'}

def test_targets_among_the_inputs(sharded, out):
    recipe = sharded[0]
    vlm = Path(recipe.vlm)
    for to in vlm/'out', Path(recipe.llm)/'code'/'out': refused_quietly(recipe, to, 'inputs|not a folder')
    refused_quietly(recipe, vlm, 'already there|inputs')
    refused_quietly(recipe, vlm.parent, 'already there')
    merge(recipe, out=out)
    again = Recipe(out, recipe.llm)
    before = files(out)
    for to in out, out/'code'/'out': 
        with pytest.raises(ValueError, match='inputs'): merge(again, out=to, overwrite=True)
    (out.parent/'link').symlink_to(out)
    with pytest.raises(ValueError, match='inputs|made by'):
        merge(again, out=out.parent/'link', overwrite=True)
    assert files(out)==before

def refused_quietly(recipe, to, match):
    with pytest.raises(ValueError, match=match) as e: merge(recipe, out=to)
    a_sentence(str(e.value))

def test_a_folder_that_cannot_be_written_to(sharded, tmp_path, out):
    recipe = sharded[0]
    refused_quietly(recipe, out.parent/'no'/'out', 'is not a folder')
    (out.parent/'file').write_text('')
    refused_quietly(recipe, out.parent/'file'/'out', 'is not a folder')
    with patched(os, access=lambda path, how: False): refused(recipe, out, 'cannot be written to')
    if os.geteuid():
        out.parent.chmod(0o500)
        try: refused(recipe, out, 'cannot be written to')
        finally: out.parent.chmod(0o700)

def test_a_disk_that_is_read_only(sharded, tmp_path):
    with mount(tmp_path/'disk', '-t', 'tmpfs', '-o', 'ro,size=1m', 'tmpfs') as disk:
        refused(sharded[0], disk/'out', 'cannot be written to')


# Files as they should be

@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask, tmp_path, out):
    recipe = write_trio(tmp_path, shards=3)
    for p in (tmp_path/'in').rglob('*'): p.chmod(0o500 if p.is_dir() else 0o400)
    old = os.umask(mask)
    try: merge(recipe, out=out)
    finally:
        os.umask(old)
        for p in (tmp_path/'in').rglob('*'): p.chmod(0o700)
    for p in (out, *out.rglob('*')):
        assert p.stat().st_mode&0o777==(0o777 if p.is_dir() else 0o666)&~mask, p

def test_links_of_a_hub_cache_become_files(sharded, tmp_path, out):
    recipe, right = sharded
    blobs, snapshots = tmp_path/'blobs', {}
    blobs.mkdir()
    for who in 'vlm', 'llm', 'base':
        folder = snapshots[who] = tmp_path/'snapshots'/who
        for f, sha in files(Path(getattr(recipe, who))).items():
            shutil.copy(Path(getattr(recipe, who))/f, blobs/sha)
            (folder/f).parent.mkdir(parents=True, exist_ok=True)
            (folder/f).symlink_to(os.path.relpath(blobs/sha, (folder/f).parent))
    (snapshots['vlm']/'gone.json').symlink_to('nowhere')
    merge(Recipe(*snapshots.values(), method=recipe.method, knobs=recipe.knobs), out=out)
    assert not any(p.is_symlink() for p in out.rglob('*'))
    told = {'recipe.json', 'README.md'}
    same = {f for f in right if files(out)[f]==right[f]}
    assert files(out).keys()==right.keys() and same>=right.keys()-told
    for f, said in json.loads((out/'recipe.json').read_text())['inputs']['vlm']['files'].items():
        assert said['sha256']==files(Path(recipe.vlm))[f]

def raw_file(path, tensors, pad, metadata):
    "A safetensors file in our own order: tensors as `(name, type, shape, bytes)`, names in reverse"
    table, at = {}, 0
    for n, dtype, shape, data in tensors:
        table[n] = dict(dtype=dtype, shape=shape, data_offsets=[at, at+len(data)])
        at += len(data)
    table = {'__metadata__': metadata} | dict(reversed(table.items()))
    head = json.dumps(table, ensure_ascii=False).encode()+b' '*pad
    path.write_bytes(len(head).to_bytes(8, 'little')+head+b''.join(d for *_, d in tensors))
    return head

def test_what_is_not_merged_comes_out_bit_for_bit(tmp_path, out):
    recipe, rng = write_trio(tmp_path), random.Random(0)
    path = Path(recipe.vlm)/'model.safetensors'
    mine = [(n, 'BF16', list(x.shape), x.view(torch.uint8).numpy().tobytes())
            for n, x in load_file(path).items()]
    odd = [('empty', 'F32', [0, 3], 0), ('scalar', 'F16', [], 2), ('position_ids', 'I64', [], 8),
           ('mask', 'BOOL', [3], 3), ('größe.名前', 'U8', [7], 7), ('wide', 'F64', [2], 16), ('', 'I8', [1], 1),
           (STEMS['vlm']+'layers.1.self_attn.rotary_emb.inv_freq', 'F32', [4], 16)]
    mine += [(n, t, s, rng.randbytes(k) if t!='BOOL' else bytes([0, 1, 1])) for n, t, s, k in odd]
    rng.shuffle(mine)
    head = raw_file(path, mine, 3, {'format': 'pt', 'note': 'größer 名前 \n'})
    before, kept = path.read_bytes(), plan(recipe).kept
    merge(recipe, out=out)
    after = (out/'model.safetensors').read_bytes()
    assert {n for n, *_ in odd}<=kept.keys() and len(after)==len(before)
    assert after[:8+len(head)]==before[:8+len(head)]
    for n, e in Checkpoint.open(recipe.vlm).tensors.items():
        one, two = (x[e.start:e.start+e.nbytes] for x in (before, after))
        assert (one==two)==(n in kept), n
    assert load_file(out/'model.safetensors').keys()=={n for n, *_ in mine}

BUFFERS = torch.arange(3), torch.tensor([True, False]), torch.zeros(0).bfloat16(), torch.zeros(0, 16)
@pytest.mark.parametrize('odd', BUFFERS)
@pytest.mark.parametrize('method', METHODS)
def test_a_buffer_inside_a_layer(method, odd, tmp_path, out):
    "Whole numbers, truth values and empty tensors cannot be merged: they stay, or a sentence refuses them"
    write_trio(tmp_path)
    for who in STEMS:
        path = tmp_path/'in'/who/'model.safetensors'
        save_file(load_file(path) | {STEMS[who]+'layers.1.buffer': odd}, path)
    recipe = Recipe(*(tmp_path/'in'/who for who in STEMS), method=method)
    if plan(recipe).stops: return refused(recipe, out, 'layers.1.buffer')
    merge(recipe, out=out)
    assert torch.equal(load_file(out/'model.safetensors')[STEMS['vlm']+'layers.1.buffer'], odd)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_every_floating_type_is_merged(dtype, tmp_path, out):
    recipe = write_trio(tmp_path, dtype=dtype)
    merge(recipe, out=out)
    merged, vlm = load_file(out/'model.safetensors'), load_file(Path(recipe.vlm)/'model.safetensors')
    one, two = (x[STEMS['vlm']+UP] for x in (merged, vlm))
    assert one.dtype==two.dtype==dtype and not torch.equal(one, two)


# Much work, and late threads

def many(tmp, layers):
    "A recipe for models of many layers with as many shards"
    text = TEXT|dict(num_hidden_layers=layers)
    for seed, (who, stem) in enumerate(STEMS.items()):
        rng, state = torch.Generator().manual_seed(seed), {}
        for i in range(layers):
            for n in ('self_attn.q_proj', 'mlp.up_proj', 'mlp.down_proj'):
                state[f'{stem}layers.{i}.{n}.weight'] = torch.randn((4, 4), generator=rng)
        state |= {stem+n: torch.randn((4, 4), generator=rng) for n in ('embed_tokens.weight',)}
        state |= {stem+'norm.weight': torch.randn(4, generator=rng)}
        write(tmp/who, state, dict(model_type='llava', text_config=text) if who=='vlm' else text, layers)
    return Recipe(tmp/'vlm', tmp/'llm', layers=f'0-{layers-1}', knobs=dict(weight=.5))

def work_in(do):
    "Calls that Python makes in this thread: a measure of work that no other process disturbs"
    profile = cProfile.Profile(builtins=False)
    profile.runcall(do)
    return sum(o.callcount for o in profile.getstats())

def test_work_grows_as_the_number_of_shards_and_tensors(tmp_path):
    spent = []
    for layers in (10, 20, 160):                         # The first is for what is done once
        recipe = many(tmp_path/str(layers), layers)
        spent.append(work_in(lambda: merge(recipe, out=tmp_path/str(layers)/'out', workers=1)))
    assert spent[2]<8*spent[1], spent                   # Eight times the shards

def test_no_more_files_are_open_than_one_tensor_wants(tmp_path):
    resource, recipe = pytest.importorskip('resource'), many(tmp_path, 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd'))+24, hard))
    try: merge(recipe, out=tmp_path/'out', workers=2)
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path/'out').glob('*.safetensors')))==40

def test_a_file_is_closed_when_no_thread_writes_any_more(sharded, out):
    "Ctrl-C, and again while the threads lay down their work: a late thread would write into another file"
    (recipe, right), inside, go = sharded, threading.Event(), threading.Event()
    write, close, late = writer.Shard.write, writer.Shard.close, []
    shutdown = room.ThreadPoolExecutor.shutdown
    def slow(self, data, at):
        if threading.current_thread() is not threading.main_thread():
            inside.set(); go.wait(); late.append(self.fd)
        write(self, data, at)
    def again(pool, *args, **how):
        if not go.is_set(): go.set(); raise KeyboardInterrupt
        shutdown(pool, *args, **how)
    def closed(self, whole): assert late, 'closed before the last thread wrote'; close(self, whole)
    def pressed(*_): inside.wait(); raise KeyboardInterrupt
    with (patched(writer.Shard, write=slow, close=closed), patched(room.ThreadPoolExecutor, shutdown=again),
          patched(room, runs=pressed), pytest.raises(KeyboardInterrupt)): merge(recipe, out=out, workers=4)
    merge(recipe, out=out, workers=4)
    assert files(out)==right
