"""Profiles: intervals that cover, p values that keep their word, tables as they come,
and sentences that claim no more than the numbers"""
import time
import numpy as np, polars as pl, pytest
from vlm_merging.comparing.pairs import difference, sign_flip
from vlm_merging.probing.profile import mask_differences, flip_chance, profile_change, profile_table
from vlm_merging.comparing.layer_findings import change_verdict, layers_said, profile_verdict
from vlm_merging.probing.depth import Plateau, depth_table, plateau_table

def probe(cost, n=60, model='m', measure='likelihood', seed=0, noise=.3, **more):
    "A probe table: `cost` is what masking each layer costs, nats (or the share of items lost)"
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        for l, c in enumerate(cost):
            before = -1. if measure=='likelihood' else 1.
            after = before-c+noise*rng.normal() if measure=='likelihood' else float(rng.random()>=c)
            rows.append(dict(model=model, benchmark='Toy', index=str(i), measure=measure, layer=l,
                             part='layer', how='skip', kind='ab'[i%2], before=before, after=after))
    return pl.DataFrame(rows).with_columns(**{k:pl.lit(v) if isinstance(v, str) else v for k,
                                              v in more.items()})

def test_intervals_cover_and_chance_is_chance():
    rng, inside, small, trials = np.random.default_rng(1), 0, 0, 300
    gains = rng.exponential(1, (60, trials))-1                   # Skewed, true mean 0
    _, low, high = mask_differences(gains, np.ones((60, 1)), None, 2000)
    inside = ((low<=0)&(0<=high)).mean()
    assert .88<inside<.985
    small = (flip_chance(rng.normal(size=(40, 2000)))<.05).mean()
    assert .035<small<.065

@pytest.mark.parametrize('n', [1, 2, 3, 9, 13, 50])
def test_flips_agree_with_the_exact_count(n):
    rng = np.random.default_rng(n)
    whole = rng.integers(-5, 7, size=(n, 30)).astype(float)
    for column, p in zip(whole.T, flip_chance(whole)):
        exact, mid = (sign_flip(column, mid=m) for m in (False, True))
        assert p==pytest.approx(exact, abs=1e-9) if (column!=0).sum()<=12 else mid*.8<=p<=exact*1.1+1e-12

def test_flips_of_any_size_and_scale():
    rng = np.random.default_rng(0)
    g = rng.normal(.4, 1, (80, 5))
    for scale in (1e-12, 1e9): np.testing.assert_allclose(flip_chance(g*scale), flip_chance(g), rtol=1e-6)
    np.testing.assert_allclose(flip_chance(-g), flip_chance(g))
    assert (flip_chance(np.ones((30, 1)))>0).all() and flip_chance(np.ones((30, 1)))[0]<1e-8
    lone = np.r_[1e6, rng.normal(size=40)][:, None]              # One item outweighs all: its sign is a coin
    assert flip_chance(lone)[0]>.5
    assert np.isfinite(flip_chance(np.vstack([g, np.zeros((20, 5))]))).all()

def test_the_interval_is_that_of_compare():
    rng = np.random.default_rng(3)
    gains = rng.choice([-1., 0, 1], size=(90, 1), p=[.2, .7, .1])
    sizes = np.ones((90, 1))
    np.testing.assert_allclose(np.ravel(mask_differences(gains, sizes, 1., 20_000)),
                               difference(np.hstack([gains, sizes]), 20_000), atol=.006)
    nothing = np.ravel(mask_differences(np.zeros((50, 1)), np.ones((50, 1)), 1.))
    assert nothing[1]<-.03 and nothing[2]>.03  # No reply changed: that is no proof that none would

def test_many_masks_can_still_be_significant():
    rows = probe([0]*3, n=60)
    heads = pl.concat([rows.with_columns(part=pl.lit('head'), heads=pl.lit(str(h)),
                                         after=pl.col('after')-(h==7)*2) for h in range(400)])
    table = profile_table(heads, resamples=200)
    assert table.filter(heads='7')['p_holm'].max()<.001 and table.height==1200
    assert table.filter(pl.col('heads')!='7')['p_holm'].min()>.05
    assert table['heads'].to_list()[:400]==[str(h) for h in range(400)] # By layer, then by head as a number

