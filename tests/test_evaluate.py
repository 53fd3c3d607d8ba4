"A run survives what happens to runs, a failure is no answer, and a model replies the same in any batch"
import json, os, random, signal, subprocess, sys, time, warnings
from dataclasses import replace

import polars as pl
import pytest

from vlm_merging.asking import folder as room
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.asking.ask import ask
from vlm_merging.asking.folder import read_lines
from vlm_merging.asking.replies import REPLY_COLUMNS, replies, run_report, reply_table
from vlm_merging.asking.models import Reply

def items_of(n, **kw): return [Item(f'{i}', f'What is {i}+{i}?', f'{2*i}', **kw) for i in range(n)]

class Canned:
    "An asker that counts"
    def __init__(self, about=None, bad=()):
        self.asked, self.bad = [], set(bad); self.about = about or dict(weights='w')
    def __call__(self, item):
        self.asked.append(item.id)
        if item.id in self.bad: raise TimeoutError(f'nothing for {item.id}')
        return f'It is {item.question}'

def quiet(*a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ask(*a, **kw)

# ---- Kills, torn lines, full disks ----

KILLED = '''
import sys, time
from vlm_merging.benchmarks.items import Item
from vlm_merging.asking.ask import ask
def slow(item):
    with open(sys.argv[2],'a') as f: f.write(item.id+'\\n')
    time.sleep(.01)
    return 'x'*int(sys.argv[3])
ask(slow, [Item(f'{i}', f'What is {i}?', '1') for i in range(60)], out=sys.argv[1], run='k')
'''

@pytest.mark.parametrize('size', [10, 300_000])
def test_a_killed_run_asks_only_what_is_missing(tmp_path, size):
    out, asked = tmp_path/'run', tmp_path/'asked'
    command = [sys.executable, '-c', KILLED, str(out), str(asked), str(size)]
    for enough in (10, 25):
        p = subprocess.Popen(command)
        while not (asked.exists() and len(asked.read_text().split())>=enough):
            assert p.poll() is None                                     # it ends by itself after 60 items
            time.sleep(.002)
        p.send_signal(signal.SIGKILL)
        p.wait()
    before = asked.read_text().split()
    assert len(before)<60 and len(set(before))>=len(before)-2
    subprocess.run(command, check=True)
    after = asked.read_text().split()
    # a kill may lose the reply of the moment
    assert set(after)=={str(i) for i in range(60)} and len(after)<=62
    assert replies(out).height==60 and (replies(out)['prediction'].str.len_chars()==size).all()
    assert len(json.loads((out/'run.json').read_text())['sessions'])==3

def test_a_line_torn_at_any_byte_is_asked_again(tmp_path):
    out, asker = tmp_path/'run', Canned()
    ask(asker, items_of(3), out=out)
    held = (out/'replies.jsonl').read_bytes()
    start = held[:-1].rfind(b'\n')+1
    for at in range(start, len(held), 17):
        (out/'replies.jsonl').write_bytes(held[:at])
        asker.asked.clear()
        assert ask(asker, items_of(3), out=out).height==3
        assert asker.asked==['2'] and not read_lines(out/'replies.jsonl')[1]
    assert (out/'replies.torn').read_bytes().startswith(held[start:start+17])

def test_a_damaged_line_in_the_middle_is_told_and_asked_again(tmp_path):
    out, asker = tmp_path/'run', Canned()
    ask(asker, items_of(5), out=out)
    lines = (out/'replies.jsonl').read_bytes().split(b'\n')
    lines[1], lines[3] = b'\0'*40, b'[1, 2]'
    (out/'replies.jsonl').write_bytes(b'\n'.join(lines))
    assert '2 lines of replies.jsonl cannot be read (2, 4)' in run_report(out)
    asker.asked.clear()
    assert ask(asker, items_of(5), out=out).height==5 and asker.asked==['1', '3']

def test_a_full_disk_costs_one_reply(tmp_path, monkeypatch):
    out, asker, write = tmp_path/'run', Canned(), os.write
    def full(fd, data):
        if len(asker.asked)==3:
            write(fd, bytes(data)[:20])
            raise OSError(28, 'No space left on device')
        return write(fd, data)
    monkeypatch.setattr(os, 'write', full)
    with pytest.raises(OSError, match='No space'): ask(asker, items_of(5), out=out)
    monkeypatch.undo()
    ask(asker, items_of(5), out=out)
    assert asker.asked==['0', '1', '2', '2', '3', '4'] and replies(out).height==5

def test_short_writes_are_finished(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, 'write', lambda fd, data: write(fd, bytes(data)[:7]))
    ask(Canned(), items_of(3), out=tmp_path/'run')
    assert read_lines(tmp_path/'run'/'replies.jsonl')[1]==[] and replies(tmp_path/'run').height==3

def test_a_reply_is_in_the_file_at_once_and_flushed_in_batches(tmp_path, monkeypatch):
    seen, flushed, fsync = [], [], os.fsync
    def asker(item):
        path = tmp_path/'run'/'replies.jsonl'
        seen.append(len(read_lines(path)[0]))
        return 'x'
    def counted(fd):
        if os.readlink(f'/proc/self/fd/{fd}').endswith('replies.jsonl'): flushed.append(fd)
        fsync(fd)
    monkeypatch.setattr(os, 'fsync', counted)
    ask(asker, items_of(100), out=tmp_path/'run', run='r')
    assert seen==list(range(100))
    assert 100//room.SYNC_LINES<=len(flushed)<=100//room.SYNC_LINES+3

def test_only_one_process_writes(tmp_path):
    def asker(item):
        with pytest.raises(ValueError, match='Another process is writing'):
            ask(Canned(), items_of(2), out=tmp_path/'run')
        return 'x'
    assert ask(asker, items_of(2), out=tmp_path/'run', run='r').height==2

def test_a_stopped_run_closes_its_asker(tmp_path):
    closed = []
    class Many(Canned):
        def many(self, items):
            try:
                for i in items: yield Reply(i.id, 'x')
                raise KeyboardInterrupt
            finally: closed.append(True)
    with pytest.raises(KeyboardInterrupt): ask(Many(), items_of(3), out=tmp_path/'run')
    assert closed and replies(tmp_path/'run').height==3

# ---- Failures ----

def test_failures_are_told_kept_apart_and_asked_again(tmp_path):
    out, asker = tmp_path/'run', Canned(bad={'2', '5'})
    with pytest.warns(UserWarning, match=r'(?s)4 of 6 items have a reply.*2 failed; run the same again.*1 x '
                                         r'TimeoutError: nothing for 2 \(2\)'):
        table = ask(asker, items_of(6), out=out)
    assert table['index'].to_list()==['0', '1', '3', '4'] and replies(out).height==4
    noted = dict(index='5', row=6, error='TimeoutError: nothing for 5')
    assert read_lines(out/'failures.jsonl')[0][1].items()>=noted.items()
    asker.bad.clear(); asker.asked.clear()
    assert ask(asker, items_of(6), out=out).height==6 and asker.asked==['2', '5']
    assert run_report(out)=='6 of 6 items have a reply.' and (out/'failures.jsonl').read_text()==''

def test_failures_of_other_items_stay_noted(tmp_path):
    quiet(Canned(bad={'3'}), items_of(4), out=tmp_path/'run')
    quiet(Canned(bad={'1'}), [replace(i, benchmark='b') for i in items_of(4)], out=tmp_path/'run')
    assert [r['index'] for r in read_lines(tmp_path/'run'/'failures.jsonl')[0]]==['3', '1']

def test_a_hopeless_run_stops(tmp_path):
    asker = Canned(bad=map(str, range(100)))
    with pytest.raises(ValueError, match='The first 20 questions failed, 1 of them with: TimeoutError: '
                                         'nothing for 0. Mend that'):
        ask(asker, items_of(100), out=tmp_path/'run')
    assert len(asker.asked)==20 and not (tmp_path/'run'/'replies.jsonl').read_text()
    asker.bad.discard('0')
    # with one reply it is not hopeless
    for _ in range(2): assert quiet(asker, items_of(100), out=tmp_path/'run').height==1

def test_an_empty_reply_is_a_reply_and_is_counted(tmp_path):
    out, count = tmp_path/'run', []
    def asker(item): count.append(1); return ' ' if item.id=='1' else 'x'
    ask(asker, items_of(3), out=out, run='r')
    assert '1 of the replies is empty (1).' in run_report(out)
    ask(asker, items_of(3), out=out, run='r')
    assert len(count)==3

def test_what_is_no_text_is_a_failure(tmp_path):
    assert quiet(lambda i: None if i.id=='1' else 'x', items_of(3), out=tmp_path/'run', run='r').height==2
    assert 'returned NoneType where text is needed' in run_report(tmp_path/'run')

def test_a_picture_that_cannot_be_read_fails_alone(tmp_path):
    items = items_of(3)
    items[1] = replace(items[1], images=(Picture(tmp_path/'gone.png', 'row 2'),))
    asker = Canned()
    assert quiet(asker, items, out=tmp_path/'run').height==2 and asker.asked==['0', '2']
    failed, = read_lines(tmp_path/'run'/'failures.jsonl')[0]
    assert failed['row']==2 and 'gone.png' in failed['error']

def test_replies_in_any_order_and_askers_that_misbehave(tmp_path):
    class Many(Canned):
        def __init__(self, made): super().__init__(); self.made = made
        def many(self, items): return iter(self.made)
    made = [Reply('2', 'c', 1., 'stop'), Reply('0', 'a', 2., 'length'), Reply('1', '', error='It broke.')]
    table = quiet(Many(made), items_of(4), out=tmp_path/'a')
    assert table.select('index', 'prediction', 'finish', 'seconds').rows()==[('0', 'a', 'length', 2.),
        ('2', 'c', 'stop', 1.)]
    assert '1 x It broke. (1)' in run_report(tmp_path/'a')
    assert '1 x The asker gave no reply. (3)' in run_report(tmp_path/'a')
    assert '1 of the replies is cut at the limit of new tokens (0)' in run_report(tmp_path/'a')
    for twice in ([Reply('0', 'a'), Reply('0', 'b')], [Reply('9', 'x')]):
        with pytest.raises(LookupError, match='not asked, or was answered before'):
            ask(Many(twice), items_of(4), out=tmp_path/f'b{len(twice)}')

# ---- Configurations and keys ----

def test_two_merges_never_share_replies(tmp_path):
    ask(Canned(dict(weights='a', max_new_tokens=64)), items_of(2), out=tmp_path/'run')
    for about, told in ((dict(weights='b', max_new_tokens=64), 'weights is "a" there and "b" here'),
                       (dict(weights='a', max_new_tokens=32), 'max_new_tokens is 64 there and 32 here'),
                       (dict(weights='a'), 'max_new_tokens is 64 there and null here')):
        with pytest.raises(ValueError, match='other settings: '+told):
            ask(Canned(about), items_of(2), out=tmp_path/'run')
    with pytest.raises(ValueError, match='run is "run" there and "x" here'):
        ask(Canned(dict(weights='a', max_new_tokens=64)), items_of(2), out=tmp_path/'run', run='x')
    again = Canned(dict(max_new_tokens=64, weights='a'))
    ask(again, items_of(2), out=tmp_path/'run')
    assert not again.asked

def test_what_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'cat.jpg').write_bytes(b'x')
    with pytest.raises(ValueError, match='is no folder of a run, but holds cat.jpg'):
        ask(Canned(), items_of(1), out=tmp_path/'photos')
    with pytest.raises(ValueError, match='has no run.json'): replies(tmp_path/'photos')
    assert [p.name for p in (tmp_path/'photos').iterdir() if p.name!='.lock']==['cat.jpg']

