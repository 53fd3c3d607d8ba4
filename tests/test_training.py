"The lessons that the lab was trained on, and what a training leaves behind when it fails"
import numpy as np
import pytest, torch
from vlm_merging.lab import training as training
from vlm_merging.lab.trio import TOPICS

@pytest.mark.parametrize('image', [False, True])
def test_questions_of_one_scene_do_not_see_each_other(image):
    "Each of the six is answered as if alone behind the scene: six rows of one question give the same loss"
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(training.llama(32, 2)).eval()
    batch = training.lesson(np.random.default_rng(0), dict.fromkeys(TOPICS, 1), .5, n=1, image=image)
    batch.pop('pixel_values', None)
    with torch.no_grad(): packed = model(**batch).logits[0]
    x, y, at = (batch[k][0] for k in ('input_ids', 'labels', 'position_ids'))
    starts = [i for i in range(17, len(x)) if at[i]==17]
    assert len(starts)==6
    for i, j in zip(starts, [*starts[1:], len(x)]):
        rows = [*range(17), *range(i, j)]
        assert at[rows].tolist()==list(range(len(rows)))
        with torch.no_grad(): alone = model(input_ids=x[rows][None]).logits[0]
        torch.testing.assert_close(alone[17:], packed[i:j], atol=1e-4, rtol=1e-4)
        assert (y[rows]!=-100).sum() >= 2 and y[rows][-1]==training.ID['<eos>']

def test_steps_stand_before_the_answer_only_where_they_are_asked_for():
    for chain in (0, 1):
        batch = training.lesson(np.random.default_rng(1), dict(plus=1, minus=1), chain, n=8)
        told = batch['input_ids'][batch['labels']!=-100].tolist()
        assert (training.ID['so'] in told)==bool(chain)

def test_only_what_is_listed_learns():
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    model, rng = LlamaForCausalLM(training.llama(32, 2)), np.random.default_rng(0)
    before = {k:v.clone() for k, v in model.state_dict().items()}
    training.train(model, [(training.core(model.model), 1e-3)], 2,
                   lambda: model(**training.lesson(rng, dict(number=1), 0, n=2)).loss)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved=={k for k in before if '.layers.' in k or k=='model.norm.weight'}

def test_a_trio_that_fails_its_exam_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'train', lambda *args: 0.)
    monkeypatch.setattr(training, 'exam', lambda *args: dict.fromkeys(TOPICS, 50.))
    failed = 'base, looking did not pass its exam in 12 rounds.*Try another seed'
    with pytest.raises(ValueError, match=failed):
        training.train_trio(tmp_path/'trio', hidden=32, layers=2, say=str)
    assert not list(tmp_path.iterdir())

def test_only_one_round_of_the_base_reasons(monkeypatch):
    "A base that fails its exams goes on looking things up"
    from transformers import LlamaForCausalLM
    taught, marks = [], iter([90., 98., 90., 90., 98.])
    def taught_by(model, groups, steps, loss):
        monkeypatch.setattr(training, 'lesson', lambda rng, mix, chain: taught.append((mix, chain)) or {})
        try: loss()
        except (ValueError, AttributeError, TypeError): pass         # There is no batch in this lesson
    monkeypatch.setattr(training, 'train', taught_by)
    monkeypatch.setattr(training, 'exam', lambda *args: dict.fromkeys(TOPICS, next(marks)))
    base = training.make_base(0, training.llama(32, 2), say=str)
    assert isinstance(base, LlamaForCausalLM)
    look, all_of_it = (training.LOOK, 0), (training.EVERYTHING, .7)
    assert taught==[look, look, all_of_it, look, look]

@pytest.mark.parametrize('marks, taught', [
    ([(95, 90), (95, 60), (80, 70), (95, 70), (99, 99)], [400, 100, 50, 100]),
    ([(99, 70), (99, 98), (99, 90), (99, 76), (99, 70)], [400, 50, 100, 100]),      # Passes, but not at once
    ([(99, 77), (99, 75), (99, 70)], [400, 100])])
def test_an_llm_that_forgot_too_much_looks_back(monkeypatch, marks, taught):
    """It passes when it works things out and has kept about as much as it should, and not before; what it
    forgets in the first round it has forgotten too fast"""
    from transformers import LlamaForCausalLM
    base, rounds, marks = LlamaForCausalLM(training.llama(32, 2)), [], iter(marks)
    def exam(*args):
        works, keeps = next(marks)
        return {t:float(keeps if t in training.SEEN else works) for t in TOPICS}
    monkeypatch.setattr(training, 'train', lambda model, groups, n, loss: rounds.append(n))
    monkeypatch.setattr(training, 'exam', exam)
    training.tune_llm(base, 0, say=str)
    assert rounds==taught

def test_the_tower_has_the_names_of_the_hub_and_heads_that_engines_know(tmp_path):
    from safetensors import safe_open
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration
    torch.manual_seed(0)
    vlm = training._with_eye(LlamaForCausalLM(training.llama(64, 1)))
    training.save_checkpoint(vlm, 'vlm', tmp_path, 0)
    with safe_open(tmp_path/'vlm'/'model.safetensors', 'pt') as f: names = list(f.keys())
    tower = [n for n in names if n.startswith('vision_tower.')]
    assert tower and all(n.startswith('vision_tower.vision_model.') for n in tower)
    again, told = LlavaForConditionalGeneration.from_pretrained(tmp_path/'vlm', output_loading_info=True)
    assert not any(told[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    saved = vlm.to(torch.bfloat16).state_dict()
    assert all(torch.equal(v.to(torch.bfloat16), saved[k]) for k, v in again.state_dict().items())
    for c in (again.config.text_config, again.config.vision_config):
        assert c.hidden_size//c.num_attention_heads==32

def test_a_small_trio_is_saved_whole(tmp_path, monkeypatch):
    "The whole way with no lessons at all: folders that merge and open"
    from vlm_merging.merging.merge import merge
    from vlm_merging.merging.recipe import Recipe
    from vlm_merging.asking.opening import open_model
    from vlm_merging.benchmarks.load import load
    monkeypatch.setattr(training, 'train', lambda *args: 0.)
    monkeypatch.setattr(training, 'until', lambda passed, stage, *args: stage(0))
    said = []
    trio = training.train_trio(tmp_path/'trio', seed=3, hidden=32, layers=2, say=said.append)
    assert {p.name for p in trio.iterdir()}=={'base', 'llm', 'vlm'}
    assert [p.name for p in tmp_path.iterdir()]==['trio']
    assert 'seed=3, hidden=32, layers=2' in (trio/'vlm'/'README.md').read_text() and 'seed 3' in said[-1]
    merged = merge(Recipe(trio/'vlm', trio/'llm', knobs=dict(weight=.5)), out=tmp_path/'merged')
    assert isinstance(open_model(merged, max_new_tokens=2)(load('lab', n=1)[0]), str)
