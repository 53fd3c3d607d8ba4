"Masks and reads on every pico family, against models that were edited by hand"
import copy
import pytest, torch
from vlm_merging.probing.layers import (stream_writer, wrapped_attention, find_part, decoder_layers,
                                        image_positions)
from vlm_merging.probing.masks import PARTS, WAYS, Mask, applied, masked, masks, means
from vlm_merging.lab.tiny import KINDS, ask_inputs, llm_config, vlm_config

CLOSE = dict(atol=2e-5, rtol=1e-4)
REST = tuple(k for k in KINDS if k not in ('llava', 'gemma3', 'mllama'))


def made(config, auto, seed=0, how='sdpa'):
    "A model in memory, no parameter at a round number"
    import transformers
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(config, attn_implementation=how).float().eval()
        with torch.no_grad():
            for _, p in sorted(model.named_parameters()): p.add_(.1*torch.randn(p.shape))
    return model


_kept = {}
def vlm(kind, seed=0, how='sdpa'):
    "A copy of a model that is made once: what a test does to it, no other test sees"
    key = kind, seed, how
    if key not in _kept:
        _kept[key] = made(vlm_config(kind), 'AutoModelForImageTextToText', seed, how)
        # A first run leaves hooks of transformers' own
        with torch.no_grad(): _kept[key](**ask_inputs(_kept[key], kind))
    return copy.deepcopy(_kept[key])


def padded(model, kind):
    "Two rows: a picture and a few words, and the same with another picture and three pads on the left"
    one, two = ask_inputs(model, kind, seed=0), ask_inputs(model, kind, seed=1)
    out = {}
    for k in one:
        a, b = one[k], two[k]
        if a.dim()>=2 and a.shape[1]==one['input_ids'].shape[1] and k!='pixel_values':
            pad = lambda x, n, left: torch.cat([x[:, :0].new_zeros(1, n, *x.shape[2:])]*left+[x]+
                                               [x[:, :0].new_zeros(1, n, *x.shape[2:])]*(not left), 1)
            if k=='input_ids':     # The longer row has three words more at its end
                a, b = torch.cat([a, torch.tensor([[9, 11, 12]])],
                                 1), torch.cat([torch.zeros(1, 3, dtype=b.dtype), b], 1)
            elif k=='attention_mask': a, b = torch.ones(1, a.shape[1]+3, dtype=a.dtype), pad(b, 3, True)
            elif k=='cross_attention_mask':
                a, b = torch.cat([a, a[:, -1:].expand(-1, 3, -1, -1)], 1), pad(b, 3, True)
            else: a, b = pad(a, 3, False), pad(b, 3, True)
        out[k] = torch.cat([a, b])
    return out


def logits(model, inputs):
    with torch.no_grad(): return model(**inputs).logits


def state(model):
    "All that a mask could leave behind: modules, hooks, attributes, parameters"
    return [(n, {k:(dict(v) if isinstance(v, dict) else v) for k, v in vars(m).items()}) for n,
            m in model.named_modules()]


def same_state(a, b):
    def alike(x, y):
        if isinstance(x, dict):
            return x.keys()==y.keys() and list(x)==list(y) and all(alike(x[k], y[k]) for k in x)
        # Qwen notes its ropes
        if torch.is_tensor(x) and not isinstance(x, torch.nn.Parameter): return torch.equal(x, y)
        return x is y or (type(x) in (int, float, str, bool, tuple) and x==y)
    return len(a)==len(b) and all(n==m and alike(x, y) for (n, x), (m, y) in zip(a, b))


# Edits by hand: each returns a copy of the model

def zeroed(model, i, *names):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in decoder_layers(model)[i].named_parameters():
            if any(n.startswith(o) for o in names): p.zero_()
    return model


def own(model, i, part):
    "What the part is called in that layer"
    layer = decoder_layers(model)[i]
    return next(n for n, m in layer.named_children() if m is find_part(layer, part))


def skip_by_hand(model, i, part):
    names = dict(attention=[own(model, i, 'attention')+'.o_proj'], mlp=['mlp.down_proj'])
    return zeroed(model, i, *sum(names.values(), []) if part=='layer' else names[part])


