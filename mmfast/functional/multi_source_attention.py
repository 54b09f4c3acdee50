"""``multi_source_attention``: argument handling, autocast, and the choice of path."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.functional.common import autocast, transformed
from mmfast.ops import joined_attention as _joined
from mmfast.ops import multi_source_attention as _op
from mmfast.ops.concat_linear import check_dense, check_memory
from mmfast.ops.fused import check_flag

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def multi_source_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None] | None = None,
    *,
    present: Tensor | None = None,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Attention of one query sequence to the tokens of several sources at once.

    .. math:: y = \mathrm{softmax}(s\, q\, [k_1; \dots; k_S]^T) [v_1; \dots; v_S]

    One softmax runs over the tokens of all sources. The same values as
    ``F.scaled_dot_product_attention`` of ``query`` with keys, values and masks concatenated along
    the tokens. Where sources are large they are not concatenated, and what is absent is neither
    read nor computed. Attention is that of Vaswani et al. 2017, "Attention Is All You Need";
    several sources in one softmax are also called joint or flat attention combination (Libovický
    and Helcl 2017).

    Args:
        query: (\*batch, H, L, E).
        keys: S tensors (\*batch, H_k, T_s, E); T_s may be 0.
        values: S tensors (\*batch, H_k, T_s, E_v).
        masks: None, or per source None or a bool tensor that broadcasts to (\*batch, H, L, T_s),
            True = attend.
        present: bool (\*batch, S), True where a source is there, or None for all; it may broadcast.
            What an absent source holds, NaN included, changes neither result nor gradients, and
            its own gradient is zero.
        is_causal: whether query i attends to tokens j <= i of a source only; for all, or per
            source.
        scale: s, by default 1 / sqrt(E).
        enable_gqa: allows H to be a multiple of H_k, so that several heads share keys and values.

    Query, keys and values share one dtype (float32, float64, bfloat16 or float16) and one device,
    except under ``torch.autocast``, which converts them.

    Returns:
        Tensor of shape (\*batch, H, L, E_v). A query that nothing may attend to gives 0, and passes
        on no gradient.

    Raises:
        TypeError: an argument is not of the type, or a tensor not of the dtype, that it must be.
        ValueError: numbers of sources, shapes, dtypes or devices do not fit.

    On the CPU double backward works too, through plain PyTorch operations. Values of another width
    than keys (E_v other than E) go through ``F.scaled_dot_product_attention`` everywhere.

    Example:
        >>> query = torch.randn(2, 8, 10, 64)
        >>> image, text = torch.randn(2, 8, 196, 64), torch.randn(2, 8, 32, 64)
        >>> multi_source_attention(query, [image, text], [image, text]).shape
        torch.Size([2, 8, 10, 64])
    """
    device = query.device.type if isinstance(query, Tensor) else "meta"
    if device != "meta" and torch.is_autocast_enabled(device):
        _check_types(query, keys, values)
        converted: list[Tensor] = autocast(device, [query, *keys, *values])  # type: ignore[assignment]
        query, keys, values = converted[0], converted[1 : len(keys) + 1], converted[len(keys) + 1 :]
    if _fits(query, keys, values):
        check_memory("query", query)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            check_memory(f"keys[{i}]", key)
            check_memory(f"values[{i}]", value)
    else:
        _check_types(query, keys, values)
        _check_shapes(query, keys, values, enable_gqa)
    count = len(keys)
    wanted_masks = [None] * count if masks is None else _check_masks(query, keys, masks)
    if present is not None:
        present = _check_present(present, query, count)
    causal = _check_causal(is_causal, count)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    check_flag("enable_gqa", enable_gqa)
    arguments = (query, keys, values, wanted_masks, present, causal)
    if transformed():
        return _joined.plain(*_joined_arguments(*arguments), scale=scale)
    by_source = device == "cpu" and not torch.compiler.is_compiling()
    if by_source and query.numel() and query.shape[-1] == values[0].shape[-1]:
        return _by_source(*arguments, scale)
    if count == 1 and causal[0] and present is None and wanted_masks[0] is None:
        return _joined.fused(
            query, keys[0], values[0], None, causal=True, scale=scale, enable_gqa=enable_gqa
        )
    joined = _joined_arguments(*arguments)
    return _joined.fused(*joined, causal=False, scale=scale, enable_gqa=enable_gqa)


