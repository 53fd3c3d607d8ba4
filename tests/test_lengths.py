"Weights without data: what is measured, chosen, said, and repeated without measuring"
import json, shutil

import pytest
from safetensors.torch import load_file, save_file
from vlm_merging import Recipe, merge, plan, sweep
from vlm_merging.cli.main import main
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging import lengths, plan as plan_room

LAB = ('lab/vlm', 'lab/llm', 'lab/base')

@pytest.fixture(scope='module')
def moved(tmp_path_factory):
    "The lab's LLM as it would be after `times` the way from the base"
    room, base = tmp_path_factory.mktemp('moved'), load_file(lab_folder()/'base'/'model.safetensors')
    llm = load_file(lab_folder()/'llm'/'model.safetensors')
    def made(times, spoilt=False):
        folder = room/f'{times}{spoilt}'
        if folder.is_dir(): return folder
        shutil.copytree(lab_folder()/'llm', folder)
        there = {n: base[n]+times*(t-base[n]) for n, t in llm.items()}
        if spoilt: there['model.layers.2.mlp.up_proj.weight'][0, 0] = float('nan')
        save_file(there, folder/'model.safetensors', metadata=dict(format='pt'))
        return folder
    return made

def test_models_that_went_as_far_weigh_the_same():
    "Here the second model is the VLM itself"
    assert plan('lab/vlm', 'lab/vlm', 'lab/base', weight='auto').recipe.knobs=={'weight': .5}
    both = plan('lab/vlm', 'lab/vlm', 'lab/base', method='ties', weight='auto').recipe.knobs
    assert both=={'weight': 1., 'llm_weight': 1.}

def test_a_donor_that_went_twice_as_far_weighs_half(moved):
    one, two = (plan('lab/vlm', moved(t), 'lab/base', method='task_arithmetic', weight='auto')
                for t in (1, 2))
    assert two.chosen.lengths['llm']==pytest.approx(2*one.chosen.lengths['llm'], rel=1e-4)
    assert two.recipe.knobs['llm_weight']==pytest.approx(one.recipe.knobs['llm_weight']/2, rel=1e-4)
    assert one.recipe.knobs['weight']==two.recipe.knobs['weight']==1

@pytest.mark.parametrize('method', ['linear', 'task_arithmetic'])
@pytest.mark.parametrize('word', lengths.LENGTH_RULES)
def test_several_donors(method, word, moved):
    made = plan('lab/vlm', [str(moved(1)), str(moved(2))], 'lab/base', method=method, weight=word)
    v, a, b = made.chosen.lengths.values()
    w = made.recipe.knobs['weight']
    assert list(made.chosen.lengths)==['vlm', 'llm', 'llm 2'] and 'llm_weight' not in made.recipe.knobs
    if word=='auto:metagpt': assert (w[1]/w[0], w[2]/w[1])==pytest.approx(((a/v)**2, 4), rel=1e-3)
    else: assert (w[1]*a, w[2]*b)==pytest.approx((w[0]*v, w[0]*v), rel=1e-4)
    if method=='linear' or word!='auto': assert sum(w)==pytest.approx(1, abs=1e-5)
    else: assert max(w)==1

def test_lengths_are_those_of_what_is_merged(moved):
    "Of some layers and parts only; embeddings never count"
    some, whole = plan(*LAB, weight='auto', layers='0-3', modules='mlp'), plan(*LAB, weight='auto')
    assert some.chosen.tensors==len(plan(*LAB, layers='0-3', modules='mlp').merged)
    assert some.chosen.lengths['llm']<whole.chosen.lengths['llm']
    assert plan(*LAB, weight='auto', embeddings=True).chosen==whole.chosen

def test_what_cannot_be_chosen_is_said(moved):
    for word, llm in ('base itself', 'lab/base'), ('holds NaN or Inf', moved(1, True)):
        made = plan('lab/vlm', llm, 'lab/base', weight='auto')
        assert word in str(made.stops[-1]) and not made.merged and not made.chosen
    for how, said in [(dict(base=None, weight='auto'), 'needs `base`'), (dict(weight='most'), 'auto:metagpt'),
                      (dict(method='ties', weight='auto', llm_weight=1.), 'as well'),
                      (dict(method='sce', weight='auto'), 'no knob')]:
        with pytest.raises(ValueError, match=said): Recipe('lab/vlm', 'lab/llm', **{'base': 'lab/base'}|{
            k: v for k, v in how.items() if k in ('base', 'method')}, knobs={
            k: v for k, v in how.items() if k.endswith('weight')})
    with pytest.raises(ValueError, match='is no weight to try'): sweep(*LAB, weights=['auto'], items='lab')

def test_the_recipe_makes_the_same_bytes_without_measuring(tmp_path, monkeypatch):
    planned = plan(*LAB, method='ties', weight='auto')
    def refuse(*_): raise AssertionError('measured again')
    monkeypatch.setattr(plan_room, 'with_weights', refuse)
    first = merge(planned, out=tmp_path/'first', progress=False)
    again = merge(Recipe.read(first), out=tmp_path/'again', progress=False)
    assert (first/'model.safetensors').read_bytes()==(again/'model.safetensors').read_bytes()
    told = json.loads((first/'recipe.json').read_text())
    assert told['chosen']['word']=='auto' and told['recipe']['knobs']['weight']==1
    assert 'chosen by auto, equal lengths' in (first/'README.md').read_text()

