"Charts along the layers: valid, with units, one shared selection, and readable for tables as they come"
import json
import numpy as np, polars as pl, pytest
from conftest import walk
from vlm_merging.charts.pages import save_chart, together
from vlm_merging.charts.layer_charts import (PICKED, before_after_chart, change_scale, linked, of_layers,
                                              profile_chart)
from vlm_merging.charts.maps import heat_chart, layers_page, weight_map
from vlm_merging.probing.profile import profile_change, profile_table

def probe(model='VLM', depth=6, parts=('layer', 'mlp'), measures=('likelihood', 'answer'), how=('skip',),
          n=24, kinds=('perception', 'reasoning'), costs=None, **more):
    "A probe table: early layers matter for perception, later ones for reasoning"
    rng, rows = np.random.default_rng(len(model)), []
    costs = [3*np.exp(-l) for l in range(depth)] if costs is None else costs
    for i in range(n):
        for measure in measures:
            for part in parts:
                for way in how:
                    for l in range(depth):
                        c = costs[l] if i%2 else costs[::-1][l]
                        b, a = (-1., -1-c+.1*rng.normal()) if measure=='likelihood' else (1.,
                            float(rng.random()>min(1, c/3)))
                        rows.append(dict(model=model, benchmark='Toy', index=str(i), kind=kinds[i%len(kinds)],
                                         measure=measure, layer=l, part=part, how=way, before=b, after=a))
    return pl.DataFrame(rows).with_columns(**{k:pl.lit(v) for k, v in more.items()})

BOTH = [probe(), probe('merged')]
PROFILE, CHANGE = profile_table(BOTH, 'kind', resamples=200), profile_change(BOTH, 'VLM', 'merged', 'kind',
    resamples=200)
WEIGHTS = pl.DataFrame([dict(what=w, layer=l, module=m, value=v) for l in (0, 1, 2, 3, 4, 5, None)
                        for m in ('all', 'attention', 'mlp')
                        for w, v in (('relative_vlm', .01*(1+(l or 0))), ('cosine', .2-.1*(l or 0)),
                                     ('own', 3.))])
ALL = dict(profile=lambda: profile_chart(PROFILE),
           answer=lambda: profile_chart(PROFILE, measure='answer', parts=('layer',)),
           change=lambda: before_after_chart(PROFILE, change=CHANGE),
           means=lambda: before_after_chart(PROFILE, part='mlp', measure='answer'),
           heat=lambda: heat_chart(PROFILE), weights=lambda: weight_map(WEIGHTS))

def title(chart):
    "The title as one line"
    made = chart.to_dict()['title']['text']
    return made if isinstance(made, str) else ' '.join(made)

@pytest.mark.parametrize('name', ALL)
def test_a_chart_has_a_message_and_units_and_one_selection(name, tmp_path):
    spec = ALL[name]().to_dict()                                # Altair validates it
    assert spec['title']['text'] and spec['title']['subtitle'] and spec['config']['background']=='transparent'
    said = {o['title'] for o in walk(spec) if isinstance(o.get('title'), str)}
    assert any(u in t for t in said for u in ('nats', 'points', 'share')) and 'layer' in said, said
    assert [p['name'] for p in spec['params']]==[PICKED] and spec['params'][0]['views']
    assert not [o for o in walk(spec) if 'url' in o or str(o.get('href', '')).startswith('http')]
    text = save_chart(ALL[name](), tmp_path/'x.svg').read_text()
    assert text.startswith('<svg') and 'NaN' not in text and 'undefined' not in text and '>null<' not in text

