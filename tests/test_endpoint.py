"Whatever a server does, each item ends as one reply or failure, and what would fail for all stops at once"
import asyncio, base64, html, io, json, re, signal, socket, subprocess, sys, threading, time, traceback
import warnings
from collections import defaultdict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from PIL import Image

from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.asking.connection import bare_address, repeats_key, way_to
from vlm_merging.asking.endpoint import Endpoint, pause
from vlm_merging.asking.wire import data_url
from vlm_merging.asking.ask import ask
from vlm_merging.asking.replies import replies, run_report
from vlm_merging.scoring.score import score

def good(text, finish='stop', **message):
    return dict(id='1', object='chat.completion', created=0, model='tiny',
                choices=[dict(index=0, finish_reason=finish,
                              message=dict(role='assistant', content=text, **message))])

class Scripted(BaseHTTPRequestHandler):
    """Does for each question what the script says, one step a request, and replies well once it is over.
    A step is a function of the handler, or (status, body, headers)."""
    protocol_version = 'HTTP/1.1'
    def send(self, status, body, headers=()):
        held = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        usual = {'Content-Type':'application/json', 'Content-Length':str(len(held))}
        for k, v in (usual|dict(headers)).items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(held)
    def do_GET(self):
        self.server.gate.wait(60)
        step = self.server.listed
        if step: return step(self) if callable(step) else self.send(*step)
        if self.server.status!=200: return self.send(self.server.status, dict(error='no'),
                                                     self.server.headers)
        if self.server.models is None: return self.send(404, dict(detail='Not Found'))
        if self.server.models!=['tiny']: return self.send(200, self.server.models)
        self.send(200, dict(object='list', data=[dict(id=m, object='model', created=0, owned_by='me')
                                                 for m in self.server.models]))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        content = body['messages'][-1]['content']
        question = content if isinstance(content, str) else content[-1]['text']
        with self.server.lock:
            self.server.seen[question].append((time.monotonic(), body,
                                               {k.lower():v for k, v in self.headers.items()}))
            self.server.now += 1; self.server.most = max(self.server.most, self.server.now)
            step = self.server.script[question].pop(0) if self.server.script[question] else (200,
                good(f're: {question}'))
        try: step(self) if callable(step) else self.send(*step)
        finally:
            with self.server.lock: self.server.now -= 1
    def log_message(self, *_): pass

class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *_): pass
    def ended(self, n):
        "Have `n` connections been hung up on? Waits a while for them"
        for _ in range(500):
            if len(self.hangups)>=n: return True
            time.sleep(.01)

def begin_server():
    s = Quiet(('127.0.0.1', 0), Scripted)
    s.script, s.seen, s.lock = defaultdict(list), defaultdict(list), threading.Lock()
    s.models, s.now, s.most, s.listed, s.hangups = ['tiny'], 0, 0, None, []
    s.status, s.headers, s.gate, s.hung = 200, {}, threading.Event(), threading.Event()
    s.arrived = threading.Semaphore(0)
    s.gate.set()
    t = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    t.start()
    yield s
    s.hung.set()
    s.shutdown(); s.server_close(); t.join()

@pytest.fixture
def server(): yield from begin_server()

@pytest.fixture
def tiny(server, monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    return Endpoint(f'http://127.0.0.1:{server.server_port}', 'tiny', patience=.01, tries=4, timeout=5,
                    trust_prompt=True)

def cut(h): h.close_connection = True; h.connection.close()
def half(h):
    h.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id": '
                  b'"1", ')
    h.wfile.flush(); cut(h)
def slow(h): time.sleep(.6); h.send(200, good('late'))

STUMBLES = {'429': (429, dict(error=dict(message='busy')), {'Retry-After':'0'}), '429 bare': (429, b''),
            '500': (500, dict(error='oops')),
    '502 page': (502, b'<html>Bad Gateway</html>', {'Content-Type':'text/html'}), '503': (503, b''),
    '408': (408, b''),
    'cut': cut, 'half a body': half, 'empty body': (200, b''), 'no json': (200, b'{"choices": [{'),
    'a page': (200, b'<html>hi</html>', {'Content-Type':'text/html'}),
    'a list': (200, []), 'null': (200, b'null'), 'no choices': (200, dict(good(''), choices=[])),
    'null choices': (200, dict(good(''), choices=None)),
    'null choice': (200, dict(good(''), choices=[None])),
    'no message': (200, dict(good(''), choices=[dict(index=0, finish_reason='stop')])),
    'null content': (200, good(None)), 'a number': (200, good(7)),
    'an error in a 200': (200, dict(error=dict(message='overloaded', code=502)))}

@pytest.mark.parametrize('name', STUMBLES)
def test_a_stumble_is_tried_again_and_is_never_an_answer(server, tiny, name):
    server.script['q'] = [STUMBLES[name]]*2
    assert tiny(Item('1', 'q'))=='re: q' and len(server.seen['q'])==3

@pytest.mark.parametrize('name', STUMBLES)
def test_after_some_tries_it_is_a_failure_of_that_item(server, tiny, name):
    server.script['q'] = [STUMBLES[name]]*9
    made = {r.id:r for r in tiny.many([Item('1', 'q'), Item('2', 'other')])}
    assert made['1'].error.startswith('No reply in 4 tries') and made['1'].text==''
    assert len(server.seen['q'])==4
    assert made['2'].text=='re: other'

def test_too_slow_is_tried_again(server, tiny):
    server.script['q'] = [slow]
    assert replace(tiny, timeout=.2)(Item('1', 'q'))=='re: q'
    server.script['q'] = [slow]*4
    with pytest.raises(ValueError, match='nothing whole came within 0.2 s'):
        replace(tiny, timeout=.2, tries=2)(Item('1', 'q'))

