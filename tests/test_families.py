"A merge of files is the merge of the models, in every family and every layout, and the result still sees"
import json, re, shutil
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.checkpoints.decoder import find_decoder
from vlm_merging.merging.checks import tokens
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.merging.coins import drop, name_rng
from vlm_merging.merging.recipe import Recipe
from vlm_merging.lab.tiny import KINDS, REMOTE, ask_inputs, make_llm, make_trio, make_vlm

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
ALL = [(kind, layout) for kind, k in KINDS.items() for layout in k.layouts]
WEIGHTS = re.compile(r'.*\.(safetensors|bin)|.*\.index\.json|README\.md')


# --- Independent of the package: transformers opens the models, and the arithmetic is written out

def opened(folder, auto=AutoModelForImageTextToText):
    "A model, once no name is missing and none is left over"
    m, info = auto.from_pretrained(folder, output_loading_info=True)
    odd = ('missing_keys', 'unexpected_keys', 'mismatched_keys', 'error_msgs')
    assert not [info[k] for k in odd if info.get(k)]
    return m.eval()


def pairs(vlm, *others):
    "Parameters of a VLM's layers and final norm with those of LLMs: `(name in the LLM, VLM's, LLMs'...)`"
    mine, theirs = vlm.get_decoder(), [m.get_decoder() for m in others]
    own = [layer for layer in mine.layers if not any('cross_attn' in n for n, _ in layer.named_parameters())]
    for i, layers in enumerate(zip(own, *(t.layers for t in theirs), strict=True)):
        named = [dict(layer.named_parameters()) for layer in layers]
        assert all(n.keys()==named[0].keys() for n in named)
        for rest in named[0]: yield f'layers.{i}.{rest}', *(n[rest] for n in named)
    yield 'final_norm', *(d.norm.weight for d in (mine, *theirs))


def line(name, v, l): return l.lerp(v, .7)


def ties(name, v, l, b):
    "Keep the largest 40 %, the first among equals; sign of the plain sum; divide by how many agree"
    a, c = v-b, l-b
    for d in (a, c):
        keep = d.abs().flatten().argsort(descending=True, stable=True)[:int(.4*d.numel())]
        d *= torch.zeros(d.numel()).index_fill(0, keep, 1.).view(d.shape)
    return b + elected(a, c)


def dare_ties(name, v, l, b):
    a, c = (drop(x-b, .4, g) for x, g in zip((v, l), name_rng(5, name)))
    return b + elected(a, c)


def elected(a, c):
    sign = torch.where(a+c>=0, 1, -1)
    agree_a, agree_c = (a.sign()==sign).float(), (c.sign()==sign).float()
    return (1.5*a*agree_a + .5*c*agree_c) / (agree_a+agree_c).clamp(min=1)


@torch.no_grad()
def mix(vlm, *others, formula=line):
    "Merge loaded models in memory"
    for name, mine, *theirs in pairs(vlm, *others):
        mine.copy_(formula(name, *(p.float() for p in (mine, *theirs))).to(mine.dtype))
    return vlm


