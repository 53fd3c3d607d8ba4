"""Mutated checkpoint files, by hand and by the million: each opens consistently or is refused in a sentence.

    python tests/bench/rough_headers.py -n 1000000 --seed 0

Headers of safetensors, indexes of shards, configurations, settings of adapters and pickles, with bits turned,
parts cut off, lengths that lie, and changes that know the grammar: types, sizes, places, names, twins, depth,
numbers of any size, letters of any kind. Each goes through `read_header` or `Checkpoint.open`, some through
`plan`. Printed are how many opened, with what words the others were refused, the longest time of one (of the
processor) and by how much memory grew; the exit code is 1 if anything else happened than what is said above.
"""
import argparse, io, json, math, random, re, resource, sys, tempfile, time, warnings, zipfile
from collections import Counter
from pathlib import Path

BITS = dict(F64=64, F32=32, F16=16, BF16=16, I64=64, I32=32, I16=16, I8=8, U64=64, U32=32, U16=16, U8=8,
            BOOL=8, C64=64, F8_E4M3=8, F8_E5M2=8, F8_E8M0=8, F6_E2M3=6, F6_E3M2=6, F4=4)
LONGEST, SECONDS, GROWTH = 600, 2., 300     # Letters of a sentence; seconds of a file; MB of all
A_MEGABYTE = .3             # Seconds more for each megabyte of text that has to be read


# JSON that can be wrong in every place

class Raw(str): "Stands in the text as it is"
class Pairs(list): "An object: `(name, value)`, in which a name may stand twice"

def pairs(value):
    "A JSON value whose objects are `Pairs`"
    if isinstance(value, dict): return Pairs((k, pairs(v)) for k, v in value.items())
    return [pairs(v) for v in value] if isinstance(value, list) else value

def text_of(value):
    if isinstance(value, Raw): return value
    if isinstance(value, Pairs): return '{'+','.join(f'{text_of(k)}:{text_of(v)}' for k, v in value)+'}'
    if isinstance(value, list): return '['+','.join(map(text_of, value))+']'
    return json.dumps(value)

NUMBERS = [-1, 0, 1, 2, 3, 4, 6, 7, 8, 2**31, 2**32, 2**53+1, 2**61, 2**62, 2**63-1, 2**63, 2**64-1, 2**64,
           2**64+4, 10**30, -2**63, .5, 4., 1e308,
           *map(Raw, ('-0', '1e2', '4.0', '4E0', '1e999', 'NaN', '-Infinity', '0x4', '04', '+4', '4_0', '٤',
           '9'*400, '9'*4300, '9'*4301, '9'*100_000, '-'+'9'*5000, '0.'+'3'*9000))]
LETTERS = ['', ' ', '.', '..', '/', '../x', '\0', '\n', '\r\n', '\t', '\x1b[2J', '\x7f', '\x85', '\u2028',
           '\u202e', '\u200b', '\ufeff', '\ufffe', '\U0001f600', 'é', 'e\u0301', '%s', '{0}', '{', '"', "'",
           '\\', '<b>', 'x'*79, 'é'*81, 'x'*600, '\x1b'*300, 'x'*100_000, '__metadata__', 'dtype',
           'layers.0.weight', 'layers.99999999999999999999.w',
           *map(Raw, (r'"\ud800"', r'"\udc00\ud800"', r'"\u0000"', r'"l\u0061yers.0.weight"', '"', "'a'",
           '"\\x"', '"\n"', '"\\u12"', 'a', '1', 'null', '["a"]', '"\\ud83d\\ude00"'))]
def deep(n): return [Raw('['*n+']'*n), Raw('{"a":'*n+'1'+'}'*n), Raw('['*n), Raw('[{"a":'*n)]
DEPTHS = [o for n in (3, 100, 990, 1100, 20_000, 100_000) for o in deep(n)]
OTHERS = [None, True, False, [], [[]], Pairs(), Pairs([('', 0)]), Raw(''), Raw(','), Raw('//'),
          Raw('\ufeff{}')]

def strange(rng):
    "A value of any kind"
    return pairs_copy(rng.choice(rng.choice([NUMBERS, NUMBERS, LETTERS, OTHERS,
                                             DEPTHS if rng.random()<.1 else OTHERS])))

