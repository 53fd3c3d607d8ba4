"""Run all checks of the project: `python .ci/check.py`; or only some: `python .ci/check.py export docs`"""
import os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

project = Path(__file__).resolve().parent.parent
tools = Path(sys.executable).parent
ENV = dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PYTHONHASHSEED='0', TQDM_DISABLE='1')

def call(*command, where=project): return subprocess.run([str(o) for o in command], cwd=where).returncode

def changed_by(tool):
    "What `tool`, run in a copy of the project, would change, add or remove there"
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'project'
        copy.mkdir()
        for o in 'nbs', 'vlm_merging':
            shutil.copytree(project/o, copy/o, ignore=shutil.ignore_patterns('__pycache__', '.*', 'data'))
        for o in 'pyproject.toml', 'settings.ini', 'setup.py', '_quarto.yml': shutil.copy(project/o, copy)
        def files(): return {str(o.relative_to(copy)): o.read_bytes() for o in copy.rglob('*') if o.is_file()}
        before = files()
        if call(tools/tool, where=copy): return f'`{tool}` fails. The reason stands above.'
        after = files()
    found = sorted(o for o in before.keys() | after.keys() if before.get(o)!=after.get(o))
    if found: return f'`{tool}` changes {", ".join(found)}. Run it, and keep what it does.'

def clean():
    "Are the notebooks clean?"
    return changed_by('nbdev-clean')

def export():
    "Is the package in step with the notebooks?"
    return changed_by('nbdev-export')

def lint():
    "Is every name known, every import used, and everything of one hand?"
    if call(sys.executable, '-m', 'pyflakes', 'vlm_merging', 'tests', '.ci', 'setup.py'):
        return 'pyflakes found the names above.'
    if call(sys.executable, '.ci/lint.py'):
        return 'The lines above are too long, or have commas without a space.'

def docs():
    "Does every page of the site build, and does every link lead somewhere?"
    if call(sys.executable, '.ci/docs.py'): return 'The pages do not build. The reason stands above.'

def notebooks():
    "Do all notebooks run, do their tests pass, and do they store what they show?"
    if call(sys.executable, '.ci/notebooks.py'):
        return 'A notebook fails, or shows something else than it stores. Its cell stands above.'

def tests():
    "Do the other tests pass?"
    if call(sys.executable, '-m', 'pytest', '-n', 2, '--dist', 'loadgroup'):
        return 'A test fails. It stands above.'

CHECKS = dict(clean=clean, export=export, lint=lint, docs=docs, notebooks=notebooks, tests=tests)

def main(names):
    if unknown := [o for o in names if o not in CHECKS]:
        sys.exit(f'No check {", ".join(unknown)}. There are: {", ".join(CHECKS)}.')
    begin, spent = time.time(), []
    with tempfile.TemporaryDirectory() as home:  # notebooks must not read or write what the user set up
        os.environ.update(ENV, IPYTHONDIR=home, XDG_CONFIG_HOME=home)
        for name in names or CHECKS:
            print(f'\n── {name}: {CHECKS[name].__doc__}', flush=True)
            start = time.time()
            if wrong := CHECKS[name](): sys.exit(f'\n{name} FAILED: {wrong}')
            spent.append(f'{name} {time.time()-start:.0f} s')
    print(f'\nAll checks passed in {time.time()-begin:.0f} s: {", ".join(spent)}.')

if __name__=='__main__': main(sys.argv[1:])
