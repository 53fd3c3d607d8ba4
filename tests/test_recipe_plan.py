"Where a recipe acts, what stops or warns before a merge, and that a recipe makes its folder again"
import builtins, hashlib, inspect, io, json, os, re, shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.checkpoints.decoder import text_config
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.merging.checks import check, rope, unlike_settings
from vlm_merging.merging.recipe import Recipe, layer_set, recipe_of
from vlm_merging.lab.tiny import KINDS, REMOTE, llm_config, make_llm, make_trio, make_vlm

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
STEM = 'language_model.'     # of LLaVA and Llama 3.2 Vision, before the names of their LLM


@pytest.fixture(scope='module')
def trio(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('trio'))


def weights(folder):
    "All tensors of a folder"
    return {n:x for f in sorted(Path(folder).glob('*.safetensors')) for n, x in load_file(f).items()}


def changed(merged, vlm):
    "Names of text tensors, without the stem, that are not the VLM's any more"
    one, two = weights(merged), weights(vlm)
    return {n.removeprefix(STEM) for n in two if not torch.equal(one[n], two[n])}


def line(v, l, weight): return l.float().lerp(v.float(), weight).to(v.dtype)


# --- A recipe or its ingredients

def comments(fn):
    "What stands beside each parameter or field"
    return {o[1]: o[2].strip() for o in re.finditer(r'^    \*{0,2}(\w+)\b[^#\n]*#(.+)$',
                                                    inspect.getsource(fn), re.M)}

def test_a_recipe_is_one_thing_in_all_signatures():
    "Name and comment of each ingredient; its default stands in Recipe, and verbs tell it in the comment"
    usual = {f.name: f.default for f in fields(Recipe) if f.name not in ('vlm', 'knobs', 'inputs')}
    usual |= {'llm': None}
    for verb in (recipe_of, plan, merge):
        parameters = inspect.signature(verb).parameters
        # Beside a recipe a default could not be told from what was asked for
        assert all(parameters[k].default is None for k in usual)
        assert parameters['knobs'].kind is parameters['knobs'].VAR_KEYWORD
        beside, fields_beside = comments(verb), comments(Recipe)
        assert beside==beside | comments(recipe_of)
        for k, default in usual.items():
            if k in ('llm', 'base'): continue
            word = '' if default is False or default is None else f'; default: {default}'
            assert beside[k]==fields_beside[k]+word, (verb, k)

@pytest.mark.parametrize('more', [dict(), dict(weight=.4),
                                  dict(weight=[1., .5], layers='1-2', modules='mlp')])
def test_a_recipe_or_its_ingredients(more, trio, tmp_path):
    knobs = {k:v for k, v in more.items() if k=='weight'}
    recipe = Recipe(trio.vlm, trio.llm, knobs=knobs, **{k:v for k, v in more.items() if k!='weight'})
    assert plan(trio.vlm, trio.llm, **more).recipe==plan(recipe).recipe==recipe
    one, two = merge(recipe, out=tmp_path/'one'), merge(trio.vlm, trio.llm, out=tmp_path/'two', **more)
    for name in ('model.safetensors', 'recipe.json'): assert (one/name).read_bytes()==(two/name).read_bytes()

def test_a_base_stands_third(trio):
    assert recipe_of(*trio, method='ties', density=.3)==Recipe(*trio, 'ties', dict(density=.3))

@pytest.mark.parametrize('more,said', [
    (dict(wieght=.9), "no knob 'wieght'; it has 'weight'.*Did you mean `weight`"),
    (dict(layer='6-'), 'Did you mean `layers`'),
    (dict(density=.3), 'ties.* have it: choose one as `method`'), (dict(knobs=dict(weight=.9)), 'weight=0.9'),
    (dict(epsilon=.3), 'della has it')])
def test_an_unknown_keyword_is_told_what_was_meant(more, said):
    with pytest.raises(ValueError, match=said): recipe_of('v', 'l', **more)

@pytest.mark.parametrize('more', [dict(llm='l'), dict(layers='6-'), dict(seed=1), dict(method='slerp'),
                                  dict(layers='all'), dict(seed=0), dict(embeddings=False)])
def test_what_stands_in_a_recipe_is_not_said_twice(more):
    with pytest.raises(ValueError, match=f'`{next(iter(more))}` cannot stand beside a recipe'):
        recipe_of(Recipe('v', 'l'), **more)

def test_knobs_of_a_recipe_can_be_turned():
    recipe = Recipe('v', 'l', 'b', 'ties', dict(density=.3), layers='6-')
    assert recipe_of(recipe) is recipe
    assert recipe_of(recipe, density=.5, weight=1.)==Recipe('v', 'l', 'b', 'ties',
                                                            dict(density=.5, weight=1.), layers='6-')

