"The formulas: against PEFT, against three numbers worked by hand, whole or in blocks, and in half precision"
import copy, importlib, inspect
from functools import partial
import pytest, torch
from peft.utils import merge_utils as peft
from safetensors.torch import load_file
from vlm_merging.asking.models import LocalModel
from vlm_merging.asking.opening import open_model
from vlm_merging.benchmarks.items import Item
from vlm_merging.cli.commands import shell_options
from vlm_merging.cli.main import COMMANDS
from vlm_merging.merging import knobs as room_of_knobs, merge as room
from vlm_merging.merging.merge import merge
from vlm_merging.merging.coins import drop, drop_by_rank, name_rng
from vlm_merging.merging.largest import cuts
from vlm_merging.merging.methods import (METHODS, Scale, Share, elect_signs, blockwise, breadcrumbs,
                                         dare_linear,
    dare_ties, della, energies, linear, merge_method, sce, slerp, task_arithmetic, ties, trims)
from vlm_merging.merging.plan import plan
from vlm_merging.merging.recipe import Recipe
from vlm_merging.probing.sweep import sweep
from vlm_merging.lab.tiny import make_trio

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings('ignore:The density')
WEIGHTS = [(1., 1.), (1.6, .2), (.3, 2.5)]


def vec(*xs): return torch.tensor(xs)


def three(seed=0, shape=(48, 60)):
    "VLM, LLM and base; all sizes within a task vector differ, and every difference is exact"
    g, n = torch.Generator().manual_seed(seed), shape[0]*shape[1]
    base = torch.randint(-4000, 4000, (n,), generator=g)
    def walk(): return (torch.randperm(n, generator=g)+1) * (torch.randint(0, 2, (n,), generator=g)*2-1)
    return [(x/4096).view(shape) for x in (base+walk(), base+walk(), base)]


def rough(seed=0, shape=(48, 60), dtype=torch.float32):
    "As in real checkpoints: differences of short numbers, thousands of which have the same size"
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g).bfloat16().float()
    near = [(base + .05*torch.randn(shape, generator=g)).bfloat16().float() for _ in range(2)]
    return [x.to(dtype) for x in (*near, base)]


def trimmed(delta, density):
    "The largest entries, the first among equals, by a stable sort"
    keep = delta.abs().flatten().argsort(descending=True, stable=True)[:int(density*delta.numel())]
    return torch.where(torch.zeros(delta.numel()).index_fill(0, keep, 1.).view(delta.shape)>0, delta, 0)


# --- Against PEFT

@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('density', [.01, .2, .5, .93, 1.])
def test_ties_is_that_of_peft(weights, density):
    v, l, b = three()
    theirs = b + peft.ties([v-b, l-b], torch.tensor(weights), density)
    assert torch.equal(ties(v, l, b, weight=weights[0], llm_weight=weights[1], density=density), theirs)


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('density', [.2, .75, 1.])
def test_breadcrumbs_without_outliers_is_magnitude_prune(weights, density):
    v, l, b = three(1)
    theirs = b + peft.magnitude_prune([v-b, l-b], torch.tensor(weights), density)
    mine = breadcrumbs(v, l, b, weight=weights[0], llm_weight=weights[1], density=density, outliers=0.)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('weights', WEIGHTS)
def test_task_arithmetic_is_that_of_peft(weights):
    v, l, b = three(2)
    theirs = b + peft.task_arithmetic([v-b, l-b], torch.tensor(weights))
    mine = task_arithmetic(v, l, b, weight=weights[0], llm_weight=weights[1])
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('density', [.25, .5, 1.])
@pytest.mark.parametrize('mine,theirs', [(dare_linear, peft.dare_linear), (dare_ties, peft.dare_ties)])
@pytest.mark.parametrize('rescale', [True, False])
def test_dare_with_the_same_coins_is_that_of_peft(mine, theirs, density, weights, rescale, monkeypatch):
    v, l, b = three(3)
    masks = iter([(drop(torch.ones_like(b), density, g)!=0).float() for g in name_rng(7, 'w')])
    coin = lambda t, *a, **k: next(masks)   # what `torch.bernoulli` gives to PEFT
    monkeypatch.setattr(peft.torch, 'bernoulli', coin)
    if not rescale:
        prune = peft.random_pruning
        monkeypatch.setattr(peft, 'random_pruning', lambda t, d, rescale: prune(t, d, rescale=False))
    expected = b + theirs([v-b, l-b], torch.tensor(weights), density)
    how = dict(weight=weights[0], llm_weight=weights[1], density=density, rescale=rescale)
    done = mine(v, l, b, name_rng(7, 'w'), **how)
    torch.testing.assert_close(done, expected, rtol=1e-6, atol=1e-6)
    assert (done!=b).any()


