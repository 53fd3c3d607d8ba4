"Ten thousand damaged files: each opens with claims that hold, or one sentence refuses it, soon and cheaply"
import contextlib, copy, io, json, math, random, re, resource, signal, sys, time, warnings, zipfile, zlib
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from vlm_merging.checkpoints import model_files
from vlm_merging.checkpoints.headers import DTYPES, Checkpoint, read_bin, read_header
from vlm_merging.checkpoints.model_files import weight_files
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.merging.methods import METHODS
from vlm_merging.merging.recipe import Recipe

@pytest.fixture(autouse=True)
def no_tick(monkeypatch):
    "Each of thousands of files is written just before it is opened; none while it is read"
    monkeypatch.setattr(model_files, 'TICK', 0)


# Damage

DEEP = '['*50_000
ODD = [-1, 0, 1, 7, 2**31, 2**53+1, 2**63-1, 2**63, 2**64, 10**30, -2**70, .5, -0., 1e308, math.nan, math.inf,
       None, True, False, '', '.', '..', '/', '\0', '\n', '\x1b[31m', '\ud800', 'é'*99, 'x'*700,
       'F32', 'BF16', 'F4', 'I64', 'X', [], [[]], {}, {'': 0}, ['F32'], [0, 0], [0, 2**63], [1]*3, [2**62]*20,
       '../x.safetensors', '/x.safetensors', 'x'*300+'.safetensors', 'model.safetensors', 'a/b.bin',
       '\ud800.bin', 'é'*150+'.bin']
WORDY = ['NaN', '-Infinity', '9'*5000, '1e999', '"\\ud800"', '"\\u0000"', '[]', '{}', 'null',
         '[[[[[[[[', DEEP, '//', ',,', '"', '-0', '0x10', '1_0', '\ufeff']
TOKENS = [o.encode() for o in WORDY] + [b'\xff\xfe', b'\x80\x02', b'PK']

def places(value):
    "Every place inside a JSON value, as `(holder, key)`"
    for k in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, k
        yield from places(value[k])

def swap(rng, value):
    "Change one place of a JSON value"
    if not (found := list(places(value))): return
    at, k = rng.choice(found)
    how, other = rng.randrange(6), rng.choice(found)
    if how==0: del at[k]
    elif how==1 and isinstance(at, dict):
        at[rng.choice([*at, 'x', '__metadata__', str(rng.choice(ODD))])] = at.pop(k)
    elif how==2 and type(at[k]) is int: at[k] += rng.choice([-1, 1, 2, 8, -8, 2**32, -at[k], at[k]])
    elif how==3: at[k] = copy.deepcopy(other[0][other[1]])
    elif how==4: at[k] = [at[k]]*rng.randrange(3)
    else: at[k] = copy.deepcopy(rng.choice(ODD))

def tear(rng, raw):
    "Change a few bytes: one other, cut off, left out, doubled, put in; or one word of JSON for another"
    i = rng.randrange(len(raw)+1)
    j = min(len(raw), i+rng.choice([1, 1, 2, 8, 100]))
    how, words = rng.randrange(6), list(re.finditer(rb'"[^"]*":|-?\d+|"[^"]*"|null', raw))
    if how==0: return raw[:i]+bytes([rng.randrange(256)])+raw[i+1:]
    if how==1: return raw[:i]
    if how==2: return raw[:i]+raw[j:]
    if how==3: return raw[:j]+raw[i:]
    if how==4 or not words: return raw[:i]+rng.choice(TOKENS)+raw[i:]
    m = rng.choice(words)
    other = rng.choice([o[0] for o in words if o[0][-1:]==b':']) if m[0][-1:]==b':' else rng.choice(TOKENS)
    return raw[:m.start()]+other+raw[m.end():]

def damaged(rng, value):
    "A JSON value as text in which one or several things are wrong"
    value, how = copy.deepcopy(value), rng.random()
    if how<.7:
        for _ in range(rng.choice([1, 1, 2, 4])): swap(rng, value)
    raw = json.dumps(value).encode()
    if how>.5:
        for _ in range(rng.choice([1, 1, 2, 4])): raw = tear(rng, raw)
    return raw


# What is asked of a reader

SECONDS, ROOM = 10, 400<<20      # Of the processor; no file may take longer, or more memory in one go

class Hang(BaseException): pass
def hang(*_): raise Hang