def test_retry_after_is_honoured(server, tiny):
    server.script['q'] = [(429, b'', {'Retry-After':'0.4'})]
    assert tiny(Item('1', 'q'))=='re: q'
    first, second = (t for t, *_ in server.seen['q'])
    assert second-first>=.4

def test_pauses_grow_and_have_an_end():
    for n in range(1, 60): assert .5*min(2**(n-1), 120)<=pause(n, 1.)<=180
    assert pause(1, 1., '0')==0 and pause(1, 1., '99999')==120
    assert pause(3, 1., 'Wed, 21 Oct 2015 07:28:00 GMT')>=2 and pause(1, 1., 'nan')>=.5

@pytest.mark.parametrize('status', [400, 413, 422])
def test_a_refused_item_fails_alone_and_is_not_tried_again(server, tiny, status):
    server.script['q'] = [(status, dict(error=dict(message='The prompt is too long.')))]
    made = {r.id:r for r in tiny.many([Item('1', 'q'), Item('2', 'other')])}
    assert 'The prompt is too long.' in made['1'].error and len(server.seen['q'])==1
    assert made['2'].text=='re: other'

def test_a_refusal_that_quotes_the_question_is_of_that_item(server, tiny):
    server.script['q'] = [(400, dict(error='The prompt is too long.', request=dict(model='tiny')))]
    got = {r.id:r for r in tiny.many([Item('1', 'q'), Item('2', 'other')])}
    assert 'too long' in got['1'].error and got['2'].text=='re: other'

def test_a_wrong_key_stops_at_once(server, tiny):
    for i in range(50): server.script[f'{i}'] = [(401, dict(error=dict(message='Incorrect API key')))]
    with pytest.raises(ValueError, match='refuses with status 401.*OPENAI_API_KEY'):
        list(replace(tiny, concurrency=2).many([Item(f'{i}', f'{i}') for i in range(50)]))
    assert sum(map(len, server.seen.values()))<=4

@pytest.mark.parametrize('step', [(404, dict(error=dict(message='The model `big` does not exist.'))),
                                  (400, dict(detail="Server is pinned to 'tiny'; requested 'big'."))])
def test_a_wrong_name_says_what_is_served(server, tiny, step):
    big = replace(tiny, model='big')
    server.script['q'] = [step]
    with pytest.raises(ValueError, match="does not serve 'big', but tiny"): big(Item('1', 'q'))
    server.models, server.script['q'] = None, [step]
    with pytest.raises(ValueError, match='refuses with status 40.*the name of the model'): big(Item('1', 'q'))

def test_nobody_listens_is_told_at_once(tiny, monkeypatch):
    import socket
    waits = []
    monkeypatch.setattr('vlm_merging.asking.endpoint.pause', lambda *about: waits.append(about) or 0)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        nobody = replace(tiny, base_url=f'http://127.0.0.1:{s.getsockname()[1]}/v1', tries=50, patience=9)
        with pytest.raises(ValueError, match='cannot be reached.*Start the server'): nobody(Item('1', 'q'))
        assert not waits                                          # of 50 tries, none waits for another

def test_honest_empty_replies_and_their_finish(server, tiny):
    server.script |= dict(a=[(200, good(''))], b=[(200, good(None, 'length'))],
                          c=[(200, good(None, 'content_filter'))],
                          d=[(200, good(None, refusal='I will not.'))])
    made = {r.id:r for r in tiny.many([Item(q, q) for q in 'abcd'])}
    assert [(made[q].text, made[q].finish, made[q].error) for q in 'abcd']==[('', 'stop', None),
        ('', 'length', None), ('', 'content_filter', None), ('I will not.', 'stop', None)]

def test_what_is_sent(server, tiny):
    held = io.BytesIO(); Image.new('RGB', (5, 3), 'red').save(held, 'JPEG'); jpeg = held.getvalue()
    held = io.BytesIO(); Image.new('P', (5, 3)).save(held, 'GIF'); gif = held.getvalue()
    item = Item('1', 'How many?', images=(Picture(jpeg), Picture(gif)))
    replace(tiny, system='Be brief.', top_p=.5, seed=3, extra=dict(top_k=1), api_key='abc',
            max_tokens=7)(item)
    (_, body, headers), = server.seen['How many?']
    assert {k:v for k, v in body.items() if k!='messages'}==dict(model='tiny', max_tokens=7, temperature=0,
        top_p=.5, seed=3, top_k=1)
    assert headers['authorization']=='Bearer abc'
    system, user = body['messages']
    assert system==dict(role='system', content='Be brief.')
    first, second, text = user['content']
    assert base64.b64decode(first['image_url']['url'].removeprefix('data:image/jpeg;base64,'))==jpeg
    png = base64.b64decode(second['image_url']['url'].removeprefix('data:image/png;base64,'))
    assert Image.open(io.BytesIO(png)).size==(5, 3)
    assert text==dict(type='text', text='How many?')
    replace(tiny, temperature=None, max_tokens=None)(Item('1', 'text only'))
    assert server.seen['text only'][0][1]==dict(model='tiny',
                                                messages=[dict(role='user', content='text only')])

def test_a_text_and_a_picture_are_a_question(server, tiny, tmp_path):
    Image.new('RGB', (5, 3), 'red').save(tmp_path/'a.png')
    assert tiny('How many?', tmp_path/'a.png', Image.new('RGB', (2, 2)))=='re: How many?'
    (_, body, _), = server.seen['How many?']
    assert [o['type'] for o in body['messages'][-1]['content']]==['image_url', 'image_url', 'text']
    with pytest.raises(ValueError, match='no.png: cannot read'): tiny('?', tmp_path/'no.png')