def places(value):
    "Every place inside a value, as `(holder, index)`"
    for i, v in enumerate(value) if isinstance(value, list) else ():
        yield value, i
        yield from places(v[1] if isinstance(value, Pairs) else v)

def changed(rng, value):
    "Change one place: out, twice, renamed, another, moved by little, wrapped, swapped with another place"
    found = list(places(value))
    if not found: return
    (at, i), (of, j), how = rng.choice(found), rng.choice(found), rng.randrange(8)
    named = isinstance(at, Pairs)
    inside, other = (x[k][1] if isinstance(x, Pairs) else x[k] for x, k in ((at, i), (of, j)))
    def put(v): at[i] = (at[i][0], v) if named else v
    if how==0: del at[i]
    elif how==1: at.insert(rng.randrange(len(at)+1), at[i])
    elif how==2 and named: at[i] = (rng.choice(LETTERS), inside)
    elif how==3 and type(inside) is int:
        put(inside+rng.choice([-8, -1, 1, 2, 4, 8, 2**32, 2**64, -inside, inside]))
    elif how==4: put(pairs_copy(other))
    elif how==5:                                                    # The fuzzer itself must stay small
        put([inside]*rng.choice([1, 2, 3, 33, 2000] if len(text_of(inside))<300 else [1, 2, 3]))
    elif how==6 and isinstance(inside, list): rng.shuffle(inside)
    else: put(strange(rng))

def pairs_copy(v):
    if isinstance(v, Pairs): return Pairs((k, pairs_copy(x)) for k, x in v)
    return [pairs_copy(x) for x in v] if isinstance(v, list) else v

BYTES = [b'\0', b'\xff', b'\xc0\x80', b'\xed\xa0\x80', b'\xef\xbb\xbf', b'\n', b' '*99, b'{', b'}', b'"',
         b'\\', b',', b'PK\3\4', b'\x80\x02', b'['*999]

def torn(rng, raw):
    "Bytes with a bit turned, a part cut off, left out, doubled, moved, or strange ones put in"
    i, few, how = rng.randrange(len(raw)+1), rng.choice([1, 1, 2, 4, 8, 60]), rng.randrange(7)
    if how==0 and i<len(raw): return raw[:i]+bytes([raw[i]^1<<rng.randrange(8)])+raw[i+1:]
    if how==1: return raw[:i]
    if how==2: return raw[:i]+raw[i+few:]
    if how==3: return raw[:i+few]+raw[i:]
    if how==4: return raw[i:i+few]+raw[:i]+raw[i+few:]
    if how==5: return raw[:i]+rng.randbytes(few)+raw[i:]
    return raw[:i]+rng.choice(BYTES)+raw[i:]

def mutated(rng, value):
    "A JSON value as bytes in which one or several things are wrong"
    value, how = pairs_copy(value), rng.random()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5]) if how<.85 else 0): changed(rng, value)
    text = text_of(value)
    if rng.random()<.03:
        text = rng.choice(['\ufeff', ' ', '\n', '\0', '/**/'])+text+rng.choice(['', ' ', '\0', '}', '{}'])
    code = rng.choice(['utf-16', 'utf-32', 'utf-8-sig']) if rng.random()<.01 else 'utf-8'
    raw = text.encode(code, 'surrogatepass')
    for _ in range(rng.choice([1, 1, 2, 5]) if how>.7 else 0): raw = torn(rng, raw)
    return raw


# Files

def claims(*parts, meta=None):
    "A header of tensors `(type, *shape)`, and how many bytes follow"
    table, at = {'__metadata__': meta} if meta else {}, 0
    for i, (dtype, *shape) in enumerate(parts):
        n = math.prod(shape)*BITS[dtype]//8
        table[f'layers.{i}.weight'] = dict(dtype=dtype, shape=shape, data_offsets=[at, at+n])
        at += n
    return pairs(table), at

HEADERS = [claims(('F32', 2, 3), ('BF16', 4), ('I64',)), claims(('F64', 2)), claims(),
           claims(('U8', 0, 3), ('F16', 1), ('BOOL', 3), ('F32', 0), meta={'format': 'pt', 'note': 'ü'}),
           claims(('F4', 2, 2), ('F8_E4M3', 3), ('C64', 1), ('F6_E2M3', 4))]

