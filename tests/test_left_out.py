"Nothing disappears: what cannot be asked, failed or could not be read is counted wherever the rest is"
import json, shutil, warnings

import polars as pl
import pytest
from PIL import Image
from vlm_merging.asking.ask import ask
from vlm_merging.asking.replies import replies, run_report, shortfall, whole_run
from vlm_merging.asking.results import import_replies
from vlm_merging.benchmarks.items import Item, Items
from vlm_merging.benchmarks.load import load
from vlm_merging.comparing.compare import compare
from vlm_merging.comparing.summary import summarize, worst_case
from vlm_merging.scoring.judge import judge_report, judged
from vlm_merging.scoring.problems import problems
from vlm_merging.scoring.score import score

def quiet(f, *args, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **how)

def table(folder, rows, name='mine.csv'):
    Image.new('RGB', (48, 48), 'red').save(folder/'red.png')
    pl.DataFrame(rows).write_csv(folder/name)
    return folder/name

ROWS = [dict(id=str(n), question=f'How many {n}?', image='red.png', answer=str(n%3), category='ab'[n%2])
        for n in range(8)]
def rows(*gone, **changed): return [r|(changed if n in gone else {}) for n, r in enumerate(ROWS)]
def typo(*gone): return rows(*gone, image='rde.png')

def says(text): return lambda item: text
def run(path, out, text='It is 1.', name='r'): return quiet(ask, says(text), path, out, name)

# From the table to the run

def test_one_of_two_is_said_everywhere(tmp_path, call):
    "The listed fault: a mistyped picture among two rows"
    path = table(tmp_path, typo(1)[:2])
    items = load(path)
    assert len(items)==1 and repr(items).startswith('1 item, 1 left out; problems:')
    assert str(items.left[0])==("mine.csv row 2: there is no image file 'rde.png' "
                                  '(a path counts from the folder of the table)')
    with pytest.warns(UserWarning, match='(?s)1 of 2 items have a reply.*1 left out.*row 2: there is no'):
        ask(says('0'), path, tmp_path/'run', 'r')
    assert run_report(tmp_path/'run').startswith(
        '1 of 2 items have a reply.\n1 left out, since it cannot be asked:\n  1 x mine.csv row 2')
    with pytest.warns(UserWarning, match='1 of 2 items have a reply'): scores = score(tmp_path/'run')
    assert scores['correct'].to_list()==[True, None] and scores['outcome'].to_list()==['answered', 'no reply']
    code, out, err = call('score', tmp_path/'run', '--out', tmp_path/'s.parquet')
    assert code==4 and '1 of 2 items have a reply' in err and 'row 2: there is no image file' in err
    assert '100.0% (95% 20.7% to 100.0%) of 1; 1 of 2 has no reply, so of all it is between 50.0% and' in out
    code, out, err = call('score', tmp_path/'s.parquet')        # The table of scores knows it, too
    assert code==4 and '1 of 2 has no reply' in out and 'No reply, row 2' in err

def test_the_shell_counts_what_it_asks(tmp_path, call):
    path = table(tmp_path, typo(2, 5))
    code, out, err = call('ask', 'lab/vlm', '--benchmark', path, '--out', tmp_path/'run',
                          '--max-new-tokens', 2)
    assert code==4 and '6 of 8 items have a reply.' in out
    assert "rows 3, 6: there is no image file 'rde.png'" in err
    assert err.count('there is no image file')==1               # Told once
    code, out, err = call('compare', tmp_path/'run', tmp_path/'run')
    assert code==4 and 'Left out: 2 without a reply in one of the runs' in out

def test_a_table_without_answers_is_told_before_it_is_asked(tmp_path, call):
    path, asked = table(tmp_path, [{k:v for k, v in r.items() if k!='answer'} for r in ROWS]), []
    with pytest.warns(UserWarning, match='mine: no question has an answer'):
        ask(lambda i: asked.append(i) or 'x', path, tmp_path/'a', 'r')
    assert len(asked)==8                                        # Replies alone may be what is wanted
    some = table(tmp_path, rows(1, 2, answer=None), 'some.csv')
    with pytest.warns(UserWarning, match='some: 2 of 8 questions have no answer'):
        ask(says('x'), load(some), tmp_path/'b', 'r')
    code, out, err = call('ask', 'lab/vlm', '--benchmark', path, '--out', tmp_path/'c', '--max-new-tokens', 2)
    assert code==0 and 'no question has an answer' in err

