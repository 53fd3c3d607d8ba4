"""The page of two runs: its numbers are those of the replies, its pictures those that were asked,
what does not belong together is refused, and nothing is half written"""
import json, shutil, warnings
from pathlib import Path

import polars as pl, pytest
from PIL import Image
from conftest import Tags, needs_nothing_else
from vlm_merging import ask, compare, report, score
from vlm_merging.cli import report as room
from vlm_merging.cli.main import main

pytestmark = pytest.mark.xdist_group('report')        # One set of runs for all of them
N = 24
ASKED = '--benchmark lab --max-new-tokens 24 --batch-size 24'

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A merge of the lab, both runs, a probe and a sweep, as the shell makes them"
    out = tmp_path_factory.mktemp('work')
    for line in ('merge lab/vlm lab/llm --weight 0.6 --out OUT/merged',
                 f'ask lab/vlm {ASKED} -n {N} --out OUT/a',
                 f'ask OUT/merged {ASKED} -n {N} --out OUT/b',
                 f'profile lab/vlm --against OUT/merged {ASKED} --split dev -n 16 --parts layer --layers 0-1 '
                 f'--measure answer --out OUT/probe',
                 f'sweep lab/vlm lab/llm --weights 1,.6 {ASKED} --split dev -n 16 --out OUT/sweep'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert main(line.replace('OUT', str(out)).split())==0
    return out

@pytest.fixture(scope='module')
def page(work):
    "The page with everything on it"
    words = f"report {work}/a {work}/b --probe {work}/probe --sweep {work}/sweep --out {work}/page.html"
    assert main(words.split())==0
    return (work/'page.html').read_text(encoding='utf-8')

# What stands on it

def test_everything_is_on_the_page(page, work):
    text = Tags(page).text
    for head in ('Is that more than chance?', 'Right answers', 'Along the weight', 'Questions and replies',
                 'Length of replies', 'Which layers matter', 'What this shows, and what not',
                 'How it was made'):
        assert head in text
    said = compare(work/'a', work/'b', 'category').verdict
    for line in said.splitlines(): assert line.strip('- ') in text
    assert 'was taken, 0.6' in text and 'rest of this page is of other questions' in text
    assert '"weight": 0.6' in text and '"max_new_tokens": 24' in text

def test_it_needs_nothing_but_itself_and_names_no_place(page, work):
    needs_nothing_else(page)
    assert len(page)<2_000_000 and str(work) not in page and str(Path.home()) not in page

def test_the_numbers_are_those_of_the_replies(page, work):
    rows = next(t for t in Tags(page).tables if 'change, points' in t[0])
    scores = {name:score(work/name) for name in 'ab'}
    for where, *cells in rows[1:]:
        for cell, (name, table) in zip(cells, scores.items()):
            some = table if where=='all' else table.filter(category=where)
            assert cell.split()[0]==f"{some['correct'].mean():.1%}", (where, name)

def test_won_and_lost_replies_stand_there_with_their_pictures(page, work):
    a, b = ({r['index']:r for r in score(work/name).to_dicts()} for name in 'ab')
    won = [i for i in a if b[i]['value']>a[i]['value']]
    tags = Tags(page)
    assert f'Won: {len(won)} of {N}' in tags.text and won
    pictures = [at['alt'] for t, at in tags.tags if t=='img']
    assert len(pictures)==page.count('<article>') and {*pictures}<={*a}
    for i in [i for i in won if i in pictures]:
        assert a[i]['question'] in tags.text and b[i]['prediction'] in tags.text

def test_python_says_the_same(page, work, tmp_path):
    out = report(work/'a', work/'b', tmp_path/'p.html', probe=work/'probe', sweep=work/'sweep')
    assert out==tmp_path/'p.html' and out.read_text(encoding='utf-8')==page

def test_a_probe_and_a_sweep_from_python_have_no_tables_yet(page, work, tmp_path):
    for name in ('probe', 'sweep'):
        shutil.copytree(work/name, tmp_path/name)
        for file in (tmp_path/name).glob('*.parquet'): file.unlink()
    out = report(work/'a', work/'b', tmp_path/'p.html', probe=tmp_path/'probe', sweep=tmp_path/'sweep')
    assert Tags(out.read_text(encoding='utf-8')).text==Tags(page).text

# Runs of anybody

def table(name, n=12, right=1, **more):
    "Scores of a run that answers every `right`-th question rightly"
    same = dict(benchmark='mine', split='test', run=name)
    rows = [same|dict(index=str(i), question=f'Which {i}?', answer=str(i), category=('even', 'odd')[i%2],
                      prediction=str(i if i%right==0 else -1)) for i in range(n)]
    return pl.DataFrame(rows).with_columns(**more)

def quietly(*args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return report(*args, **more).read_text(encoding='utf-8')

def test_tables_will_do(tmp_path):
    text = quietly(table('x', right=3), score(table('y', right=2)), tmp_path/'a.html')
    assert 'y against x' in text and 'no picture is known' in text and 'Won: ' in text
    for part in ('Along the weight', 'Which layers', 'The recipe'): assert part not in text

def test_runs_of_one_name_are_told_apart(tmp_path):
    assert 'after against before' in quietly(table('x'), table('x', right=2), tmp_path/'a.html')

def test_many_kinds_and_several_benchmarks(tmp_path):
    kinds = [pl.concat([table(name, 40, right, category=pl.format('kind {}', pl.col('index').cast(int)%9)),
                        table(name, 6, right, benchmark=pl.lit('other'), category=pl.lit(None, pl.String))])
             for name, right in (('x', 3), ('y', 2))]
    text = quietly(*kinds, tmp_path/'a.html')
    assert 'mine, kind 8' in text and text.count('<dd class="big">')==3
    assert '46 questions of mine, other' in text

def test_scores_without_words_or_length(tmp_path):
    rows = [dict(benchmark='m', index=str(i), run='x', correct=i%2==0) for i in range(8)]
    after = [r|dict(run='y', correct=True) for r in rows]
    text = quietly(pl.DataFrame(rows), pl.DataFrame(after), tmp_path/'a.html')
    assert 'Length of replies' not in text and 'Won: 4 of 8' in text

@pytest.mark.parametrize('how', ['a list', 'columns', 'one side only'])
def test_what_could_be_chosen_stands_on_the_card(tmp_path, how):
    "As the replies have it: in their column, in columns A, B, C, or in those of one run alone"
    three, listed = dict(A='a < b', B='blue', C='pear'), json.dumps(['a < b', 'blue', 'pear'])
    plain = [table(name, right=right) for name, right in (('x', 3), ('y', 2))]
    some = [t.with_columns(**(dict(choices=pl.lit(listed)) if how!='columns' else
                              {k: pl.lit(v) for k, v in three.items()}),
                           answer=pl.lit('B')) for t in plain]
    if how=='one side only':
        free = dict(answer=pl.lit('blue'), question_type=pl.lit('free_form'))
        some = [some[0].with_columns(**free), some[1].drop('choices').with_columns(**free)]
    text = quietly(*some, tmp_path/'a.html')
    assert text.count('<article>')>0
    for told in 'A. a &lt; b', 'B. blue', 'C. pear': assert text.count(told)==text.count('<article>'), told
    assert '<ul class="options">' not in quietly(*plain, tmp_path/'b.html')

def test_long_texts_are_folded(tmp_path):
    long = 'step by step '*200
    rows = [t.with_columns(question=pl.lit(long), prediction=pl.lit(long)+pl.col('prediction'))
            for t in (table('x'), table('y', right=2))]
    text = quietly(*rows, tmp_path/'a.html')
    assert text.count('<details><summary>… ')==text.count('<article>')*3

@pytest.fixture
def drawn(tmp_path):
    "Two runs on a table of one's own, with pictures"
    rows = []
    for i in range(6):
        Image.new('RGB', (20, 10), (40*i, 0, 0)).save(tmp_path/f'{i}.png')
        rows.append(dict(index=str(i), question=f'How red {i}?', image=f'{i}.png', answer=str(i)))
    pl.DataFrame(rows).write_csv(tmp_path/'mine.csv')
    for name, said in (('a', '9'), ('b', None)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ask(lambda item: said or item.answer, tmp_path/'mine.csv', tmp_path/name, name)
    return tmp_path

def words_for(drawn):
    return 'report', drawn/'a', drawn/'b', '--items', drawn/'mine.csv', '--out', drawn/'p.html'

def test_pictures_of_a_table_of_ones_own_are_found_where_it_is_named(drawn, call):
    line = f'report {drawn}/a {drawn}/b --out {drawn}/p.html'
    code, out, err = call(*line.split())
    assert code==0 and '6 questions that are shown have no picture here' in err and '--items' in err
    code, out, err = call(*line.split(), '--items', drawn/'mine.csv')
    text = (drawn/'p.html').read_text(encoding='utf-8')
    assert (code, err)==(0, '') and text.count('<img')==6 and f'report: {drawn}/p.html' in out

def test_another_picture_than_the_one_that_was_asked_is_not_shown(drawn, call):
    Image.new('RGB', (20, 10), (9, 9, 9)).save(drawn/'3.png')
    (drawn/'4.png').write_bytes(b'no picture')
    code, out, err = call(*words_for(drawn))
    text = (drawn/'p.html').read_text(encoding='utf-8')
    assert code==0 and text.count('<img')==4 and text.count('others by now than those asked')==2
    assert '2 of 6 questions that are shown' in err

def test_what_has_no_reply_is_told_by_the_exit_code(drawn, call):
    lines = (drawn/'b'/'replies.jsonl').read_text().splitlines()
    (drawn/'b'/'replies.jsonl').write_text('\n'.join(lines[:-1])+'\n')
    lost = {k:v for k, v in json.loads(lines[-1]).items() if k!='prediction'}
    (drawn/'b'/'failures.jsonl').write_text(json.dumps(lost|dict(error='It broke.'))+'\n')
    code, out, err = call(*words_for(drawn))
    assert code==4 and '5 of 6 items have a reply' in err and (drawn/'p.html').is_file()

def test_runs_that_were_asked_otherwise_say_so(work, tmp_path, call):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        words = ASKED.replace('24 ', '3 ').split()
        assert call('ask', work/'merged', *words, '-n', N, '--out', tmp_path/'b')[0]==0
    code, out, err = call('report', work/'a', tmp_path/'b', '--out', tmp_path/'p.html')
    assert code==0 and 'max_new_tokens was 24 for a and 3 for b.' in err
    assert 'max_new_tokens was 24 for a' in Tags((tmp_path/'p.html').read_text(encoding='utf-8')).text

def test_weights_that_were_tried_on_the_questions_that_are_reported(work, tmp_path, call):
    sweep = f'sweep lab/vlm lab/llm --weights 1,.6 {ASKED} -n 8 --out {tmp_path}/s'
    assert call(*sweep.split())[0]==0
    code, out, err = call('report', work/'a', work/'b', '--sweep', tmp_path/'s', '--out', tmp_path/'p.html')
    assert code==0 and '8 questions on which weights were tried are among those reported' in err
    assert 'may fit them by luck' in (tmp_path/'p.html').read_text(encoding='utf-8')

# What does not belong together, and what cannot be

def test_what_is_refused(work, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(work/'a', 'dev')
    text = Path('dev/run.json').read_text()
    Path('dev/run.json').write_text(text.replace(json.loads(text)['about']['weights'], '0'*24))
    shutil.copytree('dev', 'dev2')
    table('x').write_csv('x.csv')
    table('x', answer=pl.lit(None, pl.String)).write_csv('none.csv')
    Path('mine.html').write_text('<p>mine')
    Path('there').mkdir()
    a, b = work/'a', work/'b'
    for line, said in ((f'{a} nowhere --out p.html', 'nowhere is not there'),
                       (f'{a} x.csv --out p.html', 'share no item'),
                       ('none.csv none.csv --out p.html', 'nothing to report'),
                       (f'{a} {b} --probe nowhere --out p.html', 'nowhere is not there. Name the folder'),
                       (f'{a} {b} --probe {work}/sweep --out p.html', 'no folder of a probe'),
                       (f'{a} {b} --sweep {work}/probe --out p.html', 'no folder of a sweep'),
                       (f'dev dev2 --probe {work}/probe --out p.html', 'masked other models'),
                       (f'dev dev2 --sweep {work}/sweep --out p.html', 'mixed into other models'),
                       (f'{a} {b} --items nowhere.csv --out p.html', 'nowhere.csv is not there'),
                       (f'{a} {b} --out p.txt', 'written as .html'),
                       (f'{a} {b} --out there', 'written as .html'),
                       (f'{a} {b} --out no/p.html', 'no folder'),
                       (f'{a} {b} --out mine.html', 'is no report: it is left as it is')):
        code, out, err = call('report', *line.split())
        assert code==3 and said in err and 'Traceback' not in err and not out, (line, err)
    assert not Path('p.html').exists() and Path('mine.html').read_text()=='<p>mine'

@pytest.mark.parametrize('fault,code', [(KeyboardInterrupt(), 130), (ValueError('No.'), 3)],
                         ids=['ctrl-c', 'no'])
def test_nothing_is_half_written(fault, code, drawn, call, monkeypatch):
    words = words_for(drawn)
    def fails(found): raise fault
    before = {*drawn.iterdir()}
    with monkeypatch.context() as m:
        m.setattr(room, 'page', fails)
        assert call(*words)[0]==code and {*drawn.iterdir()}==before
    assert call(*words)[0]==0
    first = (drawn/'p.html').read_bytes()
    monkeypatch.setattr(room, 'page', fails)
    assert call(*words)[0]==code and (drawn/'p.html').read_bytes()==first, 'the earlier page is gone'

def test_a_report_is_written_anew(drawn, call):
    words = words_for(drawn)
    assert call(*words)[0]==0==call(*words)[0]

# Text of strangers, and a real browser without network

BAD = ['</script><script>window.fired=1</script>', '<img src=x onerror="window.fired=1">', '"><b onclick=x>',
       '<!--', '{{ 7*7 }}', '\x1b[31mred\u202e']

def test_text_of_strangers_is_text(browser, tmp_path):
    bad = [t.with_columns(question=pl.lit(BAD[k])+pl.col('question'),
                          prediction=pl.lit(BAD[1])+pl.col('prediction'),
                          category=pl.lit(BAD[0])+pl.col('category'), run=pl.lit(''.join(BAD)+n),
                          benchmark=pl.lit(BAD[3]+BAD[0]))
           for k, (n, t) in enumerate((('a', table('x', right=3)), ('b', table('y', right=2))))]
    text = quietly(*(score(t) for t in bad), tmp_path/'a.html')
    needs_nothing_else(text)
    assert '\x1b' not in text and '\u202e' not in text and BAD[4] in Tags(text).text
    page = browser.new_page(viewport=dict(width=390, height=900))
    page.goto((tmp_path/'a.html').as_uri())
    assert not page.evaluate('window.fired') and BAD[0] in page.inner_text('h1')
    assert page.evaluate('document.documentElement.scrollWidth')<=390
    page.close()

@pytest.mark.parametrize('width,scheme', [(390, 'light'), (390, 'dark'), (1100, 'light'), (1100, 'dark')])
def test_in_a_browser_without_network(width, scheme, browser, page, work):
    seen = browser.new_context(offline=True, color_scheme=scheme,
                               viewport=dict(width=width, height=900)).new_page()
    said = []
    seen.on('console', lambda m: said.append(m.text))
    seen.on('request', lambda r: said.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    seen.goto((work/'page.html').as_uri())
    assert not said
    assert seen.evaluate('document.documentElement.scrollWidth')<=width, 'the page is wider than the screen'
    drawn = seen.locator('figure svg:visible')
    assert drawn.count()==5
    for k in range(5):
        box = drawn.nth(k).bounding_box()
        assert box['x']+box['width']<=width and box['height']>60
    assert seen.evaluate('[...document.images].every(i => i.naturalWidth>0 && i.alt)')
    least = seen.evaluate('Math.min(...[...document.querySelectorAll("p, li, td")].map('
                          'o => parseFloat(getComputedStyle(o).fontSize)))')
    assert least>=12
    paper = seen.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (paper=='rgb(255, 255, 255)')==(scheme=='light')
    seen.locator('summary').last.click()
    assert seen.locator('details[open] pre').is_visible()
    seen.context.close()
