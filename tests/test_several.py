"Several LLMs in one merge: against an independent computation, at the ends, in memory and in words"
import json, shutil
from types import SimpleNamespace
import pytest, torch
from safetensors.torch import load_file, save_file
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.lab.tiny import make_trio
from vlm_merging.merging import merge as room
from vlm_merging.merging.coins import drop, drop_by_rank, name_rng
from vlm_merging.merging.merge import merge
from vlm_merging.merging.methods import METHODS, task_vectors, ties, elect_signs
from vlm_merging.merging.plan import plan
from vlm_merging.merging.recipe import Recipe

torch.set_num_threads(1)
WEIGHT = [.7, .2, .1]


def walked(folder, out, seed, far=.02):
    "A copy of a model, each of whose numbers went a short way"
    shutil.copytree(folder, out)
    g = torch.Generator().manual_seed(seed)
    held = load_file(out/'model.safetensors')
    save_file({n: (x.float()+far*torch.randn(x.shape, generator=g)).to(x.dtype) for n, x in held.items()},
              out/'model.safetensors')
    return out


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    room = tmp_path_factory.mktemp('several')
    trio = make_trio('llava', room/'trio')
    return SimpleNamespace(**trio._asdict(), other=walked(trio.base, room/'other', 5))


# --- Against an independent computation

def stack(tensors): return torch.stack([t.float() for t in tensors])

def trimmed(d, density):
    keep = d.abs().flatten().argsort(descending=True, stable=True)[:int(density*d.numel())]
    return torch.where(torch.zeros(d.numel()).index_fill(0, keep, 1.).view(d.shape)>0, d, 0)

def elected(d, weight):
    side = torch.where(d.sum(0)>=0, 1., -1.)
    agree = d*side>0
    return (torch.tensor(weight).view(-1, *[1]*(d.dim()-1))*d*agree).sum(0)/agree.sum(0).clamp(min=1)

def weighted(d, weight): return torch.einsum('i,i...->...', torch.tensor(weight), d)

def selected(d):
    best = trimmed(d.var(0, unbiased=False), .1)>0
    d = d*best
    energy = d.square().flatten(1).sum(1)
    share = energy/energy.sum()
    agree = (d*torch.where(d.sum(0)>=0, 1., -1.))>0
    share = share.view(-1, *[1]*(d.dim()-1))
    return (share*d*agree).sum(0)/(share*agree).sum(0).clamp(min=1e-30)

def thinned(name, d, how=drop, *more):
    return torch.stack([how(x, .2, *more, g) for x, g in zip(d, name_rng(4, name, 3))])

def between(d, n):
    size = d.abs().flatten().argsort(descending=True, stable=True)
    keep = size[int(.01*n):int(.01*n)+int(.9*n)]
    return torch.zeros(n).index_fill(0, keep, 1.).view(d.shape)*d

ORACLES = dict(
    linear=lambda n, t, b: weighted(t, WEIGHT),
    task_arithmetic=lambda n, t, b: b+weighted(t-b, WEIGHT),
    ties=lambda n, t, b: b+elected(torch.stack([trimmed(d, .2) for d in t-b]), WEIGHT),
    dare_linear=lambda n, t, b: b+weighted(thinned(n, t-b), WEIGHT),
    dare_ties=lambda n, t, b: b+elected(thinned(n, t-b), WEIGHT),
    breadcrumbs=lambda n, t, b: b+weighted(torch.stack([between(d, d.numel()) for d in t-b]), WEIGHT),
    della=lambda n, t, b: b+elected(thinned(n, t-b, drop_by_rank, .1), WEIGHT),
    sce=lambda n, t, b: b+selected(t-b))


OF_MATRICES = {'iso_c', 'wudi', 'neuron_fusion'}       # Have their oracles in test_matrices

def test_no_method_of_several_is_without_an_oracle():
    assert {m.name for m in METHODS.values() if m.several}=={*ORACLES}|OF_MATRICES