LOST = dict(picture=(dict(image='rde.png'), 'no image file'),
            question=(dict(question=''), '`question` is empty'),
            gold=(dict(answer='blue', A='x', B='y'), 'but there are 2 choices'),
            double=(dict(id='3'), 'stands in an earlier row'),
            metric=(dict(metric='vibes'), 'no rule named'), number=(dict(precision='two'), 'decimal places'))

@pytest.mark.parametrize('kind', LOST)
def test_every_way_to_be_left_out_is_counted(tmp_path, kind):
    changed, why = LOST[kind]
    all_ = [dict.fromkeys(changed)|r for r in rows(5, **changed)]
    path = table(tmp_path, all_)
    assert run(path, tmp_path/'run').height==7
    assert run_report(tmp_path/'run').startswith('7 of 8') and why in run_report(tmp_path/'run')
    scores = quiet(score, tmp_path/'run')
    assert scores.height==8 and (scores['outcome']=='no reply').sum()==1
    assert scores.n_unique(['benchmark', 'split', 'run', 'index'])==8

def test_lines_that_are_no_rows_are_counted_and_shift_no_name(tmp_path):
    lines = [json.dumps(dict(question=f'{n}?', answer=n)) for n in range(4)]
    (tmp_path/'a.jsonl').write_text('\n'.join([lines[0], '{broken', lines[2], '[1]']))
    (tmp_path/'b.csv').write_text('question,answer\na?,1\nb, c?,2\nd?,3\n')
    (tmp_path/'c.json').write_text(json.dumps(dict(x=dict(question='?', answer='1'), y=None)))
    for name, ids, left in (('a.jsonl', '13', '24'), ('b.csv', '13', '2'), ('c.json', 'x', '2')):
        items = load(tmp_path/name)
        assert [i.id for i in items]==[*ids] and [o.id for o in items.left]==[*left], name

def test_a_row_function_may_raise_anything(tmp_path):
    from vlm_merging.benchmarks.items import BENCHMARKS, Benchmark
    def to_item(row):
        if row['id']=='2': raise IndexError('list index out of range')
        return Item(row['id'], row['question'], row['answer'])
    try:
        BENCHMARKS['odd'] = Benchmark('odd', 'local', 'test', to_item)
        items = load(table(tmp_path, ROWS), benchmark='odd')
    finally: BENCHMARKS.pop('odd', None)
    assert len(items)==7 and 'IndexError' in items.left[0].why

# The folder of a run

def test_what_is_mended_is_not_left_out_any_more(tmp_path):
    run(table(tmp_path, typo(1, 4)), tmp_path/'run')
    assert run_report(tmp_path/'run').startswith('6 of 8')
    run(table(tmp_path, typo(4)), tmp_path/'run')
    assert run_report(tmp_path/'run').startswith('7 of 8')
    run(table(tmp_path, typo(4)[:4]+typo(4)[5:]), tmp_path/'run')          # The row is gone from the table
    assert run_report(tmp_path/'run').splitlines()[0]=='7 of 7 items have a reply.'
    run(table(tmp_path, ROWS), tmp_path/'run')
    assert run_report(tmp_path/'run')=='8 of 8 items have a reply.' and shortfall(tmp_path/'run')==''
    assert whole_run(tmp_path/'run').equals(replies(tmp_path/'run'))

def test_several_tables_in_one_run(tmp_path):
    a, b = table(tmp_path, typo(1), 'a.csv'), table(tmp_path, typo(2, 3), 'b.csv')
    run(a, tmp_path/'run')
    run(b, tmp_path/'run')                                       # The first one's rows stay noted
    assert run_report(tmp_path/'run').startswith('13 of 16')
    both = load(a)+load(b)
    assert (len(both), len(both.left))==(13, 3)
    run(both, tmp_path/'both')
    assert quiet(score, tmp_path/'both').drop('run').equals(quiet(score, tmp_path/'run').drop('run'))

