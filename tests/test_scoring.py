"Scoring: hostile replies, tables of every kind, agreement with verdicts, the rules of the benchmarks"
import json, math, re, threading, time
from pathlib import Path
import polars as pl, pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from vlm_merging.scoring.algebra import Algebra
from vlm_merging.comparing.summary import summarize
from vlm_merging.scoring.problems import problems
from vlm_merging.scoring.score import PROTOCOLS, RULES, score, score_row

DEV = Path(__file__).resolve().parents[2]/'shared'/'eval_data'/'dev'
KINDS = [dict(question='How many?', answer='7', answer_type='integer'),
         dict(question='Find x.', answer=r'\frac{\pi}{2}'),
         dict(question='Which?', answer='B', choices='["red","blue"]', question_type='multi_choice'),
         dict(question='Where?', answer='(3,-4)'), dict(question='What is f?', answer='y=2x^2+5'),
         dict(question='Who?', answer='a cat'),
         dict(question='Which?', answer='B', choices='["x^2","x^3","\\\\frac{1}{x}","10^10^10"]',
              question_type='multi_choice'),
         dict(question='Which?', answer='3,5', metric='mm_math'),
         dict(question='Which?', answer='["a","b"]', metric='anls'),
         dict(question='Is it?', answer='yes'),
         dict(question='Where?', answer='domain: (1,2) and range: [3,4)'),
         dict(question='Matrix?', answer=r'\begin{pmatrix}1\\2\end{pmatrix}'),
         dict(question='List.', answer='3, 5')]
HOSTILE = ['', '\0\1\2', ' '*100_000, '9'*2_000_000, '('*50_000, '{'*50_000, '\\frac'*20_000,
           '\\frac{1}{'*20_000, '\\sqrt{'*20_000, '\\boxed{'*20_000,
           '0.'+'7'*390,
           '10^10^10', '\\boxed{10^{10^{10^{10}}}}', '\\boxed{'+'9^'*500+'9}', '\\boxed{'+'9!'*200+'}',
           'the answer is '*20_000, 'the answer is: ('*9_000,
           'A B C D '*20_000, '(A) '*20_000, 'A. '*20_000, '1,'*50_000, '1/'*50_000, '1 '*50_000, '-'*50_000,
           '$'*50_000, '$1'*30_000, '=1'*30_000,
           'x='*30_000, '"answer": '*10_000, '{"short answer": "'*5_000, '\\'*50_000, '\\\\'*20_000,
           '|'*20_000, '[1,'*20_000, 'a'*200_000,
           'a.'*50_000, '\n'*100_000, 'So '*30_000, 'x^2+'*20_000, 'twenty-'*20_000, '\u202e'*1000+'7',
           '٣'*5000, '𝟛'*5000, '½'*5000, '²'*5000,
           'is is is '*10_000, 'and '*30_000, 'sin'*20_000, 'pi'*20_000, 'e'*5000+'^'+'9'*5000, '1e999999',
           'nan', 'inf', '-inf', '0x41', '1_000',
           '\ud800', '['*3000+']'*3000, '('*3000+')'*3000, '(1,'*3000+'2)'*3000, '**'*20_000, '_'*50_000,
           '<<'*20_000, ': '*30_000, '; '*30_000,
           '답은 x '*2000, '정답은 '*2000, 'The answer is x. '*600, 'the answer is 7, '*900,
           'Therefore, x = 7. '*500, '\\boxed{1} '*100_000, '$1'*300_000, '{'*1_000_000,
           '1:2 '*5000, 'minus '*9000, 'not '*9000, '<think>'*5000, '<answer>'*5000, '#### '*5000,
           'wait, '*9000, 'A or '*9000, '7 ('*9000, '7-'*9000, 'x = 1, y = '*3000,
           'U '*20_000, '(1,2) U '*5_000, 'to 3 '*20_000, '3:'*20_000, 'Choices: A. '*9_000, '\\text{'*20_000,
           '\\left('*20_000, '%'*50_000]

def one(reply, kind, protocol='offline', **more):
    return score(pl.DataFrame([dict(prediction=reply, **kind, **more)]), protocol).row(0, named=True)

ENOUGH = 3               # Seconds of processor time for one row: .4 on an idle machine; a hang takes minutes

def processor_time(f, *args):
    "What `f` returns, and the seconds that this thread computed for it, however busy the machine is"
    start = time.thread_time()
    return f(*args), time.thread_time()-start

def slowest(replies):
    "Score every reply for every kind of gold: the most seconds of processor time that one took, and which"
    with Algebra() as algebra:
        algebra.same('1', '1')
        worst = (0., '')
        for reply in replies:
            for kind in KINDS:
                for protocol in PROTOCOLS:
                    made, spent = processor_time(score_row, dict(prediction=reply, **kind), protocol, algebra)
                    worst = max(worst, (spent, f'{reply[:30]!r} for {kind["answer"]}'))
                    assert made['tier'] in ('exact', 'pattern', 'fallback',
                                            'none') and 'cannot be read' not in made['reason']
    return worst

def test_hostile_replies_neither_hang_nor_crash():
    seconds, what = slowest(HOSTILE)
    assert seconds<ENOUGH, f'{what} took {seconds:.2f} s of processor time'

@given(st.text(max_size=300)|st.text(alphabet='0123456789+-*/^().,:=|\\{}$ABCD xyπ°%\n[]"_!', max_size=400))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@example('10^10^10')
@example('\\frac{1}{0}')
def test_any_text_is_scored(text):
    class Never:
        def same(self, *_): return None
    for kind in [k for k in KINDS if k['answer'] not in (KINDS[-1]['answer'], KINDS[-2]['answer'])]:
        for protocol in PROTOCOLS:
            made, spent = processor_time(score_row, dict(prediction=text, **kind), protocol, Never())
            assert made['correct'] is not None and 'cannot be read' not in made['reason'], made['reason']
            assert spent<ENOUGH