def header_bytes(rng, table, size):
    raw = mutated(rng, table)
    if rng.random()<.6: raw += b' '*(-len(raw)%8)
    n = len(raw)
    if rng.random()<.06:
        n = rng.choice([0, 1, 7, 8, n-1, n+1, n+size, n+size+1, 1<<24, (1<<24)+1, 10**8, 2**31, 2**63-1,
                        2**63, 2**64-1])
    length = max(0, n).to_bytes(8, 'little')
    whole = length+raw+bytes(max(0, size+rng.choice([0]*12+[-1, 1, 8, -size])))
    return torn(rng, whole) if rng.random()<.05 else whole

def pickle_bytes(rng, whole, parts):
    "A PyTorch file that is torn, or sound as an archive and torn in one of its parts"
    if rng.random()<.4: return torn(rng, torn(rng, whole) if rng.random()<.5 else whole)
    at, how, made = rng.choice([n for n in parts]+['pkl']*6), rng.random(), io.BytesIO()
    with zipfile.ZipFile(made, 'w', zipfile.ZIP_DEFLATED if how<.1 else zipfile.ZIP_STORED) as z:
        for name, data in parts.items():
            if at in name and how<.95: data = torn(rng, data)
            z.writestr(name if how<.98 else rng.choice(['../x', 'x', name]), data)
    return made.getvalue()

TEXT = dict(model_type='llama', hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=4, rope_theta=1e4,
            rope_scaling=dict(rope_type='llama3', factor=8., rope_theta=1e4), sliding_window=None,
            rms_norm_eps=1e-5, hidden_act='silu', vocab_size=8, max_position_embeddings=256,
            layer_types=['full']*2)
CONFIG = pairs(dict(architectures=['Llava'], model_type='llava', text_config=TEXT,
               vision_config=dict(hidden_size=3), quantization_config=None, transformers_weights=None,
               tie_word_embeddings=False))
ADAPTER = pairs(dict(peft_type='LORA', base_model_name_or_path='a/b', r=8, target_modules=['q_proj'],
                lora_alpha=16))
WORDS = pairs(dict(model=dict(type='BPE', vocab=dict(a=0, b=1)), added_tokens=[dict(id=2, content='<s>')]))

def of_another_kind(rng, config, kinds):
    "A configuration that names another class, and says half of the rest"
    if not isinstance(config, Pairs): return config
    def other(k, v): return rng.choice(kinds) if k=='model_type' else of_another_kind(rng, v, kinds)
    return Pairs((k, other(k, v)) for k, v in config if k in ('model_type', 'text_config') or rng.random()<.5)

def made_folders(folder):
    "A VLM in three files, its LLM in one, and a PyTorch file"
    import numpy as np, torch
    from safetensors.numpy import save
    def weights(stem, i): return {f'{stem}layers.{i}.self_attn.q_proj.weight': np.ones((8, 8), 'f4')}
    parts = [weights('language_model.model.', i) for i in (0, 1)]
    parts.append({'language_model.model.embed_tokens.weight': np.ones((8, 8), 'f4'),
                  'vision.w': np.ones(3, 'f4')})
    vlm, llm = folder/'vlm', folder/'llm'
    for f, config in (vlm, CONFIG), (llm, pairs(TEXT)):
        f.mkdir()
        (f/'config.json').write_text(text_of(config))
        (f/'tokenizer.json').write_text(text_of(WORDS))
    table = {}
    for i, part in enumerate(parts, 1):
        name = f'model-0000{i}-of-00003.safetensors'
        (vlm/name).write_bytes(save(part))
        table |= dict.fromkeys(part, name)
    index = pairs(dict(metadata=dict(total_size=780), weight_map=table))
    (vlm/'model.safetensors.index.json').write_text(text_of(index))
    of_llm = weights('model.', 0)|weights('model.', 1)|{'model.embed_tokens.weight': np.ones((8, 8), 'f4')}
    (llm/'model.safetensors').write_bytes(save(of_llm))
    torch.save({'a': torch.ones(2, 3), 'b': torch.ones(4).bfloat16(), 'c': torch.tensor(3)},
               whole := io.BytesIO())
    return vlm, llm, index, whole.getvalue()


