"A chat template that does not end is a failure of the question, and leaves nothing behind"
import shutil, sys
import pytest

pytest.importorskip('torch')
from vlm_merging.asking.models import open_model
from vlm_merging.asking.templates import TEMPLATE_STEPS, write_chat
from vlm_merging.benchmarks.items import Item
from vlm_merging.lab.trio import lab_folder

FOR_EVER = {
    'loops': '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
    'a list': '{% set l = range(3000)|list %}{% for a in l %}{% for b in l %}{% for c in l %}x'
              '{% endfor %}{% endfor %}{% endfor %}',
    'macros': '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}',
    'a loop that calls itself':
        '{% for a in [1]*9 recursive %}{{ loop([1]*9) if loop.depth<40 }}{% endfor %}',
    'filters': '{% for a in range(99999) %}{{ range(99999)|map("string")|select|list|length }}{% endfor %}',
    'words': '{{ lipsum(n=99999999) }}'}

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stranger')/'vlm'
    shutil.copytree(lab_folder()/'vlm', folder)
    return open_model(folder, device='cpu', max_new_tokens=2)

@pytest.mark.parametrize('name', FOR_EVER)
def test_a_template_that_does_not_end_fails_the_question(model, monkeypatch, name):
    monkeypatch.setattr('vlm_merging.asking.templates.TEMPLATE_STEPS', 20_000)
    before = sys.gettrace()
    with monkeypatch.context() as m:
        m.setattr(model.processor, 'chat_template', FOR_EVER[name])
        m.setattr(model.tokenizer, 'chat_template', FOR_EVER[name])
        assert 'does not end within 20,000 steps' in next(model.many([Item('1', 'q')])).error
    assert sys.gettrace() is before and model('How many?') is not None

def test_many_turns_pass(model):
    turns = [dict(role='user' if i%2 else 'assistant', content=[dict(type='text',
                                                                     text='x')]) for i in range(400)]
    assert write_chat(model.processor, turns) and TEMPLATE_STEPS==1_000_000