@torch.no_grad()
def said(model, kind):
    "Logits about a picture; fails unless two words come out"
    asked = ask_inputs(model, kind)
    words = model.generate(**asked, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert words.shape[1]==asked['input_ids'].shape[1]+2
    return model(**asked).logits


def same(a, b):
    "The same bytes, type and shape?"
    return a.dtype==b.dtype and a.shape==b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def same_models(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert one.keys()==two.keys()
    assert not [n for n in one if not same(one[n].contiguous(), two[n].contiguous())]


def weights(folder):
    "All tensors of a folder, by whatever its files are called"
    held = {}
    for f in sorted(folder.glob('*.safetensors')): held |= load_file(f)
    for f in sorted(folder.glob('*.bin')): held |= torch.load(f, weights_only=True)
    return held


def sides(folder): return {f.name:f.read_bytes() for f in folder.iterdir() if not WEIGHTS.fullmatch(f.name)}


def check_files(merged, vlm, is_merged):
    "What is not merged is the VLM's, bit for bit; all of the rest has moved; side files travel"
    after, before = weights(merged), weights(vlm)
    assert list(after)==list(before)
    assert all(after[n].dtype==before[n].dtype and after[n].shape==before[n].shape for n in before)
    assert {n for n in before if not same(after[n], before[n])}=={n for n in before if is_merged(n)}
    assert {f.name for f in merged.iterdir()}=={new_name(f) for f in vlm.iterdir()}|{'recipe.json'}
    side = sides(vlm)
    assert len(side)>3
    assert {n:x for n, x in sides(merged).items() if n!='recipe.json'}==side


def new_name(f): return re.sub(r'^pytorch_model(.*)\.bin', r'model\1.safetensors', f.name)


STEM = re.compile(r'(?:language_model\.model|model\.language_model(?:\.model)?|model\.text_model|model)\.'
                  r'(layers\.(\d+)\..+|norm\.weight)')


def in_text(cross=()):
    "Is a tensor, by its name, one that a merge reaches?"
    return lambda name: bool(m:=STEM.fullmatch(name)) and (m[2] is None or int(m[2]) not in cross)


# --- Families that transformers opens

@pytest.mark.parametrize('kind,layout', ALL)
def test_the_merged_file_is_the_merged_model(kind, layout, tmp_path):
    trio = make_trio(kind, tmp_path, layout=layout)
    out = merge(Recipe(trio.vlm, trio.llm, knobs=dict(weight=.7)), out=tmp_path/'out')
    vlm, merged = opened(trio.vlm), opened(out)
    before, after = said(vlm, kind), said(merged, kind)
    assert not torch.equal(before, after)
    same_models(merged, mix(vlm, opened(trio.llm, AutoModelForCausalLM)))
    assert torch.equal(after, said(vlm, kind))
    check_files(out, trio.vlm, in_text(KINDS[kind].own.get('cross_attention_layers', ())))


@pytest.mark.parametrize('kind,layout', [
    ('llava', 'new'), ('mllama', 'old'), ('gemma3', 'saved'), ('qwen3_vl', 'saved'),
    ('llava_onevision', 'stray'), ('idefics2', 'saved'), ('qwen2_5_vl', 'new')])
@pytest.mark.parametrize('formula', [ties, dare_ties], ids=lambda f: f.__name__)
def test_methods_with_a_base(kind, layout, formula, tmp_path):
    trio = make_trio(kind, tmp_path, layout=layout)
    knobs = dict(weight=1.5, llm_weight=.5, density=.4)
    out = merge(Recipe(*trio, formula.__name__, knobs, seed=5), out=tmp_path/'out')
    llm, base = (opened(f, AutoModelForCausalLM) for f in (trio.llm, trio.base))
    same_models(opened(out), mix(opened(trio.vlm), llm, base, formula=formula))


@pytest.mark.parametrize('kind', KINDS)
def test_the_decoder_that_is_found_is_the_one_transformers_has(kind, tmp_path):
    folder = make_vlm(kind, tmp_path/'vlm')
    ck, decoder = Checkpoint.open(folder), opened(folder).get_decoder()
    found = find_decoder(ck.tensors, ck.config)
    assert (len(found.layers), found.width)==(len(decoder.layers), decoder.config.hidden_size)
    held = weights(folder)
    assert same(held[found.norm], decoder.norm.weight.detach())
    rest, first = next(iter(found.layers[0].items()))
    assert same(held[first], dict(decoder.layers[0].named_parameters())[rest].detach())


def test_llama_3_2_vision_pairs_by_rank(tmp_path):
    "Marked layers tell where each one of the LLM went: layer i is filled with i + 1"
    trio = make_trio('mllama', tmp_path)
    llm = opened(trio.llm, AutoModelForCausalLM)
    with torch.no_grad():
        for i, layer in enumerate(llm.model.layers):
            for p in layer.parameters(): p.fill_(i+1)
    llm.save_pretrained(tmp_path/'marked')
    out = weights(merge(Recipe(trio.vlm, tmp_path/'marked', knobs=dict(weight=0.)), out=tmp_path/'out'))
    before, stem = weights(trio.vlm), 'language_model.model.layers.'
    for i, mark in {0:1, 2:2, 3:3, 5:4}.items():    # 1 and 4 look at the picture
        names = [n for n in out if n.startswith(f'{stem}{i}.')]
        assert len(names)==9 and all((out[n]==mark).all() for n in names)
    crossed = [n for n in out if n.startswith((f'{stem}1.', f'{stem}4.'))]
    assert len(crossed)==26 and any('mlp.up_proj' in n for n in crossed)
    assert all(same(out[n], before[n]) for n in crossed)


# --- Families with code of their own: names and shapes, written down here

def molmo(name, llm):
    "What Molmo calls a tensor, made from a Qwen2: q, k, v in one; up above gate"
    if name=='model.transformer.ln_f.weight': return llm['model.norm.weight']
    m = re.fullmatch(r'model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)', name)
    if not m: return None
    parts = dict(att_proj='self_attn.q_proj self_attn.k_proj self_attn.v_proj', attn_out='self_attn.o_proj',
                 ff_proj='mlp.up_proj mlp.gate_proj', ff_out='mlp.down_proj',
                 attn_norm='input_layernorm', ff_norm='post_attention_layernorm')[m[2]]
    return torch.cat([llm[f'model.layers.{m[1]}.{p}.{m[3]}'] for p in parts.split()])


PARTNER = dict(internvl2_llama='language_model.', internvl2_internlm2='language_model.', minicpm_v='llm.',
               phi3_5_vision='')
FUSED = dict(internvl2_internlm2='attention.wqkv', phi3_5_vision='mlp.gate_up_proj', molmo='att_proj')
MERGED = dict(internvl2_llama=4*9+1, internvl2_internlm2=4*7+1, minicpm_v=4*12+1, phi3_5_vision=4*6+1,
              molmo=4*7+1)


def partner(kind, name, llm):
    "What an LLM has for a tensor of the VLM; None if it is to stay"
    if kind=='molmo': return molmo(name, llm)
    bare = name.removeprefix(PARTNER[kind])
    text = name.startswith(PARTNER[kind]) and re.fullmatch(r'model\.(layers\.\d+\..+|norm\.weight)', bare)
    return llm[bare] if text else None


@pytest.mark.parametrize('shards', [1, 3])
@pytest.mark.parametrize('kind', REMOTE)
def test_families_with_code_of_their_own(kind, shards, tmp_path):
    trio = make_trio(kind, tmp_path, shards=shards)
    out = merge(Recipe(trio.vlm, trio.llm, knobs=dict(weight=.7)), out=tmp_path/'out')
    vlm, llm, merged = map(weights, (trio.vlm, trio.llm, out))
    theirs = {n:x for n in vlm if (x:=partner(kind, n, llm)) is not None}
    assert len(theirs)==MERGED[kind]
    assert any(FUSED.get(kind, 'q_proj') in n for n in theirs)
    for n, y in theirs.items(): assert same(merged[n], line(n, vlm[n].float(), y.float()).bfloat16()), n
    check_files(out, trio.vlm, theirs.__contains__)
    code = {c.split('.')[0]+'.py' for c in REMOTE[kind].code}
    assert code<=sides(out).keys()


@pytest.mark.parametrize('method,formula', [('ties', ties), ('dare_linear', None)])
def test_stacked_matrices_with_a_base(method, formula, tmp_path):
    "Molmo's q, k, v: the trim ranks, and the coins fall, over the whole matrix"
    trio = make_trio('molmo', tmp_path)
    recipe = Recipe(*trio, method, dict(weight=1.5, llm_weight=.5, density=.4), seed=5)
    out = weights(merge(recipe, out=tmp_path/'out'))
    vlm, llm, base = map(weights, trio)
    for i in range(4):
        n = f'model.transformer.blocks.{i}.att_proj.weight'
        v, l, b = vlm[n].float(), molmo(n, llm).float(), molmo(n, base).float()
        if formula: expected = formula(n, v, l, b)
        else:
            a, c = (drop(x-b, .4, g) for x, g in zip((v, l), name_rng(5, f'layers.{i}.att_proj.weight')))
            expected = b + 1.5*a + .5*c
        assert same(out[n], expected.bfloat16())


# --- LLMs as people saved them

BINS = dict(container='bin', shards=2)
ODD_LLMS = dict(bare=dict(prefix=False), tied=dict(tie=True), untied=dict(tie=False), longer=dict(vocab=120),
    shorter=dict(vocab=70), sharded=dict(shards=3), bin=dict(container='bin'), bins=BINS,
    bare_bins=BINS | dict(prefix=False), half=dict(dtype='float16'), single=dict(dtype='float32'))


def by_llm_name(folder):
    "Tensors of an LLM, with `model.` whether it was saved so or not"
    return {n if n.startswith(('model.', 'lm_head')) else f'model.{n}':x for n, x in weights(folder).items()}


@pytest.mark.parametrize('kind', ['llava', 'qwen3_vl', 'mllama'])
@pytest.mark.parametrize('odd', ODD_LLMS)
def test_an_llm_as_people_save_it(kind, odd, tmp_path):
    base = make_llm(kind, tmp_path/'base')
    llm = make_llm(kind, tmp_path/'llm', near=base, seed=1, **ODD_LLMS[odd])
    vlm = make_vlm(kind, tmp_path/'vlm', near=base, seed=2)
    out = merge(Recipe(vlm, llm, knobs=dict(weight=.7)), out=tmp_path/'out')
    model, llm = opened(vlm), by_llm_name(llm)
    for name, mine in pairs(model):
        theirs = llm['model.norm.weight' if name=='final_norm' else f'model.{name}']
        mine.data = line(name, mine.detach().float(), theirs.float()).to(mine.dtype)
    same_models(opened(out), model)
    check_files(out, vlm, in_text(KINDS[kind].own.get('cross_attention_layers', ())))


@pytest.mark.parametrize('theirs', ['float16', 'bfloat16', 'float32'])
@pytest.mark.parametrize('mine', ['float16', 'bfloat16', 'float32'])
def test_number_types(mine, theirs, tmp_path):
    base = make_llm('llava', tmp_path/'base', dtype='float32')
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1, dtype=theirs)
    vlm = make_vlm('llava', tmp_path/'vlm', near=base, seed=2, dtype=mine)
    out = merge(Recipe(vlm, llm, knobs=dict(weight=.7)), out=tmp_path/'out')
    model = opened(out)
    assert {str(p.dtype) for p in model.parameters()}=={f'torch.{mine}'}
    same_models(model, mix(opened(vlm), opened(llm, AutoModelForCausalLM)))


@pytest.mark.parametrize('how', [dict(container='bin'), dict(container='bin', shards=3), dict(shards=4)],
                         ids=['bin', 'bins', 'shards'])
@pytest.mark.parametrize('kind', ['llava', 'idefics2'])
def test_a_vlm_as_people_save_it(kind, how, tmp_path):
    base = make_llm(kind, tmp_path/'base', dtype='float16')
    llm = make_llm(kind, tmp_path/'llm', near=base, seed=1, dtype='float16', shards=2)
    vlm = make_vlm(kind, tmp_path/'vlm', near=base, seed=2, dtype='float16', **how)
    out = merge(Recipe(vlm, llm, knobs=dict(weight=.7)), out=tmp_path/'out')
    model = opened(out)
    assert said(model, kind).isfinite().all()
    same_models(model, mix(opened(vlm), opened(llm, AutoModelForCausalLM)))
    check_files(out, vlm, in_text())
    assert not [f for f in out.iterdir() if '.bin' in f.name]
    if how.get('shards', 1)>1:
        index = json.loads((out/'model.safetensors.index.json').read_text())['weight_map']
        assert index=={n:f.name for f in out.glob('*.safetensors') for n in load_file(f)}


# --- Embeddings, if asked for

def rows_merged(v, l, own=()):
    "The rows both have are mixed, the others stay, and so do those of words that only the VLM has"
    n = min(len(v), len(l))
    out = torch.cat([line('', v[:n].float(), l[:n].float()).to(v.dtype), v[n:]])
    own = [i for i in own if i<len(v)]
    out[own] = v[own]
    return out


def own_words(vlm, llm):
    "Numbers of the tokens that only the VLM has"
    mine, theirs = (tokens(Checkpoint.open(f)) or {} for f in (vlm, llm))
    return [i for i, s in mine.items() if theirs.get(i)!=s]


@pytest.mark.parametrize('llm_tied', [False, True], ids=['llm_untied', 'llm_tied'])
@pytest.mark.parametrize('vlm_tied', [False, True], ids=['vlm_untied', 'vlm_tied'])
@pytest.mark.parametrize('vocab', [60, 96, 130])
def test_embeddings_merge_the_common_rows(vlm_tied, llm_tied, vocab, tmp_path):
    base = make_llm('llava', tmp_path/'base', vocab=130)
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1, tie=llm_tied, vocab=vocab)
    vlm = make_vlm('llava', tmp_path/'vlm', near=base, seed=2, tie=vlm_tied)
    out = merge(Recipe(vlm, llm, knobs=dict(weight=.7), embeddings=True), out=tmp_path/'out')
    v, l, m = map(weights, (vlm, llm, out))
    name, head = 'model.embed_tokens.weight', 'lm_head.weight'
    stem, own = 'language_model.', own_words(vlm, llm)
    assert same(m[stem+name], rows_merged(v[stem+name], l[name], own))
    assert (stem+head in v)==(not vlm_tied) and (head in l)==(not llm_tied)
    if not vlm_tied: assert same(m[stem+head], rows_merged(v[stem+head], l[name if llm_tied else head], own))
    inner = in_text()
    check_files(out, vlm, lambda n: inner(n) or n in (stem+name, stem+head))
    assert said(opened(out), 'llava').isfinite().all()


