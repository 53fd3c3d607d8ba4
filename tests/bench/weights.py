"""What measuring two task vectors costs, beside what it must cost at least.

    python tests/bench/weights.py --layers 8 --runs 5 --dir /dev/shm

makes a synthetic VLM, LLM and base (as tests/bench/merge.py does: bfloat16, hidden size 2048, three
shards) and runs, in turn and each in a fresh process with one worker and one torch thread,
- the floors: every paired tensor of the three models (of two, without a base) is read into fixed buffers of
  262 144 numbers, each block is converted to float32 into another fixed buffer, and the dot product of the
  tensor with itself is added up. No plan, no names, no checks, no subtraction, nothing between two models;
- `weight_stats` with the base, without it, and (if asked) with subspaces of rank 16.
CPU seconds and wall seconds are those of the whole process, start-up (Python, torch, the package) included;
`work` is the CPU time without start-up, taken inside the process around the call, and the ratio is given for
both. Medians, and peak resident memory.
"""
import argparse, ctypes, importlib.util, os, shutil, statistics, subprocess, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location('merge_bench', Path(__file__).with_name('merge.py'))
merge_bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(merge_bench)
BLOCK = 1 << 18


def floor(where, sides):
    "Read, convert, one dot product per tensor: nothing else"
    import torch
    torch.set_num_threads(1)
    spent = time.process_time()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'): libc.mallopt(-1, 1 << 27), libc.mallopt(-3, 1 << 25)  # as weight_stats does
    room = bytearray(2*BLOCK)
    view, half, full = memoryview(room), torch.frombuffer(room, dtype=torch.bfloat16), torch.empty(BLOCK)
    for side in sides:
        places = merge_bench.ranges(where/side)
        files = {p: os.open(p, os.O_RDONLY) for p, _, _ in places.values()}
        for name, (p, at, n) in places.items():
            if name.startswith('vision'): continue
            total = 0.
            for i in range(0, n, 2*BLOCK):
                k = min(BLOCK, (n-i)//2)
                os.preadv(files[p], [view[:2*k]], at+i)
                x = full[:k]
                x.copy_(half[:k])
                total += float(torch.dot(x, x))
    return time.process_time()-spent


def ours(where, sides, workers, subspace):
    "The public call"
    from vlm_merging.probing.weights import weight_stats
    spent = time.process_time()
    weight_stats(*(where/s for s in sides), subspace=subspace, workers=workers, progress=False)
    return time.process_time()-spent


def measured(job, where):
    "One run in a fresh process: CPU seconds, wall seconds, peak MiB, CPU seconds without start-up"
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, __file__, '--job', job, '--inputs', str(where)],
                             stdout=subprocess.PIPE,
                             env=os.environ | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'})
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter()-start
    if status: sys.exit(f'{job} failed')
    return usage.ru_utime+usage.ru_stime, wall, usage.ru_maxrss/1024*(1024 if sys.platform == 'linux'
        else 1)/1024, float(said)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--layers', type=int, default=8, help='8 is 0.64 B parameters (1.3 GB) a model, 28 is '
                                                         '2.0 B')
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--dir', type=Path, default=Path('/dev/shm'), help='where inputs are made')
    p.add_argument('--inputs', type=Path, help='where inputs are made, or lie from an earlier run')
    p.add_argument('--jobs', default='floor-base,stats-base,stats-base-2,floor-direct,stats-direct',
                   help='also: stats-svd')
    p.add_argument('--job', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.job:
        kind, what, *rest = args.job.split('-')
        sides = ('vlm', 'llm') if what == 'direct' else ('vlm', 'llm', 'base')
        print(floor(args.inputs, sides) if kind == 'floor' else
              ours(args.inputs, sides, int((rest or [1])[0]), 16 if what == 'svd' else 0))
        return
    where = args.inputs or args.dir/'vlm_merging_bench'
    if not where.exists():
        subprocess.run([sys.executable, merge_bench.__file__, '--job', 'make', '--inputs', str(where),
                        '--layers', str(args.layers)],
                       check=True)
    size = sum(f.stat().st_size for f in (where/'vlm').glob('*.safetensors'))
    print(f'{size/1e9:.2f} GB a model; load before: {os.getloadavg()[0]:.2f}; {os.cpu_count()} cores; torch '
          f'threads 1')
    jobs, got = args.jobs.split(','), {}
    for _ in range(args.runs):
        for job in jobs: got.setdefault(job, []).append(measured(job, where))
    mid = {j: [statistics.median(x) for x in zip(*rows)] for j, rows in got.items()}
    print(f"{'job':<14}{'CPU s':>8}{'work s':>8}{'wall s':>8}{'peak MiB':>10}  against its floor: whole "
          f"process, work")
    for j, (cpu, wall, mem, work) in mid.items():
        f = mid.get('floor-direct' if 'direct' in j else 'floor-base')
        print(f"{j:<14}{cpu:>8.2f}{work:>8.2f}{wall:>8.2f}{mem:>10.0f}  "
              f"{f'{cpu/f[0]:.2f}, {work/f[3]:.2f}' if f else ''}")
    print(f'load after: {os.getloadavg()[0]:.2f}')
    if not args.inputs: shutil.rmtree(where)


if __name__ == '__main__': main()
