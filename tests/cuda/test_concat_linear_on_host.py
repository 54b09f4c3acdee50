"""concat_linear for CUDA, entries and kernels, run on the host: the suites of the CPU's.

Twice: as on a Hopper GPU (TMA and wgmma), and as on one of compute capability 8.0 (mma.sync). The
instructions are acted out (``on_host/gemm_ptx_on_host.h``); everything else is what runs on a GPU.
"""

import ctypes

import cuda_on_host
import pytest
import torch

from mmfast.ops import concat_linear
from mmfast.ops.library import host

pytest.register_assert_rewrite("ops.test_concat_linear", "ops.test_concat_linear_index")

from ops.test_concat_linear import (  # noqa: E402, F401
    check_numbers,
    test_16_bit_gradients_are_summed_in_float32,
    test_a_weight_of_no_interest_is_not_read,
    test_activations,
    test_bfloat16_error_does_not_grow_with_the_inputs,
    test_deterministic,
    test_exact,
    test_expanded_and_broadcasting,
    test_expanded_like_broadcast,
    test_float64,
    test_numbers,
    test_special_values,
    test_stride_0_gradient,
    test_strides,
    test_weight_rows_that_share_memory,
    test_without_bias,
)
from ops.test_concat_linear_index import (  # noqa: E402, F401
    test_exact as test_index_exact,
)

pytestmark = pytest.mark.on_host

GPUS = {"hopper": (9, 0, 3), "ampere": (8, 0, 2)}


@pytest.fixture(scope="module", params=GPUS, autouse=True)
def gpu(request):
    """Calls go to what was made for CUDA, on a small GPU of this kind."""
    ops = cuda_on_host.load()
    library = ctypes.CDLL(str(cuda_on_host.BUILD / "mmfast_on_host.so"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concat_linear, "eager", ops.concat_linear.no_autograd)
        patch.setattr(concat_linear, "_plain", ops.concat_linear_plain.default)
        patch.setattr(concat_linear, "backward", ops.concat_linear_backward.default)
        library.mmfast_pretend_gpu(*GPUS[request.param])
        yield request.param
        library.mmfast_pretend_gpu(9, 0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_kernel(gpu, dtype):
    """Each tile size of each product, forward and backward, whole and with K split."""
    library = ctypes.CDLL(str(cuda_on_host.BUILD / "mmfast_on_host.so"))
    library.mmfast_forget_products()
    for multiprocessors in (1, 16):
        library.mmfast_pretend_gpu(*GPUS[gpu][:2], multiprocessors)
        for width, cols in [(64, 64), (128, 128), (256, 256)]:
            shapes = [(140, width), (140, width), (140, width + 64)]
            check_numbers(shapes, cols, dtype, "relu")
    library.mmfast_pretend_gpu(*GPUS[gpu])
    tile_sizes = 3 if gpu == "hopper" else 2
    assert library.mmfast_products_run() == 3 * tile_sizes


@pytest.fixture
def isa():
    return host.cpu_isa()
