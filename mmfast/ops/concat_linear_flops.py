"""What ``concat_linear`` counts as under ``torch.utils.flop_counter.FlopCounterMode``.

The products that are computed, as of PyTorch's own layers: an input that broadcasts is multiplied
once per row that it has, one that an index picks from too, unless the index has fewer than twice as
many entries: then once per entry. The counter sees shapes, so what ``expand`` repeats counts in
full. Bias and activation do not count.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from mmfast.ops import concat_linear  # noqa: F401  registers the operators

Shape = Sequence[int]


def _products(
    inputs: Sequence[Shape], weight: Shape, index: Sequence[Shape], indexed: Sequence[int]
) -> list[int]:
    """Of each input with its part of the weight."""
    rows = [prod(x[:-1]) for x in inputs]
    for i, shape in zip(indexed, index, strict=True):
        if rows[i] > prod(shape) // 2:  # Source::gathered_first of csrc/cpu/concat_linear_source.h
            rows[i] = prod(shape)
    return [2 * m * x[-1] * weight[0] for m, x in zip(rows, inputs, strict=True)]


@register_flop_formula(torch.ops.mmfast.concat_linear)
def _concat_linear(
    inputs: Sequence[Shape],
    weight: Shape,
    bias: Shape | None,
    index: Sequence[Shape],
    indexed: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return sum(_products(inputs, weight, index, indexed))


@register_flop_formula(torch.ops.mmfast.concat_linear_plain)
def _concat_linear_plain(inputs: Sequence[Shape], weight: Shape, *_: Any, **__: Any) -> int:
    return sum(_products(inputs, weight, (), ()))


@register_flop_formula(torch.ops.mmfast.concat_linear_backward)
def _concat_linear_backward(
    grad: Shape,
    inputs: Sequence[Shape],
    weight: Shape,
    saved: Shape,
    index: Sequence[Shape],
    indexed: Sequence[int],
    activation: str,
    wanted: Sequence[int],
    **_: Any,
) -> int:
    products = _products(inputs, weight, index, indexed)
    of_inputs = sum(work for i, work in enumerate(products) if i in wanted)
    return of_inputs + (sum(products) if len(inputs) in wanted else 0)
