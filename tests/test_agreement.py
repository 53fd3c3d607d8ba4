"Result files of others as replies, and two graders of the same replies"
import json, random

import polars as pl
import pytest
import vlm_merging
from vlm_merging.asking.formats import FORMATS, VERDICT, verdict_of
from vlm_merging.asking.reading import table_at
from vlm_merging.asking.results import import_replies
from vlm_merging.benchmarks.items import Item
from vlm_merging.comparing.agreement import agreement, kappa, kappa_interval
from vlm_merging.scoring.problems import problems
from vlm_merging.scoring.score import score
from vlm_merging.scoring.judge import judged

# Made-up files in the true shapes

VISTA = {'1':dict(question='How many?', image='images/1.jpg', choices=None, unit='g', precision=None,
                  answer='4',
                  question_type='free_form', answer_type='integer', pid='1',
                  metadata=dict(split='testmini', task='counting', skills=['arithmetic'], source='X',
                                correct=3),
                  query='Hint: an integer.\nQuestion: How many? (Unit: g)', response='There are 4 grams.',
                  extraction='4', prediction='4', true_false=True),
         '2':dict(question='Which?', choices=['red', 'blue'], answer='blue', question_type='multi_choice',
                  answer_type='text', pid='2', metadata=dict(split='testmini', task='seeing'), unit=None,
                  query='Question: a?\nPython code: 1\n\nQuestion: Which?\nChoices:\n(A) red\n(B) blue',
                  precision=None,
                  response='print("blue")', execution='blue', error='None', extraction='A', prediction='red',
                  true_false=False)}
EMMA = {'phy_1':dict(query='\nWhich?\nA: <image_2>\nB: <image_3>', gt_content='<image_2>', pid='phy_1',
                     question='Which?', options=['<image_2>',
                                                 '<image_3>'], answer='A', solution='', subject='Physics',
                     task='', category='Path', source='k', type='Multiple Choice', context='',
                     response='Thus \\(\\boxed{B}\\).', extraction='B', true_false=False),
        'phy_2':dict(query='How many?', gt_content='3', pid='phy_2', question='How many?', options=[],
                     answer='3',
                     type='Open-ended', category='Path', subject='Physics', response='3', gpt_eval='Correct',
                     true_false=True),
        'phy_3':dict(query='How many?', gt_content='3', pid='phy_3', options=[], answer='3',
                     type='Open-ended',
                     error='Connection reset')}
MATHV = [dict(id='1', model='m', response='80', model_answer='80', correct=False),
         dict(id='2', model='m', response='The answer is (B).', model_answer='b', correct=True)]
ASKED = [dict(id='1', question='How many?\n<image1>', options=[], answer='6', solution=None, level=1,
              subject='counting', image='images/1.jpg'),
         dict(id='2', question='Which?\n<image1>', options=['A', 'B', 'C'], answer='B', level=2,
              subject='logic',
              image='images/2.jpg')]
PRO = [dict(id='test_Art_1', question='Who?', options="['Ann', \"Bo's\"]", explanation='?',
            img_type="['Paintings']",
            answer='B', topic_difficulty='Easy', subject='Art', response='Answer: B', pred_indexs='B',
            if_right=True),
       dict(id='test_Art_2', question='Who?', options=['Ann', 'Bo'], answer='B', img_type=['Paintings'],
            is_correct=True,
            shuffled_options=['Bo', 'Cy',
                              'Ann'], shuffled_options_answer='A', type='Standard(10opts)', subject='Art',
            response='A', incorrect_reason=None),
       dict(id='test_Art_3', question='Who?', options=['Ann', 'Bo'], answer='B', img_type=[],
            response={'error':'late'})]
LOGIC = ''',id,reasoning skill,capability,true answer,LLAVA7B answer extracted,LLAVA7B answer raw,match?
0,v1_0,['inductive'],"['diagram', 'ocr']",['c'],['b']," Based on the image, B.",0
1,v1_1,['inductive'],['diagram'],"['a', 'c']","['a', 'c']"," A, C",1
2,v1_2,['deductive'],['ocr'],['3'],['3'],3,1
'''
LMMS = [dict(doc_id=0, target='4', doc=dict(pid='7', query='How many?', choices=None, answer='4',
                                            answer_type='integer',
                                           question_type='free_form', metadata=dict(task='counting')),
             arguments=[['How many?',
                         dict(max_new_tokens=16)]], resps=[['It is 4.']], filtered_resps=['It is 4.'],
             doc_hash='h', llm_as_judge_eval=dict(question_id='7', extraction='4', prediction='4',
                                                  true_false=True)),
        dict(doc_id=1, target='B', input='Which?\n(A) red\n(B) blue', filtered_resps=['(A)'], doc_hash='h',
             llm_as_judge_eval=dict(question_id='8', true_false=False))]

