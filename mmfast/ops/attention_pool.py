"""``attention_pool`` as PyTorch sees it; see :mod:`mmfast.ops.fused`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import fused
from mmfast.ops.fused import Options


def _check(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> None:
    *inputs, query = tensors
    num_heads, _ = options
    fused.check_tensors("inputs", inputs)
    fused.check_floating("query", query)
    fused.check_like("query", query, "inputs[0]", inputs[0])
    cols = inputs[0].shape[-1]
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"num_heads must be an int, got {type(num_heads).__name__}")
    if num_heads < 1 or cols % num_heads:
        raise ValueError(
            f"num_heads is {num_heads}; it must divide the features of the inputs, {cols}"
        )
    if not any(fused.same_shape(query.shape, s) for s in ((cols,), inputs[0].shape)):
        raise ValueError(
            f"query has shape {tuple(query.shape)}; it must be {(cols,)}, one for all, or "
            f"{tuple(inputs[0].shape)}, one per row"
        )
    fused.check_present(present, inputs[0].shape[:-1], len(inputs), query.device)


def _arguments(
    tensors: Sequence[Tensor], present: Tensor | None, options: Options
) -> tuple[Any, ...]:
    return list(tensors[:-1]), tensors[-1], present, *options


def _parts(
    inputs: Sequence[Tensor], query: Tensor, present: Tensor | None, num_heads: int, scale: float
) -> tuple[list[Tensor], Tensor | None, Options]:
    return [*inputs, query], present, (num_heads, scale)


def _formula(
    tensors: Sequence[Tensor], present: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    *inputs, query = tensors
    num_heads, scale = options
    dtype = query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    rows = [fused.silenced(x.to(wide), fused.there(present, m)) for m, x in enumerate(inputs)]
    x_MHD = torch.stack(rows, -2).unflatten(-1, (num_heads, -1))
    scores = (x_MHD * query.to(wide).unflatten(-1, (num_heads, -1)).unsqueeze(-3)).sum(-1) * scale
    if present is not None:
        # Where nothing is present every score stays, so that the softmax is finite; then all is 0.
        masked = present | ~present.any(-1, keepdim=True)
        scores = scores.masked_fill(~masked[..., None], -torch.inf)
    weights = scores.softmax(-2)
    if present is not None:
        weights = weights.where(present[..., None], 0)
    pooled = (x_MHD * weights[..., None]).sum(-3).flatten(-2)
    return pooled.to(dtype), weights.transpose(-1, -2).contiguous().to(dtype)


operator = fused.Fused("attention_pool", _check, _arguments, _parts, _formula, outputs=2)