def test_a_recipe_and_a_plan_can_be_read_on_a_screen(trio):
    recipe = Recipe('v', 'l', 'b', 'ties', dict(density=.3), layers='6-', as_run=True)
    assert eval(repr(recipe))==recipe
    assert repr(Recipe('v', 'l'))=="Recipe('v', 'l')"
    p = plan(trio.vlm, trio.llm)
    assert repr(p)==str(p) and len(repr(p).splitlines())<40


# --- Where

@pytest.mark.parametrize('layers,numbers', [
    ('all', {0, 1, 2, 3}), ('1-2', {1, 2}), ('0,3', {0, 3}), ('2-', {2, 3}), ('1', {1}),
    (' 0 - 1 , 3 ', {0, 1, 3}),
    ('0-1,1-2', {0, 1, 2})])
def test_layers(layers, numbers, trio, tmp_path):
    out = merge(Recipe(trio.vlm, trio.llm, layers=layers), out=tmp_path/'out')
    inside = re.compile(rf"model\.layers\.({'|'.join(map(str, numbers))})\.")
    expected = {n for n in weights(trio.llm) if inside.match(n)}
    assert changed(out, trio.vlm)==expected | ({'model.norm.weight'} if 3 in numbers else set())


@pytest.mark.parametrize('modules,words', [('attention', 'self_attn'), ('mlp', 'mlp'), ('norm', 'norm'),
    ('mlp,norm', 'mlp|norm'), (' attention , mlp ', 'self_attn|mlp'), ('all', '.')])
@pytest.mark.parametrize('layers', ['all', '1-2'])
def test_modules(modules, words, layers, trio, tmp_path):
    out = merge(Recipe(trio.vlm, trio.llm, modules=modules, layers=layers), out=tmp_path/'out')
    reach = r'model\.(layers\.\d|norm)' if layers=='all' else r'model\.layers\.[12]'
    expected = {n for n in weights(trio.llm) if re.match(reach, n) and re.search(words, n)}
    assert changed(out, trio.vlm)==expected


@pytest.mark.parametrize('curve', [[1., 0.], [.2, .9, .4], [.1, .2, .3, .4], [.5],
                                   [1., .5, .5, .5, .8, 0., .3]])
def test_a_curve_over_depth(curve, trio, tmp_path):
    out = weights(merge(Recipe(trio.vlm, trio.llm, knobs=dict(weight=curve)), out=tmp_path/'out'))
    vlm, llm = weights(trio.vlm), weights(trio.llm)
    at = np.interp(np.linspace(0, 1, 4), np.linspace(0, 1, len(curve)) if len(curve)>1 else [0], curve)
    for n in llm:
        if 'layers' not in n and n!='model.norm.weight': continue
        m = re.search(r'layers\.(\d)', n)
        torch.testing.assert_close(out[STEM+n], line(vlm[STEM+n], llm[n], float(at[int(m[1]) if m else 3])),
                                   rtol=.01, atol=1e-4)


def test_a_curve_counts_the_layers_of_the_vlm(tmp_path):
    "Llama 3.2 Vision with six layers, of which 1 and 4 look at the picture"
    vlm, llm, _ = make_trio('mllama', tmp_path)
    out = weights(merge(Recipe(vlm, llm, knobs=dict(weight=[0., .2, .4, .6, .8, 1.])), out=tmp_path/'out'))
    v, l = weights(vlm), weights(llm)
    for mine, theirs in {0:0, 2:1, 3:2, 5:3}.items():
        at, of = (f'model.layers.{i}.mlp.up_proj.weight' for i in (mine, theirs))
        assert torch.equal(out[STEM+at], line(v[STEM+at], l[of], [0., .2, .4, .6, .8, 1.][mine]))


@pytest.mark.parametrize('last', [0, 1, 2])
@pytest.mark.parametrize('kind', ['llava', 'idefics2'])
def test_layer_swap_is_the_rule_of_the_paper(kind, last, tmp_path):
    "The first number in a name, up to `last`: stays. Otherwise, the final norm too: a mix"
    vlm, llm, _ = make_trio(kind, tmp_path)
    out = weights(merge(Recipe.layer_swap(vlm, llm, last=last, weight=.85), out=tmp_path/'out'))
    v, l, stem = weights(vlm), weights(llm), {'llava':STEM, 'idefics2':'model.text_'}[kind]
    for n in l:
        if n in ('model.embed_tokens.weight', 'lm_head.weight'): continue
        at, number = stem+n, re.search(r'\d+', n)
        keep = number is not None and int(number[0])<=last
        assert torch.equal(out[at], v[at] if keep else line(v[at], l[n], .85)), n


@pytest.mark.parametrize('layers', ['4', '0-4', '3-9', '9-'])
def test_layers_that_are_not_there(layers, trio):
    with pytest.raises(ValueError, match='0-3|2-1'): plan(Recipe(trio.vlm, trio.llm, layers=layers))
    with pytest.raises(ValueError, match='0-3|2-1'): layer_set(layers, 4)


# --- What stops

