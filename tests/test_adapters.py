"LoRA adapters against peft itself, bit for bit; and what is refused"
import json, shutil, warnings
import pytest, torch
from safetensors.torch import load_file, save_file
from vlm_merging.checkpoints.adapted import open_side
from vlm_merging.checkpoints.blocks import Source, opened
from vlm_merging.lab.tiny import make_trio
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan

peft = pytest.importorskip('peft')
torch.set_num_threads(1)
KINDS = 'llava', 'qwen3_vl', 'gemma3', 'mllama'
OPTIONS = dict(
    plain=dict(target_modules=['q_proj', 'down_proj']),
    rslora=dict(target_modules='all-linear', use_rslora=True, r=3, lora_alpha=5),
    patterns=dict(target_modules=['q_proj', 'k_proj', 'up_proj'], r=4,
                  rank_pattern={'k_proj': 2, r'.*\.1\..*up_proj': 6},
                  alpha_pattern={'layers.0.self_attn.q_proj': 3, 'up_proj': 32}),
    saved=dict(target_modules=['v_proj'], modules_to_save=['norm', 'input_layernorm']),
    embedding=dict(target_modules=['embed_tokens', 'o_proj']),
    dora=dict(target_modules=['q_proj', 'down_proj'], use_dora=True, use_rslora=True),
    hinted=dict(target_modules=['q_proj', 'up_proj'], fan_in_fan_out=True),
    few=dict(target_modules=['gate_proj'], layers_to_transform=[1], r=1))


@pytest.fixture(scope='module')
def trios(tmp_path_factory):
    made = {}
    def trio(kind, dtype='float32'):
        if (kind, dtype) not in made:
            made[kind, dtype] = make_trio(kind, tmp_path_factory.mktemp('trio')/kind, dtype=dtype)
        return made[kind, dtype]
    return trio


def trained(auto, model, out, seed=0, cast=None, **options):
    "Hang an adapter on a model, move all that it trains, save it; the tensors of the model that peft merges"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m = getattr(__import__('transformers'), auto).from_pretrained(model)
        p = peft.get_peft_model(m, peft.LoraConfig(**dict(r=4, lora_alpha=8)|options))
        torch.manual_seed(seed)
        with torch.no_grad():
            for n, x in p.named_parameters():
                if x.requires_grad and 'magnitude' in n: x.mul_(1+.1*torch.rand(x.shape))
                elif x.requires_grad: x.add_(.1*torch.randn(x.shape))
        if cast:
            for n, x in p.named_parameters():
                if 'lora_' in n: x.data = x.data.to(cast)
        p.save_pretrained(out)
        m = getattr(__import__('transformers'), auto).from_pretrained(model)
        whole = peft.PeftModel.from_pretrained(m, out, autocast_adapter_dtype=not cast)
        whole.merge_and_unload().save_pretrained(out/'merged')
    files = sorted((out/'merged').glob('*.safetensors'))
    return {k: v for f in files for k, v in load_file(f).items()}


def numbers(side):
    "All tensors of a side as a merge reads them, in the stored type"
    with opened(side.tensors.values()) as files:
        return {n: Source((e,), files).read(0, e.numel).view(e.shape).to(getattr(torch, dict(
            F32='float32', BF16='bfloat16')[e.dtype])) for n, e in side.tensors.items()}


def same(found, wanted):
    assert found.keys()==wanted.keys()
    assert [n for n in wanted if found[n].dtype!=wanted[n].dtype or not torch.equal(found[n], wanted[n])]==[]


@pytest.mark.parametrize('option', OPTIONS)
@pytest.mark.parametrize('kind', KINDS)
def test_on_an_llm_as_peft_merges_it(kind, option, trios, tmp_path):
    llm = trios(kind).llm
    wanted = trained('AutoModelForCausalLM', llm, tmp_path/'ad', **OPTIONS[option])
    before, found = load_file(llm/'model.safetensors'), numbers(open_side(f"{llm}+{tmp_path/'ad'}"))
    same({n: x for n, x in found.items() if n in wanted}, wanted)
    assert any(not torch.equal(before[n], found[n]) for n in before)


