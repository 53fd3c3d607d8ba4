"Statistics: against scipy and worked cases, calibration by simulation, tables of every kind, real replies"
import time
from pathlib import Path
import numpy as np, polars as pl, pytest
from scipy import stats as scipy_stats
from vlm_merging.comparing.pairs import (
    COMPARISON_COLUMNS, comparison_table, detectable, difference, holm, items_needed, matched, mcnemar,
    sign_flip, unpaired_table)
from vlm_merging.comparing.compare import compare
from vlm_merging.comparing.statistics import typed_table, interval, values_in_tag, resampled, wilson
from vlm_merging.comparing.summary import by_length, summarize, worst_case
from vlm_merging.comparing.findings import accuracy_said, p_said, points, power_said, verdict
from vlm_merging.asking.replies import NO_REPLY
from vlm_merging.scoring.score import score

DEV = Path(__file__).resolve().parents[2]/'shared'/'eval_data'/'dev'

def table(correct, run='a', **more):
    "A score table of items 0, 1, 2, ..."
    said = dict(benchmark='Toy', split='test', run=run, index=[str(i) for i in range(len(correct))],
                correct=correct, outcome='answered', length=10)
    return pl.DataFrame(said|more)

def ones(*values): return np.stack([np.array(values, float), np.ones(len(values))], 1)

# Intervals

@pytest.mark.parametrize('k,n', [(0, 1), (1, 1), (0, 30), (30, 30), (7, 30), (460, 1000), (1, 3940)])
def test_wilson_is_that_of_scipy(k, n):
    ci = scipy_stats.binomtest(k, n).proportion_ci(method='wilson')
    assert wilson(k/n, n)==pytest.approx((ci.low, ci.high), abs=1e-12)

def test_bootstrap_agrees_with_scipy_and_does_not_depend_on_the_order_of_rows():
    values = np.random.default_rng(0).beta(2, 3, 200)
    sums = ones(*values)
    low, high, method = interval(sums)
    ref = scipy_stats.bootstrap((values,), np.mean, method='percentile', n_resamples=9999,
                                rng=np.random.default_rng(1)).confidence_interval
    assert (low, high)==pytest.approx((ref.low, ref.high), abs=.003) and method=='bootstrap'
    assert interval(sums[::-1])==(low, high, method)!=interval(sums, seed=1)

def test_few_kinds_and_many_kinds_of_clusters_are_drawn_alike():
    few = np.random.default_rng(0).integers(0, 3, 300).astype(float)
    many = few+np.linspace(0, 1e-9, 300)                        # All different: the other way of drawing
    a, b = (np.quantile(resampled(ones(*x))[:, 0], [.025, .5, .975]) for x in (few, many))
    assert a==pytest.approx(b, rel=.01)

@pytest.mark.parametrize('clusters,size', [(22, 10), (100, 5)])
def test_cluster_intervals_hold_the_truth_as_often_as_they_say(clusters, size):
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for seed in range(300):
        right = rng.binomial(size, rng.beta(1, 3, clusters)).astype(float)
        low, high, _ = interval(np.stack([right, np.full(clusters, float(size))], 1), resamples=1000,
                                seed=seed)
        hits += low<=.25<=high
        low, high = wilson(right.sum()/clusters/size, clusters*size)
        naive += low<=.25<=high
    assert .91<hits/300<.985 and naive/300<.88                  # Items taken as independent: too sure

@pytest.mark.parametrize('n,change,differ', [(40, .05, .15), (300, .03, .12), (300, 0., .02)])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(n, change, differ):
    rng, hits = np.random.default_rng(2), 0
    for seed in range(400):
        gains = rng.choice([1., -1., 0.], n, p=[(differ+change)/2, (differ-change)/2, 1-differ])
        _, low, high = difference(ones(*gains), 1000, seed)
        hits += low<=change<=high
    assert hits/400>.925

def test_paired_intervals_hold_the_truth_where_items_come_in_clusters():
    rng, hits = np.random.default_rng(3), 0
    for seed in range(300):
        moved = rng.random(50)<.3  # Problems on which the runs differ, four versions of five
        gains = rng.binomial(5, .8, 50)*np.where(rng.random(50)<.6, 1, -1)*moved
        _, low, high = difference(np.stack([gains, np.full(50, 5)], 1).astype(float), 1000, seed)
        hits += low<=.3*.8*.2<=high
    assert .92<hits/300<.99

def test_ten_thousand_resamples_of_four_thousand_items_are_quick():
    graded = ones(*np.random.default_rng(0).random(4000))
    start = time.process_time()
    interval(graded)
    assert time.process_time()-start<4                          # 1 s on an idle core

# Tests of a difference