def llm_like(folder, kind='llava', **changes):
    "An LLM as its family has it, but for some numbers of the config"
    config = llm_config(kind)
    for k, x in changes.items(): setattr(config, k, x)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    return folder


def edited(folder, change):
    "Change the tensors of a one-file checkpoint"
    held = change(load_file(folder/'model.safetensors'))
    held = {n:x.contiguous() for n, x in held.items()}
    save_file(held, folder/'model.safetensors', metadata={'format':'pt'})
    return folder


def configured(folder, change):
    "Change a config.json"
    config = json.loads((folder/'config.json').read_text())
    change(config)
    (folder/'config.json').write_text(json.dumps(config))
    return folder


Q_NORMS = {f'model.layers.{i}.self_attn.q_norm.weight':torch.ones(8).bfloat16() for i in range(4)}


def with_norms(held): return held | Q_NORMS
def without_norms(held): return {n:x for n, x in held.items() if 'post_attention_layernorm' not in n}
def fp8(held): return {n:x.to(torch.float8_e4m3fn) if 'proj' in n else x for n, x in held.items()}
def int8(held): return {n:x.to(torch.int8) if 'proj' in n else x for n, x in held.items()}
def packed(held): return {re.sub('proj.weight', 'proj.qweight', n):x for n, x in held.items()}


def with_experts(n):
    "One matrix for the gates of all experts of a layer, one for what goes down, as transformers 5 saves them"
    def change(held):
        out = {k:x for k, x in held.items() if '.mlp.' not in k}
        for k in held:
            if k.endswith('mlp.up_proj.weight'):
                at = k.removesuffix('up_proj.weight')
                sizes = {'experts.gate_up_proj':(n, 128, 32), 'experts.down_proj':(n, 32, 64),
                         'gate.weight':(n, 32)}
                out |= {at+k:torch.ones(s).bfloat16() for k, s in sizes.items()}
        return out
    return change


def set_to(**changes): return lambda config: config.update(changes)


LIKE = dict(    # what is other in the LLM, and what the plan must say
    hidden=(dict(hidden_size=64), 'Hidden size 32 in the VLM, 64 in the LLM'),
    depth=(dict(num_hidden_layers=3), '4 layers in the VLM, 3 in the LLM'),
    more_depth=(dict(num_hidden_layers=6), '4 layers in the VLM, 6 in the LLM'),
    mlp=(dict(intermediate_size=96), r'mlp\.\w+\.weight is \(.*64.* in the LLM is \(.*96'),
    heads=(dict(num_attention_heads=8, num_key_value_heads=4, head_dim=4),
           '4 attention heads in the VLM, 8 in the LLM'),
    kv_heads=(dict(num_key_value_heads=4), '2 key-value heads in the VLM, 4 in the LLM'),
    head_dim=(dict(head_dim=16), '8 numbers per head in the VLM, 16 in the LLM'),
    biases=(dict(attention_bias=True), 'The LLM has biases that the VLM does not'))
EDITS = dict(
    norms=(with_norms, 'The LLM has norms that the VLM does not'),
    no_norms=(without_norms, 'The VLM has norms that the LLM does not'),
    experts=(with_experts(4), 'The LLM has experts that the VLM does not'),
    fp8=(fp8, r'The LLM is quantized: .*F8_E4M3'),
    int8=(int8, 'The LLM is quantized: .*I8'), packed=(packed, 'The LLM is quantized: .*qweight'))

def refused(recipe, message, tmp_path):
    "The plan stops with this message and says what to do; merge says the same and leaves nothing behind"
    p, before = plan(recipe), sorted(x.name for x in tmp_path.iterdir())
    assert [f for f in p.stops if re.search(message, f.what)], [str(f) for f in p.findings]
    assert all(len(f.fix)>20 and f.fix.endswith('.') for f in p.stops)
    assert not p.merged and str(p.stops[0]) in str(p)
    with pytest.raises(ValueError, match=message): merge(recipe, out=tmp_path/'out')
    assert sorted(x.name for x in tmp_path.iterdir())==before
    return p


@pytest.mark.parametrize('case', [*LIKE, *EDITS])
def test_what_stops(case, trio, tmp_path):
    llm = tmp_path/'llm'
    if case in LIKE:
        changes, message = LIKE[case]
        llm_like(llm, **changes)
    else:
        shutil.copytree(trio.llm, llm)
        change, message = EDITS[case]
        edited(llm, change)
    refused(Recipe(trio.vlm, llm), message, tmp_path)
    refused(Recipe(trio.vlm, trio.llm, llm, 'ties'), message.replace('LLM', 'base'), tmp_path)


@pytest.mark.parametrize('change,message', [
    (fp8, 'The VLM is quantized'), (with_norms, 'The VLM has norms that the LLM does not'),
    (without_norms, 'The LLM has norms that the VLM does not')])
