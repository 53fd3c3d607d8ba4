"A hub of our own on a loopback port: what is asked of it, what is kept, and what is said when it refuses"
import hashlib, io, json, os, re, socket, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

NOW, OLD = 'a'*40, 'b'*40                              # Two commits


# Models as they lie on a hub

def decoder(stem, seed):
    "Names and numbers of a language model of two layers"
    rng = np.random.default_rng(seed)
    layer = {'self_attn.q_proj': (8, 8), 'mlp.up_proj': (16, 8), 'input_layernorm': (8,)}
    sizes = {f'{stem}layers.{i}.{n}.weight': s for i in (0, 1) for n, s in layer.items()}
    sizes[f'{stem}embed_tokens.weight'] = 16, 8
    return {n: rng.standard_normal(s).astype('f4') for n, s in sizes.items()}

TEXT = dict(model_type='llama', hidden_size=8, num_hidden_layers=2, num_attention_heads=2, rope_theta=1e4)

def sharded(tensors, stem='model', end='safetensors'):
    "Two shards and their index, as bytes by name"
    names = [f'{stem}-{i}-of-00002.{end}' for i in ('00001', '00002')]
    where = {t: names[i%2] for i, t in enumerate(tensors)}
    made = {f: save({t: x for t, x in tensors.items() if where[t]==f}) for f in names}
    return made | {f'{stem}.{end}.index.json': json.dumps(dict(weight_map=where)).encode()}

def unneeded(*names): return {n: b'unneeded' for n in names}

def vlm_files(seed):
    tensors = decoder('language_model.model.', seed) | {'vision.w': np.ones((4, 4), 'f4')}
    config = json.dumps(dict(model_type='llava', text_config=TEXT)).encode()
    return sharded(tensors) | unneeded('consolidated.safetensors', 'pytorch_model.bin', 'optimizer.pt',
        'original/consolidated.00.pth', 'picture.png', '.gitattributes', 'onnx/model.safetensors') | {
        'config.json': config, 'chat_template.jinja': b'{{ messages }}', 'code/modeling.py': b'# nothing\n',
        'README.md': b'---\nlicense: apache-2.0\n---\n# A VLM\n'}

def llm_files(seed):
    return unneeded('pytorch_model.bin', 'model.gguf') | {'model.safetensors': save(decoder('model.', seed)),
        'config.json': json.dumps(TEXT).encode(), 'README.md': b'---\nlicense: mit\n---\n'}

BIG = '.safetensors', '.bin', '.pt', '.pth', '.onnx', '.gguf'
REPOS = {'maker/vlm': {NOW: vlm_files(1), OLD: vlm_files(2)},
         'maker/llm': {NOW: llm_files(3), OLD: llm_files(4)},
         'maker/base': {NOW: {'README.md': b'empty', 'config.json': b'{}'}}}
REFS = {'main': NOW, 'v1': OLD, NOW: NOW, OLD: OLD}
def sha256(data): return hashlib.sha256(data).hexdigest()
def oid(data): return hashlib.sha1(f'blob {len(data)}\0'.encode()+data).hexdigest()


# The hub