def head_by_hand(model, i, head):
    model = copy.deepcopy(model)
    w = find_part(find_part(decoder_layers(model)[i], 'attention'), 'out').weight
    d = w.shape[1]//4
    with torch.no_grad(): w[:, head*d:(head+1)*d] = 0
    return model


def constant_by_hand(model, i, part):
    model = copy.deepcopy(model)
    layer = decoder_layers(model)[i]
    for m in (find_part(layer, 'attention'), find_part(layer, 'mlp')):
        if part!='layer' and m is not find_part(layer, part): continue
        for o in m.modules():
            if isinstance(o, torch.nn.Linear):
                torch.nn.init.constant_(o.weight, 1/o.in_features)
                if o.bias is not None: torch.nn.init.zeros_(o.bias)
    return model


def uniform_by_hand(model, i, head=None):
    "No score: the query projection gives zero"
    model = copy.deepcopy(model)
    q = find_part(decoder_layers(model)[i], 'attention').q_proj
    d = q.out_features//4
    rows = slice(None) if head is None else slice(head*d, (head+1)*d)
    with torch.no_grad():
        q.weight[rows] = 0
        if q.bias is not None: q.bias[rows] = 0
    return model


def spots(model):
    "A layer in the middle, and a cross-attention layer where there is one"
    return [2]+[i for i, l in enumerate(decoder_layers(model)) if hasattr(l, 'cross_attn')][:1]


@pytest.mark.parametrize('kind', KINDS)
def test_masks_equal_edits_by_hand(kind):
    model = vlm(kind)
    inputs = padded(model, kind)
    before, held = logits(model, inputs), state(model)
    assert before.isfinite().all()
    seen = inputs['attention_mask'].bool()
    for i in spots(model):
        hand = {(part, 'skip', None):skip_by_hand(model, i, part) for part in ('layer', 'attention', 'mlp')}
        hand |= {(part, 'zero', None):hand[part, 'skip', None] for part in ('attention', 'mlp')}
        hand |= {(part, 'constant', None):constant_by_hand(model, i, part)
                 for part in ('layer', 'attention', 'mlp')}
        hand |= {('head', way, 2):head_by_hand(model, i, 2) for way in ('skip', 'zero')}
        hand |= {('head', 'uniform', 2):uniform_by_hand(model, i, 2),
                 ('attention', 'uniform', None):uniform_by_hand(model, i),
                 ('mlp', 'uniform', None):hand['mlp', 'constant', None],
                 ('layer', 'uniform', None):constant_by_hand(uniform_by_hand(model, i), i, 'mlp')}
        for (part, how, head), edited in hand.items():
            with masked(model, i, part, how, heads=head): got = logits(model, inputs)
            wanted = logits(edited, inputs)
            assert got.isfinite().all()
            assert torch.allclose(got[seen], wanted[seen], **CLOSE), (i, part, how)
            assert not torch.allclose(got[seen], before[seen], **CLOSE), (i, part, how)
    assert same_state(held, state(model))
    assert torch.equal(before, logits(model, inputs))