# --- Three numbers by hand

@pytest.mark.parametrize('weight,elect,divide,expected', [
    (1., 'unweighted', 'count', [-3., -2., .5]),    # plain sums -2, -1 and 1: the LLM, the VLM, both
    (4., 'unweighted', 'count', [-3., -8., 1.25]),  # the vote stays, the VLM's share grows
    (4., 'weighted', 'count', [4., -8., 1.25]),     # 4 - 3 > 0: the first entry changes sides
    (4., 'weighted', 'weights', [1., -2., .5]),     # each divided by the weights that spoke
    (4., 'weighted', 'none', [4., -8., 2.5])])
def test_election_by_hand(weight, elect, divide, expected):
    v, l = vec(1., -2., .5), vec(-3., 1., .5)
    how = dict(weight=weight, llm_weight=1., density=1., elect=elect, divide=divide)
    assert torch.equal(ties(v, l, torch.zeros(3), **how), vec(*expected))
    assert torch.equal(dare_ties(v, l, torch.zeros(3), name_rng(0, 'w'), **how), vec(*expected))
    assert torch.equal(ties(v+2, l+2, torch.full((3,), 2.), **how), vec(*expected)+2)


def test_a_tied_vote_goes_to_plus_as_in_peft():
    v, l, b = vec(1., -2., 0.), vec(-1., 2., 0.), torch.zeros(3)
    assert torch.equal(ties(v, l, b, weight=1., llm_weight=1., density=1.), vec(1., 2., 0.))
    assert torch.equal(peft.ties([v, l], torch.ones(2), 1.), vec(1., 2., 0.))


def test_trim_by_hand():
    "Density 2/3 of (1, -3, 2) keeps two; of three equals the first two"
    kept = ties(vec(1., -3., 2.), torch.zeros(3), torch.zeros(3), weight=1., llm_weight=1., density=.67)
    assert torch.equal(kept, vec(0., -3., 2.))
    kept = ties(vec(-1., 1., -1.), torch.zeros(3), torch.zeros(3), weight=1., llm_weight=1., density=.67)
    assert torch.equal(kept, vec(-1., 1., 0.))


def test_breadcrumbs_by_hand():
    "(3, -9, 1): the outlier -9 goes, then the largest that is left stays; the LLM's (0, 2, 6) keeps its 2"
    v, l, how = vec(3., -9., 1.), vec(0., 2., 6.), dict(density=.34, outliers=.34)
    done = breadcrumbs(v, l, torch.zeros(3), weight=1., llm_weight=.5, **how)
    assert torch.equal(done, vec(3., 1., 0.))


def test_sce_by_hand():
    "(2, 2, 0) and (-1, 2, 0): energies 8 and 5; the VLM wins the first entry, in the second both agree"
    v, l, b = vec(2., 2., 0.), vec(-1., 2., 0.), torch.zeros(3)
    assert energies([(v, l, b)], 3, density=1.)[1]==pytest.approx((8/13, 5/13))
    torch.testing.assert_close(sce(v, l, b, density=1.), vec(2., 2., 0.))
    torch.testing.assert_close(sce(v, l, b, density=.34), vec(2., 0., 0.))    # they differ most in the first


def test_slerp_by_hand():
    "Half way along 120 degrees is 60 degrees, of the same length"
    v, l = vec(1., 0., 0.), vec(-.5, 3**.5/2, 0.)
    torch.testing.assert_close(slerp(v, l, weight=.5), vec(.5, 3**.5/2, 0.))
    torch.testing.assert_close(slerp(v, -v, weight=.75), vec(.5, 0., 0.))     # opposite: the line
    assert torch.equal(slerp(0*v, 0*v, weight=.5), 0*v)