def lines(path, rows):
    path.write_text(''.join((r if isinstance(r, str) else json.dumps(r))+'\n' for r in rows))
    return path

@pytest.fixture
def others(tmp_path):
    "A file of each format, under names that say nothing"
    (tmp_path/'llava').mkdir()
    out = dict(MathVista=tmp_path/'a.json', EMMA=tmp_path/'b.json', LogicVista=tmp_path/'c.csv')
    out['MathVista'].write_text(json.dumps(VISTA))
    out['EMMA'].write_text(json.dumps(EMMA))
    out['LogicVista'].write_text(LOGIC)
    out['MATH-V'] = lines(tmp_path/'d.jsonl', MATHV)
    out['MMMU-Pro'] = lines(tmp_path/'e.jsonl', PRO)
    out['lmms-eval'] = lines(tmp_path/'llava'/'20250101_samples_mathvista_testmini_cot.jsonl', LMMS)
    out['questions'] = lines(tmp_path/'q.jsonl', ASKED)
    return out

EXPECTED = {  # benchmark; index, answer, reply, verdict that came along, our verdict
    'MathVista':('MathVista', [('1', '4', 'There are 4 grams.', 'true', True),
                               ('2', 'blue', 'blue', 'false', True)]),
    'EMMA':('EMMA', [('phy_1', 'A', 'Thus \\(\\boxed{B}\\).', 'false', False),
                     ('phy_2', '3', '3', 'true', True),
                     ('phy_3', None, None, None, None)]),
    'MATH-V':('MathVision', [('1', '6', '80', 'false', False),
                             ('2', 'B', 'The answer is (B).', 'true', True)]),
    'MMMU-Pro':('MMMU-Pro', [('test_Art_1', 'B', 'Answer: B', 'true', True),
                             ('test_Art_2', 'A', 'A', None, True),
                             ('test_Art_3', None, None, None, None)]),
    'LogicVista':('LogicVista', [('v1_0', 'C', ' Based on the image, B.', 'false', False),
                                 ('v1_1', 'A, C', ' A, C', 'true', True), ('v1_2', '3', '3', 'true', True)]),
    'lmms-eval':('MathVista', [('7', '4', 'It is 4.', 'true', True), ('8', 'B', '(A)', 'false', False)])}

@pytest.mark.parametrize('name', FORMATS)
def test_a_file_of_each_format_is_read_scored_and_compared(name, others, call):
    benchmark, rows = EXPECTED[name]
    left, items = [], others['questions'] if name=='MATH-V' else None
    table = table_at(others[name], left, items)
    assert set(table['benchmark'])=={benchmark}
    assert table.select('index', 'answer', 'prediction', VERDICT).rows()==[r[:4] for r in rows]
    scores = score(table)
    assert scores['correct'].to_list()==[r[4] for r in rows] and VERDICT in scores.columns
    assert len(left)==sum(r[2] is None for r in rows)
    found = agreement(scores)
    assert found.table['n'][0]==sum(r[3] is not None for r in rows)
    words = ('agreement', others[name], *(('--items', items) if items else ()))
    code, out, err = call(*words)
    assert code==(4 if left else 0) and 'the same verdict on' in out and 'judge_verdict' in out

def test_what_a_row_holds_stays_with_it(others):
    vista = table_at(others['MathVista'], [])
    assert vista['question'].to_list()==['Hint: an integer.\nQuestion: How many? (Unit: g)', 'Which?']
    assert vista['task'].to_list()==['counting', 'seeing'] and vista['judge_extraction'].to_list()==['4', 'A']
    assert vista['split'].to_list()==['testmini']*2 and 'correct' not in vista.columns
    pro = table_at(others['MMMU-Pro'], [])
    assert pro['choices'].to_list()[:2]==['["Ann", "Bo\'s"]', '["Bo", "Cy", "Ann"]']
    lmms = table_at(others['lmms-eval'], [])
    assert lmms['run'].to_list()==['llava']*2 and lmms['question'][1]=='Which?\n(A) red\n(B) blue'
    assert not {'samples', 'doc_id', '__samples__'}&{*lmms.columns}

