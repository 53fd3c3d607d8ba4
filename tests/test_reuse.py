"Effects of masks: the short way gives the numbers of the long one, for every family; nothing stays behind"
import json, re, warnings
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest, torch, transformers
from transformers.utils import logging

from vlm_merging.probing import drafts, effects as room
from vlm_merging.probing import replay as reuse
from vlm_merging.probing.drafts import beyond_greedy, greedy_replies
from vlm_merging.probing.effects import effects
from vlm_merging.lab.trio import lab_folder, questions
from vlm_merging.asking.models import LocalModel, prompt_inputs
from vlm_merging.asking.opening import open_model
from vlm_merging.probing.layers import decoder_layers
from vlm_merging.probing.masks import Mask, applied, masks, means
from vlm_merging.probing.replay import (answer_ids, record, replayed, forward_pass, token_logprobs,
                                        teacher_forced)
from vlm_merging.lab.tiny import KINDS, ask_inputs, make_vlm, blank_picture

torch.set_num_threads(1)
logging.disable_progress_bar()


class Reader:
    "A processor: the picture as `ask_inputs` shows it, and the question in words before it, padded left"
    image_processor = True

    def __init__(self, model, kind, tokenizer): self.model, self.kind, self.tokenizer = model, kind, tokenizer

    def apply_chat_template(self, messages, **_):
        return ' '.join(p['text'] for m in messages for p in m['content'] if p['type']=='text')

    def __call__(self, text, images=None, **_):
        bare = dict(input_ids=torch.tensor([[1]]), attention_mask=torch.tensor([[1]]))
        rows = [ask_inputs(self.model, self.kind, image=i) for (i,) in images] if images else [bare]*len(text)
        words = [self.tokenizer(t, add_special_tokens=False)['input_ids'] for t in text]
        wide, out = max(map(len, words)), {}
        for name in rows[0]:
            for row, w in zip(rows, words):
                x = row[name]
                if x.shape[:2]==row['input_ids'].shape:
                    head = x.new_zeros(1, wide, *x.shape[2:])
                    if name=='input_ids': head[0, wide-len(w):] = torch.tensor(w)
                    if name=='attention_mask': head[0, wide-len(w):] = 1
                    x = torch.cat([head, x], 1)
                out.setdefault(name, []).append(x)
        return {name:torch.cat(x) for name, x in out.items()}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Askers of the small families, made once"
    made = {}
    def asker(kind):
        if kind not in made:
            folder = make_vlm(kind, tmp_path_factory.mktemp('tiny')/kind, dtype='float32', seed=4)
            m = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
            m.generation_config.eos_token_id, m.generation_config.pad_token_id = 2, 0
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            made[kind] = LocalModel(m, Reader(m, kind, tokenizer), 'w', kind, batch_size=3, max_new_tokens=6)
        return made[kind]
    return asker

@pytest.fixture(scope='module')
def lab(): return open_model(lab_folder()/'vlm', max_new_tokens=10)

def asked(n=6, **more):
    return [SimpleNamespace(id=q.id, question=q.ask, images=(q.image,), answer=q.answer, group=q.scene,
                            tags=dict(kind=q.kind), **more)
            for q in questions(n)]

def words(n, blind=()):
    return [SimpleNamespace(id=i, question=' '.join(f'w{5+(i*7+j)%60}' for j in range(2+i%3)),
                            answer=' '.join(f'w{20+i+j}' for j in range(1+i%2)),
                            images=() if i in blind else (blank_picture(i),)) for i in range(n)]

def right(item, text): return float(text.split()[-1:]==[item.answer])
def length(item, text): return len(text)%3/2
def clean(model):
    "No stand-in for a forward anywhere, and no hook in the decoder (transformers has its own elsewhere)"
    return not any('forward' in vars(m) for m in model.modules()) and not any(
        m._forward_hooks or m._forward_pre_hooks
        for m in (model.base_model, model.get_decoder(), *decoder_layers(model)))

