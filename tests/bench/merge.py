"""What a merge costs, beside what it must cost at least.

    python tests/bench/merge.py --size 0.6B --runs 3
    python tests/bench/merge.py --size 8B --runs 1 --table

makes a VLM, LLMs and a base in bfloat16 (a Llama's names and shapes, and a small tower; three shards) and
runs, in turn and each in a fresh process,
- floors: the same arithmetic as straight-line code on the same files, with fixed buffers: no plan, no
  checks, no journal, no fsync, no names. TIES's floor trims by one histogram of 32768 bins, so it keeps about
  the share asked for, not exactly;
- the merges, through the public call: `linear`, `linear-2` with two workers, `linear+4` with four LLMs.
It prints medians of CPU seconds (user and system, start-up included), wall seconds and peak resident memory,
and the ratios of CPU and wall time to the floor, each the median of what the runs give one by one: floor
and merge alternate, so that both meet the same neighbours. `--table` puts them in the place of the rows of
that size in nbs/tutorials/merge_costs.csv, which the page "What it costs" shows.

Neither inputs nor outputs take the room that they claim. The files of the models have true headers, 64 MB of
numbers, and a hole behind; every read beyond is sent back into these numbers, for floor and merge alike. What
was written is given back to the memory by a second thread of the process that measures. So 8B needs less than
2 GB of memory-backed storage, and what is timed is computing and copying, not a disk.
"""
import argparse, csv, ctypes, json, os, shutil, statistics, subprocess, sys, threading, time
from datetime import date
from pathlib import Path

TABLE = Path(__file__).parents[2]/'nbs'/'tutorials'/'merge_costs.csv'
COLUMNS = ['size', 'job', 'user', 'system', 'cpu', 'wall', 'mib', 'cpu_ratio', 'wall_ratio', 'runs', 'load',
           'day']

# layers, hidden size, size of the MLP, rows of k and v, tokens
SIZES = {'0.6B': (8, 2048, 8192, 2048, 24_000), '2B': (28, 2048, 8192, 2048, 24_000),
         '8B': (32, 4096, 14336, 1024, 128_256)}
HEADER = 1 << 20    # bytes of every header, padded
WINDOW = 48 << 20   # reads begin in the first so many bytes of numbers
LONGEST = 16 << 20  # and are no longer than this
BUFFER = 1 << 23    # numbers per buffer of the linear floor: 16 MB in bfloat16
SMALL = 1 << 18     # numbers per block of the TIES floor
LLMS = 4


def shapes(size):
    "Names and shapes of a Llama-like language model"
    layers, hidden, mlp, kv, vocab = SIZES[size]
    made = {'model.embed_tokens.weight': (vocab, hidden)}
    for i in range(layers):
        s = f'model.layers.{i}.'
        made |= {s+f'self_attn.{p}_proj.weight': (n, hidden)
                 for p, n in zip('qkvo', (hidden, kv, kv, hidden))}
        made |= {s+'mlp.gate_proj.weight': (mlp, hidden), s+'mlp.up_proj.weight': (mlp, hidden),
                 s+'mlp.down_proj.weight': (hidden, mlp)}
        made |= {s+f'{n}_layernorm.weight': (hidden,) for n in ('input', 'post_attention')}
    return made | {'model.norm.weight': (hidden,), 'lm_head.weight': (vocab, hidden)}


def make(folder, size, which, prefix=''):
    "Write one model; `which` 0 is the base, others are it plus a small task vector"
    import torch
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    names, table = list(shapes(size).items()), {}
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
            nbytes = 2*s[0]*(s[1] if len(s) > 1 else 1)
            head[name] = dict(dtype='BF16', shape=list(s), data_offsets=[at, at+nbytes]); at += nbytes
            table[name] = file
        with open(folder/file, 'wb') as f:
            f.write((HEADER-8).to_bytes(8, 'little')+json.dumps(head).encode().ljust(HEADER-8))
            for _ in range((WINDOW+LONGEST)//len(tile)): f.write(tile)
            f.truncate(HEADER+at)
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=table)))
    layers, hidden, mlp, kv, vocab = SIZES[size]
    text = dict(model_type='llama', hidden_size=hidden, num_hidden_layers=layers,
                num_attention_heads=hidden//128, num_key_value_heads=kv//128, intermediate_size=mlp,
                vocab_size=vocab, rms_norm_eps=1e-5, rope_theta=5e5)
    (folder/'config.json').write_text(json.dumps(dict(model_type='llava', text_config=text) if prefix
                                                 else text))


def read_in_window():
    "Send every read of numbers to the first of a file, which are there"
    preadv = os.preadv
    def nearer(fd, views, at):
        if at >= HEADER and len(views[0]) <= LONGEST: at = HEADER+(at-HEADER)%WINDOW
        return preadv(fd, views, at)
    os.preadv = nearer


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
    for p, fd in outs.items(): os.ftruncate(fd, p.stat().st_size)
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


def ours(job, where, out, device):
    "The public call"
    from vlm_merging.merging.merge import merge
    from vlm_merging.merging.recipe import Recipe
    method, llms, workers = parts_of(job)
    knobs = dict(weight=[round(1-.1*llms, 1), *[.1]*llms]) if llms > 1 else {}
    base = None if method == 'linear' else where/'base'
    llm = [where/f'llm{i or ""}' for i in range(llms)]
    merge(Recipe(where/'vlm', llm if llms > 1 else llm[0], base, method, knobs), out=out, workers=workers,
          device=device)