def test_questions_come_from_a_benchmark_or_a_file(others, tmp_path):
    with pytest.warns(UserWarning,
                      match='holds no right answers, so nothing can be scored. Name its questions'):
        bare = import_replies(others['MATH-V'])
    assert score(bare)['correct'].to_list()==[None, None]
    items = [Item('1', 'How many?', '80', benchmark='MathVision', split='test')]
    said = []
    mine = import_replies(others['MATH-V'], items=items, problems=said)
    assert mine.select('split', 'index', 'answer').rows()==[('test', '1',
                                                             '80')] and 'belong to no item' in said[0]
    with pytest.raises(ValueError, match='no row belongs to one of the 1 `items`, whose ids are x'):
        import_replies(others['MATH-V'], items=[Item('x', '?', '1')])
    with pytest.raises(LookupError, match='No benchmark is named'): table_at(others['MATH-V'], [],
                                                                             'MathVison')
    with pytest.raises(ValueError, match='a question has no id'):
        import_replies(others['MATH-V'], items=lines(tmp_path/'n.jsonl', [dict(question='?', answer='1')]))
    (tmp_path/'run').mkdir()
    with pytest.raises(ValueError, match='is a run, which has its questions'): table_at(tmp_path/'run', [],
                                                                                        'x')

def test_damaged_and_mixed_up_files_are_counted_and_told(others, tmp_path):
    said = []
    bad = lines(tmp_path/'x.jsonl', [*MATHV, '{"id": "3", "resp', '[4]', LMMS[0],
                                     dict(id='5', response=None, model_answer='')])
    table = import_replies(bad, items=others['questions'], problems=said)
    assert table['index'].to_list()==['1', '2']
    assert [s.partition('rows ')[2].partition(' (rows')[0] for s in said]==[
        'could not be read (no JSON object. Each line must be one)',
        'could not be read (no row of MATH-V: it has no id, response, model_answer or level)',
        'could not be read (it has no reply)']
    torn = tmp_path/'torn.json'
    torn.write_text(json.dumps(VISTA)[:-30])
    with pytest.raises(ValueError, match='torn.json cannot be read'): table_at(torn)
    odd = tmp_path/'odd.json'
    odd.write_text(json.dumps({**VISTA, '3':None, '4':{**VISTA['1'], 'pid':'4', 'query':7},
                               '5':VISTA['1']|dict(pid='5')}))
    said = []
    table = import_replies(odd, problems=said)
    assert table.height==4 and 'no JSON object' in said[0] and 'not as MathVista writes it' in said[1]
    with pytest.raises(ValueError, match='index 1 stands in rows 1, 3'):
        import_replies(lines(tmp_path/'twice.jsonl', [*MATHV, MATHV[0]]))

def test_samples_and_likelihoods_of_lmms_eval_are_told(tmp_path):
    def row(n, resps): return dict(doc_id=n, target='4', doc=dict(question='?', question_id='pic'),
                                   resps=resps, exact_match=1.)
    held = ([['It is 4.', 'It is 5.']], [['4'], ['5']], [[['-3.5', 'False']], [['-1.0', 'True']]], [], [['']])
    path = lines(tmp_path/'s.jsonl', [row(n, resps) for n, resps in enumerate(held)])
    said = []
    table = import_replies(path, problems=said)
    assert table.select('index', 'prediction', 'sample').rows()==[  # One picture for all: the line counts
        ('0', 'It is 4.', '1'), ('0', 'It is 5.', '2'), ('1', '4', '1'), ('1', '5', '2'), ('2', None, '1'),
        ('3', None, '1'), ('4', '', '1')]
    assert table[VERDICT].to_list()==[None]*6+['true']  # Which of several the metric is about, nobody knows
    assert score(table)['correct'].to_list()==[True, False, True, False, None, None, False]
    assert 'it holds likelihoods, no reply' in ' '.join(said)

@pytest.mark.parametrize('cell,right', [
    (True, True), ('0', False), (1., True), ('Correct', True), ([False, True], False), (.5, True),
    (.49, False),
    ('perhaps', None), (87, None), (None, None), ([], None), ({}, None), (float('nan'), None), ('nan', None),
    ('inf', None)])
def test_a_verdict_is_read_from_any_cell(cell, right): assert verdict_of(cell) is right

