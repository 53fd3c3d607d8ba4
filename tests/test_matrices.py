"Methods of whole matrices: computed in other ways, in stacks, on disk, and with numbers that spoil them"
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlm_merging import iso_c, ip_merging, lab_folder, merge, neuron_fusion, plan, wudi
from vlm_merging.merging.merge import merged_blocks
from vlm_merging.merging.methods import METHODS

WHOLE = [name for name, m in METHODS.items() if m.whole]

def trio(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=rng)
    return base+.1*torch.randn(shape, generator=rng), base+.3*torch.randn(shape, generator=rng), base

def test_whole_methods_say_so(): assert WHOLE==['iso_c', 'wudi', 'ip_merging']

@pytest.mark.parametrize('shape', [(9, 14), (14, 9), (8, 8)])
def test_iso_c_by_numpy(shape):
    vlm, llm, base = trio(*shape)
    u, s, v = np.linalg.svd((.7*(vlm-base)+.4*(llm-base)).double().numpy(), full_matrices=False)
    want = base.double()+torch.from_numpy(s.mean()*u@v)
    assert torch.allclose(iso_c(vlm, llm, base, weight=.7, llm_weight=.4).double(), want, atol=1e-5)

@pytest.mark.parametrize('shape', [(9, 14), (14, 9), (8, 8), (5, 40), (40, 5)])
def test_wudi_is_where_the_interference_is_least(shape):
    "The gradient of what the paper minimizes, with the ridge, is zero"
    vlm, llm, base = (t.double() for t in trio(*shape))
    tau = wudi(*(t.float() for t in (vlm, llm, base)), ridge=.01).double()-base
    ts = [vlm-base, llm-base]
    ridge = .01*sum(1. for _ in ts)/shape[1]
    gradient = sum((tau-t)@t.T@t/t.square().sum() for t in ts)+ridge*tau
    assert gradient.norm()<1e-4*sum((t@t.T@t/t.square().sum()).norm() for t in ts)

@pytest.mark.parametrize('ridge', [.01, 1e-4])
@pytest.mark.parametrize('shape', [(96, 64), (64, 96), (64, 64), (20, 64)])
def test_wudi_of_low_rank_is_that_of_float64(shape, ridge):
    "As of LoRA: the ridge is far below the last digit that float32 has beside the first eigenvalue"
    rng = torch.Generator().manual_seed(0)
    vlm, llm = (torch.randn(shape[0], 3, generator=rng)@torch.randn(3, shape[1], generator=rng)
                for _ in range(2))
    units = [t.double()/t.double().norm() for t in (vlm, llm)]
    gram = sum(u.T@u for u in units)
    gram += ridge*gram.trace()/len(gram)*torch.eye(len(gram)).double()
    pulled = sum(t.double().norm()*u@u.T@u for t, u in zip((vlm, llm), units))
    want = torch.linalg.solve(gram, pulled.T).T
    got = wudi(vlm, llm, torch.zeros(shape), ridge=ridge)
    assert got.dtype==torch.float32 and (got-want).norm()<2e-6*want.norm()

def test_wudi_weighs_each_side():
    vlm, llm, base = trio(6, 10)
    parts = wudi(vlm, llm, base, llm_weight=0.)+wudi(vlm, llm, base, weight=0.)-base
    assert torch.allclose(parts, wudi(vlm, llm, base), atol=1e-5)

@pytest.mark.parametrize('rank', [2, 1024])
def test_ip_merging_by_numpy(rank):
    vlm, llm, base = trio(9, 14)
    def parts(delta):
        _, s, v = np.linalg.svd((delta-base).double().numpy(), full_matrices=False)
        return s.sum(), v[:rank]
    (s, mine), (t, theirs) = parts(vlm), parts(llm)
    q = []
    for direction in theirs:
        cosines = mine@direction
        w = np.exp(32*np.abs(cosines))*np.sign(cosines)
        q.append(w@mine/np.exp(32*np.abs(cosines)).sum())
    q = np.array(q)
    want = vlm.double()+torch.from_numpy(.5*s/t*(llm-base).double().numpy()@q.T@q)
    merged = ip_merging(vlm, llm, base, llm_weight=.5, rank=rank, alike=0.)
    assert torch.allclose(merged.double(), want, atol=1e-4)