def test_a_changed_prompt_or_picture_is_asked_again_a_changed_answer_is_not(tmp_path):
    asker, out = Canned(), tmp_path/'run'
    items = [replace(i, images=(Picture(b'one'),)) for i in items_of(3)]
    ask(asker, items, out=out)
    asker.asked.clear()
    items[0] = replace(items[0], question='What is nothing?')
    items[1] = replace(items[1], images=(Picture(b'two'),))
    items[2] = replace(items[2], answer='five', tags=dict(level='new'))
    table = ask(asker, items, out=out)
    assert asker.asked==['0', '1'] and table['answer'].to_list()==['0', '2', 'five']
    assert replies(out).select(REPLY_COLUMNS).equals(table.select(REPLY_COLUMNS))
    assert replies(out)['level'].to_list()==[None, None, 'new']
    size = (out/'replies.jsonl').stat().st_size
    ask(asker, items, out=out)
    assert (out/'replies.jsonl').stat().st_size==size       # nothing new, nothing written

def test_benchmarks_in_one_run_may_share_ids(tmp_path):
    class Many(Canned):
        def many(self, items):
            for i in reversed(items): yield Reply(i.id, f'{i.benchmark} {i.split} {i.id}')
    items = [Item('1', 'q', benchmark=b, split=s) for b, s in (('A', 'x'), ('A', 'y'), ('B', 'x'))]
    table = ask(Many(), items, out=tmp_path/'run')
    assert table['prediction'].to_list()==['A x 1', 'A y 1', 'B x 1']