@pytest.fixture(autouse=True)
def narrow():
    "Little memory, and a clock that ends what hangs"
    before, limit = signal.signal(signal.SIGPROF, hang), resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform=='linux':
        with open('/proc/self/statm') as f: held = int(f.read().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held+ROOM, limit[1]))
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter('ignore')
        yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    resource.setrlimit(resource.RLIMIT_AS, limit)

def ask(read, *args, said:Counter, longest=3000):
    "What `read` makes of its arguments; None if it refuses in one sentence. Anything else fails"
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try: made = read(*args)
    except ValueError as e:
        text = str(e)
        assert type(e) is ValueError, repr(e)
        assert text.endswith(('.', '?')) and ' ' in text and len(text)<longest, text
        assert text.isprintable(), repr(text)
        said[re.sub(r'''\S*/\S+|'.*'|".*"|\(.*\)|\d+|\[.*\]''', '_', text)[:60]] += 1
        return None
    finally: signal.setitimer(signal.ITIMER_PROF, 0)
    said['opens'] += 1
    return made

def claims_hold(entries, path, whole=True):
    "Every byte of the file behind the header belongs to one tensor"
    size = path.stat().st_size
    at = 8+int.from_bytes(path.read_bytes()[:8], 'little')
    for e in sorted(entries, key=lambda e: (e.start, e.nbytes)):
        assert e.dtype in DTYPES and all(type(n) is int and n>=0 for n in e.shape)
        assert (e.start==at if whole else e.start>0) and e.start+e.nbytes<=size, e
        at = e.start+e.nbytes
    assert not whole or at==size

def shapes(path):
    "Shapes by name, as safetensors itself reads them"
    with safe_open(path, 'np') as f: return {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}


# Headers

def header(*parts, meta=None):
    table, at = {'__metadata__': meta} if meta else {}, 0
    for i, (dtype, *shape) in enumerate(parts):
        n = math.prod(shape)*DTYPES[dtype]//8
        table[f'layers.{i}.weight'] = dict(dtype=dtype, shape=shape, data_offsets=[at, at+n])
        at += n
    return table, at

HEADERS = [header(('F32', 2, 3), ('BF16', 4), ('I64',)), header(('F64', 2)),
           header(('U8', 0, 3), ('F16', 1), ('BOOL', 3), ('F32', 0), meta={'format': 'pt', 'note': 'ü'})]

def header_file(rng):
    table, n = rng.choice(HEADERS)
    raw = damaged(rng, table)
    raw += b' '*(-len(raw)%8 if rng.random()<.7 else rng.randrange(9))
    lies = [0, max(0, len(raw)-1), len(raw)+1, 10**8, 10**8+1, 2**63, 2**64-1]
    length = len(raw) if rng.random()<.9 else rng.choice(lies)
    whole = length.to_bytes(8, 'little')+raw+bytes(max(0, n+rng.choice([0]*9+[-1, 1, 8])))
    return tear(rng, whole) if rng.random()<.05 else whole

@pytest.mark.parametrize('seed', range(4))
def test_headers(seed, tmp_path):
    rng, said, path = random.Random(seed), Counter(), tmp_path/'model.safetensors'
    for _ in range(2000):
        path.write_bytes(header_file(rng))
        if (made := ask(read_header, path, said=said)) is None: continue
        claims_hold(made[0].values(), path)
        if b'-0' in path.read_bytes(): continue      # a whole number here, not for safetensors
        assert shapes(path)=={n: e.shape for n, e in made[0].items()}
        assert all(isinstance(x, str) for kv in made[1].items() for x in kv)
    assert 40<said['opens']<400 and len(said)>20, said

def test_what_safetensors_reads_is_read(tmp_path):
    "Refusing everything would pass the test above: of what safetensors opens, only twins are refused"
    rng, path, opens = random.Random(9), tmp_path/'model.safetensors', 0
    for _ in range(1000):
        path.write_bytes(header_file(rng))
        try: theirs = shapes(path)
        except SafetensorError: continue
        try: assert {n: e.shape for n, e in read_header(path)[0].items()}==theirs
        except ValueError as e: assert 'twice' in str(e), e
        opens += 1
    assert opens>20