def test_what_stops_in_the_vlm(change, message, trio, tmp_path):
    vlm = shutil.copytree(trio.vlm, tmp_path/'vlm')
    def inside(held):
        text = {n.removeprefix(STEM):x for n, x in held.items() if n.startswith(STEM)}
        other = {n:x for n, x in held.items() if not n.startswith(STEM)}
        return other | {STEM+n:x for n, x in change(text).items()}
    refused(Recipe(edited(vlm, inside), trio.llm), message, tmp_path)


@pytest.mark.parametrize('vlm,llm,message', [
    ('llava_onevision', 'llava', 'The VLM has biases that the LLM does not'),
    ('llava', 'llava_onevision', 'The LLM has biases that the VLM does not'),
    ('qwen3_vl', 'llava', 'The VLM has norms that the LLM does not'),
    ('gemma3', 'paligemma', 'The VLM has norms that the LLM does not')])
def test_families_that_do_not_fit(vlm, llm, message, tmp_path):
    recipe = Recipe(make_vlm(vlm, tmp_path/'vlm'), make_llm(llm, tmp_path/'llm'))
    refused(recipe, message, tmp_path)


def test_layers_of_llama_3_2_vision_are_counted_without_the_cross_layers(tmp_path):
    vlm, llm = make_vlm('mllama', tmp_path/'vlm'), llm_like(tmp_path/'llm', 'mllama', num_hidden_layers=6)
    message = r'4 layers in the VLM \(2 cross-attention layers not counted\), 6 in the LLM'
    refused(Recipe(vlm, llm), message, tmp_path)


@pytest.mark.parametrize('mine,theirs,message', [
    (4, 4, None), (4, 8, '4 experts in the VLM, 8 in the LLM'),
    (4, None, 'The VLM has experts that the LLM does not')])
def test_experts(mine, theirs, message, trio, tmp_path):
    vlm, llm = shutil.copytree(trio.vlm, tmp_path/'vlm'), shutil.copytree(trio.llm, tmp_path/'llm')
    edited(vlm, with_experts(mine))
    configured(vlm, lambda c: c['text_config'].update(num_experts=mine, num_experts_per_tok=2))
    if theirs:
        configured(edited(llm, with_experts(theirs)), set_to(num_experts=theirs, num_experts_per_tok=2))
    if message: refused(Recipe(vlm, llm), message, tmp_path)
    else:
        assert not plan(Recipe(vlm, llm)).stops
        configured(llm, set_to(num_experts_per_tok=1))
        refused(Recipe(vlm, llm), '2 experts per token in the VLM, 1 in the LLM', tmp_path)


def test_nothing_left_to_merge(tmp_path):
    vlm, llm, _ = make_trio('mllama', tmp_path)
    p = refused(Recipe(vlm, llm, layers='1,4'), 'Nothing is left to merge', tmp_path)
    assert [f.level for f in p.findings]==['stop', 'warn']      # stops first


@pytest.mark.parametrize('case', ['biases', 'heads'])
def test_a_fix_reads_well_for_a_base_too(case, trio, tmp_path):
    base = llm_like(tmp_path/'base', **LIKE[case][0])
    assert 'an base' not in str(plan(Recipe(trio.vlm, trio.llm, base, 'ties')))


# --- What warns: each alone, on a pair about which there is nothing to say

@pytest.fixture(scope='module')
def quiet(tmp_path_factory):
    "VLM, LLM and base with one vocabulary"
    at = tmp_path_factory.mktemp('quiet')
    rows = KINDS['llava'].rows[0]
    base = make_llm('llava', at/'base', vocab=rows)
    llm = make_llm('llava', at/'llm', near=base, seed=1, vocab=rows)
    vlm = make_vlm('llava', at/'vlm', near=base, seed=2)
    for f in (llm, base): shutil.copy(vlm/'tokenizer.json', f)
    return vlm, llm, base


def copies(quiet, tmp_path): return [shutil.copytree(f, tmp_path/f.name) for f in quiet]


def test_a_good_pair_is_quiet(quiet): assert plan(Recipe(*quiet)).findings==()


def old(theta, **scaling):
    "The older spelling of a rotation"
    def change(config):
        config.pop('rope_parameters')
        config.update(rope_theta=theta, rope_scaling=scaling or None)
    return change


def new(theta, **more): return set_to(rope_parameters=dict(rope_type='default', rope_theta=theta) | more)


LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=64)
SPEAKS = dict(
    base_new=(new(1e6), 'Rotation base .* 10000 in the VLM, 1e\\+06 in the LLM'),
    base_old=(old(1e6), 'Rotation base .* 10000 in the VLM, 1e\\+06 in the LLM'),
    scaling_new=(new(1e4, **LLAMA3), 'Rotation scaling default in the VLM, llama3 8'),
    scaling_old=(old(1e4, type='linear', factor=2.), 'Rotation scaling default in the VLM, linear 2'),
    eps=(set_to(rms_norm_eps=1e-6), 'norm epsilon'), window=(set_to(sliding_window=4096), 'sliding window'),
    activation=(set_to(hidden_act='gelu'), 'activation .*silu in the VLM, gelu'),
    length=(set_to(max_position_embeddings=4096), 'longest input'))