@pytest.mark.parametrize('kind', KINDS)
def test_embeddings_in_every_family(kind, tmp_path):
    trio = make_trio(kind, tmp_path)
    out = merge(Recipe(trio.vlm, trio.llm, knobs=dict(weight=.7), embeddings=True), out=tmp_path/'out')
    vlm, llm = opened(trio.vlm), opened(trio.llm, AutoModelForCausalLM)
    tied = KINDS[kind].tie
    with torch.no_grad():
        for what in ('get_input_embeddings',) if tied else ('get_input_embeddings', 'get_output_embeddings'):
            mine, theirs = (getattr(m, what)().weight for m in (vlm, llm))
            mine.copy_(rows_merged(mine, theirs, own_words(trio.vlm, trio.llm)))
    same_models(opened(out), mix(vlm, llm))


def test_an_llm_saved_without_its_head_has_none(tmp_path):
    "It is untied, says its config: its embedding is no head, and the VLM's stays"
    base = make_llm('llava', tmp_path/'base')
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1, prefix=False)
    vlm = make_vlm('llava', tmp_path/'vlm', near=base, seed=2)
    out = merge(Recipe(vlm, llm, knobs=dict(weight=.7), embeddings=True), out=tmp_path/'out')
    v, l, m = map(weights, (vlm, llm, out))
    name, head = 'language_model.model.embed_tokens.weight', 'language_model.lm_head.weight'
    assert same(m[name], rows_merged(v[name], l['embed_tokens.weight'])) and same(m[head], v[head])


