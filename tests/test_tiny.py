"Every pico checkpoint opens, in every layout, and answers about a picture"
import json, re, subprocess, sys
import pytest, torch
from safetensors.torch import load_file
from vlm_merging.lab.kinds import KINDS
from vlm_merging.lab.remote import REMOTE
from vlm_merging.lab.tiny import (ask_inputs, blank_picture, llm_config, make_llm, make_trio, make_vlm,
                                  vlm_config)

torch.set_num_threads(1)
ALL = [(kind, layout) for kind, k in KINDS.items() for layout in k.layouts]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Logits of each kind as transformers itself saved it"
    seen = {}
    def logits(kind):
        if kind not in seen: seen[kind] = ask(make_vlm(kind, tmp_path_factory.mktemp('saved')/kind), kind)
        return seen[kind]
    return logits


def opened(auto, folder):
    m, info = getattr(__import__('transformers'), auto).from_pretrained(folder, output_loading_info=True)
    odd = {what:info[what] for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys') if info[what]}
    assert not odd
    return m.eval()


def ask(folder, kind):
    "Logits about two pictures; fails unless three words come out"
    m = opened('AutoModelForImageTextToText', folder)
    one, two = (ask_inputs(m, kind, seed=s) for s in (0, 1))
    with torch.no_grad():
        assert m.generate(**one, max_new_tokens=3, min_new_tokens=3).shape[1]==one['input_ids'].shape[1]+3
        return m(**one).logits, m(**two).logits


@pytest.mark.parametrize('kind,layout', ALL)
def test_opens_and_answers(kind, layout, tmp_path, saved):
    logits = ask(make_vlm(kind, tmp_path/'vlm', layout=layout), kind)
    assert (logits[0]-logits[1]).abs().max()>.01, 'the picture does not matter'
    assert all(torch.equal(x, y) for x, y in zip(logits, saved(kind)))


@pytest.mark.parametrize('kind', KINDS)
def test_any_container_and_head(kind, tmp_path, saved):
    logits = ask(make_vlm(kind, tmp_path/'bin', shards=3, container='bin'), kind)
    assert torch.equal(logits[0], saved(kind)[0])
    if kind!='mllama': ask(make_vlm(kind, tmp_path/'other', tie=not KINDS[kind].tie, dtype='float16'), kind)
    for tie in (True, False):
        llm = make_llm(kind, tmp_path/f'llm{tie}', tie=tie, vocab=101, dtype='float32')
        assert opened('AutoModelForCausalLM', llm).get_input_embeddings().weight.shape==(101, 32)


@pytest.mark.parametrize('kind', [*KINDS, *REMOTE])
def test_same_seed_same_bytes(kind, tmp_path):
    read = lambda trio: [{f.name:f.read_bytes() for f in folder.iterdir()} for folder in trio]
    one, two = (read(make_trio(kind, tmp_path/n, seed=4, shards=2)) for n in 'ab')
    assert one==two
    assert one!=read(make_trio(kind, tmp_path/'c', seed=5, shards=2))
    index = json.loads(one[0]['model.safetensors.index.json'])
    assert set(index['weight_map'].values())==set(n for n in one[0] if n.endswith('.safetensors'))
    assert sum(map(len, one[0].values()))<600_000


@pytest.mark.parametrize('kind', ['llava', 'internvl2_internlm2'])
def test_bin_bytes_and_base_class_names(kind, tmp_path):
    how = dict(prefix=False, container='bin', shards=2)
    one, two = (make_llm(kind, tmp_path/n/'llm', **how) for n in 'ab')
    assert {f.name:f.read_bytes() for f in one.iterdir()}=={f.name:f.read_bytes() for f in two.iterdir()}
    names = json.loads((one/'pytorch_model.bin.index.json').read_text())['weight_map']
    assert not any(re.match(r'model\.|lm_head|output', n) for n in names)
    near = make_llm(kind, tmp_path/'near', near=one)
    assert len(load_file(near/'model.safetensors'))==len(names)+1


def test_the_llm_of_the_trio_is_a_relative(tmp_path):
    inner = 'language_model.'
    stems = dict(mllama=inner, internvl2_internlm2=inner, minicpm_v='llm.', phi3_5_vision='')
    for kind, stem in stems.items():
        trio = make_trio(kind, tmp_path/kind, dtype='float32')
        vlm, llm, base = (load_file(f/'model.safetensors') for f in trio)
        for n, b in base.items():
            place = n
            if kind=='mllama': place = re.sub(r'layers\.(\d)', lambda m: f'layers.{(0,2,3,5)[int(m[1])]}', n)
            rows = min(len(b), len(vlm[stem+place]))
            for x in (vlm[stem+place][:rows], llm[n][:rows]):
                assert .01 < (x-b[:rows]).norm()/b[:rows].norm() < .1, n


@pytest.mark.parametrize('kind', KINDS)
def test_both_configs_agree(kind):
    vlm, llm = vlm_config(kind).text_config.to_dict(), llm_config(kind).to_dict()
    for name in ('rms_norm_eps', 'hidden_act', 'sliding_window', 'head_dim', 'layer_types'):
        if name in vlm and name in llm and kind!='mllama': assert vlm[name]==llm[name], name
    rope, plain = vlm['rope_parameters'], llm['rope_parameters']
    assert {n:v for n, v in rope.items() if n!='mrope_section'}==plain


def test_refusals(tmp_path):
    make_llm('llava', tmp_path/'a')
    with pytest.raises(ValueError, match='not empty'): make_llm('llava', tmp_path/'a')
    with pytest.raises(ValueError, match='no layout'): make_vlm('smolvlm', tmp_path/'b', layout='old')
    with pytest.raises(ValueError, match='never tied'): make_vlm('mllama', tmp_path/'c', tie=True)
    with pytest.raises(LookupError, match='No kind'): make_vlm('lava', tmp_path/'d')
    assert not any((tmp_path/n).exists() for n in 'bcd')
    assert blank_picture(1).tobytes()!=blank_picture(2).tobytes()


def test_import_is_cheap():
    code = "import sys, vlm_merging.lab.tiny; print({'transformers', 'nbdev', 'fastcore'} & set(sys.modules))"
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip()=='set()'
