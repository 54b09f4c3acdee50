"""What a list that is concatenated holds: gathered, repeated and broadcast rows.

``torch.cat([x[index], y.repeat(n, 1)], -1)`` copies rows before the concatenation does. Where such
an expression is used for nothing else, the operator is given the rows and the index instead.
"""

import ast
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmfast.fusing import runtime
from mmfast.fusing.flow import Flow
from mmfast.fusing.names import Scope, SkipError, resolve, uses_after

CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


def concatenations(scope: Scope) -> list[ast.Call]:
    """The calls of ``torch.cat`` in a method, in the order of the source."""
    calls = [n for n in ast.walk(scope.source.tree) if isinstance(n, ast.Call)]
    found = [call for call in calls if _is_concatenation(resolve(scope, call.func))]
    return sorted(found, key=lambda call: (call.lineno, call.col_offset))


def _is_concatenation(function: Any) -> bool:
    return callable(function) and any(function is known for known in CONCATENATIONS)


def check_call(scope: Scope, call: ast.Call) -> bool:
    """Refuse what is no concatenation along the last dimension; whether the dimension is 1.

    Raises:
        SkipError: with the reason.
    """
    names = [keyword.arg for keyword in call.keywords]
    arguments = dict(zip(("tensors", "dim"), call.args, strict=False))
    arguments.update({k.arg: k.value for k in call.keywords if k.arg})
    if "axis" in arguments:
        arguments["dim"] = arguments.pop("axis")
    if None in names or any(isinstance(a, ast.Starred) for a in call.args) or "out" in names:
        raise SkipError("its arguments are given by *, ** or out=")
    dim = constant(arguments["dim"]) if "dim" in arguments else 0
    if dim == 0 or (isinstance(dim, int) and dim < -1 and dim != -3 and dim != -2):
        raise SkipError(f"it joins along dimension {dim}, not the last")
    return dim in (1, -2, -3)


def constant(node: ast.expr) -> int | None:
    """The integer that an expression spells, or None."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int) else None


def defer_pieces(flow: Flow, scope: Scope, call: ast.Call) -> None:
    """Exchange the gathers and repeats in a concatenation's list."""
    listed = call.args[0] if call.args else None
    if not isinstance(listed, ast.List | ast.Tuple):
        return
    for element in listed.elts:
        value = element
        if isinstance(element, ast.Name):
            value = _assigned(flow, scope, element, call) or element
        found = _gather(scope, value)
        if found is not None:
            helper, arguments = found
            replaced = ast.copy_location(ast.Call(ast.Name("f", ast.Load()), arguments, []), value)
            flow.found.exchange(scope, value, helper, replaced)


def _assigned(flow: Flow, scope: Scope, element: ast.Name, call: ast.Call) -> ast.expr | None:
    """The expression that a local variable holds, if it is for this one list."""
    for node in ast.walk(scope.source.tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id != element.id or _gather(scope, node.value) is None:
            continue
        try:
            uses, _ = flow.uses_of(scope, node.value)
            if uses == [element] and _before(node, element):
                flow.check_window(scope, node.value, [call], True)
                return node.value
        except SkipError:
            continue
    return None


def _before(one: ast.AST, other: ast.AST) -> bool:
    return (one.lineno, one.col_offset) < (other.lineno, other.col_offset)  # type: ignore


def _gather(scope: Scope, node: ast.expr) -> tuple[Callable[..., Any], list[ast.expr]] | None:
    """The function that stands for a gather or repeat, and its arguments."""
    if isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Slice | ast.Tuple | ast.Constant | ast.UnaryOp):
            return None
        if resolve(scope, node.value) is not None:  # an item of a list of modules
            return None
        return runtime.rows, [node.value, node.slice]
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
        return None
    function = resolve(scope, node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    if function is F.embedding and len(node.args) == 2 and not keywords:
        return runtime.embedded, list(node.args)
    if function is torch.index_select and len(node.args) == 3 and not keywords:
        return runtime.selected, list(node.args)
    if function is not None or not isinstance(node.func, ast.Attribute):
        return None
    base, name = node.func.value, node.func.attr
    if isinstance(resolve(scope, base), nn.Module):
        return None
    if name == "repeat" and not keywords and node.args:
        return runtime.repeated, [base, *node.args]
    if name == "index_select" and len(node.args) == 2 and not keywords:
        return runtime.selected, [base, *node.args]
    if name == "repeat_interleave" and node.args:
        dim = keywords.pop("dim", None) if len(node.args) == 1 else node.args[-1]
        if dim is not None and len(node.args) <= 2 and not keywords:
            return runtime.interleaved, [base, node.args[0], dim]
    return None


def check_unchanged(scope: Scope, call: ast.Call) -> None:
    """Refuse a list whose variables the method changes in place later: backward reads them then.

    Raises:
        SkipError: naming the variable.
    """
    listed = call.args[0] if call.args else None
    if not isinstance(listed, ast.List | ast.Tuple):
        return
    source = scope.source
    statement: Any = call
    while not isinstance(statement, ast.stmt):
        statement = source.parents[statement]
    names = {e.id for e in listed.elts if isinstance(e, ast.Name)}
    if isinstance(statement, ast.Assign):  # from here on they name something else
        names -= {t.id for t in statement.targets if isinstance(t, ast.Name)}
    for name in sorted(names):
        if any(_changes(scope, use) for use in uses_after(source, statement, name)):
            raise SkipError(f"{name}, a piece of it, is changed in place later")


def _changes(scope: Scope, use: ast.expr) -> bool:
    node, parent = use, scope.source.parents[use]
    while isinstance(parent, ast.Attribute | ast.Subscript) and parent.value is node:
        if not isinstance(parent.ctx, ast.Load):
            return True
        node, parent = parent, scope.source.parents[parent]
    if not isinstance(parent, ast.Call):
        return False
    if parent.func is node:
        name = node.attr if isinstance(node, ast.Attribute) else ""
        return name.endswith("_") and not name.endswith("__")
    function = resolve(scope, parent.func)
    if parent.args[:1] != [node]:
        return False
    return getattr(function, "__name__", "").endswith("_") or _in_place(scope, parent)


def _in_place(scope: Scope, call: ast.Call) -> bool:
    if any(k.arg == "inplace" and constant(k.value) != 0 for k in call.keywords):
        return True
    module = resolve(scope, call.func)
    return isinstance(module, nn.Module) and getattr(module, "inplace", False) is True
