"""The CUDA operators over rows, entries and kernels, run on the host: the suites of the CPU's.

What differs on a GPU is left out: tanh of bfloat16, rounding and quick division in 16 bits are
instructions there.
"""

import cuda_on_host
import pytest
import reference
import torch
from fused_cases import VARIANTS, Size, draw_present, run

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
    test_particular_gradients_are_guarded,
)
from ops.test_merge_attention import test_merge, test_merge_special_values  # noqa: E402, F401

pytestmark = pytest.mark.on_host

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


@pytest.mark.parametrize("overload", ["default", "no_autograd", "backward"])
@pytest.mark.parametrize(
    ("operator", "at", "value", "message"),
    [case for case in guards.DIRECT if "on meta" not in case[-1]],  # fake kernels refuse those
    ids=str,
)
def test_entries_guard_themselves(operator, at, value, message, overload):
    guards.test_operators_guard_themselves(operator, at, value, message, overload)


# Rows of aligned packets, which have kernels of their own; heads that a warp keeps in registers,
# one packet or four to a lane, and those that it does not; more inputs than a kernel's arguments.
ALIGNED = {
    "narrow": Size((300,), 3, 64, 2),
    "kept": Size((20,), 3, 768, 2),
    "block per row": Size((3,), 2, 2048, 2),
    "many inputs": Size((20,), 48, 32, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", ALIGNED)
@pytest.mark.parametrize("name", VARIANTS)
def test_aligned_rows(name, size, dtype):
    """Judged as in test_numbers: gradients of one shape together, over several draws."""
    variant, size = VARIANTS[name], ALIGNED[size]
    rules = {}
    for _ in range(3):
        tensors = [x.to(dtype) for x in variant.draw(size)]
        present = draw_present(size)
        grads = [torch.randn(y.shape).to(dtype) for y in run(variant.exact, tensors, present)]
        found = run(variant.call, tensors, present, grads)
        eager = run(variant.eager, tensors, present, grads)
        exact = run(variant.exact, tensors, present, grads, torch.float64)
        kinds = [(2, f"result {i}") for i in range(len(grads))]
        kinds += [(3, f"gradient, {tuple(x.shape)}") for x in tensors]
        for kind, f, e, x in zip(kinds, found, eager, exact, strict=True):
            rules.setdefault(kind, reference.ErrorRule(dtype)).add(f, x, e, x)
    for (factor, what), rule in rules.items():
        rule.check(factor, what)


@pytest.fixture
def isa():
    return host.cpu_isa()