def test_items_and_askers_are_checked_first(tmp_path):
    with pytest.raises(ValueError, match="'1' stands in rows 2, 4"):
        ask(Canned(), [*items_of(3), Item('1', '?')], out=tmp_path/'run')
    with pytest.raises(ValueError, match='no items'): ask(Canned(), [], out=tmp_path/'run')
    with pytest.raises(ValueError, match='Name the run'): ask(lambda i: 'x', items_of(1), out=tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_other_packages_on_resuming_are_told(tmp_path, monkeypatch):
    ask(Canned(), items_of(1), out=tmp_path/'run')
    monkeypatch.setattr(room, 'versions', lambda: dict(torch='9.9'))
    with pytest.warns(UserWarning, match='begun with other packages: .*"9.9" here'):
        ask(Canned(), items_of(1), out=tmp_path/'run')

def test_parts_and_replies_do_not_share_a_folder(tmp_path):
    from vlm_merging.asking.jobs import carry_out
    def part(): return pl.DataFrame(dict(i=[1]))
    ask(Canned(), items_of(1), out=tmp_path/'run')
    with pytest.raises(ValueError, match='other settings'):
        carry_out(part, dict(a=()), tmp_path/'run', dict(what='parts'))
    carry_out(part, dict(a=()), tmp_path/'parts', dict(what='parts'))
    with pytest.raises(ValueError, match='other settings'): ask(Canned(), items_of(1), out=tmp_path/'parts')

def test_questions_and_models_may_be_named(tmp_path):
    (tmp_path/'mine.csv').write_text('question,answer\nHow many?,7\n')
    assert ask(Canned(), tmp_path/'mine.csv', out=tmp_path/'run')['benchmark'].to_list()==['mine']
    with pytest.raises(ValueError, match='is open already'):
        ask(Canned(), items_of(1), out=tmp_path/'run', max_new_tokens=8)
    with pytest.raises(ValueError, match='int cannot be asked'): ask(7, items_of(1), out=tmp_path/'run')
    with pytest.raises(LookupError, match='No benchmark is named'):
        ask(Canned(), 'MathVisat', out=tmp_path/'other')
    assert not (tmp_path/'other').exists()

# ---- The table ----

def test_types_do_not_depend_on_the_rows():
    schema = reply_table([]).schema
    for rows in ([dict(index='1')], [dict(index=1, precision='2', seconds=3, answer=True)],
                 [dict(precision=1.0), dict(precision=None, tag=['a'])]):
        made = reply_table(rows)
        assert {c:made.schema[c] for c in REPLY_COLUMNS}==dict(schema)
    assert schema['precision']==pl.Int64 and schema['seconds']==pl.Float64 and schema['group']==pl.String

def test_hostile_replies_are_kept_as_they_are(tmp_path):
    texts = ['a\0b', '\u2028line\u2029', '\ud800 lone', 'x'*2_000_000, '{"index": "0"}\n{', '\r\n']
    ask(lambda i: texts[int(i.id)], items_of(len(texts)), out=tmp_path/'run', run='r')
    held = replies(tmp_path/'run')['prediction'].to_list()
    assert held==[t.encode('utf-8', 'replace').decode() for t in texts]

def test_a_reader_beside_a_writer_sees_whole_lines(tmp_path):
    (tmp_path/'run').mkdir()
    ask(Canned(), items_of(2), out=tmp_path/'run')
    with open(tmp_path/'run'/'replies.jsonl', 'ab') as f: f.write(b'{"index": "9", "predi')
    assert replies(tmp_path/'run').height==2

# ---- Models ----

torch = pytest.importorskip('torch')
from vlm_merging.checkpoints.headers import FLOATS, Checkpoint
from vlm_merging.lab.trio import lab_folder, questions
from vlm_merging.asking.fingerprints import WHOLE, weights_hash
from vlm_merging.asking.opening import open_model
from vlm_merging.checkpoints.model_files import take_stamps

@pytest.fixture(scope='module')
def vlm(): return open_model(lab_folder()/'vlm', device='cpu', max_new_tokens=16)

@pytest.fixture(scope='module')
def asked(): return [Item(q.id, q.ask, q.answer, images=(Picture(q.image),)) for q in questions(21, seed=4)]

@pytest.fixture(scope='module')
def alone(vlm, asked): return {i.id:vlm(i) for i in asked}

def texts(made): return {r.id:r.error or r.text for r in made}

@pytest.mark.parametrize('size', [2, 5, 21])
def test_a_batch_replies_as_one_at_a_time(vlm, asked, alone, size):
    assert texts(replace(vlm, batch_size=size).many(asked))==alone

def test_a_text_and_a_file_are_a_question(vlm, asked, alone, tmp_path):
    (tmp_path/'a.png').write_bytes(asked[0].images[0].bytes())
    for picture in (tmp_path/'a.png', str(tmp_path/'a.png'), asked[0].images[0], asked[0].images[0].open()):
        assert vlm(asked[0].question, picture)==alone[asked[0].id]
    with pytest.raises(ValueError, match='no.png: cannot read'): vlm('?', tmp_path/'no.png')

def test_a_model_shows_itself_in_a_line(vlm):
    assert repr(replace(vlm, name='v', temperature=.5))==(
        "LocalModel('v', sees pictures, float32 on cpu, temperature 0.5, at most 16 new tokens)")

def test_a_model_is_opened_by_name_and_asked(asked, alone, tmp_path):
    table = ask('lab/vlm', asked[:3], out=tmp_path/'run', device='cpu', max_new_tokens=16)
    assert table['prediction'].to_list()==[alone[i.id] for i in asked[:3]]
    assert json.loads((tmp_path/'run'/'run.json').read_text())['sessions'][0]['how']['model']=='lab/vlm'

def test_several_pictures_none_and_mixed_sizes_in_one_batch(vlm, asked):
    wide = asked[0].images[0].open().resize((96, 48)).convert('L')
    mixed = [*asked[:3], Item('two', 'number at top-left ?', images=asked[0].images*2),
             Item('none', 'number at top-left ?'),
             Item('wide', 'color at top-left ?', images=(Picture(wide),)), Item('nothing', '')]
    one = {i.id:vlm(i) for i in mixed}
    assert texts(replace(vlm, batch_size=7).many(mixed))==one

def test_the_embedded_vlm_through_the_loop(vlm, asked, alone, tmp_path):
    broken = Item('broken', 'number at top-left ?',
                  images=(Picture(b'\x89PNG\r\n\x1a\n and no more', 'row 22'),))
    half = replace(asked[0], id='half', images=(Picture(asked[0].images[0].bytes()[:900], 'row 23'),))
    table = quiet(vlm, [*asked, broken, half], out=tmp_path/'run')
    assert dict(table.select('index', 'prediction').rows())==alone and set(table['finish'])=={'stop'}
    assert sorted(r['index'] for r in read_lines(tmp_path/'run'/'failures.jsonl')[0])==['broken', 'half']
    held = json.loads((tmp_path/'run'/'run.json').read_text())
    assert held['about']==vlm.about and held['sessions'][0]['how']['batch_size']==8
    assert 'torch' in held['sessions'][0]['versions']

def test_many_broken_pictures_do_not_stop_a_run(vlm, asked, tmp_path):
    broken = [Item(f'b{i}', 'number at top-left ?', images=(Picture(b'GIF89a'),)) for i in range(25)]
    assert quiet(vlm, [*broken, *asked[:3]], out=tmp_path/'run').height==3

class Room:
    "A model with room for so many tokens in a batch, or with a question it cannot stand"
    def __init__(self, model, tokens=10**9, poison=None):
        self.model, self.tokens, self.poison, self.sizes = model, tokens, poison, []
    def __getattr__(self, name): return getattr(self.model, name)
    def generate(self, **inputs):
        ids = inputs['input_ids']
        self.sizes.append(len(ids))
        if ids.numel()>self.tokens:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9.00 GiB.')
        if self.poison is not None and (ids==self.poison).any():
            raise IndexError('index out of range in self')
        return self.model.generate(**inputs)

def test_out_of_memory_halves_and_never_loses_an_item(vlm, asked, alone):
    tokens = vlm.processor(text=['question number at top-left ? answer <image>'],
                           images=[[asked[0].images[0].open()]], return_tensors='pt')['input_ids'].numel()
    tight = replace(vlm, model=Room(vlm.model, 5*tokens), batch_size=16)
    assert texts(tight.many(asked))==alone
    assert tight.model.sizes[:3]==[16, 8, 4] and max(tight.model.sizes[2:])==4

def test_what_does_not_fit_alone_fails_and_later_batches_are_full_again(vlm):
    short = [Item(f's{i}', 'number at top-left ?') for i in range(16)]
    long = Item('long', 'number at top-left ? '*40)
    tight = replace(vlm, model=Room(vlm.model, 150), max_new_tokens=1)
    made = texts(tight.many([*short, long]))
    assert made['long']=='It does not fit into memory, not even alone.' and len(made)==17
    assert len({made[i.id] for i in short})==1 and max(tight.model.sizes[-3:])==8

def test_a_question_that_breaks_the_model_fails_alone(vlm, asked):
    poison = vlm.tokenizer.convert_tokens_to_ids('bottom-right')
    sick = replace(vlm, model=Room(vlm.model, poison=poison), batch_size=21)
    made = list(sick.many(asked))
    failed = {r.id for r in made if r.error}
    assert failed=={i.id for i in asked if 'bottom-right' in i.question} and 0<len(failed)<21
    assert len(made)==21
    assert next(r.error for r in made if r.error)=='IndexError: index out of range in self'

def test_sampling_is_seeded_and_told(vlm, asked):
    warm = replace(vlm, temperature=3., seed=1)
    assert texts(warm.many(asked[:8]))==texts(warm.many(asked[:8]))!=texts(replace(warm,
        seed=2).many(asked[:8]))
    assert warm.about['temperature']==3. and 'temperature' not in vlm.about
    assert warm.about!=replace(warm, seed=2).about

def test_a_text_model_answers_text_and_sees_nothing(asked):
    llm = open_model(lab_folder()/'llm', device='cpu', max_new_tokens=16)
    q = next(q for q in questions(7, seed=4) if q.kind=='reasoning')
    told = Item('t', q.ask)
    assert replace(llm, system=q.scene)(told).split()[-1]==q.answer
    assert 'is a text model' in next(llm.many(asked[:1])).error

@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_dtype_is_what_was_asked_for(asked, alone, dtype):
    made = open_model(lab_folder()/'vlm', dtype=dtype, device='cpu', max_new_tokens=16)
    assert made.about['dtype']==dtype and made.model.dtype==getattr(torch, dtype)
    same = sum(texts(made.many(asked))[k]==v for k, v in alone.items())
    assert same>=18

def test_greedy_replies_ignore_sampling_settings_of_the_checkpoint(vlm, asked, alone):
    from copy import deepcopy
    hot = deepcopy(vlm.model)
    hot.generation_config.update(do_sample=True, temperature=5., top_k=50)
    assert texts(replace(vlm, model=hot).many(asked))==alone

def copied(tmp_path, name='vlm'):
    import shutil
    return shutil.copytree(lab_folder()/'vlm', tmp_path/name)

def test_what_cannot_be_asked_is_a_sentence(tmp_path):
    from safetensors.torch import load_file, save_file
    bare = copied(tmp_path, 'bare')
    (bare/'chat_template.jinja').unlink()
    with pytest.raises(ValueError, match='has no chat template'): open_model(bare, device='cpu')
    lost = copied(tmp_path, 'lost')
    state = load_file(lost/'model.safetensors')
    gone = next(n for n in state if 'layers.1.mlp.down_proj' in n)
    save_file({k:v for k, v in state.items() if k!=gone}, lost/'model.safetensors',
              metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='lacks 1 tensors of its model'): open_model(lost, device='cpu')
    blind = copied(tmp_path, 'blind')
    for name in ('preprocessor_config.json', 'processor_config.json'): (blind/name).unlink()
    with pytest.raises(ValueError, match='preprocessor_config.json|cannot be opened'):
        open_model(blind, device='cpu')
    own = copied(tmp_path, 'own')
    config = json.loads((own/'config.json').read_text())
    (own/'config.json').write_text(json.dumps(config|
                                              dict(model_type='mystery',
                                                   auto_map=dict(AutoConfig='mystery.Config'))))
    with pytest.raises(ValueError, match='trust_remote_code=True'): open_model(own, device='cpu')

def test_weights_have_one_hash_wherever_they_lie_and_two_merges_have_two(tmp_path):
    def of(folder): return weights_hash(Checkpoint.open(folder))
    here = of(lab_folder()/'vlm')
    there = copied(tmp_path)
    assert of(there)==here
    (there/'README.md').write_text('another card')
    assert of(there)==here
    (there/'recipe.json').write_text(json.dumps(dict(recipe=dict(knobs=dict(weight=.5)),
                                                     versions=dict(torch='1'))))
    half = of(there)
    (there/'recipe.json').write_text(json.dumps(dict(recipe=dict(knobs=dict(weight=.5)),
                                                     versions=dict(torch='2'))))
    assert of(there)==half!=here
    (there/'recipe.json').write_text(json.dumps(dict(recipe=dict(knobs=dict(weight=.6)))))
    assert of(there) not in (half, here)
    (there/'recipe.json').unlink()
    (there/'chat_template.jinja').write_text('{{ messages }}')
    assert of(there)!=here

def moved(entry, held, at=None):
    "Bytes of a tensor with .5 added to all its numbers, or to the one at `at`"
    x = torch.frombuffer(bytearray(held), dtype=getattr(torch, FLOATS[entry.dtype]))
    x[slice(None) if at is None else at] += .5
    return x.view(torch.uint8).numpy().tobytes()

@pytest.mark.parametrize('model', ['lab', 'qwen2_vl', 'qwen2_vl bin'])
def test_no_tensor_changes_without_another_hash(tmp_path, model):
    from vlm_merging.lab.tiny import make_vlm
    kind, *container = model.split()
    folder = copied(tmp_path) if kind=='lab' else make_vlm(kind, tmp_path/'vlm', shards=2,
                                                           **dict(zip(['container'], container)))
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.tensors)>20
    seen, rng = {weights_hash(checkpoint)}, random.Random(0)
    for name, e in checkpoint.tensors.items():
        places = [None, rng.randrange(e.numel)] if e.nbytes<=WHOLE else [None]
        with open(e.file, 'r+b') as f:
            f.seek(e.start)
            held = f.read(e.nbytes)
            for at in places:
                f.seek(e.start); f.write(moved(e, held, at)); f.flush()
                made = weights_hash(replace(checkpoint, stamps=take_stamps(folder)))
                assert made not in seen, f'{name} {at}'
                seen.add(made)
            f.seek(e.start); f.write(held)
    assert weights_hash(replace(checkpoint, stamps=take_stamps(folder))) in seen