@pytest.mark.parametrize('kind', KINDS)
def test_mean_is_what_a_part_adds_on_average(kind):
    "Read before and after by plain hooks; the stream itself tells what was added"
    model = vlm(kind)
    inputs = padded(model, kind)
    seen = inputs['attention_mask'].bool()
    found = means(model, [inputs])
    layers = decoder_layers(model)
    assert {k for k in found}=={(i, p) for i in range(len(layers)) for p in PARTS}
    for i in spots(model):
        def flow(part, **how):
            "The stream at the entry, between attention and MLP, and at the exit"
            at, hooks, layer = {}, [], layers[i]
            second = next(getattr(layer, n) for n in ('pre_feedforward_layernorm',
                                                      'post_attention_layernorm') if hasattr(layer, n))
            def middle(m, args): at['middle'] = args[0]
            def ends(m, args, kwargs, out):
                at['entry'], at['exit'] = args[0], out[0] if isinstance(out, tuple) else out
            hooks = [second.register_forward_pre_hook(middle),
                     layer.register_forward_hook(ends, with_kwargs=True)]
            try:
                if part:
                    with masked(model, i, part, 'mean', means=found, **how): logits(model, inputs)
                else: logits(model, inputs)
            finally:
                for h in hooks: h.remove()
            return {k:v[seen] for k, v in at.items()}
        plain = flow(None)
        gated = getattr(layers[i], 'cross_attn_attn_gate', torch.tensor(20.)).tanh()
        mean = (plain['exit']-plain['entry']).mean(0)
        assert torch.allclose(found[i, 'layer'], mean, **CLOSE)
        got = flow('layer')
        assert torch.allclose(got['exit']-got['entry'], mean.expand_as(got['exit']), **CLOSE)
        mean = (plain['middle']-plain['entry']).mean(0)
        assert torch.allclose(found[i, 'attention']*gated, mean, **CLOSE)
        got = flow('attention')
        assert torch.allclose(got['middle']-got['entry'], mean.expand_as(got['middle']), **CLOSE)
        if hasattr(layers[i], 'self_attn'):  # The words before a picture get nothing from a cross layer's MLP
            mean = (plain['exit']-plain['middle']).mean(0)
            assert torch.allclose(found[i, 'mlp'], mean, **CLOSE)
            got = flow('mlp')
            assert torch.allclose(got['exit']-got['middle'], mean.expand_as(got['exit']), **CLOSE)
            out = find_part(find_part(layers[i], 'attention'), 'out')
            with torch.no_grad(): total = out(found[i, 'head'].flatten())
            if stream_writer(layers[i], 'attention') is find_part(layers[i], 'attention'):
                assert torch.allclose(total, found[i, 'attention'], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
def test_weights_of_another_model(kind):
    "The parts of an LLM in the VLM, as if they had been copied in; mllama's layers by rank"
    model, llm = vlm(kind), made(llm_config(kind), 'AutoModelForCausalLM', 7)
    inputs = padded(model, kind)
    logits(model, inputs)                                # Qwen's models keep a number of the last pass
    held = state(model)
    cross = [hasattr(l, 'cross_attn') for l in decoder_layers(model)]
    i = len(cross)-1
    donor = decoder_layers(llm)[i-sum(cross)]
    for part in ('layer', 'attention', 'mlp'):
        edited = copy.deepcopy(model)
        layer = decoder_layers(edited)[i]
        into, source = (layer, donor) if part=='layer' else (find_part(layer, part), find_part(donor, part))
        into.load_state_dict(source.state_dict())
        with masked(model, i, part, 'weights', other=llm): got = logits(model, inputs)
        assert torch.equal(got, logits(edited, inputs)), part
    if any(cross):
        with pytest.raises(ValueError, match='cross-attention layer'), masked(model, cross.index(True),
            how='weights', other=llm):
            pass
        twin = vlm(kind, seed=9)                     # Another VLM of the family has partners for all layers
        with masked(model, '0-', how='weights', other=twin): got = logits(model, inputs)
        edited = copy.deepcopy(model)
        decoder_layers(edited).load_state_dict(decoder_layers(twin).state_dict())
        assert torch.equal(got, logits(edited, inputs))
    assert same_state(held, state(model))


@pytest.mark.parametrize('kind', KINDS)
def test_generation_goes_on_under_a_mask(kind):
    "With caches, also where layer 0, whose cache is asked for its length, is skipped"
    model = vlm(kind)
    inputs = padded(model, kind)
    def written(m):
        with torch.inference_mode():
            out = m.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False,
                             output_logits=True,
                             return_dict_in_generate=True)
        return torch.stack(out.logits, 1)
    plain = written(model)
    edits = {(0, 'layer', 'skip', None): lambda: skip_by_hand(model, 0, 'layer')}
    edits |= {(spots(model)[-1], 'attention', 'uniform', None): lambda: uniform_by_hand(model,
        spots(model)[-1]),
              (2, 'head', 'skip', 1): lambda: head_by_hand(model, 2, 1)}
    for (i, part, how, head), edit in edits.items():
        with masked(model, i, part, how, heads=head): got = written(model)
        wanted = written(edit())
        assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-3), (i, part, how)
        assert not torch.allclose(got, plain, atol=1e-4, rtol=1e-3)
    assert torch.equal(plain, written(model))