def patch(monkeypatch, name, f):
    "Put `f` in the place of a function in every room that knows it"
    known = [o for o in (reuse, drafts, room) if hasattr(o, name)]
    assert known, name
    for o in known: monkeypatch.setattr(o, name, f)

def equal(one, two, eps=1e-4):
    assert one.drop('before', 'after').equals(two.drop('before', 'after'))
    for c in ('before', 'after'): assert (one[c]-two[c]).abs().max()<eps


@pytest.mark.parametrize('kind', KINDS)
def test_both_ways_agree(kind, tiny, monkeypatch):
    "Likelihoods and replies, pictures and plain text, riding or not"
    asker, cut = tiny(kind), []
    def spy(*args, real=room.continue_branches, **more):
        cut.append(False)
        out = real(*args, **more)
        cut[-1] = True
        return out
    patch(monkeypatch, 'continue_branches', spy)
    items = words(5, blind=() if kind=='paligemma' else (4,))  # Without a picture PaliGemma reads both ways
    several = [Mask(0), Mask(1, 'mlp', 'zero'), Mask(1, 'attention', 'uniform'),
               Mask((2, 3), 'head', 'skip', (1,)), Mask(3, 'mlp'),
               Mask(3, 'attention'), Mask((1, 3), 'layer', 'constant'), Mask((1, 2, 3), how='blind')]
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        short, long = (effects(asker, items, several, ('likelihood', 'answer'), length, reuse=r)
                       for r in (True, False))
    equal(short, long)
    assert short.height==5*8*2 and clean(asker.model)
    changed = short.filter(measure='answer').select(pl.col('reply_before')!=pl.col('reply_after')).to_series()
    assert 0<changed.sum()<len(changed)
    assert set(cut)==({True} if kind!='mllama' else set())  # Only mllama begins changed replies afresh


@pytest.mark.parametrize('kind', ['llava', 'qwen3_vl', 'gemma3', 'mllama', 'paligemma'])
def test_logits_are_equal_bit_for_bit_and_the_front_does_not_run(kind, tiny):
    model, items = tiny(kind).model, words(3)
    ran = []
    with torch.inference_mode():
        inputs = prompt_inputs(tiny(kind), items, [list(i.images) for i in items])
        full = teacher_forced(model, inputs, [[11, 12, 13, 2], [14, 15], [16]])
        held = record(model, full, 5)
        hooks = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in
                 (*((i, m.mlp) for i, m in enumerate(decoder_layers(model))),
                  *((n, m) for n, m in model.named_modules()
                    if re.search(r'(vision_tower|visual|vision_model)$', n)))]
        for first in range(len(decoder_layers(model))):
            mask = Mask(first, 'mlp')
            with applied(model, mask): slow, _ = forward_pass(model, full, 5)
            ran.clear()
            for times in (1, 2):
                with replayed(model, held, first, times) as given, applied(model, mask):
                    fast, _ = forward_pass(model, given, 5)
                assert torch.allclose(torch.cat([slow]*times), fast, atol=1e-5)
                if times==1: assert torch.equal(slow, fast)
            assert ran==[*range(first, len(decoder_layers(model)))]*2
        for h in hooks: h.remove()
        other, _ = forward_pass(model, teacher_forced(model, inputs, [[11, 12, 77, 3], [14, 60], [99%90]]), 5)
        for r, n in enumerate((3, 2, 1)):
            assert torch.equal(other[r, :n], held.logits[r, :n]), 'an answer sees what follows'
    assert clean(model)