def test_a_second_table_that_was_stopped_is_not_done(tmp_path):
    a, b = table(tmp_path, ROWS, 'a.csv'), table(tmp_path, ROWS, 'b.csv')
    run(a, tmp_path/'run')
    def stops(item):
        if item.id=='3': raise KeyboardInterrupt
        return 'x'
    with pytest.raises(KeyboardInterrupt): quiet(ask, stops, b, tmp_path/'run', 'r')
    said = run_report(tmp_path/'run')
    assert said.startswith('11 of 16') and '5 were not asked yet' in said

def test_a_part_is_the_same_with_and_without_its_pictures(tmp_path):
    many = [dict(id=str(n), question='?', answer='1', image='red.png') for n in range(60)]
    whole = load(table(tmp_path, many), n=20)
    torn = load(table(tmp_path, [r|dict(image='rde.png') if n%4==0 else r for n, r in enumerate(many)]), n=20)
    assert {i.id for i in torn}|{o.id for o in torn.left}=={i.id for i in whole} and 0<len(torn.left)<20
    run(torn, tmp_path/'run')
    assert run_report(tmp_path/'run').startswith(f'{len(torn)} of 20 items')
    run(tmp_path/'mine.csv', tmp_path/'run')                     # All of it, and then the part again
    run(torn, tmp_path/'run')
    assert run_report(tmp_path/'run').startswith('45 of 60 items')
    none, seeds = table(tmp_path, [r|dict(image='rde.png') for r in many[:9]]+[many[9]], 'no.csv'), []
    for seed in range(20):
        try: seeds.append(len(load(none, n=1, seed=seed)))
        except ValueError as e: assert str(e).startswith('Nothing in a part of 1 can be asked. no.csv row')
    assert 0<len(seeds)<20 and {*seeds}=={1}

def test_a_run_that_was_moved_knows_it_still(tmp_path):
    run(table(tmp_path, typo(1)), tmp_path/'run')
    shutil.move(tmp_path/'run', tmp_path/'elsewhere')
    (tmp_path/'mine.csv').unlink()
    assert quiet(score, tmp_path/'elsewhere')['correct'].null_count()==1
    assert str(tmp_path) not in (tmp_path/'elsewhere'/'left_out.jsonl').read_text()

def test_failures_keep_their_tags_and_stand_apart(tmp_path):
    def shaky(item):
        if item.id in '46': raise TimeoutError('gone')
        return str(int(item.id)%3)
    quiet(ask, shaky, table(tmp_path, typo(1)), tmp_path/'run', 'r')
    scores = quiet(score, tmp_path/'run')
    silent = scores.filter(outcome='no reply')
    assert silent.select('index', 'category').rows()==[('1', None), ('4', 'a'), ('6', 'a')]
    assert silent['reason'][1]=='TimeoutError: gone' and silent['length'].null_count()==3
    by = summarize(scores, 'category')
    assert by.filter(what='no reply', where='a')['value'][0]==.5 and by.filter(where='(none)').height==0
    assert by.filter(what='accuracy', tag='all').select('value', 'n').rows()==[(1., 5)]
    assert by.filter(what='unreadable gold', tag='all')['value'][0]==0
    assert problems(scores)==['No reply, rows 2, 5, 7 (index 1, 4, 6): counted neither as right nor as '
                              'wrong.']
    assert 'no reply' not in summarize(scores.filter(pl.col('outcome')!='no reply'))['what']

# Compared, judged, imported

def test_compare_counts_each_sides_losses(tmp_path):
    run(table(tmp_path, typo(1, 2)), tmp_path/'a', '1')
    run(table(tmp_path, typo(2, 3, 4)), tmp_path/'b', '2')
    with pytest.warns(UserWarning, match='of 8 items have a reply'):
        both = compare(tmp_path/'a', tmp_path/'b', by='category')
    row = both.table.filter(tag='all').to_dicts()[0]
    assert (row['n'], row['no_reply'], row['only_a'], row['only_b'], row['no_gold'])==(4, 4, 0, 0, 0)
    assert 'Left out: 4 without a reply in one of the runs.' in both.verdict
    assert '(none)' not in both.verdict and '(none)' not in both.table['where'].to_list()
    a, b = quiet(score, tmp_path/'a'), quiet(score, tmp_path/'b')
    few = compare(a.filter(pl.col('index').is_in(['1', '2', '0'])), b)
    assert few.table['n'][0]==1 and 'share only 1 of 8 items' in few.verdict