@pytest.mark.parametrize('kind', KINDS)
def test_inside_a_vlm_with_its_tower(kind, trios, tmp_path):
    vlm = trios(kind).vlm
    wanted = trained('AutoModelForImageTextToText', vlm, tmp_path/'ad', target_modules='all-linear')
    whole = f"{vlm}+{tmp_path/'ad'}"
    same({n: x for n, x in numbers(open_side(whole)).items() if n in wanted}, wanted)
    merge(whole, vlm, out=tmp_path/'baked', weight=1)
    baked = load_file(tmp_path/'baked/model.safetensors')
    same({n: x for n, x in baked.items() if n in wanted}, wanted)


@pytest.mark.parametrize('option', ('plain', 'dora', 'rslora'))
def test_a_model_in_bfloat16(option, trios, tmp_path):
    llm = trios('llava', 'bfloat16').llm
    wanted = trained('AutoModelForCausalLM', llm, tmp_path/'ad', **OPTIONS[option])
    same(numbers(open_side(f"{llm}+{tmp_path/'ad'}")), wanted)


def test_factors_in_bfloat16_are_rounded_once_here_and_twice_in_peft(trios, tmp_path):
    llm = trios('llava', 'bfloat16').llm
    wanted = trained('AutoModelForCausalLM', llm, tmp_path/'ad', cast=torch.bfloat16, **OPTIONS['plain'])
    found, exact = numbers(open_side(f"{llm}+{tmp_path/'ad'}")), load_file(llm/'model.safetensors')
    f = load_file(tmp_path/'ad/adapter_model.safetensors')
    for n in (k for k in f if k.endswith('lora_A.weight')):
        name = n.replace('base_model.model.', '').replace('lora_A.', '')
        a, b = f[n].float(), f[n.replace('_A.', '_B.')].float()
        best = exact[name].float()+b@a*2.
        assert torch.equal(found[name], best.bfloat16())
        assert (found[name].float()-best).abs().sum()<=(wanted[name].float()-best).abs().sum()
        assert (found[name]!=wanted[name]).float().mean()<.4


def moe(folder, inner):
    import transformers
    torch.manual_seed(3)
    c = transformers.AutoConfig.for_model('qwen3_moe', hidden_size=32, intermediate_size=64,
                                          moe_intermediate_size=inner, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=64)
    m = transformers.AutoModelForCausalLM.from_config(c).float()
    m.save_pretrained(folder)
    return folder


@pytest.mark.parametrize('inner', (24, 16))       # With 16 a gate above its up is a square
def test_stacked_experts_stored_one_by_one_or_in_a_block(inner, tmp_path):
    llm = moe(tmp_path/'llm', inner)
    wanted = trained('AutoModelForCausalLM', llm, tmp_path/'ad', r=3, target_modules=['q_proj'],
                     target_parameters=['mlp.experts.gate_up_proj', 'mlp.experts.down_proj'])
    side = open_side(f"{llm}+{tmp_path/'ad'}")
    assert any('.experts.3.up_proj.weight' in n for n in side.adapters[0].changed)
    same(numbers(side), wanted)
    apart, block = load_file(llm/'model.safetensors'), {}
    for n, x in apart.items():          # As some models store them
        if '.experts.' not in n: block[n] = x; continue
        stem, e, which, _ = n.rsplit('.', 3)
        if e=='0' and which!='up_proj':
            pick = lambda k: torch.stack([apart[f'{stem}.{i}.{k}.weight'] for i in range(4)])
            block |= ({f'{stem}.down_proj': pick('down_proj')} if which=='down_proj' else
                      {f'{stem}.gate_up_proj': torch.cat([pick('gate_proj'), pick('up_proj')], 1)})
    for name, turn in (('block', False), ('aside', True)):
        shutil.copytree(llm, tmp_path/name)
        save_file({n: (x.mT if turn and x.dim()==3 else x).contiguous() for n, x in block.items()},
                  tmp_path/name/'model.safetensors')
        if turn and inner==16:
            with pytest.raises(ValueError, match='cannot be told'):
                open_side(f"{tmp_path/name}+{tmp_path/'ad'}")
            continue
        found = numbers(open_side(f"{tmp_path/name}+{tmp_path/'ad'}"))
        for n, x in found.items():
            if x.dim()<3: assert torch.equal(x, wanted[n]); continue
            stem, which = n.rsplit('.', 1)
            for e in range(4):
                parts = [wanted[f'{stem}.{e}.{k}.weight'] for k in (('gate_proj', 'up_proj')
                                                                    if 'gate' in which else ('down_proj',))]
                torch.testing.assert_close(x[e].T if turn else x[e], torch.cat(parts), rtol=1e-6, atol=1e-6)


