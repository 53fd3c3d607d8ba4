"What a careless or hostile world brings to asking and loading ends in one sentence, or in a plain value"
import json, os, warnings
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from vlm_merging.asking.ask import ask
from vlm_merging.asking.folder import read_lines
from vlm_merging.asking.replies import replies, run_report, shortfall, whole_run
from vlm_merging.benchmarks.items import BENCHMARKS, Benchmark, Item
from vlm_merging.benchmarks.load import load
from vlm_merging.benchmarks.pictures import Picture, encoded
from vlm_merging.scoring.score import score

def quiet(do, *a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return do(*a, **kw)

def table(folder, ids, sign, name='q.csv'):
    rows = [f'{n},What is {n}{sign}{n}?,{n}' for n in ids]
    (folder/name).write_text('\n'.join(['index,question,answer', *rows])+'\n')
    return folder/name

def stops(after):
    "An asker that is interrupted after some replies"
    left = [None]*after
    def asker(item):
        if not left: raise KeyboardInterrupt
        left.pop()
        return item.question
    return asker

def echo(item): return item.question

# ---- A reply counts for the question that it was given to ----

@pytest.mark.parametrize('end', ['stopped', 'failed'])
def test_replies_to_a_table_as_it_was_do_not_count(tmp_path, end):
    out = tmp_path/'run'
    ask(echo, table(tmp_path, range(6), '+'), out, 'r')
    edited = table(tmp_path, range(6), '-')
    if end=='stopped':
        with pytest.raises(KeyboardInterrupt): quiet(ask, stops(2), edited, out, 'r')
        assert '4 were not asked yet' in run_report(out)
    else:
        def breaks(item):
            if int(item.id)>1: raise TimeoutError('gone')
            return item.question
        with pytest.warns(UserWarning, match='2 of 6 items have a reply'): ask(breaks, edited, out, 'r')
        assert '4 failed' in run_report(out) and whole_run(out)['error'].count()==4
    said = run_report(out)
    assert said.startswith('2 of 6 items') and '4 replies are to other questions' in said
    assert replies(out)['prediction'].to_list()==['What is 0-0?', 'What is 1-1?']
    with pytest.warns(UserWarning, match='2 of 6 items'): assert score(out)['correct'].count()==2
    assert len(read_lines(out/'replies.jsonl')[0])==8                    # The old ones stay where they are
    assert ask(echo, edited, out, 'r').height==6 and shortfall(out)==''
    back = []                                             # And serve again if the table is back
    ask(lambda item: back.append(item) or '', table(tmp_path, range(6), '+'), out, 'r')
    assert not back and replies(out)['prediction'][5]=='What is 5+5?'

def test_ids_that_are_gone_do_not_count(tmp_path):
    out = tmp_path/'run'
    ask(echo, table(tmp_path, range(6), '+'), out, 'r')
    moved = table(tmp_path, range(4, 10), '-')
    with pytest.raises(KeyboardInterrupt): quiet(ask, stops(2), moved, out, 'r')
    assert run_report(out).startswith('2 of 6 items') and replies(out)['index'].to_list()==['4', '5']

def test_a_part_and_then_more_of_a_table_are_one_run(tmp_path):
    path, out = table(tmp_path, range(60), '+'), tmp_path/'run'
    ask(echo, load(path, n=20), out, 'r')
    ask(echo, load(path, n=40), out, 'r')
    ask(echo, load(path, n=20), out, 'r')
    assert run_report(out)=='40 of 40 items have a reply.'

def test_a_question_whose_picture_is_gone_has_no_reply(tmp_path):
    out, picture = tmp_path/'run', tmp_path/'a.png'
    picture.write_bytes(b'one')
    items = [Item('1', '?', images=(Picture(picture),)), Item('2', '?')]
    ask(echo, items, out, 'r')
    picture.unlink()
    with pytest.warns(UserWarning, match='1 of 2 items have a reply'): ask(echo, items, out, 'r')
    assert replies(out)['index'].to_list()==['2']

def test_a_row_that_broke_since_has_no_reply(tmp_path):
    out, path = tmp_path/'run', table(tmp_path, range(3), '+')
    ask(echo, path, out, 'r')
    path.write_text(path.read_text().replace('What is 1+1?', ''))
    quiet(ask, echo, path, out, 'r')
    assert run_report(out).startswith('2 of 3 items') and '`question` is empty' in run_report(out)

# ---- All failed ----

@pytest.mark.parametrize('n', [1, 6, 60])
def test_a_run_in_which_all_failed_is_an_error(tmp_path, n):
    def breaks(item): raise OSError('no such thing' if int(item.id)%3 else 'no other')
    told = {1:'The question failed: ', 6:'All 6 questions failed, 4 of',
            60:'The first 20 questions failed, 13 of'}
    with pytest.raises(ValueError, match=told[n]+'.*Mend that'):
        ask(breaks, [Item(str(k), '?') for k in range(n)], tmp_path/'run', 'r')
    assert len(read_lines(tmp_path/'run'/'failures.jsonl')[0])>=min(n, 20)
    assert quiet(ask, echo, [Item(str(k), '?') for k in range(n)], tmp_path/'run', 'r').height==n

# ---- Refused before a model is opened ----

def test_what_can_be_refused_is_refused_before_a_model_is_opened(tmp_path, monkeypatch):
    from vlm_merging.asking import opening
    def opened(*a, **kw): raise AssertionError('opened')
    monkeypatch.setattr(opening, '_from_pretrained', opened)
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'cat.jpg').write_bytes(b'')
    for what, out, told in (('lab', tmp_path/'photos', 'holds cat.jpg'), ('lab', None, 'out is None; it is'),
                            ('lab', tmp_path/'photos'/'cat.jpg', 'is no folder'), ('lab', 7, 'out is 7; it')):
        with pytest.raises(ValueError, match=told): ask('lab/vlm', what, out)
    with pytest.raises(ValueError, match='420 of 420 questions have pictures, and lab/llm is a text model.*'
                                         'weight=0'):
        ask('lab/llm', 'lab', tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_a_server_that_is_not_there_leaves_no_folder(tmp_path):
    from vlm_merging.asking.endpoint import Endpoint
    with pytest.raises(ValueError, match='cannot be reached'):
        ask(Endpoint('http://127.0.0.1:9', 'm'), [Item('1', '?')], tmp_path/'runs'/'nobody')
    assert not (tmp_path/'runs'/'nobody').exists()
    ask(echo, [Item('1', '?')], tmp_path/'kept', 'r')
    with pytest.raises(ValueError, match='other settings'):
        ask(Endpoint('http://127.0.0.1:9', 'm'), [Item('1', '?')], tmp_path/'kept')
    assert replies(tmp_path/'kept').height==1

# ---- Files of a run of other kinds ----

@pytest.mark.parametrize('content', ['[]', 'null', '['*100_000, '', '{"run": 7}', '{"sessions": 5}',
                                     '{"sessions": [{}]}', b'\xff\xfe', '{"run": "a", "run": "b"}'])
def test_a_run_json_of_another_kind_is_one_sentence(tmp_path, content):
    out = tmp_path/'run'
    ask(echo, [Item('1', '?')], out, 'r')
    (out/'run.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    for do in (run_report, replies, whole_run, score, lambda o: ask(echo, [Item('1', '?')], o, 'r')):
        with pytest.raises(ValueError, match='run.json is damaged'): do(out)

LINES = [dict(benchmark=['a'], index='1', prediction='x', error='e'),
         dict(split={}, index='1', prediction='x', error='e'),
         dict(benchmark=5, index='1', prediction='x', error='e'), dict(index='q'),
         dict(error='x', prediction='y'), dict(index='1', error=['e'], prediction=3),
         dict(index={}, error={}, prediction=[]), {}]

def test_rows_of_other_kinds_are_damaged_lines(tmp_path):
    out, asked = tmp_path/'run', []
    ask(echo, [Item('1', '?'), Item('2', '?')], out, 'r')
    kept = (out/'replies.jsonl').read_text().splitlines()
    for row in LINES:
        line = json.dumps(row)+'\n'
        (out/'replies.jsonl').write_text(line+kept[1]+'\n')
        for name in 'failures.jsonl', 'left_out.jsonl': (out/name).write_text(line)
        assert '1 line of replies.jsonl cannot be read (1); what they held is asked again.' in run_report(out)
        assert '1 line of failures.jsonl' in run_report(out) and '1 line of left_out.jsonl' in run_report(out)
        assert quiet(score, out)['index'].to_list()==['2'] and run_report(out).startswith('1 of 2 items')
        asked.clear()
        def notes(item): return asked.append(item.id) or 'x'
        assert quiet(ask, notes, [Item('1', '?'), Item('2', '?')], out, 'r').height==2
        assert asked==['1']

def test_what_was_asked_last_is_damaged(tmp_path):
    out = tmp_path/'run'
    ask(echo, [Item('1', '?'), Item('2', '?')], out, 'r')
    (out/'asked.jsonl').write_text('{"index": {}}\n')
    with pytest.warns(UserWarning, match='1 line of asked.jsonl cannot be read .1.; so every reply of the'):
        assert score(out).height==2

@pytest.mark.parametrize('name', ['replies.jsonl', 'failures.jsonl', 'asked.jsonl', 'left_out.jsonl'])
@pytest.mark.parametrize('make', [Path.mkdir, getattr(os, 'mkfifo', Path.mkdir)])
def test_a_folder_or_a_pipe_in_place_of_a_file_of_a_run(tmp_path, name, make):
    out = tmp_path/'run'
    ask(echo, [Item('1', '?')], out, 'r')
    (out/name).unlink(missing_ok=True)
    make(out/name)
    for job in (lambda: score(out), lambda: run_report(out), lambda: ask(echo, [Item('1', '?')], out, 'r')):
        with pytest.raises(ValueError, match=f'{name} is'): job()

def test_half_a_character_in_the_name_of_a_tag_is_a_question_mark(tmp_path):
    got = ask(echo, [Item('1', '?', tags={'kind \ud800':'a'})], tmp_path/'run', 'r')
    assert got.columns[-1]=='kind ?' and replies(tmp_path/'run').columns[-1]=='kind ?'

def test_an_asker_whose_errors_have_no_words_fails_one_item(tmp_path):
    class Mute(Exception):
        def __str__(self): raise RuntimeError('none')
    def asker(item):
        if item.id=='1': raise Mute
        return 'x'
    assert quiet(ask, asker, [Item('1', '?'), Item('2', '?')], tmp_path/'run', 'r').height==1
    assert '1 x Mute:' in run_report(tmp_path/'run')

# ---- Items and pictures ----

RED = encoded(Image.new('RGB', (3, 2), 'red'))

def test_an_item_takes_pictures_as_a_model_does(tmp_path):
    (tmp_path/'a.png').write_bytes(RED)
    for images in (RED, [RED], (Picture(RED),), str(tmp_path/'a.png'), tmp_path/'a.png', [tmp_path/'a.png'],
                   Image.new('RGB', (3, 2), 'red'), Picture(str(tmp_path/'a.png'))):
        item, = [Item('1', '?', images=images)]
        assert [p.open().size for p in item.images]==[(3, 2)]
    assert Item(1, '?', 3, images=None)==Item('1', '?', '3')

@pytest.mark.parametrize('fields,told', [
    (('What?', Image.new('RGB', (2, 2))), "Item 'What\\?': `question` is Image.*The order is Item\\(id"),
    ((None, 'q'), 'An Item: `id` is NoneType'), (('1', None), '`question` is NoneType'),
    (('1', b'q'), '`question` is bytes'),
    (('1', 'q', None, 7), '`images`: int is no picture'), (('1', 'q', None, [7]), 'int is no picture'),
    (('1', 'q', None, [['a.png']]), 'one behind the other'),
    (('1', 'q', None, 'http://x/a.png'), 'on the net'),
    (('1', 'q', {}), '`answer` is one text'), (('1', 'q', None, (), 'AB'), '`choices` is str'),
    (('1', 'q', object()), '`answer` is object')])
def test_an_item_is_checked_when_it_is_made(fields, told):
    with pytest.raises(ValueError, match=told): Item(*fields)

@pytest.fixture
def quiz(tmp_path, monkeypatch):
    "A record that names pictures by itself, and a table in a folder of its own"
    def row(r): return Item(r['nr'], r['ask'], '1', Picture(r['pic']) if r.get('pic') else ())
    monkeypatch.setitem(BENCHMARKS, 'quiz', Benchmark('quiz', 'local', 'test', row))
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'0.png').write_bytes(RED)
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    def table(*names):
        lines = [json.dumps(dict(nr=str(n), ask='?', pic=pic)) for n, pic in enumerate(names)]
        (tmp_path/'quiz.jsonl').write_text('\n'.join(lines)+'\n')
        return '../quiz.jsonl'
    return table

def test_a_record_that_names_pictures_is_told_of_those_that_are_missing(quiz):
    items = load(quiz('mine/0.png', 'mine/1.png', 'mine/0.png', None), benchmark='quiz')
    assert [len(i.images) for i in items]==[1, 1, 0] and items[0].images[0].open().size==(3, 2)
    assert items.problems[0]==("quiz.jsonl line 2: there is no image file 'mine/1.png' "
                               "(a path counts from the folder of the table).")
    with pytest.raises(ValueError, match="lines 1, 2: there is no image file 'no.png'"):
        load(quiz('no.png', 'no.png'), benchmark='quiz')
    with pytest.raises(ValueError, match='on the net'): load(quiz('http://x/a.png'), benchmark='quiz')

# ---- Names and columns ----

def test_a_name_that_is_nearly_one_is_told(tmp_path):
    for name, near in (('labb', 'lab'), ('LABS', 'lab'), ('mathvsta', 'MathVista')):
        with pytest.raises(LookupError, match=f'Did you mean {near}\\?'): load(name)
    (tmp_path/'t.csv').write_text('frage,bild,antwort\na,b,c\n')
    with pytest.raises(ValueError, match='columns are frage, bild, antwort. Rename them to question, '
                                         'image and answer'): load(tmp_path/'t.csv')

@pytest.mark.parametrize('given,told', [
    (dict(n=1.5), 'n is 1.5; it is a whole number, 1 or more'), (dict(n='3'), "n is '3'"),
    (dict(n=-1), 'n is -1'), (dict(n=0), 'n is 0'), (dict(n=True), 'n is True'),
    (dict(seed='x'), "seed is 'x'"), (dict(seed=-1), 'seed is -1'),
    (dict(seed=None), 'seed is None'), (dict(split=3), '`split` is 3'), (dict(name=3), 'name is int'),
    (dict(folder=3), 'folder is 3'), (dict(benchmark=3), 'named here, not handed over')])
def test_arguments_of_load_are_checked(tmp_path, given, told):
    (tmp_path/'t.csv').write_text('question\na\n')
    for what in ('lab', tmp_path/'t.csv') if 'n' in given or 'seed' in given else (tmp_path/'t.csv',):
        with pytest.raises(ValueError, match=told): load(what, **given)

def test_what_is_no_plain_file_is_told_as_that(tmp_path):
    os.mkfifo(tmp_path/'pipe.csv')
    for do in (load, score):
        for path in (tmp_path/'pipe.csv', '/dev/null'):
            with pytest.raises(ValueError, match='no plain file'): do(path)
        with pytest.raises(ValueError): do('a\0.csv')
        with pytest.raises((ValueError, LookupError)): do('x'*5000)
    with pytest.raises(ValueError, match='zero byte'): ask('lab/vlm', 'lab', 'a\0')

# ---- Tables ----

def lines(folder, *rows, name='t.jsonl'):
    (folder/name).write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows)+'\n')
    return folder/name

