"A folder that an engine would refuse, made wrong in one way at a time, is told so, and a good one is not"
import json, shutil
from pathlib import Path

import pytest

from vlm_merging.checkpoints.chat_formats import content_format, template_of
from vlm_merging.checkpoints.relayout import relayout
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.plan import plan
from vlm_merging.merging.ways_out import what_would_stop

DETOUR = ("<bos>{% for m in messages %}{% set parts = m.content %}{% for p in parts if p.type=='image' %} "
          "<image>"
          "{% endfor %}{{ m.role }}{% for p in parts if p.type=='text' %} {{ p.text }}{% endfor %}{% endfor "
          "%}")

def edit(folder, name='config.json', **new):
    path = folder/name
    table = json.loads(path.read_text())|new
    path.write_text(json.dumps({k:v for k, v in table.items() if v is not None}))

@pytest.fixture
def good(tmp_path): return Path(shutil.copytree(lab_folder()/'vlm', tmp_path/'good'))

def renamed(folder):
    from safetensors.torch import load_file, save_file
    state = load_file(folder/'model.safetensors')
    save_file({n.replace('language_model.model.', 'model.language_model.model.'):t for n, t in state.items()},
              folder/'model.safetensors', metadata=dict(format='pt'))

def without(*names):
    def spoil(folder):
        for n in names: (folder/n).unlink()
    return spoil

def heads(size):
    def spoil(folder):
        text = json.loads((folder/'config.json').read_text())['text_config']
        edit(folder, text_config=text|dict(num_attention_heads=64//size, num_key_value_heads=64//size,
                                           head_dim=size))
    return spoil

WRONG = {'heads':(heads(16), 'warn', 'A head has 16 numbers'),
         'twice':(renamed, 'stop', 'within another.*relayout'),
         'no architectures':(lambda f: edit(f, architectures=None), 'stop', 'names no architectures'),
         'another class':(lambda f: edit(f, architectures=['LlavaForConditionalGenerator']), 'warn',
                          'none of the classes.*Did you mean LlavaForConditionalGeneration'),
         'no template':(without('chat_template.jinja'), 'stop', 'no chat template'),
         'a detour':(lambda f: (f/'chat_template.jinja').write_text(DETOUR), 'warn', 'one of plain texts'),
         'no processor':(without('preprocessor_config.json', 'processor_config.json'), 'stop',
                         'no processor of'),
         'no tokenizer':(without('tokenizer.json'), 'stop', 'There is no tokenizer'),
         'no code':(lambda f: edit(f, auto_map=dict(AutoModel='a.B')), 'stop', 'code of its own')}

@pytest.mark.parametrize('wrong', WRONG)
def test_what_is_wrong_is_told_and_nothing_else(good, call, wrong):
    spoil, level, why = WRONG[wrong]
    assert what_would_stop(good, 'vllm')==[]
    spoil(good)
    [finding] = what_would_stop(good, 'vllm')
    assert finding.level==level
    code, shown, _ = call('inspect', good, '--for', 'vllm')
    assert code==(3 if level=='stop' else 0)
    import re
    assert re.search(why, shown.splitlines()[-1])

def test_names_of_transformers_5_stop_vllm_and_not_transformers(call, tmp_path):
    assert what_would_stop('lab/vlm', 'vllm')==[]
    named = relayout('lab/vlm', to='transformers', out=tmp_path/'named')
    assert what_would_stop(named, 'transformers')==[]
    [finding] = what_would_stop(named, 'vllm')
    assert finding.level=='stop' and 'relayout' in finding.fix
    code, shown, _ = call('inspect', named, '--for', 'transformers')
    assert code==0 and 'Nothing is known that would stop transformers.' in shown
    assert call('inspect', 'lab/vlm', '--for', 'onnx')[0]==2

def test_another_kind_stops_transformers_and_a_plain_tower_gguf(good):
    edit(good, model_type='nobody')
    assert 'no model_type' in what_would_stop(good, 'transformers')[0].what
    found = [f.what for f in what_would_stop(good, 'gguf')]
    assert 'clip_vision_model' in found[0] and any('tokenizer.model' in w for w in found)

def test_an_llm_is_judged_as_one(tmp_path):
    assert what_would_stop('lab/llm', 'vllm')==[]
    small = Path(shutil.copytree(lab_folder()/'llm', tmp_path/'small'))
    edit(small, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    assert [f.level for f in what_would_stop(small, 'vllm')]==['warn']        # Its heads

def test_a_plan_warns_of_a_template_by_a_detour_and_a_hostile_one_is_a_finding(tmp_path, call):
    good = Path(shutil.copytree(lab_folder()/'vlm', tmp_path/'good'))
    assert not any('plain texts' in str(f) for f in plan(good, 'lab/llm').findings)
    (good/'chat_template.jinja').write_text(DETOUR)
    made = plan(good, 'lab/llm')
    assert any('plain texts' in str(f) for f in made.findings)
    assert 'plain texts' in call('inspect', good)[1]
    for bad in ('{% for', '{'*200_000, '{{ '+'('*50_000, "{% for image in "+'a['*20_000, b'\xff\xfe image',
                'x'*(1<<21)):
        (good/'chat_template.jinja').write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        made = plan(good, 'lab/llm')
        assert all(f.level in ('warn', 'stop') for f in made.findings)
    assert any('too large' in str(f) for f in made.findings)

def test_templates_of_the_hub_are_taken_as_vllm_takes_them():
    "Compared once with vLLM 0.32 itself, by hand"
    loops = {"{% for m in messages %}{% for p in m['content'] %}{% endfor %}{% endfor %}":'openai',
             '{% set xs = messages %}{% for q in xs %}{% for p in q.content if p.type %}{% endfor %}{% '
             'endfor %}':'openai',
             '{% macro r(x) %}{% for p in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ '
             'r(x=m["content"]) }}'
             '{% endfor %}':'openai',
             '{% for p in messages[0].content %}{% endfor %}':'string',
             '{% for m in messages %}{% for i, p in m.content %}{% endfor %}{% endfor %}':'string',
             '{% for m in messages %}{{ m.content }}{% endfor %}':'string'}
    assert {t:content_format(t) for t in loops}==loops
    assert content_format(template_of(lab_folder()/'vlm'))=='openai'