class Answer(BaseHTTPRequestHandler):
    "The few answers of a hub that a download needs"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def do_HEAD(self): self.do_GET()

    def send(self, code, data=b'', **headers):
        self.send_response(code)
        for k, v in {'Content-Length': len(data), **headers}.items():
            self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(data)

    def refuse(self, code, error): self.send(code, X_Error_Code=error, X_Error_Message='Not for you.')

    def do_GET(self):
        path = self.path.partition('?')[0]
        self.server.asked.append((self.command, path))
        if m := re.fullmatch(r'/lfs/(\w+)', path): return self.body(self.server.blobs[m[1]])
        m = (re.fullmatch(r'/api/models/([\w-]+/[\w-]+)/(revision|tree)/([\w%-]+)', path)
             or re.fullmatch(r'/([\w-]+/[\w-]+)/(resolve)/([\w%-]+)/(.+)', path))
        if not m: return self.refuse(404, 'RepoNotFound')
        if m[1]=='maker/gated': return self.refuse(403, 'GatedRepo')
        if m[1]=='maker/secret': return self.refuse(401, 'RepoNotFound')
        if m[1] not in REPOS: return self.refuse(404, 'RepoNotFound')
        if m[3] not in REFS: return self.refuse(404, 'RevisionNotFound')
        files = REPOS[m[1]][REFS[m[3]]]
        if m[2]=='resolve': return self.file(files.get(m[4]), m[4], REFS[m[3]])
        if m[2]=='revision':
            told = dict(id=m[1], sha=REFS[m[3]], siblings=[dict(rfilename=f) for f in files])
        else:
            told = [dict(type='file', path=f, size=len(x), oid=oid(x), **self.lfs(f, x))
                    for f, x in files.items()]
        self.send(200, json.dumps(told).encode(), Content_Type='application/json')

    def lfs(self, name, data):
        return dict(lfs=dict(oid=sha256(data), size=len(data), pointerSize=130)) if name.endswith(BIG) else {}

    def file(self, data, name, commit):
        if data is None: return self.refuse(404, 'EntryNotFound')
        if not name.endswith(BIG): return self.send(200, data, ETag=f'"{oid(data)}"', X_Repo_Commit=commit)
        self.server.blobs[sha256(data)] = data
        elsewhere = f'http://localhost:{self.server.server_port}'      # another name: the store of the hub
        self.send(302, Location=f'{elsewhere}/lfs/{sha256(data)}', X_Linked_Etag=f'"{sha256(data)}"',
                  X_Linked_Size=len(data), X_Repo_Commit=commit)

    def body(self, data):
        first = int(m[1]) if (m := re.fullmatch(r'bytes=(\d+)-.*', self.headers.get('Range', ''))) else 0
        if self.server.breaks and self.command!='HEAD':        # half of the file, then the line goes dead
            self.send_response(200)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data[:len(data)//2])
            self.close_connection = True
        elif first:
            self.send(206, data[first:], Content_Range=f'bytes {first}-{len(data)-1}/{len(data)}')
        else: self.send(200, data, ETag=f'"{sha256(data)}"')

class Hub(ThreadingHTTPServer):
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answer)
        self.asked, self.blobs, self.breaks = [], {}, False
        self.address = f'http://127.0.0.1:{self.server_port}'

    def fetched(self):
        "The files that were downloaded since the last question, by name"
        files = {sha256(x): f for repo in REPOS.values() for fs in repo.values() for f, x in fs.items()}
        paths = [p for c, p in self.asked if c=='GET']
        got = {re.sub(r'/[\w-]+/[\w-]+/resolve/\w+/', '', p) for p in paths if '/resolve/' in p}
        got |= {files[p[5:]] for p in paths if p.startswith('/lfs/')}
        self.asked.clear()
        return got

@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': .02})
    thread.start()
    yield server
    server.shutdown(); thread.join(); server.server_close()


# Another process, since the address of the hub is read at import

def python(tmp, address, code, *args, offline=False):
    "Run `code` as a user of that hub, whose cache is in `tmp`"
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    env |= dict(HF_ENDPOINT=address, HF_HOME=str(tmp/'home'), HF_HUB_DISABLE_XET='1',
                HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DOWNLOAD_TIMEOUT='3',
                NO_PROXY='127.0.0.1,localhost', PYTHONPATH=os.pathsep.join(sys.path))
    if offline: env['HF_HUB_OFFLINE'] = '1'
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], env=env, cwd=tmp, timeout=100,
                          capture_output=True, text=True)

OPEN = '''import sys, json; from vlm_merging.checkpoints.headers import Checkpoint
made = []
for name in sys.argv[1:]:
    c = Checkpoint.open(name)
    made.append(dict(path=str(c.path), files=c.files, revision=c.revision, source=c.source,
                     names=sorted(c.tensors)))
assert 'torch' not in sys.modules; print(json.dumps(made))'''
COMMAND = 'from vlm_merging.cli.main import main; raise SystemExit(main())'

def opened(tmp, address, *names, **kw):
    done = python(tmp, address, OPEN, *names, **kw)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)

def refused(tmp, address, name, **kw):
    "What `inspect` says of a name it cannot have: one line, after those of the hub's own client; exit code 3"
    done = python(tmp, address, COMMAND, 'inspect', name, **kw)
    assert done.returncode==3 and not done.stdout and 'Traceback' not in done.stderr, done.stdout+done.stderr
    said, = (line for line in done.stderr.splitlines() if line.startswith('vlm-merging: '))
    assert said==done.stderr.splitlines()[-1] and said.endswith('.')
    assert name in said.replace('--', '/'), said
    return said

SIDES = {'config.json', 'README.md', 'chat_template.jinja', 'code/modeling.py',
         'model.safetensors.index.json'}
SINGLE = 'model.safetensors'
SHARDS = {'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'}