def test_from_the_shell(tmp_path, capsys):
    assert main(['plan', *LAB, '--weight', 'auto:nan'])==0
    assert 'weight auto:nan, NAN: 1/length' in capsys.readouterr().out
    assert main(['sweep', *LAB, '--weights', 'auto,.5', '--benchmark', 'lab', '--out', str(tmp_path/'s')])==3
    assert 'vlm-merging plan says' in capsys.readouterr().err

# What a recipe knows of the merge that it was

def test_a_recipe_says_which_input_is_another_now(tmp_path, moved, capsys):
    llm = shutil.copytree(moved(1), tmp_path/'llm')
    out = merge('lab/vlm', llm, out=tmp_path/'out', progress=False)
    assert not plan(Recipe.read(out)).findings
    shutil.copy(moved(2)/'model.safetensors', llm/'model.safetensors')
    said = [str(f) for f in plan(Recipe.read(out)).findings]
    assert len(said)==1 and 'The LLM is not what it was' in said[0] and 'model.safetensors' in said[0]
    assert main(['merge', '--recipe', str(out), '--out', str(tmp_path/'other')])==0
    assert 'The LLM is not what it was' in capsys.readouterr().err
    assert main(['plan', '--recipe', str(out), '--llm', str(moved(1))])==0
    assert 'is not what it was' not in capsys.readouterr().out

@pytest.mark.parametrize('inputs,word', [
    (7, 'no table'), ([], 'no table'), ('', 'no table'), ({'llm': 3}, '`source`'),
    ({'llm': {'files': []}}, '`source`'), ({'vlm': {'source': 'lab/vlm'}}, '`files`'),
    ({'vlm': {'source': 'lab/vlm', 'files': {'x': 1}}}, 'x of vlm'),
    ({'vlm': {'source': 'lab/vlm', 'files': {'x': {'size': '9', 'samples': 'a'}}}}, '`size`'),
    ({'vlm': {'source': 'lab/vlm', 'files': {'x': {'size': True, 'samples': 'a'}}}}, '`size`'),
    ({'other': {'source': 1, 'files': {}}}, '`source`')])
def test_damaged_fingerprints_are_no_obstacle_and_are_told(tmp_path, inputs, word):
    out = merge('lab/vlm', 'lab/llm', out=tmp_path/'out', progress=False)
    told = json.loads((out/'recipe.json').read_text())
    (tmp_path/'r.json').write_text(json.dumps(told|dict(inputs=inputs)))
    p = plan(Recipe.read(tmp_path/'r.json'))
    assert p.merged and not p.stops
    said, = p.findings
    assert 'is damaged' in said.what and word in said.what

def test_a_recipe_without_fingerprints_tells_nothing_of_them(tmp_path):
    for inputs in {}, dict(inputs=None), dict(inputs={}):
        text = dict(recipe=dict(vlm='lab/vlm', llm='lab/llm'), **inputs)
        (tmp_path/'r.json').write_text(json.dumps(text))
        assert not plan(Recipe.read(tmp_path/'r.json')).findings

@pytest.mark.parametrize('field', [dict(method=3), dict(knobs={'weight': 7}), dict(layers='9-1'),
                                   dict(seed='a')])
def test_what_is_wrong_in_a_recipe_is_told_with_its_file(tmp_path, field):
    (tmp_path/'r.json').write_text(json.dumps(dict(vlm='lab/vlm', llm='lab/llm')|field))
    with pytest.raises(ValueError, match=r'r\.json: '): Recipe.read(tmp_path/'r.json')

def test_the_layout_is_part_of_the_recipe(tmp_path):
    out = merge('lab/vlm', 'lab/llm', layout='transformers', out=tmp_path/'out', progress=False)
    assert Recipe.read(out).layout=='transformers'
    assert '"layout": "transformers"' in (out/'README.md').read_text()
    assert main(['merge', '--recipe', str(out), '--out', str(tmp_path/'again'), '--quiet'])==0
    assert (tmp_path/'again/model.safetensors').read_bytes()==(out/'model.safetensors').read_bytes()
    with pytest.raises(ValueError, match='hub or transformers'): plan('lab/vlm', 'lab/llm', layout='gguf')

def test_what_a_recipe_sets_can_be_taken_back(tmp_path, capsys):
    Recipe('lab/vlm', 'lab/llm', embeddings=True, as_run=True).write(tmp_path/'r.json')
    for words, said in ((), True), (('--no-embeddings', '--no-as-run'), False):
        assert main(['plan', '--recipe', str(tmp_path/'r.json'), *words])==0
        out = capsys.readouterr().out
        assert ('with embeddings' in out)==("as the paper's script" in out)==said

def test_a_third_name_is_the_base_and_one_that_is_idle_is_told(tmp_path, capsys):
    assert main(['merge', *LAB, '--out', str(tmp_path/'a'), '--quiet'])==0
    assert 'linear makes no use of the base, lab/base' in capsys.readouterr().err
    assert main(['merge', *LAB, '--method', 'ties', '--out', str(tmp_path/'b'), '--quiet'])==0
    assert 'no use' not in capsys.readouterr().err

def test_the_card_says_what_stays():
    from vlm_merging.merging.card import model_card
    def card(**how): return model_card(plan('lab/vlm', 'lab/llm', **how), 'm')
    assert '(vision, projector, embeddings, output head, and what else' in card()
    assert '(vision, projector, and what else' in card(embeddings=True)
    assert '(vision, embeddings, output head, and' in model_card(
        plan('lab/vlm', 'lab/vlm', modules='all,projector'), 'm')
