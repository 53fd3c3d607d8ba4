"A server that builds another prompt than the processor is found out before anything is asked"
import io, json, re, shutil, time, warnings
from dataclasses import replace

import pytest

from prompt_server import LAB, Builds
from vlm_merging.asking.ask import ask
from vlm_merging.asking.connection import server_words
from vlm_merging.comparing.compare import compare
from vlm_merging.merging.merge import merge
from vlm_merging.asking.replies import prompt_record
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.lab.tiny import make_vlm
from vlm_merging.lab.trio import lab_folder, questions

# Pictures behind the question, as vLLM built it out of a template that it took for one of plain texts
BEHIND = ("<bos>{% for m in messages %}{{ {'system':'', 'user':' question', 'assistant':' answer'}[m.role] }}"
          "{% set parts = [{'type':'text','text':m.content}] if m.content is string else m.content %}"
          "{% for p in parts if p.type=='text' %} {{ p.text }}{% endfor %}"
          "{% for p in parts if p.type=='image' %} <image>{% endfor %}{% endfor %}"
          "{{ ' answer' if add_generation_prompt else '' }}")

def every_kind():
    "Questions with a picture, without, with two, with pictures in their places, with options"
    drawn = questions(9, seed=5)
    items = [Item(q.id, q.ask, q.answer, images=(Picture(q.image),)) for q in drawn]
    both = items[0].images+items[1].images
    return [*items, replace(items[2], id='none', images=()), replace(items[3], id='two', images=both),
            replace(items[4], id='options', choices=('red', 'blue'), answer='red')]

def copied(tmp_path, template=None):
    folder = tmp_path/'served'
    shutil.copytree(LAB, folder)
    if template: (folder/'chat_template.jinja').write_text(template)
    return folder

def record_of(out): return json.loads((out/'run.json').read_text())['sessions'][-1]['how']['prompt']

@pytest.mark.parametrize('tells,by', [('ids', 'token ids'), ('number', 'number of tokens'),
                                      ('number in silence', 'number of tokens')])
@pytest.mark.parametrize('system', [None, 'scene'])
def test_the_right_server_passes_and_the_run_says_how_it_was_looked_at(serving, tmp_path, tells, by, system):
    server, far = serving(LAB, tells, system=system)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        table = ask(far, every_kind(), out=tmp_path/'run')
    record = record_of(tmp_path/'run')
    assert table.height==12 and (record['outcome'], record['by'])==('same', by)
    kinds = ' '.join(record['asked'])
    assert all(k in kinds for k in ('one picture', 'several pictures', 'no picture', 'one picture, options'))
    assert record['against']==str(LAB) and prompt_record(tmp_path/'run')==record
    asked = len(server.asked)
    ask(far, every_kind(), out=tmp_path/'run')                  # Nothing is missing, so nobody is asked
    assert len(server.asked)==asked and prompt_record(tmp_path/'run')['outcome']=='same'

@pytest.mark.parametrize('tells', ['nothing', 'silence'])
def test_a_server_that_tells_nothing_is_said_to_be_unchecked(serving, tmp_path, tells):
    _, far = serving(LAB, tells)
    with pytest.warns(UserWarning, match='was not checked: the server tells nothing of its prompts'):
        ask(far, every_kind(), out=tmp_path/'run')
    assert record_of(tmp_path/'run')['outcome']=='not checked'
    with pytest.warns(UserWarning, match='no processor is named.*processor'):
        ask(replace(far, processor=None), every_kind(), out=tmp_path/'run2')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ask(replace(far, processor=None, trust_prompt=True), every_kind(), out=tmp_path/'run3')
    assert record_of(tmp_path/'run3')==dict(outcome='not checked', why='no processor is named', trusted=True)

def test_a_wrong_template_is_caught_with_both_prompts_side_by_side(serving, tmp_path):
    server, far = serving(copied(tmp_path, BEHIND), 'ids')
    with pytest.raises(ValueError) as e: ask(far, every_kind(), out=tmp_path/'run')
    told = str(e.value)
    assert '"<bos> <image> x 16 question number at' in told and '? <image> x 16 answer"' in told
    assert '--chat-template-content-format openai' in told and 'trust_prompt=True' in told
    assert all(b['max_tokens']==1 for b in server.asked) and not (tmp_path/'run').exists()
    table = ask(replace(far, trust_prompt=True), every_kind(), out=tmp_path/'run')
    record = record_of(tmp_path/'run')
    assert table.height==12 and record['outcome']=='other' and record['trusted'] and record['differs'] in told

