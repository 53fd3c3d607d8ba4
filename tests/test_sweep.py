"The search of a weight: which is best, is it distinguishable, and what agreement says without labels"
from dataclasses import replace

import polars as pl
import pytest

from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.merge import merge
from vlm_merging.asking.opening import open_model
from vlm_merging.merging.recipe import Recipe
from vlm_merging.benchmarks.load import load
from vlm_merging.probing.sweep import against_best, mixtures, neighbour_agreement, sweep, sweep_table
from vlm_merging.comparing.findings import sweep_verdict

LAB = lab_folder()
HOW = dict(max_new_tokens=16, batch_size=42)

def table(weights, right, said=None, n=40):
    "Scores of made-up mixtures: `right[w]` of the first items are right, `said[w]` is what all replies are"
    rows = [dict(benchmark='toy', split='test', run=f'weight {w}', index=str(i), group=None, answer='1',
                 prediction=(said or {}).get(w, str(w)),
                 correct=i<right[w], value=float(i<right[w]), outcome='answered', length=1, protocol='own',
                 weight=w, layers='all', modules='all')
            for w in weights for i in range(n)]
    return pl.DataFrame(rows, schema_overrides=dict(group=pl.String))

def test_the_best_is_told_from_the_rest_only_where_it_can_be():
    made = sweep_table(table([.3, .5, .7], {.3: 5, .5: 30, .7: 29}), resamples=500)
    rows = {r['run']: r for r in made.filter(what='accuracy', tag='all').to_dicts()}
    assert [rows[f'weight {w}']['best'] for w in (.3, .5, .7)]==[False, True, False]
    assert rows['weight 0.3']['p_best']<.001 and rows['weight 0.7']['p_best']==1
    assert rows['weight 0.5']['p_best'] is None
    said = sweep_verdict(made)
    assert 'best of 3 is weight 0.5' in said
    assert 'Not distinguishable from it: weight 0.7. Worse beyond chance: weight 0.3.' in said
    assert '40 items' in said

def test_agreement_knows_its_neighbours():
    said = {.1: 'a', .2: 'b', .3: 'b', .4: 'b', .5: 'c'}
    along = neighbour_agreement(table(list(said), dict.fromkeys(said, 1), said,
                            n=3)).group_by('weight').agg(pl.col('value').mean()).sort('weight')
    assert along.rows()==[(.2, .5), (.3, 1), (.4, .5)]
    made = sweep_table(table(list(said), dict.fromkeys(said, 1), said, n=3), resamples=100)
    assert made.filter(what='agreement', best=True)['run'].to_list()==['weight 0.3']

def test_ranges_are_neighbours_only_of_their_own_kind():
    one = table([.1, .2, .3], dict.fromkeys((.1, .2, .3), 1), n=2)
    both = pl.concat([one, one.with_columns(layers=pl.lit('2-'), prediction=pl.lit('same'),
                                            run=pl.col('run')+', layers 2-')])
    along = neighbour_agreement(both)
    assert along.filter(layers='all')['value'].to_list()==[0, 0]
    assert along.filter(layers='2-')['value'].to_list()==[1, 1]

def test_a_sweep_says_what_merges_on_disk_say(tmp_path):
    items = load('lab', n=14, split='dev')
    sweep(LAB/'vlm', LAB/'llm', weights=[.6, .2], items=items, out=tmp_path/'run', **HOW)
    parts = pl.concat([pl.read_parquet(p) for p in (tmp_path/'run'/'parts').iterdir()])
    for n, weight in enumerate((.6, .2)):
        out = merge(Recipe(LAB/'vlm', LAB/'llm', knobs={'weight': weight}), out=tmp_path/f'{n}')
        asked = {r.id: r.text for r in open_model(out, **HOW).many(items)}
        part = parts.filter(weight=weight)
        assert dict(part.select('index', 'prediction').iter_rows())==asked

