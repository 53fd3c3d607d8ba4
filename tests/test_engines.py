"An engine for one run: a server that is started and stopped, or vLLM in the process, by a stand-in"
import argparse, json, os, re, shlex, shutil, socket, subprocess, sys, textwrap, time, types
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from vlm_merging.asking import engines
from vlm_merging.asking.ask import ask
from vlm_merging.asking.engines import InProcess, open_engine, running_server, server_command
from vlm_merging.asking.opening import open_model
from vlm_merging.asking.replies import PROMPT_CHECK, replies
from vlm_merging.comparing.compare import asked_otherwise
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.lab.trio import lab_folder, questions

LAB = lab_folder()/'vlm'

def asked(n):
    return [Item(q.id, q.ask, q.answer, images=(Picture(q.image),), tags=dict(kind=q.kind))
            for q in questions(n, seed=4)]

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]!='Z'
    except OSError: return False

def program(tmp_path, body):
    "An executable that is called as vllm is"
    path = tmp_path/'bin'/'vllm'
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!{sys.executable}\n{textwrap.dedent(body)}')
    path.chmod(0o755)
    return path

def test_a_server_is_started_asked_and_stopped_and_gone_on_with(tmp_path, call):
    for needed in ('fastapi', 'uvicorn'): pytest.importorskip(needed)
    vllm = program(tmp_path, f'''
        import json, os, sys
        open({str(tmp_path/'started')!r}, 'a').write(json.dumps([os.getpid(), sys.argv[1:]])+'\\n')
        print('a fake vLLM', flush=True)
        sys.argv[7:] = ['--device', 'cpu', '--dtype', 'float32']
        from transformers.cli.transformers import main
        main()''')
    (tmp_path/'q.csv').write_text('question,answer\n'+''.join(f'{p} plus {p} ?,{n}\n' for n, p in enumerate(
        ('top-left', 'top-right', 'bottom-left'))))
    argv = ['ask', LAB, '--engine', vllm, '--benchmark', 'lab', '-n', 10, '--max-new-tokens', 16,
            '--engine-args',
            '--max-model-len 96', '--dtype', 'float32']
    code, shown, told = call(*argv, '--out', tmp_path/'far')
    assert code==0, told
    pid, words = json.loads((tmp_path/'started').read_text())
    assert not alive(pid) and words[:2]==['serve', str(LAB)]
    assert words[-2:]==['--max-model-len', '96'] and '--chat-template-content-format' in words
    assert 'a fake vLLM' in Path(f"{tmp_path/'far'}.engine.log").read_text()
    how = json.loads((tmp_path/'far'/'run.json').read_text())['sessions'][0]['how']
    assert how['engine']['program']=='vllm' and how['prompt']['outcome']=='same'
    assert call('ask', LAB, '--device', 'cpu', '--benchmark', 'lab', '-n', 10, '--max-new-tokens', 16,
                '--out',
                tmp_path/'near')[0]==0
    far, near = (replies(tmp_path/o)['prediction'].to_list() for o in ('far', 'near'))
    told = asked_otherwise(*(replies(tmp_path/o) for o in ('near', 'far')))
    assert far==near and [o[:23] for o in told]==['The prompts of far were']   # By their number only

def test_a_server_that_ends_at_once_says_why_and_leaves_nothing(tmp_path, call):
    vllm = program(tmp_path, 'import sys; print("CUDA out of memory"); sys.exit(7)')
    code, _, told = call('ask', LAB, '--engine', vllm, '--benchmark', 'lab', '-n', 3, '--out', tmp_path/'run')
    assert code==3 and 'ended with 7 before it answered' in told and 'CUDA out of memory' in told
    assert not (tmp_path/'run').exists()

LOOKS_WELL = '''
import http.server, json, os, sys, time
class Well(http.server.BaseHTTPRequestHandler):
    replied = 0
    def do_GET(self): self.tell({})
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        if os.path.exists(sys.argv[0]+'.dies') and Well.replied>=3:
            print('Engine core died', flush=True)
            os._exit(9)
        Well.replied += 1
        self.tell(dict(choices=[dict(message=dict(content='7'), finish_reason='stop')]))
    def tell(self, what):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(what).encode())
    def log_message(self, *_): pass
open(sys.argv[0]+'.words', 'a').write(json.dumps([os.getpid(), *sys.argv[1:]])+'\\n')
port = int(sys.argv[sys.argv.index('--port')+1])
http.server.HTTPServer(('127.0.0.1', port), Well).serve_forever()'''