def test_embeddings_with_a_base_of_fewer_rows(tmp_path):
    base = make_llm('llava', tmp_path/'base', vocab=80)
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1)
    vlm = make_vlm('llava', tmp_path/'vlm', near=base, seed=2)
    knobs = dict(weight=.7, llm_weight=.2)
    out = merge(Recipe(vlm, llm, base, 'task_arithmetic', knobs, embeddings=True), out=tmp_path/'out')
    v, l, b, m = map(weights, (vlm, llm, base, out))
    for n in ('model.embed_tokens.weight', 'lm_head.weight'):
        mine = v['language_model.'+n]
        x, y, z = (t[:80].float() for t in (mine, l[n], b[n]))
        assert same(m['language_model.'+n], torch.cat([(z+.7*(x-z)+.2*(y-z)).bfloat16(), mine[80:]]))


def spoken(folder, words):
    "Give a folder a tokenizer.json: token number -> string"
    added = [dict(id=i, content=s) for i, s in words.items() if s.startswith('<')]
    vocab = {s: i for i, s in words.items() if not s.startswith('<')}
    text = json.dumps(dict(model=dict(type='BPE', vocab=vocab, merges=[]), added_tokens=added))
    (folder/'tokenizer.json').write_text(text)


METHODS_OF_ROWS = {
    'linear': dict(weight=.7), 'slerp': dict(weight=.7), 'ties': dict(density=.4),
    'dare_linear': dict(density=.5)}