def test_a_table_of_vlmevalkit_brings_its_verdict_too(tmp_path):
    rows = [dict(index=n, question='?', answer='A', A='x', B='y', prediction=p, hit=h) for n, (p, h) in
            enumerate((('A', 1), ('B', 0)))]
    path = tmp_path/'m_MMStar.tsv'
    pl.DataFrame(rows).write_csv(path, separator='\t')
    assert table_at(path)[VERDICT].to_list()==['true',
                                               'false'] and agreement(path).table['agree'].to_list()==[1.]

# Two graders

def graded(ours, theirs, **more):
    "Scores with two verdicts"
    return pl.DataFrame(dict(index=[*map(str, range(len(ours)))], correct=pl.Series(ours, dtype=pl.Boolean),
                             answer='1',
                             judge_verdict=pl.Series(theirs, dtype=pl.Boolean), benchmark='B', run='m',
                             prediction='It is 1.')|more)

def test_the_ends_of_agreement():
    both = [True]*6+[False]*6
    same = agreement(graded(both, both)).table.row(0, named=True)
    assert (same['agree'], same['kappa'], same['kappa_high'])==(1, 1, 1) and 0<same['kappa_low']<1
    turned = agreement(graded(both, both[::-1])).table.row(0, named=True)
    assert (turned['agree'], turned['kappa'], turned['a_only'], turned['b_only'])==(0, -1, 6, 6)
    one = agreement(graded([True]*5, [True]*5))
    assert one.table['kappa'].to_list()==[None] and 'since there is one kind of verdict only' in str(one)
    assert agreement(graded([True]*5, [True]*4+[False])).table['kappa'].to_list()==[0]      # One is constant
    silent = agreement(graded([None]*3, [True]*3))
    assert silent.table['n'].to_list()==[0] and silent.table['no_verdict'].to_list()==[3]
    assert 'nothing to compare' in str(silent) and silent._repr_markdown_() and not silent.rows.height
    half = agreement(graded([True, None, False], [False, True, None]))
    assert half.table.select('n', 'no_verdict', 'a_only').row(0)==(1, 2,
                                                                   1) and '2 have no verdict' in str(half)
    with pytest.raises(ValueError, match='empty'): agreement(graded([], []))

def test_kappa_by_hand_and_its_interval():
    assert kappa([20, 5, 10, 15])==pytest.approx(.4) and kappa_interval(
        __import__('numpy').array([[1, 0, 0, 0, 1.], [0, 0, 0, 1, 1.]]))[2]=='Wilson, chance as it is'

def test_the_order_of_rows_does_not_matter():
    rng = random.Random(0)
    verdicts = [(rng.random()<.5, rng.random()<.5) for _ in range(60)]
    frame = graded(*map(list, zip(*verdicts)), kind=['ab'[n%2] for n in range(60)])
    a, b = agreement(frame, by='kind'), agreement(frame.sample(fraction=1, shuffle=True, seed=1), by='kind')
    assert a.table.rows()==b.table.rows() and set(a.rows['index'])==set(b.rows['index'])
    other = frame.select('index', 'benchmark', 'run', 'answer', 'prediction', correct='judge_verdict')
    c = agreement(frame, other.reverse())
    assert c.table.drop('method').rows()==agreement(frame).table.drop('method').rows()

def test_tables_that_do_not_belong_together_are_refused():
    frame = graded([True, False], [True, True])
    other = frame.drop('judge_verdict')
    elsewhere = other.with_columns(index=pl.Series(['7', '8']))
    with pytest.raises(ValueError, match='share no reply'): agreement(frame, elsewhere)
    with pytest.raises(ValueError, match='other replies to the same questions'):
        agreement(frame, other.with_columns(prediction=pl.lit('7'), run=pl.lit('n')))
    with pytest.raises(ValueError, match='more than once'): agreement(pl.concat([frame, frame]))
    with pytest.raises(ValueError, match='more than once'): agreement(frame, pl.concat([other, other]))
    with pytest.raises(ValueError, match='no column judge_verdict'): agreement(other)
    with pytest.raises(ValueError, match='no column nope'): agreement(frame, verdict='nope')
    with pytest.raises(ValueError, match='dict is no table'): agreement({})
    part = agreement(frame, other[:1])
    assert part.table['n'].to_list()==[1] and '1 rows of the first scores are not in the other' in str(part)