def test_della_by_hand():
    "Density 1/2 and epsilon 1: the smallest of a row is never kept, the largest always, and unscaled"
    rows = vec(5., -1., 3.).repeat(400, 1)
    kept = drop_by_rank(rows, .5, 1., name_rng(0, 'w')[0])
    assert (kept[:, 0]==5).all() and (kept[:, 1]==0).all()
    assert set(kept[:, 2].tolist())=={0., 6.}
    assert abs(float((kept[:, 2]!=0).float().mean())-.5)<.1
    assert set(drop_by_rank(rows, .5, 1., name_rng(0, 'w')[0], rescale=False)[:, 2].tolist())=={0., 3.}


# --- The ends

@pytest.mark.parametrize('method', [linear, slerp])
def test_weight_1_is_the_vlm_and_weight_0_the_llm(method):
    v, l, _ = rough()
    assert torch.equal(method(v, l, weight=1.), v)
    assert torch.equal(method(v, l, weight=0.), l)
    assert not torch.equal(method(v, l, weight=.5), v)


@pytest.mark.parametrize('weight', [0., 1e-8, .1, 1/3, .49999, .5, .85, .9, 1.])
@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16], ids=str)
def test_linear_in_16_bits_is_that_of_float32_rounded_once(kind, weight):
    "Every number of 16 bits with others, and with some of each odd kind; NaN is NaN, sizes that do not align"
    every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(kind)
    shuffled = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    size = torch.finfo(kind)
    odd = [every[~every.isfinite()][::99], every[every.abs()<size.smallest_normal][::99],
           every[every.abs()>size.max/2][::99], vec(0., -0., 1., -1.).to(kind)]    # some of each
    for other in (shuffled, *(x.expand(len(every)).contiguous() for x in torch.cat(odd)[::4])):
        for a, b in ((every[1:-1], other[1:-1]), (other[1:-1], every[1:-1])):
            once, exact = linear(a, b, weight=weight), linear(a.float(), b.float(), weight=weight).to(kind)
            assert once.dtype==kind and torch.equal(once.isnan(), exact.isnan())
            same = once.view(torch.int16)==exact.view(torch.int16)
            assert (same | once.isnan()).all()


@pytest.mark.parametrize('method', [ties, dare_linear, dare_ties, breadcrumbs, della, sce],
                         ids=lambda m: m.__name__)
def test_density_0_is_the_base(method):
    v, l, b = rough()
    how = dict(epsilon=0.) if method is della else dict(outliers=0.) if method is breadcrumbs else {}
    rng = dict(rng=name_rng(0, 'w')) if 'rng' in METHODS[method.__name__].fills else {}
    assert torch.equal(method(v, l, b, density=0., **how, **rng), b)
    assert not torch.equal(method(v, l, b, density=.5, **how, **rng), b)


def test_density_1_drops_nothing():
    v, l, b = rough()
    how, rng = dict(weight=.8, llm_weight=.7), name_rng(0, 'w')
    plain = task_arithmetic(v, l, b, **how)
    assert torch.equal(breadcrumbs(v, l, b, **how, density=1., outliers=0.), plain)
    torch.testing.assert_close(dare_linear(v, l, b, rng, **how, density=1.), plain, rtol=1e-6, atol=1e-6)
    voted = ties(v, l, b, **how, density=1.)
    assert torch.equal(dare_ties(v, l, b, rng, **how, density=1.), voted)
    assert torch.equal(della(v, l, b, rng, **how, density=1., epsilon=0.), voted)
    torch.testing.assert_close(task_arithmetic(v, l, b, weight=.7, llm_weight=.3), linear(v, l, weight=.7))
    torch.testing.assert_close(task_arithmetic(v, l, b, weight=1., llm_weight=0.), v)


# --- Exactly k, always the same ones

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('step', [1, 7, 256, 10**6])
@pytest.mark.parametrize('density', [0., .001, .2, .5, .999, 1.])
def test_trims_keep_exactly_k_and_the_first_among_equals(dtype, step, density):
    v, l, b = (x.flatten() for x in rough(shape=(20, 50), dtype=dtype))
    assert len((v-b).abs().unique())<len(v)/2
    blocks = list(zip(*(x.split(step) for x in (v, l, b))))
    for delta, cut in zip((v-b, l-b), trims(blocks, len(v), density=density)):
        once, kept = copy.copy(cut), torch.cat([cut.trim(d) for d in delta.split(step)])
        mask = torch.cat([once.keep(d.abs()) for d in delta.split(step)])
        assert int(mask.sum())==int(density*len(v))
        assert torch.equal(kept, trimmed(delta, density)) and torch.equal(kept, delta*mask)