def test_gpt2_stores_its_matrices_on_their_side(tmp_path):
    import transformers
    torch.manual_seed(3)
    c = transformers.AutoConfig.for_model('gpt2', n_embd=32, n_layer=2, n_head=4, vocab_size=64,
                                          n_positions=32)
    transformers.AutoModelForCausalLM.from_config(c).save_pretrained(tmp_path/'llm')
    for hint in (True, False):
        wanted = trained('AutoModelForCausalLM', tmp_path/'llm', tmp_path/f'ad{hint}',
                         target_modules=['c_attn', 'attn.c_proj'],
                         fan_in_fan_out=hint)
        same(numbers(open_side(f"{tmp_path/'llm'}+{tmp_path}/ad{hint}")), wanted)
    with pytest.raises(ValueError, match='stored by columns'):
        trained('AutoModelForCausalLM', tmp_path/'llm', tmp_path/'dora', target_modules=['c_attn'],
                use_dora=True)
        open_side(f"{tmp_path/'llm'}+{tmp_path}/dora")


@pytest.fixture
def donor(trios, tmp_path):
    "A LLaVA trio, an adapter that was trained on its LLM, and its ΔW by the name in the VLM"
    trio, ad = trios('llava'), tmp_path/'ad'
    after = trained('AutoModelForCausalLM', trio.base, ad, **OPTIONS['plain'])
    before = load_file(trio.base/'model.safetensors')
    return trio, ad, {f'language_model.{n}': after[n]-before[n] for n in after
                      if not torch.equal(after[n], before[n])}


def test_alone_it_is_added_to_the_vlm(donor, tmp_path):
    trio, ad, delta = donor
    vlm = load_file(trio.vlm/'model.safetensors')
    p = plan(trio.vlm, ad, weight=.75)
    assert {w.pair.vlm for w in p.merged}==delta.keys() and 'VLM + (1 - weight)·ΔW' in str(p)
    assert {'the adapter leaves it as it is',
            'beside the language model'}<=set(p.kept.values()) and not p.findings
    for out, how, share in (('line', dict(weight=.75), .25), ('whole', dict(weight=0), 1.),
                            ('task', dict(method='task_arithmetic', weight=1, llm_weight=.5), .5)):
        merged = load_file(merge(trio.vlm, ad, out=tmp_path/out, **how)/'model.safetensors')
        for n, x in vlm.items():
            if n in delta: torch.testing.assert_close(merged[n], x+share*delta[n], rtol=1e-5, atol=1e-6)
            else: assert torch.equal(merged[n], x)
        assert not (tmp_path/out/'adapter_config.json').exists()
    __import__('transformers').AutoModelForImageTextToText.from_pretrained(tmp_path/'task')


def test_with_a_base_the_donor_is_the_base_and_the_adapter(donor, tmp_path):
    trio, ad, _ = donor
    merged = []
    for name, llm in dict(alone=ad, named=f'{trio.base}+{ad}', whole=ad/'merged').items():
        shutil.copy(trio.base/'config.json', ad/'merged')
        merged.append(load_file(merge(trio.vlm, llm, trio.base, out=tmp_path/name, method='ties',
                                      density=.5)/'model.safetensors'))
    for other in merged[1:]: same(other, merged[0])
    with pytest.raises(ValueError, match='needs `base`'): plan(trio.vlm, trio.llm, method='ties')


def test_a_merge_says_which_adapter_went_in(donor, tmp_path, call):
    trio, ad, _ = donor
    code, out, err = call('merge', '--vlm', trio.vlm, '--llm', ad, '--weight', .5, '--out', tmp_path/'out')
    assert code==0, err
    about = json.loads((tmp_path/'out/recipe.json').read_text())
    assert set(about['inputs']['llm']['files'])=={'adapter_config.json', 'adapter_model.safetensors'}
    both = merge(trio.vlm, f'{trio.llm}+{ad}', out=tmp_path/'both')
    about = json.loads((both/'recipe.json').read_text())
    assert {'config.json', '+ad/adapter_model.safetensors'}<=about['inputs']['llm']['files'].keys()
    assert '| llm, a LoRA adapter | ad |' in (both/'README.md').read_text()
    assert 'merged with a LoRA adapter' in (tmp_path/'out/README.md').read_text()
    again = merge(json.loads((both/'recipe.json').read_text())['recipe']['vlm'], about['recipe']['llm'],
                  out=tmp_path/'again')
    assert (again/'model.safetensors').read_bytes()==(both/'model.safetensors').read_bytes()
    code, out, _ = call('inspect', ad)
    assert code==0 and 'LoRA adapter, rank 4, alpha 8' in out and 'layers 0-3' in out
    assert 'on it:' in call('inspect', f'{trio.llm}+{ad}')[1]
    with pytest.raises(ValueError, match='in one of the inputs'): merge(trio.vlm, ad, out=ad/'in')