def test_what_a_hash_of_samples_cannot_see(tmp_path):
    from safetensors.torch import save_file
    def folder(name, x, **more):
        (tmp_path/name).mkdir()
        (tmp_path/name/'config.json').write_text('{}')
        save_file(dict(w=x)|more, tmp_path/name/'model.safetensors')
        return Checkpoint.open(tmp_path/name)
    x, one, sparse, row = (torch.zeros(1_000_000) for _ in range(4))
    one[3001] = 1.                                              # Between two samples
    # One number in a hundred
    sparse[torch.randperm(1_000_000, generator=torch.Generator().manual_seed(0))[:10_000]] = 1.
    row[:1000] = 1.
    plain, hid, *seen = (folder(n, o) for n, o in dict(plain=x, one=one, sparse=sparse, row=row).items())
    assert weights_hash(hid)==weights_hash(plain)
    assert weights_hash(hid, full=True)!=weights_hash(plain, full=True)
    assert len({weights_hash(o) for o in (plain, *seen)})==3
    shaped, named = folder('shaped', x.view(1000, 1000)), folder('named', x[:999_999], v=x[:1].clone())
    assert len({weights_hash(o) for o in (plain, shaped, named)})==3

def test_weights_in_one_file_or_in_many_have_one_hash(tmp_path):
    from vlm_merging.lab.tiny import make_vlm
    one, two = (Checkpoint.open(make_vlm('qwen2_vl', tmp_path/f'{n}', shards=n)) for n in (1, 2))
    assert len(two.files)==2 and weights_hash(one)==weights_hash(two)
    assert weights_hash(one, full=True)==weights_hash(two, full=True)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device on this machine')