def started_with(vllm): return [json.loads(o) for o in Path(f'{vllm}.words').read_text().splitlines()]

def gone(pid, seconds=20):
    for _ in range(int(seconds*50)):
        if not alive(pid): return True
        time.sleep(.02)
    return False

PARENT = '''
import os, sys
from pathlib import Path
from vlm_merging.asking.engines import running_server
with running_server([sys.argv[1], '--port', sys.argv[2]], int(sys.argv[2]), Path(sys.argv[3])):
    print('up', flush=True)
    sys.stdin.read()'''

def test_a_server_ends_though_who_started_it_was_killed_hard(tmp_path):
    vllm, log = program(tmp_path, LOOKS_WELL), tmp_path/'log'
    words = [sys.executable, '-c', PARENT, str(vllm), str(engines._free_port()), str(log)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline()=='up\n'
        pid = started_with(vllm)[0][0]
        assert alive(pid)
        parent.kill()
    assert gone(pid) and f'[process {pid}]' in log.read_text()
    port = engines._free_port()                                 # The next run has the log for itself
    with running_server([str(vllm), '--port', str(port)], port, log) as running: assert running.poll() is None

def test_what_an_earlier_run_left_is_told_of(tmp_path, monkeypatch):
    "As where the process that looks was killed, too"
    monkeypatch.setattr(engines, 'DOWN_WITHIN', .3)
    log = tmp_path/'log'
    log.write_text('[process 4711] vllm\n')
    with open(log, 'a') as out:
        left = subprocess.Popen([sys.executable, '-c', 'import fcntl, sys; fcntl.flock(1, fcntl.LOCK_EX); '
                                 'sys.stderr.write("x"); sys.stderr.flush(); sys.stdin.read()'], stdout=out,
                                stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        left.stderr.read(1)
        with pytest.raises(ValueError, match=r'ended with 75.*earlier run started still writes.*-- -4711'):
            with running_server(['true'], 1, log): pass
    finally: left.communicate()

def test_words_reach_the_engine_whole(tmp_path):
    vllm = program(tmp_path, LOOKS_WELL)
    typed = '--limit-mm-per-prompt {"image": 4, "video": [1, 2]} --no-enable-prefix-caching --api-key=hush ' \
            '--hf-overrides={"a": "b c"} --chat-template "my folder/t.jinja" --seed 3 --hf-token \'se cret\''
    with open_engine(LAB, str(vllm), typed, log=tmp_path/'log') as model: told = model.how['engine']['words']
    words = ['--limit-mm-per-prompt', '{"image": 4, "video": [1, 2]}', '--no-enable-prefix-caching',
             '--api-key=hush', '--hf-overrides={"a": "b c"}', '--chat-template', 'my folder/t.jinja',
             '--seed', '3', '--hf-token', 'se cret']
    assert started_with(vllm)[0][-len(words):]==words
    hidden = [{'--api-key=hush':'--api-key=...', 'se cret':'...'}.get(w, w) for w in words]
    assert told[-len(words):]==hidden and 'hush' not in (tmp_path/'log').read_text()
    gone(started_with(vllm)[0][0])

@pytest.mark.parametrize('typed,words', [
    ('', []), ('-tp 8', ['-tp', '8']), ('--x {"a": {"b": "}"}} y', ['--x', '{"a": {"b": "}"}}', 'y']),
    ("--x '{\"a\": 1}'", ['--x', '{"a": 1}']), ('--x "[1] and {}"', ['--x', '[1] and {}']),
    ('--x {broken', ['--x', '{broken']), ('--x [1, 2]', ['--x', '[1, 2]']), ('a{"b": 1}', ['a{b:', '1}']),
    ('--x "{\\"a\\": 1}"', ['--x', '{"a": 1}']), ("--x {\"it's\": 1}", ['--x', '{"it\'s": 1}']),
    ('--x '+'['*5000, ['--x', '['*5000])])
def test_a_text_is_taken_apart_as_a_shell_does_and_json_is_whole(typed, words):
    assert engines.engine_words(typed)==words

def test_an_open_quote_is_a_sentence(tmp_path, call):
    code, _, told = call('ask', LAB, '--engine', 'server', '--engine-args', "--x 'y", '--benchmark', 'lab',
                         '-n', 3, '--out', tmp_path/'run')
    assert code==3 and "--engine-args is" in told and 'No closing quotation' in told

def test_a_server_that_dies_in_the_middle_keeps_what_there_is_and_tells_its_last_words(tmp_path, call):
    vllm = program(tmp_path, LOOKS_WELL)
    dies = Path(f'{vllm}.dies')
    dies.write_text('')
    argv = ['ask', LAB, '--engine', vllm, '--benchmark', 'lab', '-n', 6, '--trust-prompt', '--batch-size', 1,
            '--out', tmp_path/'run']
    code, _, told = call(*argv)
    assert code==3 and 'cannot be reached any more' in told and 'ended with 9' in told
    assert 'Engine core died' in told and gone(started_with(vllm)[0][0])
    dies.unlink()
    code, shown, told = call(*argv)                             # The same goes on
    assert code==0 and '6 of 6 items have a reply' in shown

def test_a_port_that_is_taken_is_told(tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))                                # Taken, and nobody answers there
        monkeypatch.setattr(engines, '_free_port', lambda: s.getsockname()[1])
        with pytest.raises(ValueError, match='before it answered.*in use'):
            with open_engine(LAB, str(program(tmp_path, LOOKS_WELL)), log=tmp_path/'log'): pass

def test_all_that_a_server_started_is_ended_with_it(tmp_path):
    body = '''
        import http.server, os, subprocess, sys
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        open(sys.argv[2], 'w').write(str(child.pid))
        class Well(http.server.BaseHTTPRequestHandler):
            def do_GET(self): self.send_response(200); self.end_headers()
        http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Well).serve_forever()'''
    port = engines._free_port()
    vllm = program(tmp_path, body)
    with pytest.raises(KeyboardInterrupt):
        with running_server([str(vllm), str(port), str(tmp_path/'child')], port, tmp_path/'log') as running:
            assert alive(child := int((tmp_path/'child').read_text()))
            raise KeyboardInterrupt
    assert gone(child) and running.poll() is not None

@pytest.mark.parametrize('argv,why', [
    (['--engine', 'nowhere'], 'no program'), (['--engine-args=--x'], '--engine-args goes with --engine'),
    (['--engine', 'server', '--endpoint', '127.0.0.1:1'], 'do not go together'),
    (['--engine', 'vllm', '--serves', 'x'], 'do not go together')])
def test_what_cannot_be_is_a_sentence(tmp_path, call, argv, why):
    code, _, told = call('ask', LAB, *argv, '--benchmark', 'lab', '-n', 3, '--out', tmp_path/'run')
    assert code==3 and why in told and not (tmp_path/'run').exists()

def test_pictures_are_refused_for_a_text_model_before_anything_starts(tmp_path, call):
    code, _, told = call('ask', 'lab/llm', '--engine', 'nowhere', '--benchmark', 'lab', '-n', 3, '--out',
                         tmp_path/'run')
    assert code==3 and 'is a text model' in told

class Stub:
    "`vllm.LLM`, answered by transformers"
    def __init__(self, model, **settings):
        self.settings, self.asker, self.calls = settings, open_model(model, device='cpu'), []
    def chat(self, messages, sampling_params, use_tqdm, chat_template_content_format='auto'):
        from dataclasses import replace
        import base64
        from vlm_merging.asking.models import prompt_inputs
        self.calls.append(len(messages))
        out = []
        for message, how in zip(messages, sampling_params, strict=True):
            system = message[0]['content'] if message[0]['role']=='system' else None
            content = message[-1]['content']
            parts = [dict(type='text', text=content)] if isinstance(content, str) else content
            pictures = tuple(Picture(base64.b64decode(p['image_url']['url'].partition(',')[2]))
                             for p in parts if p['type']=='image_url')
            item = Item('1', parts[-1]['text'], images=pictures)
            if 'cyan' in item.question: raise RuntimeError('The decoder prompt is too long')
            asker = replace(self.asker, system=system, max_new_tokens=how.max_tokens)
            ids = prompt_inputs(asker, [item], [[p.open() for p in pictures]])['input_ids'][0].tolist()
            reply = next(asker.many([item]))
            out.append(SimpleNamespace(prompt_token_ids=self.spoil(ids), outputs=[SimpleNamespace(
                text=' '+reply.text, finish_reason=reply.finish)]))
        return out
    spoil = staticmethod(lambda ids: ids)

class Arguments:
    "`EngineArgs`: some of what its parser of vLLM 0.32 takes, with its kinds"
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument('--model', default='Qwen/Qwen3-0.6B')
        parser.add_argument('--dtype', default='auto')
        parser.add_argument('--tensor-parallel-size', '-tp', type=int, default=1)
        parser.add_argument('--enforce-eager', action=argparse.BooleanOptionalAction, default=False)
        parser.add_argument('--enable-prefix-caching', action=argparse.BooleanOptionalAction)
        parser.add_argument('--max-model-len', type=int)
        parser.add_argument('--limit-mm-per-prompt', type=json.loads, default={})
        parser.add_argument('--allowed-local-media-path', default='')
        return parser

@pytest.fixture
def vllm(monkeypatch):
    made = []
    class LLM(Stub):
        def __init__(self, **settings): super().__init__(**settings); made.append(self)
    module = types.SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, __version__='0.0', made=made)
    monkeypatch.setitem(sys.modules, 'vllm', module)
    monkeypatch.setitem(sys.modules, 'vllm.engine.arg_utils', SimpleNamespace(
        EngineArgs=Arguments, FlexibleArgumentParser=argparse.ArgumentParser))
    return module