@pytest.mark.parametrize('method', METHODS_OF_ROWS)
@pytest.mark.parametrize('shards', [1, 2])
def test_embeddings_are_paired_by_the_strings_of_their_tokens(method, shards, tmp_path):
    "It is the merge of an LLM whose rows were put where the VLM has the word; other rows stay the VLM's"
    base = make_llm('llava', tmp_path/'base')
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1)
    vlm = make_vlm('llava', tmp_path/'vlm', near=base, seed=2, shards=shards)
    words = {i: f'w{i}' for i in range(90)}                 # 104 rows in the VLM, 96 in the others
    spoken(vlm, words|{90: '<image>', 91: '<pad>'})
    spoken(llm, words|{3: 'w70', 70: 'w3', 90: '<tool>', 95: '<pad>'})
    spoken(base, words|{5: 'other', 91: '<pad>'})
    pairs = {i: (i, i) for i in range(96) if i not in (90, 91, 95)}|{3: (70, 3), 70: (3, 70), 91: (95, 91)}
    if method in ('ties', 'dare_linear'): pairs.pop(5)
    pairs = dict(sorted(pairs.items()))
    how = dict(method=method, embeddings=True, **METHODS_OF_ROWS[method])
    if method in ('ties', 'dare_linear'): how['base'] = base
    p = plan(vlm, llm, **how)
    lines = [l.split('(')[0].strip() for l in str(p).splitlines() if l.startswith('  rows')]
    assert lines==[f'rows    {len(pairs)} merged, 3 of them with another row of the LLM, '
                   f'{104-len(pairs)} kept']*2
    out = merge(vlm, llm, out=tmp_path/'out', progress=False, **how)
    rows, at = [*pairs], dict(vlm=[*pairs], llm=[j for j, _ in pairs.values()],
                              base=[k for _, k in pairs.values()])
    small = {}
    for who, folder in dict(vlm=vlm, llm=llm, base=base).items():   # The same rows from the first on
        shutil.copytree(folder, tmp_path/f'small_{who}')
        (tmp_path/f'small_{who}'/'tokenizer.json').unlink()
        for f in (tmp_path/f'small_{who}').glob('*.safetensors'):
            held = load_file(f)
            held |= {n: x[at[who]].contiguous() for n, x in held.items()
                     if 'embed_tokens' in n or 'lm_head' in n}
            save_file(held, f)
        small[who] = tmp_path/f'small_{who}'
    if 'base' in how: how['base'] = small['base']
    want, v, m = weights(merge(small['vlm'], small['llm'], out=tmp_path/'want', progress=False, **how)), \
        weights(vlm), weights(out)
    for n in v:
        if 'embed_tokens' in n or 'lm_head' in n:
            assert same(m[n][rows], want[n])
            rest = [i for i in range(104) if i not in pairs]
            assert same(m[n][rest], v[n][rest])
        else: assert same(m[n], want[n])


