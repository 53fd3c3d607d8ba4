"""Rough treatment, by hand: what is hostile comes by the thousand; no hang, no burst of memory, no traceback.

    python tests/bench/rough.py servers -n 2000 --seed 0

servers: a server on this machine answers each question with something hostile: a good reply with bytes
turned, cut, doubled or moved, values of the wrong kind at any place, headers that lie, endless bodies, drips,
a hang-up in the middle. Each question must end as one reply or one failure, told in one line; printed are how
many of which, the seconds, and by how much the memory of the process grew at most.
"""
import argparse, asyncio, json, random, re, resource, sys, threading, time
from collections import Counter


def good(text):
    message = dict(role='assistant', content=text)
    return dict(id='1', object='chat.completion', created=0, model='m',
                choices=[dict(index=0, finish_reason='stop', message=message)], usage=dict(total_tokens=9))

STRANGE = [None, True, -1, 10**400, float('nan'), float('inf'), '', '\ud800', '\0', '\x1b[2J'*99, 'x'*10**5,
           [], {},
           [[]], [None], {'a': {}}, ['a'], {'content': 'x'}, [[[[[]]]]], {'': None}]

def replaced(rng, value):
    "A value with something strange at some place"
    if rng.random()<.25 or not isinstance(value, (dict, list)) or not value: return rng.choice(STRANGE)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        return [replaced(rng, v) if i==j else v for j, v in enumerate(value)]
    key = rng.choice([*value])
    if rng.random()<.2: return {k: v for k, v in value.items() if k!=key}
    return {k: replaced(rng, v) if k==key else v for k, v in value.items()}

def turned(rng, data):
    "Bytes with a few of them turned, cut out, doubled or put in"
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        i = rng.randrange(len(data)+1)
        how = rng.randrange(4)
        if how==0 and data: data[i%len(data)] = rng.randrange(256)
        elif how==1: del data[i:i+rng.randrange(1, 30)]
        elif how==2: data[i:i] = data[i:i+rng.randrange(1, 30)]
        else: data[i:i] = rng.choice([b'{', b'[', b'"', b'\\', b'\r\n', b'\0', b'\xff', b'9'*5000,
                                      b'['*10**5, b'%', b'&#'])
    return bytes(data)

def hostile(rng, text):
    "What is sent, in pieces, and how it ends: 'close', 'drip', 'flood' or 'cut'"
    body = json.dumps(replaced(rng, good(text)) if rng.random()<.6 else good(text)).encode()
    if rng.random()<.4: body = turned(rng, body)
    status = rng.choice([200]*9+[201, 204, 206, 302, 307, 400, 403, 404, 408, 418, 429, 500, 503, 599, 999])
    if status in (302, 307, 403, 404) and rng.random()<.9: status = 200  # They end a run
    headers = {'Content-Type': 'application/json', 'Content-Length': len(body)}
    for _ in range(rng.choice([0, 0, 1, 2])):
        headers |= rng.choice([{'Content-Length': 0}, {'Content-Length': 10**10}, {'Content-Length': 'x'},
                               {'Transfer-Encoding': 'chunked'}, {'Content-Encoding': 'gzip'},
                               {'Location': 'http://a.b/'},
                               {'X': 'y'*rng.choice([9, 10**5, 10**6])},
                               {'Retry-After': '9'*rng.randrange(500)},
                               {'Set-Cookie': f'{rng.random()}=1'}, {'Content-Type': '\x7f'*99},
                               {'Connection': 'keep-alive'}, {'Trailer': 'X'}])
    head = f'HTTP/1.1 {status} No\r\n'+''.join(f'{k}: {v}\r\n' for k, v in headers.items())+'\r\n'
    sent = head.encode('latin-1')+body
    if rng.random()<.1: sent = turned(rng, sent)
    end = rng.choice(['close']*12+['drip', 'flood', 'cut', 'more'])
    return (sent[:rng.randrange(len(sent)+1)] if end=='cut' else sent*2 if end=='more' else sent), end

async def answer(reader, writer, rng):
    try:
        head = await reader.readuntil(b'\r\n\r\n')
        size = re.search(rb'content-length: *(\d+)', head, re.I)
        asked = json.loads(await reader.readexactly(int(size[1]))) if size else None # None: for its models
        sent, end = hostile(rng, asked['messages'][-1]['content'] if asked else 'models')
        writer.write(sent)
        for _ in range(10**6):
            await writer.drain()
            if end not in ('drip', 'flood'): break
            writer.write(b' ' if end=='drip' else b'x'*2**16)
            if end=='drip': await asyncio.sleep(.02)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError): pass
    finally: writer.close()

def begin_server(seed):
    "The address of a server that runs beside this thread"
    rng, loop, ready = random.Random(seed), asyncio.new_event_loop(), threading.Event()
    where = []
    async def begin():
        server = await asyncio.start_server(lambda r, w: answer(r, w, rng), '127.0.0.1', 0)
        where.append('http://127.0.0.1:%d/v1' % server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()
    threading.Thread(target=lambda: loop.run_until_complete(begin()), daemon=True).start()
    ready.wait()
    return where[0]

def servers(n, seed):
    from vlm_merging.asking.endpoint import Endpoint
    from vlm_merging.benchmarks.items import Item
    model = Endpoint(begin_server(seed), 'm', api_key='sk-rough-0123456789', timeout=1., tries=1,
                     concurrency=16)
    before, start, kinds = peak(), time.perf_counter(), Counter()
    waiting = {f'{i}': f'q{i}' for i in range(n)}
    while waiting:                                                  # A stop ends a round, not the rest
        try:
            for reply in model.many([Item(i, q) for i, q in waiting.items()]):
                waiting.pop(reply.id)
                error = reply.error
                assert error is None or error.isprintable() and len(error)<500 and not reply.text, reply
                kinds[re.sub(r"[\d.]+|'[^']*'|\(.*|: .*", '', error.partition('last time: ')[2] or error)
                      if error else 'a reply'] += 1
        except ValueError as e:
            assert len(str(e))<700 and str(e).isprintable(), e
            kinds['the run stops: '+re.sub(r'\S*//\S*|[\d.]+|\'[^\']*\'|\(.*', '', str(e))[:60]] += 1
            if waiting: waiting.pop(next(iter(waiting)))            # As it stopped, nobody knows at which
    assert not [t for t in threading.enumerate() if t.name=='in_own_loop']
    for kind, count in kinds.most_common(): print(f'{count:6} {kind}')
    print(f'{n} questions in {time.perf_counter()-start:.0f} s, memory grew by {peak()-before:.0f} MB')

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('job', choices=['servers'])
    p.add_argument('-n', type=int, default=2000)
    p.add_argument('--seed', type=int, default=0)
    given = p.parse_args()
    dict(servers=servers)[given.job](given.n, given.seed)
    sys.exit(0)