def test_on_the_vlm_what_is_not_merged_has_it_too(donor, tmp_path):
    trio, ad, delta = donor
    vlm = load_file(trio.vlm/'model.safetensors')
    merged = load_file(merge(f'{trio.vlm}+{ad}', trio.llm, out=tmp_path/'o', layers='0', modules='mlp',
                             weight=1)/'model.safetensors')
    for n, x in vlm.items(): torch.testing.assert_close(merged[n], x+delta.get(n, 0*x), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(merged[n], vlm[n]) for n in vlm if '.1.self_attn' in n)


def test_a_large_matrix_is_never_written_out(tmp_path):
    from vlm_merging.checkpoints.headers import read_header
    from vlm_merging.checkpoints.low_rank import Adapted, Delta
    save_file(dict(w=torch.randn(4000, 1000), a=torch.randn(8, 1000), b=torch.randn(4000, 8)),
              tmp_path/'x.safetensors')
    w, a, b = (read_header(tmp_path/'x.safetensors')[0][k] for k in 'wab')
    with opened([w]) as files:
        reader = Adapted(w, w, (Delta(a, b, 1., rows=4000, cols=1000),)).reader(files)
        for i in range(0, w.numel, 100_000): reader(i, i+100_000)
        assert len(reader.now)<200_000 and sum(map(len, reader.thin))<10


BAD = dict(
    ia3=(dict(peft_type='IA3'), 'of the type IA3'), loha=(dict(peft_type='LOHA'), 'of the type LOHA'),
    prompt=(dict(peft_type='PROMPT_TUNING'), 'PROMPT_TUNING'), bias=(dict(bias='all'), 'holds biases'),
    lora_bias=(dict(lora_bias=True), 'sets lora_bias'), pissa=(dict(init_lora_weights='pissa'),
                                                               'changes the model itself'),
    new=(dict(of_next_year={'x': 1}), 'sets of_next_year'), zero=(dict(r=0), 'r is 0'),
    text=(dict(lora_alpha='8'), "lora_alpha is '8'"),
    rank=(dict(r=3), 'says rank 3'), nan=(dict(lora_alpha=float('inf')), 'lora_alpha'),
    table=(dict(rank_pattern=[1]), 'no table'),
    slow=(dict(alpha_pattern={'(a*)*b': 1}), 'too long'),
    dora=(dict(use_dora=True), 'no lora_magnitude_vector, though'))

@pytest.mark.parametrize('case', BAD)
def test_what_is_not_understood_is_refused(case, donor, tmp_path):
    trio, ad, _ = donor
    change, words = BAD[case]
    path = ad/'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text())|change))
    with pytest.raises(ValueError, match=words): plan(trio.vlm, ad)


def test_odd_files(donor, tmp_path):
    trio, ad, _ = donor
    path, names = ad/'adapter_model.safetensors', load_file(ad/'adapter_model.safetensors')
    q = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    def refused(words, **how):
        with pytest.raises(ValueError, match=words): merge(trio.vlm, ad, out=tmp_path/'never', **how)
        assert not (tmp_path/'never').exists()
    save_file(names|{q: names[q]*float('nan')}, path); refused('lora_A.weight in .* holds NaN')
    save_file(names|{q: names[q][:, 1:].contiguous()}, path); refused('adds .* but .* is .* Take the model')
    save_file({n: x for n, x in names.items() if n!=q}, path); refused('q_proj has lora_B, but no lora_A')
    save_file({n.replace('layers.3', 'layers.9'): x for n, x in names.items()},
              path); refused('there are 4 layers')
    save_file(names|{'base_model.model.model.layers.0.mlp.up_proj.weight': torch.ones(64, 32)},
              path); refused('no part of an adapter')
    save_file(names|{q: names[q].to(torch.int8)}, path); refused('stored as I8')
    (ad/'adapter_config.json').rename(tmp_path/'kept'); refused('has no adapter_config.json')
    (tmp_path/'kept').rename(ad/'adapter_config.json')
    save_file(names|{q.replace('lora_A.weight', 'lora_magnitude_vector'): torch.ones(32)}, path)
    refused('does not set use_dora')
    path.rename(ad/'adapter_model.bin'); refused('is a pickle')
    (ad/'adapter_model.bin').unlink(); refused('Download it again')
    with pytest.raises(ValueError, match='In a merge it can be the `llm`'): plan(ad, trio.llm)
    with pytest.raises(ValueError, match='is no adapter'): plan(f'{trio.vlm}+{trio.base}', trio.llm)