SILENT = dict(base_old=old(1e4), mrope=old(1e4, type='mrope', mrope_section=[2, 1, 1]),
    no_window=set_to(sliding_window=4096, use_sliding_window=False), unsaid=lambda c: c.pop('hidden_act'),
    dtype_word=set_to(torch_dtype='float16'), head_dim=lambda c: c.pop('head_dim', None),
    no_rope=lambda c: c.pop('rope_parameters'))


@pytest.mark.parametrize('case', SPEAKS)
def test_a_setting_that_differs_is_said(case, quiet, tmp_path):
    vlm, llm, base = copies(quiet, tmp_path)
    for f in (vlm, llm): configured(f, lambda c: c.get('text_config', c).setdefault('sliding_window', None))
    change, message = SPEAKS[case]
    configured(llm, change)
    found = plan(Recipe(vlm, llm)).findings
    assert len(found)==1 and found[0].level=='warn' and re.search(message, found[0].what), found
    assert found[0].fix.endswith('.')
    as_base = plan(Recipe(vlm, base, llm)).findings
    assert [f.what for f in as_base]==[found[0].what.replace('LLM', 'base')]
    configured(vlm, lambda c: change(c['text_config']))     # now both have it
    assert plan(Recipe(vlm, llm)).findings==()


@pytest.mark.parametrize('case', SILENT)
@pytest.mark.parametrize('who', ['vlm', 'llm'])
def test_another_spelling_is_not_another_setting(case, who, quiet, tmp_path):
    vlm, llm, _ = copies(quiet, tmp_path)
    for f in (vlm, llm): configured(f, lambda c: c.get('text_config', c).setdefault('sliding_window', None))
    if who=='llm': configured(llm, SILENT[case])
    else: configured(vlm, lambda c: SILENT[case](c['text_config']))
    assert plan(Recipe(vlm, llm)).findings==()


@pytest.mark.parametrize('model_type,theta', [('llama', 5e5), ('mistral', 1e6)])
def test_a_config_of_few_words_keeps_its_rotation(model_type, theta):
    "LLaVA-NeXT's text_config has no hidden_size and the old `rope_theta`: defaults must not get between"
    sparse = dict(model_type=model_type, rope_theta=theta, vocab_size=128, max_position_embeddings=8192,
                  rms_norm_eps=1e-5, num_key_value_heads=8, intermediate_size=14336)
    full = text_config(dict(text_config=sparse), complete=True)
    assert full['num_attention_heads']==32 and rope(full)==((theta,), 'default')
    donor = full | dict(rope_parameters=dict(rope_theta=theta, rope_type='default'))
    assert unlike_settings(full, donor, 'LLM')==[]


GEMMA = dict(sliding_attention=dict(rope_type='default', rope_theta=1e4),
             full_attention=dict(rope_type='linear', factor=8., rope_theta=1e6))
OLD_GEMMA = dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=dict(rope_type='linear', factor=8.))


@pytest.mark.parametrize('one,two', [
    (dict(rope_theta=1e6), dict(rope_parameters=dict(rope_theta=1000000, rope_type='default'))),
    (dict(rope_parameters=GEMMA), OLD_GEMMA),
    (dict(rope_theta=1e4, rope_scaling=dict(type='linear', factor=2)),
     dict(rope_parameters=dict(rope_theta=1e4, rope_type='linear', factor=2.)))],
    ids=['plain', 'two kinds of layers', 'whole factor'])
def test_old_and_new_rotations_are_equal(one, two): assert rope(one)==rope(two)


@pytest.mark.parametrize('kind', [*KINDS, *REMOTE])
def test_no_family_is_warned_of_its_own_llm(kind, tmp_path):
    "Only of vocabularies, where they differ"
    vlm, llm, base = map(Checkpoint.open, make_trio(kind, tmp_path))
    for other in (llm, base):
        assert not [f.what for f in check(vlm, other)[1] if not re.match('Vocabulary|1 of', f.what)]


def test_vocabulary_rows_and_strings(quiet, tmp_path):
    vlm, _, base = quiet
    fewer = make_llm('llava', tmp_path/'fewer', near=base, vocab=90)
    shutil.copy(vlm/'tokenizer.json', fewer)
    found = plan(Recipe(vlm, fewer)).findings
    assert [f.what for f in found]==['Vocabulary of 104 rows in the VLM, 90 in the LLM.']
    other = shutil.copytree(quiet[1], tmp_path/'other')
    tokens = (other/'tokenizer.json').read_text()
    (other/'tokenizer.json').write_text(tokens.replace('"w17"', '"cat"').replace('"w18"', '"dog"'))
    found = plan(Recipe(vlm, other)).findings
    said = r"2 of 10\d common token .* the first is 17: 'w17' in the VLM, 'cat'"
    assert len(found)==1 and re.match(said, found[0].what)
    (other/'tokenizer.json').unlink()
    assert plan(Recipe(vlm, other)).findings==()