@pytest.mark.parametrize('method', ORACLES)
def test_two_llms_by_every_method(method, models, tmp_path, monkeypatch):
    knobs = {} if method=='sce' else dict(weight=WEIGHT)
    monkeypatch.setattr(room, 'BLOCK', 256)
    llms = [models.llm, models.other]
    out = merge(models.vlm, llms, models.base, method=method, seed=4, out=tmp_path/'o', **knobs)
    vlm, llm, other, base, done = (load_file(f/'model.safetensors') for f in
                                   (models.vlm, models.llm, models.other, models.base, out))
    merged = {w.pair.vlm: w.pair for w in plan(Recipe.read(out)).merged}
    assert len(merged)>30
    for name, tensor in done.items():
        if name not in merged: assert torch.equal(tensor, vlm[name]), name; continue
        p = merged[name]
        t, b = stack([vlm[name], llm[p.llm[0]], other[p.llm[0]]]), base[p.llm[0]].float()
        expected = ORACLES[method](p.key, t, b)
        torch.testing.assert_close(tensor.float(), expected.bfloat16().float(), rtol=.01, atol=1e-3, msg=name)


# --- At the ends

ALONE = dict(linear=dict(), task_arithmetic=dict(), dare_linear=dict(), breadcrumbs=dict(),
             ties=dict(elect='weighted', divide='none'), della=dict(elect='weighted', divide='weights'))

@pytest.mark.parametrize('method', ALONE)
def test_a_third_model_of_weight_0_changes_no_byte(method, models, tmp_path):
    how = dict(base=models.base, method=method) | ALONE[method]
    two = dict(weight=.75) | (dict(llm_weight=.25) if method!='linear' else {})
    one = merge(models.vlm, models.llm, out=tmp_path/'one', **how, **two)
    both = merge(models.vlm, [models.llm, models.other], out=tmp_path/'both', weight=[.75, .25, 0.], **how)
    if method!='linear':
        assert (one/'model.safetensors').read_bytes()==(both/'model.safetensors').read_bytes()
        return
    one, both = (load_file(f/'model.safetensors') for f in (one, both))     # two formulas for one point
    for n in one: torch.testing.assert_close(both[n], one[n], rtol=2**-7, atol=1e-6)


def test_the_order_of_llms_changes_roundings_only():
    g = torch.Generator().manual_seed(0)
    v, a, b, base = (torch.randn(64, 64, generator=g) for _ in range(4))
    for name in ('linear', 'task_arithmetic', 'ties', 'sce', 'breadcrumbs'):
        m, rest = METHODS[name], (base,) if 'base' in METHODS[name].fills else ()
        def by_hand(llms, weight):
            look = {'seen': m.look([(v, llms, *rest)], v.numel(), **knobs)} if m.look else {}
            own = dict(weight=weight) if 'weight' in knobs else {}
            return m.formula(v, llms, *rest, **look, **knobs|own)
        knobs = {k.name: k.default for k in m.knobs.values()}
        one, two = by_hand((a, b), (.5, .3, .2)), by_hand((b, a), (.5, .2, .3))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_equal_models_stay_as_they_are(models, tmp_path):
    llms = [models.llm, models.llm]
    for method in ('linear', 'task_arithmetic', 'ties'):
        knobs = dict(weight=[0., .5, .5]) | (dict(density=1., divide='none') if method=='ties' else {})
        # The VLM votes in TIES whatever it weighs: here it is the base, which moved nowhere
        vlm = models.vlm if method!='ties' else blind(models, tmp_path/'still')
        out = merge(vlm, llms, models.base, method=method, out=tmp_path/method, **knobs)
        done, llm = load_file(out/'model.safetensors'), load_file(models.llm/'model.safetensors')
        for w in plan(Recipe.read(out)).merged:
            torch.testing.assert_close(done[w.pair.vlm], llm[w.pair.llm[0]], rtol=.01, atol=1e-3)

def blind(models, out):
    "The VLM, with the language model of the base"
    shutil.copytree(models.vlm, out)
    held, base = (load_file(f/'model.safetensors') for f in (out, models.base))
    swap = {w.pair.vlm: base[w.pair.llm[0]] for w in plan(models.vlm, models.base).merged}
    save_file(held|swap, out/'model.safetensors')
    return out


