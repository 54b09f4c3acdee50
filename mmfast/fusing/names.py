"""What the expressions of a method name, and where its values are used."""

import ast
import builtins
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from mmfast.fusing.runtime import Step
from mmfast.fusing.source import Source, UnreadableError, innermost, read

SCOPES = (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LOOPS = (ast.For, ast.While)


class SkipError(Exception):
    """Why a place is left alone."""


@dataclass(frozen=True)
class Scope:
    """One method of one module, and the way to the module from where the value was made."""

    module: nn.Module
    method: str
    source: Source
    steps: tuple[Step, ...]

    @property
    def self_name(self) -> str:
        """What the method calls its instance."""
        return self.source.parameters[0] if self.source.parameters else ""


def scope_of(module: nn.Module, method: str, steps: tuple[Step, ...] = ()) -> Scope:
    """The scope of a method as its class has it.

    Raises:
        SkipError: its source cannot be used.
    """
    function = inspect.getattr_static(type(module), method, None)
    if not isinstance(function, FunctionType):
        raise SkipError(f"{type(module).__name__}.{method} is no plain method")
    try:
        source = read(innermost(function))
        if {"locals", "eval", "exec", "vars", "dir"} & set(source.function.__code__.co_names):
            raise UnreadableError("it reads its own variables")
        return Scope(module, method, source, steps)
    except UnreadableError as error:
        raise SkipError(f"{type(module).__name__}.{method} cannot be read: {error}") from None


def resolve(scope: Scope, node: ast.expr) -> Any:
    """The object that an expression names whenever the method runs, or None."""
    if isinstance(node, ast.Name):
        return _resolve_name(scope, node.id)
    if isinstance(node, ast.Attribute):
        base = resolve(scope, node.value)
        if isinstance(base, ModuleType):
            return getattr(base, node.attr, None)
        if isinstance(base, nn.Module):
            return _attribute(base, node.attr)
        return None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        base = resolve(scope, node.value)
        known = isinstance(base, nn.ModuleList | nn.ModuleDict | nn.Sequential | list | tuple)
        try:
            return base[node.slice.value] if known else None
        except (IndexError, KeyError, TypeError):
            return None
    return None


def _resolve_name(scope: Scope, name: str) -> Any:
    function, tree = scope.source.function, scope.source.tree
    code = function.__code__
    if name == scope.self_name and not _stores(tree, name):
        return scope.module
    if name in code.co_varnames or name in code.co_cellvars:
        return None
    if name in code.co_freevars:
        cell = (function.__closure__ or ())[code.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:
            return None
    names: dict[str, Any] = function.__globals__  # type: ignore[attr-defined]
    return names.get(name, getattr(builtins, name, None))


def _attribute(module: nn.Module, name: str) -> Any:
    for held in (module._modules, module._parameters):
        if name in held:
            return held[name]
    value = vars(module).get(name)
    return value if isinstance(value, nn.Module | list | tuple) else None


def steps_of(scope: Scope, node: ast.expr) -> tuple[Step, ...]:
    """The way from the scope's module to what :func:`resolve` found."""
    if isinstance(node, ast.Attribute):
        return (*steps_of(scope, node.value), node.attr)
    if isinstance(node, ast.Subscript):
        key = key_of(resolve(scope, node.value), node.slice.value)  # type: ignore[attr-defined]
        return (*steps_of(scope, node.value), key)
    return ()


def key_of(container: Any, item: Any) -> Step:
    """A module's own name for an item of it: quicker at every call than its ``__getitem__``."""
    if isinstance(container, nn.ModuleList | nn.Sequential):
        return list(container._modules)[item]
    return item


def is_method_of(scope: Scope, node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and resolve(scope, node.value) is scope.module
        and isinstance(inspect.getattr_static(type(scope.module), node.attr, None), FunctionType)
        and not hasattr(nn.Module, node.attr)
    )


def _hashable(table: dict, value: Any) -> dict:
    try:
        hash(value)
    except TypeError:
        return {}
    return table


def uses_after(source: Source, statement: ast.stmt, name: str) -> list[ast.expr]:
    """Every use of what ``statement`` assigns to ``name``."""
    uses: list[ast.expr] = []
    node: ast.AST = statement
    while not isinstance(node, ast.FunctionDef):
        parent = source.parents[node]
        for block in _blocks(parent):
            if node in block:
                place = block.index(node)
                more, killed = scan(block[place + 1 :], name)
                uses += more
                if killed:
                    return uses
                if isinstance(parent, LOOPS):
                    uses += scan(block[: place + 1], name)[0]
        node = parent
    return uses


def _blocks(node: ast.AST) -> Iterator[list[Any]]:
    for field_name in ("body", "orelse", "finalbody"):
        block = getattr(node, field_name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body
    for case in getattr(node, "cases", ()):
        yield case.body


def scan(block: list[ast.stmt], name: str) -> tuple[list[ast.expr], bool]:
    """The uses of a name from the start of a block, and whether it is then assigned anew."""
    uses: list[ast.expr] = []
    for statement in block:
        if isinstance(statement, ast.If):
            uses += _loads(statement.test, name)
            branches = [scan(branch, name) for branch in (statement.body, statement.orelse)]
            uses += [use for found, _ in branches for use in found]
            if all(killed for _, killed in branches):
                return uses, True
        elif isinstance(statement, ast.With):
            for item in statement.items:
                uses += _loads(item, name)
            found, killed = scan(statement.body, name)
            uses += found
            if killed:
                return uses, True
        else:
            uses += _loads(statement, name)
            if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
                return uses, isinstance(statement, ast.Return | ast.Raise)
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets = [statement.target]
            names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            if any(n.id == name and isinstance(n.ctx, ast.Store) for n in names):
                return uses, True
    return uses, False


def _loads(node: ast.AST, name: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    for child in ast.walk(node):
        if isinstance(child, SCOPES):
            inner = [n for n in ast.walk(child) if isinstance(n, ast.Name) and n.id == name]
            if inner:
                raise SkipError(f"{name} is used by a function defined inside")
        target = child.target if isinstance(child, ast.AugAssign) else None
        if isinstance(target, ast.Name) and target.id == name:
            raise SkipError(f"{name} is changed in place")
        if isinstance(child, ast.Name) and child.id == name and isinstance(child.ctx, ast.Load):
            found.append(child)
    return found


def _stores(tree: ast.AST, name: str) -> bool:
    return any(
        isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load)
        for n in ast.walk(tree)
    )


def declared(tree: ast.AST) -> set[str]:
    kinds = (ast.Global, ast.Nonlocal)
    return {name for n in ast.walk(tree) if isinstance(n, kinds) for name in n.names}


def end_of(node: ast.AST) -> tuple[int, int]:
    return (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def around(source: Source, end: ast.expr, origin: ast.expr | None) -> Iterator[ast.AST]:
    """What may run again before ``end``: the loops and comprehensions around it, not ``origin``."""
    node: ast.AST = end
    repeated = (*LOOPS, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
    while node is not source.tree:
        node = source.parents[node]
        if isinstance(node, repeated):
            walked = list(ast.walk(node))
            if origin is None or not any(n is origin for n in walked):
                yield from walked


def withs(source: Source, node: ast.AST) -> list[int]:
    found = []
    while node is not source.tree:
        node = source.parents[node]
        if isinstance(node, ast.With | ast.AsyncWith):
            found.append(id(node))
    return found


def what_else(source: Source, parent: ast.AST, use: ast.expr) -> str:
    """What is done with a value that is not handed to a call."""
    around = parent
    while isinstance(around, ast.List | ast.Tuple | ast.Dict):
        around = source.parents[around]
    parent = around if isinstance(around, ast.Return) else parent
    name = f"{use.id} " if isinstance(use, ast.Name) else "it "
    if isinstance(parent, ast.Return):
        return f"{name}is returned"
    if isinstance(parent, ast.Attribute):
        return f"{name}has another use: .{parent.attr}"
    if isinstance(parent, ast.List | ast.Tuple | ast.Dict | ast.Assign | ast.Starred):
        return f"{name}is kept"
    return f"{name}has another use: {type(parent).__name__}"
