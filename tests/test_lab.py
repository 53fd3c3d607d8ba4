"The embedded trio: it opens offline, sees but does not reason, and a merge of it reasons about what it sees"
import json
import pytest, torch
from vlm_merging.lab.trio import (PLACES, TOPICS, accuracy, answer, lab_folder, question_about, questions,
                                  scene)

@pytest.fixture(scope='module')
def trio():
    "VLM, its processor, LLM, its tokenizer"
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    at = lab_folder()
    return (AutoModelForImageTextToText.from_pretrained(at/'vlm', dtype=torch.float32),
            AutoProcessor.from_pretrained(at/'vlm'),
            AutoModelForCausalLM.from_pretrained(at/'llm', dtype=torch.float32),
            AutoTokenizer.from_pretrained(at/'llm'))

@pytest.fixture(scope='module')
def asked(): return questions(400, seed=11)

def test_folders_are_complete_and_small():
    for name in ('vlm', 'llm', 'base'):
        folder = lab_folder()/name
        assert {'README.md', 'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json',
                'tokenizer_config.json', 'chat_template.jinja'} <= {p.name for p in folder.iterdir()}
        assert (folder/'README.md').read_text().startswith('---\nlicense: apache-2.0\n')
        assert json.loads((folder/'config.json').read_text())['dtype'] == 'bfloat16'
    assert sum(p.stat().st_size for p in lab_folder().rglob('*') if p.is_file()) < 3_000_000

def test_vlm_sees_but_does_not_reason(trio, asked):
    vlm, processor, _, _ = trio
    score = accuracy(asked, answer(vlm, processor, asked))
    assert score['perception'] >= 98 and score['reasoning'] <= 60

def test_llm_reasons_in_text(trio, asked):
    _, _, llm, tokenizer = trio
    some = [q for q in asked if q.kind=='reasoning']
    assert accuracy(some, answer(llm, tokenizer, some))['reasoning'] >= 85

def test_vlm_needs_the_picture(trio, asked):
    "With the pictures dealt to the wrong questions, perception is a guess"
    from dataclasses import replace
    vlm, processor, _, _ = trio
    some = [q for q in asked if q.kind=='perception']
    wrong = [replace(q, image=other.image) for q, other in zip(some, some[7:]+some[:7])]
    assert accuracy(some, answer(vlm, processor, wrong))['perception'] < 50

def test_a_merge_is_a_trade_and_beats_both_parents(trio, asked):
    "The LLM in the VLM's shell loses perception, the VLM cannot reason, and what lies between does both"
    from copy import deepcopy
    vlm, processor, llm, _ = trio
    def merged(share): # Of the LLM
        both = deepcopy(vlm)
        with torch.no_grad():
            for (name, mine), theirs in zip(both.model.language_model.named_parameters(),
                                            llm.model.parameters(), strict=True):
                if not name.startswith('embed_tokens'): mine.lerp_(theirs, share)
        return accuracy(asked, answer(both, processor, asked))
    before, between, further, shell = map(merged, (0, .3, .4, 1))
    assert shell['perception'] <= before['perception']-15 and shell['reasoning'] >= before['reasoning']+30
    assert between['reasoning'] >= before['reasoning']+10 and between['perception'] >= before['perception']-2
    assert sum(further.values()) > max(sum(before.values()), sum(shell.values()))

def test_the_trio_shares_its_words(trio):
    "Embeddings and output layer are the base's in all three, so that only layers differ"
    from safetensors.torch import load_file
    at = lab_folder()
    base, llm = (load_file(at/name/'model.safetensors') for name in ('base', 'llm'))
    vlm = load_file(at/'vlm'/'model.safetensors')
    def of_vlm(name): return next(v for k, v in vlm.items() if k.endswith(name))
    for name in ('embed_tokens.weight', 'lm_head.weight'):
        mine = next(v for k, v in base.items() if k.endswith(name))
        assert torch.equal(mine, next(v for k, v in llm.items() if k.endswith(name)))
        assert torch.equal(mine, of_vlm(name))
    layer = 'layers.3.mlp.up_proj.weight'
    assert not torch.equal(base[f'model.{layer}'], llm[f'model.{layer}'])

def test_replies_do_not_depend_on_the_batch(trio, asked):
    vlm, processor, llm, tokenizer = trio
    assert answer(vlm, processor, asked[:21], batch_size=4) == answer(vlm, processor, asked[:21],
        batch_size=21)
    assert answer(llm, tokenizer, asked[:21], batch_size=4) == answer(llm, tokenizer, asked[:21],
        batch_size=21)

def test_questions_are_seeded_and_splits_are_apart():
    assert questions(80, seed=5) == questions(80, seed=5) != questions(80, seed=6)
    a, b = questions(8, seed=5), questions(8, seed=5)
    assert all(x.image.tobytes()==y.image.tobytes() for x, y in zip(a, b))
    scenes = {s:{q.scene for q in questions(700, seed=1, split=s)} for s in ('train', 'dev', 'test')}
    assert not scenes['train']&scenes['test'] and not scenes['dev']&scenes['test']
    assert not scenes['train']&scenes['dev']

def test_answers_follow_from_the_scene():
    import numpy as np
    rng = np.random.default_rng(0)
    for topic in TOPICS:
        for _ in range(50):
            sc = scene(rng)
            q, steps, a = question_about(topic, sc, rng)
            at = [sc[PLACES.index(w)] for w in q.split() if w in PLACES]
            n = [m for *_, m in at]
            match topic:
                case 'number': assert a == str(n[0])
                case 'color': assert a == at[0][0]
                case 'shape': assert a == at[0][1]
                case 'where': assert sc[PLACES.index(a)][0] == q.split()[2]
                case 'plus' | 'sum': assert int(a) == sum(n)
                case 'minus': assert int(a) == n[0]-n[1] >= 0
                case 'more': assert (a=='yes') == (n[0]>n[1])
            assert bool(steps) == (TOPICS[topic]=='reasoning')

def test_an_unknown_split_or_topic_is_a_sentence():
    with pytest.raises(ValueError, match='There are: test, dev, train'): questions(1, split='validation')
    with pytest.raises(ValueError, match='There are: number'): questions(1, topics=('size',))
