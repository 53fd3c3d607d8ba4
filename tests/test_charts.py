"Charts: every one validates, says its units, fetches nothing, and takes tables as they come"
import json
import altair as alt, polars as pl, pytest
from conftest import walk
from vlm_merging.charts import pages
from vlm_merging.checkpoints import writer as writer
from vlm_merging.charts.score_charts import (
    length_chart, lengthening_chart, pairs_chart, scores_chart, weights_chart)
from vlm_merging.charts.pages import save_chart, show_offline, together
from vlm_merging.comparing.pairs import comparison_table
from vlm_merging.comparing.summary import by_length, summarize

def scores(run='a', n=40, shift=0, **more):
    "A score table of `n` items"
    right = [(7*i+shift)%10<5 for i in range(n)]
    said = dict(benchmark='Toy', run=run, index=range(n), correct=right, outcome='answered',
                length=[3+(i*37+shift)%900 for i in range(n)],
                category=[('general-vqa', 'math-targeted-vqa')[i%2] for i in range(n)])
    return pl.DataFrame(said|more)

A, B = scores(), scores('b', shift=2)
BOTH = pl.concat([A, B])
SUMMARY, PAIRS, LENGTHS = summarize(BOTH, 'category'), comparison_table(A, B, 'category'), by_length(BOTH)
SWEEP = summarize(pl.concat(scores(f'{w/4}', shift=w) for w in range(5)),
                  'category').with_columns(weight=pl.col('run').cast(pl.Float64))
ALL = dict(scores=lambda: scores_chart(SUMMARY, 'category'), loops=lambda: scores_chart(SUMMARY, what='loop'),
           long=lambda: scores_chart(SUMMARY, what='length'),
           pairs=lambda: pairs_chart(PAIRS, 'category'), length=lambda: length_chart(LENGTHS),
           lengthening=lambda: lengthening_chart(PAIRS),
           weights=lambda: weights_chart(SWEEP, 'category'))
PANELS = by_length([BOTH, scores(benchmark='Other')])

def axes(spec, channel):
    "Titles of an axis, wherever it is named"
    return {o[channel]['title'] for o in walk(spec) if isinstance(o.get(channel), dict)
            and o[channel].get('title')}

@pytest.mark.parametrize('name', ALL)
def test_a_chart_has_a_message_and_units_and_fetches_nothing(name):
    spec = ALL[name]().to_dict()                                # Altair validates it
    assert spec['title']['text'] and spec['config']['background']=='transparent'
    said = ' '.join(axes(spec, 'x')|axes(spec, 'y'))
    assert any(unit in said for unit in ('%', 'points', 'characters')), said
    assert not [o for o in walk(spec) if 'url' in o or str(o.get('href', '')).startswith('http')]
    assert len(json.dumps(spec))<30_000
    assert len(set(spec['title']['text'] if isinstance(spec['title']['text'], list)
                   else [spec['title']['text']]))<4

def test_a_title_leaves_names_as_they_are():
    a, b = (scores(r, benchmark='mine', shift=s) for r, s in (('a', 0), ('b', 2)))
    sweep = summarize(pl.concat([a.with_columns(run=pl.lit('0.5')), b.with_columns(run=pl.lit('1'))]),
                      'category').with_columns(weight=pl.col('run').cast(pl.Float64))
    for chart in (lengthening_chart(comparison_table(a, b, 'category')), weights_chart(sweep, 'category')):
        assert chart.to_dict()['title']['text'][0].startswith('mine: ')
    assert weights_chart(sweep).to_dict()['title']['text'][0].startswith('Highest at')

@pytest.mark.parametrize('name', ALL)
def test_a_chart_is_drawn_without_network(name, tmp_path):
    text = save_chart(ALL[name](), tmp_path/'x.svg').read_text()
    assert text.startswith('<svg') and 'NaN' not in text and 'undefined' not in text and 'null' not in text

def test_several_charts_on_one_page(tmp_path):
    made = together(ALL['scores'](), ALL['pairs'](), length_chart(PANELS), ALL['weights']())
    text = save_chart(made, tmp_path/'x.svg').read_text()
    assert all(t in text for t in ('General VQA', 'lost', 'Other', 'share of the VLM')) and 'NaN' not in text

def test_a_page_needs_no_network(tmp_path):
    page = save_chart(ALL['scores'](), tmp_path/'x.html').read_text()
    assert '<script src' not in page and '<link' not in page and 'color-scheme' in page and len(page)>300_000
    assert save_chart(ALL['scores'](), tmp_path/'x.png').read_bytes()[:4]==b'\x89PNG'
    assert json.loads(save_chart(ALL['scores'](), tmp_path/'x.json').read_text())['config']
    assert sorted(o.name for o in tmp_path.iterdir())==['x.html', 'x.json', 'x.png']