def test_an_adapter_beside_weights_is_told(donor, tmp_path):
    trio, ad, _ = donor
    shutil.copytree(trio.vlm, tmp_path/'both')
    for f in ('adapter_config.json', 'adapter_model.safetensors'): shutil.copy(ad/f, tmp_path/'both')
    with pytest.raises(ValueError, match='a folder of their own; merge them in as MODEL.ADAPTER'):
        plan(tmp_path/'both', trio.llm)


def test_one_beside_the_llm_and_one_beside_the_vlm_in_one_merge(trios, tmp_path):
    vlm, llm = trios('llava').vlm, trios('llava').llm
    seen = trained('AutoModelForImageTextToText', vlm, tmp_path/'v', target_modules='all-linear')
    read = trained('AutoModelForCausalLM', llm, tmp_path/'l', seed=1, **OPTIONS['patterns'])
    with_both = plan(f"{vlm}+{tmp_path/'v'}", f"{llm}+{tmp_path/'l'}", weight=.7)
    merge(with_both, out=tmp_path/'out')
    found = load_file(tmp_path/'out/model.safetensors')
    merged = {w.pair.vlm: w.pair for w in with_both.merged}
    assert len(merged)>20 and set(merged)<found.keys() and set(seen)<=found.keys()
    for name in seen:
        if name in merged:
            other, = merged[name].llm
            wanted = read[other].lerp(seen[name], .7)
        else: wanted = seen[name]           # Its tower has an adapter, too
        assert torch.equal(found[name], wanted), name


def test_parts_without_a_place_are_told(trios, tmp_path):
    vlm = trios('llava').vlm
    trained('AutoModelForImageTextToText', vlm, tmp_path/'ad', target_modules='all-linear')
    found = ' '.join(str(f) for f in plan(vlm, tmp_path/'ad').findings)
    assert 'tensors beside the language model' in found and 'name VLM+ADAPTER' in found
    found = ' '.join(str(f) for f in plan(vlm, tmp_path/'ad', trios('llava').base).findings)
    assert 'cannot be taken in: there is no such matrix' in found


@pytest.mark.parametrize('option, words', dict(saved='replace the VLM', dora='are DoRA').items())
def test_what_is_not_only_added_is_told_and_a_base_mends_it(option, words, trios, tmp_path):
    trio, ad = trios('llava'), tmp_path/'ad'
    after, before = trained('AutoModelForCausalLM', trio.base, ad, **OPTIONS[option]), {}
    found = [f.what for f in plan(trio.vlm, ad).findings]
    assert len(found)==1 and words in found[0]
    to_base = plan(trio.vlm, ad, trio.base, method='task_arithmetic', weight=1, llm_weight=.5)
    assert not any(words in str(f) for f in to_base.findings)
    merged = load_file(merge(to_base, out=tmp_path/'out')/'model.safetensors')
    before, vlm = load_file(trio.base/'model.safetensors'), load_file(trio.vlm/'model.safetensors')
    changed = [n for n in after if not torch.equal(after[n], before[n])]
    for n in changed:
        wanted = vlm[f'language_model.{n}']+.5*(after[n]-before[n])
        torch.testing.assert_close(merged[f'language_model.{n}'], wanted, rtol=1e-5, atol=1e-6)
    assert changed and not any(words in f.what for f in plan(trio.vlm, f'{trio.base}+{ad}').findings)
    save_only = plan(trio.vlm, ad, layers='0').findings if option=='dora' else plan(
        trio.vlm, ad, modules='attention').findings     # What is not merged needs no word of this kind
    assert [words in f.what for f in save_only]==[True]*(option=='dora')


