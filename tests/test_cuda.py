"The GPU gives what the CPU gives"
import pytest, torch
from safetensors.torch import load_file
from vlm_merging.merge import merge
from vlm_merging.methods import METHODS
from vlm_merging.recipe import Recipe
from vlm_merging.tiny import make_trio

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device on this machine')

@pytest.fixture(scope='module')
def trio(tmp_path_factory): return make_trio('llava', tmp_path_factory.mktemp('trio')/'llava')

@pytest.mark.parametrize('method', METHODS)
def test_same_result_on_both_devices(trio, tmp_path, method):
    recipe = Recipe(*trio, method)
    a, b = (load_file(merge(recipe, tmp_path/d, device=d)/'model.safetensors') for d in ('cpu', 'cuda'))
    for name in a:      # a fused multiply-add may round the last bit of bfloat16 the other way
        torch.testing.assert_close(b[name], a[name], rtol=2**-7, atol=1e-6)