def test_three_numbers_by_hand():
    "Task vectors (4, 3, 1), (2, -4, 1), (1, 5, 2); each loses its smallest"
    zero, v, a, b = torch.zeros(3), *map(torch.tensor, ([4., 3., 1.], [2., -4., 1.], [1., 5., 2.]))
    assert ties(v, (a, b), zero, weight=(1., 2., 3.), density=.67).tolist()==[4., 9., 6.]
    kept = lambda: [torch.tensor(d) for d in ([4., 3., 0.], [2., -4., 0.], [0., 5., 2.])] # Used up
    assert elect_signs(kept(), (1., 2., 3.), 'unweighted', 'none').tolist()==[8., 18., 6.]
    assert elect_signs(kept(), (1., 3., 1.), 'weighted', 'weights').tolist()==[2.5, -4., 2.]
    assert [d.tolist() for d in task_vectors(v, (a, b), zero)]==[v.tolist(), a.tolist(), b.tolist()]


# --- The same on disk, in a file, in the shell, and in memory

def test_a_curve_for_one_of_the_models(models, tmp_path):
    curves = [[1., .5], [0., .25], [0., .25]]
    out = merge(models.vlm, [models.llm, models.other], weight=curves, out=tmp_path/'o')
    vlm, llm, other, done = (load_file(f/'model.safetensors')
                             for f in (models.vlm, models.llm, models.other, out))
    for w in plan(Recipe.read(out)).merged:
        n, m = w.pair.vlm, w.pair.llm[0]
        if w.pair.layer==0: assert torch.equal(done[n], vlm[n])
        if w.pair.key=='final_norm':
            mixed = .5*vlm[n].float()+.25*llm[m].float()+.25*other[m].float()
            assert torch.equal(done[n], mixed.bfloat16())


def test_the_recipe_and_the_shell_make_the_same_bytes(models, tmp_path, call):
    llms = [models.llm, models.other]
    out = merge(models.vlm, llms, models.base, method='dare_ties', weight=WEIGHT, out=tmp_path/'a')
    again = merge(Recipe.read(out), out=tmp_path/'b')
    code, said, err = call('merge', '--vlm', models.vlm, '--llm', models.llm, '--llm', models.other,
                           '--base', models.base, '--method', 'dare_ties',
                           '--weight', ','.join(map(str, WEIGHT)), '--out', tmp_path/'c')
    assert code==0, err
    for name in ('model.safetensors', 'recipe.json'):
        assert (out/name).read_bytes()==(again/name).read_bytes()==(tmp_path/'c'/name).read_bytes()
    told = json.loads((out/'recipe.json').read_text())
    assert list(told['inputs'])==['vlm', 'llm', 'llm 2', 'base']
    assert told['recipe']['llm']==list(map(str, llms))
    card = (out/'README.md').read_text()
    assert 'merged with 2 LLMs' in card and '| llm 2 | other |' in card


def test_in_memory_as_on_disk(models, tmp_path):
    from test_mixing import assert_same, opened
    from vlm_merging.asking.models import LocalModel
    from vlm_merging.probing.mixing import Mixer
    recipe = Recipe(models.vlm, [models.llm, models.other], models.base, 'ties', dict(weight=WEIGHT))
    mixer = Mixer(LocalModel(opened(models.vlm), None, 'pico'), recipe)
    assert_same(mixer.mix().model, merge(recipe, out=tmp_path/'o'))


# --- In words

@pytest.mark.parametrize('more,said', [
    (dict(), 'linear: with 2 LLMs `weight` has 3 numbers.*Here it is missing'),
    (dict(weight=.8), 'Here it is 0.8'), (dict(weight=[.8, .2]), r'Here it is \[0.8, 0.2\]'),
    (dict(weight=[.8, .1, 1.1]), 'weight is 1.1; it is a number from 0 to 1'),
    (dict(weight=[.8, .1, [.1, .3]]), 'add up to 1.2, and a mixture needs 1'),
    (dict(weight=[.8, .1, []]), 'an empty list'), (dict(weight=WEIGHT, as_run=True), 'script merges one LLM'),
    (dict(method='slerp'), 'slerp merges a VLM with one LLM, and here are 2. For several, choose .*linear'),
    (dict(method='sce', base='b', weight=WEIGHT), "sce has no knob 'weight'"),
    (dict(method='ties', base='b', weight=WEIGHT, llm_weight=.1), 'Leave `llm_weight` out')])
