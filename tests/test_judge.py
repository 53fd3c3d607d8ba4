"The judge: what it sees, when it is asked, what happens when it fails"
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import polars as pl, pytest
from vlm_merging.cli.main import main
from vlm_merging.scoring.judge import judge_item, judge_report, judged

ROWS = [dict(index='1', question='Which SECRET bar?', answer='B', choices='["GOLDLEFT","GOLDRIGHT"]',
             question_type='multi_choice',
             prediction='Both are tall. The second one has the colour.'),
        dict(index='2', question='How SECRET long?', answer='12', prediction='The answer is 12.'),
        dict(index='3', question='How SECRET long?', answer='12',
             prediction='Look at the ruler. Twelve, I should think, or less. Nice ruler.'),
        dict(index='4', question='How SECRET long?', answer='12', prediction='It goes on and on. '*60),
        dict(index='5', question='How SECRET long?', answer='12', prediction=''),
        dict(index='6', question='How SECRET long?', answer='12',
             prediction='Look at the ruler. Twelve, I should think, or less. Nice ruler.')]
FRAME = pl.DataFrame(ROWS, infer_schema_length=None).with_columns(run=pl.lit('one'), benchmark=pl.lit('bars'))

def keeper(said):
    asked = []
    def ask(item): asked.append(item.question); return said(item.question)
    return asked, ask

def test_it_sees_neither_question_nor_gold(tmp_path):
    asked, ask = keeper(lambda q: 'B' if 'colour' in q else 'Twelve')
    scores = judged(FRAME, ask, tmp_path/'judge', run='canned', progress=False)
    assert not [q for q in asked if 'SECRET' in q or 'GOLD' in q or '12' in q]
    assert len(asked)==2, 'equal replies are asked once; sure, looping and empty ones never'
    assert scores['correct'].to_list()==[True, True, True, False, False, True]
    assert scores['tier'].to_list()[:3]==['judge', 'pattern', 'judge']
    assert set(scores['protocol'])=={'judge-1'}
    assert '3 of 6' in judge_report(scores) and 'failed for 0' in judge_report(scores)

def test_a_failing_judge_is_counted_and_asked_again(tmp_path):
    def broken(q): raise OSError('no such host')
    with pytest.raises(ValueError, match='All 2 questions failed: OSError: no such host. Mend that'):
        judged(FRAME, keeper(broken)[1], tmp_path/'judge', run='canned', progress=False)
    asked, ask = keeper(lambda q: 'B' if 'colour' in q else broken(q))
    scores = judged(FRAME, ask, tmp_path/'judge', run='canned', progress=False)
    assert scores['correct'].is_not_null().all()
    failed = scores.filter(pl.col('reason').str.starts_with('judge failed')).height
    assert 0<failed<3 and f'failed for {failed} ({failed/3:.1%})' in judge_report(scores)
    asked, ask = keeper(lambda q: 'NONE')
    scores = judged(FRAME, ask, tmp_path/'judge', run='canned', progress=False)
    assert len(asked)==1, 'what was answered is not asked again'
    assert 'failed for 0' in judge_report(scores)

def test_what_it_makes_up_is_put_aside(tmp_path):
    scores = judged(FRAME.head(1).with_columns(choices=pl.lit(None, pl.String),
                                               question_type=pl.lit('free_form'), answer=pl.lit('31')),
                    lambda item: '31 cm', tmp_path/'judge', run='canned', progress=False)
    assert scores['correct'].to_list()==[False] and 'put aside' in scores['reason'][0]

@pytest.mark.parametrize('said', ['', 'A'*5000, '"""', '\0', '{"answer": 12}', 'The final answer is **12**.'])
def test_whatever_it_says_is_scored(tmp_path, said):
    scores = judged(FRAME, lambda item: said, tmp_path/'judge', run='canned', progress=False)
    assert scores.height==FRAME.height and scores['correct'].is_not_null().all()

def test_a_reason_is_one_short_line(tmp_path):
    for n, said in enumerate(('9'*5000, 'x\n'*500, '7\n\n\n8 '*500)):
        scores = judged(FRAME, lambda item: said, tmp_path/f'{n}', run='canned', progress=False)
        assert all(len(r)<200 and '\n' not in r for r in scores['reason'])

def test_no_row_needs_a_judge(tmp_path):
    scores = judged(FRAME[1:2], lambda item: 1/0, tmp_path/'judge', run='canned')
    assert 'No judge was needed' in judge_report(scores) and not (tmp_path/'judge').exists()

def test_options_in_the_question_lend_their_letters_only():
    row = dict(ROWS[0], choices=None, question='Which?\nChoices:\nA:GOLDLEFT\nB:GOLDRIGHT\nC:GOLDTOP')
    assert 'A, B, C' in judge_item(row).question and 'GOLD' not in judge_item(row).question

def test_from_the_shell(tmp_path, capsys):
    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            told = 'B' if 'colour' in json.dumps(asked) else 'Twelve'
            held = json.dumps(dict(id='1', object='chat.completion', created=0, model='judge',
                                   choices=[dict(index=0, finish_reason='stop',
                              message=dict(role='assistant', content=told))])).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(held)))
            self.end_headers()
            self.wfile.write(held)
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        FRAME.write_ndjson(tmp_path/'replies.jsonl')
        url = f'http://127.0.0.1:{server.server_address[1]}/v1'
        argv = ['score', tmp_path/'replies.jsonl', '--out', tmp_path/'scores.csv', '--protocol', 'judge']
        assert main(argv)==3 and 'go together' in capsys.readouterr().err
        assert main([*argv, '--judge', url])==3 and '--judge-model' in capsys.readouterr().err
        assert main([*argv, '--judge', url, '--judge-model', 'judge'])==0
        assert 'A judge was asked about 3 of 6 replies (50.0%). It failed for 0' in capsys.readouterr().out
    finally: server.shutdown(); server.server_close()
    assert main([*argv, '--judge', url, '--judge-model', 'judge'])==0, 'the cache answers, the server is gone'
    assert pl.read_csv(tmp_path/'scores.csv')['correct'].to_list()==[True, True, True, False, False, True]
