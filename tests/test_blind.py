"Blind layers: no word looks at the picture, in the prompt or while a reply is written; masks made by hand"
import copy
from contextlib import ExitStack

import pytest, torch
from transformers import DynamicCache

from test_probes import CLOSE, logits, padded, same_state, state, text_model, vlm
from vlm_merging.cli.main import main
from vlm_merging.comparing.layer_findings import plateau_said
from vlm_merging.lab.tiny import KINDS, ask_inputs
from vlm_merging.probing.layers import decoder_layers, picture_ids
from vlm_merging.probing.masks import Mask, applied, masked, masks
from vlm_merging.probing.probe import refuse_idle_parts
from vlm_merging.probing.replay import teacher_forced

LOOKS = [k for k in KINDS if k!='mllama']       # Its words look across at the picture


def test_parts_are_not_named_in_vain(capsys, tmp_path):
    "Blind is a way of whole layers"
    words = ['profile', 'lab/vlm', '--benchmark', 'lab', '--out', str(tmp_path/'p'), '--parts', 'mlp']
    assert main([*words, '--how', 'blind'])==3
    assert '--parts is mlp, and the way blind takes whole layers' in capsys.readouterr().err
    refuse_idle_parts(('mlp',), ('blind', 'skip'))
    refuse_idle_parts('layer', 'blind')

def test_a_picture_that_is_needed_to_the_end_is_told_so():
    row = dict(where='where', measure='answer', loss=.02, needed=1, start=None, last=1)
    assert 'needed up to the last layer' in plateau_said(row)
    assert 'cannot be told' in plateau_said(row|dict(last=2))

def hidden_by_hand(model, kind, inputs, first):
    "Logits where a mask of numbers, written cell by cell, replaces that of each layer from `first` on"
    picture = (inputs['input_ids']==KINDS[kind].image).tolist()
    def given_mask(layer, args, given):
        mask = given['attention_mask'].clone()
        mask = mask.expand(len(picture), *mask.shape[1:]).clone()
        for r, row in enumerate(picture):
            for q in range(len(row)):
                for k in range(len(row)):
                    if row[k] and not row[q]: mask[r, 0, q, k] = torch.finfo(mask.dtype).min
        return args, given|dict(attention_mask=mask)
    with ExitStack() as stack:
        for layer in decoder_layers(model)[first:]:
            stack.callback(layer.register_forward_pre_hook(given_mask, with_kwargs=True).remove)
        return logits(model, inputs)


@pytest.mark.parametrize('kind', LOOKS)
def test_blind_equals_a_mask_made_by_hand(kind):
    eager, sdpa = vlm(kind, how='eager'), vlm(kind)
    for inputs in (ask_inputs(eager, kind), padded(eager, kind)):
        inputs.setdefault('attention_mask', torch.ones_like(inputs['input_ids']))
        seen = inputs['attention_mask'].bool()
        for first in (0, 2, 3):
            wanted = hidden_by_hand(eager, kind, inputs, first)[seen]
            for model in (eager, sdpa):
                logits(model, inputs)                   # Qwen notes its positions
                before = state(model)
                with masked(model, f'{first}-', how='blind'): got = logits(model, inputs)[seen]
                assert torch.allclose(got, wanted, **CLOSE), (kind, first)
                assert same_state(before, state(model))
            assert not torch.allclose(wanted, logits(eager, inputs)[seen], **CLOSE)


def written(model, inputs):
    "Four tokens, none of which asks for a picture"
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                             suppress_tokens=picture_ids(model), output_logits=True,
                             return_dict_in_generate=True)
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize('kind', KINDS)
def test_blind_from_the_first_layer_the_picture_changes_nothing(kind):
    "Neither in the prompt nor while a reply is written; and without the mask it does"
    model = vlm(kind)
    one, two = (ask_inputs(model, kind, seed=s) for s in (0, 1))
    assert not torch.allclose(written(model, one)[1], written(model, two)[1], **CLOSE)
    with masked(model, '0-', how='blind'):
        (said, at_one), (same, at_two) = written(model, one), written(model, two)
    assert torch.equal(said, same) and torch.equal(at_one, at_two)
    assert 'pictures' not in vars(model)


@pytest.mark.parametrize('kind', KINDS)
def test_words_that_are_written_are_blind_too(kind):
    "With a cache, token by token, the same numbers as when the whole is read again for each"
    model = vlm(kind)
    inputs = padded(model, kind)
    for first in (0, 2):
        with masked(model, f'{first}-', how='blind'):
            said, cached = written(model, inputs)
            full = teacher_forced(model, inputs, said[:, inputs['input_ids'].shape[1]:].tolist())
            again = logits(model, full)[:, -5:-1]
        assert torch.allclose(cached, again, atol=1e-4, rtol=1e-3)


def test_a_window_of_blind_layers_and_what_a_sweep_of_them_is():
    model, kind = vlm('llava'), 'llava'
    inputs = ask_inputs(model, kind)
    found = masks(model, ('layer', 'mlp'), ('skip', 'blind'))
    assert [m.where for m in found if m.how=='blind']==['0-3', '1-3', '2-3', '3']
    assert len(found)==4*3
    with masked(model, 1, how='blind'), masked(model, '2-', how='blind'): nested = logits(model, inputs)
    with masked(model, '1-', how='blind'): assert torch.equal(nested, logits(model, inputs))
    with masked(model, 1, how='blind'): assert not torch.allclose(nested, logits(model, inputs), **CLOSE)
    with applied(model, Mask(range(4), how='blind'), rows=[0]):
        both = logits(model, padded(model, kind))
    assert torch.equal(both[1], logits(model, padded(model, kind))[1])


def test_words_without_a_picture_are_as_they_were():
    model, ids = vlm('llava'), torch.tensor([[1, 5, 6, 7]])
    with masked(model, '0-', how='blind'): got = logits(model, dict(input_ids=ids))
    assert torch.allclose(got, logits(model, dict(input_ids=ids)), **CLOSE)


def test_what_cannot_be_blind_is_a_sentence():
    model = vlm('llava')
    inputs = ask_inputs(model, 'llava')
    def refused(match, model=model, **how): return pytest.raises(ValueError, match=match)
    with refused('does not say which of its tokens'), masked(text_model('llama'), '0-', how='blind'): pass
    with refused('for whole layers'), masked(model, 0, 'mlp', 'blind'): pass
    with refused('not within'), masked(model, '4-', how='blind'): pass  # Beyond the last nothing is masked
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad(): model(**inputs, past_key_values=cache, use_cache=True)
    with refused('filled before the mask'), masked(model, '0-', how='blind'):
        logits(model, dict(input_ids=torch.tensor([[7]]), past_key_values=cache))
    with masked(model, '0-', how='blind'):
        with refused('through its own forward'), torch.no_grad():
            model.get_decoder()(input_ids=torch.tensor([[5, 6]]))
        wrong = inputs|dict(input_ids=torch.full_like(inputs['input_ids'], 5))
        with refused('none of its tokens is marked'): logits(model, wrong)
    recurrent = copy.deepcopy(model)                             # Others use this model too
    decoder_layers(recurrent)[1].linear_attn = decoder_layers(recurrent)[1].self_attn
    del decoder_layers(recurrent)[1].self_attn
    with refused('layer 1 of .* is recurrent'), masked(recurrent, '0-', how='blind'): pass
    with masked(recurrent, '2-', how='blind'): pass