def test_a_worst_case_needs_all_variants_to_have_a_reply():
    base = dict(benchmark='DynaMath', run='r', group='g', correct=True, value=1., outcome='answered')
    rows_ = [base|dict(index=str(n)) for n in range(10)]
    rows_ += [base|dict(index=f'x{n}', group='h') for n in range(9)]
    rows_.append(dict(benchmark='DynaMath', run='r', group='h', index='x9', outcome='no reply'))
    table_ = pl.DataFrame(rows_, infer_schema_length=None)
    assert summarize(table_).filter(what='worst case')['n'][0]==1 and worst_case(table_).height==1

def test_a_judge_is_not_asked_about_what_nobody_said(tmp_path):
    run(table(tmp_path, typo(1)), tmp_path/'run', 'Perhaps, who knows')
    asked = []
    scores = quiet(judged, tmp_path/'run', lambda i: asked.append(i) or 'NONE', tmp_path/'judge', 'j')
    assert scores.filter(outcome='no reply')['index'].to_list()==['1'] and scores.height==8
    assert ' of 7 replies' in judge_report(scores) and all('None' not in i.question for i in asked)

def test_results_of_others_keep_what_has_no_reply(tmp_path, call):
    rows_ = [dict(index=n, question='?', answer='1', prediction='1', options="['x', 'y']") for n in range(5)]
    rows_[1]['prediction'] = 'Failed to obtain answer via API.'
    rows_[2]['options'] = 'no list'
    path = tmp_path/'m_Shapes.tsv'
    pl.DataFrame(rows_).write_csv(path, separator='\t')
    with pytest.warns(UserWarning) as heard: got = import_replies(path, benchmark='Shapes')
    assert [str(w.message)[14:45] for w in heard]==['1 of 5 rows hold a failed reque',
                                                   '1 of 5 rows could not be read (']
    assert got.height==5 and quiet(score, got)['outcome'].to_list().count('no reply')==2
    code, out, err = call('score', path)
    assert code==4 and '2 of 5 have no reply' in out and 'hold a failed request' in err
    items = [Item(str(n), '?', '1', benchmark='Shapes') for n in range(7)]
    said = []
    full = import_replies(path, items=items, problems=said)
    assert full.height==7 and '2 of 7 items have no row' in ' '.join(said)

def test_a_file_with_broken_lines_is_not_all_there(tmp_path, call):
    (tmp_path/'r.jsonl').write_text('{"index": "1", "answer": "7", "prediction": "7"}\n{"index": "2", "ans\n')
    code, out, err = call('score', tmp_path/'r.jsonl')
    assert code==4 and 'r.jsonl line 2: no JSON object' in err

# Probes and sweeps

@pytest.mark.parametrize('words', [('profile', '--parts', 'layer', '--layers', '0'),
                                   ('sweep', 'lab/llm', '--weights', '.5')])
def test_probes_and_sweeps_go_on_without_a_picture(tmp_path, call, words):
    path = table(tmp_path, typo(1))
    (tmp_path/'torn.png').write_bytes((tmp_path/'red.png').read_bytes()[:50])
    pl.read_csv(path, infer_schema=False).with_columns(
        image=pl.when(pl.col('id')=='4').then(pl.lit('torn.png')).otherwise('image')).write_csv(path)
    command, *more = words
    code, out, err = call(command, 'lab/vlm', *more, '--benchmark', path, '--out', tmp_path/'run',
                          '--max-new-tokens', 2)
    assert code==4, err
    assert 'row 2: there is no image file' in err
    assert '1 of 7 left out: item 4: mine.csv row 5: the image cannot be decoded' in err

def test_lists_are_put_together_without_loss():
    some = Items([Item('1', '?')], ['a'], whole=[('x', '')])
    both = some+[Item('2', '?')]+Items(left=['row'], problems=['b'])
    assert [i.id for i in both]==['1', '2'] and both.problems==['a', 'b']
    assert both.left==['row'] and both.whole=={('x', '')}
    both += both
    assert (len(both), len(both.left))==(4, 2)
