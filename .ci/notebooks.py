"""Run every notebook once, each in a process of its own: do its cells pass, and give what it stores?
`python .ci/notebooks.py` runs all, `python .ci/notebooks.py nbs/merging/09_recipe.ipynb` one;
`--save` keeps the fresh outputs."""
import difflib, json, math, multiprocessing, re, shutil, sys, tempfile, time
from pathlib import Path

project = Path(__file__).resolve().parent.parent
FLAGS = 'notest', 'slow'             # Cells that are left out
CLOSE = 2e-3                         # Relative distance up to which two decimal fractions are the same
WORKERS = 2
PRELOADED = 'nbdev.test', 'torch', 'transformers', 'polars', 'altair', 'IPython', 'ipywidgets'

# What an output says, without what is another each time

MASKS = [(re.compile(pattern), mask) for pattern, mask in (
    (r'\x1b\[[\d;]*m', ''),                                                             # Colours
    (r'(?<![\w.])/(?:tmp|var/folders|private|home|root|Users)/[^\s\'",:;)<>]*', '(path)'),
    (r'\b0x[0-9a-f]{6,}', '(address)'),
    (r'\b(?:127\.0\.0\.1|localhost):\d+', '(port)'),
    (r'\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b|\b[0-9a-f]{32}\b', '(id)'),
    (r'\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?', '(date)'),
    (r'\b\d+(?:\.\d+)?(?: ?(?:ms|µs|s|seconds?|minutes?|min)\b| CPU s\b)', '(time)'),
    (r'\b\d\d?:\d\d(?::\d\d)?\b', '(time)'))]
NUMBER = re.compile(r'[-+]?\d+\.\d+(?:e[-+]?\d+)?', re.I)

def joined(text): return ''.join(text) if isinstance(text, list) else text or ''

def masked(text):
    for pattern, mask in MASKS: text = pattern.sub(mask, text)
    return '\n'.join(o.rstrip() for o in text.strip().splitlines())

def chart_data(spec):
    "A chart by what it shows: its rows, fields and titles; names of datasets are hashes of their rows"
    held = spec.get('datasets', {})
    order = {name: f'data {i}' for i, name in enumerate(held)}
    def plain(o):
        if isinstance(o, dict):
            return {order.get(k, k): plain(v) for k, v in o.items() if k not in ('$schema', 'usermeta')}
        if isinstance(o, list): return [plain(v) for v in o]
        return order.get(o, re.sub(r'^(view|param|concat)_\d+', r'\1', o)) if isinstance(o, str) else o
    return json.dumps(plain(spec), indent=0, sort_keys=True, ensure_ascii=False)

def shown(out):
    "One output as a kind and a text"
    if out['output_type']=='stream': return 'text', joined(out['text'])
    if out['output_type']=='error': return 'error', out.get('ename', '')
    data = out.get('data', {})
    for kind in data:
        if 'vegalite' in kind: return 'chart', chart_data(data[kind])
    if 'application/vnd.jupyter.widget-view+json' in data: return 'widget', ''
    for kind in 'text/markdown', 'text/html', 'text/plain':
        if kind in data and not any(o.startswith('image/') for o in data): return kind, joined(data[kind])
    return ', '.join(sorted(o for o in data if o!='text/plain')), ''

def outputs(cell):
    "All that a cell shows; what is printed in one go counts as one"
    made = []
    for kind, text in map(shown, cell.get('outputs', [])):
        if kind=='text' and made and made[-1][0]=='text': made[-1] = 'text', made[-1][1]+text
        else: made.append((kind, text))
    return [(kind, masked(text)) for kind, text in made]

def alike(a, b):
    "Are two texts the same, but for the last places of decimal fractions?"
    if a==b: return True
    if NUMBER.split(a)!=NUMBER.split(b): return False
    return all(math.isclose(float(x), float(y), rel_tol=CLOSE, abs_tol=CLOSE/10) for x,
               y in zip(NUMBER.findall(a), NUMBER.findall(b)))