def test_a_gpu_replies_too_and_lives_through_real_want_of_memory(asked, alone):
    gpu = open_model(lab_folder()/'vlm', device='cuda', max_new_tokens=16, batch_size=21)
    assert gpu.about['dtype'] in ('bfloat16', 'float16')
    assert sum(texts(gpu.many(asked))[k]==v for k, v in alone.items())>=18
    free = torch.cuda.mem_get_info()[0]
    filler = torch.empty(max(1, free-(100<<20)), dtype=torch.uint8, device='cuda')
    long = [Item(f'{i}', 'number at top-left ? '*400, images=asked[0].images*50) for i in range(64)]
    made = list(replace(gpu, batch_size=64, max_new_tokens=2).many(long))
    assert len(made)==64
    del filler

# ---- Result tables from elsewhere ----

def sheet(path, rows):
    xlsxwriter = pytest.importorskip('xlsxwriter')
    with xlsxwriter.Workbook(path, dict(strings_to_numbers=False)) as book:
        page = book.add_worksheet()
        for j, name in enumerate(rows[0]): page.write(0, j, name)
        for i, row in enumerate(rows, 1):
            for j, v in enumerate(row.values()):
                page.write_string(i, j, v) if isinstance(v, str) else page.write(i, j, v)
    return path

MATHVISTA = [dict(index=1, question='Hint: ...\r\nQuestion: How much?', question_type='multi_choice',
                  answer='4 cm', answer_option='B', choices="['N/A', '4 cm']",
                  precision=None, unit='cm', task='geometry', split='testmini', prediction='B', hit=1),
             dict(index=2, question='How many?', question_type='free_form', answer='15017', answer_option='',
                  choices='[]', precision=1.0, unit=None,
                  task='counting', split='testmini', prediction='None', hit=0),
             dict(index=3, question='How many?', question_type='free_form', answer='null', answer_option='',
                  choices=None, precision=None, unit=None,
                  task='counting', split='testmini', prediction='Failed to obtain answer via API.', hit=0),
             dict(index=4, question='How many?', question_type='free-form', answer='1.50', answer_option='',
                  choices='[]', precision=2.0, unit=None,
                  task='counting', split='testmini', prediction='N/A', hit=0),
             dict(index=5, question='How many?', question_type='free_form', answer='True', answer_option='',
                  choices='[]', precision=None, unit=None,
                  task='counting', split='testmini', prediction='', hit=0)]

