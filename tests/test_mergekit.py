"YAML of mergekit: from the shell, with what people write, and with what nobody should"
import pytest

from vlm_merging import Recipe, plan
from vlm_merging.cli.main import main
from vlm_merging.checkpoints.yaml_files import YAML_LIMIT

SLERP = '''slices:
  - sources:
      - {model: lab/llm, layer_range: [0, 8]}
      - {model: lab/vlm, layer_range: [0, 8]}
merge_method: slerp
base_model: lab/llm
parameters:
  t:
    - value: 0.5
dtype: bfloat16
'''
TASKS = '''models: [{model: lab/base}, {model: lab/vlm, parameters: {weight: 1}}, {model: lab/llm}]
merge_method: task_arithmetic
base_model: lab/base
parameters: {weight: 0.5, lambda: 0.5, normalize: 0}
'''

@pytest.fixture
def file(tmp_path):
    def write(text, name='mine.yaml'):
        path = tmp_path/name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write

def test_slices_of_whole_models_are_models(file):
    recipe = Recipe.read(file(SLERP, 'mine.YML'))
    assert recipe==Recipe('lab/vlm', 'lab/llm', method='slerp', knobs={'weight': .5}, layers='0-7',
        embeddings=True)
    p = plan(recipe)
    assert not p.stops and {w.pair.module for w in p.merged}>={'embedding', 'head', 'mlp', 'attention',
        'norm'}

def test_the_base_may_stand_among_the_models_and_one_weight_for_all(file):
    recipe = Recipe.read(file(TASKS))
    assert recipe==Recipe('lab/vlm', 'lab/llm', 'lab/base', 'task_arithmetic',
                          knobs=dict(weight=.5, llm_weight=.25), embeddings=True)

def test_a_value_without_a_filter_is_for_all(file):
    text = TASKS.replace('weight: 1', 'weight: [{value: [{value: 1}]}]')
    assert Recipe.read(file(text)).knobs['weight']==.5

def test_several_llms(file):
    text = TASKS.replace('{model: lab/llm}]', '{model: lab/llm}, {model: a/b, parameters: {weight: [0, 1]}}]')
    recipe = Recipe.read(file(text))
    assert recipe.llm==['lab/llm', 'a/b'] and recipe.knobs==dict(weight=[.5, .25, [0, .5]])
    linear = text.replace('task_arithmetic', 'linear').replace('lambda: 0.5, normalize: 0', '').replace(
        '[0, 1]', '0.5').replace('{model: lab/base}, ', '').replace('base_model: lab/base\n', '')
    assert Recipe.read(file(linear)).knobs==dict(weight=[.5, .25, .25])

def test_the_vlm_is_told(file):
    text = TASKS.replace('lab/vlm', 'some/seer')
    with pytest.raises(ValueError,
        match='mine.yaml: none of its models lies here.*some/seer, lab/llm.*`vlm`'):
        Recipe.read(file(text))
    assert Recipe.read(file(text), 'some/seer').vlm=='some/seer'
    with pytest.raises(ValueError, match='some/other, is none of its models'):
        Recipe.read(file(text), 'some/other')

def test_a_recipe_of_ours_takes_another_vlm(file, tmp_path):
    Recipe('a/b', 'c/d').write(tmp_path/'r.json')
    assert Recipe.read(tmp_path/'r.json', 'e/f').vlm=='e/f'

@pytest.mark.parametrize('text, said', [
    (b'', 'no table'), (b'\xff\xfe', 'cannot be read'), ('a: &x 1\nb: *x', 'references'), ('x: [' * 3000,
        'cannot be read'),
    ('a: 1\na: 2', "'a' stands twice"), ('--- {}\n--- {}', 'cannot be read'), ('#'*(YAML_LIMIT+1),
        'too large'),
    ('? [1]\n: 2', 'cannot be read'), ('x: !!python/name:os.system', 'cannot be read'), ('x: 2001-99-99',
        'cannot be read'),
    ('x: '+'9'*9000, 'cannot be read'), ('x: \x07', 'cannot be read'), ('null: 1', "'None' is not known"),
    ('merge_metod: ties', "Did you mean `merge_method`"), ('merge_method: [ties]', 'has no counterpart'),
    (TASKS.replace('weight: 0.5', 'weight: .nan'), '`weight` is nan'), (TASKS.replace('weight: 0.5, ', ''),
        '`weight` of lab/llm is missing'),
    (TASKS.replace('weight: 1', 'weight: yes'), '`weight` is True'), (TASKS.replace('weight: 1',
        'weight: []'), 'a number'),
    (TASKS.replace('weight: 1', 'weight: [{filter: mlp, value: 1}, {value: 2}]'), 'has a filter'),
    (TASKS.replace('lambda: 0.5', 'lambda: [1, 2]'), '`lambda` is'), (TASKS.replace('normalize: 0',
        'normalize: 2'), 'true or false'),
    (TASKS.replace('normalize: 0', 'rescale: true'), 'no counterpart in task_arithmetic'),
    (TASKS.replace('lab/llm', 'lab/vlm'), 'stands twice'), (TASKS.replace('{model: lab/llm}', '7'),
        'each entry has'),
    (TASKS.replace('{model: lab/llm}', '{model: {path: x}}'), 'each entry has'),
    (TASKS.replace(', {model: lab/llm}', ''), 'one model beside'), (TASKS.replace('base_model: lab/base',
        'base_model: [1]'), 'no name'),
    (SLERP.replace('[0, 8]', '[0, 4]', 1), 'layers of several'), (SLERP.replace('[0, 8]', '[1, 8]'),
        'layers of several'),
    (SLERP.replace('    - value: 0.5', '    - 7'), 'weight is'), (SLERP.replace('base_model: lab/llm', ''),
        'named as `base_model`'),
    (SLERP+'modules: {}', '`modules` has no counterpart'), (SLERP.replace('bfloat16', 'int8'), '`dtype` is'),
    (SLERP.replace('t:', 'u:'), "sets 'u'"), (SLERP.replace('slices', 'x'), "'x' is not known"),
])
def test_what_is_refused_names_the_file_and_says_why(file, text, said):
    with pytest.raises(ValueError) as e: Recipe.read(file(text))
    assert said in str(e.value) and 'mine.yaml' in str(e.value) and '\n' not in str(e.value)

def test_from_the_shell(file, capsys):
    path = str(file(TASKS))
    assert main(['plan', '--recipe', path, '--llm-weight', '0.1'])==0
    assert capsys.readouterr().out.startswith('task_arithmetic(weight=0.5, llm_weight=0.1) on layers all')
    assert main(['plan', '--recipe', str(file(TASKS.replace('lab/vlm', 'some/seer')))])!=0
    assert '--vlm' in capsys.readouterr().err