def test_what_several_llms_need_is_said(more, said):
    with pytest.raises(ValueError, match=said): plan('v', ['a', 'b'], **more)


def test_what_is_found_names_the_llm(models, tmp_path):
    turned = tmp_path/'turned'
    shutil.copytree(models.other, turned)
    config = json.loads((turned/'config.json').read_text())
    config |= dict(rope_parameters=dict(rope_type='default', rope_theta=5e5))
    (turned/'config.json').write_text(json.dumps(config))
    found = plan(models.vlm, [models.llm, turned], weight=WEIGHT).findings
    rope, = (f for f in found if 'rope_theta' in f.what)
    assert rope.what.startswith(f'{turned}: Rotation base')
    same, = (f for f in plan(models.vlm, [models.llm]*2, weight=WEIGHT).findings if 'same files' in f.what)
    assert same.what=='LLM and LLM 2 are the same files, so it counts twice.'
    wide = make_trio('qwen2_vl', tmp_path/'wide')
    stopped = plan(models.vlm, [models.llm, wide.llm], weight=WEIGHT)
    assert stopped.stops and all(f.what.startswith(f'{wide.llm}: ') for f in stopped.stops)
    with pytest.raises(ValueError, match='wide'):
        merge(models.vlm, [models.llm, wide.llm], weight=WEIGHT, out=tmp_path/'o')


def test_a_tensor_that_one_llm_lacks_stays(models, tmp_path):
    bare = tmp_path/'bare'
    shutil.copytree(models.other, bare)
    held = load_file(bare/'model.safetensors')
    held.pop('model.norm.weight')
    save_file(held, bare/'model.safetensors')
    p = plan(models.vlm, [models.llm, bare], weight=WEIGHT)
    assert p.kept['language_model.model.norm.weight']==f'no partner in {bare}' and p.merged


def test_one_llm_in_a_list_is_one_llm(models):
    one = Recipe(models.vlm, models.llm, knobs={'weight': [.9, .5]})
    assert plan(models.vlm, [models.llm], weight=[.9, .5]).recipe==one


def test_what_knows_one_llm_only_says_so(models):
    from vlm_merging.probing.diagnose import diagnose
    llms = [models.llm, models.other]
    with pytest.raises(ValueError, match='one LLM at a time, and here are 2'): diagnose(models.vlm, llms)
    with pytest.raises(ValueError, match='one LLM at a time'):
        diagnose(Recipe(models.vlm, llms, knobs=dict(weight=WEIGHT)))


def test_a_plan_reads_each_llm_once(models):
    two, three = plan(models.vlm, models.llm), plan(models.vlm, [models.llm, models.other], weight=WEIGHT)
    assert three.reads-two.reads==sum(e.nbytes for w in three.merged for e in w.more[0])
    assert list(three.sides)==['vlm', 'llm', 'llm 2'] and isinstance(three.sides['llm 2'], Checkpoint)


# --- VLM and VLM

@pytest.fixture(scope='module')
def seers(tmp_path_factory):
    room = tmp_path_factory.mktemp('seers')
    one = make_trio('llava_next_llama', room/'one')
    return SimpleNamespace(**one._asdict(), other=walked(one.vlm, room/'other', 3))

@pytest.mark.parametrize('modules,parts', [('all', {'attention', 'mlp', 'norm'}), ('tower', {'tower'}),
                                           ('norm,projector', {'norm', 'projector'}),
                                           ('all,tower,projector', None)])