def test_only_what_is_needed_is_fetched_and_only_once(hub, tmp_path):
    vlm, llm = opened(tmp_path, hub.address, 'maker/vlm', 'maker/llm')
    assert hub.fetched()==SIDES | SHARDS | {'model.safetensors'}
    assert (set(vlm['files']), vlm['revision'], vlm['source'])==(SHARDS, NOW, 'maker/vlm')
    assert (llm['files'], llm['revision'])==(['model.safetensors'], NOW)
    assert opened(tmp_path, hub.address, 'maker/vlm', 'maker/llm')==[vlm, llm]
    assert hub.fetched()==set()
    assert opened(tmp_path, hub.address, 'maker/vlm', 'maker/llm', offline=True)==[vlm, llm]
    assert hub.asked==[]

OTHER = 'other.safetensors'
COUNTS = (None, {SINGLE}), (OTHER, {OTHER}), (f'{OTHER}.index.json', SHARDS)
@pytest.mark.parametrize('named,counts', COUNTS)
def test_what_is_fetched_is_what_transformers_would_open(named, counts, hub, tmp_path, monkeypatch):
    single, other = (save(decoder('model.', i)) for i in (6, 7))
    shards = sharded(decoder('model.', 5))
    config = json.dumps(TEXT | (dict(transformers_weights=named) if named else {})).encode()
    index = {f'{OTHER}.index.json': shards['model.safetensors.index.json']}
    files = shards | index | {'config.json': config, SINGLE: single, OTHER: other}
    files |= unneeded('pytorch_model.bin', 'model.fp16.safetensors')
    monkeypatch.setitem(REPOS, 'maker/twice', {NOW: files})
    twice, = opened(tmp_path, hub.address, 'maker/twice')
    assert set(twice['files'])==counts
    assert {f for f in hub.fetched() if not f.endswith('.json')}==counts
    assert opened(tmp_path, hub.address, 'maker/twice', offline=True)==[twice] and hub.asked==[]

def test_a_revision_is_a_tag_or_a_commit(hub, tmp_path):
    tag, commit, now = opened(tmp_path, hub.address, 'maker/llm@v1', f'maker/llm@{OLD}', 'maker/llm')
    assert tag['revision']==commit['revision']==OLD!=now['revision']
    assert tag['path']==commit['path']!=now['path']
    for c, commit in (tag, OLD), (now, NOW):
        assert (Path(c['path'])/SINGLE).read_bytes()==REPOS['maker/llm'][commit][SINGLE]
    assert opened(tmp_path, hub.address, 'maker/llm@v1', offline=True)[0]['revision']==OLD

def test_weights_in_bin_files_are_found(hub, tmp_path, monkeypatch):
    torch.save({k: torch.tensor(v) for k, v in decoder('model.', 5).items()}, made := io.BytesIO())
    files = {'config.json': json.dumps(TEXT).encode(), 'pytorch_model.bin': made.getvalue()}
    monkeypatch.setitem(REPOS, 'maker/bin', {NOW: files | unneeded('training_args.bin', 'tf_model.h5')})
    code = OPEN.replace("assert 'torch' not in sys.modules; ", '')
    done = python(tmp_path, hub.address, code, 'maker/bin')
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)[0]['names']==sorted(decoder('model.', 5))
    assert hub.fetched()=={'config.json', 'pytorch_model.bin'}

def test_each_refusal_is_one_sentence(hub, tmp_path):
    kinds = {'maker/nothing': 'Check the name', 'maker/secret': 'private', 'maker/gated': 'Accept its terms',
             'maker/llm@none': 'no revision none', f'maker/llm@{"c"*40}': 'no revision'}
    for name, why in kinds.items(): assert why in refused(tmp_path, hub.address, name)
    assert 'no weights' in refused(tmp_path, hub.address, 'maker/base')

def test_without_a_hub_what_is_cached_still_opens(hub, tmp_path):
    with socket.socket() as deaf:                              # a port that nobody listens to
        deaf.bind(('127.0.0.1', 0))
        dead = f'http://127.0.0.1:{deaf.getsockname()[1]}'
        refused(tmp_path, dead, 'maker/llm', offline=True)
        refused(tmp_path, dead, 'maker/llm')
        llm, = opened(tmp_path, hub.address, 'maker/llm')
        assert opened(tmp_path, dead, 'maker/llm')==[llm]
        refused(tmp_path, dead, 'maker/llm@v1', offline=True)

def test_a_download_that_breaks_off_goes_on(hub, tmp_path):
    hub.breaks = True
    refused(tmp_path, hub.address, 'maker/llm')
    refused(tmp_path, hub.address, 'maker/llm', offline=True)        # half a file does not count
    hub.breaks = False
    llm, = opened(tmp_path, hub.address, 'maker/llm')
    assert (Path(llm['path'])/SINGLE).read_bytes()==REPOS['maker/llm'][NOW][SINGLE]