def test_a_wrong_template_of_as_many_tokens_is_not_seen_by_their_number_and_that_stands_in_the_record(
        serving, tmp_path):
    _, far = serving(copied(tmp_path, BEHIND), 'number')
    ask(far, every_kind(), out=tmp_path/'run')
    assert record_of(tmp_path/'run')['by']=='number of tokens'

@pytest.mark.parametrize('tells', ['ids', 'number'])
def test_another_tokenizer_is_caught(serving, tmp_path, tells):
    folder = copied(tmp_path)
    tokenizer = json.loads((folder/'tokenizer.json').read_text())
    tokenizer['pre_tokenizer'] = dict(type='Split', pattern=dict(Regex='.'), behavior='Isolated',
                                      invert=False)
    (folder/'tokenizer.json').write_text(json.dumps(tokenizer))
    _, far = serving(folder, tells)
    with pytest.raises(ValueError, match='tokens: "<bos> <image> x 16 question.*the server saw'):
        ask(far, every_kind(), out=tmp_path/'run')

@pytest.mark.parametrize('tells', ['ids', 'number'])
def test_another_model_is_caught(serving, tmp_path, tells):
    _, far = serving(make_vlm('llava', tmp_path/'other'), tells)
    with pytest.raises(ValueError, match='[Aa]nother (template, )?tokenizer'):
        ask(far, every_kind(), out=tmp_path/'run')

def test_pictures_of_another_size_are_caught(serving, tmp_path):
    folder = copied(tmp_path)
    for name in ('processor_config.json', 'preprocessor_config.json'):
        text = (folder/name).read_text()
        (folder/name).write_text(re.sub(r'("(?:height|width|shortest_edge)": )48', r'\g<1>96', text))
    _, far = serving(folder, 'ids')
    with pytest.raises(ValueError, match='A picture is another number of tokens there|x 64'):
        ask(far, every_kind(), out=tmp_path/'run')

def test_another_merge_of_the_same_template_is_caught_by_the_folder_that_the_server_names(serving, tmp_path):
    other = merge(LAB, lab_folder()/'llm', weight=.5, out=tmp_path/'other')
    _, far = serving(LAB, 'ids', root=str(other), weights=LAB)
    with pytest.raises(ValueError, match=f'says that it serves {other}, and that is not'):
        ask(far, every_kind(), out=tmp_path/'run')
    _, far = serving(LAB, 'ids', root=str(copied(tmp_path)), weights=LAB)
    ask(far, every_kind(), out=tmp_path/'run')                  # A copy is as good
    _, far = serving(LAB, 'ids', root='/nowhere/at/all', weights=LAB)
    ask(far, every_kind(), out=tmp_path/'run2')                 # A folder of another machine says nothing

def test_a_folder_named_from_where_the_server_stands_is_not_looked_for_here(serving, tmp_path, monkeypatch):
    "vLLM tells its folder as it was typed: another one of that name may lie where one asks"
    other = merge(LAB, lab_folder()/'llm', weight=.5, out=tmp_path/'merged')
    monkeypatch.chdir(tmp_path)
    served = copied(tmp_path)
    _, far = serving(LAB, 'ids', root='merged', weights=served)
    ask(far, every_kind(), out=tmp_path/'run')
    assert record_of(tmp_path/'run')['by']=='token ids'
    _, far = serving(LAB, 'ids', root=str(other), weights=served)
    with pytest.raises(ValueError, match='says that it serves'): ask(far, every_kind(), out=tmp_path/'run2')

def test_a_processor_that_is_none_stops_only_if_it_was_named(serving, tmp_path):
    (tmp_path/'bare').mkdir()
    _, far = serving(LAB, 'ids', processor=tmp_path/'bare')
    with pytest.raises(ValueError, match='has no config.json'): ask(far, every_kind(), out=tmp_path/'run')
    with pytest.raises(ValueError, match="'x' is no folder"):
        ask(replace(far, processor='x'), every_kind(), out=tmp_path/'run')
    _, far = serving(LAB, 'ids', processor=None, weights='merge of May')
    with pytest.warns(UserWarning, match='no processor is named'): ask(far, every_kind(), out=tmp_path/'run')
    _, far = serving(LAB, 'ids', processor=None, weights=LAB)
    ask(far, every_kind(), out=tmp_path/'run2')
    assert record_of(tmp_path/'run2')['outcome']=='same'