def written(tmp_path, suffix, rows=MATHVISTA):
    path = tmp_path/f'llava_v1.5_MathVista_MINI.{suffix}'
    if suffix=='xlsx': return sheet(path, rows)
    if suffix=='json': path.write_text(json.dumps(rows))
    if suffix=='columns.json':
        path.write_text(json.dumps({k:{str(i):r[k] for i, r in enumerate(rows)} for k in rows[0]}))
    if suffix=='jsonl': path.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    frame = pl.DataFrame(rows, infer_schema_length=None)
    if suffix=='parquet': frame.write_parquet(path)
    if suffix in ('csv', 'tsv'): frame.write_csv(path, separator=',\t'[suffix=='tsv'], quote_style='always')
    return path

@pytest.mark.parametrize('suffix', ['xlsx', 'tsv', 'csv', 'json', 'columns.json', 'jsonl', 'parquet'])
def test_result_tables_of_every_format_are_the_same_replies(tmp_path, suffix):
    from vlm_merging.asking.results import import_replies
    path = written(tmp_path, suffix)
    with pytest.warns(UserWarning, match=r'1 of 5 rows hold a failed request instead of a reply \(rows 3\)'):
        table = import_replies(path, run='llava', benchmark='MathVista_MINI')
    silent = table.filter(pl.col('prediction').is_null()).to_dicts()
    assert [(r['index'], r['error'].partition(': ')[2]) for r in silent]==[
        ('3', 'hold a failed request instead of a reply')]
    table = table.filter(pl.col('prediction').is_not_null())
    assert table['index'].to_list()==['1', '2', '4', '5']
    assert table['prediction'].to_list()==['B', 'None', 'N/A', '']
    assert table['choices'].to_list()==['["N/A", "4 cm"]', None, None, None]
    assert table['precision'].to_list()==[None, 1, 2, None]
    assert table['answer'].to_list()==['4 cm', '15017', '1.50', 'True']
    assert table['question_type'][2]=='free_form'
    assert set(table['split'])=={'testmini'} and set(table['run'])=={'llava'}
    assert table['judge_hit'].to_list()==['1', '0', '0', '0']
    assert '_x000D_' not in table['question'][0]
    assert dict(table.schema)|dict(reply_table([]).schema)==dict(table.schema)