def test_two_vlms(modules, parts, seers, tmp_path):
    p = plan(seers.vlm, seers.other, weight=.75, modules=modules)
    assert {w.pair.module for w in p.merged}==(parts or {'attention', 'mlp', 'norm', 'tower', 'projector'})
    merged = {w.pair.vlm for w in p.merged}
    if parts is None: assert {n.split('.')[-2] for n in p.kept}=={'lm_head', 'embed_tokens'}
    out = merge(p, out=tmp_path/'o')
    vlm, other, done = (load_file(f/'model.safetensors') for f in (seers.vlm, seers.other, out))
    for n in vlm:
        mixed = (.75*vlm[n].float()+.25*other[n].float()).to(vlm[n].dtype)
        assert torch.equal(done[n], mixed if n in merged else vlm[n]), n

def test_a_vlm_and_an_llm_as_donors(seers, tmp_path):
    p = plan(seers.vlm, [seers.llm, seers.other], weight=[.5, .25, .25], modules='all,tower')
    assert {w.pair.module for w in p.merged}=={'attention', 'mlp', 'norm'}
    assert f'no tower in {seers.llm}' in p.kept.values()
    warned, = (f for f in p.findings if 'tower' in f.what)
    assert warned.what==f"The tower stays the VLM's: no tower in {seers.llm}."
    with pytest.raises(ValueError, match='Nothing is left to merge'):
        merge(seers.vlm, seers.llm, modules='tower,projector', out=tmp_path/'o')

def test_a_tower_that_is_built_otherwise_stays(seers, tmp_path):
    config = json.loads((seers.other/'config.json').read_text())
    def why(change, held=None):
        odd = tmp_path/str(len(list(tmp_path.iterdir())))
        shutil.copytree(seers.other, odd)
        changed = json.loads(json.dumps(config))
        change(changed['vision_config'])
        (odd/'config.json').write_text(json.dumps(changed))
        if held: save_file(held(load_file(odd/'model.safetensors')), odd/'model.safetensors')
        p = plan(seers.vlm, odd, modules='all,tower')
        assert not any(w.pair.module=='tower' for w in p.merged)
        return next(f.what for f in p.findings if 'tower stays' in f.what).replace(str(odd), 'ODD')
    act = config['vision_config']['hidden_act']
    said = f'the tower of ODD is built otherwise (hidden_act {act} here, relu there).'
    assert why(lambda v: v.update(hidden_act='relu'))==f"The tower stays the VLM's: {said}"
    last = max(n for n in load_file(seers.vlm/'model.safetensors') if n.startswith('vision_tower'))
    assert why(lambda v: None, lambda t: {n: x for n, x in t.items() if n!=last}).endswith(f'({last}).')

def test_two_vlms_in_two_layouts(tmp_path):
    old, new = (make_trio('llava', tmp_path/n, layout=n) for n in ('old', 'new'))
    p = plan(old.vlm, new.vlm, modules='all,tower,projector')
    assert len(p.kept)==2 and any(w.pair.vlm!=w.pair.llm[0] for w in p.merged if w.pair.module=='tower')

def test_cross_attention_layers_of_two_vlms_are_merged(tmp_path):
    one, two = (make_trio('mllama', tmp_path/str(i), seed=i) for i in range(2))
    merged = {w.pair.vlm: w.pair.llm for w in plan(one.vlm, two.vlm).merged}
    assert all(n==m for n, (m,) in merged.items()) and any('cross_attn.q_proj' in n for n in merged)

def test_a_tower_is_not_mixed_in_memory(seers):
    from test_mixing import opened
    from vlm_merging.asking.models import LocalModel
    from vlm_merging.probing.mixing import Mixer
    mixer = Mixer(LocalModel(opened(seers.vlm), None, 'pico'), Recipe(seers.vlm, seers.other))
    with pytest.raises(LookupError, match='only the language model'): mixer.mix(modules='tower')


# --- Searched

