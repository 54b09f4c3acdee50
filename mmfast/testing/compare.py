"""What the checks share: failures that explain themselves, and comparisons of results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from unittest import SkipTest

import torch
from torch import Tensor, nn

from mmfast.plugins import Features

# Of the largest value. Room for another order of summation, none for a leak; and for the same
# computation, whose last bits may depend on where in memory its operands lie.
CLOSE = 1e-4
EQUAL = 1e-5

S = TypeVar("S")


class ContractError(AssertionError):
    """An encoder does not keep the contract; says what was found, what is wanted, and why."""


def promise(test: Callable[[S], None]) -> Callable[[S], None]:
    """A check whose docstring says what the contract wants and why; every failure repeats it."""

    @functools.wraps(test)
    def run(self: S) -> None:
        __tracebackhide__ = True
        try:
            test(self)
        except SkipTest:
            raise
        except Exception as error:
            said = str(error)
            if not isinstance(error, AssertionError):
                said = f"{type(error).__name__}: {error}"
            wanted = " ".join((inspect.getdoc(test) or "").split())
            raise ContractError(f"{said}\n  The contract: {wanted}") from error

    return run


def require(condition: object, found: str) -> None:
    """Raise AssertionError with what was found, unless the condition holds."""
    if not condition:
        raise AssertionError(found)


def row(features: Features, i: int) -> Tensor:
    """What counts of row ``i``: (D,), or (T, D) of the valid tokens."""
    values = features.values[i]
    return values if features.mask.dim() == 1 else values[features.mask[i]]


def distance(x: Tensor, y: Tensor) -> float:
    """The largest difference, over the largest value of ``y``; infinite for different shapes."""
    if x.shape != y.shape:
        return float("inf")
    if not x.numel():
        return 0.0
    x, y = x.detach().double(), y.detach().double()
    found = (x - y).abs().max() / y.abs().max().clamp_min(1e-12)
    return float(found) if not found.isnan() else float("inf")


def require_row(found: Features, i: int, expected: Features, j: int, when: str) -> None:
    """Row ``i`` of one result is row ``j`` of another."""
    x, y = row(found, i), row(expected, j)
    require(
        x.shape == y.shape,
        f"{when}, {_count(x)} valid tokens became {_count(y)}",
    )
    far = distance(x, y)
    require(
        far <= CLOSE,
        f"{when}, the features of a sample differ by {far:.1e} of their largest value "
        f"(rounding explains {CLOSE:.0e})",
    )


def require_finite(tensor: Tensor, what: str) -> None:
    """No NaN and no infinity."""
    bad = int((~torch.isfinite(tensor)).sum())
    require(not bad, f"{what}: {bad} of {tensor.numel()} numbers are not finite")


def require_same(found: Features, expected: Features, what: str) -> None:
    """Two results of the same computation."""
    alike = torch.equal(found.mask, expected.mask)
    alike = alike and distance(found.values, expected.values) <= EQUAL
    require(alike, f"{what} gives other features")


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """A copy of the gradient of each trainable parameter; None where there is none."""
    return {
        name: None if p.grad is None else p.grad.to_dense().clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def same(x: Any, y: Any) -> bool:
    """Whether two preprocessed (or raw) samples are equal, tensors bit by bit."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        alike = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype
        return (
            alike and x.shape == y.shape and torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
        )
    if isinstance(x, Mapping):
        return isinstance(y, Mapping) and x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
    if isinstance(x, Sequence) and not isinstance(x, str):
        alike = isinstance(y, Sequence) and len(x) == len(y)
        return alike and all(same(a, b) for a, b in zip(x, y, strict=True))
    return bool(x == y) or (x != x and y != y)


def weights_like(values: Tensor) -> Tensor:
    """(D,) to weigh features with in a loss: behind a LayerNorm a plain sum has no gradient."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(values.shape[-1], generator=random).to(values.device, values.dtype)


def _count(valid: Tensor) -> int:
    return valid.shape[0]