def parts_of(job):
    "Method, LLMs and workers of a job"
    rest, _, workers = job.partition('-')
    method, _, llms = rest.partition('+')
    return method, int(llms or 1), int(workers or 1)


def forget(folders, done):
    "Give back the room of what was written, again and again"
    libc = ctypes.CDLL(None)
    if not hasattr(libc, 'fallocate'): return
    while not done.wait(.2):
        for f in [f for d in folders if d.is_dir() for f in d.glob('*.safetensors*')]:
            try: fd = os.open(f, os.O_RDWR)
            except OSError: continue    # renamed meanwhile
            if f.stat().st_size > WINDOW:   # 3: punch a hole, keep the size
                libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(os.fstat(fd).st_size))
            os.close(fd)


def measured(job, where, out, args):
    "One run in a fresh process: user, system and wall seconds, peak MiB"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, '--job', job, '--inputs', str(where), '--out', str(out),
               '--device', args.device]
    done = threading.Event()
    eraser = threading.Thread(target=forget, args=([out, out.with_name(f'.{out.name}.draft')], done))
    eraser.start()
    start = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {'OMP_NUM_THREADS': '1'})
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter()-start
    done.set()
    eraser.join()
    if status: sys.exit(f'{job} failed')
    shutil.rmtree(out, ignore_errors=True)
    return usage.ru_utime, usage.ru_stime, wall, usage.ru_maxrss/1024*(1024 if sys.platform == 'linux'
        else 1)/1024


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', default='0.6B', choices=SIZES, help='numbers a model')
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--dir', type=Path, default=Path('/dev/shm'), help='where all is written')
    p.add_argument('--jobs', default='floor_linear,linear,linear-2,linear+2,linear+4,'
                                     'floor_ties,ties,dare_linear,dare_ties')
    p.add_argument('--device', default='cpu')
    p.add_argument('--table', action='store_true', help=f'keep the figures in {TABLE.name}')
    for hidden in ('--job', '--inputs', '--out'): p.add_argument(hidden, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.job:
        where, out = Path(args.inputs), Path(args.out or '')
        if args.job == 'make':
            for name, which, prefix in (('base', 0, ''), ('llm', 1, ''), ('vlm', 2, 'language_model.')):
                make(where/name, args.size, which, prefix)
            return
        read_in_window()
        if args.job.startswith('floor'): floor(args.job.partition('_')[2], where, out)
        else: ours(args.job, where, out, args.device)
        return
    where = args.dir/'vlm_merging_bench'
    shutil.rmtree(where, ignore_errors=True)
    try:
        # apart: a child begins with the peak memory of its parent, so this process does without torch
        subprocess.run([sys.executable, __file__, '--job', 'make', '--inputs', str(where),
                        '--size', args.size], check=True)
        for i in range(1, LLMS): (where/f'llm{i}').symlink_to('llm')
        report(args, where)
    finally: shutil.rmtree(where)


def keep_rows(size, table):
    "Put the rows of one size into the table of the page"
    old = list(csv.reader(open(TABLE)))[1:] if TABLE.exists() else []
    rows = sorted([r for r in old if r[0] != size]+table, key=lambda r: list(SIZES).index(r[0]))
    with open(TABLE, 'w', newline='') as f: csv.writer(f, lineterminator='\n').writerows([COLUMNS, *rows])


def report(args, where):
    "Run all jobs in turn, and say what they took"
    size = sum(f.stat().st_size for f in (where/'vlm').glob('*.safetensors'))
    print(f'{size/1e9:.2f} GB a model; load before: {os.getloadavg()[0]:.2f}; {os.cpu_count()} cores')
    jobs, got = args.jobs.split(','), {}
    for _ in range(args.runs):
        for job in jobs:
            got.setdefault(job, []).append(measured(job, where, args.dir/'vlm_merging_bench_out', args))
            print(f'  {job}:', ' '.join(f'{x:.2f}' for x in got[job][-1]), file=sys.stderr, flush=True)
    print(f"{'job':<14}{'user s':>8}{'sys s':>8}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}  CPU, wall / floor")
    table = []
    for job, rows in got.items():
        user, system, wall, mem = map(statistics.median, zip(*rows))
        cpu = statistics.median(r[0]+r[1] for r in rows)
        under = 'floor_linear' if parts_of(job)[0] == 'linear' else 'floor_ties'
        ratios = ['', '']
        if under in got and not job.startswith('floor'):
            ratios = [f'{statistics.median(x):.2f}' for x in zip(*(
                ((r[0]+r[1])/(f[0]+f[1]), r[2]/f[2]) for r, f in zip(rows, got[under])))]
        print(f"{job:<14}{user:>8.2f}{system:>8.2f}{cpu:>8.2f}{wall:>8.2f}{mem:>10.0f}  {', '.join(ratios)}")
        table.append([args.size, job, *(f'{x:.2f}' for x in (user, system, cpu, wall)), f'{mem:.0f}', *ratios,
                      len(rows), f'{os.getloadavg()[0]:.1f}', date.today().isoformat()])
    if args.table: keep_rows(args.size, table)
    print(f'load after: {os.getloadavg()[0]:.2f}')


if __name__ == '__main__': main()