@pytest.mark.parametrize('kind', KINDS)
def test_rows_leave_the_others_bit_for_bit(kind):
    model = vlm(kind)
    inputs = padded(model, kind)
    plain, found = logits(model, inputs), means(model, [inputs])
    for mask in masks(model, PARTS, ('skip', 'zero', 'mean', 'uniform'), spots(model), heads=(1,)):
        with applied(model, mask, found, rows=None if not mask.rides else [1]): got = logits(model, inputs)
        with applied(model, mask, found): whole = logits(model, inputs)
        if mask.rides:
            assert torch.equal(got[0], plain[0]) and torch.equal(got[1], whole[1])
            with applied(model, mask, found, rows=slice(0, 1)), applied(model, mask, found, rows=slice(1, 2)):
                assert torch.equal(logits(model, inputs), whole)
        assert not torch.equal(whole, plain)


@pytest.mark.parametrize('kind', KINDS)
def test_implementations_agree(kind):
    "Eager attention reads its mask as numbers, sdpa as true or false, or has none"
    model, eager = vlm(kind), vlm(kind, how='eager')
    inputs, lone = padded(model, kind), ask_inputs(model, kind)
    seen = inputs['attention_mask'].bool()
    lone.pop('attention_mask')
    for i in spots(model):
        for how in (dict(part='attention'), dict(part='head', heads=(0, 3))):
            with masked(model, i, how='uniform', **how), masked(eager, i, how='uniform', **how):
                assert torch.allclose(logits(model, inputs)[seen], logits(eager, inputs)[seen], **CLOSE)
                assert torch.allclose(logits(model, lone), logits(eager, lone), **CLOSE)


def text_model(kind, how='sdpa', **more):
    from transformers import AutoConfig
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                 num_key_value_heads=2,
                 vocab_size=96, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
                 eos_token_id=2) | more
    return made(AutoConfig.for_model(kind, **small), 'AutoModelForCausalLM', 3, how)


OTHERS = dict(llama={}, phi3={}, olmo2={}, gemma2=dict(head_dim=8), glm4=dict(head_dim=8),
              granite=dict(residual_multiplier=.5),
              cohere={}, mixtral=dict(num_local_experts=4),
              qwen2_moe=dict(moe_intermediate_size=16, num_experts=4,
              shared_expert_intermediate_size=16),
              qwen3_next=dict(head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2,
              linear_key_head_dim=8, linear_value_head_dim=8, moe_intermediate_size=16, num_experts=4,
              num_experts_per_tok=2,
              shared_expert_intermediate_size=16))

@pytest.mark.parametrize('kind', OTHERS)
def test_language_models_of_other_kinds(kind):
    "Fused, parallel, post-normed, scaled, of experts, or without attention: an absent part adds nothing"
    model = text_model(kind, 'eager' if kind=='gemma2' else 'sdpa', **OTHERS[kind])
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    held, plain = state(model), logits(model, dict(input_ids=ids))
    found = means(model, [dict(input_ids=ids)])
    for i in (0, 3):
        with masked(model, i): nothing = logits(model, dict(input_ids=ids))
        with masked(model, i, 'attention'), masked(model, i, 'mlp'): got = logits(model, dict(input_ids=ids))
        assert torch.equal(nothing, got) and not torch.equal(nothing, plain)
        with masked(model, i, 'attention', 'mean', means=found), masked(model, i, 'mlp', 'zero'):
            logits(model, dict(input_ids=ids))
        if (i, 'head') in found:
            with masked(model, i, 'head', heads=(0, 1, 2, 3)): got = logits(model, dict(input_ids=ids))
            with masked(model, i, 'attention'):
                assert torch.allclose(got, logits(model, dict(input_ids=ids)), **CLOSE)
        else:
            with pytest.raises(ValueError, match='no heads before'), masked(model, i, 'head', heads=0): pass
            with pytest.raises(ValueError, match='cannot be made uniform'), masked(model, i, 'attention',
                'uniform'):
                logits(model, dict(input_ids=ids))
    assert same_state(held, state(model))


def test_sliding_windows():
    "Uniform over what a window leaves visible: the mean of the last values"
    for how in ('sdpa', 'eager'):
        model = text_model('mistral', how, sliding_window=3)
        ids, seen = torch.tensor([[1, 5, 6, 7, 8, 9, 10]]), {}
        def watch(function, module, q, k, v, *args, **kwargs):
            out = function(module, q, k, v, *args, **kwargs)
            seen.update(v=v.repeat_interleave(2, 1), out=out[0].transpose(1, 2))
            return out
        attention = decoder_layers(model)[1].self_attn
        with wrapped_attention(attention, watch), masked(model, 1, 'attention', 'uniform'):
            logits(model, dict(input_ids=ids))
        windows = torch.stack([seen['v'][:, :, max(0, t-2):t+1].mean(2) for t in range(7)], 2)
        assert torch.allclose(seen['out'], windows, atol=1e-5)


