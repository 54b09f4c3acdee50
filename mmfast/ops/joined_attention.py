"""Attention over several sources in plain PyTorch: keys, values and masks joined, then attended.

What ``multi_source_attention`` is on other devices, under ``torch.compile`` and for transforms, and
what it must equal on the CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def join(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and masks of all sources, each in one tensor; no mask if all may be attended."""
    if present is not None:
        # Zeros, whatever stood there: a weight of zero is not enough where the value is NaN.
        there = [present[..., s, None, None, None] for s in range(len(keys))]
        keys = [x.where(p, 0) for x, p in zip(keys, there, strict=True)]
        values = [x.where(p, 0) for x, p in zip(values, there, strict=True)]
    key = keys[0] if len(keys) == 1 else torch.cat(list(keys), -2)
    value = values[0] if len(values) == 1 else torch.cat(list(values), -2)
    parts = list(masks)
    if any(causal):
        for s, mask in enumerate(parts):
            parts[s] = _with_causal(query, keys[s].shape[-2], mask) if causal[s] else mask
    if present is not None:
        parts = [p if x is None else x & p for x, p in zip(parts, there, strict=True)]
    return key, value, _join_masks(keys, parts)


def _with_causal(query: Tensor, length: int, mask: Tensor | None) -> Tensor:
    causal = torch.ones(query.shape[-2], length, dtype=torch.bool, device=query.device).tril()
    return causal if mask is None else causal & mask


def _join_masks(keys: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    # PyTorch's attention asks for two dimensions at least.
    batch = torch.broadcast_shapes((1,), *(mask.shape[:-1] for mask in given))
    everything = torch.ones((), dtype=torch.bool, device=given[0].device)
    parts = [everything if mask is None else mask for mask in masks]
    return torch.cat([x.expand(*batch, k.shape[-2]) for x, k in zip(parts, keys, strict=True)], -1)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """PyTorch's attention over sources that are joined; 0 where a query may attend to nothing."""
    dead = None
    if mask is not None and query.device.type != "cpu":
        # Not every backend says 0 there, so such queries attend to all, and their results go.
        dead = ~mask.any(-1, keepdim=True)
        mask = mask | dead
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=enable_gqa
    )
    return out if dead is None else out.masked_fill(dead, 0)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same from operations that can be differentiated any number of times, and transformed."""
    dtype = query.dtype
    if dtype in (torch.bfloat16, torch.float16):
        query, key, value = query.float(), key.float(), value.float()
    if key.shape[-3] != query.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query @ key.transpose(-1, -2)) * scale
    if mask is None:
        return (scores.softmax(-1) @ value).to(dtype)
    # Finite scores for what is masked: rows without any other have a softmax, which then goes.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return (weights.masked_fill(~mask, 0) @ value).to(dtype)