@pytest.mark.parametrize('kind', ['gemma3', 'llava_next_mistral'])
def test_a_sliding_window_shorter_than_the_prompt(kind, tmp_path, monkeypatch):
    "Its cache has forgotten what a changed reply would go on from: that reply is made afresh"
    made = []
    patch(monkeypatch, 'continue_branches', lambda *args, real=room.continue_branches,
          **more: made.append(real(*args, **more)))
    folder = make_vlm(kind, tmp_path/'vlm', dtype='float32', seed=4)
    config = json.loads((folder/'config.json').read_text())
    config['text_config']['sliding_window'] = 6
    (folder/'config.json').write_text(json.dumps(config))
    m = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    m.generation_config.eos_token_id, m.generation_config.pad_token_id = 2, 0
    asker = LocalModel(m, Reader(m, kind, transformers.AutoTokenizer.from_pretrained(folder)), 'w', kind,
                       batch_size=3, max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        several = [Mask(0), Mask(1, 'mlp'), Mask(3)]
        equal(*(effects(asker, words(3), several, ('likelihood', 'answer'), length, reuse=r)
                for r in (True, False)))
    assert not made


def test_paligemma_without_types_is_refused(tiny):
    with pytest.raises(ValueError, match='does not read from left to right'):
        effects(tiny('paligemma'), words(1, blind=(0,)), [Mask(0)])


def test_text_models_and_half_precision(tmp_path, lab):
    llm = open_model(lab_folder()/'llm', max_new_tokens=10)
    items = [SimpleNamespace(id=q.id, question=f'{q.scene} question {q.ask}', images=(), answer=q.answer)
             for q in questions(6)]
    several = masks(llm.model, ('layer', 'mlp'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        equal(*(effects(llm, items, several, ('likelihood', 'answer'), right, reuse=r, batch_size=24)
                for r in (True, False)))
        half = replace(lab, model=transformers.AutoModelForImageTextToText.from_pretrained(lab_folder()/'vlm',
            dtype=torch.bfloat16).eval())
        short, long = (effects(half, asked(4), several, reuse=r) for r in (True, False))
        equal(short, long, .2)
        effects(half, asked(4), several, 'answer', right)


def test_every_way_rides_or_not(lab):
    items, model = asked(2), lab.model
    with torch.inference_mode():
        average = means(model, [prompt_inputs(lab, items, [list(i.images) for i in items])])
    other = open_model(lab_folder()/'vlm').model
    several = masks(model, ('layer', 'attention', 'mlp'), ('skip', 'mean', 'uniform', 'constant', 'weights'),
                    '2-3')
    short, riding, long = (effects(lab, items, several, means=average, other=other, reuse=r, batch_size=b)
                           for r, b in ((1, 2), (1, 8), (0, 2)))
    equal(short, long)
    equal(riding, long)
    same = short.filter(how='weights')
    assert (same['before']-same['after']).abs().max()<1e-4          # Its own weights change nothing


def test_a_ride_takes_as_many_masks_as_there_is_room(lab, monkeypatch):
    sizes = []
    def spy(model, inputs, *args, real=reuse.forward_pass):
        sizes.append(len(inputs['input_ids']))
        return real(model, inputs, *args)
    patch(monkeypatch, 'forward_pass', spy)
    effects(lab, asked(2), [Mask(1), Mask(1, 'mlp'), Mask(1, 'attention'), Mask(2),
                            Mask(1, 'mlp', 'constant')], batch_size=4)
    # Record; two of layer 1 ride, the third, layer 2, the one that cannot; two checks
    assert sizes==[2, 4, 2, 2, 2, 2, 2]


def test_batches_do_not_depend_on_masks_nor_on_the_order_of_items(lab, monkeypatch):
    batches = []
    def spy(asker, items, images, real=prompt_inputs):
        batches.append([i.id for i in items])
        return real(asker, items, images)
    patch(monkeypatch, 'prompt_inputs', spy)
    items, every = asked(7), masks(lab.model, 'mlp')
    whole = effects(lab, items, every, batch_size=3)
    first = batches.copy()
    assert sorted(map(len, first))==[1, 3, 3]
    batches.clear()
    part = effects(lab, items, every[5:6], batch_size=3)
    assert batches==first
    assert part.equals(whole.filter(layer=5))
    turned = effects(lab, items[::-1], every, batch_size=3)
    assert turned['index'].unique(maintain_order=True).to_list()==[i.id for i in items[::-1]]
    equal(turned.sort('index', 'layer'), whole.sort('index', 'layer'))


def test_the_table(lab):
    items = asked(2, benchmark='Lab', split='test')
    items[0].tags = dict(kind='perception', skills=['a', 'b'], layer='mine', n=3)
    items[1].group = None
    rows = effects(lab, items, [Mask((0, 1, 5)), Mask(2, 'head', heads=(0, 1))], ('likelihood', 'answer'),
                   right)
    assert rows.columns==['model', 'benchmark', 'split', 'index', 'group', 'kind', 'skills', 'n', 'measure',
                          'layer', 'layers', 'part', 'how', 'heads',
                          'before', 'after', 'reply_before', 'reply_after']
    assert rows['layers'].to_list()==['0-1,5']*2+['2']*2+['0-1,5']*2+['2']*2
    assert rows['layer'].to_list()==[0, 0, 2, 2]*2
    assert rows['heads'].to_list()==['', '', '0,1', '0,1']*2
    assert rows['measure'].to_list()==['likelihood', 'answer']*4
    assert rows['skills'][0]=='["a", "b"]' and rows['n'][0]=='3' and rows['kind'][4]==items[1].tags['kind']
    assert rows.filter(measure='answer')['reply_before'].null_count()==0
    assert rows.filter(measure='likelihood')['reply_after'].null_count()==4
    assert (rows.filter(measure='likelihood')['before']<=0).all()
    assert effects(lab, items, [Mask(0)], 'answer', lambda i, t: None)['after'].to_list()==[None, None]
    text = effects(lab, items, [Mask(0)], target=lambda i: '3 + 4 = 7')
    assert (text['before']<rows.filter(measure='likelihood', layers='2')['before']).all()


def test_what_cannot_be_asked_is_left_out_with_its_reason(lab):
    items, why = asked(5), {}
    class Broken:
        def bytes(self): return b'no picture'
        def open(self): raise ValueError('the image cannot be decoded')
    class Late(Broken):
        def bytes(self, held=items[1].images[0]):
            import io
            out = io.BytesIO(); held.save(out, 'PNG'); return out.getvalue()
    items[0].images, items[1].images, items[2].answer = (Broken(),), (Late(),), None
    with pytest.warns(UserWarning, match='3 of 5 items are left out'):
        rows = effects(lab, items, [Mask(0)], left_out=why)
    assert rows['index'].to_list()==[i.id for i in items]
    assert rows.drop_nulls('after')['index'].to_list()==[i.id for i in items[3:]]
    assert set(why)=={i.id for i in items[:3]}
    assert 'decoded' in why[items[0].id] and 'decoded' in why[items[1].id] and 'no answer' in why[items[2].id]
    with pytest.warns(UserWarning, match='2 of 5'):
        assert effects(lab, items, [Mask(0)], 'answer', right)['after'].null_count()==2
    with pytest.raises(ValueError, match='None of the 1 items'): effects(lab, items[:1], [Mask(0)])
    assert effects(lab, [], [Mask(0)]).height==0


@pytest.mark.parametrize('how,match', [
    (dict(masks=[]), '0 masks'), (dict(measures='speed'), 'speed'),
    (dict(measures='answer'), 'needs `score`'),
    (dict(masks=[Mask(8)]), 'not within the layers'), (dict(masks=[Mask(1, 'mlp', 'mean')]), 'needs `means`'),
    (dict(masks=[Mask(1, 'mlp', 'weights')]), 'needs `other`')])
def test_what_cannot_be_measured_is_refused_at_once(lab, how, match):
    with pytest.raises(ValueError, match=match): effects(lab, asked(1), **dict(masks=[Mask(0)])|how)
    with pytest.raises(ValueError, match='temperature'):
        effects(replace(lab, temperature=1), asked(1), [Mask(0)])


def test_memory_that_runs_out_halves_the_batch(lab, monkeypatch):
    def small(model, inputs, *args, real=reuse.forward_pass):
        if len(inputs['input_ids'])>1: raise RuntimeError('CUDA out of memory')
        return real(model, inputs, *args)
    whole = effects(lab, asked(5), [Mask(2)])
    patch(monkeypatch, 'forward_pass', small)
    equal(effects(lab, asked(5), [Mask(2)], batch_size=8), whole)
    patch(monkeypatch, 'forward_pass', lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ValueError, match='MemoryError'): effects(lab, asked(2), [Mask(2)])
    assert clean(lab.model)


@pytest.mark.parametrize('trouble', [KeyboardInterrupt, RuntimeError])
def test_nothing_stays_behind_after_an_exception(lab, trouble):
    model, calls = lab.model, []
    def fail(*_):
        calls.append(1)
        if len(calls)==10: raise trouble('stop')
    hook = decoder_layers(model)[6].mlp.register_forward_hook(fail)
    try:
        if trouble is KeyboardInterrupt:
            with pytest.raises(trouble): effects(lab, asked(2), masks(model, ('layer', 'mlp')))
        # The batch is tried again in halves
        else: effects(lab, asked(2), masks(model, ('layer', 'mlp')), ('likelihood', 'answer'), right)
    finally: hook.remove()
    assert clean(model) and len(calls)>=10
    with pytest.raises(ValueError, match='item .* failed: ZeroDivisionError'):
        effects(lab, asked(1), [Mask(0)], 'answer', lambda i, t: 1/0)
    assert clean(model)


def test_a_wrong_record_is_noticed(lab, monkeypatch):
    "Never fast and wrong: the first comparison fails, and all is run from the start"
    items, several = asked(4), masks(lab.model, ('layer', 'mlp'))
    long = effects(lab, items, several, ('likelihood', 'answer'), right, reuse=False)
    def noisy(*args, real=reuse.record):
        held = real(*args)
        return replace(held, states={j:x+torch.randn_like(x) for j, x in held.states.items()})
    patch(monkeypatch, 'record', noisy)
    for measures in ('likelihood', 'answer', ('likelihood', 'answer')):
        with pytest.warns(UserWarning, match='not come out equal') as told:
            short = effects(lab, items, several, measures, right)
        assert len(told)==1
        equal(short, long if len(measures)==2 else long.filter(measure=measures))


def test_a_model_that_cannot_be_replayed_runs_from_the_start(lab, monkeypatch):
    items, several = asked(3), [Mask(0), Mask(5, 'mlp')]
    long = effects(lab, items, several, ('likelihood', 'answer'), right, reuse=False)
    layers = decoder_layers(lab.model)
    twice = layers[3]
    real = twice.forward
    twice.forward = lambda *a, **k: real(*a, **k)
    # A forward of someone else stays
    try: equal(effects(lab, items, several, ('likelihood', 'answer'), right), long)
    finally: assert vars(twice).pop('forward')
    def loops(decoder, args, named):
        layers[7](torch.zeros(1, 1, 64), position_embeddings=(torch.zeros(1, 1, 32),)*2)
    hook = lab.model.get_decoder().register_forward_pre_hook(loops, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match='runs twice') as told:
            equal(effects(lab, items, several, ('likelihood', 'answer'), right), long)
        assert len(told)==1
    finally: hook.remove()
    assert clean(lab.model)


def test_replies_that_are_not_plainly_greedy_are_made_afresh(lab, monkeypatch):
    model = transformers.AutoModelForImageTextToText.from_pretrained(lab_folder()/'vlm').eval()
    model.generation_config.repetition_penalty = 1.3
    asker, items, several = replace(lab, model=model), asked(4), [Mask(1, 'mlp'), Mask(6)]
    assert beyond_greedy(model)==['repetition_penalty'] and not beyond_greedy(lab.model)
    patch(monkeypatch, 'record', None)
    equal(*(effects(asker, items, several, 'answer', right, reuse=r) for r in (True, False)))


def test_a_reply_may_name_a_picture(tiny):
    "A token that stands for a picture, said by a model that babbles, does not ask for a picture"
    asker = tiny('llava')
    image = asker.model.config.image_token_id
    bias = torch.zeros(104)
    bias[image] = 1e3
    hook = asker.model.lm_head.register_forward_hook(lambda m, a,
                                                     out: out+bias*(out.argmax(-1, keepdim=True)%3==0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            equal(*(effects(asker, words(4), masks(asker.model, ('layer', 'mlp')), 'answer', length, reuse=r)
                    for r in (True, False)))
            inputs = prompt_inputs(asker, words(4), [list(i.images) for i in words(4)])
            assert any(image in r for r in greedy_replies(asker, inputs))
    finally: hook.remove()


def template(text, spoken=None, tokens=r' ?\w+|\n+|[^\w\s]| ', special=()):
    "An asker with a chat template of its own, whose tokens are found by a pattern"
    def write(messages, tokenize, add_generation_prompt):
        if add_generation_prompt: return text
        if spoken is None: raise ValueError('roles must alternate')
        return spoken.format(messages[-1]['content'])
    class Words:
        all_special_tokens = list(special)
        def __call__(self, text, add_special_tokens):
            return dict(input_ids=re.findall('|'.join([*map(re.escape, special), tokens]), text))
        def apply_chat_template(self, messages, **how): return write(messages, **how)
    return SimpleNamespace(tokenizer=Words(), processor=Words(), sees=False, system=None)

@pytest.mark.parametrize('text,spoken,special,ids', [
    ('USER: Q ASSISTANT:', 'USER: Q ASSISTANT: {}</s>', (), [' ten', ' four']),  # The template puts a space
    ('USER: Q ASSISTANT:', None, (), [' ten', ' four']),  # Nothing is known: a space
    ('<|im|>assistant\n', '<|im|>assistant\n{}<|end|>', (), ['ten', ' four']),  # A line break, and no space
    ('<|im|>assistant\n', None, (), ['ten', ' four']),
    ('Q [/INST]', None, ('[/INST]',), ['ten', ' four']),  # A special token ends what is before
    ('Q [/INST]', 'Q [/INST] {}', ('[/INST]',), [' ten', ' four']),  # unless the template says otherwise
    ('say\n', 'say\n<think></think>{}', (), ['ten', ' four']),  # Thoughts are not put into its mouth
    ('Q', 'other words {}', (), [' ten', ' four'])])
def test_where_an_answer_begins(text, spoken, special, ids):
    item = SimpleNamespace(question='Q', images=())
    assert answer_ids(template(text, spoken, special=special), item, 'ten four')==ids

def test_an_answer_is_not_glued_to_the_prompt():
    asker = template('n=', 'n={}', tokens=r'n=1|n=|\d')                                  # `n=1` is one token
    assert answer_ids(asker, SimpleNamespace(question='Q', images=()), '12')==['1', '2']


def test_log_probabilities():
    z = torch.randn(2, 4, 7)
    out = token_logprobs(z, [[3, 1, 2], [5]])
    assert torch.allclose(out[0], z[0].log_softmax(-1)[[0, 1, 2], [3, 1, 2]]) and out[1, 1:].tolist()==[0, 0]
    assert torch.allclose(out[1, 0], z[1, 0].log_softmax(-1)[5])


def test_half_precision_is_not_taken_for_reading_backwards():
    "Large logits have coarse steps in bfloat16; passes of one shape are equal all the same"
    torch.manual_seed(0)
    llm = open_model(lab_folder()/'llm')
    config = transformers.LlamaConfig(vocab_size=len(llm.tokenizer), hidden_size=64, intermediate_size=128,
                                      num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=4, initializer_range=.5, pad_token_id=0,
                                      bos_token_id=1, eos_token_id=2)
    model = transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16)
    asker = replace(llm, model=model)
    for seed in range(4):
        items = [SimpleNamespace(id=q.id, question=f'{q.scene} question {q.ask}', images=(), answer=q.answer)
                 for q in questions(6, seed)]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rows = effects(asker, items, [Mask(1)])
        assert rows['before'].null_count()==0