@pytest.mark.parametrize('name', WHOLE)
def test_a_task_vector_of_zeros_does_no_harm(name):
    vlm, llm, base = trio(6, 4)
    method = METHODS[name].formula
    for a, b in ((vlm, base), (base, llm), (base, base)): assert method(a, b, base).isfinite().all()
    assert torch.equal(method(base, base, base), base)

@pytest.mark.parametrize('name', WHOLE)
def test_one_bad_number_does_not_stop_the_formula(name):
    vlm, llm, base = trio(6, 4)
    llm[2, 1] = float('nan')
    assert METHODS[name].formula(vlm, llm, base).isnan().any()

@pytest.mark.parametrize('name', WHOLE)
def test_a_stack_of_experts_is_merged_one_by_one(name):
    stacks = trio(3, 6, 4)
    held = dict(zip('vlm llm base'.split(), stacks))
    entry = SimpleNamespace(shape=(3, 6, 4), numel=72, dtype='F32')
    knobs = {k.name: k.default for k in METHODS[name].knobs.values()}
    work = SimpleNamespace(vlm=(entry,), knobs=knobs, more=(), pair=SimpleNamespace(key='w'),
                           sides=lambda method: list(held))
    def source(who): return SimpleNamespace(read=lambda i, j: held[who].flatten()[i:j].clone())
    merged = torch.cat(list(merged_blocks(work, METHODS[name], source))).view(3, 6, 4)
    for i in range(3): assert torch.equal(merged[i], METHODS[name].formula(*(t[i] for t in stacks)))

@pytest.mark.parametrize('name', [*WHOLE, 'neuron_fusion'])
def test_on_disk_it_is_the_formula(name, tmp_path):
    folders = [lab_folder()/who for who in ('vlm', 'llm', 'base')]
    for workers in (1, 3):
        merge(*folders, method=name, out=tmp_path/f'{workers}', workers=workers, progress=False)
    one, two = (load_file(tmp_path/w/'model.safetensors') for w in '13')
    assert all(torch.equal(one[n], two[n]) for n in one)
    vlm, llm, base = (load_file(f/'model.safetensors') for f in folders)
    whole = dict(iso_c=iso_c, wudi=wudi, ip_merging=ip_merging, neuron_fusion=neuron_fusion)[name]
    for w in plan(*folders, method=name).merged:
        want = whole(*(m[n].float() for m, n in ((vlm, w.pair.vlm), (llm, w.pair.llm[0]), (base,
            w.pair.llm[0]))))
        assert torch.allclose(one[w.pair.vlm].float(), want, rtol=2**-7, atol=1e-6), w.pair.vlm

@pytest.mark.parametrize('method', [iso_c, wudi, neuron_fusion])
def test_two_llms_one_of_which_has_no_say(method):
    vlm, llm, base = trio(6, 10)
    both = method(vlm, (llm, base), base, weight=[.8, .3, 0.])
    assert torch.allclose(both, method(vlm, llm, base, weight=.8, llm_weight=.3), atol=1e-5)

def test_ip_merging_takes_one_llm_and_says_so():
    with pytest.raises(ValueError, match='ip_merging merges a VLM with one LLM.*iso_c'):
        plan('lab/vlm', ['lab/llm', 'lab/base'], 'lab/base', method='ip_merging')

def test_iso_c_lifts_no_rounding_error():
    "(W + ΔW) - W in float32 is not of the rank of ΔW; what rounding adds is no direction"
    torch.manual_seed(0)
    w = torch.randn(256, 256)*.02
    delta = (torch.randn(256, 4)*1e-3)@(torch.randn(4, 256)*1e-3)
    mean = torch.linalg.svdvals(delta.double())[:4].sum()/256
    got = iso_c(w, w+delta, w)-w
    assert (got.norm()/(mean*2)-1).abs()<.05                     # Four directions of one strength

def test_ip_merging_stops_where_the_vlm_stands_for_the_base(tmp_path):
    "Named twice, or under an adapter that was named alone, it has no direction of its own"
    made = plan('lab/vlm', 'lab/llm', 'lab/vlm', method='ip_merging')
    assert 'Name the LLM that it was built on as `base`' in str(made.stops[0]) and not made.merged
    assert not plan('lab/vlm', 'lab/llm', 'lab/base', method='ip_merging').stops