def test_the_page_has_one_selection_and_no_network(tmp_path, recwarn):
    page = layers_page(PROFILE, WEIGHTS, CHANGE, measure='answer')
    spec = page.to_dict()
    assert [p['name'] for p in spec['params']]==[PICKED] and len(spec['vconcat'])==6
    assert len(layers_page(PROFILE.filter(model='VLM')).vconcat)==4 # Two measures
    with pytest.raises(ValueError, match="measure 'answer' and how 'zero'"):
        layers_page(PROFILE, measure='answer', how='zero')
    held = [o for o in walk(spec['vconcat']) if 'params' in o]
    assert not held                                             # None is left behind in a part
    used = [o for o in walk(spec) if o.get('param')==PICKED]
    assert len(used)>=6 and not recwarn.list
    html = save_chart(page, tmp_path/'x.html').read_text()
    assert '<script src' not in html and 'color-scheme' in html
    two = linked(together, [heat_chart(PROFILE), weight_map(WEIGHTS)])
    assert [p['name'] for p in two.to_dict()['params']]==[PICKED]
    assert len(layers_page(None, WEIGHTS).to_dict()['vconcat'])==1

def test_the_axes_stand_above_each_other(tmp_path):
    spec = layers_page(PROFILE.filter(model='VLM'), WEIGHTS, measure='answer').to_dict()
    x = {json.dumps(o['scale']['domain']) for o in walk(spec) if o.get('field') in ('layer', 'from')
         and isinstance(o.get('scale'), dict)}
    y = {(o['axis'].get('minExtent'), o['axis'].get('maxExtent'))
         for o in walk(spec) if o.get('field') in ('change', 'low', 'row') and 'axis' in o}
    assert x=={'[-0.5, 5.5]'} and len(y)==1 and None not in y.pop()
    assert {o['width'] for o in walk(spec) if isinstance(o.get('width'), int)}=={460}

def test_titles_come_from_the_rows():
    assert title(profile_chart(PROFILE)).startswith('Masking a layer hurts perception in ')
    assert 'MLP' in title(profile_chart(PROFILE, parts=('mlp',)))
    assert title(before_after_chart(PROFILE,
                                    change=CHANGE)).startswith('Masking a layer costs merged more than VLM: '
                                                               'perception in 0 of 6')
    assert 'points on average' in title(before_after_chart(PROFILE, measure='answer'))
    assert 'MLP of layer 5' in title(heat_chart(PROFILE))
    assert 'MLP of layer 0 ' in title(heat_chart(PROFILE))+' '
    assert title(weight_map(WEIGHTS)).endswith('most in layer 5 (0.06), least in layer 0 (0.01)')
    for chart in (profile_chart(PROFILE, title='Mine'), heat_chart(PROFILE, title='Mine'),
                  weight_map(WEIGHTS, title='Mine')):
        assert title(chart)=='Mine'

def test_layer_0_does_not_flatten_the_rest():
    for costs, kind in (([95, 5, 4, 3, 2, 1], 'symlog'), ([9, 6, 4, 3, 3, 3], None)):
        table = profile_table(probe(costs=costs, measures=('likelihood',), kinds=('a',)), resamples=200)
        spec = profile_chart(table, parts=('layer',)).to_dict()
        kinds = {o['scale'].get('type') for o in walk(spec) if o.get('field') in ('change', 'low')
                 and 'scale' in o}
        assert kinds=={kind} and ('log scale beyond' in json.dumps(spec['title']))==(kind is not None)
    rows = pl.DataFrame(dict(layer=range(8), change=[-95., -24, -5, -3, -4, -2, -1,
                                                     -.5])).with_columns(low=pl.col('change')-2,
                                                         high=pl.col('change')+2)
    scale, ticks, note = change_scale(rows)
    assert scale['type']=='symlog' and scale['constant']==2
    assert 0 in ticks and min(ticks)==-50 and note=='log scale beyond ±2'
    assert scale['domain'][0]<-97
    sides = change_scale(rows, True)[0]['domain']
    assert sides[0]==-sides[1]
    assert change_scale(rows.with_columns(change=pl.lit(0.), low=pl.lit(0.), high=pl.lit(0.)))[2]==''

@pytest.mark.parametrize('what', ['one layer', 'no tag', 'deep', 'many kinds', 'heads', 'heads only',
                                  'nothing moves', 'no interval', 'two benchmarks', 'long names', 'helps'])
