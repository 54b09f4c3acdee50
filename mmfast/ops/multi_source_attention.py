"""``multi_source_attention``: ways to compute it, and its autograd formula.

PyTorch's flash attention for the CPU says, next to its output, the logsumexp of the scores. From
both, the operator ``merge_attention`` makes attention over several sources out of attention over
each: no keys are copied, and what is absent costs nothing. Backward asks flash attention again,
source by source, but with the *merged* output and logsumexp: it needs no more than these to know
each source's share. Elsewhere (``torch.compile``, other devices, transforms) sources are joined.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
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


# Flash attention takes keys in blocks of so many: a source that fills one does so as well on its
# own. Smaller ones are joined, since the copy costs less than blocks half empty; but not where few
# queries make little of a copy.
_BLOCK_KEYS = 512
_FEW_QUERIES = 32
_SMALL = 64 * 1024  # elements of keys that are copied faster than attention is asked for again


def pieces(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    present: Tensor | None,
    causal: Sequence[bool],
) -> list[Piece]:
    """The sources as flash attention is to be asked for; all arguments are 4-d, present 2-d."""
    whole = list(range(len(keys)))
    found = []
    if present is not None:
        if sum(x.numel() for x in keys) < _SMALL:
            return [Piece(*join(query, keys, values, masks, present, causal), None, False)]
        some, all_ = present.any(0).tolist(), present.all(0).tolist()
        whole = [s for s in whole if all_[s]]
        for s in range(len(keys)):
            if not all_[s]:
                alone = _piece(query, [keys[s]], [values[s]], [masks[s]], [causal[s]])
                found.append(
                    _of_rows(alone, present[:, s].nonzero().squeeze(1) if some[s] else None)
                )
    for group in _groups(query, keys, whole):
        key, value = [keys[s] for s in group], [values[s] for s in group]
        found.append(
            _piece(query, key, value, [masks[s] for s in group], [causal[s] for s in group])
        )
    return found


def _groups(query: Tensor, keys: Sequence[Tensor], whole: Sequence[int]) -> list[list[int]]:
    few = query.shape[-2] <= _FEW_QUERIES
    groups: list[list[int]] = []
    collecting: list[int] = []
    size = 0
    for s in whole:
        if keys[s].numel() >= _SMALL and (few or keys[s].shape[-2] >= _BLOCK_KEYS):
            groups.append([s])
            continue
        collecting.append(s)
        size += keys[s].shape[-2]
        if size >= _BLOCK_KEYS:
            groups.append(collecting)
            collecting, size = [], 0
    return [*groups, collecting] if collecting else groups


def _piece(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    causal: Sequence[bool],
) -> Piece:
    if len(keys) == 1 and masks[0] is None:
        return Piece(keys[0], values[0], None, None, causal[0])
    return Piece(*join(query, keys, values, masks, None, causal), None, False)


def _of_rows(piece: Piece, rows: Tensor | None) -> Piece:
    """The piece for these rows of the batch alone; None for no rows."""
    key, value, mask, _, causal = piece
    if rows is None:
        rows = torch.empty(0, dtype=torch.int64)
        return Piece(key[:0], value[:0], None, rows, causal)
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask.index_select(0, rows)
    return Piece(key.index_select(0, rows), value.index_select(0, rows), mask, rows, causal)


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What flash attention adds to the scores."""
    if mask is None:
        return None
    return torch.where(mask, torch.zeros((), dtype=dtype), torch.full((), -torch.inf, dtype=dtype))


def _readable(x: Tensor) -> Tensor:
    """``x`` itself if its rows can be given to matrix products, else a copy."""
    usable = x.stride(-1) == 1 and (x.shape[-2] == 1 or x.stride(-2) >= x.shape[-1])
    return x if usable else x.contiguous()


def attend(query: Tensor, found: Sequence[Piece], scale: float) -> tuple[Tensor, Tensor]:
    """The output and the logsumexp of the scores; 0 and -inf where there is nothing to attend.

    With a single piece the logsumexp of such a query is unspecified but finite.
    """
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
            lse.masked_fill_(~mask.any(-1), -torch.inf)
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
    """Gradients of (query, *keys, *values), None where ``needed`` is false."""
    query_needed, *others = needed
    count = len(found)
    # Flash attention wants the gradient in this order of memory, and would copy it every time.
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
        arguments = [query, out, lse, grad]
        if rows is not None:
            arguments = [x.index_select(0, rows) for x in arguments]
        q, o, normalizer, g = arguments
        bias = _bias(mask, q.dtype)
        part, gradients[i], gradients[count + i] = _flash_backward(
            g, q, _readable(key), _readable(value), o, normalizer, 0.0, causal,
            attn_mask=bias, scale=scale,
        )  # fmt: skip
        if query_needed:
            total = _add(total, part, rows, query, count)
    if query_needed and total is None:
        total = torch.zeros_like(query)
    gradients = [x if need else None for x, need in zip(gradients, others, strict=True)]
    return [total if total is None else total.to(query.dtype), *gradients]


def _add(
    total: Tensor | None, part: Tensor, rows: Tensor | None, query: Tensor, count: int
) -> Tensor:
    """``total`` and the gradient of one piece, which may have some rows only."""
    wide = query.dtype if count == 1 else torch.promote_types(query.dtype, torch.float32)
    if rows is not None:
        total = torch.zeros_like(query, dtype=wide) if total is None else total
        return total.index_add_(0, rows, part.to(wide))
    return part.to(wide) if total is None else total.add_(part)


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
    found = pieces(query, keys, values, masks, present, causal)
    tensors = [*(x.key for x in found), *(x.value for x in found)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, *tensors)):
        settings = (scale, [x[2:] for x in found])
        return MultiSourceAttention.apply(settings, query, *tensors)
    return attend(query, found, scale)[0]
