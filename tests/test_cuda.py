"The GPU gives what the CPU gives"
import pytest, torch
from safetensors.torch import load_file
from vlm_merging.merging.merge import merge
from vlm_merging.merging.methods import METHODS
from vlm_merging.merging.recipe import Recipe
from vlm_merging.lab.tiny import make_trio

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device on this machine')

@pytest.fixture(scope='module')
def trio(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('trio')/'llava')

@pytest.mark.parametrize('method', METHODS)
def test_same_result_on_both_devices(trio, tmp_path, method):
    recipe = Recipe(*trio, method)
    a, b = (load_file(merge(recipe, out=tmp_path/d, device=d)/'model.safetensors') for d in ('cpu', 'cuda'))
    for name in a:      # a fused multiply-add may round the last bit of bfloat16 the other way
        torch.testing.assert_close(b[name], a[name], rtol=2**-7, atol=1e-6)

def test_masks_cost_the_same_on_both_devices():
    from vlm_merging.lab.trio import lab_folder
    from vlm_merging.asking.opening import open_model
    from vlm_merging.probing.masks import masks
    from vlm_merging.probing.probe import profile_rows
    from vlm_merging.benchmarks.load import load
    items, made = load('lab', n=14, split='dev'), {}
    for device in ('cpu', 'cuda'):
        asker = open_model(lab_folder()/'vlm', dtype='float32', device=device, batch_size=7,
                           max_new_tokens=12)
        made[device] = profile_rows(asker, items,
                                    masks(asker.model, ('layer', 'mlp', 'attention'),
                                          ('skip', 'uniform', 'mean'), '1-3'),
                                    measures=('likelihood', 'answer'))
    a, b = made.values()
    assert a['after'].is_not_null().all() and (a['after']-b['after']).abs().max()<.01
    assert (a['before']-b['before']).abs().max()<.01

def test_a_merge_in_the_memory_of_the_gpu_is_that_of_the_disk(tmp_path):
    from vlm_merging.lab.trio import lab_folder
    from vlm_merging.probing.mixing import Mixer
    from vlm_merging.asking.opening import open_model
    lab = lab_folder()
    mixer = Mixer(open_model(lab/'vlm', device='cuda', dtype='float32'), Recipe(lab/'vlm', lab/'llm'))
    mixed = mixer.mix(knobs={'weight': .4}).model
    there = open_model(merge(Recipe(lab/'vlm', lab/'llm', knobs={'weight': .4}), out=tmp_path/'out',
                             device='cuda'), device='cuda', dtype='float32').model
    for (name, x), y in zip(mixed.named_parameters(), there.parameters(), strict=True):
        assert torch.equal(x, y), name
