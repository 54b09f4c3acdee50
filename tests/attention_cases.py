"""Problems of attention over several sources, and what it must compute for them.

Independent of mmfast: the formula over the concatenation, in plain PyTorch. ``eager`` is what a
user would write today.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Shapes and options; ``masks`` says how each source's mask is shaped, or that it has none."""

    tokens: tuple[int, ...]
    queries: int = 7
    batch: tuple[int, ...] = (3,)
    heads: int = 4
    key_heads: int = 4
    size: int = 8
    value_size: int | None = None
    masks: tuple[str, ...] = ()
    present: str = ""
    causal: bool | tuple[bool, ...] = False
    scale: float | None = None


CASES = {
    "one source": Case((9,)),
    "two": Case((9, 5)),
    "five": Case((1, 4, 2, 6, 3)),
    "no batch": Case((9, 5), batch=()),
    "three batch dimensions": Case((9, 5), batch=(2, 1, 3), masks=("full", "keys")),
    "empty batch": Case((9, 5), batch=(0,), masks=("full", "keys"), present="some"),
    "no queries": Case((9, 5), queries=0),
    "no tokens in one": Case((9, 0, 4), masks=("keys", "keys", "keys")),
    "no tokens at all": Case((0, 0)),
    "no tokens, one query": Case((0,), queries=1, present="some"),
    "no tokens in one, no batch": Case((0, 3), batch=(), masks=("keys", "")),
    "no tokens, two batch dimensions": Case((0, 0), batch=(2, 2), masks=("full", "keys")),
    "wide": Case((530, 40, 700), queries=50, batch=(1,), heads=2, key_heads=2),
    "one query": Case((530, 40), queries=1),
    "size 1": Case((9, 5), size=1, masks=("", "full")),
    "odd size": Case((9, 5), size=13),
    "masks": Case((9, 5, 4), masks=("keys", "full", "")),
    "masks of every shape": Case((9, 5, 4, 3), masks=("heads", "queries", "one", "scalar")),
    "masks, no batch": Case((9, 5), batch=(), masks=("keys", "full")),
    "wide masks": Case((530, 600), queries=40, batch=(2,), masks=("keys", "full")),
    "causal": Case((9, 5), causal=True),
    "causal, one source": Case((9,), causal=True),
    "causal, more queries than tokens": Case((3, 5), queries=11, causal=True),
    "causal in some": Case((9, 5, 4), causal=(True, False, True), masks=("keys", "", "")),
    "causal, wide": Case((530, 600), queries=540, batch=(1,), heads=1, key_heads=1, causal=True),
    "present": Case((9, 5, 4), present="some"),
    "present in all": Case((9, 5, 4), present="all"),
    "present broadcasts": Case((9, 5, 4), present="one row"),
    "present, no batch": Case((9, 5, 4), batch=(), present="some"),
    "present, two batch dimensions": Case((9, 5, 4), batch=(2, 3), present="some"),
    "nothing present": Case((9, 5), present="none"),
    "one row has nothing": Case((600, 5), present="first row none"),
    "present, masks, causal": Case(
        (9, 5, 4), present="some", masks=("keys", "full", ""), causal=(True, False, True)
    ),
    "present, wide": Case((530, 600), queries=40, present="some", masks=("full", "")),
    "grouped heads": Case((9, 5), key_heads=2),
    "one head of keys": Case((9, 5), key_heads=1, batch=(2, 2)),
    "grouped heads, everything": Case(
        (9, 5, 4, 3),
        key_heads=2,
        masks=("full", "keys", "queries", "heads"),
        causal=(True, False, True, False),
        present="some",
    ),
    "grouped heads, wide": Case((530, 600), queries=20, key_heads=2, masks=("queries", "")),
    "values wider than keys, mask of tokens": Case((9,), value_size=12, masks=("one",)),
    "values wider than keys, masks of tokens": Case((9, 5), value_size=12, masks=("one", "scalar")),
    "values wider than keys": Case((9, 5), value_size=12, masks=("keys", "")),
    "values narrower, grouped, present": Case((9, 5), key_heads=2, value_size=3, present="some"),
    "scale": Case((9, 5), scale=0.3),
    "scale 0": Case((9, 5), scale=0.0, causal=True),
    "negative scale": Case((9, 5), scale=-0.7, causal=True, masks=("", "keys")),
}