@pytest.mark.parametrize('value,text', [(1e20, '100000000000000000000'), (2**64, str(2**64)),
                                        (['3'], '["3"]'), ({'a': 1}, '{"a": 1}'), (float('inf'), 'inf'),
                                        ('\ud800', '?')])
def test_a_reply_of_another_kind_than_the_others_is_its_text(tmp_path, value, text):
    path = lines(tmp_path, dict(index='1', answer='5', prediction=5.0, t=1),
                 dict(index='2', answer=value, prediction=value, t=value))
    got = quiet(score, path)
    assert got['prediction'][1]==text and got['outcome'][1]!='empty' and got['correct'][1] is not None
    assert got['correct'][0] and load(lines(tmp_path, dict(question='?', answer=value)))[0].answer==text

def test_text_as_bytes_is_text_and_other_bytes_are_told(tmp_path):
    row = dict(index=[b'1'], question=['Wie groß?'.encode()], answer=[b'1'], prediction=[b'1'],
               thumb=[b'\x89PNG\xff'])
    pl.DataFrame(row).write_parquet(tmp_path/'q.parquet')
    item, = load(tmp_path/'q.parquet')
    assert (item.id, item.question, item.answer)==('1', 'Wie groß?', '1')
    assert score(tmp_path/'q.parquet')['correct'].to_list()==[True]
    assert load(pl.DataFrame(row))[0].question=='Wie groß?'
    for frame in pl.DataFrame(row|dict(question=[b'\xff'])), pl.DataFrame(row|dict(prediction=[b'\xff'])):
        frame.write_parquet(tmp_path/'q.parquet')
        with pytest.raises(ValueError, match='row 1: `(question|prediction)`: it holds bytes that are no'):
            load(tmp_path/'q.parquet')
            score(tmp_path/'q.parquet')

