"Whatever a server does, each item ends as one reply or failure, and what would fail for all stops at once"
import asyncio, base64, io, json, sys, threading, time
from collections import defaultdict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

pytest.importorskip('openai')
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.asking.endpoint import Endpoint, data_url, pause
from vlm_merging.asking.ask import ask
from vlm_merging.asking.replies import replies, report

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
        for k, v in {'Content-Type':'application/json',
                     'Content-Length':str(len(held))}.items()|dict(headers).items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(held)
    def do_GET(self):
        self.server.gate.wait(60)
        if self.server.status!=200: return self.send(self.server.status, dict(error='no'))
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

@pytest.fixture
def server():
    s = Quiet(('127.0.0.1', 0), Scripted)
    s.script, s.seen, s.lock = defaultdict(list), defaultdict(list), threading.Lock()
    s.models, s.now, s.most = ['tiny'], 0, 0
    s.status, s.gate = 200, threading.Event()
    s.gate.set()
    t = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    t.start()
    yield s
    s.shutdown(); s.server_close(); t.join()

@pytest.fixture
def tiny(server, monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    return Endpoint(f'http://127.0.0.1:{server.server_port}', 'tiny', patience=.01, tries=4, timeout=5)

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
    with pytest.raises(ValueError, match='nothing came within 0.2 s'):
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
    assert 'No reply in 4 tries, the last time: status 500' in report(tmp_path/'run')
    server.script.clear(); server.seen.clear()
    table = ask(tiny, items, out=tmp_path/'run')
    assert table['prediction'].to_list()==[f're: {i}' for i in range(8)] and list(server.seen)==['3']
    assert 'abc' not in (tmp_path/'run'/'run.json').read_text()

def test_a_server_that_goes_away_stops_the_run_and_keeps_what_there_is(server, tiny, tmp_path):
    items = [Item(f'{i}', f'{i}') for i in range(60)]
    def die(h): server.socket.close(); cut(h)
    server.script['30'] = [die]
    with pytest.raises(ValueError, match='cannot be reached'):
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

def test_without_openai_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openai', None)
    with pytest.raises(ValueError, match=r"pip install 'vlm_merging\[serving\]'"):
        Endpoint('http://127.0.0.1:1', 'm')(Item('1', 'q'))

def test_any_picture_becomes_a_data_address():
    for mode in ('1', 'L', 'P', 'RGBA', 'CMYK', 'I;16'):
        for kind in ('PNG', 'GIF', 'WEBP', 'BMP'):
            held = io.BytesIO()
            try: Image.new(mode, (4, 4)).save(held, kind)
            except (OSError, KeyError, ValueError): continue
            assert data_url(Picture(held.getvalue())).startswith('data:image/png;base64,')
