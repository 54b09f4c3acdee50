"""``multi_source_attention``: ways to compute it, and its autograd formula.

PyTorch's flash attention for the CPU says, next to its output, the logsumexp of the scores. From
both, the operator ``merge_attention`` makes attention over several sources out of attention over
each, so that long sources are not copied and rows without a source cost nothing; short ones are
joined first. Backward asks flash attention again, part by part, but with the *merged* output and
logsumexp: it needs no more than these to know each part's share. Elsewhere (``torch.compile``,
other devices, transforms) all sources are joined.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.ops import library  # noqa: F401  registers torch.ops.mmfast
from mmfast.ops.joined_attention import join, plain

merge = torch.ops.mmfast.merge_attention.default
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@torch.library.register_fake("mmfast::merge_attention")
def _fake_merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if len(outputs) == 0 or len(lses) != len(outputs):
        raise ValueError(
            f"lses has {len(lses)} tensors and outputs {len(outputs)}; give one each per source, "
            "and at least one source"
        )
    first = outputs[0]
    if first.dim() != 4:
        raise ValueError(
            f"outputs[0] has shape {tuple(first.shape)}; it must be 4-d, "
            "(batch, heads, queries, features)"
        )
    for name, tensors, shape in (
        ("outputs", outputs, first.shape),
        ("lses", lses, first.shape[:3]),
    ):
        for i, x in enumerate(tensors):
            if x.shape != shape:
                raise ValueError(
                    f"{name}[{i}] has shape {tuple(x.shape)}; it must be {tuple(shape)}"
                )
    # Heads that lie side by side within a query, as projections leave them, do so in the result.
    inner = not first.is_contiguous() and first.transpose(1, 2).is_contiguous()
    batch, heads, queries, features = first.shape
    if inner:
        out = first.new_empty(batch, queries, heads, features).transpose(1, 2)
        return out, lses[0].new_empty(batch, queries, heads).transpose(1, 2)
    return first.new_empty(first.shape), lses[0].new_empty(first.shape[:3])


class Piece(NamedTuple):
    """A source, or several joined, that flash attention is asked for at once. All are 4-d."""

    key: Tensor
    value: Tensor
    mask: Tensor | None  # bool, True = attend
    rows: Tensor | None  # of the batch, those that `key` has; None for all
    causal: bool


# A source is attended to on its own if it fills one of the blocks in which flash attention takes
# keys, or if it is long beside the queries: then copying it costs more than merging its result.
# Others are joined, since blocks half empty and results to merge cost more than the copy. That some
# rows of the batch lack a source weighs in the other direction: on its own, they are passed over.
# In 16 bits, backward pays much for each of its products before it computes any.
_BLOCK_TOKENS = 512
_RATIO = 4  # tokens per query; where rows are to be passed over, queries per token
_FEW_TOKENS = 64
_SMALL = 64 * 1024  # elements of keys that are copied faster than attention is asked for again


def _stands_alone(query: Tensor, key: Tensor, in_all_rows: bool, training: bool) -> bool:
    queries, tokens = query.shape[2], key.shape[2]
    enough = queries * _RATIO if in_all_rows else queries // _RATIO
    if training and query.element_size() == 2:
        enough = _BLOCK_TOKENS
    return tokens >= min(_BLOCK_TOKENS, max(_FEW_TOKENS, enough)) and key.numel() >= _SMALL


def pieces(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
    training: bool,
) -> list[Piece]:
    """The sources as flash attention is to be asked for; all arguments are 4-d, present 2-d."""
    sources = (query, keys, values, masks, causal)
    if sum([x.numel() for x in keys]) < _SMALL:
        return [_piece(*sources, present, range(len(keys)))]
    some = all_ = [True] * len(keys)
    if present is not None:
        some, all_ = present.any(0).tolist(), present.all(0).tolist()
    found: list[Piece] = []
    groups: list[list[int]] = [[]]
    for s, (key, value) in enumerate(zip(keys, values, strict=True)):
        if not some[s]:
            nowhere = torch.empty(0, dtype=torch.int64)
            found.append(Piece(key[:0], value[:0], None, nowhere, False))
        elif _stands_alone(query, key, all_[s], training):
            alone = _piece(*sources, None, [s])
            rows = None if all_[s] else present[:, s].nonzero().squeeze(1)  # type: ignore[index]
            found.append(alone if rows is None else _of_rows(alone, rows))
        else:
            groups[-1].append(s)
            if sum([keys[i].shape[2] for i in groups[-1]]) >= _BLOCK_TOKENS:
                groups.append([])
    for group in filter(None, groups):
        partly = not all(all_[s] for s in group)
        found.append(_piece(*sources, present if partly else None, group))
    return found


def _piece(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    causal: Sequence[bool],
    present: Tensor | None,
    chosen: Sequence[int],
) -> Piece:
    """The sources ``chosen``, joined."""
    if len(chosen) == 1 and masks[chosen[0]] is None and present is None:
        [s] = chosen
        return Piece(keys[s], values[s], None, None, causal[s])
    if len(chosen) < len(keys):
        keys, values = [keys[s] for s in chosen], [values[s] for s in chosen]
        masks, causal = [masks[s] for s in chosen], [causal[s] for s in chosen]
    if present is not None:
        keys, values, masks = list(keys), list(values), list(masks)
        for i, s in enumerate(chosen):
            there = present[:, s]
            absent = (~there).nonzero().squeeze(1)
            if len(absent):  # zeros there, at half the price of torch.where
                keys[i], values[i] = [x.index_fill(0, absent, 0) for x in (keys[i], values[i])]
                there, mask = there[:, None, None, None], masks[i]
                masks[i] = there if mask is None else there & mask
    return Piece(*join(query, keys, values, masks, None, causal), None, False)


def _of_rows(piece: Piece, rows: Tensor) -> Piece:
    """The piece for these rows of the batch alone."""
    key, value, mask, _, causal = piece
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask.index_select(0, rows)
    return Piece(key.index_select(0, rows), value.index_select(0, rows), mask, rows, causal)


# The integers as wide as a floating type, and the bits of its mantissa.
_BITS = {
    torch.float64: (torch.int64, 52),
    torch.float32: (torch.int32, 23),
    torch.bfloat16: (torch.int16, 7),
    torch.float16: (torch.int16, 10),
}


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What flash attention adds to the scores: 0 where ``mask``, else minus infinity.

    Minus infinity is all ones but for the mantissa. That many times faster than ``torch.where``.
    """
    if mask is None:
        return None
    integers, mantissa = _BITS[dtype]
    return mask.to(integers).sub_(1).bitwise_left_shift_(mantissa).view(dtype)