def test_tables_that_nest_repeat_or_overflow_are_told_with_their_rows(tmp_path):
    deep = '{"index": 2, "question": "b?", "answer": "3", "prediction": "3", "t": '+'{"a": '*900+'1'+'}'*901
    twice = '{"question": "c?", "question": "d?"}'
    path = lines(tmp_path, dict(index=1, question='a?', answer='3', prediction='3'), deep, twice,
                 '{"index": 4, "question": "e?", "answer": '+'9'*5000+', "prediction": "x"}')
    items = load(path)
    assert [i.id for i in items]==['1', '4'] and items[1].answer=='9'*5000
    assert items.problems==['t.jsonl line 2: it is nested more than 100 deep.',
                            't.jsonl line 3: a name stands twice in it.']
    with pytest.warns(UserWarning, match='line 2: it is nested'): score(path)
    assert quiet(score, path).height==2
    nested = lines(tmp_path, '['*100_000+']'*100_000, name='n.json')
    digits = lines(tmp_path, '[{"question": "?", "answer": '+'9'*5000+'}]', name='d.json')
    for do in load, score:
        with pytest.raises(ValueError, match='n.json .*nested more than 100 deep'): do(nested)
    assert load(digits)[0].answer=='9'*5000
    (tmp_path/'t.csv').write_text('index,question,answer,answer,prediction\n1,?,2,3,3\n')
    for do in load, score:
        with pytest.raises(ValueError, match="t.csv: the column 'answer' stands twice"): do(tmp_path/'t.csv')
    (tmp_path/'t.csv').write_text('index,question,answer,precision\n1,?,2,1000000000\n2,?,2,2\n')
    assert load(tmp_path/'t.csv').problems[0].startswith("t.csv row 1: `precision` is '1000000000', where")