def test_the_shell_stops_trusts_and_tells_who_compares(serving, call, tmp_path):
    _, far = serving(copied(tmp_path, BEHIND), 'ids')
    argv = ['ask', '--endpoint', far.url, '--benchmark', 'lab', '-n', 6, '--max-new-tokens', 8]
    code, _, told = call(*argv, '--processor', LAB, '--out', tmp_path/'run')
    assert code==3 and 'pass --trust-prompt' in told and 'x 16' in told
    code, _, told = call(*argv, '--out', tmp_path/'unseen')
    assert code==0 and 'was not checked' in told and '--processor' in told
    assert call(*argv, '--processor', LAB, '--trust-prompt', '--out', tmp_path/'run')[0]==0
    assert call('ask', LAB, '--processor', LAB, '--benchmark', 'lab', '--out', tmp_path/'no')[0]==3
    assert call('ask', LAB, '--device', 'cpu', '--benchmark', 'lab', '-n', 6, '--max-new-tokens', 8,
                '--out', tmp_path/'near')[0]==0
    for out, why in (('run', 'a server that built other prompts'), ('unseen', 'it was not checked')):
        for job in (['compare'], ['report', '--out', tmp_path/'page.html']):
            code, shown, told = call(*job, tmp_path/'near', tmp_path/out)
            assert code==3 and why in told and '--trust-prompt' in told and not shown
            code, shown, told = call(*job, tmp_path/'near', tmp_path/out, '--trust-prompt')
            assert code==0 and why in told and shown
    with pytest.raises(ValueError, match='trust_prompt=True'): compare(tmp_path/'near', tmp_path/'run')
    assert 'with a processor named' not in call('compare', tmp_path/'near', tmp_path/'run')[2]
    with pytest.warns(UserWarning, match='built other prompts'):
        compare(tmp_path/'near', tmp_path/'run', trust_prompt=True)

def test_hostile_prompts_are_no_prompts(serving, tmp_path):
    _, far = serving(LAB, 'ids')
    from vlm_merging.asking.wire import prompt_of
    for body in (b'', b'[', b'[]', b'{"prompt_token_ids": [true, 1]}', b'{"prompt_token_ids": [1e3]}',
                 b'{"usage": [1]}', b'{"usage": {"prompt_tokens": 1e9}}', b'['*100_000):
        assert prompt_of(body)==(None, None)
    assert server_words('x', None)=='x'

@pytest.mark.parametrize('concurrency', [1, 8])
def test_a_server_that_dies_at_the_first_picture_is_no_wrong_address(serving, tmp_path, concurrency):
    "As vLLM did: it was up, answered with 500, and was gone; others may have knocked before the 500 was read"
    server, far = serving(LAB, 'ids', concurrency=concurrency)
    class Dies(Builds):
        def do_POST(self):
            self.server.socket.close()
            time.sleep(.05)
            self.send(500, dict(error='Engine core died'))
    server.RequestHandlerClass = Dies
    with pytest.raises(ValueError, match='answered before and cannot be reached any more.*Its log may say '
                                         'why'):
        ask(far, every_kind(), out=tmp_path/'run')

class Turns(Builds):
    "Two servers behind one address, of which one has the wrong template"
    def do_POST(self):
        self.server.asker = self.server.askers[len(self.server.asked)%2]
        super().do_POST()

@pytest.mark.parametrize('tells', ['ids', 'number'])
def test_words_that_a_proxy_puts_in_front_are_caught(serving, tmp_path, tells):
    server, far = serving(LAB, tells)
    server.before = 'scene'
    with pytest.raises(ValueError, match='conversation in another way|does not say which'):
        ask(far, every_kind(), out=tmp_path/'run')

def test_one_wrong_server_of_two_behind_an_address_is_caught(serving, tmp_path):
    from vlm_merging.asking.opening import open_processor
    server, far = serving(LAB, 'ids', concurrency=1)
    server.askers = server.asker, open_processor(copied(tmp_path, BEHIND))
    server.RequestHandlerClass = Turns
    with pytest.raises(ValueError, match='in another order'): ask(far, every_kind(), out=tmp_path/'run')