def raw_header(raw, n=0): return len(raw).to_bytes(8, 'little')+raw+bytes(n)
def one(**claim): return dict(dtype='F32', shape=[1], data_offsets=[0, 4]) | claim
TRAPS = {'a shape beyond all numbers': raw_header(json.dumps({'a': one(shape=[2**62]*32)}).encode(), 4),
    'UTF-16': raw_header(json.dumps({'a': one()}).encode('utf-16'), 4),
    'a number as metadata': raw_header(json.dumps({'__metadata__': {'x': 1}, 'a': one()}).encode(), 4),
    'a list as metadata': raw_header(json.dumps({'__metadata__': [], 'a': one()}).encode(), 4),
    'half a character': raw_header(json.dumps({'\ud800': one()}).encode(), 4),
    'half a character in a field more': raw_header(json.dumps({'a': one(x='\ud800')}).encode(), 4),
    'no number in a field more': raw_header(json.dumps({'a': one(x=math.nan)}).encode(), 4),
    'a name twice': raw_header(json.dumps({'a': one(), 'b': one()}).replace('"b"', '"a"').encode(), 4),
    'nothing': b'', 'seven bytes': b'\x10'+bytes(6), 'a pickle': b'\x80\x02}q\x00.',
    'no end': raw_header(b'{"a":'+DEEP.encode())}

@pytest.mark.parametrize('what', TRAPS)
def test_traps_in_headers(what, tmp_path):
    (tmp_path/'model.safetensors').write_bytes(TRAPS[what])
    assert ask(read_header, tmp_path/'model.safetensors', said=Counter()) is None


# Indexes and folders

def part(i): return {f'layers.{i}.weight': np.zeros(i, 'f4'), f'layers.{i}.bias': np.ones(1, 'f2')}
FILES = {f'model-{i}-of-3.safetensors': save(part(i)) for i in (1, 2, 3)}
INDEX = dict(metadata=dict(total_size=30), weight_map={f'layers.{i}.{n}': f for i, f in enumerate(FILES, 1)
                                                       for n in ('weight', 'bias')})

@pytest.mark.parametrize('seed', range(2))
def test_indexes(seed, tmp_path):
    rng, said, folder = random.Random(seed), Counter(), tmp_path/'model'
    folder.mkdir()
    (tmp_path/'x.safetensors').write_bytes(FILES['model-1-of-3.safetensors'])    # outside: never to be found
    (folder/'config.json').write_text('{}')
    for f, data in FILES.items(): (folder/f).write_bytes(data)
    for _ in range(2000):
        (folder/'model.safetensors.index.json').write_bytes(damaged(rng, INDEX))
        if (made := ask(weight_files, folder, {}, said=said)) is not None:
            assert set(made[0])<=set(FILES) and set(made[1].values())==set(made[0])
        if (made := ask(Checkpoint.open, folder, said=said)) is None: continue
        assert {n: e.file.name for n, e in made.tensors.items()}.items()>=made_index(folder).items()
        for f in made.files: claims_hold([e for e in made.tensors.values() if e.file.name==f], folder/f)
    assert said['opens']>200 and len(said)>15, said

def made_index(folder): return json.loads((folder/'model.safetensors.index.json').read_bytes())['weight_map']


# PyTorch files

def saved(state):
    torch.save(state, made := io.BytesIO())
    return made.getvalue()

def bin_file(rng, whole, pickle):
    "A PyTorch file with damage anywhere, or inside its pickle only"
    if rng.random()<.3:
        for _ in range(rng.choice([1, 1, 3])): whole = tear(rng, whole)
        return whole
    made = bytearray(pickle)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i = rng.randrange(len(made))
        made[i] = rng.choice([rng.randrange(256), made[i]^1, made[i]+1&255, 0, 127, 255])
    crc = lambda x: zlib.crc32(x).to_bytes(4, 'little')            # which would betray the damage
    return whole.replace(pickle, made).replace(crc(pickle), crc(made))

def test_bin_files(tmp_path):
    rng, said, path = random.Random(0), Counter(), tmp_path/'pytorch_model.bin'
    whole = saved({'a': torch.arange(6.).reshape(2, 3), 'b': torch.ones(4).bfloat16(), 'c': torch.tensor(3)})
    pickle = next(x for n, x in unzipped(whole) if n.endswith('data.pkl'))
    path.write_bytes(whole)
    right = ask(read_bin, path, said=said)
    for _ in range(800):
        path.write_bytes(bin_file(rng, whole, pickle))
        if (made := ask(read_bin, path, said=said)) is None: continue
        claims_hold(made.values(), path, whole=False)
        with zipfile.ZipFile(path) as z: ends = sorted(i.header_offset for i in z.infolist())+[z.start_dir]
        for e in made.values():                        # no tensor reaches into the next part of the archive
            assert e.start+e.nbytes<=min((x for x in ends if x>=e.start), default=0), e
    assert len(right)==3 and said['opens']>20 and len(said)>3, said