def test_text_in_another_coding_is_told(tmp_path):
    for name, text in (('t.jsonl', '{"question": "?"}\n'), ('t.csv', 'question\n?\n')):
        (tmp_path/name).write_text(text, encoding='utf-16')
        for do in load, score:
            with pytest.raises(ValueError, match='UTF-16. Save it as UTF-8'): do(tmp_path/name)
    (tmp_path/'t.csv').write_bytes(b'question,answer\r?,1\r')
    with pytest.raises(ValueError, match='old Macs'): load(tmp_path/'t.csv')

def test_times_and_objects_in_a_frame_are_text():
    frame = pl.DataFrame(dict(question=['a?', 'b?'], answer=[timedelta(seconds=3)]*2))
    frame = frame.with_columns(pl.Series('tag', [object(), object()], pl.Object))
    assert load(frame)[0].answer=='0:00:03'

# ---- Replies that were made elsewhere, to a table of one's own ----

@pytest.fixture
def own_quiz(tmp_path):
    "A table with an id twice; a run on it; and replies of another tool to it, with an answer of their own"
    quiz = tmp_path/'quiz.csv'
    quiz.write_text('id,question,answer\n1,What is 1+1?,2\n2,What is 3+3?,6\n2,What is 5+5?,10\n')
    quiet(ask, lambda item: '6', quiz, tmp_path/'run', 'here')
    (tmp_path/'theirs.csv').write_text('id,prediction,answer\n1,2,2\n2,6,7\n')
    return quiz, tmp_path/'run', tmp_path/'theirs.csv'