class Streams(Builds):
    "A server that answers in events whether one likes it or not"
    def send(self, status, body):
        if 'choices' not in body: return super().send(status, body)
        data = b''.join(f'data: {o}\n\n'.encode() for o in (json.dumps(body), '[DONE]'))
        self.send_response(status)
        for k, v in {'Content-Type':'text/event-stream', 'Content-Length':str(len(data))}.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)

def test_a_server_that_only_streams_is_told_as_one(serving, tmp_path):
    server, far = serving(LAB, 'ids', tries=1)
    server.RequestHandlerClass = Streams
    with pytest.warns(UserWarning, match='not checked: none of the tried questions was answered.*streams'):
        with pytest.raises(ValueError, match='All 12 questions failed: .*streams its reply'):
            ask(far, every_kind(), out=tmp_path/'run')

def test_white_space_at_the_ends_of_replies_changes_no_verdict():
    from vlm_merging.asking.replies import reply_table
    from vlm_merging.benchmarks.items import row_of
    from vlm_merging.scoring.score import PROTOCOLS, score
    items = [*every_kind(), Item('n', 'How much is 3 + 4?', '7'),
             Item('c', 'Which?', 'B', choices=('a', 'b', 'c')),
             Item('y', 'Is it red?', 'yes'), Item('f', 'Solve.', r'\frac{1}{2}')]
    said = ['7', 'B', '(B)', 'yes', 'Yes.', 'The answer is 7.', r'So it is \boxed{\frac{1}{2}}', 'red',
            '3 + 4 = 7', '',
            '<think>3 + 4</think>7', 'Answer: B\nbecause', '**7**', '0.5']
    for protocol in [p for p in PROTOCOLS if p!='judge']:
        def verdicts(*ends):
            rows = [row_of(i)|dict(run='r', prediction=ends[0]+s+ends[1]) for i in items for s in said]
            rows = [r|dict(index=str(n)) for n, r in enumerate(rows)]
            return score(reply_table(rows), protocol).select('correct', 'outcome').rows()
        plain = verdicts('', '')
        for ends in ((' ', ''), ('', '\n'), ('\n\n', ' \t'), ('\u00a0', '\u3000'), ('\r\n', '\r\n')):
            assert verdicts(*ends)==plain

@pytest.fixture
def three(serving, tmp_path):
    "A run that was made here, one of a server that nobody checked, and one that was checked"
    from vlm_merging.asking.opening import open_model
    _, far = serving(LAB, 'ids')
    how = {'near':open_model(LAB, device='cpu', max_new_tokens=8), 'seen':far,
           'unseen':replace(far, processor=None, trust_prompt=True)}
    return {name:ask(model, every_kind(), out=tmp_path/name) for name, model in how.items()}

@pytest.mark.parametrize('kind', ['parquet', 'csv', 'jsonl'])
def test_what_is_not_known_of_prompts_travels_in_tables(three, call, tmp_path, kind):
    names = {o:tmp_path/f'{o}.{kind}' for o in three}
    for name, table in names.items(): assert call('score', tmp_path/name, '--out', table)[0]==0
    folders = {o:tmp_path/o for o in three}|dict(lines=tmp_path/'unseen'/'replies.jsonl')
    for a, b in ((names['near'], names['unseen']), (names['near'], folders['unseen']),
                 (folders['near'], names['unseen']), (names['unseen'], names['seen']),
                 (folders['near'], folders['lines'])):
        for job in (['compare'], ['report', '--out', tmp_path/'page.html']):
            code, shown, told = call(*job, a, b)
            assert code==3 and 'it was not checked' in told and '--trust-prompt' in told and not shown
            code, shown, told = call(*job, a, b, '--trust-prompt')
            assert code==0 and told.count('it was not checked')==1 and shown
            assert ('near has no record of a server' in told)==('near' in str(a))
    for a, b in ((names['near'], names['seen']), (folders['near'], names['seen'])):
        assert call('compare', a, b)[0]==0
    for o in (names, folders):                                  # With itself, whatever it is
        code, _, told = call('compare', o['unseen'], o['unseen'])
        assert code==0 and 'with itself' in told and 'it was not checked' not in told

