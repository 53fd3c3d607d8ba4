"A server that builds prompts with a processor of its own choice, and tells of them what it is told to"
import json, threading
from base64 import b64decode
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vlm_merging.asking.endpoint import Endpoint
from vlm_merging.asking.models import prompt_inputs
from vlm_merging.asking.opening import open_processor
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.lab.trio import lab_folder

LAB = lab_folder()/'vlm'

class Builds(BaseHTTPRequestHandler):
    "A server that builds prompts as its own processor does, and replies with their length"
    def send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        row = dict(id=getattr(self.server, 'name', 'tiny'), object='model', root=self.server.root)
        self.send(200, dict(object='list', data=[{k:v for k, v in row.items() if v}]))
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        wish = asked.get('return_token_ids')
        if wish and self.server.tells in ('number', 'nothing'):
            return self.send(422, dict(detail='return_token_ids: what?'))
        system = [m['content'] for m in asked['messages'] if m['role']=='system']
        content = asked['messages'][-1]['content']
        parts = [content] if isinstance(content, str) else [
            p['text'] if p['type']=='text' else
            Picture(b64decode(p['image_url']['url'].partition(',')[2])) for p in content]
        item = Item('1', ''.join(p if isinstance(p, str) else '' for p in parts) or ' ',
                    images=tuple(p for p in parts if not isinstance(p, str)))
        asker = replace(self.server.asker, system=self.server.before or next(iter(system), None))
        with self.server.lock:
            ids = prompt_inputs(asker, [item], [[p.open() for p in item.images]])['input_ids'][0].tolist()
            self.server.asked.append(asked)
        choice = dict(index=0, finish_reason='stop', message=dict(role='assistant', content=f' {len(ids)}\n'))
        counts = self.server.tells in ('ids', 'number', 'number in silence')
        told = dict(usage=dict(prompt_tokens=len(ids))) if counts else {}
        if wish and self.server.tells=='ids': told['prompt_token_ids'] = ids
        self.send(200, dict(model='tiny', choices=[choice])|told)
    def log_message(self, *_): pass

def begin_serving():
    """Start a server with the processor of a folder: what it tells is 'ids', 'number' or 'nothing', and the
    last two refuse to be asked for ids; 'number in silence' and 'silence' do not, as a proxy that drops what
    it does not know"""
    begun = []
    def start(folder, tells, root=None, **how):
        s = ThreadingHTTPServer(('127.0.0.1', 0), Builds)
        s.asker, s.tells, s.root, s.asked, s.lock = open_processor(folder), tells, root, [], threading.Lock()
        s.before = None                                         # What its owner says before each question
        s.thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
        s.thread.start()
        begun.append(s)
        usual = dict(processor=LAB, patience=.01, tries=2, timeout=30, max_tokens=8)
        return s, Endpoint(f'http://127.0.0.1:{s.server_port}', 'tiny', **usual|how)
    yield start
    for s in begun: s.shutdown(); s.server_close(); s.thread.join()