def test_an_adapter_that_is_not_whole_is_told(donor, trios, tmp_path):
    trio, ad, _ = donor
    path, config = ad/'adapter_model.safetensors', ad/'adapter_config.json'
    names, was = load_file(path), json.loads(config.read_text())
    def told(*more):
        found = (f.what for f in plan(trio.vlm, *(more or [ad])).findings)
        return ' '.join(w for w in found if 'adapter' in w)
    assert told()=='' and told(trio.llm, f'{trio.base}+{ad}')==''
    save_file({n: x for n, x in names.items() if '.2.' not in n or 'q_proj' not in n}, path)
    assert 'nothing of self_attn.q_proj in layer 2,' in told()
    save_file({n: x for n, x in names.items() if 'q_proj' not in n}, path)
    assert 'nothing of self_attn.q_proj in layers 0-3,' in told()
    config.write_text(json.dumps(was|dict(target_modules='.*_proj')))
    assert told()==''                       # A pattern may mean any
    config.write_text(json.dumps(was|dict(target_modules=['gate_proj', 'down_proj'])))
    assert 'nothing of mlp.gate_proj in layers 0-3,' in told()
    config.write_text(json.dumps(was|dict(layers_to_transform=[0])))
    assert 'does not cover model.layers.1.mlp.down_proj and 2 more' in told()
    assert 'nothing of self_attn.q_proj in layer 0,' in told()
    full = [f'model.layers.{i}.self_attn.q_proj' for i in range(4)]
    save_file({n: x for n, x in names.items() if '.2.' not in n or 'q_proj' not in n}, path)
    config.write_text(json.dumps(was|dict(target_modules=[*full, 'down_proj'])))
    assert 'nothing of self_attn.q_proj in layer 2,' in told()
    save_file({n: 0*x if 'lora_B' in n else x for n, x in names.items()}, path)
    config.write_text(json.dumps(was|dict(modules_to_save=['lm_head'])))
    assert 'so it adds nothing' in told() and 'lm_head in modules_to_save' in told()


SEVEN = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']

FUSED = ['qkv_proj', 'gate_up_proj', 'w1', 'c_attn', 'o_proj']

@pytest.mark.parametrize('kind, targets', [(k, t) for k in ('phi3', 'glm4', 'lfm2', 'qwen3', 'gemma2', 'gpt2')
                                           for t in (SEVEN, 'all-linear', FUSED) if (k, t)!=('gpt2', SEVEN)])
def test_a_whole_adapter_is_not_called_one_with_gaps(kind, targets, tmp_path):
    from vlm_merging.merging.folders import layers_without, not_taken
    import transformers
    mixed = dict(layer_types=['full_attention', 'conv', 'conv', 'full_attention']) if kind=='lfm2' else {}
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, head_dim=8, n_embd=32, n_layer=4, n_head=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, **mixed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path/'llm')
    trained('AutoModelForCausalLM', tmp_path/'llm', tmp_path/'ad', target_modules=targets,
            fan_in_fan_out=kind=='gpt2')
    side = open_side(f"{tmp_path/'llm'}+{tmp_path/'ad'}")
    assert not_taken(side)==[] and side.adapters[0].changed
    names = load_file(tmp_path/'ad/adapter_model.safetensors')
    save_file({n: x for n, x in names.items() if '.3.' not in n}, tmp_path/'ad/adapter_model.safetensors')
    top = open_side(f"{tmp_path/'llm'}+{tmp_path/'ad'}").adapters[0]
    lost = {n.split('.3.')[1].split('.lora')[0] for n in names if '.3.' in n}
    plain = not isinstance(json.loads((tmp_path/'ad/adapter_config.json').read_text())['target_modules'], str)
    if plain: assert {m: [3] for m in lost}==layers_without(top)


@pytest.mark.parametrize('kind', ('llava', 'qwen3_vl', 'gemma3', 'mllama', 'pixtral'))
def test_an_adapter_on_the_tower_alone_finds_the_tower(kind, tmp_path):
    import transformers
    from vlm_merging.merging.folders import not_taken
    vlm = make_trio(kind, tmp_path/'trio').vlm
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m = transformers.AutoModelForImageTextToText.from_pretrained(vlm)
        names = 'vision_tower', 'vision_model', 'visual'
        tower = next(o for n, o in m.named_modules() if n.split('.')[-1] in names)
        p = peft.get_peft_model(tower, peft.LoraConfig(r=2, target_modules=['q_proj', 'qkv']))
        with torch.no_grad():
            for n, x in p.named_parameters():
                if 'lora_' in n: x.add_(.1*torch.randn(x.shape))
        p.save_pretrained(tmp_path/'ad')
    before = load_file(vlm/'model.safetensors')
    text = {w.pair.vlm for w in plan(vlm, vlm).merged}
    side = open_side(f"{vlm}+{tmp_path/'ad'}")
    assert side.adapters[0].changed and text.isdisjoint(side.adapters[0].changed) and not_taken(side)==[]
    assert len(side.adapters[0].changed)==len(load_file(tmp_path/'ad/adapter_model.safetensors'))//2
    assert {*side.adapters[0].changed}<={*before}
    assert any('Nothing is left' in f.what for f in plan(vlm, tmp_path/'ad').stops)


