"What several test files need: one torch thread a process, no hub, the program, and a browser"
import contextlib, os, re, shutil
from html.parser import HTMLParser
import pytest

# Before torch is imported
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --disable-dev-shm-usage').split()

@contextlib.contextmanager
def patched(where, **new):
    "Other attributes of a module or a class, for as long as the block runs"
    old = {k: getattr(where, k) for k in new}
    for k, v in new.items(): setattr(where, k, v)
    try: yield
    finally:
        for k, v in old.items(): setattr(where, k, v)

def walk(spec):
    "Every object of the specification of a chart"
    if isinstance(spec, dict):
        yield spec
        for v in spec.values(): yield from walk(v)
    if isinstance(spec, list):
        for v in spec: yield from walk(v)

class Tags(HTMLParser):
    "All tags of a page with their attributes, its tables as rows of cells, and its text outside of drawings"
    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.inside, self.text, self.cell = [], [], [], '', False
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ('svg', 'style'): self.inside.append(tag)
        if tag=='table': self.tables.append([])
        if tag=='tr': self.tables[-1].append([])
        if tag in ('td', 'th'): self.cell = True; self.tables[-1][-1].append('')
        if tag=='small' and self.cell: self.tables[-1][-1][-1] += ' '
    def handle_endtag(self, tag):
        if self.inside and self.inside[-1]==tag: self.inside.pop()
        if tag in ('td', 'th'): self.cell = False
    def handle_data(self, data):
        if self.inside: return
        self.text += data
        if self.cell: self.tables[-1][-1][-1] += data

def needs_nothing_else(text):
    "A page loads nothing, runs nothing, and each part of a drawing has a name of its own"
    tags = Tags(text).tags
    for tag, attrs in tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base')
        for name in ('src', 'srcset', 'data', 'action', 'poster', 'background'):
            assert attrs.get(name, 'data:').startswith('data:')
        for name in ('href', 'xlink:href'):
            assert attrs.get(name, '#')[0]=='#' or attrs[name].startswith('data:')
        assert not [a for a in attrs if a.startswith('on')]
    assert not re.search(r'@import|url\(\s*["\']?(?!#)', text)
    ids = [attrs['id'] for _, attrs in tags if 'id' in attrs]
    assert len(ids)==len(set(ids)) and {*re.findall(r'url\(#([\w-]+)\)', text)}<={*ids}

@pytest.fixture
def call(capsys):
    "Exit code, output and errors of the program, without a process; `SystemExit` is what argparse does"
    from vlm_merging.cli.main import main
    def run(*argv):
        capsys.readouterr()
        try: code = main([*map(str, argv)])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run

@pytest.fixture
def serving():
    "Starts a server that builds prompts with the processor of a folder"
    from prompt_server import begin_serving
    yield from begin_serving()

@pytest.fixture(scope='module')
def playing():
    "Playwright, or a reason to skip"
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install '
                                                            'playwright')
    if not CHROMIUM: pytest.skip('no chromium or google-chrome is installed: apt-get install chromium')
    with api.sync_playwright() as play: yield play

@pytest.fixture(scope='module')
def browser(playing):
    opened = playing.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()