def test_an_endpoint_shows_itself_in_a_line_without_secrets():
    shown = repr(Endpoint('http://u:secret@a.b:1/v1?key=secret', 'm', 'secret', max_tokens=None))
    assert shown=="Endpoint('http://a.b:1/v1', 'm', greedy)"

def test_a_broken_picture_is_not_sent(server, tiny):
    broken = Item('1', 'q', images=(Picture(b'\xff\xd8\xff\xe0 no more', 'row 1'),))
    made = {r.id:r for r in tiny.many([broken, Item('2', 'other')])}
    assert 'row 1: the image cannot be decoded' in made['1'].error and made['2'].text
    assert 'q' not in server.seen

def test_many_are_in_flight_but_not_too_many(server, tiny):
    def wait(h): time.sleep(.05); h.send(200, good('x'))
    for i in range(24): server.script[f'{i}'] = [wait]
    assert len(list(replace(tiny, concurrency=6).many([Item(f'{i}', f'{i}') for i in range(24)])))==24
    assert 3<=server.most<=6

def test_who_stops_listening_stops_the_asking(server, tiny):
    feed = replace(tiny, concurrency=2).many([Item(f'{i}', f'{i}') for i in range(200)])
    next(feed); feed.close()
    time.sleep(.1)
    asked = sum(map(len, server.seen.values()))
    time.sleep(.1)
    assert sum(map(len, server.seen.values()))==asked<200

def test_it_works_inside_a_running_loop(tiny):
    async def cell(): return tiny(Item('1', 'q'))
    assert asyncio.run(cell())=='re: q'

def test_through_the_loop_failures_are_asked_again(server, tiny, tmp_path):
    server.script |= {'3':[STUMBLES['500']]*9, '5':[STUMBLES['cut'], STUMBLES['429']]}
    items, tiny = [Item(f'{i}', f'{i}') for i in range(8)], replace(tiny, weights='w')
    with pytest.warns(UserWarning, match='7 of 8 items have a reply'): ask(tiny, items, out=tmp_path/'run')
    assert 'No reply in 4 tries, the last time: status 500' in run_report(tmp_path/'run')
    server.script.clear(); server.seen.clear()
    table = ask(tiny, items, out=tmp_path/'run')
    assert table['prediction'].to_list()==[f're: {i}' for i in range(8)] and list(server.seen)==['3']
    assert 'abc' not in (tmp_path/'run'/'run.json').read_text()

def test_a_server_that_goes_away_stops_the_run_and_keeps_what_there_is(server, tiny, tmp_path):
    items = [Item(f'{i}', f'{i}') for i in range(60)]
    def die(h): server.socket.close(); cut(h)
    server.script['30'] = [die]
    with pytest.raises(ValueError, match='answered before and cannot be reached any more.*missing'):
        ask(replace(tiny, concurrency=1), items, out=tmp_path/'run')
    assert replies(tmp_path/'run').height==30

def test_replies_are_kept_under_weights_or_else_under_the_address(tmp_path):
    from vlm_merging.checkpoints.headers import Checkpoint
    from vlm_merging.lab.trio import lab_folder
    from vlm_merging.asking.fingerprints import weights_hash
    a = Endpoint('http://u:secret@127.0.0.1:8000/v1?key=secret', 'm', api_key='secret')
    b = Endpoint('127.0.0.1:9000', 'm')
    assert (a.url, b.url)==('http://127.0.0.1:8000/v1', 'http://127.0.0.1:9000/v1')
    assert a.about!=b.about and 'secret' not in json.dumps([a.about, a.how])+repr(replace(a, base_url='x'))
    named = [replace(o, weights=lab_folder()/'vlm').about for o in (a, b)]
    assert named[0]==named[1] and named[0]['weights']==weights_hash(Checkpoint.open(lab_folder()/'vlm'))
    assert replace(a, weights='merge of May').about['weights']=='merge of May'

def test_replies_of_weights_that_nobody_named_are_not_gone_on_with_in_silence(server, tiny, tmp_path,
    recwarn):
    items = [Item(f'{i}', f'{i}') for i in range(4)]
    ask(tiny, items[:2], out=tmp_path/'run')
    ask(replace(tiny, weights='A'), items, out=tmp_path/'named')
    ask(replace(tiny, weights='A'), items, out=tmp_path/'named')
    ask(lambda item: 'x', items, out=tmp_path/'mine', run='mine'); ask(lambda item: 'x', items,
        out=tmp_path/'mine', run='mine')
    assert not recwarn.list
    assert json.loads((tmp_path/'run'/'run.json').read_text())['about']['weights'] is None
    with pytest.warns(UserWarning,
                      match='goes on with 2 replies of weights that nobody named.*with `weights`') as told:
        ask(tiny, items, out=tmp_path/'run')
    assert len(told)==1 and __file__==told[0].filename
    ask(tiny, [Item('0', 'another question')], out=tmp_path/'run')  # None of the replies is taken
    assert not [w for w in recwarn.list if 'nobody named' in str(w.message)]
    with pytest.raises(ValueError, match='other settings: weights is null there and "A" here'):
        ask(replace(tiny, weights='A'), items, out=tmp_path/'run')

@pytest.mark.parametrize('body', [None, dict(object='list', data=None), dict(models=['tiny']), [], b'null',
                                  b'<html>hi</html>', dict(object='list', data=['tiny'])])
def test_a_server_without_a_list_has_none(server, tiny, body):
    server.models = body
    assert tiny.served()==[]