def test_rows_that_were_joined_and_filtered_still_say_it(three):
    import polars as pl
    from vlm_merging.scoring.score import score
    near, unseen = (score(three[o]) for o in ('near', 'unseen'))
    joined = pl.concat([near, unseen], how='diagonal')
    kept = 'run', 'index', 'correct', 'prompt_check'
    apart = [joined.filter(run=o).select(kept) for o in ('near', 'unseen')]
    for a, b in ((near, unseen), apart, ([near], [unseen]), (unseen, near)):
        with pytest.raises(ValueError, match='it was not checked'): compare(a, b)
    with pytest.warns(UserWarning) as told: compare(near, unseen, trust_prompt=True)
    assert len(told)==2
    compare(*apart[:1], near)
    old = unseen.drop('prompt_check')                           # Written before: nobody can trace it
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare(near, old)
    known = unseen.with_columns(run=pl.lit('known'))
    with pytest.raises(ValueError, match='it was not checked'): compare(old, known)

@pytest.mark.parametrize('change', [
    lambda c: c['sessions'].clear(), lambda c: c.pop('sessions'), lambda c: c['sessions'][0].pop('how'),
    lambda c: c['sessions'][0].update(how=['url']),
    *(lambda c, r=r: c['sessions'][0]['how'].update(prompt=r) for r in (
        None, 'same', [], dict(outcome='fine'), dict(outcome=1), dict(outcome='same'),
        dict(outcome='same', by='eye'), dict(outcome='same', by=['token ids']),
        dict(outcome='same', by='token ids', asked=3), dict(outcome='same', by='token ids', against=[])))])
def test_a_record_that_nobody_can_read_is_one_of_no_check(three, call, tmp_path, change):
    config = json.loads((tmp_path/'seen'/'run.json').read_text())
    change(config)
    (tmp_path/'seen'/'run.json').write_text(json.dumps(config))
    code, shown, told = call('compare', tmp_path/'near', tmp_path/'seen')
    assert code==3 and not shown and re.search(r'it was not checked.*\((the record|its run.json) .*\)', told)

def test_a_run_that_went_on_at_another_server_is_as_good_as_the_worse_one(serving, tmp_path):
    weights = dict(weights='merge of May')
    _, good = serving(LAB, 'ids', **weights)
    _, bad = serving(copied(tmp_path, BEHIND), 'ids', **weights)
    ask(good, every_kind()[:6], out=tmp_path/'run')
    with pytest.raises(ValueError, match='in another order'): ask(bad, every_kind(), out=tmp_path/'run')
    assert prompt_record(tmp_path/'run')['outcome']=='same'     # Nothing was asked there
    ask(replace(bad, trust_prompt=True), every_kind()[:9], out=tmp_path/'run')
    table = ask(good, every_kind(), out=tmp_path/'run')
    assert prompt_record(tmp_path/'run')['outcome']=='other' and {*table['prompt_check']}=={'other'}

