"""``weighted_sum`` as PyTorch sees it; see :mod:`mmfast.ops.fused`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import fused
from mmfast.ops.fused import Options

PER = ("modality", "feature", "row")


def _check(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> None:
    *inputs, weights = tensors
    per, normalize = options
    fused.check_flag("normalize", normalize)
    fused.check_tensors("inputs", inputs)
    fused.check_floating("weights", weights)
    fused.check_like("weights", weights, "inputs[0]", inputs[0])
    if not isinstance(per, str) or per not in PER:
        raise ValueError(f"per is {per!r}; it must be one of {', '.join(PER)}")
    batch, cols = inputs[0].shape[:-1], inputs[0].shape[-1]
    shapes = {
        "modality": (len(inputs),),
        "feature": (len(inputs), cols),
        "row": (*batch, len(inputs)),
    }
    if tuple(weights.shape) != shapes[per]:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; with per={per!r} it must be {shapes[per]}"
        )
    fused.check_present(present, batch, len(inputs), weights.device)


def _arguments(
    tensors: Sequence[Tensor], present: Tensor | None, options: Options
) -> tuple[Any, ...]:
    return list(tensors[:-1]), tensors[-1], present, *options


def _parts(
    inputs: Sequence[Tensor], weights: Tensor, present: Tensor | None, per: str, normalize: bool
) -> tuple[list[Tensor], Tensor | None, Options]:
    return [*inputs, weights], present, (per, normalize)


def _formula(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> Tensor:
    *inputs, weights = tensors
    per, normalize = options
    dtype = weights.dtype
    wide = torch.promote_types(dtype, torch.float32)
    total, share = None, None
    for m, x in enumerate(inputs):
        mask = fused.there(present, m)
        w = weights[m] if per != "row" else weights[..., m, None]
        w = fused.silenced(w.to(wide).expand(x.shape), mask)
        part = fused.silenced(x.to(wide), mask) * w
        total = part if total is None else total + part
        share = w if share is None else share + w
    assert total is not None
    assert share is not None
    if normalize:
        if present is not None:  # a row of which nothing is present is 0, not 0 / 0
            share = share.where(present.any(-1, keepdim=True), 1)
        total = total / share
    return total.to(dtype)


operator = fused.Fused("weighted_sum", _check, _arguments, _parts, _formula)