def test_a_list_that_cannot_be_had_is_a_sentence(server, tiny, monkeypatch):
    server.status = 401
    with pytest.raises(ValueError, match=r'http://127.0.0.1:\d+/v1 refuses .*status 401.*OPENAI_API_KEY'):
        tiny.served()
    server.status = 405
    assert tiny.served()==[]
    for status in (429, 500, 503):
        server.status = status
        with pytest.raises(ValueError, match=f'status {status}.*Try again'): tiny.served()
    server.status = 200
    server.gate.clear()                                           # it does not answer before it is told to
    with pytest.raises(ValueError, match='no list of its models within 0.2 s'):
        replace(tiny, timeout=.2).served()
    assert not server.gate.is_set()
    server.gate.set()
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        with pytest.raises(ValueError, match='cannot be reached.*Start the server'):
            replace(tiny, base_url=f'127.0.0.1:{s.getsockname()[1]}').served()

def test_any_picture_becomes_a_data_address():
    for mode in ('1', 'L', 'P', 'RGBA', 'CMYK', 'I;16'):
        for kind in ('PNG', 'GIF', 'WEBP', 'BMP'):
            held = io.BytesIO()
            try: Image.new(mode, (4, 4)).save(held, kind)
            except (OSError, KeyError, ValueError): continue
            assert data_url(Picture(held.getvalue())).startswith('data:image/png;base64,')

# What a stranger does: see `connection`

SHORT = dict(timeout=.4, tries=1)
ok = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'

def raw(*pieces, every=0., hang=False):
    "Sends bytes as they are, the last piece for ever if it shall hang, until nobody listens any more"
    def step(h):
        h.close_connection = True
        try:
            for piece in pieces: h.wfile.write(piece)
            while hang:
                h.server.hung.wait(every)
                h.wfile.write(pieces[-1])
        except OSError: h.server.hangups.append(h.path)
    return step

def body(text): return 200, text if isinstance(text, bytes) else text.encode(), {}
def message(**fields): return body(json.dumps(dict(choices=[dict(message=fields, finish_reason='stop')])))
def packed(kind): return 200, b'\x1f\x8b\x08\0'*9, {'Content-Encoding':kind}

HOSTILE = {
    'drips': (raw(ok+b'\r\n', b' ', every=.02, hang=True), 'nothing whole came within 0.4 s'),
    'drips headers': (raw(ok, b'X: y\r\n', every=.02, hang=True), 'nothing whole came within'),
    'drips one header': (raw(ok+b'X: ', b'y', every=.02, hang=True), 'nothing whole came within'),
    'says to wait': (raw(b'HTTP/1.1 100 Continue\r\n\r\n', every=.02, hang=True),
                     'nothing whole came within'),
    'says nothing': (lambda h: h.server.hung.wait(3), 'nothing whole came within'),
    'endless': (raw(ok+b'Content-Length: 10000000000\r\n\r\n', b'x'*2**20, hang=True), 'larger than 8 MiB'),
    'endless chunks': (raw(ok+b'Transfer-Encoding: chunked\r\n\r\n', b'100000\r\n'+b'x'*2**20+b'\r\n',
                           hang=True),
                       'larger than 8 MiB'),
    'endless events': (raw(ok+b'Content-Type: text/event-stream\r\n\r\n', b'data: {}\n\n'*2**14, hang=True),
                       'larger than 8 MiB'),
    'events': ((200, b'data: {"choices": []}\n\ndata: [DONE]\n\n', {'Content-Type':'text/event-stream'}),
               r'no JSON \(text/event-stream\)'),
    **{k: (packed(k), f'compressed \\({k}\\)') for k in ('gzip', 'br', 'zstd', 'deflate')},
    'packed twice': (packed('gzip, identity'), 'compressed'),
    'a header of megabytes': (raw(ok+b'X: '+b'y'*2**22+b'\r\n\r\n{}'), 'connection was lost'),
    'headers of megabytes': (raw(ok+b'X: y\r\n'*2**19+b'\r\n{}'), 'connection was lost'),
    'HTTP/0.9': (raw(b'<html>'+b'hello\x1b[31m'*99), 'connection was lost'),
    'zeros': (raw(b'\0'*2000), 'connection was lost'),
    'a bad status': (raw(b'HTTP/1.1 2000 \xff\xfe\r\n\r\n'), 'connection was lost'),
    'a bad length': (raw(ok+b'Content-Length: -5\r\n\r\n{}'), 'connection was lost'),
    'two lengths': (raw(ok+b'Content-Length: 2\r\nContent-Length: 900\r\n\r\n{}'), 'connection was lost'),
    'a bad chunk': (raw(ok+b'Transfer-Encoding: chunked\r\n\r\nzz\r\n'), 'connection was lost'),
    'deep': (body('['*10**6), 'no JSON'), 'deep objects': (body('{"a":'*10**6), 'no JSON'),
    'a deep choice': (body('{"choices": '+'['*500+']'*500+'}'), 'not of the expected form'),
    'a huge number': (body('{"choices": '+'9'*10**5+'}'), 'no JSON|expected form'),
    'not UTF-8': (body(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), 'no JSON'),
    'not a number': (message(content=float('nan')), 'of the kind float'),
    'choices are text': (body('{"choices": "yes"}'), 'not of the expected form'),
    'choices are named': (body('{"choices": {"0": {}}}'), 'not of the expected form'),
    'a choice is text': (body('{"choices": ["yes"]}'), 'not of the expected form'),
    'a message is text': (body('{"choices": [{"message": "yes"}]}'), 'not of the expected form'),
    'the last of two keys': (body('{"choices": [{"message": {"content": "x"}}], "choices": []}'),
                             'expected form'),
    'parts': (message(content=[dict(type='text', text='x')]), 'of the kind list'),
    'tool calls': (message(content=None, tool_calls=[dict(id='1')]), 'no content but tool_calls'),
    'an error at length': ((200, dict(error=dict(message='no\n'*10**5))), 'the reply is an error: .*no'),
    'a refusal at length': ((400, ('<p>\x1b[2J\r\n\u202e'*10**5).encode()), 'refuses with status 400: <p>'),
    'an endless refusal': (raw(b'HTTP/1.1 400 No\r\n\r\n', b'x'*2**20, hang=True), 'refuses with status 400'),
    'a packed refusal': ((422, b'\x1f\x8b', {'Content-Encoding':'gzip'}), 'refuses with status 422'),
    'another protocol': (raw(b'HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n'),
                         'status 101|connection was lost')}

