"Every VLM type of transformers is merged with its LLM, tensor for tensor; and layouts pair with others"
import csv, json, warnings
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from transformers.utils import logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LLMS
from every_vlm import ALONE, VLMS, judged, line, make, stored, ties, vlm_config
from vlm_merging.checkpoints.relayout import relayout
from vlm_merging.lab.tiny import make_llm, make_vlm
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
TABLE = Path(__file__).parent.parent/'nbs'/'guide'/'every_vlm.csv'
LEFT = {'inkling_mm_model'}     # Its files name and order the experts' rows otherwise than those of its LLM


@pytest.mark.parametrize('kind', ALONE)
def test_what_is_said_to_have_no_llm_has_none(kind):
    "No class of transformers opens its text part as an LLM, but the VLM's own"
    config = vlm_config(kind)
    text = config.get_text_config(decoder=True)
    if ALONE[kind]=='encoder and decoder': assert config.is_encoder_decoder
    elif ALONE[kind]=='a language model itself': assert VLMS[kind].endswith('ForCausalLM') or not hasattr(
        config, 'vision_config')
    else: assert LLMS.get(text.model_type) in (None, LLMS.get(kind))


@pytest.mark.parametrize('kind', LEFT)
def test_what_is_named_otherwise_is_merged_once_it_is_rewritten(kind, tmp_path):
    make(kind, tmp_path)
    said, = plan(tmp_path/'vlm', tmp_path/'llm').stops
    assert 'name their layers otherwise' in said.what and '--to transformers' in said.fix
    vlm, llm = (stored(relayout(tmp_path/n, to='transformers', out=tmp_path/f'{n}_memory', progress=False))
                for n in ('vlm', 'llm_in'))
    p = plan(tmp_path/'vlm_memory', tmp_path/'llm', weight=.7)
    out = stored(merge(p, out=tmp_path/'out', progress=False))
    for n, v in vlm.items():
        assert torch.equal(out[n], v if torch.equal(v, llm[n]) else line(v, llm[n], 0))


