"""The syntax tree of a method, and the method again with some of its calls exchanged.

A tree is used only if compiling it gives the bytecode that runs: a file that has changed since it
was imported, or code that something else has rewritten, is left alone. The new function has the
globals, closure, defaults and line numbers of the old one, so that whatever is looked up by name is
still looked up at every call, and tracebacks point at the lines that people know.
"""

import ast
import linecache
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

Position = tuple[int, int, int, int]

_GENERATOR_FLAGS = 0x20 | 0x80 | 0x200  # generator, coroutine, asynchronous generator
_FUTURE_FLAGS = 0x1FE0000  # `from __future__ import ...`, as compile() wants them


class UnreadableError(Exception):
    """Why a function's source cannot be used."""


class Place(NamedTuple):
    """A function in a file: its tree, the class it stands in, and the file's imports.

    Names that a file imports compile to other instructions than names that it does not.
    """

    tree: ast.FunctionDef
    owner: str | None
    imports: list[ast.stmt]


class Source(NamedTuple):
    """A function, the tree that it was compiled from, and what stands around the tree."""

    function: FunctionType
    place: Place
    parents: dict[ast.AST, ast.AST]

    @property
    def tree(self) -> ast.FunctionDef:
        """The function's definition."""
        return self.place.tree

    @property
    def parameters(self) -> list[str]:
        """Names of the positional parameters, ``self`` first."""
        arguments = self.tree.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args)]

    def line(self, node: ast.AST) -> str:
        """``file:line`` of a node."""
        return f"{self.function.__code__.co_filename}:{getattr(node, 'lineno', '?')}"


def position(node: ast.AST) -> Position:
    """Where an expression stands; no two expressions of one class share it."""
    return (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore


def innermost(function: Callable[..., Any]) -> FunctionType:
    """The function that decorators made with ``functools.wraps`` stand around."""
    while isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if not isinstance(function, FunctionType):
        raise UnreadableError(f"it is a {type(function).__name__}, no Python function")
    return function


@lru_cache(maxsize=4096)
def read(function: FunctionType) -> Source:
    """The source of an undecorated function.

    Raises:
        UnreadableError: there is none, or it is not what runs.
    """
    code = function.__code__
    if code.co_flags & _GENERATOR_FLAGS:
        raise UnreadableError("it is a generator or coroutine")
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    found = _definitions(text).get((code.co_firstlineno, code.co_name)) if text else None
    if found is None:
        raise UnreadableError(f"its source is not in {code.co_filename}")
    if not _same(_compile(function, found, ()), code):
        raise UnreadableError(f"{code.co_filename} is not what was loaded")
    walked = ast.walk(found.tree)
    parents = {child: node for node in walked for child in ast.iter_child_nodes(node)}
    return Source(function, found, parents)


@lru_cache(maxsize=256)
def _definitions(text: str) -> dict[tuple[int, str], Place]:
    """Every function of a file by first line and name."""
    found: dict[tuple[int, str], Place] = {}
    imports: list[ast.stmt] = []

    def visit(node: ast.AST, owner: str | None, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found[first, child.name] = Place(child, owner, imports)
            imported = isinstance(child, ast.Import | ast.ImportFrom)
            if top and imported and getattr(child, "module", None) != "__future__":
                imports.append(child)  # type: ignore[arg-type]
            within = top and not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda)
            visit(child, child.name if isinstance(child, ast.ClassDef) else owner, within)

    try:
        visit(ast.parse(text), None, True)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return found


def _compile(function: FunctionType, place: Place, added: tuple[str, ...]) -> CodeType:
    """The code of a definition; nothing is executed."""
    # The function around it makes its free variables free again, the class private names private.
    body: list[ast.stmt] = [place.tree]
    path = ["factory", place.tree.name]
    if place.owner is not None:
        body = [ast.ClassDef(place.owner, [], [], body, [], **_type_params())]  # type: ignore[arg-type]
        path.insert(1, place.owner)
    names = [*function.__code__.co_freevars, *added]
    arguments = ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])
    factory = ast.FunctionDef("factory", arguments, body, [], None, None, **_type_params())  # type: ignore
    module = ast.fix_missing_locations(ast.Module([*place.imports, factory], []))
    flags = function.__code__.co_flags & _FUTURE_FLAGS
    code = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    for name in path:
        code = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name][-1]
    return code