@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_answer_fails_one_item_in_one_line(server, tiny, name):
    step, why = HOSTILE[name]
    server.script['q'] = [step]
    got = {r.id:r for r in replace(tiny, **SHORT).many([Item('1', 'q'), Item('2', 'other')])}
    error = got['1'].error
    assert re.search(why, error) and len(error)<450 and error.isprintable() and not got['1'].text
    assert got['2'].text=='re: other' and got['2'].error is None

def test_thoughts_are_kept_beside_the_reply_and_never_scored(server, tiny, tmp_path):
    server.script |= dict(a=[(200, good('7', reasoning_content='It is 8.\ud800'))],
                          b=[(200, good(None, reasoning='It is 8.'))],
                          c=[(200, good('8', reasoning_content=5))])
    items = [Item(q, q, '8', tags=dict(kind='sum')) for q in 'abc']
    got = ask(tiny, items, tmp_path/'run', 'r')
    assert got['prediction'].to_list()==['7', '', '8']
    assert got['reasoning_content'].to_list()==['It is 8.?', 'It is 8.', None]
    scores = score(tmp_path/'run')
    assert scores['correct'].to_list()==[False, False, True] and 'reasoning_content' not in scores.columns
    again = ask(tiny, [*items, Item('d', 'd', '8')], tmp_path/'run', 'r')
    assert again['reasoning_content'].to_list()==['It is 8.?', 'It is 8.', None, None]

def test_who_drips_is_hung_up_on(server, tiny):
    server.script['q'] = [raw(ok+b'\r\n', b' ', every=.02, hang=True)]*2
    assert 'No reply in 2 tries' in next(replace(tiny, timeout=.3, tries=2).many([Item('1', 'q')])).error
    assert server.ended(2)

def test_a_refusal_is_told_though_its_words_never_end(server, tiny, monkeypatch):
    monkeypatch.setattr('vlm_merging.asking.connection.REFUSAL', .2)
    server.script['q'] = [raw(b'HTTP/1.1 401 No\r\n\r\n', b' ', every=.02, hang=True)]
    with pytest.raises(ValueError, match='refuses with status 401'): tiny(Item('1', 'q'))

def test_half_a_character_and_odd_ends_do_not_matter(server, tiny):
    server.script |= dict(a=[body('{"choices": [{"message": {"content": "x\\ud800"}, "finish_reason": 7}]}')],
                          b=[(200, good('b', dict(deep=[])))], c=[(200, good('c', 'stop\x1b\n'*99))],
                          d=[(200, json.dumps(good('d')).encode(), {'Content-Type':'image/png'})],
                          e=[(200, json.dumps(good('e', reasoning_content='Hm.')).encode())])
    got = {r.id:r for r in tiny.many([Item(q, q) for q in 'abcde'])}
    assert [got[q].text for q in 'abcde']==['x?', 'b', 'c', 'd', 'e']
    assert got['a'].finish is got['b'].finish is None
    assert len(got['c'].finish)<=40 and got['c'].finish.isprintable()

def test_what_comes_too_much_is_no_answer_to_the_next(server, tiny):
    stolen = json.dumps(good('stolen')).encode()
    more = ok+b'Content-Length: %d\r\n\r\n%s' % (len(stolen), stolen)
    def both(h): h.send(200, good('mine')); h.wfile.write(more*3)
    server.script['a'] = [both]
    got = {r.id:r.text for r in replace(tiny, concurrency=1).many([Item('a', 'a'), Item('b', 'b')])}
    assert got==dict(a='mine', b='re: b')

def test_no_cookie_is_taken(server, tiny):
    server.script['a'] = [(200, good('a'), {'Set-Cookie':'a=b; Path=/'})]
    list(replace(tiny, concurrency=1).many([Item('a', 'a'), Item('b', 'b')]))
    assert 'cookie' not in server.seen['b'][0][2]

def test_a_long_text_is_looked_through_whole():
    "Also where the key lies across two pieces, and whatever it is made of"
    for pad in ('x', '%41', '&amp;', '&#9', '\\', '你'):
        long = pad*(200_000//len(pad))
        assert not repeats_key(long, KEY)
        for at in (0, 65530, 65536-8, len(long)):
            assert repeats_key(long[:at]+quote(KEY, safe='')+long[at:], KEY)
    assert not repeats_key('&#'+'9'*9999+';', KEY) and repeats_key(f'&#{"9"*9999};{html.escape(KEY)}', KEY)

@pytest.fixture
def other():
    "A second server"
    yield from begin_server()

@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, other, tiny, status):
    for there in (f'http://me:hidden@127.0.0.1:{other.server_port}/v1/chat/completions?key=hidden',
                  '/v2?key=hidden'):
        server.script['q'] = [(status, b'', {'Location':there})]
        with pytest.raises(ValueError,
                           match=f'sends on to .*status {status}.*not followed') as e: tiny(Item('1', 'q'))
        assert 'hidden' not in str(e.value)
        server.status, server.headers = status, {'Location':there}
        with pytest.raises(ValueError, match='sends on to .*not followed'): tiny.served()
        server.status, server.headers = 200, {}
    assert not other.seen

