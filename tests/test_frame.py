"What is built installs, and what the README and settings.ini say is so"
import ast, re, shlex, shutil, subprocess, sys, tomllib, zipfile
from configparser import ConfigParser
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

project = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters='=', interpolation=None)
config.read(project/'settings.ini', encoding='utf-8')
about = config['DEFAULT']
package = about['lib_name']

def lines(key): return {o.strip() for o in about[key].splitlines() if o.strip()}

def has(distribution):
    try: return metadata.version(distribution)
    except metadata.PackageNotFoundError: return None

def python(*args, **kw):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, **kw)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout

def test_the_version_is_said_once():
    tree = ast.parse((project/package/'__init__.py').read_text(encoding='utf-8'))
    assigned = [o for o in tree.body if isinstance(o, ast.Assign)]
    version = [o.value.value for o in assigned if o.targets[0].id=='__version__']
    assert version==[about['version']]
    assert f"## {about['version']}" in (project/'CHANGELOG.md').read_text(encoding='utf-8')

def test_pyproject_agrees_with_settings():
    said = tomllib.loads((project/'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert (said['name'], said['requires-python'])==(package, '>=' + about['min_python'])

def name(o): return re.split(r'[<>=!~ ;\[]', o)[0].lower().replace('-', '_')

TESTED = [o for o in (project/'constraints.txt').read_text().splitlines() if o and o[0]!='#']

def test_tested_versions_are_exact():
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', o) for o in TESTED)
    assert {o for o in lines('dev_requirements') if '==' in o} <= set(TESTED)

def test_tested_versions_run_on_the_oldest_python_that_the_readme_names():
    oldest, there = f"{about['min_python']}.0", {o.split('==')[0] for o in TESTED}
    asked = {o: metadata.metadata(o).get('Requires-Python') for o in there if has(o)}
    assert len(asked)>.9*len(there)
    assert not {o: asks for o, asks in asked.items() if asks and oldest not in SpecifierSet(asks)}

def test_importing_the_package_is_light():
    heavy = '{"torch", "transformers", "polars"}'
    python('-c', f'import sys, {package}; assert not {heavy} & set(sys.modules)')

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A source distribution, and a wheel built from it"
    tmp = tmp_path_factory.mktemp('build')
    ignore = shutil.ignore_patterns('.*', '_docs', '_proc', '__pycache__', 'build', 'dist', '*.egg-info')
    shutil.copytree(project, tmp/'project', ignore=ignore, symlinks=True)
    python('-m', 'build', '--no-isolation', '--outdir', tmp/'dist', tmp/'project')
    return tmp/'dist'

def test_the_wheel_asks_for_what_settings_require(built):
    wheel, = built.glob('*.whl')
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        info = next(o for o in names if o.endswith('.dist-info/METADATA'))
        meta = message_from_string(z.read(info).decode())
        commands = z.read(info.replace('METADATA', 'entry_points.txt')).decode()
    def plain(o): return o.replace(' ', '').lower().replace('-', '_')
    needs = {plain(o) for o in meta.get_all('Requires-Dist') if 'extra==' not in plain(o)}
    assert needs=={plain(o) for o in lines('requirements')}
    installed = [o for o in meta.get_all('Requires-Dist') if 'extra' not in o or re.search('[\'"]dev\\b', o)]
    untested = {name(o) for o in installed} - {name(o) for o in TESTED}
    assert not untested, f'the README installs {untested}, which have no tested version in constraints.txt'
    assert (meta['Name'], meta['Version'])==(package, about['version'])
    assert plain(*lines('console_scripts')) in plain(commands)
    source = project/package
    shipped = {o.relative_to(project).as_posix() for o in source.rglob('*')
               if o.is_file() and '__pycache__' not in o.parts
               and (o.suffix=='.py' or {'data', 'templates'} & {*o.parts})}
    assert shipped=={o for o in names if o.startswith(package+'/')}

def test_the_wheel_installs_and_its_command_answers(built, tmp_path):
    wheel, = built.glob('*.whl')
    python('-m', 'pip', 'install', '--no-deps', '--no-index', '--target', tmp_path, wheel)
    version = python('-c', f'import {package} as o; print(o.__version__, o.__file__)', cwd=tmp_path).split()
    assert version[0]==about['version'] and version[1].startswith(str(tmp_path))
    assert list((tmp_path/'bin').glob('vlm-merging*'))

def block(marker):
    "The first fenced block of the README under an HTML comment"
    readme = (project/'README.md').read_text(encoding='utf-8')
    m = re.search(rf'^<!-- {marker} -->\s*^```\w*\n(.*?)^```', readme, flags=re.M | re.S)
    assert m, f'README.md has no fenced block under `<!-- {marker} -->`'
    return m[1]

@pytest.mark.parametrize('marker', ['demo', 'test'])
def test_the_commands_of_the_readme_exist(marker):
    command = block(marker)
    for path in re.findall(r'(?<![\w/.])(?:\.ci/\S+|\w+\.(?:txt|py))', command):
        assert (project/path).exists(), path
    for verb in re.findall(r'vlm-merging (\w+)', command):
        help = python('-m', package, verb, '--help')
        assert verb in help or 'usage' in help.lower()

def test_every_later_command_of_the_readme_works_as_it_is_pasted(tmp_path, monkeypatch, call):
    "One after the other in an empty folder; only fewer questions are asked here"
    monkeypatch.chdir(tmp_path)
    text = (project/'README.md').read_text(encoding='utf-8')
    for marker in ('demo', 'test'): text = text.replace(block(marker), '')
    blocks = re.findall(r'^```bash\n(.*?)^```', text, flags=re.M | re.S)
    lines = [line for b in blocks for line in b.splitlines() if line.strip()]
    assert len(lines)>9 and lines.pop(0)=='source .venv/bin/activate'
    for line in lines:
        program, *words = shlex.split(re.sub(r'-n \d+', '-n 16', line), comments=True)
        assert program=='vlm-merging', line
        code, out, err = call(*words)
        assert code==0 and out, (line, err)
    assert {'merged', 'runs', 'report.html', 'compare.html'}<={o.name for o in tmp_path.iterdir()}

@pytest.mark.parametrize('page', sorted(o.name for o in project.glob('*.md')))
def test_the_links_of_a_page_lead_somewhere(page):
    for to in re.findall(r'\]\(([^)#\s]+)', (project/page).read_text(encoding='utf-8')):
        assert re.match(r'https?:|mailto:', to) or (project/to).exists(), to