@pytest.mark.parametrize('won,lost', [(0, 0), (1, 0), (5, 5), (10, 3), (2, 11), (130, 90), (2000, 1900)])
def test_mcnemar_is_that_of_scipy(won, lost):
    p = scipy_stats.binomtest(won, won+lost).pvalue if won+lost else 1.
    assert mcnemar(won, lost)==pytest.approx(p, rel=1e-9)
    if won!=lost:
        assert mcnemar(won, lost, mid=True)==pytest.approx(p-scipy_stats.binom.pmf(won, won+lost, .5),
                                                           rel=1e-9)

def test_sign_flip_counts_what_can_be_counted_by_hand():
    gains = np.array([3., -1., 2., 2., 0.])
    sums = [abs(sum(s*g for s, g in zip(signs, gains[:4])))
            for signs in np.array(np.meshgrid(*[[1, -1]]*4)).reshape(4, -1).T]
    assert sign_flip(gains)==pytest.approx(np.mean([s>=6 for s in sums]))
    assert sign_flip(gains*.3)==pytest.approx(sign_flip(gains), abs=.02)  # Random flips
    assert sign_flip(np.array([5.]))==1                         # A single cluster proves nothing

def test_sign_flip_agrees_with_scipy_on_graded_scores():
    gains = np.random.default_rng(3).normal(.15, 1, 60)
    ref = scipy_stats.permutation_test((gains,), np.sum, permutation_type='samples', n_resamples=9999,
                                       rng=np.random.default_rng(0)).pvalue
    assert sign_flip(gains)==pytest.approx(ref, abs=.02)

def test_p_values_are_honest_when_nothing_changed_and_items_come_in_clusters():
    rng, ps, naive = np.random.default_rng(4), [], []
    for _ in range(1500):
        tilt = rng.choice([.9, .1], 60)  # Which run a problem suits; neither on the whole
        signs = np.where(rng.random((60, 5))<tilt[:, None], 1., -1.)*(rng.random((60, 5))<.4)
        ps.append(sign_flip(signs.sum(1)))
        naive.append(mcnemar(int((signs>0).sum()), int((signs<0).sum())))
    assert np.mean(np.array(ps)<.05)<.065 and np.mean(np.array(ps)<.5)==pytest.approx(.5, abs=.07)
    assert np.mean(np.array(naive)<.05)>.12  # As if items were independent: alarms at random

def test_holm_by_hand():
    assert holm([.01, .02, .03])==pytest.approx([.03, .04, .04]) and holm([.6, .6])==[1, 1] and holm([])==[]
    assert holm([None])==[None]
    assert holm([.04, None, .001])==pytest.approx([.04, None, .002])

@pytest.mark.parametrize('n,differ', [(120, .2), (304, .15), (540, .116), (1500, .08)])
def test_the_detectable_change_is_found_four_times_out_of_five(n, differ):
    d = detectable(n, differ)
    up, down, power = (differ+d)/2, (differ-d)/2, 0.
    for moved in range(n+1):  # Exactly, over all numbers of items that may differ
        weight = scipy_stats.binom.pmf(moved, n, differ)
        if weight<1e-7: continue
        won = np.arange(moved+1)
        tail = scipy_stats.binom.cdf(np.minimum(won, moved-won), moved, .5)*2
        power += weight*scipy_stats.binom.pmf(won, moved, up/(up+down))[np.minimum(tail, 1)<.05].sum()
    assert .77<power<.83
    assert items_needed(d, differ)==pytest.approx(n, rel=1e-4)

def test_planning():
    assert 100*detectable(540, .11)==pytest.approx(4.1, abs=.05)
    assert detectable(0, .1) is None and detectable(5, 1.) is None and detectable(6, 1.) is not None
    assert detectable(100, 0.)<.1
    assert detectable(1000, .1)<detectable(500, .1)<detectable(500, .2)

# The summary

def test_summary_by_hand():
    t = table([True, False, True, None], outcome=['answered', 'loop', 'answered', 'answered'],
              length=[2, 100, 4, 9], category=['x', 'x', 'y', 'y'])
    made = summarize(t, 'category')
    at = {(r['where'], r['what']):r for r in made.to_dicts()}
    assert at['all', 'accuracy']['value']==pytest.approx(2/3) and at['all', 'accuracy']['n']==3
    assert at['all', 'accuracy']['method']=='Wilson'
    assert at['all', 'unreadable gold']['value']==.25 and at['all', 'unreadable gold']['n']==4
    assert at['all', 'loop']['value']==pytest.approx(1/3)
    assert at['all', 'length']['value']==pytest.approx(106/3)
    assert at['x', 'accuracy']['value']==.5 and at['y', 'accuracy']['value']==1
    assert made.equals(summarize(t.sample(fraction=1, shuffle=True, seed=1), 'category'))