def test_replies_from_elsewhere_meet_a_run_on_the_same_table(own_quiz, capsys):
    from vlm_merging.cli.main import main
    quiz, run, theirs = map(str, own_quiz)
    assert main(['compare', run, theirs, '--items', quiz])==4       # Of the run a row was left out
    out, err = capsys.readouterr()
    assert 'quiz' in out and 'unnamed' not in out
    assert 'quiz.csv row 3: the index stands in an earlier row already; that one counts' in err
    assert 'theirs.csv row 2: --items has another answer to the question, and that one counts' in err
    assert main(['score', theirs, '--items', quiz])==0
    assert '100.0%' in capsys.readouterr().out

def test_replies_without_names_say_what_would_name_them(own_quiz, capsys):
    from vlm_merging.cli.main import main
    _, run, theirs = map(str, own_quiz)
    assert main(['compare', run, theirs])==3
    err = capsys.readouterr().err
    assert all(f"benchmark '{name}', split 'all', index '1'" in err for name in ('quiz', 'unnamed'))

def test_a_report_says_which_pictures_it_looked_for(own_quiz, tmp_path, capsys):
    from vlm_merging.cli.main import main
    quiz, run, theirs = map(str, own_quiz)
    own = theirs.replace('theirs', 'mine')
    Path(own).write_text('id,benchmark,prediction,answer\n1,other,2,2\n2,other,6,6\n')
    assert main(['report', own, own, '--items', quiz, '--out', str(tmp_path/'page.html')])==0
    err = capsys.readouterr().err
    assert 'compared with itself' in err
    assert 'such as benchmark other, split all, index 1: no picture is known' in err
    assert '--items they are named as in benchmark quiz, split all, index 1' in err