def test_text_of_strangers_is_escaped():
    frame = graded([True], [False], question='<script>alert(1)</script> | x',
                   prediction='[a](http://x)\n| b |',
                   benchmark='<b>', run='a\nb', reason='*r*')
    shown = agreement(frame)._repr_markdown_()
    assert '<script>' not in shown and '<b>' not in shown and '[a](' not in shown and 'a\nb' not in shown

def test_agreement_from_the_shell(tmp_path, call):
    graded([True, False, True], [True, True, True], task=['x', 'y', 'y']).write_parquet(tmp_path/'s.parquet')
    code, out, err = call('agreement', tmp_path/'s.parquet', '--by', 'task', '--out', tmp_path/'n.csv',
                          '--rows', tmp_path/'r.jsonl')
    assert code==0 and '3 replies' in out and pl.read_csv(tmp_path/'n.csv').height==3
    assert [json.loads(r)['index'] for r in (tmp_path/'r.jsonl').read_text().splitlines()]==['1']
    code, out, err = call('agreement', tmp_path/'s.parquet', '--with', tmp_path/'s.parquet')
    assert code==0 and '(first)' in out or 'the first' in out
    assert call('agreement', tmp_path/'s.parquet', '--verdict',
                'task')[0]==0        # No word in it says a verdict
    code, out, err = call('agreement', tmp_path/'s.parquet', '--verdict', 'nope')
    assert code==3 and 'with --verdict, or give' in err and '--with' in err
    assert call('agreement', tmp_path/'s.parquet', '--out', tmp_path/'s.parquet')[0]==3
    assert vlm_merging.agreement is agreement

# Thinking and answer

REPLY = '<think>7?</think><reasoning>It is 5.</reasoning>'
@pytest.mark.parametrize('thinking,picked', [
    ('general', ''), ('none', '5'), ('think', '5'), ('reasoning', '7?'), (lambda r: 'So 8.',
                                                                          '8'), (lambda r: '', '')])
def test_a_splitter_by_name_or_function(thinking, picked):
    scores = score(pl.DataFrame(dict(answer=['5'], prediction=[REPLY])), thinking=thinking)
    assert scores['picked'].to_list()==[picked] and scores['length'].to_list()==[len(REPLY)]
    assert scores['outcome'][0]!='empty' and scores['prediction'].to_list()==[REPLY]
    assert scores['protocol'][0].startswith('offline-')
    assert (', thinking: ' in scores['protocol'][0])==(thinking!='general')

def test_channels_and_unclosed_thoughts_by_name():
    text = '<|channel|>analysis<|message|>7? No.<|end|><|channel|>final<|message|>5<|return|>'
    def picked(reply, thinking): return score(pl.DataFrame(dict(answer=['5'], prediction=[reply])),
                                              thinking=thinking)['picked'][0]
    assert picked(text, 'channels')=='5'
    assert picked('◁think▷Perhaps it is 5', 'think')=='' and picked('◁think▷Perhaps it is 5', 'none')=='5'

def test_a_splitter_that_is_none_is_refused(tmp_path, call):
    frame = pl.DataFrame(dict(answer=['5', '6'], prediction=['5', REPLY]))
    with pytest.raises(ValueError, match='Did you mean think?'): score(frame, thinking='thinc')
    with pytest.raises(ValueError, match='thinking, row 1: get gives NoneType'): score(frame, thinking={}.get)
    with pytest.raises(ValueError, match="row 1: .*ends in 'division by zero'"): score(frame,
                                                                                       thinking=lambda r: 1/0)
    with pytest.raises(ValueError, match='thinking is 7'): score(frame, thinking=7)
    frame.write_parquet(tmp_path/'r.parquet')
    assert call('score', tmp_path/'r.parquet', '--thinking', 'none')[0]==0
    code, out, err = call('score', tmp_path/'r.parquet', '--thinking', 'thinc')
    assert code==3 and '--thinking is' in err and 'Did you mean think?' in err
    assert call('score', tmp_path/'r.parquet', '--thinking', '<thinc>')[0]==0

def test_a_judge_sees_what_was_said(tmp_path):
    asked = []
    frame = pl.DataFrame(dict(index=['1'], question=['How many?'], answer=['7'],
                              prediction=['<reasoning>Over there, who knows.</reasoning>']))
    scores = judged(frame, lambda i: asked.append(i) or 'NONE', tmp_path/'j', 'j', thinking='none')
    assert len(asked)==1 and 'Over there' in asked[0].question
    assert scores['protocol'].to_list()==['judge-1, thinking: none'] and not problems(scores)[3:]
