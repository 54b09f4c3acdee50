"""What every fused model must be: the same function, within the operators' numeric promise."""

import copy
from typing import Any

import torch
from reference import ErrorRule
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mmfast

# By their names in a profile.
OPERATORS = ("mmfast::concat_linear", "mmfast::concat_linear_plain", "mmfast::weighted_sum")


def values(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Floating results of a model and, of the sum of their squares, every parameter's gradient."""
    torch.manual_seed(3)  # dropout
    results = [x for x in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(x, Tensor)]
    results = [x for x in results if x.is_floating_point()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    scaled = [x.double().square().mean() for x in results if x.requires_grad]
    gradients = torch.autograd.grad(sum(scaled), parameters, allow_unused=True) if scaled else []
    return [x.detach() for x in results], [g for g in gradients if g is not None]


def double(value: Any) -> Any:
    def convert(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, convert, value)


def layout(x: Tensor) -> list[int]:
    """The strides that say something: not those of dimensions of size 1."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def check_same(
    model: nn.Module,
    *args: Any,
    fused: int | None = None,
    factors: tuple[float, float] = (2, 3),
    **kwargs: Any,
) -> mmfast.fusing.Report:
    """Fuse ``model``; compare before, after and reverted; leave it reverted.

    Errors are against the model in float64: results within twice, gradients within three times
    what the model makes of itself in its own dtype.
    """
    exact = values(copy.deepcopy(model).double(), *double(args), **double(kwargs))
    state = copy.deepcopy(model.state_dict())
    before = values(model, *args, **kwargs)
    model.load_state_dict(state)
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    report = mmfast.fuse(model)
    if fused is not None:
        assert len(report.fused) == fused, str(report)
    after = values(model, *args, **kwargs)
    model.load_state_dict(state)
    assert list(model.state_dict()) == list(state)
    for what, factor, i in (("results", factors[0], 0), ("gradients", factors[1], 1)):
        assert len(after[i]) == len(before[i]) == len(exact[i])
        for a, b, e in zip(after[i], before[i], exact[i], strict=True):
            assert a.dtype == b.dtype
            assert layout(a) == layout(b) or a.numel() == 0
            rule = ErrorRule(b.dtype)
            rule.add(a, e, b, e)
            rule.largest = max(rule.largest, 1e-3 * max(x.abs().max().item() for x in exact[i]))
            rule.check(factor, what)
    report.revert()
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    again = values(model, *args, **kwargs)
    model.load_state_dict(state)
    for a, b in zip(pytree.tree_leaves(again), pytree.tree_leaves(before), strict=True):
        assert torch.equal(a, b)
    return report


def is_fused(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """How often mmfast's operators ran in one call of the model."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(*args, **kwargs)
    return sum(event.count for event in profile.key_averages() if event.key in OPERATORS)
