"""What a merge costs, beside what it must cost at least.

    python tests/bench/merge.py --layers 8 --runs 3 --dir /dev/shm

makes a synthetic VLM, LLM and base (bfloat16, hidden size 2048, three shards) and runs, in turn
and each in a fresh process,
- `cp`: a copy of the VLM's files, the cheapest way to write as many bytes;
- floors: the same arithmetic as straight-line code on the same files, with fixed buffers: no plan, no
  checks, no journal, no fsync, no names. TIES's floor trims by one histogram of 32768 bins, so it keeps about
  the share asked for, not exactly;
- the merges, through the public call, with one worker (and linear with two).
It prints medians of CPU seconds (start-up included), wall seconds and peak resident memory, and the ratios.
"""
import argparse, ctypes, json, os, shutil, statistics, subprocess, sys, time
from pathlib import Path

HIDDEN, MLP, HEADS, VOCAB = 2048, 8192, 16, 24_000
BUFFER = 1 << 23    # numbers per buffer of the linear floor: 16 MB in bfloat16
SMALL = 1 << 17     # numbers per block of the TIES floor


def shapes(layers):
    "Names and shapes of a Llama-like language model"
    made = {'model.embed_tokens.weight': (VOCAB, HIDDEN)}
    for i in range(layers):
        s = f'model.layers.{i}.'
        made |= {s+f'self_attn.{p}_proj.weight': (HIDDEN, HIDDEN) for p in 'qkvo'}
        made |= {s+'mlp.gate_proj.weight': (MLP, HIDDEN), s+'mlp.up_proj.weight': (MLP, HIDDEN),
                 s+'mlp.down_proj.weight': (HIDDEN, MLP)}
        made |= {s+f'{n}_layernorm.weight': (HIDDEN,) for n in ('input', 'post_attention')}
    return made | {'model.norm.weight': (HIDDEN,), 'lm_head.weight': (VOCAB, HIDDEN)}


def make(folder, layers, which, prefix=''):
    "Write one synthetic model; `which` 0 is the base, others are it plus a small task vector"
    import torch
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    names, table = list(shapes(layers).items()), {}
    if prefix: names.append(('vision_tower.patch.weight', (1024, 4096)))
    rng = torch.Generator().manual_seed(which)
    tile = torch.randn(1 << 22, generator=torch.Generator().manual_seed(7))*.02
    if which: tile = tile+torch.randn(1 << 22, generator=rng)*3e-4
    tile = tile.bfloat16().view(torch.uint8).numpy().tobytes()
    per = -(-len(names)//3)
    for k in range(3):
        part, head, at = names[k*per:(k+1)*per], {'__metadata__': {'format': 'pt'}}, 0
        file = f'model-0000{k+1}-of-00003.safetensors'
        for n, s in part:
            name = prefix+n if prefix and not n.startswith('vision') else n
            size = 2*s[0]*(s[1] if len(s) > 1 else 1)
            head[name] = dict(dtype='BF16', shape=list(s), data_offsets=[at, at+size]); at += size
            table[name] = file
        raw = json.dumps(head).encode(); raw += b' '*(-len(raw) % 8)
        with open(folder/file, 'wb') as f:
            f.write(len(raw).to_bytes(8, 'little')+raw)
            left = at
            while left: left -= f.write(tile[:min(left, len(tile))])
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=table)))
    text = dict(model_type='llama', hidden_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=HEADS,
                num_key_value_heads=HEADS, intermediate_size=MLP, vocab_size=VOCAB, rms_norm_eps=1e-5,
                rope_theta=5e5)
    (folder/'config.json').write_text(json.dumps(dict(model_type='llava', text_config=text) if prefix
                                                 else text))


def ranges(folder):
    "Name -> (file, first byte, bytes), read naively"
    made = {}
    for f in sorted(Path(folder).glob('*.safetensors')):
        with open(f, 'rb') as h:
            n = int.from_bytes(h.read(8), 'little')
            for k, v in json.loads(h.read(n)).items():
                if k != '__metadata__':
                    made[k] = (f, 8+n+v['data_offsets'][0], v['data_offsets'][1]-v['data_offsets'][0])
    return made


