"""Kills, by hand: a run that is stopped dead at any moment, and begun again, ends as if nothing had happened.

    python tests/bench/kills.py merge --workers 4 -n 300
    python tests/bench/kills.py ask -n 50          (also: profile, sweep, prepare)

Each kill is SIGKILL to a process of its own, at a moment drawn from the time that an undisturbed run takes.
The same is then begun again until it ends, now and then with another kill in between, and what it left is
compared with what an undisturbed run leaves: all files of a merge or of a prepared benchmark byte for byte,
replies and tables row for row but for the seconds. Printed are how many were killed in the middle, and what
differs; the exit code is 1 if anything does.
"""
import argparse, hashlib, multiprocessing, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')
SLOW = .002             # Seconds that each piece of a merge takes, so that a kill falls in the middle


def files(folder):
    "Hash of every file by name"
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob('*')) if p.is_file() and p.name!='.lock'}

def rows(table): return sorted(map(repr, table.drop('seconds', strict=False).to_dicts()))

def run_merge(out, inputs, workers):
    from vlm_merging import merge
    from vlm_merging.checkpoints import writer
    writer.FLUSH, done = 1, writer.Shard.done
    def slowly(self, *args): time.sleep(SLOW); done(self, *args)
    writer.Shard.done = slowly
    return files(merge('lab/vlm', 'lab/llm', 'lab/base', method='dare_ties', out=out, workers=workers))

def items(): return __import__('vlm_merging').load('lab', n=28)

def run_ask(out, inputs, workers):
    from vlm_merging import ask
    return rows(ask('lab/vlm', items(), out=out, batch_size=4, max_new_tokens=12))

def run_profile(out, inputs, workers):
    from vlm_merging.probing import probe
    probe.PART = 4
    return rows(probe.probe_folder(dict(vlm='lab/vlm'), items(), out, parts=('layer',), layers='0-2',
                                   batch_size=8))

def run_sweep(out, inputs, workers):
    from vlm_merging import sweep
    return rows(sweep('lab/vlm', 'lab/llm', weights=[.9, .7, .5], items=items(), out=out, batch_size=14,
                      max_new_tokens=12).table)

def run_prepare(out, inputs, workers):
    from vlm_merging import load, prepare
    prepare('MathVista', out, source=inputs)
    return files(out), len(load('MathVista', folder=out))

JOBS = dict(merge=run_merge, ask=run_ask, profile=run_profile, sweep=run_sweep, prepare=run_prepare)

def child(job, out, inputs, workers, answer):
    import torch
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, 'w')
    answer.put(JOBS[job](out, inputs, workers))

def begun(context, *args):
    "A process that runs a job, and where its answer comes"
    answer = context.SimpleQueue()
    process = context.Process(target=child, args=(*args, answer))
    process.start()
    return process, answer

def ended(process, answer):
    "What a process that is left alone answers; None if it died"
    while process.is_alive() and answer.empty(): time.sleep(.005)
    got = None if answer.empty() else answer.get()
    process.join()
    return got

def mirror(folder):
    "A table as a benchmark is fetched, of some megabytes"
    folder.mkdir()
    text = ''.join(f'{i}\tHow many?\t{i}\t{"A"*4000}\n' for i in range(3000))
    for name in 'MathVista_MINI.tsv', 'MathVista.tsv':
        (folder/name).write_text('index\tquestion\tanswer\timage\n'+text, encoding='utf-8')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('job', choices=JOBS)
    p.add_argument('-n', type=int, default=100, help='kills')
    p.add_argument('--workers', type=int, default=4, help='threads of a merge')
    p.add_argument('--seed', type=int, default=0)
    given = p.parse_args()
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'transformers', 'polars', 'vlm_merging.probing.probe'])
    rng, middle, over, wrong = random.Random(given.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        inputs, out = Path(folder)/'inputs', Path(folder)/'there'/'out'
        mirror(inputs)
        def begin(): return begun(context, given.job, out, inputs, given.workers)
        def undisturbed():
            out.parent.mkdir()
            start, right = time.perf_counter(), ended(*begin())
            shutil.rmtree(out.parent)
            return right, time.perf_counter()-start
        undisturbed()
        right, spent = undisturbed()
        if right is None: sys.exit('The undisturbed run fails.')
        kills = 0
        while kills<given.n:
            out.parent.mkdir()
            while True:                                     # Again and again, until one is left alone
                process, answer = begin()
                time.sleep(rng.uniform(.02, spent))
                alive = process.is_alive()
                os.kill(process.pid, signal.SIGKILL) if alive else None
                process.join()
                kills, middle, over = kills+1, middle+alive, over+(not alive)
                if not alive or rng.random()<.6 or kills>=given.n: break
            whole = given.job=='merge' and out.exists()     # It is refused to make it anew
            got = files(out) if whole else ended(*begin())
            left = sorted(f.name for f in out.parent.iterdir())
            if got!=right or left!=['out']: wrong.append((kills, left, got is None))
            shutil.rmtree(out.parent)
    print(f'{given.job}: {kills} kills of a run of {spent:.2f} s, {middle} in the middle, {over} after its '
          f'end; {len(wrong)} differ {wrong[:5]}')
    sys.exit(bool(wrong))

if __name__=='__main__': main()
