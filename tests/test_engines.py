"An engine for one run: a server that is started and stopped, or vLLM in the process, by a stand-in"
import json, os, sys, textwrap, types
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_merging.asking.ask import ask
from vlm_merging.asking.engines import InProcess, open_engine, running_server, server_command
from vlm_merging.asking.opening import open_model
from vlm_merging.asking.replies import replies
from vlm_merging.asking.same_prompt import unlike_prompts
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
        words = sys.argv[1:6]+sys.argv[6:][:0]+['--device', 'cpu', '--dtype', 'float32']
        print('a fake vLLM', flush=True)
        sys.argv = ['transformers', *words[:2], *words[2:]]
        sys.argv[1:6] = ['serve', sys.argv[2], '--host', '127.0.0.1', '--port']
        sys.argv.insert(6, json.loads(open({str(tmp_path/'started')!r}).readlines()[-1])[1][5])
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
    assert far==near and unlike_prompts(tmp_path/'near', tmp_path/'far')==[]

def test_a_server_that_ends_at_once_says_why_and_leaves_nothing(tmp_path, call):
    vllm = program(tmp_path, 'import sys; print("CUDA out of memory"); sys.exit(7)')
    code, _, told = call('ask', LAB, '--engine', vllm, '--benchmark', 'lab', '-n', 3, '--out', tmp_path/'run')
    assert code==3 and 'ended with 7 before it answered' in told and 'CUDA out of memory' in told
    assert not (tmp_path/'run').exists()

def test_all_that_a_server_started_is_ended_with_it(tmp_path):
    body = '''
        import http.server, os, subprocess, sys
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        open(sys.argv[2], 'w').write(str(child.pid))
        class Well(http.server.BaseHTTPRequestHandler):
            def do_GET(self): self.send_response(200); self.end_headers()
        http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Well).serve_forever()'''
    from vlm_merging.asking.engines import _free_port
    port = _free_port()
    vllm = program(tmp_path, body)
    with pytest.raises(KeyboardInterrupt):
        with running_server([str(vllm), str(port), str(tmp_path/'child')], port, tmp_path/'log') as running:
            assert alive(child := int((tmp_path/'child').read_text()))
            raise KeyboardInterrupt
    for _ in range(500):
        if not alive(child): break
        os.sched_yield()
        __import__('time').sleep(.01)
    assert not alive(child) and running.poll() is not None

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

@pytest.fixture
def vllm(monkeypatch):
    made = []
    class LLM(Stub):
        def __init__(self, **settings): super().__init__(**settings); made.append(self)
    module = types.SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, __version__='0.0', made=made)
    monkeypatch.setitem(sys.modules, 'vllm', module)
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
    assert unlike_prompts(tmp_path/'near', tmp_path/'run')==[]

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
        ask(model, asked(3), out=tmp_path/'run')
    assert unlike_prompts(tmp_path/'run', tmp_path/'run')

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

def test_the_lines_of_the_page_run_as_they_stand(tmp_path, call, monkeypatch):
    import re, shlex, shutil
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