def _nothing_attended(mask: Tensor) -> Tensor:
    """``~mask.any(-1)``, which takes ten times as long."""
    return mask.view(torch.uint8).amax(-1) == 0


def _readable(x: Tensor) -> Tensor:
    """``x`` itself if its rows can be given to matrix products, else a copy."""
    usable = x.stride(-1) == 1 and (x.shape[-2] == 1 or x.stride(-2) >= x.shape[-1])
    return x if usable else x.contiguous()


def attend(query: Tensor, found: Sequence[Piece], scale: float) -> tuple[Tensor, Tensor]:
    """The output and the logsumexp of the scores; 0 and -inf where there is nothing to attend.

    With a single piece the logsumexp of such a query is unspecified but finite.
    """
    if len(found) > 1 or found[0].key.numel() == 0:
        found = [x for x in found if x.key.numel()]
    query = _readable(query)
    outputs, lses = [], []
    for key, value, mask, rows, causal in found:
        q = query if rows is None else query.index_select(0, rows)
        bias = _bias(mask, q.dtype)
        out, lse = _flash(
            q, _readable(key), _readable(value), 0.0, causal, attn_mask=bias, scale=scale
        )
        if len(found) == 1 and rows is None:
            return out, lse
        if mask is not None:  # flash attention says 0 for the logsumexp of nothing
            lse.masked_fill_(_nothing_attended(mask), -torch.inf)
        if rows is not None:
            # The other rows keep what stood there: without weight it does not matter.
            out = torch.empty_like(query).index_copy_(0, rows, out)
            lse = lse.new_full(query.shape[:-1], -torch.inf).index_copy_(0, rows, lse)
        outputs.append(out)
        lses.append(lse)
    if not found:
        wide = torch.promote_types(query.dtype, torch.float32)
        return torch.zeros_like(query), query.new_full(query.shape[:-1], -torch.inf, dtype=wide)
    return merge(outputs, lses)


class MultiSourceAttention(torch.autograd.Function):
    """Autograd for eager mode: ``apply(settings, query, *keys, *values)``, of pieces.

    ``settings`` are the scale and, per piece, what :class:`Piece` has besides key and value.
    """

    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], query: Tensor, *tensors: Tensor) -> Tensor:
        scale, details = settings
        out, lse = attend(query, _pieces(details, tensors), scale)
        masks, rows, ctx.causal = zip(*details, strict=True)
        if len(details) > 1 or rows[0] is not None:
            # Backward takes exp(score - lse) for the weights: this makes them 0.
            lse.masked_fill_(lse == -torch.inf, torch.inf)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, *tensors, *masks, *rows, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        if grad is None or not any(needed):
            return None, *[None] * len(needed)
        query, *saved, out, lse = ctx.saved_tensors
        count = len(ctx.causal)
        tensors = saved[: 2 * count]
        details = list(
            zip(saved[2 * count : 3 * count], saved[3 * count :], ctx.causal, strict=True)
        )
        # create_graph=True wants a formula that is itself differentiable; is_grads_batched=True,
        # one in operations that PyTorch knows how to batch.
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return None, *_differentiable(grad, query, tensors, details, ctx.scale, needed)
        found = _pieces(details, tensors)
        return None, *_gradients(grad, query, found, out, lse, ctx.scale, needed)


