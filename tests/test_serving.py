"A merge that `transformers serve` holds replies through the endpoint what it replies when opened here"
import json, os, socket, subprocess, sys, time, urllib.request
from dataclasses import replace

import pytest

for needed in ('torch', 'fastapi', 'uvicorn'):
    pytest.importorskip(needed, reason="needs pip install 'vlm_merging[serving]'")
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.asking.endpoint import Endpoint
from vlm_merging.asking.ask import ask
from vlm_merging.asking.replies import replies
from vlm_merging.comparing.compare import asked_otherwise
from vlm_merging.lab.trio import lab_folder, questions
from vlm_merging.merging.merge import merge
from vlm_merging.asking.opening import open_model
from vlm_merging.merging.recipe import Recipe

@pytest.fixture(scope='module')
def merged(tmp_path_factory):
    lab = lab_folder()
    return merge(Recipe(lab/'vlm', lab/'llm', knobs=dict(weight=.5)),
                 out=tmp_path_factory.mktemp('serving')/'merged')

@pytest.fixture(scope='module')
def served(merged, tmp_path_factory):
    "Address of a server that holds the merge, on a free port of this machine"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    log, address = tmp_path_factory.mktemp('log')/'serve.log', f'http://127.0.0.1:{port}'
    env = os.environ|dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', NO_PROXY='127.0.0.1')
    command = [sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve',
               str(merged),
               '--host', '127.0.0.1', '--port', str(port), '--device', 'cpu', '--dtype', 'float32']
    with open(log, 'w') as out: p = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        deadline = time.time()+120
        while True:
            try:
                with urllib.request.urlopen(f'{address}/health', timeout=5): break
            except OSError: time.sleep(.1)
            assert p.poll() is None, f'the server ended:\n{log.read_text()[-3000:]}'
            assert time.time()<deadline, f'the server did not start:\n{log.read_text()[-3000:]}'
        yield address
    finally:
        p.terminate()
        try: p.wait(15)
        except subprocess.TimeoutExpired: p.kill(); p.wait()

@pytest.fixture(scope='module')
def endpoint(served, merged):
    return Endpoint(served, str(merged), concurrency=2, max_tokens=16, weights=merged, patience=.1, tries=3)

@pytest.fixture(scope='module')
def local(merged):
    import torch
    torch.set_num_threads(1)
    return open_model(merged, device='cpu', max_new_tokens=16)

def asked(n):
    return [Item(q.id, q.ask, q.answer, images=(Picture(q.image),), tags=dict(kind=q.kind))
            for q in questions(n, seed=4)]

def test_the_same_replies_from_afar(endpoint, local, tmp_path):
    items = asked(21)
    far, near = ask(endpoint, items, out=tmp_path/'far'), ask(local, items, out=tmp_path/'near')
    assert far['prediction'].to_list()==near['prediction'].to_list()
    assert far['finish'].to_list()==near['finish'].to_list()
    right = sum(a==p.split()[-1] for a, p in far.select('answer', 'prediction').iter_rows() if p.split())
    assert right>=12
    config = json.loads((tmp_path/'far'/'run.json').read_text())
    assert config['about']['weights']==local.weights
    prompt = config['sessions'][0]['how']['prompt']
    assert (prompt['outcome'], prompt['by'])==('same', 'number of tokens')
    told = asked_otherwise(*(replies(tmp_path/o) for o in ('near', 'far')))
    assert [o[:23] for o in told]==['The prompts of far were']  # transformers tells their number only

def test_several_pictures_none_and_a_limit(endpoint, local):
    item = asked(1)[0]
    for other in (replace(item, images=item.images*2), replace(item, images=())):
        assert endpoint(other)==local(other)
    assert next(replace(endpoint, max_tokens=1).many([item])).finish=='length'
    system = replace(local, system='scene')
    assert replace(endpoint, system='scene')(item)==system(item)

def test_other_picture_formats_travel(endpoint, local):
    import io
    item = asked(1)[0]
    for kind in ('JPEG', 'BMP', 'GIF'):
        held = io.BytesIO()
        item.images[0].open().save(held, kind)
        other = replace(item, images=(Picture(held.getvalue()),))
        assert endpoint(other)==local(other)

def test_a_wrong_name_stops_with_the_words_of_the_server(endpoint):
    with pytest.raises(ValueError, match="refuses with status 400.*Server is pinned to"):
        replace(endpoint, model='another')(asked(1)[0])

def test_a_setting_the_server_does_not_know_is_a_failure(endpoint):
    reply = next(replace(endpoint, extra=dict(nonsense=1)).many(asked(1)))
    assert 'The server refuses with status 422' in reply.error and 'nonsense' in reply.error