def test_flash_style_masks():
    "An implementation that gets a 2-d mask, or none, works unchanged: only its queries are zero"
    from transformers import AttentionInterface, AttentionMaskInterface
    shapes = []
    def packed_like(module, q, k, v, attention_mask, scaling=None, dropout=0., **kwargs):
        shapes.append(None if attention_mask is None else attention_mask.dim())
        n = q.shape[1]//k.shape[1]
        k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
        see = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2]-q.shape[2])
        if attention_mask is not None: see = see&attention_mask[:, None, None].bool()
        w = (q@k.mT*scaling).masked_fill(~see, -1e9).softmax(-1)
        return (w@v).transpose(1, 2), None
    AttentionInterface.register('packed_like', packed_like)
    AttentionMaskInterface.register('packed_like', lambda *args, attention_mask=None,
                                    **kwargs: attention_mask)
    model, other = text_model('llama', 'packed_like'), text_model('llama')
    inputs = dict(input_ids=torch.tensor([[1, 5, 6, 7], [0, 0, 1, 9]]),
                  attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]))
    with masked(model, '1-2', 'attention', 'uniform'), masked(other, '1-2', 'attention', 'uniform'):
        assert decoder_layers(model)[1].self_attn.config._attn_implementation.endswith('packed_like')
        a, b = logits(model, inputs), logits(other, inputs)
    assert torch.allclose(a[inputs['attention_mask'].bool()], b[inputs['attention_mask'].bool()], **CLOSE)
    assert set(shapes)=={2}


def test_masks_are_removed_whatever_happens():
    model = vlm('llava')
    inputs, held, found = padded(model, 'llava'), state(model), means(model, [padded(model, 'llava')])
    everything = masks(model, PARTS[:3], WAYS[:5], [1]) + masks(model, 'head', ('skip', 'uniform'), [1],
        heads=(0, 1))
    for mask in everything:
        with pytest.raises(ZeroDivisionError):
            with applied(model, mask, found):
                logits(model, inputs)
                1/0
        with pytest.raises(Exception):
            with applied(model, mask, found): model(input_ids=torch.tensor([[10**6]]))
    with pytest.raises(ValueError, match='nothing for'):          # The second of two layers does not fit
        with masked(model, (0, 1), how='mean', means={(0, 'layer'):found[0, 'layer']}): pass
    from contextlib import ExitStack
    with ExitStack() as stack:
        for mask in everything: stack.enter_context(applied(model, mask, found))
        logits(model, inputs)
    assert same_state(held, state(model))


def test_masks_compose():
    model = vlm('llava')
    inputs, found = padded(model, 'llava'), means(model, [padded(model, 'llava')])
    def under(*each):
        from contextlib import ExitStack
        with ExitStack() as stack:
            for mask in each: stack.enter_context(applied(model, mask, found, vlm('llava', 9)))
            return logits(model, inputs)
    two = under(Mask((1, 2), 'mlp'))
    assert torch.equal(two, under(Mask((1,), 'mlp'), Mask((2,), 'mlp')))
    for how in ('skip', 'mean', 'uniform'):
        both = under(Mask((1,), 'head', how, (0, 3)))
        assert torch.equal(both, under(Mask((1,), 'head', how, (0,)), Mask((1,), 'head', how, (3,))))
    assert torch.equal(under(Mask((1,), 'mlp', 'mean')),
                       under(Mask((1,), 'mlp', 'skip'), Mask((1,), 'mlp', 'mean')))
    assert torch.equal(under(Mask((1,), how='uniform')),
                       under(Mask((1,), 'attention', 'uniform'), Mask((1,), 'mlp', 'constant')))
    whole = under(Mask((1,), 'layer', 'weights'))
    assert torch.equal(whole, under(Mask((1,), 'layer', 'constant'), Mask((1,), 'layer', 'weights')))
    every = under(Mask((1,), 'head', 'uniform', (0, 1, 2, 3)))
    assert torch.equal(every, under(Mask((1,), 'attention', 'uniform')))