KEY = 'sk-proj_Ab3+/"q&x=9'
b64 = base64.b64encode
ECHOES = {'plain': KEY, 'header': f'Authorization: Bearer {KEY}', 'json': json.dumps(KEY),
          'escapes': ''.join(f'\\u{ord(c):04x}' for c in KEY), 'percent': quote(KEY, safe=''),
          'basic': 'Basic '+b64(f':{KEY}'.encode()).decode(), 'user': b64(f'me:{KEY}'.encode()).decode(),
          'user 2': b64(f'you:{KEY}!'.encode()).decode(),
          'url base64': base64.urlsafe_b64encode(KEY.encode()).decode(),
          'hex': KEY.encode().hex().upper(), 'html': html.escape(KEY), 'small': KEY.lower(),
          'UTF-16': KEY.encode('utf-16-le').decode(), 'in lines': '\n'.join(re.findall('.{1,5}', KEY))}

@pytest.mark.parametrize('name', ECHOES)
@pytest.mark.parametrize('how', ['401', '400', '500', 'error', 'reply', 'finish', 'kind', 'moved', 'model'])
def test_a_key_that_comes_back_is_neither_shown_nor_kept(server, tiny, tmp_path, name, how, capsys):
    echo = ECHOES[name]
    line = echo.replace('\n', ' ').replace('\0', ' ')
    text = '{"error": "%s"}' % echo if name=='escapes' else echo
    server.script['q'] = [dict(
        reply=(200, good(echo)), finish=(200, good('x', echo)), kind=(200, b'no', {'Content-Type':line}),
        moved=(307, b'', {'Location':f'http://a.b/{line}'}), error=(200, dict(error=echo)),
        model=(200, dict(good('x'), model=echo))).get(how) or (int(how), text.encode(), {'X-Key':line})]
    asker = replace(tiny, api_key=KEY, tries=1, concurrency=1)
    shown = [repr(asker), str(asker.about), str(asker.how)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        try: ask(asker, [Item('1', 'q'), Item('2', 'other')], out=tmp_path/'run')
        except ValueError as e: shown += traceback.format_exception(e)
    assert server.seen['q'][0][2]['authorization']==f'Bearer {KEY}'
    shown += [str(w.message) for w in told]
    shown += [p.read_text() for p in (tmp_path/'run').rglob('*') if p.is_file()]
    if (tmp_path/'run').exists(): shown.append(run_report(tmp_path/'run'))     # else: nothing was asked
    text = ''.join(''.join(shown).split())
    for part in [KEY, *ECHOES.values()]: assert ''.join(part.split()) not in text

def test_a_name_of_a_model_that_is_the_key_is_none(server, tiny):
    server.models = dict(data=[dict(id=o) for o in (KEY, 'a\nb', 'x'*999, 'fine')])
    assert replace(tiny, api_key=KEY).served()==['fine']

@pytest.mark.parametrize('key', ['abcdefgh\n', 'two words', 'schlüssel', 'nul\0', '\ufeffabcdefgh',
                                 'tab\tbed'])
def test_a_key_that_no_header_carries_is_refused_at_once(key, monkeypatch):
    for given in (dict(api_key=key), {}):
        if not given: monkeypatch.setattr('os.environ', dict(OPENAI_API_KEY=key))
        with pytest.raises(ValueError, match='The API key holds') as e: Endpoint('127.0.0.1:1', 'm', **given)
        assert key not in str(e.value)

@pytest.mark.parametrize('url', ['', 'ftp://a.b', 'http://', 'http://a.b:99999', 'http://me:hidden@[::1',
                                 'file:///etc',
                                 'http://me:hidden@a.b:x/', 'http://a b/', 'http://a.b/\x1b[2J',
                                 'http://:80'])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match='no address of a server') as e: Endpoint(url, 'm')
    assert 'hidden' not in str(e.value)

@pytest.fixture
def no_proxies(monkeypatch):
    for name in ('http', 'https', 'all', 'no'):
        for v in (f'{name}_proxy', f'{name.upper()}_PROXY'): monkeypatch.delenv(v, raising=False)

@pytest.mark.parametrize('variable', ['http_proxy', 'HTTP_PROXY', 'ALL_PROXY', 'all_proxy'])
@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '127.0.0.2', '127.1', '[::1]',
                                  '[::ffff:127.0.0.1]', '0.0.0.0',
                                  'a.localhost', 'my-box'])
def test_this_machine_is_never_asked_through_a_proxy(no_proxies, monkeypatch, variable, host):
    real = socket.getaddrinfo
    def found(name, *more): return real('127.0.1.1' if name=='my-box' else name, *more)
    monkeypatch.setattr('socket.getaddrinfo', found)
    monkeypatch.setenv(variable, 'http://192.0.2.9:3128')
    assert way_to(bare_address(f'{host}:8000'))[1]==''
    assert way_to('http://192.0.2.1:8000/v1')[1]==' through the proxy 192.0.2.9:3128'
    monkeypatch.setenv('NO_PROXY', '192.0.2.1')
    assert way_to('http://192.0.2.1:8000/v1')[1]==''

def test_a_question_does_not_leave_for_a_proxy_and_back(server, other, tiny, no_proxies, monkeypatch):
    monkeypatch.setenv('ALL_PROXY', f'http://127.0.0.1:{other.server_port}')
    assert tiny(Item('1', 'q'))=='re: q' and tiny.served()==['tiny'] and not other.seen
    far = replace(tiny, base_url='http://192.0.2.1:8000')        # Behind the proxy
    assert far(Item('1', 'q'))=='re: q' and other.seen