def test_equal_tokenizers_and_none_merge_the_same_rows(tmp_path):
    trio = make_trio('llava', tmp_path/'trio')
    how = dict(weight=.7, embeddings=True, progress=False)
    for folder in trio[:2]: (folder/'tokenizer.json').unlink()
    bare = merge(*trio[:2], out=tmp_path/'bare', **how)
    assert [f for f in plan(*trio[:2], embeddings=True).findings if 'paired by number' in f.what]
    for folder in trio[:2]: spoken(folder, {i: f'w{i}' for i in range(90)})
    assert not [f for f in plan(*trio[:2], embeddings=True).findings if 'by number' in f.what]
    assert not [f for f in plan(*trio[:2]).findings if 'by number' in f.what]
    known = merge(*trio[:2], out=tmp_path/'known', **how)
    for f in bare.glob('*.safetensors'): assert f.read_bytes()==(known/f.name).read_bytes()


def test_embeddings_without_a_common_token_stay(tmp_path):
    trio = make_trio('llava', tmp_path/'trio')
    spoken(trio.vlm, {i: f'v{i}' for i in range(104)})
    spoken(trio.llm, {i: f'l{i}' for i in range(96)})
    p = plan(*trio[:2], embeddings=True)
    assert [n for n, why in p.kept.items() if why=='no token in common']