def test_an_import_is_scored_like_any_run(tmp_path):
    from vlm_merging.asking.results import import_replies
    from vlm_merging.scoring.score import score
    table = quiet_import(import_replies, written(tmp_path, 'xlsx'), run='llava', benchmark='MathVista')
    scores = score(table)
    assert scores['correct'].to_list()==[True, False, None, False, False]
    assert scores['outcome'].to_list()[2:]==['no reply', 'no answer', 'empty']

def quiet_import(f, *a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*a, **kw)

def test_options_in_columns_and_a_reply_cut_by_the_spreadsheet(tmp_path):
    from vlm_merging.asking.results import import_replies
    rows = [dict(index=0, question='Which?', A='one', B='nan', C='3', D=None, answer='B', category='x',
                 l2_category='y', prediction='B'*32_767)]
    table = import_replies(sheet(tmp_path/'m.xlsx', rows), run='m', benchmark='MMStar')
    assert json.loads(table['choices'][0])==['one', 'nan', '3'] and table['finish'][0]=='length'
    assert table['l2_category'][0]=='y'
    assert not {'A', 'B', 'C', 'D'}&set(table.columns)

def test_numbers_of_a_spreadsheet_stay_as_people_read_them(tmp_path):
    from vlm_merging.asking.results import read_results
    row, = read_results(sheet(tmp_path/'n.xlsx',
                              [dict(index=7, a=1.5, b=100000, c=.001, d='007', e='1e5', f='12/4',
                                    prediction='4.0')]))
    assert row==dict(index='7', a='1.5', b='100000', c='0.001', d='007', e='1e5', f='12/4', prediction='4.0')