def difference(stored, fresh):
    "Where two lists of outputs differ, in a few lines; None if nowhere"
    kinds = [[kind for kind, _ in side] for side in (stored, fresh)]
    if kinds[0]!=kinds[1]:
        return f"stored: {', '.join(kinds[0]) or 'nothing'}; fresh: {', '.join(kinds[1]) or 'nothing'}"
    for (_, a), (_, b) in zip(stored, fresh):
        if not alike(a, b):
            lines = [o for o in difflib.unified_diff(a.splitlines(), b.splitlines(), 'stored', 'fresh', n=0,
                                                     lineterm='')
                     if not o.startswith(('---', '+++', '@@'))]
            return '\n'.join(o[:200] for o in lines[:12])

# One notebook

def at_home(text):
    "A notebook in which files of the project are named from its folder: where that lies is nobody's business"
    return text.replace(f'{project}/', '')

def run(path, save):
    "Run a notebook in this process; what is wrong with it, and the seconds it took"
    from nbdev.test import nb_test_cells, test_nb
    start, folder = time.time(), Path(tempfile.mkdtemp())
    shutil.copytree(project/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.*', '_*'))
    for o in 'pyproject.toml', 'settings.ini': shutil.copy(project/o, folder)
    try:
        fresh, wrong = folder/path, []
        passed, _ = test_nb(fresh, skip_flags=FLAGS, save=True)
        if not passed: return path, ['a cell fails; it stands above'], time.time()-start
        ran = {o.id for o in nb_test_cells(project/path, skip_flags=FLAGS)}
        sides = [{o['id']: o for o in json.loads(at_home((root/path).read_text(encoding='utf-8')))['cells']}
                 for root in (project, folder)]
        stale = {name: told for name in ran if name in sides[0] and name in sides[1]
                 and (told := difference(*(outputs(side[name]) for side in sides)))}
        if save and stale:
            whole = json.loads((project/path).read_text(encoding='utf-8'))
            for cell in whole['cells']:
                if cell['id'] in stale: cell['outputs'] = sides[1][cell['id']]['outputs']
            (project/path).write_text(json.dumps(whole, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
        elif not save:
            for name, told in sorted(stale.items()):
                first = next(o for o in joined(sides[0][name]['source']).splitlines()+['']
                             if not o.startswith('#|'))
                wrong.append(f'cell {name} (`{first[:70]}`) stores what it does not give:\n{told}')
        return path, wrong, time.time()-start
    finally: shutil.rmtree(folder, ignore_errors=True)

def main(args):
    save, names = '--save' in args, [o for o in args if o!='--save']
    paths = [str(Path(o).resolve().relative_to(project)) for o in names] or sorted(
        str(o.relative_to(project)) for o in (project/'nbs').rglob('*.ipynb')
        if not any(p.startswith(('.', '_')) for p in o.relative_to(project).parts))
    if lost := [o for o in paths if not (project/o).is_file()]:
        sys.exit(f'There is no notebook {", ".join(lost)}.')
    paths.sort(key=lambda o: not o.startswith('nbs/tutorials'))         # Long ones first
    context, faults = multiprocessing.get_context('forkserver'), 0
    context.set_forkserver_preload(list(PRELOADED))
    with context.Pool(min(WORKERS, len(paths)), maxtasksperchild=1) as pool:
        for path, wrong, seconds in pool.imap_unordered(in_one, [(o, save) for o in paths], chunksize=1):
            print(f'{path}  {seconds:.1f} s', flush=True)
            for o in wrong: print(f'  {path}: {o}'.replace('\n', '\n    '), flush=True)
            faults += bool(wrong)
    if faults:
        sys.exit(f'{faults} of {len(paths)} notebooks fail, or store other outputs than they give. Run them '
                 f'anew and keep what they show: '
                        f'python .ci/notebooks.py --save NOTEBOOK')
    print(f'{len(paths)} notebooks pass, and store what they give.')

def in_one(job): return run(*job)

if __name__=='__main__': main(sys.argv[1:])
