"What several test files need: one torch thread a process, no hub, and a browser"
import os, shutil
import pytest

# Before torch is imported
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --disable-dev-shm-usage').split()

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