# What must hold

THEIRS = {'F32', 'BF16', 'F16', 'F64', 'I64', 'U8', 'BOOL'}     # Types that any version of safetensors knows

def hold(entries, path, data):
    "Every byte behind a header belongs to one tensor, and safetensors itself reads the same"
    from safetensors import deserialize
    at = 8+int.from_bytes(data[:8], 'little')
    for e in sorted(entries, key=lambda e: (e.start, e.nbytes)):
        assert e.file==path and e.start==at and e.nbytes*8==math.prod(e.shape)*BITS[e.dtype], e
        at += e.nbytes
    assert at==len(data), (at, len(data))
    if b'-0' in data or not {e.dtype for e in entries}<=THEIRS: return
    theirs = {name: (tuple(o['shape']), len(o['data'])) for name, o in deserialize(data)}
    assert theirs=={e.name: (e.shape, e.nbytes) for e in entries}, theirs

def inside(checkpoint, folder):
    "All tensors of a folder lie in its files, each in one place"
    assert {e.file.parent for e in checkpoint.tensors.values()}=={folder}
    assert {e.file.name for e in checkpoint.tensors.values()}<=set(checkpoint.files)
    for e in checkpoint.tensors.values():
        lies_in(e, e.file.stat().st_size)

def lies_in(e, size):
    assert 0<e.start<=e.start+e.nbytes<=size and e.nbytes*8==e.numel*BITS[e.dtype], e

def one_sentence(text):
    right = text.isprintable() and ' ' in text and text.endswith(('.', '?')) and len(text)<=LONGEST
    assert right, repr(text[:900])

def kind_of(text):
    "The first words of a refusal, without what is special"
    text = re.sub(r'^\S*/\S*:? ', '', text)
    return re.sub(r'''"[^"]*"|'(?:[^'\\]|\\.)*'|\(.*?\)|\S*/\S+|-?[\d.]+(?:e\+\d+)?''', '_', text)[:72]


class Room:
    "A folder in which one file after another is wrong, and what is asked of it"
    def __init__(self, folder, rng):
        from vlm_merging import Checkpoint, plan
        from vlm_merging.checkpoints import model_files
        from vlm_merging.checkpoints.headers import read_bin, read_header
        model_files.TICK = 0                            # Each file is written just before it is opened
        self.read_header, self.read_bin, self.open, self.plan = read_header, read_bin, Checkpoint.open, plan
        self.rng, self.one, self.bin = rng, folder/'one.safetensors', folder/'pytorch_model.bin'
        self.vlm, self.llm, self.index, self.whole = made_folders(folder)
        with zipfile.ZipFile(io.BytesIO(self.whole)) as z: self.parts = {n: z.read(n) for n in z.namelist()}
        self.warm()

    def warm(self):
        "Import what is imported late, so that no file is charged for it"
        from transformers import CONFIG_MAPPING, logging
        from vlm_merging.checkpoints.decoder import text_config
        logging.set_verbosity_error()
        self.kinds = [*CONFIG_MAPPING]
        text_config({'model_type': 'aria'}, True)
        self.bin.write_bytes(self.whole)
        assert len(self.read_bin(self.bin))==3
        self.plans()

    def header(self):
        data = header_bytes(self.rng, *self.rng.choice(HEADERS))
        self.one.write_bytes(data)
        yield 0
        entries, meta = self.read_header(self.one)
        hold(entries.values(), self.one, data)
        assert all(isinstance(x, str) for o in meta.items() for x in o)

    def pickle(self):
        self.bin.write_bytes(pickle_bytes(self.rng, self.whole, self.parts))
        yield 0
        for e in self.read_bin(self.bin).values(): lies_in(e, self.bin.stat().st_size)

    def look(self): inside(self.open(self.vlm), self.vlm)

    def plans(self):
        said = str(self.plan(self.vlm, self.llm))
        for line in said.splitlines(): assert line.isprintable() and len(line)<4000, repr(line[:900])

    def wrong(self, name, value, ask, folder=None):
        "Ask about a folder in which one file is wrong, and mend it"
        path = (folder or self.vlm)/name
        was = path.read_bytes() if path.exists() else None
        path.write_bytes(mutated(self.rng, value) if isinstance(value, list) else value)
        yield 0
        try: ask()
        finally: path.write_bytes(was) if was is not None else path.unlink()

    def indexes(self): return self.wrong('model.safetensors.index.json', self.index, self.look)
    def configs(self): return self.wrong('config.json', CONFIG, self.look)
    def adapters(self):
        "Beside weights and without them"
        folder = self.vlm if self.rng.random()<.5 else self.vlm.parent
        if folder!=self.vlm: (folder/'config.json').write_text(text_of(CONFIG))
        return self.wrong('adapter_config.json', ADAPTER, lambda: self.open(folder), folder)
    def planned(self):
        folder = self.rng.choice([self.vlm, self.llm])
        name, value = self.rng.choice([('config.json', CONFIG if folder==self.vlm else pairs(TEXT)),
                                       ('tokenizer.json', WORDS)])
        if name=='config.json' and self.rng.random()<.4: value = of_another_kind(self.rng, value, self.kinds)
        if self.rng.random()<.3:
            folder, name = self.llm, 'model.safetensors'
            n = int.from_bytes((raw := (folder/name).read_bytes())[:8], 'little')
            value = header_bytes(self.rng, pairs(json.loads(raw[8:8+n])), len(raw)-8-n)
        return self.wrong(name, value, self.plans, folder)