def test_a_broken_proxy_is_told_as_one(other, tiny, no_proxies, monkeypatch):
    far = replace(tiny, base_url='http://192.0.2.1:8000', tries=2)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        closed = f'127.0.0.1:{s.getsockname()[1]}'
        for proxy in (f'http://me:hidden@{closed}', f'me:hidden@{closed}'):
            monkeypatch.setenv('ALL_PROXY', proxy)
            for call in (far.served, lambda: far(Item('1', 'q'))):
                with pytest.raises(ValueError,
                                   match=f'through the proxy {closed}.*Start that proxy') as e: call()
                assert 'hidden' not in ''.join(traceback.format_exception(e.value))
    monkeypatch.setenv('ALL_PROXY', f'http://me:hidden@127.0.0.1:{other.server_port}')
    for status, why in {407: 'wants a name and a password', 403: 'refuses through the proxy .*403'}.items():
        other.script['q'] = [(status, b'')]
        with pytest.raises(ValueError, match=why) as e: far(Item('1', 'q'))
        assert 'hidden' not in str(e.value)
    tunnel = replace(far, base_url='https://192.0.2.1')
    with pytest.raises(ValueError, match='cannot be reached through the proxy .*501'): tunnel(Item('1', 'q'))

@pytest.mark.parametrize('proxy,why', [('socks5://me:hidden@192.0.2.9:1080', 'socksio'),
                                       ('socks4://me:hidden@192.0.2.9:1', 'begins'),
                                       ('socks5h://me:hidden@192.0.2.9', 'socksio'),
                                       ('foo://me:hidden@x', 'begins'),
                                       ('http://me:hidden@192.0.2.9:x', 'begins')])
def test_a_proxy_that_cannot_be_used_is_a_sentence(tiny, no_proxies, monkeypatch, proxy, why):
    monkeypatch.setitem(sys.modules, 'socksio', None)
    monkeypatch.setenv('all_proxy', proxy)
    far = replace(tiny, base_url='http://192.0.2.1:8000')
    for call in (far.served, lambda: far(Item('1', 'q'))):
        with pytest.raises(ValueError, match=f'through the proxy.*{why}.*NO_PROXY') as e: call()
        assert 'hidden' not in ''.join(traceback.format_exception(e.value))

def test_a_certificate_and_a_port_of_another_kind_are_told(server, tiny):
    secure = replace(tiny, base_url=tiny.base_url.replace('http:', 'https:'))
    with pytest.raises(ValueError, match='cannot be reached .*SSL'): secure(Item('1', 'q'))
    with socket.socket() as s:                                    # Lets one in, and never shakes hands
        s.bind(('127.0.0.1', 0)); s.listen()
        mute = replace(tiny, base_url=f'https://127.0.0.1:{s.getsockname()[1]}', **SHORT)
        assert 'nothing whole came within 0.4 s' in next(mute.many([Item('1', 'q')])).error

@pytest.mark.parametrize('step,why', [
    (raw(ok+b'\r\n', b' ', every=.02, hang=True), 'no list of its models within 0.4 s'),
    (raw(ok+b'\r\n', b'x'*2**20, hang=True), []), (body('['*10**6), []), (raw(b'\0'*99), 'cannot be reached'),
    (packed('gzip'), []), (body('{"data": [null, 1, {"id": 1}, {"id": ""}, {"id": "a"}]}'), ['a'])])
def test_a_hostile_list_of_models(server, tiny, step, why):
    server.listed = step
    tiny = replace(tiny, **SHORT)
    if isinstance(why, list): assert tiny.served()==why
    else:
        with pytest.raises(ValueError, match=why): tiny.served()

def test_another_model_in_the_middle_stops_the_run(server, tiny, tmp_path):
    items = [Item(f'{i}', f'{i}') for i in range(9)]
    server.script['4'] = [(200, dict(good('x'), model='big'))]
    with pytest.raises(ValueError, match="replied as 'tiny' and now replies as 'big'"):
        ask(replace(tiny, concurrency=1), items, out=tmp_path/'run')
    assert replies(tmp_path/'run').height==4
    for name in (None, 7, []): server.script['5'].append((200, dict(good('x'), model=name)))
    ask(replace(tiny, weights=None), items, out=tmp_path/'run2')  # No name is no other name

def test_a_key_that_ends_in_the_middle_keeps_what_there_is(server, tiny, tmp_path):
    items = [Item(f'{i}', f'{i}') for i in range(9)]
    server.script['4'] = [(401, dict(error='expired'))]
    with pytest.raises(ValueError, match='refuses with status 401'):
        ask(replace(tiny, concurrency=1, weights='w'), items, out=tmp_path/'run')
    assert replies(tmp_path/'run').height==4
    assert ask(replace(tiny, weights='w'), items, out=tmp_path/'run').height==9
    assert len(server.seen['0'])==1

@pytest.mark.parametrize('wait', ['-1', 'inf', 'nan', '1e999', '9'*5000,
                                  'Wed, 99 Oct 99999999999 00:00:00 GMT', '\x00', '1,5',
                                  'Thu, 01 Jan 0000 00:00:00 +9999', '٣', '0x10',
                                  'Mon, 01 Jan 99999 00:00:00 GMT', ' '])
def test_an_absurd_wish_to_wait_is_bounded(wait): assert 0<=pause(1, 1., wait)<=120

def test_a_storm_of_429_ends(server, tiny, monkeypatch):
    monkeypatch.setattr('vlm_merging.asking.connection.asyncio.sleep', waited := AsyncSleep())
    for i in range(9): server.script[f'{i}'] = [(429, b'', {'Retry-After':'1e300'})]*99
    got = list(tiny.many([Item(f'{i}', f'{i}') for i in range(9)]))
    assert all('No reply in 4 tries, the last time: status 429' in r.error for r in got)
    assert waited.seconds==[120.]*27

