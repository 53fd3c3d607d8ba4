"Halves hold clusters together, the choice never sees the half that reports, and order does not matter"
import polars as pl
import pytest

from vlm_merging.comparing.held_out import Trade, halved, held_out
from vlm_merging.comparing.statistics import typed_table

WANTED = Trade('reasoning', 'perception')

def scores(right, n=80, group=None, benchmarks=('a',)):
    "Score tables: `right(run, kind, i)` -> 0..1; two items of each kind share a group if `group`"
    rows = [dict(run=run, benchmark=b, split='dev', index=str(i), group=f'{b}{i//4}' if group else None,
                 category=kind, correct=bool(right(run, kind, i)>=.5), value=float(right(run, kind, i)))
            for run in ('VLM', 'one', 'two') for b in benchmarks for i in range(n)
            for kind in [('perception', 'reasoning')[i%2]]]
    return pl.DataFrame(rows, schema_overrides=dict(group=pl.String))

def better(run, kind, i): return kind=='perception' or run=='two' or run=='one' and i%3==0

def test_the_better_one_is_chosen_and_reported_on_other_items():
    found = held_out(scores(better), 'VLM', WANTED)
    here, there = (found.table.filter(half=h) for h in ('choose', 'report'))
    assert found.chosen=='two' and there['run'].to_list()==['two'] and here.height==2
    assert here['n_gain'].to_list()==[20, 20] and there['n_gain'].to_list()==[20]
    assert there['gain'][0]==1 and there['change'][0]==0 and there['worth'][0]==1

def test_what_the_reporting_half_says_does_not_choose():
    "Where the better one fails on just the items that report, it is chosen all the same, and found out"
    table = scores(better)
    known = halved(typed_table(table).with_columns(kinds=pl.col('category')))
    reports = set(known.filter(half='report')['index'])
    fails = (pl.col('run')=='two') & (pl.col('category')=='reasoning') & pl.col('index').is_in(reports)
    wrong = table.with_columns(value=pl.when(fails).then(0.).otherwise('value'),
                               correct=pl.col('correct') & ~fails)
    found = held_out(wrong, 'VLM', WANTED)
    assert found.chosen=='two' and found.table.filter(half='report')['gain'].to_list()==[0]
    assert 'cannot be told' in repr(found)

def test_halves_hold_groups_together_and_know_no_order():
    table = scores(better, group=True, benchmarks=('a', 'b'))
    shuffled = table.sample(fraction=1., shuffle=True, seed=1)
    one, two = (held_out(t, 'VLM', WANTED, resamples=300).table for t in (table, shuffled))
    keys = ['run', 'half']
    assert one.sort(keys).equals(two.sort(keys))
    assert one.filter(half='report')['clusters'][0]==20 and one.filter(half='choose')['clusters'][0]==20
    assert one.filter(half='report')['n_gain'][0]==40

def test_a_penalty_turns_the_choice():
    def trades(run, kind, i):
        if kind=='reasoning': return run=='two' or run=='one' and i%4==1
        return run!='two' or i%10!=0
    table = scores(trades, 200)
    assert held_out(table, 'VLM', WANTED).chosen=='two'
    assert held_out(table, 'VLM', Trade('reasoning', 'perception', 9)).chosen=='one'

def test_a_loss_counts_and_a_gain_of_what_is_kept_does_not():
    def sees_better(run, kind, i): return kind=='perception' and run=='one'
    found = held_out(scores(sees_better), 'VLM', WANTED)
    assert found.chosen is None and found.table['worth'].to_list()==[0, 0]
    assert 'nothing is chosen' in repr(found)

def test_few_clusters_have_no_interval():
    found = held_out(scores(better, 12), 'VLM', WANTED)
    assert found.table.filter(half='report')['worth_low'].to_list()==[None]
    assert 'cannot be told' in repr(found)

def test_items_without_a_score_are_left_out():
    table = scores(better).with_columns(pl.when(pl.col('index')=='1').then(None).otherwise(c).alias(c)
                                        for c in ('correct', 'value'))
    found = held_out(table, 'VLM', WANTED).table
    assert found.filter(run='two')['n_gain'].sum()==39

@pytest.mark.parametrize('how,said', [(dict(trade=Trade('math', 'perception')), "gain is 'math'"),
                                      (dict(trade=WANTED, by=()), 'no tag'),
                                      (dict(trade=WANTED, by='kind'), 'no column kind')])
def test_what_is_not_there_is_a_sentence(how, said):
    with pytest.raises(ValueError, match=said): held_out(scores(better), 'VLM', **how)