# --- The plan tells the whole truth

@pytest.mark.parametrize('kind', [*KINDS, *REMOTE])
def test_every_tensor_is_merged_or_kept_with_a_reason(kind, tmp_path):
    trio = make_trio(kind, tmp_path)
    p = plan(Recipe(*trio))
    done = [w.pair.vlm for w in p.merged]
    assert sorted([*done, *p.kept])==sorted(weights(trio.vlm))
    assert all(p.kept.values()) and not p.stops
    used = {n for w in p.merged for n in w.pair.llm}
    left = {n for n in weights(trio.llm) if n not in used}
    assert all(re.search(r'embed|lm_head|^output', n) for n in left)


# --- What is no weight

@pytest.mark.parametrize('sides', [('vlm', 'llm'), ('vlm',), ('llm',)], ids=' '.join)
def test_a_mask_stays_and_stops_nothing(sides, tmp_path):
    "Files of GPT-NeoX's kind store which token may look at which, true or false"
    trio = make_trio('llava', tmp_path/'trio')
    plain = merge(*trio[:2], out=tmp_path/'plain', weight=.5)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    for who in sides:
        file = getattr(trio, who)/'model.safetensors'
        stem = find_decoder(Checkpoint.open(file.parent).tensors, {}).stem
        save_file(load_file(file)|{f'{stem}layers.{i}.self_attn.bias': mask.clone() for i in range(2)}, file,
                  metadata={'format': 'pt'})
    out = merge(*trio[:2], out=tmp_path/'out', weight=.5)
    found, before = (load_file(f/'model.safetensors') for f in (out, plain))
    extra = found.keys()-before.keys()
    assert all(torch.equal(found[n], x) for n, x in before.items()) and len(extra)==2*('vlm' in sides)
    assert all(torch.equal(found[n], mask) for n in extra)
    assert {plan(*trio[:2]).kept[n] for n in extra}<={'a constant, not a weight'}

def test_a_weight_of_true_and_false_stops(tmp_path):
    trio = make_trio('llava', tmp_path/'trio')
    for folder in trio[:2]:
        file = folder/'model.safetensors'
        held = load_file(file)
        odd = [n for n in held if n.endswith('layers.1.mlp.down_proj.weight')]
        save_file(held|{n: held[n]>0 for n in odd}, file, metadata={'format': 'pt'})
    assert any('BOOL' in f.what for f in plan(*trio[:2]).stops)