@pytest.mark.parametrize('how,message', [
    (dict(tie=True), 'The VLM has an output head of its own, the LLM uses its embeddings'),
    (dict(dtype='float16'), 'Numbers are BF16 in the VLM, F16 in the LLM'),
    (dict(near=None, seed=77), 'do not look like relatives')],
    ids=['tied', 'dtype', 'stranger'])
def test_head_type_and_lineage(how, message, quiet, tmp_path):
    vlm, _, base = quiet
    llm = make_llm('llava', tmp_path/'llm', vocab=104, **dict(near=base, seed=1) | how)
    shutil.copy(vlm/'tokenizer.json', llm)
    found = plan(Recipe(vlm, llm)).findings
    assert len(found)==1 and found[0].level=='warn' and message in found[0].what
    merge(Recipe(vlm, llm), out=tmp_path/'out')     # a warning is no stop
    assert message in (tmp_path/'out'/'README.md').read_text()


# --- A plan reads headers and a few samples

class Counted(io.BufferedReader):
    "An open file that counts what is read of it"
    total = 0
    def read(self, n=-1):
        data = super().read(n)
        Counted.total += len(data)
        return data


def blown_up(folder, times):
    "Make every matrix of a checkpoint `times` as wide and high; the file is all holes"
    file = folder/'model.safetensors'
    raw = file.read_bytes()
    n = int.from_bytes(raw[:8], 'little')
    header, at = json.loads(raw[8:8+n]), 0
    for name, e in header.items():
        if name=='__metadata__' or not re.search('language_model|^model|lm_head', name): continue
        e['shape'] = [d*times if d<96 else d for d in e['shape']]
    for name, e in sorted(header.items(), key=lambda p: p[1].get('data_offsets', [0])):
        if name!='__metadata__':
            size = 2*int(np.prod(e['shape']))
            e['data_offsets'], at = [at, at+size], at+size
    raw = json.dumps(header).encode()
    with open(file, 'wb') as f:
        f.write(len(raw).to_bytes(8, 'little')+raw)
        f.truncate(8+len(raw)+at)
    sizes = dict(hidden_size=32*times, intermediate_size=64*times, head_dim=8*times)
    configured(folder, lambda c: c.get('text_config', c).update(sizes))
    return file


def test_a_plan_reads_no_weights(trio, tmp_path, monkeypatch):
    vlm, llm, base = copies(trio, tmp_path)
    files = [blown_up(f, 768) for f in (vlm, llm, base)]
    assert all(f.stat().st_size>40e9 for f in files)
    headers = sum(8+int.from_bytes(f.open('rb').read(8), 'little') for f in files)
    def counted(path, mode='r', *a, **k):
        if str(path).endswith('.safetensors'): return Counted(io.FileIO(path, 'rb'))
        return real(path, mode, *a, **k)
    def never(*a): raise AssertionError('weights were read')
    real, Counted.total = builtins.open, 0
    monkeypatch.setattr(builtins, 'open', counted)
    for name in ('pread', 'preadv', 'readv', 'mmap'): monkeypatch.setattr(os, name, never, raising=False)
    p = plan(Recipe(vlm, llm, base, 'ties'))
    monkeypatch.undo()
    assert not p.stops and len(p.merged)==37
    assert headers<=Counted.total<=headers+4*8*4096*2       # eight pieces of two pairs of models
    assert p.writes>40e9 and p.reads>120e9 and '43.5 GB' in str(p)


def test_a_plan_counts_bytes_and_writes_nothing(trio, tmp_path):
    before = {f:f.stat().st_mtime_ns for folder in trio for f in folder.iterdir()}
    p = plan(Recipe(*trio, 'ties', layers='0-1', modules='mlp'))
    assert len(p.merged)==6 and p.writes==sum(x.nbytes for x in weights(trio.vlm).values())
    assert p.reads==p.writes+2*6*64*32*2
    assert {f:f.stat().st_mtime_ns for folder in trio for f in folder.iterdir()}==before
    said = str(p)
    told = (str(trio.vlm), 'outside layers 0-1', 'not among mlp', 'stays the VLM', 'beside')
    assert all(word in said for word in told)
    assert re.search('merged +6 tensors', said)


# --- Recipes

RECIPES = [dict(), dict(knobs=dict(weight=.8)),
    dict(knobs=dict(weight=[1, .5, .8]), layers='1-', modules='mlp,norm'),
    dict(base='b', method='ties', knobs=dict(density=.3, elect='weighted', divide='none'), seed=11),
    dict(base='owner/name@main', method='dare_ties', as_run=True, embeddings=True),
    dict(knobs=dict(weight=(1., .5)))]


