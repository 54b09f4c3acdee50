"""``(torch.stack(inputs, d) * weights).sum(d)``: the weighted sum of attention over modalities.

The product, as large as all inputs together, is never built; nor is the stack if nothing else reads
it. Inductor fuses this by itself, so :mod:`mmfast.fusing.graph` leaves it.
"""

import ast
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast import functional
from mmfast.fusing.flow import Flow
from mmfast.fusing.names import Scope, SkipError, resolve
from mmfast.fusing.pieces import constant
from mmfast.fusing.runtime import DEVICES, Seen, autocasts, is_plain
from mmfast.ops.concat_linear import DTYPES

SMALL = 1 << 15  # elements up to which a call's own time decides


def weighted_sums(scope: Scope) -> list[tuple[ast.Call, ast.expr, ast.expr, int]]:
    """Every ``(a * b).sum(dim)`` where ``a`` is a stack: the call, stack, weights, dimension."""
    found = []
    for node in ast.walk(scope.source.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "sum":
            product, arguments = node.func.value, node.args
            if resolve(scope, node.func) is torch.sum and node.args:
                product, arguments = node.args[0], node.args[1:]
        else:
            continue
        keywords = {k.arg: k.value for k in node.keywords}
        dims = [*arguments, *(keywords.pop(name) for name in ("dim", "axis") if name in keywords)]
        dim = constant(dims[0]) if len(dims) == 1 and not keywords else None
        if (
            dim is None
            or not isinstance(product, ast.BinOp)
            or not isinstance(product.op, ast.Mult)
        ):
            continue
        sides = (product.left, product.right)
        for stack, weights in (sides, sides[::-1]):
            if stack_of(scope, stack) is not None:
                found.append((node, stack, weights, dim))
                break
    return found


def stack_of(scope: Scope, node: ast.expr) -> ast.Call | None:
    """The call of ``torch.stack`` whose value an expression has."""
    if isinstance(node, ast.Call):
        return node if resolve(scope, node.func) is torch.stack else None
    if not isinstance(node, ast.Name):
        return None
    assigned = [
        n
        for n in ast.walk(scope.source.tree)
        if isinstance(n, ast.Name) and n.id == node.id and isinstance(n.ctx, ast.Store)
    ]
    if len(assigned) != 1:
        return None
    parent = scope.source.parents[assigned[0]]
    return (
        stack_of(scope, parent.value)
        if isinstance(parent, ast.Assign) and isinstance(parent.value, ast.Call)
        else None
    )


def defer_stack(flow: Flow, scope: Scope, stack: ast.expr, end: ast.Call) -> None:
    """Leave the stack unbuilt if the weighted sum alone reads it."""
    call = stack_of(scope, stack)
    assert call is not None
    try:
        uses, _ = flow.uses_of(scope, call)
        if uses not in ([stack], [call]):
            return
        flow.check_window(scope, call, [end], True)
    except SkipError:
        return
    flow.found.exchange(scope, call, unstacked, call)


def unstacked(tensors: Any, dim: int = 0) -> Any:
    """What stands for ``torch.stack``: its arguments, if :func:`make_sum` can do with them."""
    if isinstance(tensors, list | tuple) and tensors and _alike(tensors):
        return tuple(tensors), dim % (tensors[0].dim() + 1)
    return torch.stack(tensors, dim)


def make_sum(dim: int, stack_first: bool, seen: Seen | None = None) -> Any:
    """What stands for ``(stack * weights).sum(dim)``."""

    def total(one: Any, other: Any) -> Tensor:
        stack, weights = (one, other) if stack_first else (other, one)
        held = type(stack) is tuple
        tensors, place = stack if held else ((), 0)
        if not held and is_plain(stack) and -stack.dim() <= dim < stack.dim():
            place = dim % stack.dim()
            tensors = stack.unbind(place)
        fits = bool(tensors) and _fits(tensors, weights, place, dim)
        if seen is not None:
            seen.tell(tensors, None, fits)
        if fits:
            rows = weights.squeeze(-1).movedim(place, -1)
            return functional.weighted_sum(tensors, rows, per="row")
        whole = torch.stack(tensors, place) if held else stack
        return (whole * weights if stack_first else weights * whole).sum(dim)

    return total


def _alike(tensors: Sequence[Any]) -> bool:
    first = tensors[0]
    return all(
        is_plain(x)
        and x.dtype in DTYPES
        and x.dtype is first.dtype
        and x.shape == first.shape
        and x.device.type in DEVICES
        for x in tensors
    )


def _fits(tensors: Sequence[Tensor], weights: Any, place: int, dim: int) -> bool:
    first = tensors[0]
    dims = first.dim() + 1
    if not is_plain(weights) or weights.dim() != dims or not _alike(tensors):
        return False
    if weights.device != first.device or weights.dtype is not first.dtype or autocasts(weights):
        return False
    if not -dims <= dim < dims or dim % dims != place or place == dims - 1 or dims < 2:
        return False
    shape = [*first.shape[:place], len(tensors), *first.shape[place:]]
    if weights.shape[-1] != 1 or weights.shape[place] != len(tensors):
        return False
    if any(w not in (1, n) for w, n in zip(weights.shape, shape, strict=True)):
        return False
    return torch.compiler.is_compiling() or len(tensors) * first.numel() > SMALL
