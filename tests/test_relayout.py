"Names rewritten by transformers' own tables: there and back, bit for bit; what vLLM wants; what is refused"
import json, warnings
import pytest, torch, transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging
from every_vlm import class_of, opens, random_model, stored, vlm_config
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.checkpoints.relayout import relayout
from vlm_merging.lab.tiny import make_llm, make_trio, make_vlm
from vlm_merging.merging.merge import merge

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()

# Renamed by one prefix, by several, by none; with a tower of CLIP or SigLIP; experts stacked, apart and
# on their side; matrices fused and split; a wrapper of timm; an infinite number in its configuration
KINDS = ('llava gemma3 mllama qwen2_vl idefics2 lfm2_vl kimi_k25 molmo2 ernie4_5_vl_moe qwen3_vl_moe '
         'qwen3_omni_moe_thinker inkling_mm_model nemotron_h_omni').split()


def equal(one, other): return one.keys()==other.keys() and all(torch.equal(x, other[n])
                                                                for n, x in one.items())


def rewritten(folder, to, out): return relayout(folder, to=to, out=out, progress=False)


@pytest.mark.parametrize('kind', KINDS)
def test_there_and_back(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = random_model(class_of(kind), vlm_config(kind), 1)
        model.save_pretrained(tmp_path/'saved')
        memory = rewritten(tmp_path/'saved', 'transformers', tmp_path/'memory')
        hub = rewritten(tmp_path/'saved', 'hub', tmp_path/'hub')
        seen = opens(kind, tmp_path/'saved'), opens(kind, memory), opens(kind, hub)
    state = model.state_dict()
    assert all(torch.equal(x, state[n]) for n, x in stored(memory).items())
    assert equal(stored(rewritten(memory, 'hub', tmp_path/'hub_again')), stored(hub))
    assert equal(stored(rewritten(hub, 'transformers', tmp_path/'memory_again')), stored(memory))
    assert seen[0]==seen[1]==seen[2]


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
    return make_vlm('llava', tmp_path_factory.mktemp('llava')/'vlm', dtype='float32', shards=2)


def test_the_layout_of_the_hub_is_what_servers_want_and_gives_the_same_logits(llava, tmp_path):
    hub = rewritten(llava, 'hub', tmp_path/'hub')
    names = {*stored(hub)}
    assert {n.split('.')[0] for n in names}=={'language_model', 'multi_modal_projector', 'vision_tower'}
    assert all(n.startswith('vision_tower.vision_model.') for n in names if 'vision' in n)
    assert (hub/'config.json').read_bytes()==(llava/'config.json').read_bytes()
    assert {*json.loads((hub/'model.safetensors.index.json').read_text())['weight_map']}==names
    out = []
    for folder in (llava, hub):
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        side, n = model.config.vision_config.image_size, model.config.image_token_id
        count = (side//model.config.vision_config.patch_size)**2
        torch.manual_seed(0)
        image = torch.rand(1, 3, side, side)
        ids = torch.tensor([[1, *[n]*count, 7, 8]])
        with torch.no_grad(): out.append(model(input_ids=ids, pixel_values=image).logits)
    assert torch.equal(*out)


BROKEN = {
    'doubled': lambda n: n.replace('language_model.', 'language_model.language_model.'),
    'thrice, and wrapped': lambda n: 'module.model.'+n.replace('language_model.', 'language_model.'*3),
    'a word in front': lambda n: 'model.'+n,
    'as an LLM alone': lambda n: n.replace('language_model.model.', 'model.').replace('language_model.', ''),
    'tower doubled': lambda n: n.replace('vision_tower.', 'vision_tower.vision_tower.vision_model.')}


@pytest.mark.parametrize('how', BROKEN)
def test_broken_names_are_mended(how, llava, tmp_path):
    good = rewritten(llava, 'hub', tmp_path/'good')
    bad = tmp_path/'bad'
    bad.mkdir()
    for f in llava.glob('*.json'):
        if 'index' not in f.name: (bad/f.name).write_bytes(f.read_bytes())
    save_file({BROKEN[how](n): x for n, x in stored(llava).items()}, bad/'model.safetensors')
    assert equal(stored(rewritten(bad, 'hub', tmp_path/'mended')), stored(good))


def moe(folder, layers=2):
    config = AutoConfig.for_model(
        'qwen3_moe', vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=24,
        head_dim=8, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_broken_names_of_experts_are_mended_and_stacked(tmp_path):
    held = stored(moe(tmp_path/'moe'))
    save_file({'model.'+n: x for n, x in held.items()}, tmp_path/'moe'/'model.safetensors')
    block = stored(rewritten(tmp_path/'moe', 'transformers', tmp_path/'block'))
    both = [torch.cat([held[f'model.layers.1.mlp.experts.{e}.{x}_proj.weight'] for x in ('gate', 'up')])
            for e in range(4)]
    assert torch.equal(block['model.layers.1.mlp.experts.gate_up_proj'], torch.stack(both))


def test_a_half_read_model_is_refused(tmp_path):
    held = stored(moe(tmp_path/'moe'))
    held.pop('model.layers.1.mlp.experts.2.up_proj.weight')
    save_file(held, tmp_path/'moe'/'model.safetensors')
    with pytest.raises(ValueError, match='experts'): rewritten(tmp_path/'moe', 'transformers', tmp_path/'out')
    assert not [*tmp_path.glob('*out*')]


REFUSED = {
    'no such type': (lambda c: c.update(model_type='internvl_chat'), {}, 'has no table'),
    'no such layout of layers': (lambda c: c['text_config'].update(num_hidden_layers=9**9), {}, 'layers in'),
    'another size': (lambda c: c['text_config'].update(hidden_size=64), {}, 'config.json'),
    'a tensor of its own': (dict, {'score.weight': torch.zeros(2)}, 'score.weight'),
    'twice': (dict, {'model.language_model.norm.weight': torch.ones(32)}, 'one tensor')}


@pytest.mark.parametrize('why', REFUSED)
def test_what_cannot_be_rewritten_is_refused_in_words(why, llava, tmp_path):
    change, more, word = REFUSED[why]
    config = json.loads((llava/'config.json').read_text())
    change(config)
    (tmp_path/'odd').mkdir()
    (tmp_path/'odd'/'config.json').write_text(json.dumps(config))
    save_file({**stored(llava), **more}, tmp_path/'odd'/'model.safetensors')
    with pytest.raises(ValueError, match=word): rewritten(tmp_path/'odd', 'hub', tmp_path/'out')
    assert not [*tmp_path.glob('*out*')]


def test_bin_files_and_a_merged_folder(tmp_path):
    vlm = make_vlm('llava', tmp_path/'vlm', container='bin', shards=2)
    llm = make_llm('llava', tmp_path/'llm', container='bin')
    out = merge(vlm, llm, out=tmp_path/'merged', weight=.5, progress=False)
    hub = rewritten(out, 'hub', tmp_path/'hub')
    assert (hub/'recipe.json').read_bytes()==(out/'recipe.json').read_bytes()
    straight = rewritten(vlm, 'hub', tmp_path/'straight')
    assert {*stored(straight)}=={*stored(hub)}


@pytest.mark.parametrize('shards', [1, 2])
def test_a_merge_writes_the_names_of_a_layout(shards, tmp_path):
    vlm, llm, _ = make_trio('llava', tmp_path/'trio', shards=shards)
    plain = merge(vlm, llm, out=tmp_path/'plain', weight=.5, progress=False)
    hub = merge(vlm, llm, out=tmp_path/'hub', weight=.5, layout='hub', progress=False)
    assert equal(stored(hub), stored(rewritten(plain, 'hub', tmp_path/'again')))
    assert len(Checkpoint.open(hub).files)==shards


def test_a_merge_rearranges_nothing(tmp_path):
    for who in ('vlm', 'llm'): moe(tmp_path/who)
    with pytest.raises(ValueError, match='relayout'):
        merge(tmp_path/'vlm', tmp_path/'llm', out=tmp_path/'out', layout='transformers', progress=False)
    assert not (tmp_path/'out').exists()


def test_it_goes_on_where_it_was_stopped(llava, tmp_path, monkeypatch):
    from vlm_merging.checkpoints import relayout as room
    whole, calls, write = rewritten(llava, 'hub', tmp_path/'whole'), [], room.write_change
    def torn(*args):
        calls.append(args)
        if len(calls)==9: raise KeyboardInterrupt
        return write(*args)
    monkeypatch.setattr(room, 'write_change', torn)
    with pytest.raises(KeyboardInterrupt): rewritten(llava, 'hub', tmp_path/'out')
    assert not (tmp_path/'out').exists() and (tmp_path/'.out.draft').is_dir()
    rewritten(llava, 'hub', tmp_path/'out')
    assert len(calls)==1+len(stored(llava))
    for f in whole.iterdir(): assert (tmp_path/'out'/f.name).read_bytes()==f.read_bytes()


def test_from_the_shell(call, llava, tmp_path):
    code, out, err = call('relayout', llava, '--to', 'hub', '--out', tmp_path/'out')
    assert code==0 and 'layout hub' in out
    assert call('relayout', llava, '--to', 'hub', '--out', tmp_path/'out')[0]==3
    assert call('relayout', llava, '--to', 'mars', '--out', tmp_path/'other')[0]==2
    assert call('relayout', llava, '--to', 'hub', '--out', llava/'inside')[0]==3