@pytest.mark.parametrize('system', [None, 'scene'])
def test_vllm_in_the_process_has_the_same_records_and_goes_on(vllm, tmp_path, system):
    items = asked(12)
    with open_engine(LAB, 'vllm', '--tensor-parallel-size 8', max_new_tokens=16, batch_size=5,
                     system=system) as model:
        ask(model, items[:6], out=tmp_path/'run')
    with open_engine(LAB, 'vllm', max_new_tokens=16, batch_size=5, system=system) as model:
        table = ask(model, items, out=tmp_path/'run')
    first, second = vllm.made
    # Those that were there are not asked
    assert first.settings['tensor_parallel_size']==8 and sum(second.calls)-6<12
    near = ask(open_model(LAB, device='cpu', max_new_tokens=16, system=system), [i for i in items
               if 'cyan' not in i.question], out=tmp_path/'near')
    far = {i:p.strip() for i, p in table.select('index', 'prediction').iter_rows()}
    assert far=={i:p for i, p in near.select('index', 'prediction').iter_rows() if i in far} and len(far)>8
    session = json.loads((tmp_path/'run'/'run.json').read_text())['sessions'][0]['how']
    assert session['engine']['version']=='0.0' and session['prompt']['by']=='token ids'
    assert asked_otherwise(*(replies(tmp_path/o) for o in ('near', 'run')))==[]