def test_methods_with_task_vectors_curves_and_modules():
    items = load('lab', n=7, split='dev')
    made = sweep(LAB/'vlm', LAB/'llm', LAB/'base', weights=[.9, [1., .2]], items=items, method='ties',
                 density=.5, modules=['mlp', 'all'], by='category', **HOW).table
    assert made.filter(what='accuracy', tag='all')['run'].to_list()==['weight 0.9, modules mlp',
        'weight [1.0, 0.2], modules mlp', 'weight 0.9', 'weight [1.0, 0.2]']
    assert not made.filter(what='agreement').height  # Curves have no order, and one number no neighbours

def test_nobody_knows_the_answers():
    items = [replace(i, answer=None) for i in load('lab', n=7, split='dev')]
    said = sweep(LAB/'vlm', LAB/'llm', weights=[.8, .6, .4, .2], items=items, **HOW).verdict
    assert 'best of' not in said and 'without labels, replies agree most' in said
    assert 'Nothing can be said' in sweep(LAB/'vlm', LAB/'llm', weights=[.8, .5, .2], items=items,
                                          **HOW).verdict

def test_an_own_score_decides():
    items = load('lab', n=7, split='dev')
    made = sweep(LAB/'vlm', LAB/'llm', weights=[.9, .3], items=items, score=lambda item,
                 text: float('so' in text.split()), **HOW)
    assert made.best==dict(weight=.3, layers='all', modules='all')
    # It works things out in words
    assert made.table.filter(what='accuracy', tag='all', best=True)['run'].to_list()==['weight 0.3']

@pytest.mark.parametrize('how, said', [(dict(weights=[]), 'no weight to try'),
                                       (dict(weights=[1.2]), 'weight'),
                                       (dict(weights=[.5], method='ties'), 'needs `base`'),
                                       (dict(weights=[.5], layers='9-'), 'not within'),
                                       (dict(weights=[.5], ray='local'), 'needs a folder'),
                                       (dict(weights=[.5], llm='nowhere'), 'not a folder'),
                                       (dict(weights=[.5], weight=.5), 'is what is tried'),
                                       (dict(weights=[.5], densty=.5), "no setting 'densty'")])
def test_what_cannot_be_swept_is_one_sentence(how, said):
    with pytest.raises(ValueError, match=said):
        sweep(**dict(vlm=LAB/'vlm', llm=LAB/'llm', items=load('lab', n=7))|how)

def test_a_recipe_or_its_ingredients():
    items = load('lab', n=7, split='dev')
    recipe = Recipe(LAB/'vlm', LAB/'llm', LAB/'base', 'ties', {'weight': .9, 'density': .5}, layers='2-5')
    whole = sweep(recipe, weights=[.6], items=items, **HOW)
    assert whole.table.equals(sweep(LAB/'vlm', LAB/'llm', LAB/'base', weights=[.6], items=items,
                                    method='ties', density=.5, layers='2-5', **HOW).table)
    assert whole.best==dict(weight=.6, layers='2-5', modules='all')
    with pytest.raises(ValueError, match='cannot stand beside a recipe'):
        sweep(recipe, LAB/'llm', weights=[.6], items=items)
    with pytest.raises(ValueError, match='`method` cannot stand beside a recipe'):
        sweep(recipe, weights=[.6], items=items, method='linear')
    # The usual is asked for, too: all layers, not those of the recipe
    assert sweep(recipe, weights=[.6], items=items[:2], layers='all', **HOW).best['layers']=='all'

def test_a_sweep_shows_itself():
    made = sweep(LAB/'vlm', LAB/'llm', weights=[.6, .2], items=load('lab', n=7, split='dev'), **HOW)
    whole = '\n'.join([made.verdict, *(f'- {o}' for o in made.lines)])
    assert repr(made).split()==whole.split() and len(repr(made).split('\n'))<40 and len(made.lines)>1
    assert 'weight 0' in made._repr_markdown_()

