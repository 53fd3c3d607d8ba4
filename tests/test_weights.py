"Task vectors from files are those computed in memory, in every family and layout; the verdict follows"
import json, math, os, re, shutil
import polars as pl
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging
from vlm_merging.probing import weights as weights
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.probing.diagnose import Diagnosis, diagnose
from vlm_merging.probing.reasons import LEVELS, THRESHOLDS, Threshold
from vlm_merging.merging.families import pair_names
from vlm_merging.checkpoints.texts import ranges_said
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.merge import Work
from vlm_merging.lab.kinds import KINDS
from vlm_merging.lab.remote import REMOTE
from vlm_merging.lab.tiny import make_llm, make_trio, make_vlm
from vlm_merging.probing.subspaces import leading_subspaces, overlap_of
from vlm_merging.probing.weights import (WEIGHT_METRICS, by_layer, by_module, left_out, lineage, long,
                                         step_of, sums_of,
                                         top_energy, weight_stats)

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
LAB = [lab_folder()/w for w in ('vlm', 'llm', 'base')]


# --- Independent of the package: everything in memory, float64

def stored(folder):
    "All tensors of a folder"
    made = {}
    for f in sorted(folder.iterdir()):
        if f.suffix=='.safetensors': made |= load_file(f)
        if f.suffix=='.bin': made |= torch.load(f, weights_only=True)
    return {n: x.double() for n, x in made.items()}


def edited(folder, to, change=None, dtype=None, config=None):
    "A copy of a folder of one file whose tensors went through `change(name, tensor)`"
    shutil.copytree(folder, to)
    held = load_file(to/'model.safetensors')
    made = {n: (change(n, x.float()) if change else x).to(dtype or x.dtype).contiguous() for n,
            x in held.items()}
    save_file(made, to/'model.safetensors', metadata={'format': 'pt'})
    if config: (to/'config.json').write_text(json.dumps(json.loads((to/'config.json').read_text()) | config))
    return to


def by_hand(v, l, b):
    "The measures of three tensors"
    v, l, b = v.flatten(), l.flatten(), b.flatten()
    x, y = v-b, l-b
    both = (x!=0) & (y!=0)
    top = lambda t, share: float(t.square().sort(descending=True).values[:max(1,
        round(share*len(t)))].sum()/t.square().sum())
    return dict(norm_vlm=float(x.norm()), norm_llm=float(y.norm()), relative_vlm=float(x.norm()/b.norm()),
                relative_llm=float(y.norm()/b.norm()), apart=float((l-v).norm()/b.norm()),
                cosine=float(x@y/x.norm()/y.norm()), agreement=float((x*y>0).sum()/both.sum()),
                top1_vlm=top(x, .01), top10_vlm=top(x, .1), top1_llm=top(y, .01), top10_llm=top(y, .1))


def same(made, expected, rel=1e-6):
    for k, x in expected.items(): assert made[k]==pytest.approx(x, rel=rel, abs=rel), k


# --- Facts

def test_known_vectors(tmp_path):
    "Task vectors (3, 4, 0...) and (0, 5, 0...): lengths 5, cosine .8"
    base = edited(make_llm('llava', tmp_path/'b', dtype='float32'), tmp_path/'base', lambda n,
                  x: (x*16).round()/16)
    vlm = make_vlm('llava', tmp_path/'v', near=base, dtype='float32')
    held = {p.vlm: stored(base)[p.llm[0]].float()
            for p in pair_names(*map(Checkpoint.open, (vlm, base))).pairs}
    def moved(n, x, *by):
        if 'layers.2.mlp.down_proj' in n: x.view(-1)[:2] += torch.tensor(by)
        return x
    def inside(n, x):       # the language model of the VLM becomes the base, and moves
        if n in held: x[:len(held[n])] = held[n]
        return moved(n, x, 3., 4.) if n in held else x
    llm, vlm = edited(base, tmp_path/'llm', lambda n, x: moved(n, x, 0., 5.)), edited(vlm, tmp_path/'vlm',
        inside)
    stats = weight_stats(vlm, llm, base)
    row = stats.filter(layer=2, part='down_proj').row(0, named=True)
    same(row, dict(norm_vlm=5., norm_llm=5., cosine=.8, agreement=1., top1_vlm=1., top10_llm=1.))
    assert row['apart']*math.sqrt(row['size2'])==pytest.approx(math.sqrt(9+1))
    rest = stats.filter(pl.col('name')!=row['name'])
    assert rest['norm_vlm'].max()==0 and rest['cosine'].is_null().all() and rest['agreement'].is_null().all()
    same(by_module(stats).row(0, named=True), dict(norm_vlm=5., cosine=.8, agreement=1.))
    assert by_layer(stats)['cosine'].to_list()==[None, None, pytest.approx(.8), None]


