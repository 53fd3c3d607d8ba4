"What a careless or hostile world brings to asking and loading ends in one sentence, or in a plain value"
import json, warnings

import pytest
from vlm_merging.asking.ask import ask
from vlm_merging.asking.folder import read_lines
from vlm_merging.asking.replies import replies, report, shortfall, whole_run
from vlm_merging.benchmarks.items import Item, Items, Picture
from vlm_merging.benchmarks.load import load
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
        assert '4 were not asked yet' in report(out)
    else:
        def breaks(item):
            if int(item.id)>1: raise TimeoutError('gone')
            return item.question
        with pytest.warns(UserWarning, match='2 of 6 items have a reply'): ask(breaks, edited, out, 'r')
        assert '4 failed' in report(out) and whole_run(out)['error'].count()==4
    assert report(out).startswith('2 of 6 items') and '4 replies are to other questions' in report(out)
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
    assert report(out).startswith('2 of 6 items') and replies(out)['index'].to_list()==['4', '5']

def test_a_part_and_then_more_of_a_table_are_one_run(tmp_path):
    path, out = table(tmp_path, range(60), '+'), tmp_path/'run'
    ask(echo, load(path, n=20), out, 'r')
    ask(echo, load(path, n=40), out, 'r')
    ask(echo, load(path, n=20), out, 'r')
    assert report(out)=='40 of 40 items have a reply.'

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
    assert report(out).startswith('2 of 3 items') and '`question` is empty' in report(out)

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
    for do in (report, replies, whole_run, score, lambda o: ask(echo, [Item('1', '?')], o, 'r')):
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
        assert '1 line of replies.jsonl cannot be read (1); what they held is asked again.' in report(out)
        assert '1 line of failures.jsonl' in report(out) and '1 line of left_out.jsonl' in report(out)
        assert quiet(score, out)['index'].to_list()==['2'] and report(out).startswith('1 of 2 items')
        asked.clear()
        def notes(item): return asked.append(item.id) or 'x'
        assert quiet(ask, notes, [Item('1', '?'), Item('2', '?')], out, 'r').height==2
        assert asked==['1']

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
    assert '1 x Mute:' in report(tmp_path/'run')