def floor(method, where, out):
    "Read, compute, write: nothing else"
    import torch
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'): libc.mallopt(-1, 1 << 27), libc.mallopt(-3, 1 << 25)    # as the merge does
    vlm, llm, base = (ranges(where/w) for w in ('vlm', 'llm', 'base'))
    out.mkdir()
    files = {p: os.open(p, os.O_RDONLY) for d in (vlm, llm, base) for p, _, _ in d.values()}
    outs = {p: os.open(out/p.name, os.O_RDWR | os.O_CREAT) for p, _, _ in vlm.values()}
    size = BUFFER if method == 'linear' else SMALL
    rooms = [bytearray(2*size) for _ in range(3)]
    tensors = [torch.frombuffer(r, dtype=torch.bfloat16) for r in rooms]
    result = torch.empty(size, dtype=torch.bfloat16)
    bytes_of = memoryview(result.view(torch.uint8).numpy())

    def read(spots, i, n):
        for room, (p, at, _) in zip(rooms, spots): os.preadv(files[p], [memoryview(room)[:2*n]], at+2*i)
        return [t[:n] for t in tensors[:len(spots)]]

    for name, (p, at, n) in vlm.items():
        inner = name.removeprefix('language_model.')
        if not inner.startswith(('model.layers', 'model.norm')):
            moved = 0
            while moved < n:
                try: moved += os.copy_file_range(files[p], outs[p], n-moved, at+moved, at+moved)
                except OSError:     # inputs and outputs on different file systems
                    k = os.preadv(files[p], [memoryview(rooms[0])[:n-moved]], at+moved)
                    moved += os.pwrite(outs[p], memoryview(rooms[0])[:k], at+moved)
            continue
        spots, numbers = [vlm[name], llm[inner], base[inner]], n//2
        if method == 'linear':
            for i in range(0, numbers, size):
                k = min(size, numbers-i)
                v, l = read(spots[:2], i, k)
                torch.lerp(l, v, .9, out=result[:k])
                os.pwrite(outs[p], bytes_of[:2*k], at+2*i)
            continue
        counts = [torch.zeros(1 << 15, dtype=torch.int64) for _ in 'ab']
        for i in range(0, numbers, size):
            v, l, b = (t.float() for t in read(spots, i, min(size, numbers-i)))
            for c, d in zip(counts, (v-b, l-b)):
                c += torch.bincount(d.abs_().view(torch.int32) >> 16, minlength=1 << 15)
        cut = [(1 << 15)-1-int(torch.searchsorted(c.flip(0).cumsum(0), int(.2*numbers))) for c in counts]
        cut = [float(torch.tensor(c << 16, dtype=torch.int32).view(torch.float32)) for c in cut]
        for i in range(0, numbers, size):
            k = min(size, numbers-i)
            v, l, b = (t.float() for t in read(spots, i, k))
            x, y = (torch.nn.functional.hardshrink(d, c) for d, c in zip((v-b, l-b), cut))
            sign = torch.copysign(torch.ones(()), x+y)
            x, y = (x*sign).relu_(), (y*sign).relu_()
            both = torch.minimum(x, y).sign_()
            result[:k] = x.mul_(1.6).add_(y, alpha=.2).div_(both.add_(1)).mul_(sign).add_(b)
            os.pwrite(outs[p], bytes_of[:2*k], at+2*i)


def ours(method, where, out, workers, device):
    "The public call"
    from vlm_merging.merging.merge import merge
    from vlm_merging.merging.recipe import Recipe
    base = None if method == 'linear' else where/'base'
    merge(Recipe(where/'vlm', where/'llm', base, method), out=out, workers=workers, device=device)


def measured(job, where, out, args):
    "One run in a fresh process: CPU seconds, wall seconds, peak MiB"
    shutil.rmtree(out, ignore_errors=True)
    if job == 'cp': command = ['cp', '-r', str(where/'vlm'), str(out)]
    else:
        command = [sys.executable, __file__, '--job', job, '--inputs', str(where), '--out', str(out),
                   '--device', args.device]
    start = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {'OMP_NUM_THREADS': '1'})
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter()-start
    if status: sys.exit(f'{job} failed')
    shutil.rmtree(out, ignore_errors=True)
    return usage.ru_utime+usage.ru_stime, wall, usage.ru_maxrss/1024*(1024 if sys.platform == 'linux'
        else 1)/1024


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--layers', type=int, default=8, help='8 is 0.64 B parameters a model, 28 is 2.0 B')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--dir', type=Path, default=Path('/dev/shm'), help='where outputs go')
    p.add_argument('--inputs', type=Path, help='where inputs are made, or lie from an earlier run')
    p.add_argument('--jobs', default='cp,floor-linear,linear,linear-2,floor-ties,ties,dare_ties')
    p.add_argument('--device', default='cpu')
    p.add_argument('--job', help=argparse.SUPPRESS)
    p.add_argument('--out', type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.job:
        kind, _, rest = args.job.partition('-')
        if kind == 'make':
            for name, which, prefix in (('base', 0, ''), ('llm', 1, ''), ('vlm', 2, 'language_model.')):
                make(args.inputs/name, args.layers, which, prefix)
        elif kind == 'floor': floor(rest, args.inputs, args.out)
        else: ours(kind, args.inputs, args.out, int(rest or 1), args.device)
        return
    where = args.inputs or args.dir/'vlm_merging_bench'
    if not where.exists():
        subprocess.run([sys.executable, __file__, '--job', 'make', '--inputs', str(where), '--layers',
                        str(args.layers)], check=True)
    size = sum(f.stat().st_size for f in (where/'vlm').glob('*.safetensors'))
    print(f'{size/1e9:.2f} GB a model; load before: {os.getloadavg()[0]:.2f}; {os.cpu_count()} cores; torch '
          f'threads 1')
    jobs, got = args.jobs.split(','), {}
    for _ in range(args.runs):
        for job in jobs:
            got.setdefault(job, []).append(measured(job, where, args.dir/'vlm_merging_bench_out', args))
    mid = {j: [statistics.median(x) for x in zip(*rows)] for j, rows in got.items()}
    print(f"{'job':<14}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}  CPU against its floor")
    floors = {'linear': 'floor-linear', 'linear-2': 'floor-linear', 'ties': 'floor-ties',
              'dare_ties': 'floor-ties'}
    for j, (cpu, wall, mem) in mid.items():
        f = mid.get(floors.get(j))
        print(f"{j:<14}{cpu:>8.2f}{wall:>8.2f}{mem:>10.0f}  {f'{cpu/f[0]:.2f}' if f else ''}")
    print(f'load after: {os.getloadavg()[0]:.2f}')
    if not args.inputs: shutil.rmtree(where)


if __name__ == '__main__': main()