@pytest.mark.parametrize('kind', ['llava', 'gemma3', 'mllama'])
def test_gradients_flow_as_in_a_model_edited_by_hand(kind):
    model = vlm(kind)
    inputs = padded(model, kind)
    def gradient(m, mask=None):
        from contextlib import nullcontext
        m.zero_grad()
        with applied(m, mask) if mask else nullcontext(): loss = m(**inputs).logits.square().mean()
        loss.backward()                                           # Also behind the block
        return {n:p.grad for n, p in m.named_parameters() if p.grad is not None and 'embed_tokens' in n
                or '.layers.0.' in n}
    for mask, edited in ((Mask((1,)), skip_by_hand(model, 1, 'layer')),
                         (Mask((2,), 'attention', 'uniform'), uniform_by_hand(model, 2)),
                         (Mask((2,), 'head', 'skip', (1,)), head_by_hand(model, 2, 1)),
                         (Mask((2,), 'mlp', 'constant'), constant_by_hand(model, 2, 'mlp'))):
        got, wanted = gradient(model, mask), gradient(edited)
        assert any('embed' in n for n in got)
        for n, g in got.items():
            if g is not None: assert torch.allclose(g, wanted[n], atol=1e-5, rtol=1e-3), (mask, n)
    model.zero_grad()


def test_dtypes_modes_and_recorded_states():
    model = copy.deepcopy(vlm('gemma3')).bfloat16()
    inputs = padded(model, 'gemma3')
    inputs['pixel_values'] = inputs['pixel_values'].bfloat16()
    found = means(model, [inputs])
    assert all(v.dtype==torch.float32 for v in found.values())
    plain = logits(model, inputs)
    for mode in (model.eval, model.train):
        mode()
        for mask in masks(model, PARTS[:3], WAYS, [1]):
            with torch.inference_mode(), applied(model, mask, found, vlm('gemma3', 9)):
                got = model(**inputs).logits
            assert got.dtype==torch.bfloat16 and got.isfinite().all() and not torch.equal(got, plain)
            with applied(model, mask, found, vlm('gemma3', 9)), torch.inference_mode():
                assert torch.equal(model(**inputs).logits, got)
    model = vlm('llava')
    inputs = padded(model, 'llava')
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)  # From here on transformers has hooks of its own
        with masked(model, 1): states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[1], states[2]) and not torch.equal(states[2], states[3])


def test_what_does_not_fit_is_a_sentence():
    model = vlm('llava')
    class Own(torch.nn.Module):
        "Attention of its own code"
        def __init__(self, old): super().__init__(); self.o_proj, self.config = old.o_proj, old.config
        def forward(self, hidden_states, **kwargs): return self.o_proj(hidden_states), None
    strange = copy.deepcopy(model)
    decoder_layers(strange)[1].self_attn = Own(decoder_layers(strange)[1].self_attn)
    inputs = padded(model, 'llava')
    held = state(strange)
    with pytest.raises(ValueError, match='cannot be made uniform'), masked(strange, 1, 'attention',
        'uniform'):
        logits(strange, inputs)
    assert same_state(held, state(strange))
    with masked(strange, 1, 'head', heads=1): logits(strange, inputs)
    class Block(torch.nn.Module):
        "A layer whose parts are no modules"
        def forward(self, hidden_states, **kwargs): return hidden_states+1
    decoder_layers(strange)[2] = Block()
    for part in ('attention', 'mlp', 'head'):
        with pytest.raises(ValueError, match='Mask the whole layer'), masked(strange, 2, part,
            heads=0 if part=='head' else None):
            pass
    with masked(strange, 2): skipped = logits(strange, inputs)
    assert not torch.equal(skipped, logits(strange, inputs))
    big = text_model('llama', hidden_size=64)
    for words, call in {'different sizes of model. Pass':lambda: masked(model, 1, how='weights', other=big),
                        'self-attention layers':lambda: masked(model, 1, how='weights',
                            other=text_model('llama', num_hidden_layers=2)),
                        'has no self_attn.q_proj':lambda: masked(model, 1, how='weights',
                            other=text_model('phi3')),
                        'within the heads 0-3':lambda: masked(model, 1, 'head', heads=4),
                        'within the layers 0-3':lambda: masked(model, 4),
                        'all rows of a batch':lambda: masked(model, 1, 'mlp', 'uniform', rows=[0]),
                        'needs `other`':lambda: masked(model, 1, how='weights'),
                        'whole numbers':lambda: masked(model, -1),
                        'heads share some':lambda: masked(model, 1, 'head', 'constant', heads=1),
                        'at least one':lambda: masked(model, []),
                        'stack of 4':lambda: masked(text_model('mixtral', **OTHERS['mixtral']), 1, 'mlp',
                                                    'constant')}.items():
        with pytest.raises(ValueError, match=words), call(): pass
    quantised = copy.deepcopy(model)
    linear = decoder_layers(quantised)[1].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.data.char(), requires_grad=False)
    with pytest.raises(ValueError, match='mlp.up_proj.weight cannot be replaced'), masked(quantised, 1, 'mlp',
        'constant'):
        pass
    with torch.device('meta'): linear.weight = torch.nn.Parameter(torch.empty(64, 32))
    with pytest.raises(ValueError, match='cannot be replaced'), masked(model, 1, 'mlp', 'weights',
        other=quantised):
        pass
    with pytest.raises(ValueError, match='no batch'): means(model, [])
    with pytest.raises(ValueError, match='as the processor makes them'):
        means(model, [ask_inputs(model, 'llava')|dict(attention_mask=torch.ones(1, 1, 9, 9))])