@pytest.mark.parametrize('values', [[0.], [1.], [0., 1.], [-2., 2., 1.], [6e-8, 65504.], [float('inf'), 1.]])
@pytest.mark.parametrize('k', [0, 1, 333, 999, 1000])
def test_trims_on_tensors_of_few_values(values, k):
    delta = vec(*values).repeat(1000)[:1000]
    cut = trims([(delta, delta, torch.zeros(1000))], 1000, density=k/1000)[0]
    assert torch.equal(cut.trim(delta), trimmed(delta, k/1000))


# --- Whole or in blocks

EXACT = ('linear', 'task_arithmetic', 'ties', 'dare_linear', 'dare_ties', 'breadcrumbs', 'della')


@pytest.mark.parametrize('step', [1, 3, 16, 47])
@pytest.mark.parametrize('name', [name for name, m in METHODS.items() if not m.whole])
def test_blocks_of_rows_change_nothing(name, step):
    "Rows have 60 numbers, a multiple of four, as coins are tossed four at a time"
    method, tensors = METHODS[name], rough(4)
    tensors = tensors[:3 if 'base' in method.fills else 2]
    knobs = {k.name:k.default for k in method.knobs.values()}
    def run(step):
        blocks = list(zip(*(t.split(step) for t in tensors)))
        return torch.cat(list(blockwise(method, blocks, tensors[0].numel(), name_rng(0, 'w'), **knobs)))
    if name in EXACT: assert torch.equal(run(step), run(48))
    else: torch.testing.assert_close(run(step), run(48), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('step', [12, 1000])
@pytest.mark.parametrize('name', METHODS)
def test_blocks_of_any_size_make_the_same_file(name, step, trio, monkeypatch, tmp_path):
    recipe = Recipe(*trio, name, seed=3, layers='3-')
    whole = merge(recipe, out=tmp_path/'whole')/'model.safetensors'
    monkeypatch.setattr(room, 'BLOCK', step)
    assert (merge(recipe, out=tmp_path/'parts')/'model.safetensors').read_bytes()==whole.read_bytes()


@pytest.fixture(scope='module')
def trio(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('trio'))


# --- Coins

def test_coins_are_fair_and_independent():
    n, density = 400_000, .2
    one, two = (drop(torch.ones(n), density, g)!=0 for g in name_rng(0, 'w'))
    other = drop(torch.ones(n), density, name_rng(0, 'v')[0])!=0
    seeded = drop(torch.ones(n), density, name_rng(1, 'w')[0])!=0
    sigma = (density*(1-density)/n)**.5
    for mask in (one, two, other, seeded): assert abs(float(mask.float().mean())-density)<5*sigma
    both = density**2
    for mask in (two, other, seeded, one.roll(1), one.roll(4)):
        assert abs(float((one&mask).float().mean())-both)<5*(both*(1-both)/n)**.5
    for quarter in range(4): assert abs(float(one[quarter::4].float().mean())-density)<10*sigma


@pytest.mark.parametrize('density', [1/65536, .001, .1, .37, .9, 65535/65536])
def test_dropping_keeps_its_share_and_the_mean(density):
    n = 1_000_000
    kept = drop(torch.ones(n), density, name_rng(2, 'w')[0])
    share, sigma = float((kept!=0).float().mean()), (density*(1-density)/n)**.5
    assert abs(share-density)<5*sigma+1e-5
    assert float(kept.double().mean())==pytest.approx(share/density, rel=.01)
    assert drop(torch.ones(n), density, name_rng(2, 'w')[0], rescale=False).unique().tolist()==[0., 1.]


def test_coins_are_the_same_everywhere():
    "Written down: a new version must not change the merges of an old recipe"
    kept = drop(torch.ones(24), .5, name_rng(0, 'layers.0.mlp.up_proj.weight')[0])!=0
    assert ''.join(map(str, kept.int().tolist()))=='111110100111001111110011'


# --- What sets each method apart

def test_slerp_keeps_the_length_and_divides_the_angle():
    v, l, _ = rough(5)
    v, l = (x/x.norm() for x in (v, torch.randn(v.shape, generator=torch.Generator().manual_seed(1))))
    angle = torch.arccos((v*l).sum())
    for weight in (.9, .5, .2):
        mixed = slerp(v, l, weight=weight)
        torch.testing.assert_close(mixed.norm(), torch.tensor(1.), rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.arccos((v*mixed).sum()), (1-weight)*angle, rtol=1e-4, atol=1e-4)
        assert linear(v, l, weight=weight).norm()<.99


@pytest.mark.parametrize('density,outliers', [(.5, .1), (.9, .01), (.2, .8), (1., .3)])
def test_breadcrumbs_keep_the_middle(density, outliers):
    v, _, b = three(6)
    n, delta = v.numel(), v-b
    change = breadcrumbs(v, b, b, weight=1., llm_weight=1., density=density, outliers=outliers)-b
    rank = delta.abs().flatten().argsort(descending=True).argsort().view(delta.shape)
    top = int(outliers*n)
    assert torch.equal(change!=0, (rank>=top) & (rank<min(n, top+int(density*n))))
    assert torch.equal(change[change!=0], delta[change!=0])


@pytest.mark.parametrize('density', [.01, .1, .5])
def test_sce_changes_only_what_differs_most(density):
    v, l, b = three(7)
    done = sce(v, l, b, density=density)
    differs = (v-l).abs()
    k = int(density*v.numel())
    cut = differs.flatten().sort(descending=True).values[k]
    assert torch.equal(done[differs<cut], b[differs<cut])
    assert (done[differs>cut]!=b[differs>cut]).float().mean()>.9 and int((done!=b).sum())<=k
    loud = energies([(b+10*(v-b), l, b)], v.numel(), density=density)[1]
    assert loud[0]>.9 and sum(loud)==pytest.approx(1)


def test_della_prefers_the_large_within_each_row():
    g = torch.Generator().manual_seed(8)
    delta = torch.randn(500, 100, generator=g) * torch.logspace(-3, 3, 500)[:, None]
    kept = drop_by_rank(delta, .4, .4, name_rng(0, 'w')[0])
    rank = delta.abs().argsort(-1).argsort(-1)
    share = [float((kept!=0)[rank==r].float().mean()) for r in range(100)]
    for r in (0, 25, 50, 75, 99): assert abs(share[r]-(.2+.4*r/99))<.11
    assert abs(sum(share)/100-.4)<.01                       # and in rows of any loudness
    assert abs(float((kept[:250]!=0).float().mean()-(kept[250:]!=0).float().mean()))<.02
    ones = drop_by_rank(torch.ones(500, 100), .4, 0., name_rng(0, 'w')[0])
    assert abs(float(ones.mean())-1)<.05


def test_agreed_never_flips_a_side():
    v, l, b = rough(9)
    for elect in ('unweighted', 'weighted'):
        for divide in ('count', 'weights', 'none'):
            change = elect_signs([v-b, l-b], (1.5, .5), elect, divide)
            assert change.isfinite().all()
            assert not ((change>0) & (v<=b) & (l<=b)).any() and not ((change<0) & (v>=b) & (l>=b)).any()


# --- The seam: one's own method

@pytest.fixture
def methods():
    "METHODS, as it was afterwards"
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def test_a_method_of_ones_own(methods, trio, tmp_path):
    @merge_method
    def louder(
        vlm:torch.Tensor,     # Any shape
        llm:torch.Tensor,     # Same shape
        *,
        boost:Scale=1.,        # Factor of the LLM where it wins
    )->torch.Tensor:
        "Whichever is larger"
        return torch.where(vlm.abs()>=llm.abs(), vlm, boost*llm)

    assert (methods['louder'].fills, list(methods['louder'].knobs))==(('vlm', 'llm'), ['boost'])
    assert methods['louder'].knobs['boost'].about=='Factor of the LLM where it wins'
    assert torch.equal(louder(vec(1., -3.), vec(2., 2.), boost=.5), vec(1., -3.))
    out = merge(Recipe(trio.vlm, trio.llm, method='louder', knobs=dict(boost=.5), layers='1-'),
                out=tmp_path/'out')
    vlm, llm, done = (load_file(f/'model.safetensors') for f in (trio.vlm, trio.llm, out))
    for n in llm:
        v, l, d = vlm['language_model.'+n], llm[n], done['language_model.'+n]
        inside = 'layers.' in n and 'layers.0.' not in n or n=='model.norm.weight'
        assert torch.equal(d, torch.where(v.abs()>=l.abs(), v, (.5*l.float()).bfloat16()) if inside else v), n
    with pytest.raises(ValueError, match='from 0 to 3'):
        Recipe('v', 'l', method='louder', knobs=dict(boost=9))


def test_a_method_of_ones_own_may_look_first(methods, trio, tmp_path, monkeypatch):
    "A look goes over all blocks of a tensor before its formula does"
    def lengths(blocks, n, **_):
        return [sum(float(t.double().square().sum()) for t in ts)**.5 for ts in zip(*blocks)]

    @merge_method(look=lengths)
    def matched(vlm, llm, seen=None, *, weight:Share=.5):
        "The LLM, as long as the VLM"
        return weight*vlm + (1-weight)*llm*(seen[0]/seen[1])

    monkeypatch.setattr(room, 'BLOCK', 64)
    out = merge(Recipe(trio.vlm, trio.llm, method='matched', knobs=dict(weight=0.)), out=tmp_path/'out')
    vlm, done = (load_file(f/'model.safetensors') for f in (trio.vlm, out))
    for n in vlm: torch.testing.assert_close(done[n].float().norm(), vlm[n].float().norm(), rtol=.01, atol=0)
    n = 'language_model.model.layers.0.mlp.up_proj.weight'
    assert not torch.equal(done[n], vlm[n])


def test_methods_are_gone_afterwards():
    assert not {'louder', 'matched', 'wrong', 'loose'} & METHODS.keys()
    with pytest.raises(ValueError, match='No method'): Recipe('v', 'l', method='louder')


def test_a_wrong_signature_is_refused_when_written(methods):
    with pytest.raises(TypeError, match='Knobs come after'):
        @merge_method
        def wrong(vlm, llm, strength): return vlm
    with pytest.raises(TypeError, match='type with bounds'):
        @merge_method
        def loose(vlm, llm, *, strength:float=1.): return vlm


def test_no_knob_has_the_name_of_an_option():
    "The verbs, the models they ask and their commands in the shell would take it for their own"
    verbs = plan, merge, sweep, open_model, LocalModel
    names = {n for f in verbs for n, p in inspect.signature(f).parameters.items() if p.kind!=p.VAR_KEYWORD}
    for verb in 'plan', 'merge', 'sweep': names |= shell_options(COMMANDS[verb]).keys()
    knobs = {k for m in METHODS.values() for k in m.knobs}
    assert names-knobs<=room_of_knobs._TAKEN and not knobs & room_of_knobs._TAKEN


def test_a_formula_is_worked_on_in_a_file_that_is_loaded_again(methods, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = 'from vlm_merging import Share, merge_method\n@merge_method\n' \
           'def mine(vlm, llm, *, weight:Share=.5): return vlm\n'
    (tmp_path/'formulas.py').write_text(text)
    import formulas
    (tmp_path/'formulas.py').write_text(text.replace('.5', '.25'))
    importlib.reload(formulas)
    assert methods['mine'].knobs['weight'].default==.25
    (tmp_path/'others.py').write_text(text)
    with pytest.raises(ValueError, match="'mine' already, in formulas. Call yours otherwise"):
        importlib.import_module('others')
    assert methods['mine'].formula.__module__=='formulas'


def test_a_built_in_method_is_never_replaced(methods):
    before = methods['linear']
    with pytest.raises(ValueError, match="'linear' already, in vlm_merging.merging.methods"):
        @merge_method
        def linear(vlm, llm, *, weight:Share=.5): return llm
    assert methods['linear'] is before


@pytest.mark.parametrize('verb', [plan, partial(merge, out='never'), Recipe,
                                  partial(sweep, weights=[.5], items=[Item('1', 'How many?')])])
def test_a_method_is_asked_for_by_its_name(verb):
    with pytest.raises(ValueError, match="Give its name: method='slerp'"): verb('v', 'l', method=slerp)


# --- As the paper's script ran

def as_run(trio, out, method, knobs):
    "Tensors of the three models in float16, and what a merge made of them, by the LLM's names"
    base = trio.base if 'base' in METHODS[method].fills else None
    recipe = Recipe(trio.vlm, trio.llm, base, method, knobs, as_run=True)
    done = load_file(merge(recipe, out=out)/'model.safetensors')
    vlm, llm, base = (load_file(f/'model.safetensors') for f in trio)
    for n in llm:
        at = 'language_model.'+n
        if 'layers' in n: yield n, vlm[at].half(), llm[n].half(), base[n].half(), done[at]


@pytest.fixture(scope='module')
def halves(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('halves'), dtype='float16')


@pytest.mark.parametrize('alpha', [.9, .85, .8])
def test_as_run_linear_is_the_script_bit_for_bit(alpha, halves, tmp_path):
    other = 0
    for n, v, l, b, done in as_run(halves, tmp_path/'out', 'linear', dict(weight=alpha)):
        assert torch.equal(done, alpha*v + (1-alpha)*l), n
        other += int((done!=(alpha*v.float()+(1-alpha)*l.float()).half()).sum())
    assert other        # float32 gives other numbers


def test_as_run_on_bfloat16_files_computes_in_float16(trio, tmp_path):
    for n, v, l, b, done in as_run(trio, tmp_path/'out', 'linear', dict(weight=.9)):
        assert torch.equal(done, (.9*v + (1-.9)*l).bfloat16()), n


@pytest.mark.parametrize('weights,density', [((1.6, .2), .2), ((1., 1.), .5)])
def test_as_run_ties_is_the_script_bit_for_bit(weights, density, halves, tmp_path, monkeypatch):
    """Task vectors, trimming and votes in float16; the script's weights are a float32 tensor, so the rest is
    float32. Which of several equals `topk` keeps is not defined: here the first ones."""
    monkeypatch.setattr(peft, 'magnitude_based_pruning', trimmed)
    knobs = dict(weight=weights[0], llm_weight=weights[1], density=density)
    for n, v, l, b, done in as_run(halves, tmp_path/'out', 'ties', knobs):
        theirs = b + peft.ties([v-b, l-b], torch.tensor(weights), density)
        assert torch.equal(done, theirs.half()), n


@pytest.mark.parametrize('method', ['dare_linear', 'dare_ties'])
def test_as_run_dare_is_the_script_bit_for_bit(method, halves, tmp_path, monkeypatch):
    "The script divides by the density and throws the result away"
    coins = []
    def prune(t, density, rescale): return t * torch.bernoulli(torch.full_like(t, density))
    monkeypatch.setattr(peft, 'random_pruning', prune)
    monkeypatch.setattr(torch, 'bernoulli', lambda like: coins.pop(0))
    knobs = dict(weight=.9, llm_weight=.2, density=.25)
    for n, v, l, b, done in as_run(halves, tmp_path/'out', method, knobs):
        rng = name_rng(0, n.removeprefix('model.'))
        coins += [drop(torch.ones_like(b), .25, g, rescale=False) for g in rng]
        theirs = b + getattr(peft, method)([v-b, l-b], torch.tensor([.9, .2]), .25)
        assert torch.equal(done, theirs.half()), n

ODD_FORMULAS = {r'returned shape \(\)': lambda v: v.sum(), r'returned shape \(1,\)': lambda v: v[:1],
                r'returned shape \(6,\)': lambda v: torch.cat([v, v]), 'returned NoneType': lambda v: None}

@pytest.mark.parametrize('said', ODD_FORMULAS)
def test_a_formula_gives_back_the_shape_it_was_given(said):
    "Anything else would be written over other tensors, or leave holes"
    formula = ODD_FORMULAS[said]
    odd = METHODS['linear'].__class__('odd', lambda vlm, llm: formula(vlm), ('vlm', 'llm'), {}, None, False,
                                      '')
    with pytest.raises(ValueError, match=f'odd was given a block of shape .* {said}'):
        list(blockwise(odd, [(torch.ones(3), torch.ones(3))], 3))


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize('step', (3, 64, 1000))
def test_equals_have_their_places_in_order_whatever_the_blocks(step, dtype):
    g = torch.Generator().manual_seed(step)
    delta = (torch.randint(-3, 4, (1000,), generator=g)*.5).to(dtype)    # seven sizes: nearly all are equals
    order = delta.abs().float().sort(descending=True, stable=True).indices
    size = lambda blocks: ((b.abs(),) for b in blocks)
    for k in (0, 1, 200, 499, 500, 777, 999, 1000):
        wanted = torch.zeros_like(delta)
        wanted[order[:k]] = delta[order[:k]]
        for way in 'trim', 'keep':
            cut, = cuts(size, [delta], (k,), len(delta))
            parts = [cut.trim(b) if way=='trim' else b*cut.keep(b.abs()) for b in delta.split(step)]
            assert torch.equal(torch.cat(parts), wanted), (k, way)