def test_mixtures_are_named_once():
    assert [m['run'] for m in mixtures([.5, .5, .7], ['all', '2-'])]==['weight 0.5', 'weight 0.7',
        'weight 0.5, layers 2-', 'weight 0.7, layers 2-']

def test_a_wanted_gain_is_chosen_on_half_of_the_items(tmp_path):
    "Against the VLM as it is; the folder holds replies, whatever is wanted of them"
    items = load('lab', n=40, split='dev')
    how = dict(weights=[.5, .9], layers=['all', '6-'], items=items, out=tmp_path/'run', **HOW)
    plain = sweep(LAB/'vlm', LAB/'llm', by='category', **how)
    tried = sweep(LAB/'vlm', LAB/'llm', gain='reasoning', keep='perception', penalty=3, **how)
    parts = list((tmp_path/'run'/'parts').iterdir())
    assert len(parts)==5 and tried.table.equals(plain.table)                # One more: the VLM as it is
    assert tried.held.table.filter(half='choose').height==4
    assert tried.held.trade.penalty==3 and tried.verdict.startswith('By gain in reasoning less 3 times')
    assert (tried.best is None)==(tried.held.chosen is None)
    if tried.best: assert Recipe(LAB/'vlm', LAB/'llm', layers=tried.best['layers'])
    times = [p.stat().st_mtime_ns for p in parts]
    again = sweep(LAB/'vlm', LAB/'llm', gain='perception', keep='reasoning', **how)
    assert times==[p.stat().st_mtime_ns for p in parts] and again.held.trade.gain=='perception'
    vlm = {r.id: r.text for r in open_model(LAB/'vlm', **HOW).many(items)}
    rows = pl.concat([pl.read_parquet(p) for p in parts]).filter(run='the VLM')
    assert dict(rows.select('index', 'prediction').iter_rows())==vlm

def test_ranges_that_read_alike_are_two_mixtures_and_a_folder_can_grow(tmp_path):
    items, how = load('lab', n=7, split='dev'), dict(out=tmp_path/'run', **HOW)
    both = sweep(LAB/'vlm', LAB/'llm', weights=[.2], items=items, layers=['0,7', '0-7'], **how).table
    assert both.filter(what='accuracy', tag='all')['run'].to_list()==['weight 0.2, layers 0,7',
        'weight 0.2, layers 0-7']
    alone = sweep(LAB/'vlm', LAB/'llm', weights=[.2], items=items, layers=['0,7'], **how).table
    assert alone.filter(what='accuracy', tag='all')['value'].to_list()==both.filter(what='accuracy',
        tag='all')['value'].to_list()[:1]
    sweep(LAB/'vlm', LAB/'llm', weights=[.2, [.9, .8, .7, .6, .5, .4, .3, .2]*5], items=items, **how)
    assert len(list((tmp_path/'run'/'parts').iterdir()))==4

def test_other_models_or_questions_are_refused(tmp_path):
    how = dict(out=tmp_path/'run', **HOW)
    sweep(LAB/'vlm', LAB/'llm', weights=[.2], items=load('lab', n=7, split='dev'), **how)
    for llm, items in ((LAB/'base', load('lab', n=7, split='dev')),
                       (LAB/'llm', load('lab', n=7, seed=1, split='dev'))):
        with pytest.raises(ValueError, match='begun with other settings'):
            sweep(LAB/'vlm', llm, weights=[.2], items=items, **how)

def test_the_best_of_many_alike_is_not_called_better():
    import numpy as np
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = pl.concat([table([w], {w: 0}, n=60).with_columns(correct=pl.Series(rng.random(60)<.5))
                            for w in (.1, .3, .5, .7, .9)])
        scores = scores.with_columns(value=pl.col('correct').cast(float))
        wrong += any(p is not None and p<.05 for _, p in against_best(scores, 200).values())
    assert wrong<=5