@pytest.mark.parametrize('kind', [k for k in VLMS if k not in ALONE])
def test_a_type_is_merged_with_its_llm(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        verdict, why, *_ = judged(kind, tmp_path)
    assert verdict==('refused' if kind in LEFT else 'works'), why


def test_the_table_of_the_guide_is_of_these_types():
    rows = {r['type']: r['verdict'] for r in csv.DictReader(TABLE.open())}
    assert rows.keys()==set(VLMS), 'Run tests/bench/families.py'
    assert {k for k, v in rows.items() if v not in ('works', 'no LLM of its kind')}==LEFT


# --- Layouts, of a pair of llama's kind: what was split is fused, what was apart is stacked

@pytest.fixture(scope='module')
def trio(tmp_path_factory):
    room = tmp_path_factory.mktemp('layouts')
    base = make_llm('llava', room/'base', dtype='float32')
    return (make_vlm('llava', room/'vlm', near=base, seed=2, dtype='float32'),
            make_llm('llava', room/'llm', near=base, seed=1, dtype='float32'), base)


def rewritten(folder, to, change):
    "A checkpoint with other tensors"
    to.mkdir()
    for f in folder.glob('*.json'): (to/f.name).write_bytes(f.read_bytes())
    save_file({n: x.contiguous() for n, x in change(stored(folder)).items()}, to/'model.safetensors')
    return to


def in_layers(change):
    "Change each layer, as a table of names behind its number"
    def whole(held):
        out, layers = {}, {}
        for n, x in held.items():
            stem, found, rest = n.partition('layers.')
            number, _, rest = rest.partition('.')
            if not found or 'vision' in n: out[n] = x
            else: layers.setdefault(f'{stem}layers.{number}.', {})[rest] = x
        for stem, layer in layers.items(): out |= {stem+rest: x for rest, x in change(layer).items()}
        return out
    return whole


def fused(layer):
    "As Phi-3 and GLM-4 store it"
    q, k, v = (layer.pop(f'self_attn.{x}_proj.weight') for x in 'qkv')
    gate, up = (layer.pop(f'mlp.{x}_proj.weight') for x in ('gate', 'up'))
    return layer | {'self_attn.qkv_proj.weight': torch.cat([q, k, v]),
                    'mlp.gate_up_proj.weight': torch.cat([gate, up])}


def in_turns(layer):
    "As InternLM2 stores it: 4 heads and 2 key-value heads of 8 numbers"
    q, k, v = (layer.pop(f'self_attn.{x}_proj.weight') for x in 'qkv')
    rows = [torch.cat([q[16*g:16*g+16], k[8*g:8*g+8], v[8*g:8*g+8]]) for g in range(2)]
    names = dict(zip(('self_attn.o_proj', 'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj', 'input_layernorm',
                      'post_attention_layernorm'),
                     ('attention.wo', 'feed_forward.w1', 'feed_forward.w3', 'feed_forward.w2',
                      'attention_norm', 'ffn_norm')))
    other = {f'{names[n.removesuffix(".weight")]}.weight': x for n, x in layer.items()}
    return other | {'attention.wqkv.weight': torch.cat(rows)}


def experts(layer):
    "Four experts, each in matrices of its own"
    gate, up, down = (layer.pop(f'mlp.{x}_proj.weight') for x in ('gate', 'up', 'down'))
    for e in range(4):
        for x, w in dict(gate=gate, up=up,
                         down=down).items(): layer[f'mlp.experts.{e}.{x}_proj.weight'] = w.roll(e, 0)
    return layer | {'mlp.gate.weight': gate[:4].clone()}


def stacked(layer, aside=False):
    "The same in two blocks, straight or on their side"
    def block(*names):
        return torch.stack([torch.cat([layer.pop(f'mlp.experts.{e}.{x}_proj.weight') for x in names])
                            for e in range(4)])
    layer = experts(layer)
    both, down = block('gate', 'up'), block('down')
    if aside: both, down = both.mT, down.mT
    return layer | {'mlp.experts.gate_up_proj': both, 'mlp.experts.down_proj': down}


def turned(layer): return stacked(layer, aside=True)
def mixtral(layer): return {n.replace('mlp.',
                                      'block_sparse_moe.').replace('gate_proj', 'w1').replace('up_proj', 'w3')
                            .replace('down_proj', 'w2'): x for n, x in experts(layer).items()}
def wrapped(layer): return {n.replace('_proj.', '_proj.base_layer.'): x for n, x in layer.items()}
def plain(layer): return layer


LAYOUTS = [
    (plain, fused), (fused, plain), (plain, in_turns), (in_turns, plain), (fused, in_turns), (wrapped, plain),
    (plain, wrapped), (experts, stacked), (stacked, experts), (experts, turned), (turned, experts),
    (stacked, turned), (turned, stacked), (turned, turned), (mixtral, experts), (experts, mixtral),
    (mixtral, turned)]


@pytest.mark.parametrize('mine,theirs', LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('method', ['linear', 'ties'])
def test_one_layout_with_another(mine, theirs, method, trio, tmp_path):
    "The merge is that of the LLM in the VLM's own layout"
    vlm = rewritten(trio[0], tmp_path/'vlm', in_layers(mine))
    for who, folder in zip(('llm', 'base'), trio[1:]):
        rewritten(folder, tmp_path/who, in_layers(theirs))
        rewritten(folder, tmp_path/f'{who}_in', in_layers(mine))
    knobs, formula = (dict(weight=.7), line) if method=='linear' else (
        dict(base=tmp_path/'base', weight=1.5, llm_weight=.5, density=.4), ties)
    p = plan(vlm, tmp_path/'llm', method=method, **knobs)
    assert not p.stops, p
    out, v = stored(merge(p, out=tmp_path/'out', progress=False)), stored(vlm)
    l, b = (stored(tmp_path/f'{who}_in') for who in ('llm', 'base'))
    moved = {n for n in v if '.layers.' in n and 'vision' not in n or n.endswith('model.norm.weight')}
    assert {w.pair.vlm for w in p.merged}==moved
    for n in v:
        at = n.removeprefix('language_model.')
        assert torch.equal(out[n], formula(v[n], l[at], b[at]) if n in moved else v[n]), n


def test_layers_behind_the_last_one_stay(trio, tmp_path):
    "DeepSeek-V3, GLM-4.5 and MiMo have a layer for predicting further tokens"
    def longer(held): return held | {n.replace('layers.3.', 'layers.4.'): x.clone() for n, x in held.items()
                                     if 'layers.3.' in n and 'vision' not in n}
    for mine, theirs in ((longer, dict), (dict, longer), (longer, longer)):
        room = tmp_path/f'{mine.__name__}_{theirs.__name__}'
        room.mkdir()
        p = plan(rewritten(trio[0], room/'vlm', mine), rewritten(trio[1], room/'llm', theirs))
        assert not p.stops and len(p.merged)==4*9+1, p
        behind = [why for n, why in p.kept.items() if 'layers.4.' in n]
        assert set(behind)<={'a layer behind the last one, for predicting further tokens'}
        assert len(behind)==9*(mine is longer)


def test_a_second_set_of_weights_stays(trio, tmp_path):
    "BAGEL's weights for making pictures, and adapters, are the VLM's own"
    def twice(layer):
        return layer | {n.replace('.weight', '_moe_gen.weight'): x.clone() for n, x in layer.items()} | {
            'self_attn.q_proj.lora_A.speech.weight': torch.zeros(2, 32)}
    p = plan(rewritten(trio[0], tmp_path/'vlm', in_layers(twice)), trio[1])
    assert not p.stops and len(p.merged)==4*9+1
    assert {why for n, why in p.kept.items() if 'moe_gen' in n
            or 'lora' in n}=={"the VLM's own: an LLM has no such part"}


def test_what_an_llm_has_outside_its_layers_is_not_left_in_silence(trio, tmp_path):
    llm = rewritten(trio[1], tmp_path/'llm', lambda held: held
                    | {'model.per_layer_norm.weight': torch.ones(32)})
    p = plan(trio[0], llm)
    assert not p.stops and [f for f in p.findings if 'model.per_layer_norm.weight' in f.what]


def test_mistrals_own_names_are_refused(trio, tmp_path):
    "Its rows of queries and keys are in another order: `attention.wq` is not `q_proj`"
    def own(layer): return {n.replace('self_attn.',
                                      'attention.w').replace('_proj',
                                                             '').replace('input_layernorm', 'attention_norm')
                            : x for n, x in layer.items()}
    p = plan(trio[0], rewritten(trio[1], tmp_path/'llm', in_layers(own)))
    assert p.stops


def test_two_llms_and_a_copy_are_told(trio, tmp_path):
    p = plan(trio[1], trio[2])
    assert not p.stops and [f for f in p.findings if 'two LLMs are merged' in f.what]
    copy = rewritten(trio[1], tmp_path/'copy', dict)
    assert [f for f in plan(trio[1], copy).findings if 'one is a copy of the other' in f.what]


@pytest.mark.parametrize('key,mine,theirs,word', [
    ('layer_types', ['full_attention']*4, ['full_attention', 'sliding_attention']*2,
     '2 full_attention, 2 sliding_attention'),
    ('partial_rotary_factor', .5, 1., 'share of rotated numbers'), ('query_pre_attn_scalar', 8, 16,
                                                                    'scale of attention')])
def test_settings_that_change_what_a_layer_does(key, mine, theirs, word, trio, tmp_path):
    folders = [rewritten(f, tmp_path/who, dict) for f, who in zip(trio, ('vlm', 'llm'))]
    for folder, value in zip(folders, (mine, theirs)):
        config = json.loads((folder/'config.json').read_text())
        config.get('text_config', config)[key] = value
        (folder/'config.json').write_text(json.dumps(config))
    assert [f for f in plan(*folders).findings if f.level=='warn' and word in f.what]


def test_a_pointer_of_git_lfs_has_its_name(trio, tmp_path):
    llm = rewritten(trio[1], tmp_path/'llm', dict)
    (llm/'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')
    with pytest.raises(ValueError, match='pointer of git-lfs'): plan(trio[0], llm)
    (llm/'model.safetensors').write_bytes(bytes(4096))
    with pytest.raises(ValueError, match='not complete'): plan(trio[0], llm)