def test_words_are_settings_by_the_parser_of_vllm(vllm, call, tmp_path):
    typed = '-tp 8 --no-enable-prefix-caching --enforce-eager --limit-mm-per-prompt {"image": 4} ' \
            '--allowed-local-media-path "a b" --dtype float16 --model another'
    with open_engine(LAB, 'vllm', typed, max_new_tokens=4) as model: pass
    settings = vllm.made[0].settings
    assert settings==dict(tensor_parallel_size=8, enable_prefix_caching=False, enforce_eager=True,
                          dtype='float16', limit_mm_per_prompt=dict(image=4), trust_remote_code=False,
                          allowed_local_media_path='a b')
    assert model.about['dtype']=='float16'
    for typed, why in (('--nonsense 1', 'unrecognized arguments: --nonsense 1'), ('8', 'unrecognized'),
                       ('-tp many', "invalid int value: 'many'"), ('--help', 'unrecognized arguments')):
        code, _, told = call('ask', LAB, '--engine', 'vllm', f'--engine-args={typed}', '--benchmark', 'lab',
                             '-n', 3, '--out', tmp_path/'run')
        assert code==3 and '--engine-args is not understood by vLLM' in told and why in told
    assert len(vllm.made)==1

def test_a_question_among_the_tried_that_vllm_cannot_take_does_not_stop_the_run(vllm, tmp_path):
    items = [Item('odd', 'where is cyan ?', images=asked(1)[0].images), *asked(3)]
    with open_engine(LAB, 'vllm', max_new_tokens=4) as model:
        with pytest.warns(UserWarning, match='1 failed'): ask(model, items, out=tmp_path/'run')
    record = json.loads((tmp_path/'run'/'run.json').read_text())['sessions'][0]['how']['prompt']
    assert record['outcome']=='same' and len(record['asked'])==3