def test_a_sweep_over_the_weights_of_several(tmp_path, call):
    from vlm_merging.asking.opening import open_model
    from vlm_merging.benchmarks.load import load
    from vlm_merging.lab.trio import lab_folder
    from vlm_merging.probing.sweep import sweep
    lab, items, how = lab_folder(), load('lab', n=6, split='dev'), dict(max_new_tokens=16, batch_size=6)
    llms, weights = [lab/'llm', lab/'base'], [[.6, .3, .1], [.2, .7, .1]]
    tried = sweep(lab/'vlm', llms, weights=weights, items=items, out=tmp_path/'run', **how)
    assert [t['weight'] for t in tried.tries]==weights and tried.table['weight'].is_null().all()
    out = merge(lab/'vlm', llms, weight=weights[1], out=tmp_path/'o')
    asked = {r.id: r.text for r in open_model(out, **how).many(items)}
    import polars as pl
    parts = pl.concat([pl.read_parquet(p) for p in (tmp_path/'run'/'parts').iterdir()])
    said = dict(parts.filter(run=f'weight {weights[1]}').select('index', 'prediction').rows())
    assert said==asked
    more = sweep(lab/'vlm', llms, weights=[.5, weights[0]], items=items, out=tmp_path/'run', **how)  # Goes on
    assert more.tries[0]['weight']==[.5, .25, .25] and set(more.best)=={'weight', 'layers', 'modules'}
    assert more.table.filter(what='accuracy', tag='all')['weight'].to_list()==[.5, None]
    assert plan(lab/'vlm', llms, **more.best).merged

def test_one_number_for_several_is_what_it_is_for_one(tmp_path, call):
    "Two LLMs that are one model are mixed as that model, from Python and from the shell"
    import polars as pl
    from vlm_merging.probing.sweep import sweep
    lab = 'lab/vlm --llm lab/llm'.split()
    asked = '--benchmark lab --split dev -n 12 --max-new-tokens 16 --batch-size 12'.split()
    runs = dict(one=[], two=['--llm', 'lab/llm'])
    for method, more in (('linear', []), ('ties', ['--base', 'lab/base', '--llm-weight', '.8'])):
        tables = []
        for name, second in runs.items():
            out = tmp_path/f'{method}-{name}'
            words = ['--weights', '.6,.2', *asked, '--method', method, *more, '--out', out]
            assert call('sweep', *lab, *second, *words)[0]==0
            tables.append(pl.read_parquet(out/'sweep.parquet').filter(what='accuracy'))
        assert tables[0]['run'].to_list()==tables[1]['run'].to_list()
        assert tables[0]['weight'].to_list()==tables[1]['weight'].to_list()
        if method=='linear': assert tables[0].equals(tables[1])
    how = dict(weights=[.6, .2], items='lab', out=tmp_path/'p', max_new_tokens=4)
    with pytest.raises(ValueError, match='slerp merges a VLM with one LLM'):
        sweep('lab/vlm', ['lab/llm', 'lab/llm'], method='slerp', **how)
    with pytest.raises(ValueError, match='weight is 1.5'):
        sweep('lab/vlm', ['lab/llm', 'lab/base'], **how|dict(weights=[1.5]))


# What others found

def test_words_that_change_begin_a_merge_anew(tmp_path):
    "Which rows belong together is said by tokenizer.json, so a draft made with another is not continued"
    out = merge('lab/vlm', 'lab/llm', out=tmp_path/'o', embeddings=True, weight=.5)
    inputs = json.loads((out/'recipe.json').read_text())['inputs']
    assert all('sha256' in inputs[who]['files']['tokenizer.json'] for who in ('vlm', 'llm'))
    plain = merge('lab/vlm', 'lab/llm', out=tmp_path/'p', weight=.5)
    assert 'tokenizer.json' not in json.loads((plain/'recipe.json').read_text())['inputs']['vlm']['files']

def test_the_first_layer_of_a_tower_is_no_projector():
    from vlm_merging.merging.towers import _beside
    names = ['vision_tower.embeddings.patch_embeddings.projection.weight',
             'multi_modal_projector.linear_1.weight',
             'visual.patch_embed.proj.weight', 'visual.merger.mlp.0.weight']
    parts = _beside(None, names)
    assert [*parts['tower']]==[names[0], names[2]] and [*parts['projector']]==[names[1], names[3]]