def _type_params() -> dict[str, list[Any]]:
    return {"type_params": []} if "type_params" in ast.FunctionDef._fields else {}


def _same(one: CodeType, other: CodeType) -> bool:
    if (one.co_code, one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars) != (
        *(other.co_code, other.co_names, other.co_varnames),
        *(other.co_freevars, other.co_cellvars),
    ) or len(one.co_consts) != len(other.co_consts):
        return False
    for a, b in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(a, CodeType) and isinstance(b, CodeType):
            if not _same(a, b):
                return False
        elif type(a) is not type(b) or repr(a) != repr(b):
            return False
    return True


def exchanged(
    decorated: FunctionType, calls: Mapping[Position, tuple[Callable[..., Any], ast.expr]]
) -> FunctionType:
    """``decorated`` with expressions of its innermost function exchanged.

    Args:
        decorated: the method as the class has it.
        calls: by position, a function and the call that shall stand there; the call's function is
            a name of any kind, which is replaced.

    Raises:
        UnreadableError: a decorator does not hold the function in a way that can be exchanged.
    """
    inner = innermost(decorated)
    source = read(inner)
    helpers = {f"_mmfast_{i}": helper for i, (helper, _) in enumerate(calls.values())}
    names = dict(zip(calls, helpers, strict=True))
    place = source.place._replace(tree=_Exchange(calls, names).visit(source.tree))
    code = _compile(inner, place, tuple(helpers))
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    cells.update({name: CellType(helper) for name, helper in helpers.items()})
    new = _like(inner, code, tuple(cells[name] for name in code.co_freevars))
    return _rewrapped(decorated, inner, new)


class _Exchange(ast.NodeTransformer):
    """Copies as it goes: the tree belongs to every instance of the class."""

    def __init__(self, calls: Mapping[Position, tuple[Any, ast.expr]], names: Mapping) -> None:
        self.calls, self.names = calls, names

    def visit(self, node: ast.AST) -> Any:
        fields = {
            name: [self.visit(v) if isinstance(v, ast.AST) else v for v in value]
            if isinstance(value, list)
            else self.visit(value)
            if isinstance(value, ast.AST)
            else value
            for name, value in ast.iter_fields(self._wanted(node))
        }
        copied = ast.copy_location(type(self._wanted(node))(**fields), node)
        if isinstance(node, ast.Call | ast.Subscript) and position(node) in self.calls:
            copied.func = ast.copy_location(  # type: ignore[attr-defined]
                ast.Name(self.names[position(node)], ast.Load()), node
            )
        return copied

    def _wanted(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Call | ast.Subscript) and position(node) in self.calls:
            return self.calls[position(node)][1]
        return node


def _like(old: FunctionType, code: CodeType, closure: tuple[CellType, ...]) -> FunctionType:
    new = FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure or None)
    new.__kwdefaults__ = old.__kwdefaults__
    if hasattr(old, "__annotate__"):  # Python 3.14: asking for them would evaluate them
        new.__annotate__ = old.__annotate__  # type: ignore[attr-defined]
    else:
        new.__annotations__ = old.__annotations__
    new.__qualname__ = old.__qualname__
    new.__module__ = old.__module__
    new.__doc__ = old.__doc__
    new.__dict__.update(old.__dict__)
    return new


def _rewrapped(outer: FunctionType, inner: FunctionType, new: FunctionType) -> FunctionType:
    """The decorators of ``outer`` around ``new``: each holds what it wraps in its closure."""
    if outer is inner:
        return new
    wrapped = outer.__wrapped__  # type: ignore[attr-defined]
    replacement = _rewrapped(wrapped, inner, new)
    cells = outer.__closure__ or ()
    holds = [cell.cell_contents is wrapped for cell in cells]
    if sum(holds) != 1 or any(name.startswith("_torchdynamo") for name in vars(outer)):
        raise UnreadableError("a decorator stands around it that cannot be put around another")
    closure = tuple(
        CellType(replacement) if held else cell for held, cell in zip(holds, cells, strict=True)
    )
    rebuilt = _like(outer, outer.__code__, closure)
    rebuilt.__dict__["__wrapped__"] = replacement
    return rebuilt