def test_a_question_that_vllm_cannot_take_fails_alone(vllm, tmp_path):
    items = [*asked(3), Item('odd', 'where is cyan ?', images=asked(1)[0].images)]
    with open_engine(LAB, 'vllm', max_new_tokens=4) as model:
        got = {r.id:r for r in model.many(items)}
    assert 'too long' in got['odd'].error and all(not got[i.id].error for i in items[:3])

def test_vllm_that_sees_another_prompt_is_stopped(vllm, tmp_path):
    vllm.LLM.spoil = staticmethod(lambda ids: [1, *ids])
    with open_engine(LAB, 'vllm', max_new_tokens=4) as model:
        with pytest.raises(ValueError, match='The beginning of a text stands there twice'):
            ask(model, asked(3), out=tmp_path/'run')
    with open_engine(LAB, 'vllm', max_new_tokens=4, trust_prompt=True) as model:
        table = ask(model, asked(3), out=tmp_path/'run')
    near = table.drop(PROMPT_CHECK).with_columns(run=pl.lit('near'))
    with pytest.raises(ValueError, match='trust_prompt=True'): asked_otherwise(near, table)

def test_vllm_that_is_not_there_or_cannot_open(vllm, tmp_path, monkeypatch, call):
    def refuses(**settings): raise RuntimeError('no kernel for head_dim=16')
    monkeypatch.setattr(vllm, 'LLM', refuses)
    with pytest.raises(ValueError, match='cannot be opened by vLLM 0.0.*head_dim=16'):
        with open_engine(LAB, 'vllm'): pass
    monkeypatch.setitem(sys.modules, 'vllm', None)
    code, _, told = call('ask', LAB, '--engine', 'vllm', '--benchmark', 'lab', '-n', 3, '--out',
                         tmp_path/'run')
    assert code==3 and 'vlm_merging[vllm]' in told

def test_each_sample_of_vllm_has_a_seed_of_its_own():
    seen = []
    class Notes:
        def chat(self, messages, params, **_):
            seen.extend(p.seed for p in params)
            return [SimpleNamespace(outputs=[SimpleNamespace(text='x', finish_reason='stop')],
                                    prompt_token_ids=[1])]*len(messages)
    from dataclasses import replace
    model = InProcess(Notes(), SimpleNamespace, 'w', 'lab/vlm', False, temperature=1.)
    for sample in ('1', '2'): list(replace(model, sample=sample).many([Item('a', 'q'), Item('b', 'q2')]))
    assert len(set(seen))==4

def test_without_vllm_transformers_serves():
    command = server_command(Checkpoint.open(LAB), 8000)
    assert 'serve' in command and command[command.index('--port')+1]=='8000'

PASSES_ON = '''
import http.server, sys, urllib.request
class Passes(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.tell(b'{}')
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        with urllib.request.urlopen(urllib.request.Request(WHERE, body)) as there: self.tell(there.read())
    def tell(self, what): self.send_response(200); self.end_headers(); self.wfile.write(what)
    def log_message(self, *_): pass
port = int(sys.argv[sys.argv.index('--port')+1])
http.server.ThreadingHTTPServer(('127.0.0.1', port), Passes).serve_forever()'''
LAB_NAMES = dict(VLM='lab/vlm', LLM='lab/llm', QUESTIONS='lab', DTYPE='float32', WEIGHT='0.6')

def lines_of(page):
    "The lines of the boxes of a page, and of the cells that run one, in order"
    cells = json.loads((Path(__file__).parents[1]/'nbs'/page).read_text(encoding='utf-8'))['cells']
    found = [re.findall(r'```sh\n(.*?)```', text, re.S) if c['cell_type']=='markdown' else
             re.findall(r"^run\('(.*?)'[,)]", text, re.M)
             for c in cells if (text := ''.join(c['source']))]
    return '\n'.join(sum(found, [])).split('\n')

