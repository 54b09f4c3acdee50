"""The operators that combine rows: arguments to draw, their formulas, and what is usual today.

Independent of mmfast: ``exact`` follows the formulas of the docstrings, ``eager`` is plain PyTorch
in the dtype under test. ``tensors`` is a flat list of everything that has a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast import functional


class Size(NamedTuple):
    batch: tuple[int, ...]
    count: int
    cols: int
    ranks: int = 2


SIZES = {
    "small": Size((7,), 2, 5),
    "no batch": Size((), 3, 5, 1),
    "empty batch": Size((0,), 2, 5),
    "empty batch of two dimensions": Size((3, 0), 2, 5),
    "no features": Size((4,), 2, 0),
    "one of everything": Size((9,), 1, 1, 1),
    "four inputs": Size((9,), 4, 20),
    "many inputs": Size((150,), 40, 8),
    "three chunks of rows": Size((300,), 3, 33, 3),
    "three dimensions": Size((2, 3, 50), 2, 17, 3),
    "beyond a tile of gates": Size((6,), 2, 129),
    "beyond a tile": Size((4,), 2, 513),
    "three tiles": Size((3,), 3, 1100, 3),
    "long sums": Size((2,), 2, 4200),
}


def draw_present(size: Size) -> Tensor:
    """Random; where there are rows enough, one with nothing and one with everything."""
    present = torch.rand(*size.batch, size.count) > 0.4
    rows = present.view(-1, size.count)
    if len(rows) > 2:
        rows[0], rows[1] = False, True
    return present


def prime_divisor(n: int) -> int:
    return next((d for d in range(2, n) if n % d == 0), max(n, 1))


def there(present: Tensor | None, m: int, dims: int = 1) -> Tensor | None:
    return None if present is None else present[..., m].reshape(*present.shape[:-1], *[1] * dims)


def silenced(x: Tensor, mask: Tensor | None, value: float = 0) -> Tensor:
    return x if mask is None else torch.where(mask, x, torch.full_like(x, value))


def stacked(inputs: Sequence[Tensor], present: Tensor | None) -> tuple[Tensor, Tensor]:
    """(*batch, M, D), zeros where absent, and what is present as numbers (*batch, M, 1)."""
    x = torch.stack(list(inputs), -2)
    if present is None:
        return x, x.new_ones(*x.shape[:-1], 1)
    return torch.where(present[..., None], x, 0), present[..., None].to(x.dtype)


def divided(x: Tensor, total: Tensor) -> Tensor:
    """x / total, and 0 where there is nothing to divide by."""
    return torch.where(total == 0, 0, x / torch.where(total == 0, 1, total))


# ---------------------------------------------------------------------------- formulas, in float64


def exact_weighted_sum(inputs, weights, present, *, per, normalize):
    x, p = stacked(inputs, present)
    w = {"modality": weights[:, None], "feature": weights, "row": weights[..., None]}[per]
    w = torch.where(p > 0, w, 0).expand_as(x)
    y = (w * x).sum(-2)
    return (divided(y, w.sum(-2)) if normalize else y,)


def exact_attention_pool(inputs, query, present, *, num_heads, temperature=None, **_):
    x, p = stacked(inputs, present)
    width = x.shape[-1] // num_heads
    tau = width**0.5 if temperature is None else temperature
    pooled, weights = [], []
    for h in range(num_heads):
        x_h, q = x[..., h * width : (h + 1) * width], query[..., h * width : (h + 1) * width]
        scores = torch.einsum("...md,...d->...m", x_h, q) / max(tau, 1e-9)
        shares = torch.exp(scores) * p[..., 0]
        a = divided(shares, shares.sum(-1, keepdim=True))
        pooled.append(torch.einsum("...m,...md->...d", a, x_h))
        weights.append(a)
    return torch.cat(pooled, -1), torch.stack(weights, -2)


def exact_gated_sum(values, gates, present):
    h, p = stacked(values, present)
    last = [torch.zeros_like(values[0])] * (len(values) - len(gates))
    shares = torch.exp(stacked([*gates, *last], present)[0]) * p
    return (divided((shares * torch.tanh(h)).sum(-2), shares.sum(-2)),)


def exact_rank_product(factors, weights, present):
    x = torch.stack([silenced(h, there(present, m, 2), 1) for m, h in enumerate(factors)])
    product = x.prod(0)
    return ((product if weights is None else product * weights[:, None]).sum(-2),)


# ------------------------------------------------------------------------------------ what is usual


def eager_weighted_sum(inputs, weights, present, *, per, normalize):
    total, share = 0, 0
    for m, x in enumerate(inputs):
        mask = there(present, m)
        w = silenced((weights[..., m, None] if per == "row" else weights[m]).expand_as(x), mask)
        total, share = total + silenced(x, mask) * w, share + w
    return (divided(total, share) if normalize else total,)


def eager_attention_pool(inputs, query, present, *, num_heads, temperature=None, **_):
    x = torch.stack([silenced(x, there(present, m)) for m, x in enumerate(inputs)], -2)
    x = x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))
    tau = x.shape[-1] ** 0.5 if temperature is None else temperature
    scores = (x * query.unflatten(-1, x.shape[-2:]).unsqueeze(-3)).sum(-1) / max(tau, 1e-9)
    mask = None if present is None else present[..., None]
    weights = scores if mask is None else scores.masked_fill(~mask, torch.finfo(x.dtype).min)
    weights = silenced(weights.softmax(-2), mask)
    return (x * weights[..., None]).sum(-3).flatten(-2), weights.transpose(-1, -2)


def eager_gated_sum(values, gates, present):
    gates = [*gates, *[torch.zeros_like(values[0])] * (len(values) - len(gates))]
    low = torch.finfo(values[0].dtype).min
    logits = [silenced(g, there(present, m), low) for m, g in enumerate(gates)]
    shares = torch.stack(logits).softmax(0)
    parts = [
        silenced(s, there(present, m)) * silenced(v, there(present, m)).tanh()
        for m, (s, v) in enumerate(zip(shares, values, strict=True))
    ]
    return (sum(parts[1:], parts[0]),)


def eager_rank_product(factors, weights, present):
    product = None
    for m, x in enumerate(factors):
        factor = silenced(x, there(present, m, 2), 1)
        product = factor if product is None else product * factor
    return ((product if weights is None else product * weights[:, None]).sum(-2),)


# ----------------------------------------------------------------------------------------- variants


@dataclass(frozen=True)
class Variant:
    """One operator with one choice of its options."""

    operator: str
    draw: Callable[[Size], list[Tensor]]
    split: Callable[[Sequence[Tensor]], tuple[Any, ...]]  # into the operator's own arguments
    options: dict[str, Any] = field(default_factory=dict)

    def settings(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        options = dict(self.options)
        if options.get("num_heads") == "several":
            options["num_heads"] = prime_divisor(tensors[0].shape[-1])
        return options

    def with_options(self, **options: Any) -> "Variant":
        return Variant(self.operator, self.draw, self.split, {**self.options, **options})

    def _apply(self, function, tensors, present):
        return function(*self.split(tensors), present, **self.settings(tensors))

    def call(self, tensors: Sequence[Tensor], present: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self._apply(getattr(functional, self.operator), tensors, present)
        return found if isinstance(found, tuple) else (found,)

    def exact(self, tensors: Sequence[Tensor], present: Tensor | None = None) -> tuple[Tensor, ...]:
        return self._apply(globals()[f"exact_{self.operator}"], tensors, present)

    def eager(self, tensors: Sequence[Tensor], present: Tensor | None = None) -> tuple[Tensor, ...]:
        return self._apply(globals()[f"eager_{self.operator}"], tensors, present)

    def arguments(self, tensors: Sequence[Tensor], present: Tensor | None = None) -> tuple:
        """What torch.ops.mmfast.<operator> takes."""
        options = tuple(self.settings(tensors).values())
        if self.operator == "attention_pool":
            heads = options[0]
            options = (heads, max(tensors[0].shape[-1] / heads, 1) ** -0.5)
        return (*self.split(tensors), present, *options)

    def modality(self, position: int, count: int) -> int | None:
        """Whose content a tensor is, or None: it belongs to all."""
        return position % count if self.operator == "gated_sum" or position < count else None


def _inputs(size: Size, *row: int) -> list[Tensor]:
    return [torch.randn(*size.batch, *row, size.cols).double() for _ in range(size.count)]


def _last(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return list(tensors[:-1]), tensors[-1]


def _halves(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    half = (len(tensors) + 1) // 2
    return list(tensors[:half]), list(tensors[half:])


def _weighted(per: str, normalize: bool) -> Variant:
    def draw(size: Size) -> list[Tensor]:
        batch = size.batch if per == "row" else ()
        shape = (*batch, size.count, *([size.cols] if per == "feature" else []))
        # A mean of weights of both signs can divide by next to nothing.
        weights = torch.rand(shape) + 0.2 if normalize else torch.randn(shape)
        return [*_inputs(size), weights.double()]

    return Variant("weighted_sum", draw, _last, {"per": per, "normalize": normalize})


def _pool(query_per_row: bool, **options: Any) -> Variant:
    def draw(size: Size) -> list[Tensor]:
        batch = size.batch if query_per_row else ()
        return [*_inputs(size), torch.randn(*batch, size.cols).double()]

    return Variant("attention_pool", draw, _last, {**options, "return_weights": True})


def _gated(fewer: int) -> Variant:
    def draw(size: Size) -> list[Tensor]:
        return [*_inputs(size), *_inputs(size)[fewer:]]

    return Variant("gated_sum", draw, _halves)


VARIANTS = {
    "weighted_sum": _weighted("modality", False),
    "weighted_sum, mean": _weighted("modality", True),
    "weighted_sum by feature": _weighted("feature", False),
    "weighted_sum by feature, mean": _weighted("feature", True),
    "weighted_sum by row": _weighted("row", False),
    "weighted_sum by row, mean": _weighted("row", True),
    "attention_pool": _pool(False, num_heads=1),
    "attention_pool, query per row": _pool(True, num_heads=1),
    "attention_pool, heads": _pool(False, num_heads="several"),
    "attention_pool, heads, query per row": _pool(True, num_heads="several"),
    "gated_sum": _gated(0),
    "gated_sum, last gate 0": _gated(1),
    "rank_product": Variant(
        "rank_product", lambda s: _inputs(s, s.ranks), lambda t: (list(t), None)
    ),
    "rank_product, weights": Variant(
        "rank_product", lambda s: [*_inputs(s, s.ranks), torch.randn(s.ranks).double()], _last
    ),
}


def run(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    present: Tensor | None = None,
    grads: Sequence[Tensor | None] | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The results and, given ``grads`` of them, the gradients of all tensors."""
    leaves = [x.detach().to(dtype or x.dtype) for x in tensors]
    if grads is None:
        return list(function(leaves, present))
    leaves = [x.requires_grad_() for x in leaves]
    results = function(leaves, present)
    used = [(y, g.to(y.dtype)) for y, g in zip(results, grads, strict=True) if g is not None]
    found = torch.autograd.grad(
        [y for y, _ in used], leaves, [g for _, g in used], materialize_grads=True
    )
    return [*(y.detach() for y in results), *found]