def test_clusters_count_once():
    rows = probe([.05]*2, n=200, noise=.5)
    five = rows.with_columns(group=(pl.col('index').cast(int)//5).cast(str),
                             after=pl.col('after').first().over(pl.col('index').cast(int)//5, 'layer'))
    alone, held = profile_table(five.drop('group')), profile_table(five)
    assert held['clusters'].to_list()==[40, 40] and alone['clusters'].to_list()==[200, 200]
    assert (held['high']-held['low']>1.5*(alone['high']-alone['low'])).all() and (held['p']>alone['p']).all()

def test_order_does_not_matter():
    rows = pl.concat([probe([2, .1, 0]), probe([.5, .1, .1], measure='answer')])
    def told(r):
        return profile_table(r, 'kind').sort('measure', 'tag', 'where', 'layer'), depth_table(r,
            'kind').sort('measure', 'tag', 'where', 'versus')
    for a, b in zip(told(rows), told(rows.sample(fraction=1, shuffle=True, seed=2))): assert a.equals(b)
    assert not profile_table(rows, seed=1)['low'].equals(profile_table(rows)['low'])

def test_what_is_missing_is_counted():
    rows = probe([1, .5]).with_columns(after=pl.when(pl.col('index').is_in(['3', '4'])&(pl.col('layer')==
        0)).then(float('nan')).otherwise('after'),
                                      before=pl.when((pl.col('index')=='5')&(pl.col('layer')==
                                          1)).then(float('-inf')).otherwise('before'))
    table = profile_table(rows, 'kind')
    whole = table.filter(tag='all')
    assert whole['n'].to_list()==[58, 59] and whole['lost'].to_list()==[2, 1]
    assert whole['change'].is_finite().all() and 'Left out: 3 of 120 scores' in profile_verdict(table)
    gone = profile_table(rows.with_columns(after=pl.lit(None, pl.Float64)))
    assert gone['n'].to_list()==[0, 0] and gone['p'].null_count()==2
    assert 'nothing can be said' in profile_verdict(gone)
    some = profile_table(rows.filter((pl.col('layer')==0)|(pl.col('index').cast(int)<20)))
    assert some['n'].to_list()==[58, 19]

def test_benchmarks_splits_and_lists_of_tags():
    rows = pl.concat([probe([1, 0]), probe([0, 1], benchmark='Other', split='b', seed=5)], how='diagonal')
    skills = pl.when(pl.col('kind')=='a').then(pl.lit('["count","read"]')).otherwise(pl.lit('["read"]'))
    rows = rows.with_columns(skills=skills)
    table = profile_table(rows, ('kind', 'skills'))
    assert set(table['benchmark'])=={'Toy', 'Other'}
    assert table.filter(tag='skills', where='read', benchmark='Toy')['n'].to_list()==[60, 60]
    assert table.filter(tag='skills', where='count', benchmark='Toy')['n'].to_list()==[30, 30]
    family = table.filter(tag='all')                             # Corrected over both benchmarks
    assert family['p_holm'].max()<=1 and (family['p_holm']>=family['p']).all() and family.height==4
    two = pl.concat([probe([1, 0], split='x'), probe([1, 0], split='y', seed=2)])
    assert profile_table(two).filter(tag='split')['where'].unique().sort().to_list()==['x', 'y']
    assert profile_table([probe([1], model='a'), probe([1], model='b')])['model'].to_list()==['a', 'b']

R = probe([1, 0])
@pytest.mark.parametrize('bad,why', [(R.drop('layer'), 'has no column layer'),
                                     (R.drop('before', 'after'), 'no column before and no column after'),
                                     (R.head(0), 'is empty'),
    (pl.concat([R, R.head(1)]), 'stand more than once, rows 1, 121'),
    (R.with_columns(layer=pl.lit('first')), "Column layer must be a layer number, but is 'first'"),
    (R.with_columns(before=pl.lit('x')), "Column before must be a number, but is 'x'"),
    (R.with_columns(measure=pl.lit('answer')), 'must be between 0 and 1'),
    (R.with_columns(measure=pl.lit(None, pl.String)), 'Column measure'),
    (R.with_columns(model=pl.lit(None, pl.String)), 'Column model is empty in rows 1'),
    (R.with_columns(index=pl.lit(None)), 'Column index is empty'), ('probe.parquet', 'is a path'),
    (R.with_columns(layer=pl.lit(None, pl.Int64)), 'Column layer')])
def test_what_cannot_be_used_is_said_in_a_sentence(bad, why):
    for make in (profile_table, depth_table):
        with pytest.raises(ValueError, match=why) as e: make(bad)
        assert str(e.value).count('\n')==0 and len(str(e.value))<420

def test_the_change_of_the_change():
    a, b = probe([1, .2, 0], model='a'), probe([1, 1.2, 0], model='b', seed=1)
    made, whole = profile_change([a, b], 'a', 'b', 'kind'), profile_table([a, b], 'kind')
    one = made.filter(tag='all')
    drop = {m:whole.filter(model=m, tag='all')['change'] for m in 'ab'}
    np.testing.assert_allclose(one['change'], drop['b']-drop['a'], atol=1e-12)
    np.testing.assert_allclose(one['change_before'],
                               drop['a']); np.testing.assert_allclose(one['change_after'], drop['b'])
    assert one['p_holm'][1]<.001 and one['p_holm'][0]>.05 and set(one['model'])=={'b'}
    assert set(one['versus'])=={'a'}
    back = profile_change([a, b], 'b', 'a').filter(tag='all')
    np.testing.assert_allclose(back['change'], -one['change'])
    few = profile_change([a, b.filter(pl.col('index').cast(int)<20)], 'a', 'b')
    assert few['n'].to_list()==[20]*3
    words = change_verdict(made, whole)
    assert 'layer 1 costs more than before' in words and 'With nothing masked' in words
    for bad, why in ((('a', 'c'), "has no 'c'; it has a, b"), (('a', 'a'), 'Both models')):
        with pytest.raises(ValueError, match=why): profile_change([a, b], *bad)

def test_the_change_of_answers_is_bounded_and_exact():
    # Masking mends all
    a = probe([0, 0], measure='answer', model='a').with_columns(before=pl.lit(0.), after=pl.lit(1.))
    b = probe([1, 1], measure='answer', model='b')  # Masking breaks all
    made = profile_change([a, b], 'a', 'b')
    assert made['change'].to_list()==[-2, -2] and (made['low']==-2).all() and (made['high']>=-2).all()
    assert (made['high']<-1.5).all() and (made['p']<1e-15).all()
    words = change_verdict(profile_change([b.with_columns(model=pl.lit('v')),
                                           b.with_columns(model=pl.lit('w'))], 'v', 'w'))
    assert 'no mask of 2 shows a difference' in words

def test_depth():
    early, late = probe([3, 1, 0, 0, 0, 0], seed=1), probe([0, 0, 0, 0, 1, 3], seed=2)
    rows = pl.concat([early.with_columns(kind=pl.lit('see')),
                      late.with_columns(kind=pl.lit('think'), index=pl.col('index')+'x')])
    table = depth_table(rows, 'kind')
    see, think = (table.filter(pl.col('where')==w, pl.col('versus').is_null()).row(0, named=True)
                  for w in ('see', 'think'))
    assert abs(see['centre']-.25)<.2 and abs(think['centre']-4.75)<.2 and see['low']<see['centre']<see['high']
    apart = table.filter(pl.col('versus').is_not_null()).row(0, named=True)
    assert (apart['where'], apart['versus'])==('think', 'see') and apart['low']>3.5
    assert abs(apart['centre']-4.5)<.3
    assert 'think lies deeper than see by 4.' in profile_verdict(profile_table(rows, 'kind'), table)
    assert depth_table(probe([0]*4))['centre'].null_count()==1                       # Nothing hurts: no depth
    # What helps carries it out of the model
    assert depth_table(probe([2, -1.9, 0, 0]))['centre'].null_count()==1
    assert depth_table(probe([1, 1, 0], n=8))['centre'].null_count()==1              # Too few to draw from
    assert not depth_table(probe([1])).height                                       # One layer has no depth
    same = depth_table(rows.with_columns(kind=pl.lit('["see","think"]')), 'kind')
    versus = same.filter(pl.col('versus').is_not_null())
    assert versus['low'].item()==versus['high'].item()==0

def test_ranges_of_layers_have_no_depth_but_a_row():
    rows = pl.concat([R, R.with_columns(layers=pl.lit('0-1'), layer=pl.lit(0, pl.Int64))],
                     how='diagonal').unique(['index', 'layers', 'layer'], maintain_order=True)
    table = profile_table(rows)
    assert '0-1' in table['layers'].to_list() and depth_table(rows)['layers'].to_list()==[2]

def test_the_verdict_claims_nothing_of_noise():
    claims = 0
    for seed in range(20):
        said = profile_verdict(profile_table(probe([0]*12, seed=seed), 'kind', resamples=1000))
        claims += said.count('matter (')+said.count('matter,')+said.count('matters')+said.count('helps')
        assert 'would be missed' in said
    assert claims<=6                                             # 40 families at .05
    assert 'Give the table' in str(pytest.raises(ValueError, profile_verdict,
                                                 pl.DataFrame(dict(a=[1]))).value)
    assert layers_said([3, 1, 2, 9])=='layers 1-3, 9' and layers_said([4])=='layer 4'

def test_a_large_profile_takes_seconds():
    n, depth, ways = 1000, 24, 6
    m, rng = depth*ways, np.random.default_rng(0)
    layer, way, item = np.tile(np.arange(m)%depth, n), np.tile(np.arange(m)//depth,
        n), np.repeat(np.arange(n), m)
    rows = pl.DataFrame(dict(model='m', benchmark='Toy', index=item.astype(str), measure='likelihood',
                             layer=layer, kind=(item%3).astype(str), part=way.astype(str),
                             how='skip', before=0., after=rng.normal(size=n*m)))
    start = time.process_time()
    table = profile_table([rows, rows.with_columns(measure=pl.lit('answer'), before=pl.lit(1.),
                                                   after=(pl.col('after')>-1).cast(float))], 'kind')
    assert table.height==2*4*m and time.process_time()-start<25

def test_few_items_have_no_interval_in_nats_and_many_masks_no_significance():
    table = profile_table(probe([2, 2, 2], n=8))
    assert table['low'].null_count()==table.height and table['p'].null_count()==0
    said = profile_verdict(profile_table(probe([3]*12, n=5)))
    assert 'no change can be told from chance' in said
    assert 'matter' not in said.replace('may still matter', '')

def test_the_correction_is_over_all_masks_of_a_place():
    from vlm_merging.comparing.pairs import holm
    rows = pl.concat([probe([.2, .1, 0, .05], n=40, part=p, benchmark=b) for p in ('layer', 'mlp')
                      for b in ('A', 'B')])
    table = profile_table(rows)
    assert np.allclose(table['p_holm'], holm(table['p'].to_list()))

def test_graded_answers_can_be_sure_among_a_thousand_heads():
    rng = np.random.default_rng(0)
    rows = pl.concat([probe([.5], n=60).with_columns(heads=pl.lit(str(h)), part=pl.lit('head'),
                                                     measure=pl.lit('answer'), before=pl.lit(1.),
                                                    after=pl.Series(rng.uniform(.1, .4, 60)))
                                                    for h in range(300)])
    assert profile_table(rows)['p_holm'].max()<1e-6

def test_tags_may_have_any_name_but_those_of_the_table():
    rows = probe([.5, .1]).with_columns(i=pl.lit('a'), j=pl.lit('b'), was=pl.lit('c'), cost=pl.lit('d'),
                                        protocol=pl.col('kind'), run=pl.col('index'), cluster=pl.lit('z'))
    both = pl.concat([rows, rows.with_columns(model=pl.lit('n'))])
    assert profile_table(rows, 'i').height==4
    assert profile_change(both, 'm', 'n', ('j', 'was', 'cost')).height==8 and depth_table(rows, 'cost').height
    with pytest.raises(ValueError, match='layer is a column of the probe itself'):
        profile_table(rows, 'layer')

def test_every_item_lost_is_as_sure_as_can_be():
    rng = np.random.default_rng(0)
    for n in range(13, 40): assert flip_chance(-rng.uniform(1, 10, (n, 1)))[0]==2.**(1-n)


def test_a_plateau_is_of_one_model_and_needs_every_kind():
    "Rows of windows, of other ways and of few items do not count; where one kind is open, so is the whole"
    def rows(model, lows, where='see', tag='kind', how='blind', last=3):
        return [dict(model=model, measure='answer', benchmark='b', tag=tag, where=where, layer=l,
                     layers=f'{l}-{last}' if l<last else str(l), part='layer', how=how, heads='', n=50,
                     clusters=50, before=1., after=1., change=low and low+.01, low=low,
                     high=low and low+.02, p=.1, p_holm=1., lost=0) for l, low in enumerate(lows)]
    lows = [-.5, -.05, -.015, -.01]
    both = pl.DataFrame([*rows('v', lows, 'all', 'all'), *rows('v', lows),
                         *rows('v', [-.5, -.2, -.1, -.01], 'think'),
                         *rows('v', lows, how='skip'), *rows('v', lows[:2], last=1), *rows('w', lows)])
    table = plateau_table(both)
    found = {(r['model'], r['where']): (r['needed'], r['start']) for r in table.to_dicts()}
    assert found=={('v', 'all'): (1, 2), ('v', 'see'): (1, 2), ('v', 'think'): (2, 3), ('w', 'see'): (1, 2)}
    assert Plateau(table).layers=='3-' and Plateau(table.filter(model='w')).layers=='2-'
    few = plateau_table(pl.DataFrame([*rows('v', lows), *rows('v', [None]*4, 'think')],
                                     infer_schema_length=None))
    assert Plateau(few).start is None and 'cannot be told' in repr(Plateau(few))
    assert not plateau_table(both.filter(how='skip')).height
    whole = both.filter(pl.col('layers').str.ends_with('3'), model='v', how='blind')
    words = profile_verdict(whole, None, table)
    assert 'blind from a layer on' in words and 'from layer 3 on the picture is not needed' in words