def _pieces(details: Sequence[tuple[Any, ...]], tensors: Sequence[Tensor]) -> list[Piece]:
    count = len(details)
    return [Piece(tensors[i], tensors[count + i], *detail) for i, detail in enumerate(details)]


def _gradients(
    grad: Tensor,
    query: Tensor,
    found: Sequence[Piece],
    out: Tensor,
    lse: Tensor,
    scale: float,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of (query, *keys, *values); those not ``needed`` may be None."""
    query_needed, *others = needed
    count = len(found)
    if count > 1:
        # Flash attention wants it in this order of memory, and would copy it every time.
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    query = _readable(query)
    total: Tensor | None = None
    gradients: list[Tensor | None] = [None] * (2 * count)
    for i, (key, value, mask, rows, causal) in enumerate(found):
        if not (query_needed or others[i] or others[count + i]):
            continue
        if key.numel() == 0:
            gradients[i], gradients[count + i] = torch.zeros_like(key), torch.zeros_like(value)
            continue
        q, o, normalizer, g = query, out, lse, grad
        if rows is not None:
            q, o, normalizer, g = [x.index_select(0, rows) for x in (q, o, normalizer, g)]
        bias = _bias(mask, q.dtype)
        part, gradients[i], gradients[count + i] = _flash_backward(
            g, q, _readable(key), _readable(value), o, normalizer, 0.0, causal,
            attn_mask=bias, scale=scale,
        )  # fmt: skip
        if query_needed:
            total = _add(total, part, rows, query)
    if query_needed and total is None:
        total = torch.zeros_like(query)
    return [total, *gradients]


def _add(total: Tensor | None, part: Tensor, rows: Tensor | None, query: Tensor) -> Tensor:
    """``total`` and the gradient of one piece, which may have some rows only."""
    if rows is not None:
        total = torch.zeros_like(query) if total is None else total
        return total.index_add_(0, rows, part)
    return part if total is None else total.add_(part)


def _differentiable(
    grad: Tensor,
    query: Tensor,
    tensors: Sequence[Tensor],
    details: Sequence[tuple[Any, ...]],
    scale: float,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    with torch.enable_grad():
        # Views stand between the arguments and the result: one tensor given twice has two.
        arguments = [x.view_as(x) for x in (query, *tensors)]
        whole = [_of_all_rows(x, len(query)) for x in _pieces(details, arguments[1:])]
        masks, causal = [x.mask for x in whole], [x.causal for x in whole]
        keys, values = [x.key for x in whole], [x.value for x in whole]
        joined = join(query, keys, values, masks, None, causal)
        result = plain(arguments[0], *joined, scale)
    chosen = [x for x, need in zip(arguments, needed, strict=True) if need]
    create_graph = torch.is_grad_enabled()
    found = iter(
        torch.autograd.grad(result, chosen, grad, create_graph=create_graph, materialize_grads=True)
    )
    return [next(found) if need else None for need in needed]


def _of_all_rows(piece: Piece, batch: int) -> Piece:
    """The piece with zeros, masked, for the rows of the batch that it does not have."""
    key, value, mask, rows, causal = piece
    if rows is None:
        return piece
    there = torch.zeros(batch, 1, 1, 1, dtype=torch.bool).index_fill_(0, rows, True)
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask.new_zeros(batch, *mask.shape[1:]).index_copy_(0, rows, mask)
    key = key.new_zeros(batch, *key.shape[1:]).index_copy(0, rows, key)
    value = value.new_zeros(batch, *value.shape[1:]).index_copy(0, rows, value)
    return Piece(key, value, there if mask is None else mask & there, None, causal)


def eager(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
    scale: float,
) -> Tensor:
    """On the CPU, with an autograd formula if one is needed; all are 4-d, ``present`` 2-d."""
    training = torch.is_grad_enabled() and any(
        [x.requires_grad for x in (query, *keys, *values)]  # noqa: C419  faster than a generator
    )
    found = pieces(query, keys, values, masks, present, causal, training)
    if training:
        settings = (scale, [x[2:] for x in found])
        tensors = [*[x.key for x in found], *[x.value for x in found]]
        return MultiSourceAttention.apply(settings, query, *tensors)
    key, value, mask, rows, causally = found[0]
    if len(found) == 1 and mask is None and rows is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causally, scale=scale)
    return attend(query, found, scale)[0]