class AsyncSleep:
    "Notes how long it should be"
    def __init__(self): self.seconds = []
    async def __call__(self, seconds): self.seconds.append(seconds)

def test_whoever_stops_waiting_ends_what_is_under_way(server, tiny):
    for i in range(4): server.script[f'{i}'] = [raw(ok+b'\r\n', b' ', every=.01, hang=True)]
    feed = replace(tiny, concurrency=5, timeout=60).many([Item(f'{i}', f'{i}') for i in (9, 0, 1, 2, 3)])
    assert next(feed).text=='re: 9'
    with pytest.raises(KeyboardInterrupt): feed.throw(KeyboardInterrupt)
    assert server.ended(4) and not [t for t in threading.enumerate() if 'in_own_loop' in t.name]

def test_ctrl_c_in_the_shell_with_questions_in_flight(server, tmp_path):
    (tmp_path/'q.csv').write_text('question,answer\n'+''.join(f'How many are {i}?,{i}\n' for i in range(5)))
    def mute(h): h.server.arrived.release(); h.server.hung.wait(60)
    for i in range(1, 5): server.script[f'How many are {i}?'] = [mute]
    argv = [sys.executable, '-m', 'vlm_merging', 'ask', '--endpoint', f'127.0.0.1:{server.server_port}',
            '--model', 'tiny',
            '--benchmark', 'q.csv', '--out', 'run']
    p = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(4): assert server.arrived.acquire(timeout=60)
        while not (tmp_path/'run'/'replies.jsonl').stat().st_size: time.sleep(.01)
        p.send_signal(signal.SIGINT)
        _, told = p.communicate(timeout=60)
    finally: p.kill()
    assert p.returncode==130 and 'goes on from here' in told and 'Traceback' not in told
    assert replies(tmp_path/'run').height==1

def test_a_server_is_asked_from_the_shell(server, call, tmp_path):
    (tmp_path/'q.csv').write_text('question,answer\nHow many?,1\n')
    argv = ['ask', '--endpoint', f'127.0.0.1:{server.server_port}', '--benchmark', tmp_path/'q.csv',
            '--max-new-tokens', 7, '--batch-size', 2, '--temperature', 0, '--serves', 'merge of May']
    assert call(*argv, '--out', tmp_path/'a')[0]==0
    assert call(*argv, '--model', 'tiny', '--out', tmp_path/'a')[0]==0
    (_, body, _), = next(iter(server.seen.values()))
    assert body['max_tokens']==7 and body['model']=='tiny'
    server.models = dict(data=[dict(id=f'm{i}') for i in range(99)])
    code, _, told = call(*argv, '--out', tmp_path/'b')
    assert code==3 and '--model is missing. The server has m0, m1' in told and 'm9, ...: name' in told

# Several replies to a question

def test_each_sample_is_sent_with_a_seed_of_its_own_and_equal_replies_are_told(server, tiny, tmp_path):
    warm, items = replace(tiny, temperature=1., seed=3), [Item(str(i), f'q{i}') for i in range(3)]
    table = ask(warm, items, tmp_path/'run', 'r', samples=2)
    seeds = {q:sorted(body['seed'] for _, body, _ in seen) for q, seen in server.seen.items()}
    assert len({s for both in seeds.values() for s in both})==6 and table.height==6
    ask(replace(warm, concurrency=1), items[::-1], tmp_path/'other', 'r', samples=2)
    again = {q:sorted(body['seed'] for _, body, _ in seen[2:]) for q, seen in server.seen.items()}
    assert again==seeds
    assert 'each was answered in the same words each time' in run_report(tmp_path/'run')

def test_without_a_seed_none_is_sent_and_a_server_at_temperature_0_may_be_asked_again(server, tiny, tmp_path):
    server.script['q'] = [(200, good('one')), (200, good('two'))]
    table = ask(tiny, [Item('1', 'q')], tmp_path/'run', 'r', repeat=1)
    assert table.select('sample', 'prediction').rows()==[('1', 'one'), ('repeat', 'two')]
    assert not any('seed' in body for _, body, _ in server.seen['q'])
    assert '1 (100%) were not answered in the same words' in run_report(tmp_path/'run')

class Static(BaseHTTPRequestHandler):
    "A web server for something else: what it answers a question with"
    def do_GET(self):
        self.send_response(404)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.server.asked += 1
        status, kind, body = self.server.answers
        self.send_response(status)
        for k, v in {'Content-Type':kind, 'Content-Length':str(len(body))}.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

@pytest.mark.parametrize('answers,told', [
    ((501, 'text/html', b"<!DOCTYPE HTML><p>Unsupported method ('POST')"), 'status 501'),
    ((405, 'text/html', b'<h1>Not Allowed'), 'status 405'), ((405, 'application/json', b'{}'), 'status 405'),
    ((404, 'text/html', b'<h1>Not Found'), r'a web page \(status 404\)'),
    ((200, 'text/html', b'<h1>Welcome to nginx!'), r'a web page \(status 200\)'),
    ((200, 'text/plain', b'  <html>'), r'a web page \(status 200\)')])
@pytest.mark.parametrize('processor', [None, 'lab/vlm'])
def test_a_plain_web_server_is_given_up_at_once(tmp_path, answers, told, processor):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Static)
    server.asked, server.answers = 0, answers
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    far = Endpoint(f'127.0.0.1:{server.server_port}', 'x', patience=30, concurrency=1, processor=processor)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ValueError, match=f'no OpenAI-compatible server.*{told}.*Correct the address'):
            ask(far, [Item('1', 'q'), Item('2', 'r')], tmp_path/'run')
    assert server.asked==1 and not (tmp_path/'run').exists()
    server.shutdown()
    server.server_close()