def test_unknown_thoughts_are_told_where_replies_are_compared(tmp_path, capsys):
    from vlm_merging.cli.main import main
    for name in 'ab':
        reply = '<ponder>It may be 3.</ponder> It is 2.'
        (tmp_path/f'{name}.csv').write_text(f'index,prediction,answer\n1,{reply},2\n')
    runs, page = [str(tmp_path/f'{n}.csv') for n in 'ab'], ['--out', str(tmp_path/'page.html')]
    for words in (['compare', *runs], ['report', *runs, *page]):
        main(words)
        assert 'Unknown tags' in capsys.readouterr().err
        main([*words, '--thinking', '<ponder>'])
        assert 'Unknown tags' not in capsys.readouterr().err
    assert main(['compare', *runs, '--thinking', 'ponder'])==3
    assert "With its brackets a tag is '<ponder>'" in capsys.readouterr().err

def test_what_is_missing_is_named_by_what_is_there(tmp_path, capsys):
    from vlm_merging.cli.main import main
    for head, said in {'index,prediction,gold':'Rename gold to answer.',
                       'Prediction,answer':'Rename Prediction to',
                       'index,prediction':'table of questions that has them: --items'}.items():
        (tmp_path/'a.csv').write_text(head+'\n'+','.join('1'*len(head.split(',')))+'\n')
        assert main(['score', str(tmp_path/'a.csv')])==3
        err = capsys.readouterr().err
        assert said in err and ', run' not in err