@pytest.mark.parametrize('more', RECIPES)
def test_a_recipe_comes_back_as_it_was(more, tmp_path):
    recipe = Recipe(Path('v'), 'l', **more)
    recipe.write(tmp_path/'r.json')
    assert Recipe.read(tmp_path/'r.json')==recipe
    assert set(json.loads((tmp_path/'r.json').read_text()))=={f.name for f in fields(Recipe)}


WHO = '"vlm":"v","llm":"l"'
NO_RECIPES = {      # what a file holds, and what must be said of it
    f'{{{WHO},"wieght":1}}': "no 'wieght'", f'{{{WHO},"vlm":"w"}}': 'twice',
    f'{{{WHO}': 'cannot be read as JSON',
    '{"vlm":"v"}': '`llm` is missing', '{}': 'is missing', '[1]': 'no object', '{"recipe":5}': 'recipe',
    f'{{{WHO},"layers":5.5}}': 'layers|recipe',
    f'{{{WHO},"knobs":null}}': 'knobs', f'{{{WHO},"seed":1.5}}': 'seed',
    f'{{{WHO},"knobs":{{"weight":"0.9"}}}}': 'from 0 to 1',
    f'{{{WHO},"knobs":{{"weight":NaN}}}}': 'from 0 to 1',
    f'{{{WHO},"method":["linear"]}}': 'method|not a recipe', f'{{{WHO},"embeddings":"no"}}': 'embeddings',
    f'{{{WHO},"as_run":"no"}}': 'as_run'}


@pytest.mark.parametrize('held', NO_RECIPES)
def test_a_file_that_is_no_recipe(held, tmp_path):
    (tmp_path/'r.json').write_text(held)
    with pytest.raises(ValueError, match=NO_RECIPES[held]): Recipe.read(tmp_path/'r.json')


TIES, DARE = dict(method='ties', base='b'), dict(method='dare_ties', base='b')


@pytest.mark.parametrize('wrong,message', [
    (dict(knobs=dict(wieght=1)), "no knob 'wieght'"), (dict(knobs=dict(weight=2)), 'from 0 to 1'),
    (dict(knobs=dict(weight=[])), r'weight is \[\]'),
    (dict(knobs=dict(weight=True)), 'from 0 to 1'),
    (dict(method='tie'), 'Did you mean ties'), (dict(method='ties'), 'needs `base`'),
    (dict(seed='1'), 'seed'),
    (dict(layers='one'), 'cannot be read'), (dict(layers=''), 'cannot be read'),
    (dict(layers='2-1'), 'runs backwards'), (dict(layers=5.5), 'layers'),
    (dict(layers=[1, 'a']), 'layers'), (dict(layers=[-1]), 'layers'),
    (dict(layers=True), 'layers'), (dict(modules=[1]), 'modules'),
    (dict(modules='mlp,'), 'no part'), (TIES | dict(knobs=dict(elect='loudly')), 'unweighted or weighted'),
    (TIES | dict(knobs=dict(elect=['weighted', 'unweighted'])), 'elect'),
    (DARE | dict(knobs=dict(rescale=[True, False])), 'rescale'),
    (dict(method='slerp', as_run=True), 'no slerp'),
    (DARE | dict(as_run=True, knobs=dict(rescale=True)), 'as_run sets `rescale=False`')], ids=str)
def test_a_mistake_is_found_when_the_recipe_is_written(wrong, message):
    with pytest.raises(ValueError, match=message): Recipe('v', 'l', **wrong)


def files(folder): return {str(f.relative_to(folder)):f.read_bytes() for f in folder.rglob('*.*')}


@pytest.mark.parametrize('more', [
    dict(knobs=dict(weight=[1., .6])), dict(method='dare_ties', seed=4, layers='1-', embeddings=True),
    dict(method='ties', as_run=True, modules='mlp'), dict(method='della'), dict(method='sce')],
    ids=lambda o: o.get('method', 'linear'))
def test_the_recipe_in_the_folder_makes_the_folder_again(more, tmp_path):
    trio = make_trio('llava', tmp_path/'trio', shards=2)
    out = merge(Recipe(*trio, **more), out=tmp_path/'out', workers=2)
    (tmp_path/'elsewhere').mkdir()
    again = merge(Recipe.read(out), out=tmp_path/'elsewhere'/'out', workers=1)
    assert files(again)==files(out) and Recipe.read(out/'recipe.json')==Recipe(*trio, **more)


def test_a_base_that_the_method_does_not_use_changes_nothing(trio, tmp_path):
    base = make_llm('llava', tmp_path/'base', near=trio.base, vocab=50)
    how = dict(knobs=dict(weight=.7), embeddings=True)
    alone, beside = Recipe(trio.vlm, trio.llm, **how), Recipe(trio.vlm, trio.llm, base, **how)
    one, two = merge(alone, out=tmp_path/'one'), merge(beside, out=tmp_path/'two')
    assert files(one)['model.safetensors']==files(two)['model.safetensors']
    assert plan(alone).reads==plan(beside).reads


