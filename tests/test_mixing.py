"A merge in memory has the bytes of a merge on disk, in every family and by every method"
import pytest
import torch

from vlm_merging.merging.merge import merge
from vlm_merging.merging.methods import METHODS
from vlm_merging.probing.mixing import Mixer
from vlm_merging.asking.models import LocalModel
from vlm_merging.merging.recipe import Recipe
from vlm_merging.lab.tiny import KINDS, make_trio

def opened(folder):
    from transformers import AutoModelForImageTextToText
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

def mixer_of(trio, method='linear'):
    recipe = Recipe(trio.vlm, trio.llm, trio.base, method=method)
    return Mixer(LocalModel(opened(trio.vlm), None, 'pico'), recipe), recipe

def assert_same(model, folder):
    there = dict(opened(folder).named_parameters())
    for n, p in model.named_parameters(): assert torch.equal(p, there[n]), n

@pytest.mark.parametrize('kind', KINDS)
def test_every_family(kind, tmp_path):
    trio = make_trio(kind, tmp_path/'trio')
    mixer, recipe = mixer_of(trio)
    how = dict(knobs={'weight': .3}, layers='1-2', embeddings=True)
    out = merge(Recipe(trio.vlm, trio.llm, trio.base, **how), out=tmp_path/'out')
    assert_same(mixer.mix(**how).model, out)
    assert_same(mixer.restore().model, trio.vlm)

@pytest.mark.parametrize('method', METHODS)
def test_every_method(method, tmp_path):
    trio = make_trio('llava', tmp_path/'trio')
    mixer, recipe = mixer_of(trio, method)
    mixer.mix(seed=3)                                   # What was mixed before leaves no trace
    out = merge(recipe, out=tmp_path/'out')
    assert_same(mixer.mix().model, out)

def test_another_model_is_refused(tmp_path):
    a, b = (make_trio('llava', tmp_path/n, seed=i) for i, n in enumerate('ab'))
    with pytest.raises(LookupError, match='not the model of the recipe'):
        Mixer(LocalModel(opened(a.vlm), None, 'pico'), Recipe(b.vlm, b.llm))