def test_a_tied_matrix_changes_only_where_it_is_masked():
    model = copy.deepcopy(vlm('llava'))
    layers = decoder_layers(model)
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    inputs = padded(model, 'llava')
    with masked(model, 1, 'mlp', 'constant'):
        got = logits(model, inputs)
        assert layers[2].mlp.up_proj.weight is not layers[1].mlp.up_proj.weight
    assert torch.equal(got, logits(constant_by_hand(untie(model), 1, 'mlp'), inputs))
    assert layers[2].mlp.up_proj.weight is layers[1].mlp.up_proj.weight


def untie(model):
    model = copy.deepcopy(model)
    up = decoder_layers(model)[2].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.detach().clone())
    return model


# Reads

@pytest.mark.parametrize('kind', KINDS)
def test_reads_add_up(kind):
    "Parts sum to layers, lenses end in the model's own words, shares are what eager attention weights say"
    from vlm_merging.probing.lens import (attention_mass, logit_lens, patched,
                                          read_states, residual_norms)
    model, eager = vlm(kind), vlm(kind, how='eager')
    inputs = padded(model, kind)
    plain, picture, seen = logits(model, inputs), image_positions(model,
        inputs), inputs['attention_mask'].bool()
    held = state(model)
    assert torch.equal(picture.sum(1), torch.full((2,), KINDS[kind].tokens))
    lens = logit_lens(model, inputs, [[5, 6], [7, 8]])
    for r in lens.filter(layer=len(decoder_layers(model))-1).iter_rows(named=True):
        own = plain[r['row'], -1].log_softmax(-1)
        assert abs(own[r['token']]-r['logprob'])<1e-4 and r['rank']==int((own>own[r['token']]).sum())+1
    stream, parts = read_states(model, inputs), [read_states(model, inputs, part=p)
                                                 for p in ('attention', 'mlp')]
    for i, layer in enumerate(decoder_layers(model)):
        gates = [getattr(layer, f'cross_attn_{n}_gate', torch.tensor(20.)).tanh() for n in ('attn', 'mlp')]
        if i and not (kind=='qwen3_vl' and i<=2):  # Deepstack adds between its first layers
            step = stream[i]-stream[i-1]
            got = gates[0]*parts[0][i]+gates[1]*parts[1][i]
            at = seen.clone()
            if hasattr(layer, 'cross_attn'): at &= picture.int().cumsum(1).bool()
            assert torch.allclose(step[at], got[at], atol=5e-5, rtol=1e-3), i
    norms = residual_norms(model, inputs)
    for i in range(1, len(decoder_layers(model))):
        for what, h in (('whole', stream[i]-stream[i-1]), ('stream', stream[i-1])):
            if kind=='qwen3_vl' and i<=2: continue
            for name, at in (('text', seen&~picture), ('image', seen&picture)):
                r = norms.filter(layer=i, what=what, kind=name).row(0, named=True)
                assert abs(r['norm']-float(h[at].norm(dim=-1).mean()))<1e-3 and r['n']==int(at.sum())
    for of in ('last', 'text'):
        mass = attention_mass(model, inputs, of, by_head=True)
        caught = {}
        def catch(i):
            def do(function, module, *args, **kwargs):
                out = function(module, *args, **kwargs)
                caught[i] = out[1]
                return out
            return do
        from contextlib import ExitStack
        with ExitStack() as stack:
            for i, layer in enumerate(decoder_layers(eager)):
                stack.enter_context(wrapped_attention(find_part(layer, 'attention'), catch(i)))
            logits(eager, inputs)
        at = seen&~picture
        if of=='last': at = torch.zeros_like(at); at[:, -1] = True
        for i, layer in enumerate(decoder_layers(model)):
            cross = hasattr(layer, 'cross_attn')
            weights = caught[i].transpose(1, 2)                                # (batch, query, head, key)
            share = weights.sum(-1) if cross else (weights*picture[:, None, None]).sum(-1)
            rows = mass.filter(layer=i)
            assert rows['looks_at'].unique().to_list()==['picture' if cross else 'tokens']
            assert torch.allclose(torch.tensor(rows['mass'].to_list()), share[at].mean(0), atol=1e-5)
        assert mass['even'].is_between(0, 1.00001).all()
    with patched(model, 2, stream): assert torch.allclose(logits(model, inputs), plain, **CLOSE)
    last = len(decoder_layers(model))-1
    with patched(model, last, torch.ones_like(stream[last])):
        assert torch.allclose(logits(model, inputs)[0, 0], logits(model, inputs)[1, 5])
    with patched(model, 2, {2:stream[2]+1}, positions=[-1]): got = logits(model, inputs)
    assert kind=='paligemma' or torch.equal(got[:, :-1], plain[:, :-1])         # Its prompt looks both ways
    assert not torch.equal(got[:, -1], plain[:, -1])
    assert same_state(held, state(model))