def draw_mask(kind: str, case: Case, tokens: int) -> Tensor | None:
    lead = {
        "full": (*case.batch, case.heads, case.queries),
        "keys": (*case.batch, 1, 1),
        "heads": (case.heads, 1),
        "queries": (case.queries,),
        "one": (),
    }
    if kind == "":
        return None
    if kind == "scalar":
        return torch.tensor(True)
    mask = torch.rand(*lead[kind], tokens) > 0.4
    if kind == "full" and mask.numel():
        mask.view(-1, tokens)[::3] = False  # whole rows
    if kind == "keys" and case.batch and case.batch[0]:
        mask[0] = False  # a whole source
    return mask


def draw_present(kind: str, case: Case) -> Tensor | None:
    count = len(case.tokens)
    if kind == "":
        return None
    if kind == "one row":
        return torch.tensor([True, False, True])
    if kind in ("all", "none"):
        return torch.full((*case.batch, count), kind == "all")
    present = torch.rand(*case.batch, count) > 0.4
    if kind == "first row none":
        present[1:] = True
        present[0] = False
    return present


def draw(case: Case, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], dict]:
    """The tensors (query, *keys, *values), and the other arguments."""
    lead = (*case.batch, case.key_heads)
    width = case.size if case.value_size is None else case.value_size
    tensors = [torch.randn(*case.batch, case.heads, case.queries, case.size)]
    tensors += [torch.randn(*lead, t, case.size) for t in case.tokens]
    tensors += [torch.randn(*lead, t, width) for t in case.tokens]
    options: dict = {"is_causal": case.causal, "scale": case.scale}
    if case.masks:
        pairs = zip(case.masks, case.tokens, strict=True)
        options["masks"] = [draw_mask(kind, case, t) for kind, t in pairs]
    if case.present:
        options["present"] = draw_present(case.present, case)
    if case.heads != case.key_heads:
        options["enable_gqa"] = True
    return [x.to(dtype) for x in tensors], options


def joined_mask(tensors, masks=None, present=None, is_causal=False) -> Tensor:
    """Which query may attend to which token of the concatenation."""
    query, *rest = tensors
    keys = rest[: len(rest) // 2]
    causal = [is_causal] * len(keys) if isinstance(is_causal, bool) else is_causal
    parts = []
    for s, key in enumerate(keys):
        part = torch.ones(*query.shape[:-1], key.shape[-2], dtype=torch.bool)
        if masks is not None and masks[s] is not None:
            part = part & masks[s]
        if causal[s]:
            i, j = torch.arange(query.shape[-2])[:, None], torch.arange(key.shape[-2])
            part = part & (j <= i)
        if present is not None:
            part = part & present[..., s, None, None, None]
        parts.append(part)
    return torch.cat(parts, -1)


def formula(
    tensors, masks=None, present=None, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    """Attention over the concatenation, from its definition; nothing attended to is 0."""
    query, *rest = tensors
    count = len(rest) // 2
    groups = query.shape[-3] // rest[0].shape[-3]
    key, value = [
        torch.cat(part, -2).repeat_interleave(groups, -3) for part in (rest[:count], rest[count:])
    ]
    mask = joined_mask(tensors, masks, present, is_causal)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-1, -2)) * scale
    if scores.shape[-1] == 0:
        return scores @ value
    top = scores.detach().where(mask, torch.tensor(-1e30).to(scores)).amax(-1, keepdim=True)
    weights = (scores - top).where(mask, torch.tensor(-torch.inf).to(scores)).exp()
    total = weights.sum(-1, keepdim=True)
    return (weights / total.where(total > 0, torch.ones_like(total))) @ value


def eager(
    tensors, masks=None, present=None, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    """What a user would write today."""
    query, *rest = tensors
    count = len(rest) // 2
    key, value = torch.cat(rest[:count], -2), torch.cat(rest[count:], -2)
    mask = joined_mask(tensors, masks, present, is_causal)
    return F.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=enable_gqa
    )


def run(function, tensors, options, grad=None, dtype=None) -> list[Tensor]:
    """The result and, given ``grad``, the gradients of all tensors."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_(grad is not None) for x in tensors]
    result = function(leaves, **options)
    if grad is None:
        return [result]
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))]


def check_close(found, exact, tolerance=1e-10):
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)
