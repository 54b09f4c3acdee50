"""``rank_product`` as PyTorch sees it; see :mod:`mmfast.ops.fused`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import fused
from mmfast.ops.fused import Options


def _check(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> None:
    (weighted,) = options
    factors = tensors[:-1] if weighted else tensors
    fused.check_tensors("factors", factors, row_dims=2)
    *batch, ranks, _ = factors[0].shape
    if weighted:
        weights = tensors[-1]
        fused.check_floating("weights", weights)
        fused.check_like("weights", weights, "factors[0]", factors[0])
        if tuple(weights.shape) != (ranks,):
            raise ValueError(
                f"weights has shape {tuple(weights.shape)}; it must be {(ranks,)}, one per rank of "
                "the factors"
            )
    fused.check_present(present, batch, len(factors), factors[0].device)


def _arguments(
    tensors: Sequence[Tensor], present: Tensor | None, options: Options
) -> tuple[Any, ...]:
    (weighted,) = options
    return list(tensors[:-1] if weighted else tensors), tensors[-1] if weighted else None, present


def _parts(
    factors: Sequence[Tensor], weights: Tensor | None, present: Tensor | None
) -> tuple[list[Tensor], Tensor | None, Options]:
    tensors = list(factors) if weights is None else [*factors, weights]
    return tensors, present, (weights is not None,)


def _formula(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> Tensor:
    (weighted,) = options
    dtype = tensors[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    product = None
    for m, x in enumerate(tensors[:-1] if weighted else tensors):
        factor = fused.silenced(x.to(wide), fused.there(present, m, dims=2), 1)
        product = factor if product is None else product * factor
    assert product is not None
    if weighted:
        product = product * tensors[-1].to(wide)[:, None]
    return product.sum(-2).to(dtype)


operator = fused.Fused("rank_product", _check, _arguments, _parts, _formula)