def _joined_arguments(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return query, *_joined.join(query, keys, values, masks, present, causal)


def _by_source(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
    scale: float,
) -> Tensor:
    """The operator, which has one batch dimension and as many heads of queries as of keys."""
    batch, (heads, queries, _) = query.shape[:-3], query.shape[-3:]
    key_heads = keys[0].shape[-3]
    if len(batch) != 1:
        rows = math.prod(batch)  # not -1: a source without tokens has no elements to tell it by
        query = query.reshape(rows, *query.shape[-3:])
        keys = [x.reshape(rows, *x.shape[-3:]) for x in keys]
        values = [x.reshape(rows, *x.shape[-3:]) for x in values]
        if present is not None:
            present = present.expand(*batch, len(keys)).reshape(rows, len(keys))
    masks = [None if x is None else _one_batch_dimension(x, batch) for x in masks]
    if present is not None:
        present = present.expand(query.shape[0], len(keys))
    groups = heads // key_heads
    if groups > 1:
        # The heads that share keys become queries of one head: its keys are read once for all.
        masks, causal = _fold_masks(masks, causal, keys, groups, queries)
        query = query.unflatten(1, (key_heads, groups)).flatten(2, 3)
    if any(causal) and not scale > 0:  # flash attention multiplies minus infinity by it
        masks, causal = _fold_masks(masks, causal, keys, 1, queries)
    out = _op.eager(query, keys, values, masks, present, causal, scale)
    if groups > 1:
        out = out.unflatten(2, (groups, queries)).flatten(1, 2)
    return out if len(batch) == 1 else out.reshape(*batch, *out.shape[1:])


def _one_batch_dimension(mask: Tensor, batch: Sequence[int]) -> Tensor:
    """The mask as 4-d, its batch 1 or full."""
    missing = len(batch) + 3 - mask.dim()
    mask = mask.reshape(*[1] * missing, *mask.shape)
    if len(batch) == 1:
        return mask
    if all(size == 1 for size in mask.shape[:-3]):
        return mask.reshape(1, *mask.shape[-3:])
    return mask.expand(*batch, *mask.shape[-3:]).reshape(math.prod(batch), *mask.shape[-3:])


def _fold_masks(
    masks: Sequence[Tensor | None],
    causal: Sequence[bool],
    keys: Sequence[Tensor],
    groups: int,
    queries: int,
) -> tuple[list[Tensor | None], list[bool]]:
    """Masks (batch, heads, queries, tokens) as (batch, heads / groups, groups * queries, tokens).

    Causal sources get a mask too: the number of a query no longer says where it stands.
    """
    folded = []
    for mask, key, is_causal in zip(masks, keys, causal, strict=True):
        if is_causal:
            tril = torch.ones(1, 1, queries, key.shape[-2], dtype=torch.bool).tril()
            mask = tril if mask is None else mask & tril
        if mask is not None and groups > 1 and mask.shape[1:3] != (1, 1):
            batch, heads, _, tokens = mask.shape
            shared = (1, groups) if heads == 1 else (heads // groups, groups)
            mask = mask.expand(batch, heads, queries, tokens)
            mask = mask.unflatten(1, (shared[0], -1)).expand(batch, *shared, queries, tokens)
            mask = mask.flatten(2, 3)
        folded.append(mask)
    return folded, [False] * len(keys)


# ------------------------------------------------------------------------------------------ checks


def _fits(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
    """Whether these are the usual arguments, and right; False says that it takes a closer look."""
    try:
        batch, heads, _, width = query.shape
        dtype, device = query.dtype, query.device
        for key, value in zip(keys, values, strict=True):
            shape = key.shape
            if len(shape) != 4 or value.shape != shape or shape[3] != width:
                return False
            if shape[0] != batch or shape[1] != heads:
                return False
            if key.dtype is not dtype or value.dtype is not dtype:
                return False
            if key.device != device or value.device != device:
                return False
            if key.layout is not torch.strided or value.layout is not torch.strided:
                return False
        lists = isinstance(keys, (list, tuple)) and isinstance(values, (list, tuple))
        dense = query.layout is torch.strided
        return lists and dense and len(keys) > 0 and dtype in _DTYPES
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def _check_types(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if not isinstance(query, Tensor):
        raise TypeError(f"query must be a tensor, got {type(query).__name__}")
    check_dense("query", query)
    for name, found in (("keys", keys), ("values", values)):
        if isinstance(found, Tensor) or not isinstance(found, Sequence):
            raise TypeError(f"{name} must be a sequence of tensors, got {type(found).__name__}")
        for i, x in enumerate(found):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}[{i}] must be a tensor, got {type(x).__name__}")
            check_dense(f"{name}[{i}]", x)
    if len(keys) == 0:
        raise ValueError("keys is empty; give the keys of at least one source")
    if len(values) != len(keys):
        raise ValueError(
            f"values has {len(values)} entries but keys has {len(keys)}; give one per source"
        )


def _check_shapes(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], enable_gqa: bool
) -> None:
    if query.dtype not in _DTYPES:
        raise TypeError(
            f"query has dtype {query.dtype}; it must be float32, float64, bfloat16 or float16"
        )
    if query.dim() < 3:
        raise ValueError(
            f"query has shape {tuple(query.shape)}; it must be (*batch, heads, queries, features)"
        )
    *batch, heads, _, features = query.shape
    key_heads = keys[0].shape[-3] if keys[0].dim() >= 3 else 0
    width = values[0].shape[-1] if values[0].dim() else 0
    for s, (key, value) in enumerate(zip(keys, values, strict=True)):
        tokens = key.shape[-2] if key.dim() >= 2 else 0
        _check_alike(f"keys[{s}]", key, query, (*batch, key_heads, tokens, features))
        _check_alike(f"values[{s}]", value, query, (*batch, key_heads, tokens, width))
    if enable_gqa:
        if key_heads == 0 or heads % key_heads:
            raise ValueError(
                f"query has {heads} heads but keys have {key_heads}; with enable_gqa the former "
                "must be a multiple of the latter"
            )
    elif key_heads != heads:
        raise ValueError(
            f"query has {heads} heads but keys have {key_heads}; they must be equal "
            "(or give enable_gqa=True where several heads share keys)"
        )


def _check_alike(name: str, x: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape == shape and x.dtype == query.dtype and x.device == query.device:
        return
    if x.dtype != query.dtype:
        raise ValueError(
            f"{name} has dtype {x.dtype} but query has {query.dtype}; they must be equal "
            "(convert one, or run under torch.autocast)"
        )
    if x.device != query.device:
        raise ValueError(
            f"{name} is on {x.device} but query is on {query.device}; they must share a device "
            "(move one with .to())"
        )
    raise ValueError(
        f"{name} has shape {tuple(x.shape)}; beside query's {tuple(query.shape)} and the first "
        f"source's heads and width it must be {shape}"
    )


def _check_masks(
    query: Tensor, keys: Sequence[Tensor], masks: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    if isinstance(masks, Tensor) or not isinstance(masks, Sequence):
        raise TypeError(
            f"masks must be None or a sequence of a tensor or None per source, "
            f"got {type(masks).__name__}"
        )
    if len(masks) != len(keys):
        raise ValueError(
            f"masks has {len(masks)} entries but keys has {len(keys)}; give one per source"
        )
    for s, mask in enumerate(masks):
        if mask is not None:
            wanted = (*query.shape[:-1], keys[s].shape[-2])
            _check_bool(f"masks[{s}]", mask, query, wanted, "True = attend")
    return masks


def _check_present(present: Tensor, query: Tensor, count: int) -> Tensor:
    _check_bool("present", present, query, (*query.shape[:-3], count), "True = present")
    return present.expand(*present.shape[:-1], count)


def _check_bool(name: str, x: Tensor, query: Tensor, wanted: tuple[int, ...], means: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a bool tensor or None, got {type(x).__name__}")
    if x.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; it must be torch.bool, {means}")
    check_dense(name, x)
    if x.device != query.device:
        raise ValueError(
            f"{name} is on {x.device} but query is on {query.device}; they must share a device "
            "(move one with .to())"
        )
    pairs = zip(reversed(x.shape), reversed(wanted), strict=False)
    if x.dim() > len(wanted) or any(size not in (1, full) for size, full in pairs):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it must be {wanted} or broadcast to it"
        )


def _check_causal(is_causal: bool | Sequence[bool], count: int) -> Sequence[bool]:
    if isinstance(is_causal, bool):
        return [is_causal] * count
    if not isinstance(is_causal, Sequence) or any(not isinstance(x, bool) for x in is_causal):
        raise TypeError(f"is_causal is {is_causal!r}; it must be a bool, or a sequence of bools")
    if len(is_causal) != count:
        raise ValueError(
            f"is_causal has {len(is_causal)} entries but keys has {count}; give one per source"
        )
    return list(is_causal)
