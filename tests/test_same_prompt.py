"A server that builds another prompt than the processor is found out before anything is asked"
import json, re, shutil, time, warnings
from dataclasses import replace

import pytest

from prompt_server import LAB, Builds
from vlm_merging.asking.ask import ask
from vlm_merging.asking.connection import server_words
from vlm_merging.comparing.compare import compare
from vlm_merging.merging.merge import merge
from vlm_merging.asking.same_prompt import prompt_record, unlike_prompts
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
    for out, why in (('run', 'the server built other prompts'), ('unseen', 'it was not checked')):
        for job in (['compare'], ['report', '--out', tmp_path/'page.html']):
            code, shown, told = call(*job, tmp_path/'near', tmp_path/out)
            assert code==3 and why in told and '--trust-prompt' in told and not shown
            code, shown, told = call(*job, tmp_path/'near', tmp_path/out, '--trust-prompt')
            assert code==0 and why in told and shown
    with pytest.raises(ValueError, match='trust_prompt=True'): compare(tmp_path/'near', tmp_path/'run')
    with pytest.warns(UserWarning, match='built other prompts'):
        compare(tmp_path/'near', tmp_path/'run', trust_prompt=True)
    assert not unlike_prompts(tmp_path/'near', tmp_path/'near')

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