SHARES = dict(header=70, indexes=12, configs=9, adapters=5, planned=2.5, pickle=1.5)

def megabytes(folder): return sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())/1e6

def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def rough(n, seed, folder):
    "Count what became of `n` files; the slowest; what was neither opened nor refused in one sentence"
    rng = random.Random(seed)
    room, counts, refused, slow, faults = Room(folder, rng), Counter(), Counter(), (0., ''), []
    before = memory()
    for i in range(n):
        kind, = rng.choices([*SHARES], SHARES.values())
        steps = getattr(room, kind)()
        next(steps)
        start = time.process_time()
        try:
            next(steps, None)
            counts[kind, 'opened'] += 1
        except ValueError as e:
            counts[kind, 'refused'] += 1
            refused[kind_of(str(e))] += 1
            try:
                assert type(e) is ValueError, repr(e)
                one_sentence(str(e))
            except AssertionError as a: faults.append((i, kind, str(a)))
        except Exception as e: faults.append((i, kind, f'{type(e).__name__}: {str(e)[:900]}'))
        spent = time.process_time()-start
        slow = max(slow, (spent, f'{kind} {i}'))
        if spent>SECONDS and spent>SECONDS+A_MEGABYTE*(size := megabytes(folder)):
            faults.append((i, kind, f'took {spent:.1f} s for {size:.0f} MB'))
        if faults and faults[-1][0]==i: print('  FAULT', *faults[-1], file=sys.stderr, flush=True)
        if i%50_000==49_999: print(f'  {i+1:,} files, {len(faults)} faults', file=sys.stderr, flush=True)
    return counts, refused, slow, faults, memory()-before

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('-n', type=int, default=1_000_000, help='files')
    p.add_argument('--seed', type=int, default=0)
    given, start = p.parse_args(), time.perf_counter()
    warnings.simplefilter('ignore')
    shm = Path('/dev/shm')
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        counts, refused, slow, faults, growth = rough(given.n, given.seed, Path(folder))
    if growth>GROWTH: faults.append(('all', '', f'memory grew by {growth:.0f} MB'))
    for kind in SHARES:
        print(f"{kind:9}{counts[kind, 'opened']:9,} opened {counts[kind, 'refused']:9,} refused")
    for what, k in refused.most_common(60): print(f'{k:9,}  {what}')
    print(f'{len(refused)} kinds of refusal; {given.n:,} files in {time.perf_counter()-start:.0f} s, the '
          f'longest {slow[0]:.2f} s of the processor ({slow[1]}), memory grew by {growth:.0f} MB, '
          f'{len(faults)} faults')
    shown = {(kind, kind_of(what)[:40]): (i, what) for i, kind, what in reversed(faults)}
    for (kind, _), (i, what) in [*shown.items()][-20:]: print('FAULT', i, kind, what)
    sys.exit(bool(faults))

if __name__=='__main__': main()