def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    old = save_chart(ALL['scores'](), tmp_path/'x.svg').read_bytes()
    def full(*_): raise OSError('no space left')
    monkeypatch.setattr(writer.os, 'fsync', full)
    with pytest.raises(OSError): save_chart(ALL['pairs'](), tmp_path/'x.svg')
    assert [o.name for o in tmp_path.iterdir()]==['x.svg'] and (tmp_path/'x.svg').read_bytes()==old

def test_what_cannot_be_saved_is_said(tmp_path):
    with pytest.raises(ValueError, match='saved as .html'): save_chart(ALL['scores'](), tmp_path/'x.gif')
    with pytest.raises(ValueError, match='There is no folder'):
        save_chart(ALL['scores'](), tmp_path/'none'/'x.svg')
    assert not list(tmp_path.iterdir())

def test_the_renderer_for_offline_notebooks():
    try:
        show_offline()
        assert alt.renderers.active=='live and still'
    finally: alt.renderers.enable('default')

@pytest.mark.parametrize('made', [
    lambda: scores_chart(summarize(scores(n=1))), lambda: scores_chart(summarize(A)),
    lambda: scores_chart(SUMMARY.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))),
    lambda: scores_chart(SUMMARY.with_columns(value=pl.lit(None, pl.Float64))),
    lambda: pairs_chart(comparison_table(scores(n=1), scores('b', n=1))),
    lambda: pairs_chart(comparison_table(A, A.with_columns(run=pl.lit('b')))),
    lambda: length_chart(by_length(scores(n=1, length=0))),
    lambda: length_chart(by_length([A, scores(benchmark='Other')])),
    lambda: lengthening_chart(PAIRS, 'all'), lambda: weights_chart(SWEEP.filter(weight=.5)),
    lambda: weights_chart(SWEEP.with_columns(low=pl.lit(None, pl.Float64)), 'category'),
    lambda: scores_chart(SUMMARY, title='Mine')])
def test_small_tables_and_nulls(made, tmp_path):
    text = save_chart(made(), tmp_path/'x.svg').read_text()
    assert 'NaN' not in text and 'undefined' not in text

@pytest.mark.parametrize('made,why', [
    (lambda: scores_chart(SUMMARY.head(0)), 'it is empty'),
    (lambda: scores_chart(SUMMARY, 'skills'), "no row with tag 'skills'.*category"),
    (lambda: scores_chart(SUMMARY, what='F1'), "what 'F1'"), (lambda: scores_chart(A), 'no column tag'),
    (lambda: pairs_chart(SUMMARY), 'no column run_a'), (lambda: pairs_chart(PAIRS.head(0)), 'it is empty'),
    (lambda: pairs_chart(PAIRS.with_columns(n=0)), 'share no item'),
    (lambda: length_chart(SUMMARY), 'no column length'),
    (lambda: lengthening_chart(PAIRS.with_columns(length_a=pl.lit(None, pl.Float64))), 'no length'),
    (lambda: weights_chart(SUMMARY), 'no column weight'),
    (lambda: weights_chart(SWEEP.with_columns(pl.col('weight').cast(pl.String))), 'number is needed'),
    (lambda: weights_chart(SWEEP.with_columns(weight=pl.lit(None, pl.Float64))),
     'both a weight and a value')])
def test_what_cannot_be_drawn_is_said(made, why):
    with pytest.raises(ValueError, match=why): made()

def test_the_message_says_what_the_table_says():
    def told(chart):
        text = chart.to_dict()['title']['text']
        return text if isinstance(text, str) else ' '.join(text)
    assert told(scores_chart(SUMMARY))=='Toy, accuracy: a 50.0%, b 50.0%'
    assert told(pairs_chart(PAIRS, 'category'))==(
        'Toy: b against a, better on 0, worse on 0 of 2 (p < .05, corrected)')
    assert told(weights_chart(SWEEP, 'category')).startswith('Toy: Highest at ')
    assert told(scores_chart(SUMMARY, title='Mine'))=='Mine'
    best = SWEEP.filter(tag='all', what='accuracy').sort('value')['weight'][-1]
    assert told(weights_chart(SWEEP)).startswith('Highest at ') and best in (0, .25, .5, .75, 1)

def contrast(a, b):
    "Of two colours, 1 to 21 (WCAG)"
    def light(c):
        parts = [int(c[i:i+2], 16)/255 for i in (1, 3, 5)]
        parts = [x/12.92 if x<=.03928 else ((x+.055)/1.055)**2.4 for x in parts]
        return .2126*parts[0]+.7152*parts[1]+.0722*parts[2]
    x, y = sorted((light(a), light(b)))
    return (y+.05)/(x+.05)

def test_ink_and_colours_show_on_light_and_on_dark_pages():
    for page in ('#ffffff', '#14171d', '#111111'):
        assert contrast(pages.INK, page)>4
        assert all(contrast(c, page)>2.2 for c in pages.COLOURS)
        assert all(contrast(c, page)>3 for c in pages.COLOURS[:3])