def test_tables_as_they_come(what, tmp_path):
    rows, by = probe(n=24, parts=('layer', 'mlp'), measures=('likelihood',)), 'kind'
    if what=='one layer': rows = rows.filter(layer=0)
    if what=='no tag': by = ()
    if what=='deep': rows = probe(depth=80, n=6, measures=('likelihood',))
    if what=='many kinds': rows = probe(n=40, kinds=tuple('abcdefghij'), measures=('likelihood',))
    if what.startswith('heads'):
        heads = pl.concat([probe(parts=('head',), measures=('likelihood',), heads=str(h), n=12)
                           for h in range(12)])
        rows = heads if what=='heads only' else pl.concat([rows.with_columns(heads=pl.lit('')), heads])
    if what=='nothing moves': rows = rows.with_columns(after='before')
    if what=='two benchmarks': rows = pl.concat([rows, rows.with_columns(benchmark=pl.lit('Other'))])
    if what=='long names':
        rows = rows.with_columns(kind=pl.col('kind')+' of things with a very long name indeed'*2,
                                 model=pl.lit('a/b/c'*20))
    if what=='helps': rows = rows.with_columns(before='after', after='before')
    table = profile_table(rows, by, resamples=200)
    if what=='no interval':
        table = table.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    if what=='heads only':
        assert len(layers_page(table).to_dict()['vconcat'])==1
        with pytest.raises(ValueError, match='single heads'): profile_chart(table)
    else:
        page = save_chart(layers_page(table), tmp_path/'x.svg').read_text()
        assert 'NaN' not in page and 'undefined' not in page
    text = save_chart(heat_chart(table), tmp_path/'y.svg').read_text()
    assert 'NaN' not in text and 'undefined' not in text
    if what=='heads only': assert text.index('head 2<')<text.index('head 10<')
    if what=='many kinds': assert '6 largest of 10 kinds' in text

def test_masks_of_several_layers_stay_in_the_table():
    rows = probe(measures=('likelihood',)).with_columns(layers=pl.col('layer').cast(pl.String))
    wide = rows.filter(layer=0).with_columns(layers=pl.lit('0-2'))
    table = profile_table([rows, wide], 'kind', resamples=200)
    assert of_layers(table, None, model=None, measure=None,
                     how=None)[0]['layers'].unique().sort().to_list()==list('012345')
    with pytest.raises(ValueError, match='of several layers'):
        profile_chart(profile_table(wide, resamples=200))

@pytest.mark.parametrize('draw,why', [(lambda: profile_chart(PROFILE.drop('low')), 'no column low'),
                                      (lambda: profile_chart(PROFILE, 'colour'), "no row with tag 'colour'"),
    (lambda: profile_chart(PROFILE, model='other'), "model 'other'"),
    (lambda: profile_chart(PROFILE.head(0)), 'is empty'),
    (lambda: profile_chart(PROFILE, parts=('head',)), 'has the parts layer, mlp'),
    (lambda: before_after_chart(PROFILE.filter(model='VLM')), 'no second model'),
    (lambda: before_after_chart(PROFILE, after='x'), "has no model 'x'; it has VLM, merged"),
    (lambda: weight_map(WEIGHTS, 'angle'), 'has no angle; it has'),
    (lambda: weight_map(WEIGHTS.drop('module')), 'no column module'),
    (lambda: weight_map(WEIGHTS.filter(pl.col('layer').is_null())), 'no row with a layer'),
    (lambda: layers_page(None), 'give a profile')])
def test_what_cannot_be_drawn_is_said(draw, why):
    with pytest.raises(ValueError, match=why): draw()

def test_more_kinds_of_one_model_are_chosen_by_name():
    rows = probe(how=('skip', 'uniform'), parts=('layer',))
    table = profile_table(rows, 'kind', resamples=200)
    for how in ('skip', 'uniform'):
        for measure, unit in (('likelihood', 'nats'), ('answer', 'points')):
            spec = profile_chart(table, how=how, measure=measure).to_dict()
            assert f'masked by {how}' in spec['title']['subtitle'][0]
            assert f'change, {unit}' in json.dumps(spec)
    assert profile_chart(table,
                         tag='all').to_dict()['title']['text'][0].startswith('Masking a layer hurts Toy in')