def test_a_head_of_other_rows_is_left_and_the_rest_is_taken(trios, tmp_path):
    trio = trios('llava')
    trained('AutoModelForCausalLM', trio.base, tmp_path/'ad', target_modules=['q_proj', 'lm_head'])
    made = plan(trio.vlm, tmp_path/'ad')
    assert len(made.merged)==4 and 'its 96 rows do not fit 104' in ' '.join(map(str, made.findings))


def test_a_tied_embedding_that_changes_is_told(trios, tmp_path):
    vlm = trios('gemma3').vlm
    trained('AutoModelForImageTextToText', vlm, tmp_path/'ad', target_modules=['embed_tokens', 'o_proj'])
    found = [f.what for f in plan(f"{vlm}+{tmp_path/'ad'}", vlm).findings if 'adapter' in f.what]
    assert len(found)==1 and '(tied)' in found[0]


def test_one_that_was_trained_inside_this_vlm_replaces_what_it_learned_there(trios, tmp_path):
    vlm = trios('llava').vlm
    trained('AutoModelForImageTextToText', vlm, tmp_path/'ad', **OPTIONS['saved'])
    assert not any('replace' in f.what for f in plan(vlm, tmp_path/'ad').findings)


def test_each_candidate_is_the_base_that_the_adapter_lies_on(donor):
    from vlm_merging import diagnose
    trio, ad, _ = donor
    named, tried = diagnose(trio.vlm, ad, trio.base), diagnose(trio.vlm, ad, candidates=[trio.llm, trio.base])
    assert tried.base==str(trio.base) and tried.verdict==named.verdict
    assert tried.stats.equals(named.stats) and tried.lineage['candidate'][0]==str(trio.base)
    assert 'LLM to' not in str(tried)
    assert diagnose(trio.vlm, ad).left['side'].to_list()==['vlm']


@pytest.mark.parametrize('method', ('task_arithmetic', 'ties', 'della', 'neuron_fusion'))
def test_a_sweep_over_a_weight_of_nothing_is_refused(method, donor):
    from vlm_merging import load, sweep
    trio, ad, _ = donor
    items = load('lab', n=1)
    for llm in (ad, [ad, ad]):
        with pytest.raises(ValueError, match='all its weights give one model'):
            sweep(trio.vlm, llm, weights=[.2, .5], items=items, method=method)


def test_names_that_cannot_be_are_refused_in_words(donor, tmp_path, call):
    trio, ad, _ = donor
    with pytest.raises(ValueError, match='As two donors, name each'): plan(trio.vlm, f'{ad}+{ad}')
    for command in ('ask', 'profile'):
        code, _, err = call(command, f'{trio.vlm}+{ad}', '--benchmark', 'lab', '-n', 2, '--out', tmp_path/'o')
        assert code and 'make one folder of both' in err
    config = ad/'adapter_config.json'
    config.write_text(json.dumps(json.loads(config.read_text())|dict(r=3)))
    assert 'stop: ' in call('inspect', ad)[1] and 'says rank 3' in call('inspect', ad)[1]


def test_diagnosed_and_swept_like_a_model(donor, tmp_path):
    from vlm_merging import diagnose
    from vlm_merging.asking.fingerprints import weights_hash
    from vlm_merging.probing.weights import weight_stats
    trio, ad, delta = donor
    far = {r['name']: r['apart'] for r in weight_stats(trio.vlm, ad).iter_rows(named=True) if r['apart']}
    assert far.keys()==delta.keys()
    assert diagnose(trio.vlm, f'{trio.base}+{ad}', trio.base).stats.height
    vlm = open_side(trio.vlm)
    assert weights_hash(open_side(ad, vlm))!=weights_hash(vlm)