def unzipped(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as z: return [(i.filename, z.read(i)) for i in z.infolist()]

def zipped(parts, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(made := io.BytesIO(), 'w', how) as z:
        for n, x in parts: z.writestr(n, x)
    return made.getvalue()

def test_traps_in_bin_files(tmp_path):
    "Files that would open and then give other numbers than were saved, and those on which a reader stumbled"
    x = torch.arange(100.)
    whole = saved({'a': x, 'b': x+1})
    parts = unzipped(whole)
    short = [(n, d[:-4] if n.endswith('data/0') else d) for n, d in parts]
    for file in whole, zipped(parts), zipped(short), zipped(parts, zipfile.ZIP_DEFLATED):  # packed anew
        path = write(tmp_path, file)
        made = ask(read_bin, path, said=Counter())
        if file is whole: assert len(made)==2
        for n, e in (made or {}).items():
            held = np.fromfile(path, '<f4', 100, offset=e.start)
            assert (held==x.numpy()+(n=='b')).all(), n
    torch.save({'a': x}, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    strange = x.to_sparse(), x.view(10, 10).t(), x.to(torch.complex64), x.to('meta')
    strange = [x, [x], {1: x}, *({'a': y} for y in strange)]
    for what in (b'', b'\x80\x02', b'PK', old.getvalue(), *map(saved, strange)):
        assert ask(read_bin, write(tmp_path, what), said=Counter()) is None, what[:200]

def write(folder, data):
    (folder/'pytorch_model.bin').write_bytes(data)
    return folder/'pytorch_model.bin'


# Configurations, vocabularies, recipes

WIDTH, ROPE = 8, dict(rope_type='llama3', factor=8., rope_theta=1e4)
TEXT = dict(model_type='llama', hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, head_dim=4,
            num_key_value_heads=2, rope_theta=1e4, rope_scaling=ROPE, rope_parameters=dict(full=ROPE),
            sliding_window=None, use_sliding_window=False, hidden_act='silu', rms_norm_eps=1e-5,
            max_position_embeddings=256)
CONFIGS = dict(vlm=dict(model_type='llava', text_config=TEXT, quantization_config=None), llm=TEXT)
WORDS = [dict(model=dict(type='BPE', vocab=dict(a=0, b=1, c=2)), added_tokens=[dict(id=3, content='<s>')]),
         dict(model=dict(type='Unigram', vocab=[['a', 0.], ['b', -1.]]), added_tokens=[])]

@pytest.fixture
def pair(tmp_path):
    "Folders of a VLM and an LLM"
    rng = np.random.default_rng(0)
    for who, stem in ('vlm', 'language_model.model.'), ('llm', 'model.'):
        (tmp_path/who).mkdir()
        sizes = {f'{stem}layers.{i}.self_attn.q_proj.weight': (WIDTH, WIDTH) for i in (0, 1)}
        sizes[stem+'embed_tokens.weight'] = 8, WIDTH
        if who=='vlm': sizes['vision.w'] = 3, 3
        state = {n: rng.standard_normal(s).astype('f4') for n, s in sizes.items()}
        (tmp_path/who/'model.safetensors').write_bytes(save(state))
        (tmp_path/who/'config.json').write_text(json.dumps(CONFIGS[who]))
        (tmp_path/who/'tokenizer.json').write_text(json.dumps(WORDS[0]))
    assert not plan(Recipe(tmp_path/'vlm', tmp_path/'llm')).stops
    return tmp_path

def looked_at(recipe): return str(plan(recipe)).encode()

def test_configurations(pair):
    rng, said, recipe = random.Random(0), Counter(), Recipe(pair/'vlm', pair/'llm')
    for _ in range(300):
        who = rng.choice(['vlm', 'llm'])
        (pair/who/'config.json').write_bytes(damaged(rng, CONFIGS[who]))
        ask(looked_at, recipe, said=said)
        (pair/who/'config.json').write_text(json.dumps(CONFIGS[who]))
    assert 50<said['opens']<290, said

def test_a_kind_whose_own_defaults_contradict_each_other(pair):
    write_config(pair/'vlm', model_type='llava', text_config=dict(model_type='gemma4_assistant'))
    assert ask(looked_at, Recipe(pair/'vlm', pair/'llm'), said=Counter())

@pytest.mark.parametrize('kind', ['\ufeff', 'll\u200bama', '\U000e0041', '\x1b[2J\u202e', '\uffff'])
def test_all_of_a_plan_can_be_seen(pair, kind):
    write_config(pair/'llm', **TEXT|dict(model_type=kind))
    said = str(plan(Recipe(pair/'vlm', pair/'llm')))
    assert all(line.isprintable() for line in said.splitlines()), said

def write_config(folder, **config): (folder/'config.json').write_text(json.dumps(config))

def test_vocabularies(pair):
    rng, said, recipe = random.Random(0), Counter(), Recipe(pair/'vlm', pair/'llm')
    for _ in range(300):
        who, words = rng.choice(['vlm', 'llm']), rng.choice(WORDS)
        (pair/who/'tokenizer.json').write_bytes(damaged(rng, words))
        ask(looked_at, recipe, said=said)
        (pair/who/'tokenizer.json').write_text(json.dumps(words))
    assert 50<said['opens']<290, said

def test_recipes(pair):
    rng, said = random.Random(0), Counter()
    right = Recipe(pair/'vlm', pair/'llm', pair/'llm', method='ties', knobs=dict(weight=[1., .5], density=.3),
                   layers='0-1', modules='attention,mlp').dict()
    for i in range(800):
        (pair/'recipe.json').write_bytes(damaged(rng, dict(recipe=right) if i%2 else right))
        if (made := ask(Recipe.read, pair/'recipe.json', said=said)) is None: continue
        made.write(pair/'again.json')
        assert repr(Recipe.read(pair/'again.json'))==repr(made)
        ask(looked_at, made, said=said, longest=10**5)     # it repeats the names that a user gave
    assert said['opens']>50 and len(said)>20, said

REST = ['self_attn.q_proj.weight', 'mlp.up_proj.weight', 'input_layernorm.weight', 'self_attn.q_proj.bias',
        'self_attn.rotary_emb.inv_freq', 'self_attn.position_ids', 'mlp.experts.gate_up_proj']
SHAPES = [(), (0,), (1,), (8,), (8, 8), (0, 8), (8, 0), (4, 8), (2, 3, 4), (8, 8, 1), (12, 4)]

def odd_pair(rng, numbers):
    "A VLM and an LLM of two layers, in which a few tensors are missing or of another shape or type"
    state = {f'layers.{i}.{n}': ('f4', (8, 8) if 'proj' in n else (8,)) for i in (0, 1) for n in REST[:3]}
    state |= {'embed_tokens.weight': ('f4', (12, 8)), 'norm.weight': ('f4', (8,))}
    vlm, llm = dict(state), dict(state)
    for _ in range(rng.choice([1, 1, 2, 3])):
        inside = f'layers.{rng.randrange(2)}.{rng.choice(REST)}'
        name = rng.choice([inside]*4+['embed_tokens.weight', 'norm.weight'])
        odd = rng.choice(['f4', 'f4', 'f2', 'f8', 'i8', '?']), rng.choice(SHAPES)
        for who in (vlm, llm) if rng.random()<.7 else (vlm,):
            if rng.random()<.15: who.pop(name, None)
            else: who[name] = odd
    draw = lambda t, s: np.asarray(numbers.standard_normal(s)).astype(t)
    made = lambda stem, x: {stem+n: draw(*ts) for n, ts in x.items()}
    return made('language_model.model.', vlm) | {'vision.w': np.ones(3, 'f4')}, made('model.', llm)

def test_odd_tensors(pair):
    rng, numbers, said = random.Random(0), np.random.default_rng(0), Counter()
    for i in range(300):
        states = odd_pair(rng, numbers)
        for who, state in zip(('vlm', 'llm'), states): (pair/who/'model.safetensors').write_bytes(save(state))
        method = rng.choice(list(METHODS))
        recipe = Recipe(pair/'vlm', pair/'llm', pair/'llm', method=method, embeddings=rng.random()<.5)
        out = ask(partial(merge, recipe, out=pair/f'out{i}', workers=1, progress=False), said=said)
        assert not list(pair.glob('.*'))                         # nothing half-done stays
        if out is None: continue
        mine, theirs = load_file(out/'model.safetensors'), states[0]
        outside = lambda state: {n: (x.dtype, x.shape) for n, x in state.items()}
        assert outside(mine)==outside(theirs)
        for n in plan(recipe).kept: assert mine[n].tobytes()==theirs[n].tobytes(), n
    assert 100<said['opens']<250 and len(said)>7, said

def test_the_clock_and_the_fence_are_real():
    "Were they not, the tests above would prove nothing about hangs and bursts"
    signal.setitimer(signal.ITIMER_PROF, .05)
    end = time.process_time()+5
    with pytest.raises(Hang):
        while time.process_time()<end: pass
    if sys.platform=='linux':
        with pytest.raises(MemoryError): bytearray(2*ROOM)
