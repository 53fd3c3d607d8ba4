"A JupyterLab without a token, that touches nothing of the user, and a page in it: for tests and pictures"
import contextlib, json, os, re, socket, subprocess, sys, time, urllib.request
from pathlib import Path
from conftest import CHROMIUM, FLAGS

project = Path(__file__).resolve().parent.parent
WAIT = 240_000          # Milliseconds; a busy machine is slow
SETTINGS = {'apputils-extension/notification':dict(fetchNews='false', checkForUpdates=False),
            'notebook-extension/tracker':dict(windowingMode='none', autoStartDefaultKernel=True),
            'docmanager-extension/plugin':dict(autosave=False)}

def notebook(sources):
    "A notebook with these cells of code"
    cells = [dict(cell_type='code', id=f'c{i}', source=s, metadata={}, outputs=[], execution_count=None)
             for i, s in enumerate(sources)]
    about = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
                 language_info=dict(name='python'))
    return dict(cells=cells, metadata=about, nbformat=4, nbformat_minor=5)

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextlib.contextmanager
def lab_server(room):
    "The address of a JupyterLab that shows the folder `room/work`"
    port = free_port()
    for name, held in SETTINGS.items():
        file = room/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held))
    places = {f'JUPYTER_{k}_DIR':k.lower() for k in ('CONFIG', 'DATA', 'RUNTIME')}|dict(
        JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython',
        JUPYTER_PLATFORM_DIRS='platform')
    env = os.environ|{k:str(room/v) for k, v in places.items()}|dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1',
        JUPYTER_PLATFORM_DIRS='0', PYTHONPATH=str(project))
    options = dict(ip='127.0.0.1', port=port, port_retries=0, open_browser=False, root_dir=str(room/'work'),
                   allow_root=True)
    command = [sys.executable, '-m', 'jupyterlab', '--IdentityProvider.token=',
               '--LabApp.expose_app_in_browser=True', *(f'--ServerApp.{k}={v}' for k, v in options.items())]
    with open(room/'log', 'w') as log:
        server = subprocess.Popen(command, env=env, cwd=room, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic()+WAIT/1000
        while server.poll() is None:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=5).read()
                break
            except OSError: time.sleep(.25)
            if time.monotonic()>end: server.kill()
        assert server.poll() is None, 'JupyterLab did not come up: '+(room/'log').read_text()[-2000:]
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait(20)

class Seen:
    "What the page asked for and complained about"
    def __init__(self): self.asked, self.strange, self.errors = 0, [], []

def run_all(page):
    "Run all cells; on a busy machine the menu does nothing while the kernel is still connecting"
    begun = page.locator('.jp-InputPrompt').filter(has_text=re.compile(r'\[(\*|\d+)\]'))
    for _ in range(12):
        page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
        page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
        for _ in range(100):
            if begun.count(): return
            page.wait_for_timeout(200)
    raise AssertionError('no cell began to run')

@contextlib.contextmanager
def lab_page(play, address, path, **how):
    "A page with a notebook whose cells run; and what it asked for. `how`: of the page, such as its scale"
    seen = Seen()
    def asked(route):
        url = route.request.url
        seen.asked += 1
        if re.match(r'(http|ws)://127\.0\.0\.1[:/]|data:|blob:', url): route.continue_()
        else:
            seen.strange.append(url)
            route.abort()
    browser = play.chromium.launch(executable_path=CHROMIUM,
                                   args=[*FLAGS, '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'])
    try:
        page = browser.new_page(**dict(viewport=dict(width=1440, height=1000))|how)
        page.set_default_timeout(WAIT)
        page.set_default_navigation_timeout(WAIT)
        page.route('**/*', asked)
        page.on('websocket', lambda w: None if '127.0.0.1' in w.url else seen.strange.append(w.url))
        page.on('console', lambda m: seen.errors.append(m.text) if m.type=='error' else None)
        page.on('pageerror', lambda e: seen.errors.append(str(e)))
        page.goto(f'{address}/lab/workspaces/{Path(path).stem}/tree/{path}?reset')
        page.locator('.jp-Notebook').wait_for()
        page.get_by_text('Python 3').or_(page.get_by_text('python3')).first.wait_for()
        run_all(page)
        yield page, seen
    finally: browser.close()

def troubles(page, kinds=('stderr', 'error')):
    "What cells complained of"
    places = ', '.join(f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{k}"]' for k in kinds)
    return page.locator(places).all_inner_texts()

def done(place):
    "Wait until a widget has done its work; what goes wrong instead is said at once, with what it says"
    end, said = time.monotonic()+WAIT/1000, place.locator('[data-kind]')
    while time.monotonic()<end:
        kind = said.first.get_attribute('data-kind') if said.count() else None
        if kind=='done': return
        failed = troubles(place.page, ('error',))
        assert kind!='trouble' and not failed, [*said.all_inner_texts(), *failed]
        place.page.wait_for_timeout(100)
    raise AssertionError(f'not done after {WAIT//1000} s: {said.all_inner_texts() or "there is no widget"}')
