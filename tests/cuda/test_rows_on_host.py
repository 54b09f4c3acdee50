"""The CUDA operators over rows, entries and kernels, run on the host: the suites of the CPU's.

What differs on a GPU is left out: tanh of bfloat16, rounding and quick division in 16 bits are
instructions there.
"""

import cuda_on_host
import pytest

from mmfast.ops import (
    attention_pool,
    gated_sum,
    multi_source_attention,
    rank_product,
    weighted_sum,
)
from mmfast.ops.library import host

pytest.register_assert_rewrite(
    "ops.test_fused", "ops.test_fused_guards", "ops.test_merge_attention"
)

from ops import test_fused_guards as guards  # noqa: E402
from ops.test_fused import (  # noqa: E402, F401
    test_16_bit_sums_over_rows_are_float32,
    test_broadcasting,
    test_expanded,
    test_float64,
    test_gates_and_row_weights_broadcast,
    test_infinite_inputs_spread_to_their_own_weights_only,
    test_large_logits,
    test_no_ranks,
    test_numbers,
    test_stride_0_gradient,
    test_strides,
    test_temperature,
)
from ops.test_fused_guards import (  # noqa: E402, F401
    test_any_number_of_heads_of_no_features_ends,
    test_backward_operators_guard_themselves,
    test_operators_guard_themselves,
    test_particular_gradients_are_guarded,
)
from ops.test_merge_attention import test_merge, test_merge_special_values  # noqa: E402, F401

OPERATORS = (attention_pool, gated_sum, rank_product, weighted_sum)


@pytest.fixture(scope="module", autouse=True)
def on_host():
    """Every operator calls what was made for CUDA."""
    ops = cuda_on_host.load()
    with pytest.MonkeyPatch.context() as patch:
        for module in OPERATORS:
            operator, name = module.operator, module.operator.name
            eager = getattr(ops, name).no_autograd
            backward = getattr(ops, f"{name}_backward").default
            patch.setitem(operator.__dict__, "eager", eager)
            patch.setitem(operator.__dict__, "backward", backward)
        patch.setattr(multi_source_attention, "merge", ops.merge_attention.default)
        patch.setattr(guards, "OPS", ops)
        yield ops


@pytest.fixture
def isa():
    return host.cpu_isa()