def test_patches_of_parts_and_their_refusals():
    from vlm_merging.probing.lens import attention_mass, logit_lens, patched, read_states
    model, donor = vlm('llava'), text_model('llama', vocab_size=104)
    inputs = padded(model, 'llava')
    words = dict(input_ids=torch.where(inputs['input_ids']==96, 9, inputs['input_ids']),
                 attention_mask=inputs['attention_mask'])
    theirs = read_states(donor, words, 2, 'mlp')
    with patched(model, 2, theirs, 'mlp'), masked(donor, 2, 'mlp', 'skip'):
        got = read_states(model, inputs, 2, 'mlp')[2]
    assert torch.equal(got, theirs[2])
    with patched(model, 1, {1:torch.zeros_like(theirs[2])}, 'attention'): got = logits(model, inputs)
    with masked(model, 1, 'attention'): assert torch.allclose(got, logits(model, inputs), **CLOSE)
    with masked(model, 3, 'attention', 'uniform'):
        assert torch.equal(*[torch.tensor(attention_mass(model, inputs)[c][3]) for c in ('mass', 'even')])
    # The prompt is patched, the steps go on
    with torch.no_grad(), patched(model, 1, read_states(model, inputs, 1)):
        got = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(got, model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False))
    right = dict(input_ids=inputs['input_ids'].flip(0)[:, 3:],
                 attention_mask=torch.tensor([[1]*9, [1]*7+[0]*2]))
    # Padded on the right, the last is the seventh
    right['input_ids'] = torch.where(right['input_ids']==96, 9, right['input_ids'])
    out = logits(model, right).log_softmax(-1)
    assert abs(logit_lens(model, right, [5]).filter(layer=3, row=1)['logprob'][0]-float(out[1, 6, 5]))<1e-4
    for match, call in {'no states of layer 3':lambda: patched(model, 3, theirs),
                        "No part 'head'":lambda: patched(model, 2, theirs, 'head')}.items():
        with pytest.raises(ValueError, match=match), call(): pass
    with pytest.raises(ValueError, match='as many rows'), patched(model, 2, {2:theirs[2][:, :4]}):
        logits(model, inputs)
    with pytest.raises(ValueError, match='does more behind'):
        logit_lens(text_model('granite', logits_scaling=8.), dict(input_ids=words['input_ids']%96), [5])
    with pytest.raises(ValueError, match='There are: last, text'): attention_mass(model, inputs, 'first')