def test_a_merge_says_which_revisions_went_in(hub, tmp_path):
    out = tmp_path/'merged'
    how = 'merge', '--vlm', 'maker/vlm', '--llm', 'maker/llm@v1', '--out', out
    done = python(tmp_path, hub.address, COMMAND, *how)
    assert not done.returncode, done.stderr
    told = json.loads((out/'recipe.json').read_text())
    assert (told['recipe']['vlm'], told['recipe']['llm'])==(f'maker/vlm@{NOW}', f'maker/llm@{OLD}')
    sources = ('vlm', 'maker/vlm', NOW, 'apache-2.0'), ('llm', 'maker/llm', OLD, 'mit')
    for who, repo, commit, licence in sources:
        said = told['inputs'][who]
        assert (said['revision'], said['licence'])==(commit, licence)
        for f in set(said['files'])-{'config.json'}:           # the hub knows the hash, so it costs nothing
            assert said['files'][f]['sha256']==sha256(REPOS[repo][commit][f])
    card = (out/'README.md').read_text()
    front = card.split('---')[1]
    assert re.search(r'base_model:\n- "maker/vlm"\n- "maker/llm"\nbase_model_relation: merge', front)
    assert NOW in card and OLD in card and 'apache-2.0' in card and 'mit' in card
    assert str(tmp_path) not in card+json.dumps(told)
    there = {p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()}
    assert there==SIDES | SHARDS | {'recipe.json'}
    assert not any(p.is_symlink() for p in out.rglob('*'))
    assert {p.name for p in tmp_path.iterdir()}=={'home', 'merged'}
    same = tmp_path/'same'                                     # it makes the same model again, offline
    done = python(tmp_path, hub.address, COMMAND, 'merge', '--recipe', out, '--out', same, offline=True)
    assert not done.returncode, done.stderr
    for f in SHARDS: assert (same/f).read_bytes()==(out/f).read_bytes()


# No network, and proxies

DEAD = '''import os, socket, sys, time
asked = []
def nowhere(host, *a, **k):
    asked.append(host)
    raise socket.gaierror(-2, 'Name or service not known')
if not os.environ.get('NAMES'): socket.getaddrinfo = nowhere
time.sleep = lambda s: sys.exit('it waits')
from vlm_merging.cli.main import main
code = main()
print('ASKED', len(asked))
sys.exit(code)'''
PINNED = 'maker/thing@'+'a'*40

def unconnected(tmp, line, **env):
    "A command line where names have no addresses, or with a proxy"
    bare = {k:v for k, v in os.environ.items() if k!='HF_HUB_OFFLINE' and 'proxy' not in k.lower()}
    bare |= dict(HF_HOME=str(tmp/'hf'), PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run([sys.executable, '-c', DEAD, *line.split()], capture_output=True, text=True,
                          timeout=100, env=bare|env, cwd=tmp)

@pytest.mark.parametrize('line', [
    'inspect maker/thing', f'inspect {PINNED}', 'plan lab/vlm maker/thing', 'prepare MathVista --to d',
    f'ask {PINNED} --benchmark lab -n 4 --out x', 'diagnose lab/vlm maker/thing'])
def test_without_a_network_the_answer_is_quick(line, tmp_path):
    "One question, and no pause"
    done = unconnected(tmp_path, line)
    assert done.returncode==3 and 'Traceback' not in done.stderr, done.stderr
    said = done.stderr.splitlines()[-1]
    assert 'the hub cannot be reached' in said and 'Connect to a network' in said and len(said.split())<50
    assert done.stdout.strip() in ('ASKED 1', 'ASKED 2') # The client itself tries twice, without a pause

@pytest.mark.parametrize('env,said', [
    (dict(all_proxy='socks5://127.0.0.1:9'), 'SOCKS proxy'),
    (dict(HTTPS_PROXY='nonsense://x:1'), 'does not work'),
    (dict(HTTPS_PROXY='http://u:secret@127.0.0.1:9'), 'through the proxy that HTTPS_PROXY names'),
    (dict(HF_HUB_OFFLINE='1'), 'HF_HUB_OFFLINE forbids')], ids=str)
def test_proxies_are_told_as_such(env, said, tmp_path):
    done = unconnected(tmp_path, f'inspect {PINNED}', NAMES='1', **env)
    assert done.returncode==3 and said in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert 'secret' not in done.stderr