def test_recipe_json_says_what_went_in(trio, tmp_path):
    out = merge(Recipe(*trio, 'ties', seed=3), out=tmp_path/'out', sha256=True)
    held = json.loads((out/'recipe.json').read_text())
    assert held['recipe']==Recipe(*trio, 'ties', seed=3).dict()
    assert set(held['inputs'])=={'vlm', 'llm', 'base'} and {'vlm_merging', 'torch'}<=held['versions'].keys()
    for who, folder in zip(('vlm', 'llm', 'base'), trio):
        told = held['inputs'][who]
        assert told['licence']=='apache-2.0' and told['source']==str(folder)
        for f in ('config.json', 'model.safetensors'):
            assert told['files'][f]['sha256']==hashlib.sha256((folder/f).read_bytes()).hexdigest()


# --- Seeds

def text(folder):
    "Bytes of the text model by names that all layouts share"
    held = {}
    for n, x in weights(folder).items():
        m = re.search(r'(?:language_model|^model)\.(?:.*\.)?(layers\.\d+\..*|norm\.weight)$', n)
        if m and not re.search('vision|visual', n): held[m[1]] = x.view(torch.uint8).numpy().tobytes()
    return held


@pytest.mark.parametrize('method', ['dare_linear', 'dare_ties', 'della'])
@pytest.mark.parametrize('kind', ['llava', 'qwen2_vl', 'mllama'])
def test_a_seed_makes_the_same_bytes_in_every_layout(kind, method, tmp_path):
    made = []
    for layout in KINDS[kind].layouts:
        for shards, workers in ((1, 1), (3, 3)) if layout=='saved' else ((2, 2),):
            at = tmp_path/f'{layout}{shards}'
            recipe = Recipe(*make_trio(kind, at, layout=layout, shards=shards), method, seed=6)
            made.append(text(merge(recipe, out=at/'out', workers=workers)))
    assert len(made[0])>=37 and all(m==made[0] for m in made)
    other = text(merge(Recipe(at/'vlm', at/'llm', at/'base', method, seed=7), out=tmp_path/'other'))
    assert all(other[n]!=made[0][n] for n in other if re.match(r'layers\.[02]\..*mlp', n))


@pytest.mark.parametrize('how', [dict(prefix=False), dict(container='bin', shards=2), dict(shards=3)],
                         ids=['bare', 'bins', 'shards'])
def test_a_seed_does_not_see_how_the_llm_was_saved(how, trio, tmp_path):
    base = make_llm('llava', tmp_path/'base', seed=0, **how)
    llm = make_llm('llava', tmp_path/'llm', near=base, seed=1, **how)
    odd = merge(Recipe(trio.vlm, llm, base, 'dare_ties'), out=tmp_path/'odd')
    plain = merge(Recipe(*trio, 'dare_ties'), out=tmp_path/'plain')
    assert text(odd)==text(plain)


@pytest.mark.parametrize('typed,text', [
    ([0, 1, 2, 5], '0-2,5'), (range(6, 32), '6-31'), (3, '3'), ((1,), '1'), ({2, 0}, '0,2'), ('6-', '6-'),
    (np.arange(3), '0-2'), (np.int64(4), '4'), (['0-1', '5'], '0-1,5')], ids=repr)
def test_layers_may_come_as_numbers(typed, text):
    assert recipe_of('v', 'l', layers=typed)==Recipe('v', 'l', layers=text)==Recipe('v', 'l', layers=typed)

def test_modules_may_come_as_a_list():
    assert Recipe('v', 'l', modules=['attention', 'mlp']).modules=='attention,mlp'

@pytest.mark.parametrize('number', [np.float32(.5), np.float64(.5), torch.tensor(.5)], ids=repr)
def test_numbers_of_numpy_and_torch_are_numbers(number):
    one = recipe_of('v', 'l', weight=number, seed=np.int64(3))
    assert one==Recipe('v', 'l', knobs=dict(weight=.5), seed=3)
    assert recipe_of('v', 'l', weight=np.linspace(0, 1, 3)).knobs==dict(weight=[0., .5, 1.])
    assert json.loads(json.dumps(one.dict()))==one.dict()

def test_a_plan_is_merged_as_it_is(tmp_path):
    planned = plan('lab/vlm', 'lab/llm', weight=.6)
    out = merge(planned, out=tmp_path/'m')
    assert Recipe.read(out)==planned.recipe and plan(planned, weight=.5).recipe.knobs==dict(weight=.5)

def test_a_base_that_no_formula_takes_is_told():
    assert 'linear makes no use of it' in str(plan('lab/vlm', 'lab/llm', 'lab/base'))
    assert 'makes no use' not in str(plan('lab/vlm', 'lab/llm', 'lab/base', method='ties'))