def test_energy():
    hot = torch.zeros(500).numpy(); hot[3] = 1
    assert top_energy(hot)==[1, 1] and top_energy(hot*0)==[0, 0]
    assert top_energy(torch.ones(100).numpy())==[pytest.approx(.01), pytest.approx(.1)]
    assert top_energy(torch.ones(3).numpy())==[pytest.approx(1/3)]*2     # at least one entry
    half = torch.ones(100).numpy(); half[:10] = 3
    assert top_energy(half)==[pytest.approx(9/180), pytest.approx(90/180)]


@pytest.mark.parametrize('n,columns', [(1, 1), (1<<16, 256), (1<<20, 1024), (1<<24, 4096),
                                       (58_720_256, 14336), (9_000_000, 3000)])
def test_the_sample_meets_every_column(n, columns):
    step = step_of(n, columns)
    assert math.gcd(step, columns)==1
    assert -(-n//step)<=weights.SAMPLE and (step==1 if n<=1<<16 else -(-n//step)>(1<<15))


def matrices(tmp_path, v, l, b):
    "A `Work` over three matrices in files, and the open files"
    held = []
    for who, x in zip(('vlm', 'llm', 'base'), (v, l, b)):
        (tmp_path/who).mkdir(exist_ok=True)
        save_file({'w': x.contiguous()}, tmp_path/who/'model.safetensors')
        (tmp_path/who/'config.json').write_text('{}')
        held.append((Checkpoint.open(tmp_path/who).tensors['w'],))
    pair = type('P', (), dict(key='layers.0.mlp.up_proj.weight', vlm='w', module='mlp'))()
    return Work(pair, *held, {}), {e.file: os.open(e.file, os.O_RDONLY) for (e,) in held}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_no_digits_are_lost_to_cancellation(tmp_path, dtype):
    "Weights near 1, task vectors a thousandth of that: lengths to a millionth"
    g = torch.Generator().manual_seed(0)
    b = torch.randn(700, 800, generator=g, dtype=torch.float64).to(dtype)
    v, l = ((b.double()+1e-3*b.double().abs()*torch.randn(b.shape, generator=g,
                                                          dtype=torch.float64)*3).to(dtype) for _ in 'ab')
    work, files = matrices(tmp_path, v, l, b)
    got = sums_of(work, files)
    x, y = v.double()-b.double(), l.double()-b.double()
    assert float(x.norm()/b.double().norm())<.01
    for k, t in (('vlm2', x*x), ('llm2', y*y), ('size2', b.double()**2)):
        assert got[k]==pytest.approx(float(t.sum()), rel=1e-6)
    assert got['dot']==pytest.approx(float((x*y).sum()), abs=1e-6*float(x.norm()*y.norm()))
    assert got['apart2']==pytest.approx(float((v.double()-l.double()).square().sum()), rel=1e-5)


def test_a_sample_stands_for_the_whole(tmp_path):
    "Three million numbers: signs and energies from a sample, lengths from all"
    g = torch.Generator().manual_seed(1)
    b = torch.zeros(1500, 2048)
    # heavy tails, and columns of their own size
    v = torch.randn(b.shape, generator=g)**3*torch.rand(2048, generator=g)
    l = .5*v+torch.randn(b.shape, generator=g)
    work, files = matrices(tmp_path, v, l, b)
    got, n = sums_of(work, files), v.numel()
    assert got['same']/got['both']==pytest.approx(float((v*l>0).sum())/n, abs=4*.002)
    for share, k in ((.01, 'top1_vlm2'), (.1, 'top10_vlm2')):
        energy = v.double().square().flatten().sort(descending=True).values
        assert got[k]/got['vlm2']==pytest.approx(float(energy[:int(share*n)].sum()/energy.sum()), rel=.05)
    assert got['vlm2']==pytest.approx(float(v.double().square().sum()), rel=1e-6)


# --- Against transparent arithmetic, in every kind

@pytest.mark.parametrize('kind', [*KINDS, *(k for k in REMOTE)])
def test_every_kind(kind, tmp_path):
    trio = make_trio(kind, tmp_path)
    stats = weight_stats(*trio, workers=1)
    held, open_ = [stored(f) for f in trio], [Checkpoint.open(f) for f in trio]
    of_base = {p.vlm: p for p in pair_names(open_[0], open_[2]).pairs}
    pairs = [p for p in pair_names(*open_[:2]).pairs if p.vlm in of_base]
    assert stats['name'].to_list()==[p.vlm for p in pairs]
    for p, row in zip(pairs, stats.iter_rows(named=True)):
        v, l, b = held[0][p.vlm], *(torch.cat([h[n] for n in names]) for h,
                                    names in ((held[1], p.llm), (held[2], of_base[p.vlm].llm)))
        rows = min(map(len, (v, l, b)))
        v, l, b = (x[:rows] for x in (v, l, b))
        assert (row['n'], row['layer'], row['module'])==(v.numel(), p.layer, p.module)
        same(row, by_hand(v, l, b))
    inside = [p for p in pairs if p.layer is not None]
    layers = by_layer(stats)
    assert layers['layer'].to_list()==sorted({p.layer for p in inside})
    assert layers['n'].sum()==sum(row['n'] for row in stats.iter_rows(named=True) if row['layer'] is not None)
    tables = weight_stats(*trio[:2], workers=1)
    assert tables['name'].to_list()==stats['name'].to_list()
    for made in (stats, layers, by_module(stats), tables, by_layer(tables), by_module(tables)):
        for x in made.select(pl.selectors.float()): assert x.is_nan().sum()==0 and x.is_infinite().sum()==0
    verdict = diagnose(*trio, workers=1)
    assert verdict.verdict in LEVELS[2:] and 'nan' not in str(verdict).lower()


@pytest.mark.parametrize('kind', ['llava', 'mllama', 'qwen2_vl', 'gemma3'])
def test_layout_shards_workers_and_containers_change_nothing(kind, tmp_path):
    drop = [k for k in ('name', 'llm')]
    first, seen = None, []
    for i, layout in enumerate(KINDS[kind].layouts):
        trio = make_trio(kind, tmp_path/layout, layout=layout, shards=1+i)
        for workers in (1, 3):
            stats = weight_stats(*trio, workers=workers).drop(drop).sort('layer', 'module', 'part', 'n',
                'vlm2')
            if first is None: first = stats
            assert stats.equals(first)
            seen.append(str(diagnose(*trio, workers=workers)).replace(str(tmp_path/layout), ''))
    assert len({re.sub(r'candidate.*', '', s) for s in seen})==1
    kept = dict(near=tmp_path/KINDS[kind].layouts[0]/'base', container='bin')
    llm = make_llm(kind, tmp_path/'bin', seed=1, **kept)
    trio = [tmp_path/KINDS[kind].layouts[0]/w for w in ('vlm', 'llm', 'base')]
    assert weight_stats(trio[0], llm, trio[2]).drop(drop).sort('layer', 'module', 'part', 'n',
        'vlm2').equals(first)


def test_open_checkpoints_do_as_well_as_folders():
    assert weight_stats(*map(Checkpoint.open, LAB)).equals(weight_stats(*map(str, LAB)))


def test_cross_layers_are_said_to_be_left_out(tmp_path):
    trio = make_trio('mllama', tmp_path)
    out = left_out(*trio)
    cross = out.filter(pl.col('reason').str.contains('cross-attention')).row(0, named=True)
    stats, vlm = weight_stats(*trio), Checkpoint.open(trio.vlm)
    assert len(stats)+out.filter(side='vlm')['tensors'].sum()==len(vlm.tensors)
    assert cross['tensors']==sum('layers.1.' in n or 'layers.4.' in n
                                 for n in vlm.tensors if 'language_model' in n)
    assert set(stats['layer'].drop_nulls())=={0, 2, 3, 5}
    assert 'cross-attention' in str(diagnose(*trio))


# --- Adding up

def test_sums_add_up_exactly():
    stats = weight_stats(*LAB)
    layers, modules = by_layer(stats), by_module(stats)
    held = [stored(f) for f in LAB]
    names = {r['name']: r['llm'] for r in stats.iter_rows(named=True)
             if r['module'] not in ('embedding', 'head')}
    joined = [torch.cat([h[n if k==0 else l].flatten() for n, l in names.items()]) for k,
              h in enumerate(held)]
    top = ('top1_vlm', 'top10_vlm', 'top1_llm', 'top10_llm')       # of each tensor: not the top of the whole
    expected = {k: x for k, x in by_hand(*joined).items() if k not in top}
    same(modules.row(0, named=True), expected)
    third = {n: l for n, l in names.items() if '.layers.3.' in n}
    joined = [torch.cat([h[n if k==0 else l].flatten() for n, l in third.items()]) for k,
              h in enumerate(held)]
    same(layers.filter(layer=3).row(0, named=True),
         {k: x for k, x in by_hand(*joined).items() if k not in top})
    final = stats.filter(part='final_norm')
    for k in ('vlm2', 'dot', 'both', 'top1_llm2', 'n'):
        assert layers[k].sum()+final[k].sum()==pytest.approx(modules[k][0], rel=1e-12)
        parts = by_module(stats).filter(pl.col('module').is_in(['attention', 'mlp',
            'norm']) & (pl.col('part')=='all'))
        assert parts[k].sum()==pytest.approx(modules[k][0], rel=1e-12)
    assert sum(by_layer(stats, m)['n'].sum() for m in ('attention', 'mlp', 'norm'))==layers['n'].sum()
    assert by_layer(stats, 'q_proj')['module'].to_list()==['q_proj']*8
    with pytest.raises(ValueError, match='No module or part .vision'): by_layer(stats, 'vision')


def test_long_is_what_charts_want():
    stats = weight_stats(*LAB, subspace=4)
    t = long(by_layer(stats), by_layer(stats, 'mlp'), by_module(stats))
    assert t.columns==['layer', 'module', 'what', 'value'] and t['value'].null_count()==0
    assert set(t['what'])<=set(WEIGHT_METRICS)
    assert {'overlap', 'chance', 'cosine', 'relative_vlm'}<=set(t['what'])
    assert t.schema['layer']==pl.Int64 and not t.select('layer', 'module', 'what').is_duplicated().any()
    assert set(t.filter(pl.col('layer').is_not_null())['module'])=={'all', 'mlp'}


# --- Subspaces

def rank_one(u, v, rows=30, columns=20):
    x = torch.zeros(rows, columns); x[u, v] = 2.; return x


@pytest.mark.parametrize('v,l,overlap', [((3, 4), (3, 4), 1), ((3, 4), (5, 6), 0), ((3, 4), (3, 6), .5)])
def test_overlap_of_rank_one(tmp_path, v, l, overlap):
    b = torch.zeros(30, 20)
    work, files = matrices(tmp_path, rank_one(*v), -3*rank_one(*l), b)
    got = overlap_of(work, files, 4)
    # no more directions than there are
    assert got['rank']==1 and got['shared']==pytest.approx(overlap, abs=1e-5)
    assert got['by_chance']==pytest.approx((1/30+1/20)/2)


def test_subspaces_are_those_of_a_full_svd(tmp_path):
    g = torch.Generator().manual_seed(3)
    b = torch.randn(300, 120, generator=g)
    def low(k):     # a few strong directions in noise
        q = torch.linalg.qr(torch.randn(300, k, generator=g)).Q*torch.linspace(9, 5, k)
        return q@torch.linalg.qr(torch.randn(120, k, generator=g)).Q.T
    noise = lambda: .05*torch.randn(300, 120, generator=g)/10
    common = low(3)
    v, l = b+common+low(5)+noise(), b+common+low(5)+noise()
    work, files = matrices(tmp_path, v, l, b)
    for (u, right, s), tau in zip(leading_subspaces(work, files, 8), (v-b, l-b)):
        a, c, z = torch.linalg.svd(tau.double())
        assert torch.allclose(s.double(), c[:8], rtol=1e-3)
        assert float((u.double().T@a[:, :8]).square().sum())==pytest.approx(8, abs=.01)
        assert float((right.double().T@z.T[:, :8]).square().sum())==pytest.approx(8, abs=.01)
    first = overlap_of(work, files, 8)
    assert first==overlap_of(work, files, 8) and 2<first['shared']<7


def test_random_matrices_overlap_by_chance(tmp_path):
    g = torch.Generator().manual_seed(4)
    work, files = matrices(tmp_path, *(torch.randn(256, 512, generator=g) for _ in 'ab'),
                           torch.zeros(256, 512))
    got = overlap_of(work, files, 16)
    assert got['shared']/16==pytest.approx(got['by_chance']/16, abs=.02)


def test_subspaces_only_when_asked():
    assert 'overlap' not in weight_stats(*LAB)
    stats = weight_stats(*LAB, subspace=100)
    assert stats['rank'].max()==64 and set(stats.filter(pl.col('rank')>0)['module'])=={'attention', 'mlp'}
    for bad in (-1, 1.5, True):
        with pytest.raises(ValueError, match='subspace'): weight_stats(*LAB, subspace=bad)
    with pytest.raises(ValueError, match='name the base|Name the base'): weight_stats(*LAB[:2], subspace=4)


# --- Faults: one sentence

def test_faults(tmp_path):
    trio = make_trio('llava', tmp_path/'a', dtype='float32')
    with pytest.raises(ValueError, match='Hidden size'): weight_stats(LAB[0], trio.llm)
    with pytest.raises(ValueError, match='Hidden size 64 in the VLM, 32 in the base'):
        weight_stats(*LAB[:2], trio.base)
    with pytest.raises(ValueError, match='not a folder'): weight_stats(trio.vlm, tmp_path/'nowhere')
    lacks = tmp_path/'lacks'
    shutil.copytree(trio.base, lacks)
    held = load_file(lacks/'model.safetensors')
    save_file({n: x for n, x in held.items() if 'layers.2.mlp.up' not in n}, lacks/'model.safetensors')
    with pytest.raises(ValueError, match='up_proj'): weight_stats(*trio[:2], lacks)
    save_file({n: x for n, x in held.items() if n!='model.norm.weight'}, lacks/'model.safetensors')
    stats = weight_stats(*trio[:2], lacks)
    assert 'final_norm' not in stats['part'].to_list()
    assert left_out(*trio[:2], lacks).filter(reason='no partner in the base')['tensors'].to_list()==[1]
    sick = edited(trio.llm, tmp_path/'sick', lambda n,
                  x: x.index_fill(0, torch.tensor([0]), float('nan')) if 'layers.1.mlp.up' in n else x)
    with pytest.raises(ValueError, match=r'layers\.1\.mlp\.up_proj.*NaN or Inf'):
        weight_stats(trio.vlm, sick, trio.base)
    huge = edited(trio.llm, tmp_path/'huge', lambda n, x: x*1e30)
    with pytest.raises(ValueError, match='too large'): weight_stats(trio.vlm, huge)


def test_nothing_moved_and_zeros(tmp_path):
    trio = make_trio('llava', tmp_path/'a')
    stats = weight_stats(trio.vlm, trio.base, trio.base)
    assert by_module(stats)['cosine'][0] is None and by_module(stats)['norm_llm'][0]==0
    found = diagnose(trio.vlm, trio.base, trio.base)
    assert found.verdict=='doubtful' and 'is the base itself' in str(found) and 'nan' not in str(found)
    flat = [edited(f, tmp_path/f'zero{i}', lambda n, x: x*0) for i, f in enumerate(trio)]
    for args in (flat, flat[:2], [trio.vlm, flat[1], flat[2]]):
        found = diagnose(*args)
        assert found.verdict in LEVELS and 'nan' not in str(found)
        assert 'inf' not in str(found).replace('information', '')
        for x in found.stats.select(pl.selectors.float()): assert x.is_nan().sum()==0
    assert diagnose(*flat).verdict in ('doubtful', 'expect a loss')


# --- Lineage

def test_the_nearest_base_comes_first(tmp_path):
    trio = make_trio('llava', tmp_path/'a')
    far, child = make_llm('llava', tmp_path/'far', seed=77), make_llm('llava', tmp_path/'child',
        near=trio.base, seed=55)
    made = lineage(trio.vlm, trio.llm, [far, child, LAB[2], trio.base, tmp_path/'none'])
    assert made['candidate'].to_list()[:3]==[str(trio.base), str(child), str(far)]
    assert made['why_not'].is_null().to_list()==[True]*3+[False]*2
    assert (made['far'][:3]>=made['relative_vlm'][:3]).all()
    assert made['cosine'][2]>.9         # two models seen from a stranger lie in one direction
    only = diagnose(trio.vlm, trio.llm, candidates=[far, trio.base])
    assert only.base==str(trio.base) and 'is used' in str(only)
    better = diagnose(trio.vlm, trio.llm, far, [trio.base])
    assert 'is nearer to both models' in str(better) and better.base==str(far)
    none = diagnose(trio.vlm, trio.llm, candidates=[LAB[2]])
    assert none.base=='' and 'None of the candidate' in str(none)


# --- Verdicts

def test_the_lab_is_not_told_to_expect_a_loss():
    for args in (LAB, LAB[:2]):
        found = diagnose(*args)
        assert (found.verdict, found.sure)==(LEVELS[3], 'low') and 'no promise' in str(found)
    assert 'Without a base' in str(found)


def test_pairs_that_must_be_told(tmp_path):
    weight = {n: x.float() for n, x in stored(LAB[2]).items()}
    g = torch.Generator().manual_seed(0)
    inner = lambda n: '.layers.' in n
    of = lambda n, j: re.sub(r'layers\.(\d+)\.', lambda m: f'layers.{j(int(m[1]))}.', n)
    own = {n: x.float() for n, x in stored(LAB[1]).items()}
    cases = {
        'layers turned round': (lambda n, x: own[of(n, lambda i: 7-i)] if inner(n) else x, 'expect a loss'),
        'one layer of a stranger': (lambda n, x: x.std()*torch.randn(x.shape, generator=g)
                                    if '.layers.5.' in n and x.ndim==2 else x, 'expect a loss'),
        'numbers shuffled': (lambda n, x: x.flatten()[torch.randperm(x.numel(), generator=g)].view(x.shape)
                             if inner(n) else x, 'expect a loss'),
        'five times as long': (lambda n, x: weight[n]+5*(x-weight[n]) if inner(n) else x, 'expect a loss'),
        'half as long again': (lambda n, x: weight[n]+1.5*(x-weight[n]) if inner(n) else x, 'doubtful'),
        'random of the same length': (lambda n,
                                      x: weight[n]+
                                      (r:=torch.randn(x.shape, generator=g))*(x-weight[n]).norm()/r.norm()
                                      if inner(n) else x, 'doubtful')}
    for i, (name, (change, verdict)) in enumerate(cases.items()):
        llm = edited(LAB[1], tmp_path/str(i), change)
        found = diagnose(LAB[0], llm, LAB[2])
        assert found.verdict==verdict, (name, str(found))
        if verdict=='expect a loss': assert diagnose(LAB[0], llm).verdict==verdict, name
    config = json.loads((LAB[1]/'config.json').read_text())
    rope = {'rope_parameters': config['rope_parameters'] |
            {'rope_theta': 1e6}} if 'rope_parameters' in config else {'rope_theta': 1e6}
    llm = edited(LAB[1], tmp_path/'rope', config=rope)
    for args in ((LAB[0], llm, LAB[2]), (LAB[0], llm)):
        found = diagnose(*args)
        assert (found.verdict, found.sure)==('expect a loss', 'medium')
        assert 'rope_theta' in str(found.reasons[0])


def test_layers_are_named():
    assert ranges_said([0, 1, 2, 5, 7, 8])=='0-2, 5, 7-8' and ranges_said([])==''


def test_no_merge_possible(tmp_path):
    trio = make_trio('llava', tmp_path/'a')
    found = diagnose(LAB[0], trio.llm, LAB[2])
    assert (found.verdict, found.sure, found.stats)==(LEVELS[0], 'high', None) and 'Hidden size' in str(found)
    assert found.layers is None and found.modules is None
    odd = diagnose(*LAB[:2], trio.base)         # a base that does not fit does not forbid a linear merge
    assert odd.verdict==LEVELS[3] and 'is not used' in str(odd) and odd.base==''


def test_thresholds_are_documented():
    for t in THRESHOLDS.values(): assert isinstance(t, Threshold) and t.about and t.source
    found = diagnose(*LAB)
    assert isinstance(found, Diagnosis) and all(r.source for r in found.reasons)
    with pytest.raises(AttributeError): found.verdict = 'good'

def test_a_donor_that_hardly_moved_is_told(tmp_path):
    "Rank one in a few rows, and most numbers still the base's"
    base, llm = load_file(lab_folder()/'base'/'model.safetensors'), {}
    for name, x in base.items():
        llm[name] = x.clone()
        if x.ndim==2 and 'layers' in name: llm[name][:4] += .05*x.float().std()
    shutil.copytree(lab_folder()/'base', tmp_path/'llm')
    save_file(llm, tmp_path/'llm'/'model.safetensors', metadata={'format': 'pt'})
    found = diagnose('lab/vlm', tmp_path/'llm', 'lab/base', subspace=4, progress=False)
    said = [r.what for r in found.reasons if 'to the last bit' in r.what]
    assert len(said)==1 and "LLM's numbers in the 56 of 75 tensors that moved are" in said[0]
    assert '2606.18521' in str(found)
    whole = found.modules.row(0, named=True)
    assert whole['leading_llm']>.9>.6>whole['leading_vlm']>0 and whole['moved_share_llm']<.2
    assert 'leading_llm' in str(found) and not any('to the last bit' in r.what for r in diagnose(
        'lab/vlm', 'lab/llm', 'lab/base', progress=False).reasons)