class Odd(Builds):
    "A server that is right but for questions with several pictures"
    def send(self, status, body):
        content = self.asked['messages'][-1]['content'] if self.command=='POST' else ''
        if sum(p['type']=='image_url' for p in content if isinstance(p, dict))>1: self.server.odd(body)
        super().send(status, body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.asked, self.rfile = json.loads(body), io.BytesIO(body)
        super().do_POST()

def test_wrong_only_for_several_pictures_or_silent_only_there(serving, tmp_path):
    server, far = serving(LAB, 'ids')
    server.RequestHandlerClass = Odd
    def wrong(body): body['prompt_token_ids'] = body['prompt_token_ids'][::-1]
    def silent(body): body.pop('usage', 0), body.pop('prompt_token_ids', 0)
    server.odd = wrong
    with pytest.raises(ValueError, match=r"question 'two' \(several pictures\).*in another order"):
        ask(far, every_kind(), out=tmp_path/'run')
    server.odd = silent
    with pytest.warns(UserWarning, match='nothing of the prompts of questions with several pictures'):
        ask(far, every_kind(), out=tmp_path/'run')
    assert prompt_record(tmp_path/'run')['outcome']=='not checked'

@pytest.mark.parametrize('name', ['processor', 'model'])
def test_the_folder_that_a_server_names_is_held_against_whatever_was_named(serving, tmp_path, name):
    other = merge(LAB, lab_folder()/'llm', weight=.5, out=tmp_path/'other')
    served = copied(tmp_path)
    how = dict(processor=None)|{name:str(served)}
    server, far = serving(LAB, 'ids', root=str(other), **{k:v for k, v in how.items() if k!='model'})
    server.name, far = how.get('model', 'tiny'), replace(far, model=how.get('model', 'tiny'))
    with pytest.raises(ValueError, match=f'serves {other}, and that is not {served}: its weights'):
        ask(far, every_kind(), out=tmp_path/'run')
    ask(replace(far, weights=other, processor=served), every_kind(), out=tmp_path/'run') # As quantized
    server.root = str(served)
    ask(far, every_kind(), out=tmp_path/'run2')
    assert record_of(tmp_path/'run2')['by']=='token ids'

def test_a_path_that_was_mistyped_is_no_label(serving, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(LAB, tmp_path/'merged')
    (tmp_path/'runs').mkdir()
    _, far = serving(LAB, 'ids')
    argv = ['ask', '--endpoint', far.url, '--benchmark', 'lab', '-n', 3, '--max-new-tokens', 4, '--serves']
    for typed in ('mergd', './nothing', '~/nothing', 'runs/merged', 'run/merged', 'a/b/c', '/no'):
        code, _, told = call(*argv, typed, '--out', 'out')
        assert code==3 and 'is no folder here' in told and not (tmp_path/'out').exists()
    assert 'Did you mean merged?' in call(*argv, 'mergd', '--out', 'out')[2]
    for n, label in enumerate(('merge of May', 'owner/name')):
        code, _, told = call(*argv, label, '--out', f'out{n}')
        assert code==0 and told.count('taken as a label')==1
    code, _, told = call(*argv, 'merged/', '--out', 'out')
    assert code==0 and 'label' not in told

def test_settings_of_a_server_and_of_a_model_are_compared_by_what_they_mean(three, call, tmp_path):
    from vlm_merging.cli.report_inputs import asked_unlike
    def said(a, b): return asked_unlike([dict(about=dict(weights='x')|o) for o in (a, b)], ['a', 'b'])
    here = dict(dtype='float32', system=None, max_new_tokens=8, greedy=True, own=dict(eos_token_id=[2]))
    far = dict(system='', max_tokens=8, temperature=0, top_p=.9, seed=3, extra={})
    inside = dict(engine='vllm', dtype='auto', system=None, max_new_tokens=8, greedy=True)
    assert not said(here, far) and not said(far, inside) and not said(inside, here)
    drawn = dict(here, greedy=False, temperature=.7, top_p=1, seed=0)
    assert not said(drawn, dict(far, temperature=.7, top_p=None, seed=0))
    assert said(here, dict(far, max_tokens=9))==['max_new_tokens was 8 for a and 9 for b.']
    assert said(here, dict(far, max_tokens=None))==['max_new_tokens was 8 for a and null for b.']
    assert said(drawn, far)[0]=='temperature was 0.7 for a and 0 for b.'
    assert said(here, dict(far, extra=dict(top_k=1))) and said(here, dict(here, dtype='float16'))
    code, _, told = call('report', tmp_path/'near', tmp_path/'seen', '--out', tmp_path/'page.html')
    assert code==0 and 'asked alike' not in (tmp_path/'page.html').read_text()

def test_a_name_that_is_another_folder_as_seen_from_here_is_caught(serving, tmp_path, monkeypatch):
    "transformers serve takes a name for a path, and tells nobody where it lies"
    merge(LAB, lab_folder()/'llm', weight=.5, out=tmp_path/'merged')
    served = copied(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, far = serving(LAB, 'number', weights='merged')
    for name in ('served', str(served)):
        with pytest.raises(ValueError, match=f'asked by the name of {name}, and that is not merged'):
            ask(replace(far, model=name), every_kind(), out=tmp_path/'run')
    ask(replace(far, model='any'), every_kind(), out=tmp_path/'run')

def test_two_runs_of_equal_replies_are_two_runs(serving, call, tmp_path):
    for name in 'ab': ask(serving(LAB, 'nothing')[1], every_kind(), out=tmp_path/name, progress=False)
    a, b = (str(tmp_path/name) for name in 'ab')
    for words in (['compare', a, b], ['report', a, b, '--out', str(tmp_path/'page.html')]):
        assert 'was it checked which prompts its server builds' in call(*words)[2]
        assert 'was it checked' not in call(*[a if w==b else w for w in words])[2]
    record = tmp_path/'b'/'run.json'
    record.write_text(record.read_text().replace('not checked', 'other'))
    for words in (['compare', a, b], ['report', a, b, '--out', str(tmp_path/'page.html')]):
        code, _, told = call(*words)
        assert code==3 and '--trust-prompt' in told