def test_items_give_the_question_side(tmp_path):
    from vlm_merging.asking.results import import_replies
    items = [Item('1', 'How much?', '5 cm', group='g', benchmark='MathVista', split='mini'),
             Item('2', 'How many?', '7', benchmark='MathVista', split='mini')]
    with pytest.warns(UserWarning) as told:
        table = import_replies(written(tmp_path, 'json'), run='r', items=items)
    assert [str(w.message).partition('rows ')[2][:17] for w in told]==['belong to no item']
    assert table.select('index', 'split', 'group', 'answer',
                        'prediction').rows()==[('1', 'mini', 'g', '5 cm', 'B'),
                                               ('2', 'mini', None, '7', 'None')]

def test_bad_result_tables_are_sentences(tmp_path):
    from vlm_merging.asking.results import import_replies
    def refused(match, name, text):
        (tmp_path/name).write_text(text)
        with pytest.raises(ValueError, match=match): import_replies(tmp_path/name, run='r', benchmark='b')
    refused('Pickles are not read', 'x.pkl', '')
    refused('needs the columns index and prediction; it has index, response', 'x.json',
            '[{"index": 1, "response": "x"}]')
    refused('it has no rows', 'y.json', '[]')
    refused('cannot be read', 'z.json', '[{')
    refused('cannot be read', 'z.xlsx', 'no spreadsheet')
    refused('cannot be read', 'z.parquet', 'no parquet')
    refused('index 1 stands in rows 1, 3', 'd.json',
            json.dumps([dict(index=i, prediction='x') for i in (1, 2, 1)]))
    with pytest.raises(ValueError, match='is not there'): import_replies(tmp_path/'gone.tsv', run='r')