def test_clusters_of_versions_make_the_interval_wider():
    right = [bool(x) for x in np.repeat(np.random.default_rng(0).random(60)<.4, 5)]
    split = [f'v{i%5}' for i in range(300)]
    alone, held = table(right, split=split), table(right, split=split, group=[str(i//5) for i in range(300)])
    width = {}
    for name, t in dict(alone=alone, held=held).items():
        row = summarize(t).filter(tag='all', what='accuracy').row(0, named=True)
        width[name] = row['high']-row['low'], row['clusters'], row['method']
    assert width['held'][0]>1.9*width['alone'][0] and width['held'][1:]==(60, 'cluster bootstrap')
    assert width['alone'][1:]==(300, 'Wilson')
    splits = summarize(held).filter(tag='split', what='accuracy')
    assert splits['n'].to_list()==[60]*5 and set(splits['method'])=={'Wilson'}

def test_an_item_counts_under_each_of_its_skills_and_none_is_lost():
    assert [values_in_tag(x) for x in ("['a', 'b']", '["a","a"]', ['x', None], [], '', None, '[oops',
                                       7)]==[['a', 'b'], ['a'], ['x'], ['(none)'], ['(none)'], ['(none)'],
                                             ['[oops'], ['7']]
    for skills in (["['a', 'b']", "['a']", None], [['a', 'b'], ['a'], None]):
        made = summarize(table([True, False, True], skills=skills), 'skills').filter(tag='skills',
            what='accuracy')
        assert dict(made.select('where', 'n').iter_rows())=={'a':2, 'b':1, '(none)':1}
    assert set(summarize(table([True], skills=[None]), 'skills')['tag'])=={'all'}

def test_worst_case_and_average_of_dynamath():
    t = table([True, True, True, False, False, False], group=list('112233'))
    at = dict(summarize(t, variants=dict(toy=2)).select('what', 'value').iter_rows())
    assert at['accuracy']==.5 and at['worst case']==pytest.approx(1/3)
    assert worst_case(t)['correct'].to_list()==[True, False, False]
    assert comparison_table(worst_case(t), worst_case(t.with_columns(run=pl.lit('b'),
        correct=True)))['difference'][0]==pytest.approx(2/3)

def dynamath(variants, right=lambda i, v: True, questions=10, **more):
    "`variants` of each of some questions"
    keys = [(i, v) for i in range(questions) for v in range(variants)]
    return table([right(i, v) for i, v in keys], benchmark='DynaMath', group=[str(i) for i, _ in keys],
                 variant=[str(v) for _, v in keys])

def worst(t, **more): return summarize(t, **more).filter(what='worst case')

def test_the_worst_case_wants_all_variants():
    assert worst(dynamath(10, lambda i, v: i>0 or v>0)).row(0, named=True)|dict(low=0, high=0)==dict(
        run='a', benchmark='DynaMath', tag='all', where='all', what='worst case', value=.9, low=0, high=0,
        n=10, clusters=10, method='Wilson')
    # Ten questions in one variant are not all right
    for some in (1, 2, 9): assert not worst(dynamath(some)).height
    t = dynamath(10, lambda i, v: i>1)
    judged = pl.when(pl.col('index')!='35').then('correct')
    cut = t.filter(~pl.col('index').is_in(['5', '99'])).with_columns(correct=judged)
    row = worst(cut).row(0, named=True)  # Of 0 and 9 a variant is missing, of 3 a gold answer
    assert row['n']==7 and row['value']==pytest.approx(6/7)
    assert row['method']=='Wilson; 3 questions without all 10 variants left out'
    assert worst(cut, by='variant')['tag'].to_list()==['all']
    assert worst_case(cut).height==7 and worst_case(t).height==10
    made = comparison_table(worst_case(t), worst_case(cut.with_columns(run=pl.lit('b')))).row(0, named=True)
    assert (made['n'], made['only_a'])==(7, 3)

def test_the_worst_case_of_other_benchmarks():
    for name in ('MathVerse', 'DocVQA', 'POPE'):
        assert not worst(dynamath(10).with_columns(benchmark=pl.lit(name))).height
    mine = dynamath(3, lambda i, v: i!=4).with_columns(benchmark=pl.lit('Mine'))
    assert worst(mine, variants=dict(Mine=3))['value'].to_list()==[.9]
    assert not worst(mine, variants=dict(Mine=4)).height
    lost = mine.filter(pl.col('index')!='0')
    assert worst_case(lost).height==9  # As many variants as the question that has most
    with pytest.raises(ValueError, match='Mine: no question has all 4 variants'):
        worst_case(mine, dict(Mine=4))
    with pytest.raises(ValueError, match='Toy: no question has 2 variants or more'):
        worst_case(table([True]*10))

def test_the_worst_variant_may_be_another_one_in_the_other_run():
    a = table([True, False, True, True], group=list('1122'), answer=list('1234'))
    b = table([False, True, True, True], 'b', group=list('1122'), answer=list('1234'))
    made = comparison_table(worst_case(a), worst_case(b))
    assert made['n'][0]==2 and made['difference'][0]==0 and made['other_gold'][0]==0

def test_pope_by_hand():
    t = table([True, False, False, True, False], answer=['yes', 'yes', 'no', 'no', 'Yes'],
              picked=['yes', 'no', 'yes', 'no', None])
    at = dict(summarize(t).select('what', 'value').iter_rows())
    assert at['precision']==.5 and at['recall']==pytest.approx(1/3) and at['F1']==pytest.approx(.4)
    assert at['yes share']==.4
    never = summarize(table([False, True], answer=['yes', 'no'],
                            picked=['no', 'no'])).filter(what='precision')
    assert never['value'][0] is None
    assert 'F1' not in summarize(table([True], answer=['7'], picked=['7']))['what'].to_list()

def test_graded_scores_and_lengths():
    t = table([True]*40, value=list(np.linspace(0, 1, 40)))
    row = summarize(t).filter(what='accuracy').row(0, named=True)
    assert row['value']==pytest.approx(.5) and row['method']=='bootstrap' and row['low']<.5<row['high']
    made = by_length(table([True, False, True, None], length=[1, 2, 5000, 3]))
    assert made.filter(what='accuracy').select('where', 'value', 'n').rows()==[('0 to 2', .5, 2),
        ('1600 or more', 1., 1)]
    assert made.filter(what='share')['value'].sum()==pytest.approx(1)

@pytest.mark.parametrize('right', [[True], [False], [True]*30, [False]*30])
def test_the_ends(right):
    for more in ({}, dict(group='one')):
        row = summarize(table(right, **more)).filter(what='accuracy').row(0, named=True)
        assert 0<=row['low']<=row['value']<=row['high']<=1 and row['high']-row['low']>.1

def test_nothing_readable_is_counted_and_no_more():
    made = summarize(table([None, None]))
    assert made.select('what', 'value', 'n').rows()==[('unreadable gold', 1., 2)]

# Bad tables

@pytest.mark.parametrize('frame,why', [
    (lambda: table([True]).drop('correct'), 'no column correct'),
    (lambda: table([]), 'empty'),
    (lambda: table(['yes']), "'yes' in row 1"),
    (lambda: table([True, True], index='0'), 'rows 1, 2'),
    (lambda: table([True, True], value=[.5, 7.]), '7.0 in row 2'),
    (lambda: table([True, True], protocol=['offline-1', 'strict-1']), 'offline-1 and strict-1')])
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(frame, why):
    with pytest.raises(ValueError, match=why): summarize(frame())
    with pytest.raises(ValueError): comparison_table(frame(), table([True], 'b'))

def test_tables_of_other_hands():
    assert typed_table(table(['true', 'False', None]))['correct'].to_list()==[True, False, None]
    assert typed_table(table([1, 0]))['value'].to_list()==[1, 0]
    plain = pl.DataFrame(dict(correct=[True, False]))
    assert summarize(plain).filter(what='accuracy').row(0, named=True)['benchmark']=='unnamed'
    assert summarize([table([True]), table([False], 'b')]).filter(what='accuracy')['run'].to_list()==['a',
        'b']
    with pytest.raises(ValueError, match='no column kind to split by'): summarize(plain, 'kind')

@pytest.mark.parametrize('a,b,why', [
    (lambda: pl.concat([table([True]), table([True], 'b')]), lambda: table([True]), r'holds 2 runs \(a, b\)'),
    (lambda: table([True]).drop('index'), lambda: table([True]), 'no column index'),
    (lambda: table([True, True]).with_columns(index=pl.Series(['0', None])), lambda: table([True]),
     'no index in row 2'),
    (lambda: table([True]), lambda: table([True], index='9'), 'share no item'),
    (lambda: table([True], protocol='offline-1'), lambda: table([True], 'b', protocol='strict-1'),
     'offline-1 in one run and strict-1')])
def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(a, b, why):
    with pytest.raises(ValueError, match=why): comparison_table(a(), b())

# The comparison

def test_compare_by_hand():
    a, b = table([True, True, False, False, None, True]), table([True, False, True, True, True], 'b')
    row = comparison_table(a, b).row(0, named=True)
    assert (row['n'], row['won'], row['lost'], row['a'], row['b'])==(4, 2, 1, .5, .75)
    assert row['difference']==.25 and row['p']==1
    assert (row['only_a'], row['only_b'], row['no_gold'])==(1, 0, 1)
    back = comparison_table(b, a).row(0, named=True)
    assert back['difference']==-.25 and (back['won'], back['lost'])==(1, 2) and back['p']==row['p']
    assert 'Left out: 1 only in a, 1 without a readable gold answer.' in verdict(comparison_table(a, b))

def test_order_of_rows_and_types_of_the_index_do_not_matter():
    rng = np.random.default_rng(0)
    a, b = (table((rng.random(60)<.5).tolist(), r, group=[str(i//3) for i in range(60)],
                  level=[i%3 for i in range(60)]) for r in 'ab')
    mixed = b.sample(fraction=1, shuffle=True, seed=1).with_columns(pl.col('index').cast(pl.Int64),
        pl.col('level').cast(pl.String))
    assert comparison_table(a, b, 'level').equals(comparison_table(a, mixed, 'level'))

def test_versions_of_one_problem_are_no_independent_wins():
    wins = [True]*40+[False]*10+[True]*100
    a, b = table([False]*40+[True]*10+[True]*100), table(wins, 'b')
    group = [str(i//5) for i in range(150)]
    alone, held = comparison_table(a, b), comparison_table(a.with_columns(group=pl.Series(group)),
                                                           b.with_columns(group=pl.Series(group)))
    assert alone['test'][0]=='McNemar, exact' and held['test'][0]=='sign flip by cluster, exact'
    assert alone['p'][0]<.001 and held['p'][0]==pytest.approx(mcnemar(8, 2))
    assert held['high'][0]-held['low'][0]>1.5*(alone['high'][0]-alone['low'][0])
    assert held['detectable'][0]>1.5*alone['detectable'][0]

@pytest.mark.parametrize('right', [True, False])
def test_no_pair_differs(right):
    row = comparison_table(table([right]*50), table([right]*50, 'b')).row(0, named=True)
    assert row['p']==1 and row['low']<0<row['high'] and row['low']==pytest.approx(-row['high'], abs=.03)
    assert 'no item was scored differently' in verdict(comparison_table(table([right]*50),
        table([right]*50, 'b'))).lower()

def test_a_single_pair_says_nothing():
    assert 'too few items to say (1 item, -100.0 points, 95%' in verdict(comparison_table(table([True]),
        table([False], 'b')))

def test_other_gold_and_mixed_tags():
    a = table([True, True], answer=['1', '2'], category=['x', None])
    made = matched(a, table([True, True], 'b', answer=['1 ', '3']))
    assert made['state'].to_list()==['paired', 'other gold']
    assert comparison_table(a, table([True, True], 'b'),
                            'category').filter(tag='category')['where'].to_list()==['(none)', 'x']
    with pytest.raises(ValueError, match='no column kind'):
        comparison_table(a, a.with_columns(run=pl.lit('b')), 'kind')

def test_correction_is_within_a_family():
    rng, frames = np.random.default_rng(0), []
    for name in 'PQR':
        frames.append(table((rng.random(200)<.5).tolist(), benchmark=name, category=['x', 'y']*100))
    a = pl.concat(frames)
    b = a.with_columns(run=pl.lit('b'), correct=pl.Series(rng.random(600)<.6))
    made = comparison_table(a, b, 'category')
    for tag, count in (('all', 3), ('category', 6)):
        rows = made.filter(tag=tag)
        assert rows.height==count and rows['p_holm'].to_list()==pytest.approx(holm(rows['p'].to_list()))

def test_graded_scores_are_compared_by_random_flips():
    rng = np.random.default_rng(0)
    x = rng.random(80)
    row = comparison_table(table([True]*80, value=x), table([True]*80, 'b', value=np.clip(x+.1, 0, 1))).row(0,
        named=True)
    assert row['test']=='sign flip, 10000 draws' and row['p']<.001 and row['low']>.05

# The verdict

def case(won, lost, same, both=0, **more):
    "Two runs of which `won` and `lost` items differ"
    a = [False]*won+[True]*lost+[True]*same+[False]*both
    b = [True]*won+[False]*lost+[True]*same+[False]*both
    return comparison_table(table(a, 'base', **more), table(b, 'merged', **more),
                            by=[c for c in more if c=='category'])

def test_verdicts_in_words():
    assert 'Toy is better: 90.0% to 100.0%, +10.0 points' in verdict(case(30, 0, 270))
    assert 'Toy is worse: 100.0% to 90.0%, -10.0 points' in verdict(case(0, 30, 270))
    said = verdict(case(60, 53, 427))
    assert 'No evidence of a change on Toy (88.9% to 90.2%, +1.3 points, 95% -2.' in said
    assert 'could have been seen with 540 items' in said
    kinds = ['general-vqa' if i%2 else 'math-targeted-vqa' for i in range(300)]
    corrected = pl.when(tag='category').then(.06).otherwise(.03)
    rows = case(22, 6, 272, category=kinds).with_columns(pl.lit(.03).alias('p'), p_holm=corrected)
    assert 'Toy, Math VQA' in verdict(rows)
    assert 'does not survive correction (p = .060 over 2 values of category)' in verdict(rows)

def test_a_name_stays_as_it_was_written():
    for won, lost, same, words in ((30, 0, 270, '- digits is better'), (0, 30, 270, '- digits is worse'),
                                   (60, 53, 187, '- No evidence of a change on digits ('),
                                (0, 0, 300, '- No item was scored differently on digits ('),
                                (1, 0, 5, '- digits: too few items to say')):
        assert words in verdict(case(won, lost, same, benchmark='digits'))
    weak = case(22, 6, 272, benchmark='digits').with_columns(p=.03, p_holm=.06)
    assert '- digits 92.7% to 98.0%, +5.3 points' in verdict(weak)
    some = table([True]*9, benchmark='digits')
    b = pl.concat([some, table([None]*9, benchmark='mine')],
                  how='vertical_relaxed').with_columns(run=pl.lit('b'))
    assert '- mine: nothing to compare' in verdict(comparison_table(pl.concat([some,
        table([True]*9, benchmark='mine')]), b))

def test_words_for_numbers():
    assert [points(x) for x in (.0431, -.026, 0, .0004, -.0004)]==['+4.3', '-2.6', '0.0', '0.0', '0.0']
    assert points(.5, False)=='50.0'
    assert [p_said(p) for p in (.0494, .0497, .14, .9999, .0001)]==['p = .049', 'p = .0497', 'p = .14',
        'p = 1', 'p < .001']

def two(before, after, n=300):
    "Two runs that know the same half; outcomes and lengths as given"
    knows = np.arange(n)%2==0
    def side(run, mute, length):
        out = ['loop' if i%100<mute else 'answered' for i in range(n)]
        return table([bool(k and o=='answered') for k, o in zip(knows, out)], run, outcome=out, length=length)
    return comparison_table(side('base', *before), side('merged', *after))

def test_a_change_of_format_is_not_read_as_ability():
    gain = two((20, 10), (0, 10))
    assert gain['from_format'][0]==pytest.approx(gain['difference'][0]) and gain['readable'][0]==0
    said = verdict(gain)
    assert 'is better' in said and 'of it come from items where a reply has no readable answer' in said
    assert 'that loop 20.0% to 0.0%' in said
    loss = verdict(two((0, 10), (20, 40)))
    assert 'is worse' in loss and 'no readable answer' in loss
    assert '4.0 times as long (10 to 40 characters)' in loss
    assert 'times as long' not in verdict(two((0, 10), (0, 12)))

def test_a_change_may_hide_behind_the_format():
    a = table([True]*60+[False]*120+[True]*20, 'base')
    # 20 won, and 20 lost to loops
    b = table([True]*80+[False]*120, 'merged', outcome=['answered']*180+['loop']*20)
    made = comparison_table(a, b)
    assert made['difference'][0]==0 and made['readable'][0]==pytest.approx(20/180)
    assert 'may hide a change' in verdict(made)

def test_a_benchmark_without_a_pair_is_said():
    a = pl.concat([table([True]*9), table([None], benchmark='Sealed'), table([True], benchmark='Mine')])
    b = pl.concat([table([True]*9, 'b'), table([None], 'b', benchmark='Sealed')])
    said = verdict(comparison_table(a, b))
    assert 'Sealed: nothing to compare; none of its 1 items' in said
    assert 'Mine: nothing to compare; none of its 1 items' in said

def test_unknown_outcomes_are_said():
    a, b = (table([True, False]*20, r).drop('outcome', 'length') for r in 'ab')
    assert 'Whether the format changed cannot be told' in verdict(comparison_table(a, b))

def test_the_verdict_wants_the_table_of_compare():
    with pytest.raises(ValueError, match='no column'): verdict(pl.DataFrame(dict(run=['a'])))
    with pytest.raises(ValueError, match='empty'): verdict(pl.DataFrame(schema=COMPARISON_COLUMNS))

# One call

def replies_of(run, right):
    "A table of replies to sums, nobody has scored it"
    return pl.DataFrame([dict(benchmark='sums', split='test', run=run, index=str(i), question=f'{i} + 1 = ?',
                              answer=str(i+1),
                              category=f'kind {i%40}', prediction=str(i+1+(not ok))) for i,
                              ok in enumerate(right)])

def test_compare_takes_replies_scores_and_files(tmp_path):
    a, b = replies_of('VLM', [True, False]*40), replies_of('merged', [True]*80)
    scored = [score(t) for t in (a, b)]
    want = comparison_table(*scored)
    a.write_parquet(tmp_path/'a.parquet')
    scored[1].write_csv(tmp_path/'b.csv')
    for made in (compare(a, b), compare(*scored), compare(a, scored[1]),
                 compare(tmp_path/'a.parquet', str(tmp_path/'b.csv'))):
        assert made.table.equals(want) and made.verdict==verdict(want)==verdict(made)==str(made)
    with pytest.raises(ValueError, match='is not there'): compare(tmp_path/'none', b)

def test_two_files_of_one_run_are_told_apart_by_their_paths(tmp_path):
    for name, right in (('old', [True, False]*20), ('new', [True]*40)):
        replies_of('VLM', right).write_parquet(tmp_path/f'{name}.parquet')
    made = compare(tmp_path/'old.parquet', tmp_path/'new.parquet')
    assert made.table['run_a'][0].endswith('old.parquet') and made.table['run_b'][0].endswith('new.parquet')

def test_a_comparison_shows_no_more_than_a_screen():
    a, b = replies_of('VLM', [True, False]*400), replies_of('merged'*40, [i%3>0 for i in range(800)])
    made = compare(a, b, 'category')
    lines = repr(made).splitlines()
    assert len(lines)<=40 and max(map(len, lines))<=100 and made.table.height==41
    assert len(made._repr_markdown_().splitlines())<60 and 'more in `.table`' in made._repr_markdown_()
    assert made.chart(tag='category').to_dict()['title']['text']

def test_names_stay_text_in_a_notebook():
    a, b = replies_of('<b>|x', [True]*9), replies_of('[y](http://z)', [True]*9)
    text = compare(a, b)._repr_markdown_()
    assert '<b>' not in text and '&lt;b&gt;' in text and '[y](' not in text
    # No name ends a cell
    assert len({line.replace(r'\|', '').count('|') for line in text.splitlines() if line[:1]=='|'})==1

# Real replies

@pytest.mark.skipif(not DEV.is_dir(), reason='the developer set of replies is not on this machine')
def test_real_replies_give_a_sober_verdict():
    frames = []
    for path in sorted(DEV.glob('*.parquet')):
        d = pl.read_parquet(path)
        told = [c for c in ('adjudicated_correct', 'judge_correct') if c in d.columns]
        frames.append(d.with_columns(correct=pl.coalesce(told), outcome=pl.lit('answered'),
                                     length=pl.col('prediction').str.len_chars()))
    scores = pl.concat(frames, how='diagonal_relaxed')
    a, b = (scores.filter(run=r) for r in ('dart_base', 'dart_merged0.9'))
    made = comparison_table(a, b, 'category')
    said = verdict(made)
    assert worst_case(scores.filter(benchmark='DynaMath'))['items'].unique().to_list()==[10]
    assert 'DynaMath: too few items to say' in said and 'share only 30 of 410 items' in said
    verse = made.filter(benchmark='MathVerse', tag='all').row(0, named=True)
    assert verse['clusters']==315 and verse['n']==1575 and verse['test']=='sign flip by cluster, exact'
    lite = made.filter(where='Text_Lite').row(0, named=True)
    assert 0<lite['difference']<.08 and lite['p']==pytest.approx(mcnemar(lite['won'], lite['lost']))
    assert lite['test']=='McNemar, exact'
    assert 'Replies are 4.1 times as long' in said
    assert 'No evidence of a change on MathVista, General VQA' in said
    skills = summarize(a.filter(benchmark='MathVista'), 'skills').filter(tag='skills', what='accuracy')
    assert skills['n'].sum()>378>skills['n'].max() and 'geometry reasoning' in skills['where'].to_list()


# Two samples

def sample_of(name, seed, n=200, values=(0., 1.), **tags):
    rng = np.random.default_rng(seed)
    value = rng.choice(values, n)
    return pl.DataFrame(dict(benchmark='B', run=name, index=[f'{name}{i}' for i in range(n)], value=value,
                             correct=value>=.5)|{k:[f(i) for i in range(n)] for k, f in tags.items()})

@pytest.mark.parametrize('kind', ['right or wrong', 'graded', 'in clusters'])
def test_two_samples_that_do_not_differ_seldom_seem_to(kind):
    more = dict(values=(0., .3, .5, 1.)) if kind=='graded' else {}
    if kind=='in clusters': more = dict(group=lambda i: str(i//4))
    rows = [unpaired_table(sample_of('a', 2*s, 60, **more), sample_of('b', 2*s+1, 80, **more), resamples=400)
            .row(0, named=True) for s in range(150)]
    assert .01<np.mean([r['p']<.05 for r in rows])<.1
    assert .9<np.mean([r['low']<=0<=r['high'] for r in rows])<=.995
    assert rows[0]['n']==140 and rows[0]['won'] is None

def test_the_order_of_rows_and_the_side_change_nothing_but_the_sign():
    a, b = sample_of('a', 1, values=(0., .25, 1.)), sample_of('b', 2, 90, values=(.25, 1.))
    one = unpaired_table(a, b).row(0, named=True)
    assert one==unpaired_table(a.reverse(), b.sample(fraction=1., shuffle=True, seed=1)).row(0, named=True)
    other = unpaired_table(b, a).row(0, named=True)
    assert other['difference']==pytest.approx(-one['difference'])
    assert (other['low'], other['high'])==pytest.approx((-one['high'], -one['low']))

def test_what_two_samples_leave_out_is_counted():
    a = sample_of('a', 1, 20, kind=lambda i: 'x').with_columns(outcome=pl.lit('answered'))
    b = sample_of('b', 2, 20, kind=lambda i: 'xy'[i%2]).with_columns(outcome=pl.lit('answered'))
    silent = pl.int_range(pl.len())
    b = b.with_columns(outcome=pl.when(silent<3).then(pl.lit(NO_REPLY)).otherwise('outcome'),
                       correct=pl.when(silent<5).then(None).otherwise('correct'))
    whole, x, y = unpaired_table(a, b, 'kind').to_dicts()
    assert (whole['n'], whole['no_reply'], whole['no_gold'])==(35, 3, 2)
    assert (y['where'], y['n'], y['only_a'], y['only_b'], y['p'])==('y', 0, 0, 8, None)
    text = verdict(unpaired_table(a, b, 'kind'))
    assert 'not paired' in text and '3 without a reply' in text and '2 without a readable gold' in text
    with pytest.raises(ValueError, match='share no benchmark'):
        unpaired_table(a, b.with_columns(benchmark=pl.lit('C')))

def test_a_change_between_guesses_is_told_as_one():
    "Two runs that say a letter whatever is asked, and one that knows"
    def replied(run, say):
        choices = '["red","blue","pink","grey"]'
        rows = [dict(run=run, benchmark='B', index=str(i), question='Which?', choices=choices,
                     answer='ABCD'[i%4], prediction=say(i)) for i in range(80)]
        return pl.DataFrame(rows)
    a, b = replied('a', lambda i: 'A' if i<40 else 'B'), replied('b', lambda i: 'C')
    knows = replied('knows', lambda i: 'ABCD'[i%4])
    assert 'Neither run is clearly above what a guess gets here (25.0%).' in compare(a, b).verdict
    assert 'a is not clearly above what a guess gets here (25.0%).' in compare(a, knows).verdict
    assert 'a guess' not in compare(knows, knows.with_columns(run=pl.lit('again'))).verdict
    assert 'a guess' not in compare(a.drop('choices'), b.drop('choices')).verdict   # No floor is known
    assert 'Neither run is' in compare(a, b, unpaired=True).verdict

def test_two_samples_tell_how_many_items_each_side_has():
    "And those that both have; and what could be seen is no less than the interval says"
    a, b = table([True]*38+[False]*2), table([True]*29+[False]*1, 'b')
    said = compare(a, b, unpaired=True)
    assert '40 and 30 items' in said.verdict and '30 items are in both runs' in said.verdict
    row = said.table.to_dicts()[0]
    assert row['detectable']>(row['high']-row['low'])/2
    others = b.with_columns(index='x'+pl.col('index'))
    assert 'are in both' not in compare(a, others, unpaired=True).verdict

def test_a_change_takes_as_many_items_that_differ():
    with pytest.raises(ValueError, match='give a discordance of 0.2 or more'): power_said(1000, .2, .1)

def test_few_items_asked_again_tell_no_noise():
    "Nor do samples that a few items have more of than the others"
    def asked_twice(run, items, again):
        rows = [dict(benchmark='B', split='t', run=run, index=str(i), sample=s, correct=i%2==0,
                     prediction='x', outcome='answered', picked='x')
                for i in range(items) for s in '12'[:1+(i<again)]]
        return pl.DataFrame(rows)
    few, many = (compare(asked_twice('a', 100, k), asked_twice('b', 100, k)).verdict for k in (2, 40))
    assert 'Only 2 items asked again: too few to tell the noise of asking' in few
    assert 'lies within this noise of asking' in many
    assert 'pass@2 50.0% (of 2)' in accuracy_said(asked_twice('a', 100, 2))
    assert 'standard deviation' not in accuracy_said(asked_twice('a', 100, 2))

def test_rows_that_are_left_out_of_an_accuracy_are_told():
    both = pl.concat([table([True]*5), table([False]*2)])
    assert '4 rows have the index of another' in accuracy_said(both)

def test_power_promises_no_change_larger_than_what_differs():
    assert 'no change can be seen' in power_said(12) and 'no change can be seen' in power_said(10, .01, .02)