@given(st.sampled_from(sorted(RULES)), st.text(max_size=60), st.text(min_size=1, max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_rule_takes_every_gold(metric, reply, gold):
    class Never:
        def same(self, *_): return None
    for protocol in PROTOCOLS:
        made = score_row(dict(prediction=reply, question='What?', answer=gold, metric=metric), protocol,
                         Never())
        assert made['correct'] in (True, False,
                                   None) and 'cannot be read' not in made['reason'], made['reason']

@settings(deadline=None)
@given(st.integers(-10**6, 10**6), st.sampled_from(['{}', 'The answer is {}.', 'So we get $x = {}$.',
    '\\boxed{{{}}}', '**Answer:** {}',
                                                 'It is {} cm long.',
                                                     '{{"solution": "long", "short answer": "{}"}}',
                                                         'Therefore, x = {}']))
def test_a_number_is_found_in_every_form(n, form):
    assert one(form.format(n), dict(question='Find x.', answer=str(n)))['correct']
    assert not one(form.format(n+1), dict(question='Find x.', answer=str(n)))['correct']
    assert one(form.format(f'{n:,}'), dict(question='Find x.', answer=str(n)))['correct']

@settings(deadline=None)
@given(st.sampled_from('ABCD'), st.sampled_from(['{}', '({})', '{}.', 'The answer is {}.',
                                                 'The correct option is ({}).', 'Answer: {}', '**{}**',
                                                 '\\boxed{{{}}}',
                                                'So it is option {}.', 'Therefore, the answer is:\n\n{}']))
def test_a_letter_is_found_in_every_form(letter, form):
    kind = dict(question='Which?', choices=json.dumps(['one thing', 'more', 'none at all', 'other']),
                answer='B')
    made = one(form.format(letter), kind)
    assert (made['picked'], made['correct'])==(letter, letter=='B')

def test_scoring_works_in_a_thread():
    told = []
    t = threading.Thread(target=lambda: told.append(one(r'\boxed{\begin{bmatrix}1\\2\end{bmatrix}}',
        KINDS[-2])['correct']))
    t.start(); t.join(60)
    assert told==[True]

def test_no_answer_is_an_outcome_of_its_own():
    kind = KINDS[0]
    assert one('The angle is 7 degrees. '*80, kind)['outcome']=='loop'
    assert one('', kind)['outcome']=='empty' and one(None, kind)['outcome']=='empty'
    assert one("I'm sorry, I cannot answer that.", kind)['outcome']=='refused'
    assert one('We add 7 and', kind, finish='length')['outcome']=='cut-off'
    assert one('Look at the picture.', kind)['outcome']=='no answer'
    assert one('\\boxed{7} '+'and so on and so on, '*200, kind)['correct']

def test_bad_rows_do_not_stop_the_others():
    frame = pl.DataFrame(dict(index=[1, 2, 3, 4, 4], answer=['7', None, 'Z', '7', '7'],
                              choices=[None, None, '["a","b"]', 'no list', '["7","8"]'],
                              question_type=['free_form', 'free_form', 'multi_choice', 'multi_choice',
                                             'free_form'], prediction=['7', '7', 'A', '7', '7']))
    made = score(frame)
    assert made['correct'].to_list()==[True, None, None, None, True]
    told = ' '.join(problems(made))
    for part in ('row 2 (index 2): there is no gold answer', 'row 3', 'neither a JSON list',
                 'rows 4, 5 (index 4, 4)'): assert part in told

def test_columns_of_other_types():
    made = score(pl.DataFrame(dict(answer=[7, 8], prediction=[7., 9.], precision=[1., None])))
    assert made['correct'].to_list()==[True, False] and made['index'].to_list()==[None, None]
    with pytest.raises(ValueError, match='no column prediction'): score(pl.DataFrame(dict(answer=['7'],
        reply=['7'])))
    with pytest.raises(ValueError, match='prediction holds List'): score(pl.DataFrame(dict(answer=['7'],
        prediction=[['7']])))
    assert score(pl.DataFrame(schema=dict(answer=pl.String, prediction=pl.String))).height==0

def test_a_run_a_file_and_a_table_score_alike(tmp_path):
    from vlm_merging.asking.replies import replies
    rows = [dict(benchmark='bars', run='v', index=str(i), question='How many?', answer='7',
                 prediction=p) for i, p in enumerate(('7', 'It is 8.'))]
    run = tmp_path/'v'
    run.mkdir()
    (run/'run.json').write_text('{}')
    (run/'replies.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    expected = score(replies(run)).rows()
    assert score(run)['correct'].to_list()==[True, False]
    assert score(run).rows()==score(str(run)).rows()==expected
    for name, write in (('t.parquet', 'write_parquet'), ('t.jsonl', 'write_ndjson'), ('t.csv', 'write_csv')):
        getattr(pl.DataFrame(rows), write)(tmp_path/name)
        assert score(tmp_path/name)['correct'].to_list()==[True, False], name
    (tmp_path/'words.txt').write_text('7')
    for what, told in ((tmp_path/'nowhere', 'is not there'), (tmp_path, 'no run.json'),
                       (tmp_path/'words.txt', 'is read from'), (rows, 'list .* is no table')):
        with pytest.raises(ValueError, match=told): score(what)
    (tmp_path/'t.jsonl').write_text(json.dumps(rows[0])+'\n[1, 2]\n')
    with pytest.warns(UserWarning, match='line 2'): assert score(tmp_path/'t.jsonl').height==1

def test_nothing_is_run(tmp_path):
    mark = tmp_path/'run'
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for kind in KINDS: one(code, kind); one(f'\\boxed{{{code}}}', kind)
    score(pl.DataFrame([dict(prediction='A', answer='A', choices=code)]))
    assert not mark.exists()

@pytest.mark.skipif(not DEV.is_dir(), reason='the developer set of replies is not on this machine')
@pytest.mark.parametrize('name,least,protocol', [
    ('mathvista', 99., 'offline'), ('mathverse', 99.6, 'offline'), ('mathvision', 98.5, 'offline'),
    ('mmstar', 100., 'offline'), ('mmstar', 100., 'strict'), ('dynamath', 99.9, 'strict')])
def test_agreement_with_the_verdicts(name, least, protocol):
    d = pl.read_parquet(DEV/f'{name}.parquet')
    truth = pl.coalesce(*(pl.col(c) for c in ('adjudicated_correct', 'judge_correct') if c in d.columns))
    both = d.select('run', truth=truth).with_columns(got=score(d, protocol)['correct'])
    assert 100*(both['truth']==both['got']).mean()>=least
    off = both.group_by('run').agg(off=100*(pl.col('got').mean()-pl.col('truth').mean()), one=100/pl.len())
    assert all(math.fabs(o)<=max(.6, one+1e-9) for _, o, one in off.rows())    # One row of 121 is 0.83 points

def test_a_table_of_mixed_numbers_is_read_as_it_was_written(tmp_path):
    def line(n, kind):
        return json.dumps(dict(answer=n, prediction=str(n), answer_type=kind, metric='mathvista'))
    lines = [line(5, 'integer'), line(1998, 'integer'), line(2.5, 'float')]
    (tmp_path/'t.jsonl').write_text('\n'.join(lines)+'\n')
    for protocol in PROTOCOLS: assert score(pl.read_ndjson(tmp_path/'t.jsonl'), protocol)['correct'].all()

def test_many_options():
    choices = json.dumps([f'thing {i}' for i in range(14)])
    made = [one(r, dict(question='Which?', choices=choices, answer='L',
                        question_type='multi_choice'))['correct'] for r in ('L', 'The answer is (L).',
                            'thing 11', 'K')]
    assert made==[True, True, True, False]

def test_a_fault_of_ours_costs_one_reply_a_point_and_no_more(monkeypatch):
    import vlm_merging.scoring.score as room
    def broken(*_): raise IndexError('of ours')
    monkeypatch.setattr(room, 'pick_value', broken)
    made = score(pl.DataFrame(dict(answer=['7', 'B'], prediction=['7', 'B'], choices=[None, '["a","b"]'],
                                   question_type=['free_form', 'multi_choice'])))
    assert made['correct'].to_list()==[False, True] and 'IndexError' in made['reason'][0]

def test_a_child_that_dies_is_replaced():
    with Algebra() as algebra:
        assert algebra.same('x(x+1)', 'x^2+x')
        algebra.child.process.kill(); algebra.child.process.wait()
        assert algebra.same('(x+1)x', 'x^2+x')

def test_short_answers_in_a_sentence_count_as_short_answers():
    for metric, gold, reply in (('relaxed', 'Blue', 'The bar is blue.'),
                                ('anls', '["14 May 1999","May 14, 1999"]', 'The date is May 14, 1999.'),
                              ('vqa', json.dumps(['nokia']*8+['samsung']*2),
                               'The brand of the phone is Nokia.'), ('yesno', 'no', "I don't see any dog."),
                              ('relaxed', '42', 'The total is about 43 percent.')):
        assert one(reply, dict(question='What?', answer=gold, metric=metric))['value']==1, reply
        assert one(reply, dict(question='What?', answer=gold, metric=metric), 'strict')['value']<1, reply

@pytest.mark.parametrize('reply,right', [
    ('Hence B.', 1), ('Therefore, B.', 1), ("It's B.", 1), ('Ans: B', 1),
    ('B\n\nExplanation: four sides.', 1), ('Answer: B or D', 0),
    ('The correct answer is B. Wait, it has six sides, so D.', 0), ('A or B', 0),
    ('B. square\n\nExplanation: unlike A. triangle.', 1), ('정답은 B입니다.', 1),
    ('Not A. Not C either. Hence B.', 1), ('답은 A가 아니라 B입니다', 1), ('<think>A?</think>B', 1),
    ('Option D is wrong. The answer is (B).', 1), ('It must be B because of the sides.', 1),
    ('B is the correct answer.', 1)])
def test_letters_in_many_styles(reply, right):
    assert one(reply, dict(question='Which?', choices='["triangle","square","circle","hexagon"]', answer='B',
                           question_type='multi_choice'))['correct']==bool(right)

@pytest.mark.parametrize('reply,gold,right', [
    ('3 + 4 = 7 so 8', '8', 1), ('3 + 4 = 7 so 8', '7', 0), ('The answer is 7, not 10.', '7', 1),
    ('7 or 8', '7', 0), ('$15k', '15000', 1), ('1\\frac{1}{2}', '1.5', 1), ('1\\frac{1}{2}', '0.5', 0),
    ('It is 1 234 567.', '1234567', 1), ('x = 7 (since x>0, we reject x = -9)', '7', 1),
    ('minus 5', '-5', 1), ('Total: 7\n\nNote: this assumes 2 rows.', '7', 1),
    ('So 7. To verify, 3 + 3 = 6.', '7', 1), ('4 + 4 =', '4', 0), ('2/3', '0.67', 1),
    ('about 5 m/s', '5', 1), ('9 > 1 so yes', 'yes', 1), ('#### 7', '7', 1),
    ('The angle is 60°.', '\\frac{\\pi}{3}', 1), ('None.', '0', 0), ('between 5 and 7', '5', 0),
    ('x ≤ 2', '(-\\infty,2]', 1), ('x = 1, y = -4', '(1,-4)', 1),
    ('It is at the bottom left', 'bottom-left', 1)])
def test_values_in_many_styles(reply, gold, right):
    assert one(reply, dict(question='Find it.', answer=gold))['correct']==bool(right)

GOLDS = ['7', '0.5', '-3', '15,017', '42.2%', '20-40', '1995-1998', '2 hours 30 minutes', '5 ft 7 in',
         '3 cm and 5 cm', r'\frac{1}{2}', r'2\sqrt{3}', r'\frac{\pi}{3}', '(3,-4)', '[2,5)',
         r'2 \leq x < 5', '1<x<3', r'(-\infty,2]', r'(-\infty,1)\cup(3,\infty)', 'y=2x+1', 'x^2+y^2=25',
         '2x+3', '3, 5', '1:64', '10:15', 'yes', 'blue', 'bottom-left', '35°', '12 cm^2', '±3']

@pytest.mark.parametrize('gold', GOLDS)
@pytest.mark.parametrize('form', ['{}', 'The answer is {}.', '\\boxed{{{}}}', 'So the answer is **{}**.',
                                  '<answer>{}</answer>', 'Let us see.\n\n### Final Answer\n\n{}'])
def test_a_reply_that_says_the_gold_answer_is_right(gold, form):
    assert one(form.format(gold), dict(question='Find it.', answer=gold))['correct']

@pytest.mark.parametrize('gold,reply', [('20-40', '-20'), ('20-40', '10-30'), (r'2 \leq x < 5', '2'),
                                        (r'2 \leq x < 5', '[2,7)'), ('1<x<3', 'x>1'),
                                        ('2 hours 30 minutes', '2 hours'), ('5 ft 7 in', '5 ft'),
    ('3 cm and 5 cm', '3 cm'), ('12 kg', '12 km'), ('7:00 PM', '7:00 AM'),
                                        ('15', 'The answer is 14, which is 1 less than 15.'),
                                        ('42', 'It is not 42.')])
def test_what_is_near_the_gold_answer_is_not_right(gold, reply):
    assert not one(reply, dict(question='Find it.', answer=gold))['correct']

@pytest.mark.parametrize('reply,letter', [
    ('A. 12\nB. 15\nC. 18\nD. 21', ''),
    ('A. 12 - incorrect\nB. 15 - incorrect\nC. 18 - correct\nD. 21 - incorrect', 'C'),
    ('Options: A B C D', ''), ("It can't be B because 3+5+7 is not 15; I choose C.", 'C'),
    ('We can rule out A, C, and D.', 'B'), ('Only C fits.', 'C'), ('My guess: C', 'C'),
    ('That leaves C.', 'C'), ('故选：C．', 'C'), ('La respuesta correcta es la C.', 'C'),
    ('C, since B is impossible.', 'C'), ('I would choose C over B.', 'C')])
def test_letters_among_others(reply, letter):
    assert one(reply, dict(question='What is the perimeter?', choices='["12","15","18","21"]', answer='C',
                           question_type='multi_choice'))['picked']==letter

def test_too_many_options_are_a_fault_of_the_row():
    made = one('A', dict(question='Which?', choices=json.dumps([str(i) for i in range(30)]), answer='A',
                         question_type='multi_choice'))
    assert made['correct'] is None and '30 options' in made['reason']
    assert one('B', dict(question='Which?', choices=json.dumps(['x'*30_000, 'y']), answer='B',
                         question_type='multi_choice'))['correct']

def test_thousands_of_golds_stay_within_the_time():
    for metric in ('anls', 'contains', 'vqa'):
        many = json.dumps([f'gold answer number {i} '*12 for i in range(3000)])
        _, spent = processor_time(one, 'words of a reply '*20, dict(question='What?', answer=many,
            metric=metric))
        assert spent<ENOUGH, metric

# What stands around a reply says nothing
AROUND = dict(
    chatml='{}<|im_end|>', gpt='{}<|endoftext|>',
    llama='<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>',
    llama2='{}</s>', gemma='<start_of_turn>model\n{}<end_of_turn>\n', deepseek='{}<｜end▁of▁sentence｜>',
    eos='{}<eos>',
    internlm='{}[UNUSED_TOKEN_145]', exaone='{}[|endofturn|]', unknown='<|over|>{}<|and_out|>',
    next_turn='{}<|im_end|>\n<|im_start|>user\nAnd is the answer 99, or (A)?',
    think='<think>\\boxed{{99}} or (A)?</think>\n\n{}',
    thinking='<thinking>The answer is (A).</thinking>\n{}', kimi='◁think▷So the answer is 99.◁/think▷{}',
    magistral='[THINK]The answer is A.[/THINK]{}', seed='<seed:think>Yes, 99</seed:think>{}',
    prompted='So it is 99.</think>\n{}',
    llava_cot='<SUMMARY>We add.</SUMMARY><REASONING>So A, 99.</REASONING>\n<CONCLUSION>{}</CONCLUSION>',
    r1='<think>The answer is no.</think><answer>{}</answer>', spaces='\n \t{}  \n\n', mark='\ufeff{}\u200b',
    gpt_oss='<|channel|>analysis<|message|>99, '
            'A?<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>',
    command='<|START_THINKING|>99?<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>')
def digits_from(zero): return lambda text: re.sub('[0-9]', lambda m: chr(zero+int(m[0])), text)
REWRITTEN = dict(windows=lambda t: t.replace('\n', '\r\n'), wide_spaces=lambda t: t.replace(' ', '\u00a0'),
                 arabic=digits_from(0x660), hindi=digits_from(0x966), wide=digits_from(0xff10),
                 bold=digits_from(0x1d7ce),
                 **{name: form.format for name, form in AROUND.items()})
COLOURS = dict(question='Which colour has the ball?', choices='["red","blue","green","yellow"]',
               question_type='multi_choice')
REPLIES = [('The answer is 12.', dict(answer='12')), ('3 + 9 = 12\nSo we get 12 cm.', dict(answer='12')),
           ('**12**', dict(answer='12')), ('x = 12', dict(answer='13')),
           (r'So $x=\\boxed{12}$.', dict(answer='12')),
           ('The ball is far.\n\nIt is (B).', COLOURS|dict(answer='B')),
           ('Not red, but green.', COLOURS|dict(answer='C')),
           ('I cannot see a ball.', COLOURS|dict(answer='A')), ('D. yellow', COLOURS|dict(answer='B')),
           ('The lid is closed.', dict(question='Is the lid open?', answer='no')),
           ('(3, -4)', dict(answer='(3,-4)'))]
REPLIES = [(reply.replace('\\\\', '\\'), dict(question='Find it.')|kind) for reply, kind in REPLIES]

def real_replies():
    if not DEV.is_dir(): return []
    names = 'mathvista', 'mathverse', 'mathvision', 'mmstar', 'dynamath'
    frames = [pl.read_parquet(DEV/f'{name}.parquet').sample(30, seed=7) for name in names]
    known = {'question', 'choices', 'answer', 'answer_option', 'question_type', 'answer_type', 'precision',
             'benchmark'}
    rows = [{k: v for k, v in row.items() if k in known|{'prediction'}} for f in frames
            for row in f.iter_rows(named=True)]
    return [(row.pop('prediction'), row) for row in rows]

@pytest.mark.parametrize('name', REWRITTEN)
def test_what_stands_around_a_reply_changes_no_verdict(name):
    with Algebra() as algebra:
        def verdict(reply, row): return score_row(row|dict(prediction=reply), 'offline', algebra)['correct']
        changed = [reply for reply, row in REPLIES+real_replies()
                   if verdict(reply, row)!=verdict(REWRITTEN[name](reply), row)]
    assert not changed

@pytest.mark.parametrize('form', ['{}', '({})', '{}.', 'THE ANSWER IS: {}', 'the answer is ({})',
                                  '**Answer: {}**', '"{}"', '`{}`',
                                  '```\n{}\n```', '> {}', '- {}', '$\\text{{{}}}$', '\\fbox{{{}}}',
                                  '<|begin_of_box|>{}<|end_of_box|>',
                                  '\x08oxed{{{}}}', '{{"answer": "{}"}}', '<FINAL_ANSWER>{}</FINAL_ANSWER>',
                                  '答案是{}。', '정답은 {}입니다.', '答えは{}です。'])
def test_a_mark_is_a_mark_in_every_dialect(form):
    for said, kind in (('B', COLOURS|dict(answer='B')), ('12', dict(question='How many?', answer='12'))):
        assert one(form.format(said), kind)['correct'], form
        assert not one(form.format('C' if said=='B' else '13'), kind)['correct'], form

def test_a_thought_without_an_end_is_no_answer():
    for opened in ('<think>', '◁think▷', '[THINK]', '<seed:think>', '<|channel|>analysis<|message|>',
                   '<reasoning>'):
        made = one(opened+'3 + 4 = 7. So the answer is 7.', KINDS[0])
        assert (made['correct'], made['outcome'])==(False, 'cut-off'), opened

def test_unknown_tags_are_told():
    told = ' '.join(problems(score(pl.DataFrame(dict(answer=['7']*2, prediction=['7<|over|>', '7'])))))
    assert 'Unknown tags in 1 of 2 replies (<|over|>)' in told and "WRAPPERS['over'] = " in told

def test_unknown_tags_are_named_the_commonest_first_and_counted_in_every_summary():
    replies = ['7<|over|>']*1_200+['7', '<zeal>7</zeal> <|over|>', '<verdict>7', 'x<yz>w', None]
    scores = score(pl.DataFrame(dict(answer=['7']*len(replies), prediction=replies)))
    told = ' '.join(problems(scores))
    assert 'in 1,202 of 1,205 replies (<|over|>, </zeal>, <zeal>, <verdict>)' in told
    share = summarize(scores).filter(what='unknown tags')
    assert (share['value'][0], share['n'][0])==(1_202/1_205, 1_205)
    assert not summarize(scores.drop('unknown_tags')).filter(what='unknown tags').height

def test_an_undecided_row_is_counted_in_the_summary():
    scores = score(pl.DataFrame(dict(answer=['10^{10^{10}}!', '7'], prediction=['5', '7'])))
    parts = dict(summarize(scores).select('what', 'value').iter_rows())
    assert parts['undecided']==.5 and parts['answered']==.5

@pytest.mark.parametrize('reply,right', [
    ('It cannot be B, and A is too small.', 0), ('Vertex B is on top.', 0), ('Either B or D.', 0),
    ('It is not red.', 0),
    ('The answer is (B). Option (D) is too dark.', 1), ('I pick b because it is dark.', 1), ('B, not C', 1),
    ('The second option.', 1),
    ('Option 2', 1), ('②', 1), ('The answer is B. But none of these options is correct.', 0),
    ('A or C?\nI say B.', 1),
    ('(A) red\n(B) blue\n(C) green\n(D) yellow\n\nIt is dark.\n\n(B)', 1),
    ('\\boxed{blue}, and not option (A).', 1)])
def test_what_is_chosen_and_what_is_only_named(reply, right):
    assert one(reply, COLOURS|dict(answer='B'))['correct']==bool(right)

@pytest.mark.parametrize('gold,reply,right', [
    ('3', '\\boxed{-2, 3}', 0), ('2, -7', '\\boxed{-7, 2}', 1), ('(0,1),(2,3)', '(2, 3) and (0, 1)', 1),
    ('4', '2-4', 0),
    ('5 \\pm \\sqrt{2}', '5+\\sqrt{2}', 0), ('5 \\pm \\sqrt{2}', '5+\\sqrt{2}, 5-\\sqrt{2}', 1),
    ('3 \\times 10^{-20}', '7 \\times 10^{-25}', 0),
    ('10⁻⁷', '1e-7', 1), ('=12', '12', 1), ('45,\\!678', '45678', 1), ('\\sin x = 1/2', '\\cos x = 1/2', 0),
    ('-3|x+1|+2', '-3', 0),
    ('1', 'The one on the left is not readable.', 0), ('6', 'There are 6 compared to 4 before.', 1),
    ('1/3', '\\frac{1}{3} \\approx 0.33', 1),
    ('8', 'Rod P is 8 cm long and rod Q is 9 cm long.', 1), ('3만', '30000', 1), ('十二', '12', 1),
    ('\\prod_{k=1}^n k', '\\prod_{k=1}^n k^2', 0)])
def test_more_values_in_many_styles(gold, reply, right):
    assert one(reply, dict(question='How long is rod P?', answer=gold))['correct']==bool(right)

@pytest.mark.parametrize('question,reply,said', [
    ('Is the cup full?', 'The cup is empty.', 'B'), ('Is the cup full?', 'The cup is not empty.', 'A'),
    ('Are there more dogs than cats?', 'There are fewer cats than dogs in the photo.', 'A'),
    ('Are there more dogs than cats?', 'Cats are more than dogs.', 'B'),
    ('Is n an even number?', 'Therefore, n is odd.', 'B'),
    ('Is the cup full?', 'I wonder whether the cup is full.', ''),
    ('Is the cup full?', 'Two cats and a dog.', '')])
def test_yes_and_no_as_sentences(question, reply, said):
    kind = dict(question=f'{question}\nChoices:\n(A) Yes\n(B) No', choices='["Yes","No"]', answer='A')
    assert one(reply, kind)['picked']==said

def test_the_same_verdicts_in_any_order_and_in_threads():
    rows = [dict(question='Find x.', answer=gold, prediction=reply) for gold, reply in (
        ('10^{10^{10}}!', '5'), (r'\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{bmatrix}1\\2\end{bmatrix}'),
        ('7', '('*9000),
        (r'\sum_{k=1}^n k', r'\sum_{j=1}^n j'), ('["a"]', 'a b '*4000), ('7', 'So it is 7.'))]
    def verdicts(rows):
        return dict(zip((r['answer']+r['prediction'] for r in rows),
                        score(pl.DataFrame(rows)).select('correct', 'outcome').rows()))
    expected, backward = verdicts(rows), verdicts(rows[::-1])
    threads, told = [threading.Thread(target=lambda: told.append(verdicts(rows))) for _ in range(2)], []
    for t in threads: t.start()
    for t in threads: t.join()
    assert backward==expected and told==[expected]*2
    assert expected['10^{10^{10}}!5']==(False, 'undecided')

def test_letters_without_a_word_about_options():
    assert one('The answer is (B).', dict(question='What is 1+1? A) 1 B) 2', answer='B'))['picked']=='B'
    scores = score(pl.DataFrame(dict(question=['What is it?'], answer=['B'], prediction=['It is B.'])))
    assert 'looks like the letter of an option in 1 of 1 rows' in ' '.join(problems(scores))
    gap = dict(question='How many?', choices='{"A":"one","B":"two","D":"four"}')
    assert one('D', gap|dict(answer='D'))['correct'] and one('four', gap|dict(answer='D'))['correct']
    assert one('C', gap|dict(answer='C'))['correct'] is None


def test_a_floor_is_known_or_nothing_is_said():
    from vlm_merging.comparing.findings import accuracy_said
    options = dict(choices=['["red", "blue"]', '["red", "blue"]', '["red", "no list', None],
                   question_type=['multi_choice']*3+['free_form'])
    frame = pl.DataFrame(dict(answer=['A', 'A', 'B', '12'], prediction=['A', 'B', 'A', '13'])|options)
    scores = score(frame)
    assert scores['by_chance'].to_list()==[.5, .5, None, 0] and scores['if_empty'].to_list()==[0, 0, None, 0]
    said = accuracy_said(scores)                                         # The bad row is in no share
    assert 'an option at random 33.3%, the same answer everywhere 66.7%, an empty reply 0.0%' in said
    assert said.endswith('not clearly above it')
    foreign = score(frame.drop(*options))
    assert foreign['by_chance'].null_count()==4 and 'floor' not in accuracy_said(foreign)

def test_what_an_empty_reply_gets_is_what_the_rule_gives():
    frame = pl.DataFrame(dict(answer=['["the"]', '["cup", "cup"]'], prediction=['cup', 'cup'],
                              metric='vqa', question_type='free_form'))
    assert score(frame, 'strict')['if_empty'].to_list()==[1., 0.]        # VQA drops articles

def test_the_worst_case_has_no_floor_of_single_variants():
    from vlm_merging.comparing.summary import worst_case
    frame = pl.DataFrame(dict(benchmark='b', run='r', index=['1', '2'], group=['g', 'g'], answer=['7', '7'],
                              prediction=['7', '7'], question_type='free_form'))
    summary = summarize(worst_case(score(frame)))
    assert summary.filter(what='accuracy').height and not summary.filter(what='by_constant').height

@pytest.mark.parametrize('question,reply,said', [
    ('Is the cake round?', 'Hence, true.', 'Yes'), ('Is the cake round?', 'True.', 'Yes'),
    ('Is the cake round?', 'Yes and no.', None), ('Is the cake round?', 'It is on the table.', None),
    ('Is there a dog?', "There isn't one in the picture.", 'No'),
    ('Is the road wet?', 'Certainly! Look.', None),
    ('Is every window lit?', 'Only two of the windows are lit.', 'No'),
    ('Is the mean greater than 12?', 'The mean is 11, and 11 is smaller than 12.', 'No'),
    ('Is the house number 9?', 'The house is 20 meters high.', None)])
def test_yes_and_no_in_other_words(question, reply, said):
    right = [g for g in ('Yes', 'No') if one(reply, dict(question=question, answer=g))['correct']]
    assert right==([said] if said else [])

@pytest.mark.parametrize('reply,gold,right', [
    ('면적=3×4=', '12', 0), ('3×4なので、', '12', 0), ('예산은 2억 5천만 원입니다.', '250000000', 1), ('一共3千元。', '3000', 1),
    ('기온은 영하 5도입니다.', '-5', 1), ('7개입니다. 참고로 작년에는 3개였습니다.', '7', 1), ('答案：10月', '十月', 1)])
def test_eastern_numbers_and_what_breaks_off(reply, gold, right):
    assert one(reply, dict(question='?', answer=gold, finish='stop'))['correct']==bool(right)

@pytest.mark.parametrize('reply,letter', [
    ('두 번째 보기가 맞습니다.', 'B'), ('正解は二番目の選択肢です。', 'B'), ('答案不是B而是D。', 'D'),
    ('| A | ⭕ | 산 |\n| B | ❌ | 강 |\n| C | ❌ | 숲 |', 'A'), ('| A | ⭕ | 산 |\n| B | ⭕ | 강 |\n| C | ❌ | 숲 |', ''),
    ('・A：小 → ×\n・B：大 → ×\n・C：同 → ○\n・D：左 → ×', 'C')])
def test_eastern_places_and_marks(reply, letter):
    assert one(reply, COLOURS|dict(answer='A'))['picked']==letter


@pytest.mark.parametrize('options', [
    dict(choices='["red", "blue", "pear"]'), dict(options=['red', 'blue', 'pear']),
    dict(A='red', B='blue', C='pear'), dict(options="{'A':'red','B':'blue','C':'pear'}")])
def test_options_are_read_from_every_column_that_load_reads(options):
    rows = [dict(question='Which?', answer=gold, prediction=reply)|options for gold, reply in (
        ('C', 'It is the pear.'), ('A, C', 'A and C'), ('["A","C"]', 'A, C'), ('A', 'pear'))]
    assert score(pl.DataFrame(rows))['correct'].to_list()==[True, True, True, False]

def test_a_tag_of_ones_own_is_given_as_it_stands():
    table = pl.DataFrame(dict(answer=['B']*4, choices=['["red","blue"]']*4, prediction=[
        '<ponder>A?</ponder> B', '[my_think]A?[/my_think] B', '<생각>A인가?</생각>B', '◁mull▷A?◁/mull▷ B']))
    tags = '<ponder>', '[my_think]', '<생각>', '◁mull▷'
    for i, tag in enumerate(tags): assert score(table, thinking=tag)['picked'][i]=='B'
    assert score(table, thinking='<PONDER>')['correct'][0]
    assert [bool(t) for t in score(table)['unknown_tags']]==[True, False, True, True]

def test_an_entry_that_no_tag_can_match_is_refused(monkeypatch):
    from vlm_merging.scoring.wrappers import WRAPPERS
    table = pl.DataFrame(dict(answer=['5'], prediction=['5']))
    for name, kind, said in (('ponder', 'think', 'it is one of thought'),
                             ('<ponder>', 'thought', 'matches no tag'),
                             ('Ponder', 'thought', 'matches no tag')):
        with monkeypatch.context() as m:
            m.setitem(WRAPPERS, name, kind)
            with pytest.raises(ValueError, match=said): score(table)

def test_samples_without_a_number_are_told():
    table = pl.DataFrame(dict(index=['1', '1', '2'], answer=['5']*3, prediction=['5', '6', '5']))
    assert 'left out of the accuracy' in problems(table)[0] and 'column `sample`' in problems(table)[0]

@pytest.mark.parametrize('reply,said', [
    ('No people are here, but a bus is parked at the kerb. Yes.', 'yes'),
    ('There is no cat. **Answer: Yes**', 'yes'),
    ('{"thought": "not a van", "answer": "yes"}', 'yes'), ('It is not dark. \\boxed{Yes}', 'yes'),
    ('At first sight yes, but it is a van. So the answer is no.', 'no'), ('yes/no: no', 'no'),
    ('I’ll answer yes or no.\n\nAnswer: No', 'no'), ('No, but yes would be near.', 'no'),
    ('The picture doesn’t show a bus.', 'no'), ('I can’t see any bus.', 'no'),
    ('Buses are absent here.', 'no'),
    ('No doubt: a bus is at the kerb, so yes.', 'yes')])
def test_a_marked_yes_or_no_beats_one_that_is_only_said(reply, said):
    for metric in ('yesno', None):
        for gold in ('yes', 'no'):
            row = one(reply, dict(question='Is there a bus in the photo?', answer=gold, metric=metric))
            assert row['correct']==(gold==said), (reply, metric, gold, row['picked'], row['reason'])

@pytest.mark.parametrize('reply,letter', [
    ('The answer is A... no, wait, it is D.', 'D'), ('**Answer:** A\n\n**Correction:** D', 'D'),
    ('It is A? No, D.', 'D'),
    ('If the sky were clear, the answer would be A. It is D.', 'D'),
    ('$\\boxed{D}$, while $\\boxed{A}$ is wrong.', 'D'),
    ('Option A is wrong because red is warm. Option B is wrong. Option C is wrong.', 'D'),
    ('Neither A nor C nor D fits.', 'B'), ('Options A and D remain. A can be ruled out.', 'D'),
    ('A ❌\nB ✅\nC ❌\nD ❌', 'B'), ('- [ ] A. red\n- [x] B. blue\n- [ ] C. green', 'B'),
    ('{"answer": ["A", "D"]}', 'AD'),
    ('选项A是错误的，正确的应该是D。', 'D'), ('答えはAだと思いましたが、Dでした。', 'D'), ('AとD', 'AD'), ('Option two', 'B'),
    ('There is no red here.', ''), ('It isn’t red.', ''), ('Could it be red?', ''),
    ('It could be a red one.', ''),
    ('Red is not shown; it is green.', 'C'), ('Without any red, it is green.', 'C'),
    ('B\n\nI hope this helps!', 'B'), ('blue. Let me know if you have questions! 😊', 'B')])
def test_second_thoughts_denials_and_closings(reply, letter):
    assert one(reply, COLOURS|dict(answer='B'))['picked']==letter

@pytest.mark.parametrize('question,gold,reply,right', [
    ('How long is it?', '5/2', '2 1/2', 1), ('How long is it?', '21/2', '2 1/2', 0),
    ('How long is it?', '34', '3 4', 0),
    ('What is it?', 'k!', 'k', 0), ('What is it?', "B'", 'B', 0), ('What is it?', '|y|', 'y', 0),
    ('What is it?', '24', '4!', 1),
    ('Find x.', '8', 'x ≠ 8', 0), ('Find x.', '8', 'x > 8', 0), ('Find x.', '8', 'half of 8', 0),
    ('Find x.', '8', '8 squared', 0),
    ('Find x.', '8', '3x = 8', 0), ('What is 3x?', '8', '3x = 8', 1), ('Find x.', '8.5', '8 and a half', 1),
    ('How wide is it in cm?', '8', '8 mm', 0), ('How wide is it in cm?', '8', '80 mm', 1),
    ('How fast?', '10 m/s', '36 km/h', 1),
    ('How fast?', '10 m/s', '10 km/h', 0), ('How warm?', '8 °C', '8 °F', 0), ('What price?', '$8', '€8', 0),
    ('How long?', '8 cm', '8 cm²', 0), ('How many?', '8', '8 million', 0),
    ('How many, in millions?', '8', '8 million', 1),
    ('What year?', '1980', 'the 1980s', 0), ('Which bin?', '30-40', '30-40-50', 0),
    ('When?', 'May 3, 1999', '3 May 1999', 1),
    ('When?', '1999-05-03', 'May 3, 1999', 1), ('When?', '1999-05-03', '1999-03-05', 0),
    ('True?', 'True', 'not true', 0),
    ('How many?', '8', '面积不等于8。', 0)])
def test_signs_units_and_relations_tell_values_apart(question, gold, reply, right):
    row = one(reply, dict(question=question, answer=gold))
    assert row['correct']==bool(right), row

@pytest.mark.parametrize('gold', ['b', '(b)', 'Option B', '②', 'B'])
def test_a_gold_letter_in_other_spellings(gold):
    assert one('B', COLOURS|dict(answer=gold))['correct']

@pytest.mark.parametrize('around', [
    'ASSISTANT: {}', '> {}', '{}\u2028', '"{}"', '**{}**', '{}\n\n**Confidence:** 80%', '{} 希望对你有帮助！',
    '{} 도움이 되었기를 바랍니다.'])
def test_a_speaker_a_quotation_and_a_closing_change_nothing(around):
    for reply in ('The answer is B.', 'blue'):
        assert one(around.format(reply), COLOURS|dict(answer='B'))['correct'], around

def test_a_column_that_is_no_text_is_named():
    from datetime import timedelta
    for cells in ([timedelta(1)], [b'7'], pl.Series([object()], dtype=pl.Object)):
        frame = pl.DataFrame(dict(prediction=['7'], answer=cells))
        with pytest.raises(ValueError, match='Column answer holds'): score(frame)

def test_a_thought_without_an_answer_is_called_so():
    row = one('<think>It may be 7', dict(question='?', answer='7'))
    assert row['reason']=='only a thought, and no answer'

@pytest.mark.parametrize('question,gold,right,wrong', [
    ('Find x.', '5, 6', ['x ∈ {6, 5}', r'$x \in \{5, 6\}$'], ['x ∈ [5, 6]', 'x ∈ {5}']),
    ('Find x.', '5', ['x ∈ {5}', 'So x = 5.'],
     ['y = 5', 'x ∈ {5, 6}', 'x ∈ (5, 9)', 'x ≠ 5']),
    ('What is the slope?', '5', ['y = 5', 'm = 5'], ['half of 5']),
    ('What share is blue?', '25%', ['A quarter of it.', '1 out of 4', '0.25'], ['half', 'three quarters']),
    ('How many eggs?', '12', ['a dozen', 'There are a dozen eggs.'], ['half a dozen', 'two dozen', 'dozens']),
    ('How many?', 'more than 5', ['>5', 'over five'], ['5', '<5', 'at least 5']),
    ('What time is it?', '10:30', ['10시 30분', '10点半', 'half past ten', '열 시 삼십 분입니다'], ['10시', '11点半']),
    ('몇 대 있나요?', '0', ['없습니다.', '한 대도 없습니다'], ['찾을 수 없습니다', '1대']),
    ('How much fruit?', '3 apples and 2 pears', ['two pears and three apples'],
     ['2 apples and 3 pears', '3 apples']),
    ('무슨 색?', '파란색', ['파랑', '파랑색입니다'], ['빨강']),
    ('Where is the dog?', 'left', ['To the left of the cat.'], ['right']),
    ('What color is the car?', 'blue', ['a blue one', 'It is a blue car.'], ['light blue', 'not a blue one']),
    ('무엇이 보이나요?', '트럭', ['큰 트럭이 보입니다.', '트럭이 있어요'], ['트럭이 보이지 않습니다', '트럭이 없습니다']),
    ('Is the traffic light green?', 'no', ['The traffic light is red.', "It's red.", 'Definitely not.'],
     ['The traffic light is green.', 'Certainly! Look.']),
    ('Which part is shaded?', '3/8', ['8분의 3이 색칠되어 있습니다.'], ['3분의 8이']),
    ('Where is the vertex?', '(2, -3)', ['(2; −3)'], ['(2; 3)'])])
def test_what_other_models_write_for_a_value(question, gold, right, wrong):
    kind = dict(question=question, answer=gold, answer_type='list' if gold=='5, 6' else None)
    made = {r: one(r, kind)['correct'] for r in (*right, *wrong)}
    assert made=={r: r in right for r in (*right, *wrong)}

@pytest.mark.parametrize('choices,gold,right,wrong', [
    (['red', 'blue', 'green'], 'B', ['두 번째', '둘째', '第二个', '二番目です', '나', '정답: 나'],
     ['세 번째', '第三个', '다', '나는 모릅니다']),
    (['more than 5', 'exactly 5', 'less than 5'], 'A', ['>5', 'More than five.'], ['5', '<5']),
    (['빨강', '파랑', '노랑'], 'B', ['파란색입니다', '파랑색'], ['빨간색', '노란색']),
    (['cat', 'dog', 'bird'], 'B',
     ['The dog (option B), not the cat (option A).', 'La respuesta es la opción B.'],
     ['It resembles a dog, though.\nIt is not a dog.', 'It is not the dog.'])])
def test_what_other_models_write_for_an_option(choices, gold, right, wrong):
    kind = dict(question='Which?', choices=json.dumps(choices), answer=gold, question_type='multi_choice')
    made = {r: one(r, kind)['correct'] for r in (*right, *wrong)}
    assert made=={r: r in right for r in (*right, *wrong)}

def test_gold_cells_of_every_type():
    from datetime import date, datetime, time
    def right(answers, replies, **more):
        table = pl.DataFrame(dict(answer=answers, prediction=replies, question='Is it so?', **more))
        return score(table)['correct'].to_list()
    assert right([True, False, True], ['Yes.', 'No, it is not.', 'No.'])==[True, True, False]
    assert right([True, False], ['Yes', 'B'], choices='["Yes", "No"]')==[True, True]
    assert right([date(2020, 7, 4)]*2, ['July 4, 2020', 'July 5, 2020'])==[True, False]
    assert right([datetime(2020, 7, 4)]*2, ['July 4, 2020', '2020-07-05'])==[True, False]
    assert right([time(10, 30)]*2, ['half past ten', '10:31'])==[True, False]
    keyed = dict(choices='{"0": "red", "1": "blue"}')
    assert right(['0', '1'], ['A', 'blue'], **keyed)==[True, True]

def test_numbers_of_options_count_from_0_only_where_a_column_says_so():
    options = dict(question='Which?', prediction=['A', 'C'], choices='["red", "blue", "green"]')
    named = pl.DataFrame(dict(answer_index=[0, 1], **options))
    assert score(named)['correct'].to_list()==[True, False] and 'answer_index' not in score(named).columns
    unnamed = score(pl.DataFrame(dict(answer=[0, 1], **options)))
    assert unnamed['correct'].null_count()==2 and 'answer_index' in ' '.join(problems(unnamed))

def test_several_accepted_answers_are_no_text_under_the_official_rules():
    kind = dict(question='?', answer='["pink", "4.07"]', answer_type='any of', question_type='free_form')
    for metric in ('answer', 'mathvision', 'mmmu'):
        assert one('pink', kind|dict(metric=metric), 'strict')['correct'], metric
        assert not one('blue', kind|dict(metric=metric), 'strict')['correct'], metric
    assert one('We add.\nSo the total is 4.07 cm', kind|dict(metric='mmmu'), 'strict')['correct']
    assert not one('a', kind|dict(metric='mmmu', answer='b'), 'strict')['correct']

def test_an_article_that_is_the_whole_gold_answer_stays():
    for reply, right in (('a', True), ('.', False), ('the', False)):
        assert one(reply, dict(question='Which letter?', answer='a', metric='vqa'))['correct']==right

def test_the_reason_tells_a_part_from_the_whole_reply():
    assert one('7', KINDS[0])['reason'].startswith('the whole reply;')
    assert one('about 7 or so', KINDS[0])['reason'].startswith('the whole reply, a part of it')