def test_the_lines_of_the_tutorial_run_as_they_stand(tmp_path, call, monkeypatch, vllm, serving):
    "With the names of the lab; fewer questions; no `prepare`, which wants a network; and stand-ins for vLLM"
    monkeypatch.chdir(tmp_path)
    behind, _ = serving(LAB, 'ids')
    fake = program(tmp_path, PASSES_ON.replace('WHERE', repr(f'http://127.0.0.1:{behind.server_port}')))
    (tmp_path/'vllm-env').mkdir()
    fake = fake.parent.rename(tmp_path/'vllm-env'/'bin')/'vllm'
    monkeypatch.setenv('PATH', f"{fake.parent}:{os.environ['PATH']}")       # `--engine server` finds it there
    port, said, names = engines._free_port(), {}, []
    for line in lines_of('tutorials/your_own_models.ipynb'):
        line = re.sub(r'\$([A-Z]+)', lambda m: LAB_NAMES.get(m[1], m[0]), line)
        words = shlex.split(re.sub('-n [0-9]+', '-n 6', line).replace(':8000', f':{port}'), comments=True)
        if not words or words[0]!='vlm-merging' or words[1]=='prepare': continue
        if '--endpoint' not in words: code, said[line], told = call(*words[1:])
        else:
            with running_server([str(fake), '--port', str(port)], port, tmp_path/'fake.log'):
                code, said[line], told = call(*words[1:])
        assert code in ((0, 3) if words[1]=='inspect' else (0,)), f'{line}: {told}'
        names.append(words[1])
    assert {*names}=={'plan', 'diagnose', 'merge', 'inspect', 'relayout', 'ask', 'score', 'compare', 'sweep',
                      'profile'} and len(names)>=15
    asked = [o for line, o in said.items() if ' ask ' in line]
    assert sum('compared token by token' in o for o in asked)==5 and len(asked)==6

def test_the_lines_of_the_page_run_as_they_stand(tmp_path, call, monkeypatch):
    for needed in ('fastapi', 'uvicorn'): pytest.importorskip(needed)
    page = json.loads((Path(__file__).parents[1]/'nbs'/'guide'/'serving.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in page['cells'] if c['cell_type']=='markdown')
    lines = re.search(r'```sh\n(.*?)```', text, re.S)[1].strip().split('\n')
    monkeypatch.chdir(tmp_path)
    found = shutil.which
    monkeypatch.setattr('shutil.which', lambda name, *more: None if name=='vllm' else found(name, *more))
    said = {}
    for line in lines:
        code, said[line], told = call(*shlex.split(line)[1:])
        assert code==0, f'{line}: {told}'
    assert len(lines)==5 and 'No item was scored differently' in said[lines[-1]]

def test_the_table_of_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    import csv, importlib.util
    here = Path(__file__).parent
    spec = importlib.util.spec_from_file_location('engines_by_hand', here/'bench'/'engines.py')
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(os, 'environ', {**os.environ})
    spec.loader.exec_module(bench)
    with open(bench.TABLE) as f: rows = [*csv.DictReader(f)]
    assert [*rows[0]]==bench.COLUMNS and {r['engine'] for r in rows}=={*bench.ENGINES.values()}
    drawn = bench.items_of(60)
    assert {len(i.images) for i in drawn}=={0, 1, 2} and any(i.choices for i in drawn)
    some = drawn[:4]
    replied = dict(zip((i.id for i in some), ('red', 'top-left', 'red', 'red')))
    for way, changed in (('here', {}), ('server', {some[0].id:' red\n', some[1].id:'top-right'})):
        ask(lambda i: (replied|changed)[i.id], some, out=tmp_path/'runs'/f'vlm-{way}', run='r')
    row, told = bench.compared(tmp_path, 'vlm', 'server', {i.id:i for i in some}, LAB, 1.)
    assert [*row]==bench.COLUMNS and (row['equal'], row['replies'])==(3, 4)
    assert len(told)==1 and "'top-left' and 'top-right', logits apart by" in told[0] and float(row['gaps'])
