"""Where a concatenation goes, proved from the source of the modules it goes through.

A value is followed from the call that makes it to the layers that consume it: through local
variables, dropout, ``nn.Sequential``, and the ``forward`` of any module whose source can be read.
It may be handed on as pieces if every single use of it is such a step, and nothing runs between
the concatenation and its last consumer that could change a piece or the grad mode. Whatever is not
understood raises :class:`SkipError` with the reason, and the place is left as it is.
"""

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmfast.fusing import runtime
from mmfast.fusing.runtime import Guard, Step
from mmfast.fusing.source import Position, Source, UnreadableError, innermost, position, read

ACTIVATION_CALLS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
ACTIVATION_METHODS = ("relu", "tanh", "sigmoid")
ACTIVATION_MODULES = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
DROPOUTS = (nn.Dropout,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_QUIET_BUILTINS = {"len", "int", "float", "bool", "isinstance", "range", "enumerate", "zip"}
_QUIET_BUILTINS |= {"tuple", "list", "min", "max", "sorted", "str"}
_QUIET_METHODS = {"size", "dim", "numel", "keys", "values", "items"}
_WRITES = (ast.AugAssign, ast.Delete, ast.Await, ast.Yield, ast.YieldFrom, ast.Try, ast.NamedExpr)
_SCOPES = (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LOOPS = (ast.For, ast.While)
_DEPTH = 8


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


Exchange = tuple[Callable[..., Any], ast.expr]


@dataclass
class Found:
    """What following a value came to."""

    consumers: list[tuple[nn.Module, str]] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    channels: set[bool] = field(default_factory=set)
    guards: dict[tuple[tuple[Step, ...], nn.Module, str], None] = field(default_factory=dict)
    exchanges: dict[tuple[nn.Module, str], dict[Position, Exchange]] = field(default_factory=dict)
    leaves: dict[nn.Module, str] = field(default_factory=dict)

    def exchange(self, scope: Scope, node: ast.expr, helper: Callable[..., Any], call: ast.expr) -> None:
        """Put ``helper`` into ``node``'s place, called as ``call`` is."""
        of_method = self.exchanges.setdefault((scope.module, scope.method), {})
        of_method[position(node)] = helper, call

    def seal(self) -> list[Guard]:
        """What must still hold whenever pieces are handed on."""
        guards: list[Guard] = []
        for steps, module, method in self.guards:
            changed = module in self.leaves or (module, method) in self.exchanges
            guards.append((steps, method, None if changed else getattr(type(module), method)))
        return guards


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


class Flow:
    """Follows one value; ``found`` holds the result."""

    def __init__(self, tied: dict[int, str]) -> None:
        self.found = Found()
        self.tied = tied
        self.depth = 0
        self.accepted: set[int] = set()  # calls that take the value

    # --- within one function ----------------------------------------------------------------------

    def follow_expression(self, scope: Scope, origin: ast.expr) -> None:
        """Follow the value of ``origin``, an expression of ``scope``."""
        uses, bound = self.uses_of(scope, origin)
        if not uses:
            raise SkipError("its value is not used")
        ends = [self.accept(scope, use) for use in uses]
        self.check_window(scope, origin, ends, bound)

    def follow_parameter(self, scope: Scope, name: str) -> None:
        """Follow what a call gives ``scope`` as its parameter ``name``."""
        tree = scope.source.tree
        if tree.decorator_list:
            raise SkipError(f"{type(scope.module).__name__}.{scope.method} is decorated")
        uses, _ = _scan(tree.body, name)
        if not uses:
            raise SkipError(f"{type(scope.module).__name__}.{scope.method} does not use it")
        ends = [self.accept(scope, use) for use in uses]
        self.check_window(scope, None, ends, True)

    def uses_of(self, scope: Scope, origin: ast.expr) -> tuple[list[ast.expr], bool]:
        """The expressions that take the value, and whether it has a name in between."""
        parents = scope.source.parents
        parent = parents[origin]
        if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
            target = parent.targets[0]
        elif isinstance(parent, ast.AnnAssign):
            target = parent.target
        else:
            return [origin], False
        if not isinstance(target, ast.Name):
            raise SkipError("it is kept: assigned to something other than a local variable")
        if target.id in _declared(scope.source.tree):
            raise SkipError(f"it is kept: {target.id} is no local variable")
        return uses_after(scope.source, parent, target.id), True

    def accept(self, scope: Scope, use: ast.expr) -> ast.expr:
        """Check that a use hands the value to a consumer; the call that does."""
        parent = scope.source.parents[use]
        if isinstance(parent, ast.Compare):
            none = [isinstance(x, ast.Constant) and x.value is None for x in parent.comparators]
            if parent.left is use and all(none) and all(
                isinstance(op, ast.Is | ast.IsNot) for op in parent.ops
            ):
                return parent
        if isinstance(parent, ast.keyword):
            call = scope.source.parents[parent]
        else:
            call = parent
        if not isinstance(call, ast.Call) or use is call.func:
            raise SkipError(_what(scope.source, parent, use))
        if any(isinstance(a, ast.Starred) for a in call.args) or use not in call.args:
            raise SkipError("it is not handed on as a positional argument")
        argument = call.args.index(use)
        function = resolve(scope, call.func)
        if function is None and isinstance(call.func, ast.Name):
            return self.accept_each(scope, call, argument)
        if isinstance(function, nn.Module):
            steps = (*scope.steps, *steps_of(scope, call.func))
            self.accept_call_of(scope, call, function, argument, steps)
        elif function is F.linear and argument == 0:
            self.accept_linear_function(scope, call)
        elif function is F.dropout and argument == 0:
            self.found.exchange(scope, call, runtime.dropout, call)
            self.follow_expression(scope, call)
        elif _is_method_of(scope, call.func):
            self.accept_method(scope, call, argument)
        else:
            raise SkipError(f"it is given to {ast.unparse(call.func)}")
        return call

    def accept_each(self, scope: Scope, call: ast.Call, argument: int) -> ast.expr:
        """``tuple(layer(value) for layer in self.layers)`` and the list of it."""
        node: ast.AST = call
        while not isinstance(node, ast.stmt | ast.GeneratorExp | ast.ListComp):
            node = scope.source.parents[node]
        outer = scope.source.parents[node]
        if isinstance(node, ast.GeneratorExp):
            builder = resolve(scope, outer.func) if isinstance(outer, ast.Call) else None
            if builder not in (tuple, list):
                raise SkipError(f"it is given to {ast.unparse(call.func)}")
        if not isinstance(node, ast.GeneratorExp | ast.ListComp) or node.elt is not call:
            raise SkipError(f"it is given to {ast.unparse(call.func)}")
        loop = node.generators[0]
        layers = resolve(scope, loop.iter)
        if (
            len(node.generators) != 1
            or loop.ifs
            or not isinstance(loop.target, ast.Name)
            or loop.target.id != call.func.id  # type: ignore[attr-defined]
            or not isinstance(layers, list | tuple | nn.ModuleList)
        ):
            raise SkipError(f"it is given to {ast.unparse(call.func)}")
        for i, layer in enumerate(layers):
            if not isinstance(layer, nn.Module) or not _plain(layer):
                raise SkipError(f"{ast.unparse(loop.iter)} holds other than torch's own layers")
            before = len(self.found.activations)
            steps = (*scope.steps, *steps_of(scope, loop.iter), _key(layers, i))
            self.accept_module(layer, argument, steps)
            if len(self.found.activations) == before:
                self.found.activations.append("none")
        self.accepted.add(id(call))
        return node

    def accept_call_of(
        self, scope: Scope, call: ast.Call, module: nn.Module, argument: int, steps: tuple[Step, ...]
    ) -> None:
        """A call of ``module`` in the source."""
        if type(module) in DROPOUTS or type(module) is nn.Identity:
            self.pass_through(module, steps)
            self.follow_expression(scope, call)
            return
        before = len(self.found.activations)
        self.accept_module(module, argument, steps)
        if len(self.found.activations) == before:  # a layer, not something around one
            self.found.activations.append(self.activation_after(scope, call))

    def accept_linear_function(self, scope: Scope, call: ast.Call) -> None:
        """``F.linear(value, self.weight, self.bias)``."""
        weight = resolve(scope, call.args[1]) if len(call.args) > 1 else None
        for keyword in call.keywords:
            if keyword.arg == "weight":
                weight = resolve(scope, keyword.value)
        if not isinstance(weight, nn.Parameter):
            raise SkipError("F.linear's weight is no parameter of the module")
        self.check_tied(weight)
        check_module(scope.module, layer=False)
        self.found.exchange(scope, call, runtime.linear, call)
        self.found.consumers.append((scope.module, f"{scope.method}: F.linear"))
        self.found.channels.add(False)
        self.found.activations.append(self.activation_after(scope, call))

    def accept_method(self, scope: Scope, call: ast.Call, argument: int) -> None:
        """``self.method(value)``."""
        name = call.func.attr  # type: ignore[attr-defined]
        if name in vars(scope.module) and not runtime.is_ours(vars(scope.module)[name]):
            raise SkipError(f"self.{name} was replaced on the instance")
        inner = scope_of(scope.module, name, scope.steps)
        self.found.guards[scope.steps, scope.module, name] = None
        self.enter(inner, argument)

    def activation_after(self, scope: Scope, call: ast.expr) -> str:
        """The activation that is the only thing done to a layer's result, made to expect it."""
        try:
            uses, _ = self.uses_of(scope, call)
        except SkipError:
            return "none"
        if len(uses) != 1:
            return "none"
        use = uses[0]
        node = scope.source.parents[use]
        if isinstance(node, ast.Attribute) and node.value is use:
            node, method = scope.source.parents[node], node.attr
            bare = isinstance(node, ast.Call) and not node.args and not node.keywords
            if not bare or method not in ACTIVATION_METHODS or node.func.value is not use:  # type: ignore
                return "none"
            replaced = ast.copy_location(ast.Call(ast.Name("f", ast.Load()), [use], []), node)
            self.found.exchange(scope, node, runtime.make_method(method), replaced)  # type: ignore
            return method
        if not isinstance(node, ast.Call) or node.args[:1] != [use]:
            return "none"
        function = resolve(scope, node.func)
        if isinstance(function, nn.Module):
            name = _activation_module(function)
            if name == "none":
                return "none"
            steps = (*scope.steps, *steps_of(scope, node.func))
            self.leaf(function, "activation", steps)
            return name
        if function not in _hashable(ACTIVATION_CALLS, function) or len(node.args) > 1:
            return "none"
        name = ACTIVATION_CALLS[function]
        for keyword in node.keywords:
            constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg == "approximate" and constant in ("none", "tanh"):
                name = "gelu_tanh" if constant == "tanh" else "gelu"
            elif not (keyword.arg == "inplace" and isinstance(constant, bool)):
                return "none"
        self.found.exchange(scope, node, runtime.make_activation(function), node)
        return name

    # --- modules ----------------------------------------------------------------------------------

    def enter(self, scope: Scope, argument: int) -> None:
        """Follow the value into a function, as its positional argument after ``self``."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise SkipError("the modules it goes through are nested too deeply")
        names = scope.source.parameters[1:]
        if argument >= len(names):
            raise SkipError(f"{type(scope.module).__name__}.{scope.method} takes it as *args")
        self.follow_parameter(scope, names[argument])
        self.depth -= 1

    def accept_module(self, module: nn.Module, argument: int, steps: tuple[Step, ...]) -> None:
        """Check that ``module``, called with the value, consumes it."""
        check_module(module)
        forward = type(module).forward
        if forward is nn.Linear.forward and argument == 0:
            self.check_tied(module.weight)  # type: ignore[arg-type]
            self.leaf(module, "linear", steps)
            self.found.consumers.append((module, ""))
            self.found.channels.add(False)
        elif type(module) in CONVOLUTIONS and argument == 0:
            if not is_pointwise(module):
                raise SkipError(f"it is given to a {type(module).__name__} whose kernel is not 1x1")
            self.check_tied(module.weight)  # type: ignore[arg-type]
            self.leaf(module, "convolution", steps)
            self.found.consumers.append((module, ""))
            self.found.channels.add(True)
        elif forward is nn.Sequential.forward and argument == 0:
            self.found.guards[steps, module, "forward"] = None
            self.accept_sequence(module, steps)  # type: ignore[arg-type]
        else:
            if type(module).__module__.startswith("torch.nn."):
                raise SkipError(f"it is given to {type(module).__name__}")
            inner = scope_of(module, "forward", steps)
            self.found.guards[steps, module, "forward"] = None
            before = len(self.found.activations)
            self.enter(inner, argument)
            if len(self.found.activations) == before:
                raise SkipError(f"{type(module).__name__} does not consume it")

    def accept_sequence(self, sequence: nn.Sequential, steps: tuple[Step, ...]) -> None:
        """The first layer of a sequence, behind dropout; the activation behind it."""
        layers = [*sequence._modules.items(), ("", None)]
        for (name, layer), (next_name, following) in zip(layers, layers[1:], strict=False):
            assert layer is not None
            if type(layer) in DROPOUTS or type(layer) is nn.Identity:
                self.pass_through(layer, (*steps, name))
                continue
            before = len(self.found.activations)
            self.accept_module(layer, 0, (*steps, name))
            if len(self.found.activations) == before:
                name = "none" if following is None else _activation_module(following)
                if following is not None and name != "none":
                    self.leaf(following, "activation", (*steps, next_name))
                self.found.activations.append(name)
            return
        raise SkipError("it is given to a sequence without a layer")

    def pass_through(self, module: nn.Module, steps: tuple[Step, ...]) -> None:
        """Dropout or identity."""
        check_module(module)
        self.leaf(module, "dropout" if type(module) in DROPOUTS else "identity", steps)

    def leaf(self, module: nn.Module, kind: str, steps: tuple[Step, ...]) -> None:
        """Give one of torch's own layers the forward that knows pieces."""
        if kind != "identity":  # whose own forward returns what it is given
            self.found.leaves[module] = kind
        self.found.guards[steps, module, "forward"] = None

    def check_tied(self, weight: torch.Tensor) -> None:
        """Refuse a weight that two modules own."""
        if id(weight) in self.tied:
            raise SkipError(f"the layer's weight is tied: {self.tied[id(weight)]}")

    # --- what runs meanwhile ----------------------------------------------------------------------

    def check_window(
        self, scope: Scope, origin: ast.expr | None, ends: list[ast.expr], bound: bool
    ) -> None:
        """Refuse if anything between ``origin`` and the last consumer could change a piece."""
        source = scope.source
        start = (0, 0) if origin is None else _end(origin)
        stop = max(_end(end) for end in ends)
        inside = {id(n) for end in ends for n in _around(source, end, origin)}
        accepted = self.accepted | {id(end) for end in ends}
        for end in ends:
            if _end(end) != stop and not self.leaves_alone(scope, end):
                raise SkipError("it has several uses, and other code runs between them")
            if _withs(source, end) != ([] if origin is None else _withs(source, origin)):
                raise SkipError("a `with` block begins or ends before the layer")
        own = set() if origin is None else {id(n) for n in ast.walk(origin)}
        for node in ast.walk(source.tree):
            if id(node) in own or id(node) in accepted:
                continue
            if not hasattr(node, "end_lineno"):
                continue
            within = start < _end(node) < stop or id(node) in inside
            if isinstance(node, ast.Call) and within and not self.quiet(scope, node):
                raise SkipError(
                    f"{ast.unparse(node.func)} is called between the concatenation and the layer"
                )
            writes = isinstance(node, _WRITES) or (
                isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load)
            )
            if writes and within:
                raise SkipError("something is written between the concatenation and the layer")

    def leaves_alone(self, scope: Scope, end: ast.expr) -> bool:
        """Whether a consumer that is not the last changes nothing: torch's own layers do not."""
        if not isinstance(end, ast.Call):
            return True
        function = resolve(scope, end.func)
        return function is F.linear or (isinstance(function, nn.Module) and _plain(function))

    def quiet(self, scope: Scope, call: ast.Call) -> bool:
        """Whether a call changes no tensor and no mode."""
        function = resolve(scope, call.func)
        if isinstance(function, BuiltinFunctionType | type):
            name = getattr(function, "__name__", "")
            if getattr(builtins, name, None) is function:
                return name in _QUIET_BUILTINS
            module = getattr(function, "__module__", None) or ""
            named = {keyword.arg for keyword in call.keywords}
            return (
                isinstance(function, BuiltinFunctionType)
                and module in ("torch", "torch._C._nn")
                and getattr(torch, name, None) is function
                and not name.startswith(("_", "set_"))
                and not name.endswith("_")
                and "out" not in named
            )
        if function in (torch.jit.is_scripting, torch.jit.is_tracing):
            return True
        if isinstance(function, nn.Module) and not function._modules and _plain(function):
            if getattr(function, "inplace", False) or runtime.heard(function):
                return False
            self.found.guards[(*scope.steps, *steps_of(scope, call.func)), function, "forward"] = None
            return True
        if function is None and isinstance(call.func, ast.Attribute):
            return call.func.attr in _QUIET_METHODS and not _is_method_of(scope, call.func)
        return False


# --- reading expressions --------------------------------------------------------------------------


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
    return function.__globals__.get(name, getattr(builtins, name, None))


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
        key = _key(resolve(scope, node.value), node.slice.value)  # type: ignore[attr-defined]
        return (*steps_of(scope, node.value), key)
    return ()


def _key(container: Any, item: Any) -> Step:
    """A module's own name for an item of it: quicker at every call than its ``__getitem__``."""
    if isinstance(container, nn.ModuleList | nn.Sequential):
        return list(container._modules)[item]
    return item


def _is_method_of(scope: Scope, node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and resolve(scope, node.value) is scope.module
        and isinstance(
            inspect.getattr_static(type(scope.module), node.attr, None), FunctionType
        )
        and not hasattr(nn.Module, node.attr)
    )


def _hashable(table: dict, value: Any) -> dict:
    try:
        hash(value)
    except TypeError:
        return {}
    return table


# --- names and statements -------------------------------------------------------------------------


def uses_after(source: Source, statement: ast.stmt, name: str) -> list[ast.expr]:
    """Every use of what ``statement`` assigns to ``name``."""
    uses: list[ast.expr] = []
    node: ast.AST = statement
    while not isinstance(node, ast.FunctionDef):
        parent = source.parents[node]
        for block in _blocks(parent):
            if node in block:
                place = block.index(node)
                more, killed = _scan(block[place + 1 :], name)
                uses += more
                if killed:
                    return uses
                if isinstance(parent, _LOOPS):
                    uses += _scan(block[: place + 1], name)[0]
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


def _scan(block: list[ast.stmt], name: str) -> tuple[list[ast.expr], bool]:
    """The uses of a name from the start of a block, and whether it is then assigned anew."""
    uses: list[ast.expr] = []
    for statement in block:
        if isinstance(statement, ast.If):
            uses += _loads(statement.test, name)
            branches = [_scan(branch, name) for branch in (statement.body, statement.orelse)]
            uses += [use for found, _ in branches for use in found]
            if all(killed for _, killed in branches):
                return uses, True
        elif isinstance(statement, ast.With):
            for item in statement.items:
                uses += _loads(item, name)
            found, killed = _scan(statement.body, name)
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
        if isinstance(child, _SCOPES):
            inner = [n for n in ast.walk(child) if isinstance(n, ast.Name) and n.id == name]
            if inner:
                raise SkipError(f"{name} is used by a function defined inside")
        if isinstance(child, ast.AugAssign) and isinstance(child.target, ast.Name):
            if child.target.id == name:
                raise SkipError(f"{name} is changed in place")
        if isinstance(child, ast.Name) and child.id == name and isinstance(child.ctx, ast.Load):
            found.append(child)
    return found


def _stores(tree: ast.AST, name: str) -> bool:
    return any(
        isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load)
        for n in ast.walk(tree)
    )


def _declared(tree: ast.AST) -> set[str]:
    kinds = (ast.Global, ast.Nonlocal)
    return {name for n in ast.walk(tree) if isinstance(n, kinds) for name in n.names}


def _end(node: ast.AST) -> tuple[int, int]:
    return (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def _around(source: Source, end: ast.expr, origin: ast.expr | None) -> Iterator[ast.AST]:
    """What may run again before ``end``: the loops and comprehensions around it, not ``origin``."""
    node: ast.AST = end
    repeated = (*_LOOPS, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
    while node is not source.tree:
        node = source.parents[node]
        if isinstance(node, repeated):
            walked = list(ast.walk(node))
            if origin is None or not any(n is origin for n in walked):
                yield from walked


def _withs(source: Source, node: ast.AST) -> list[int]:
    found = []
    while node is not source.tree:
        node = source.parents[node]
        if isinstance(node, ast.With | ast.AsyncWith):
            found.append(id(node))
    return found


def _what(source: Source, parent: ast.AST, use: ast.expr) -> str:
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


# --- modules --------------------------------------------------------------------------------------


def check_module(module: nn.Module, layer: bool = True) -> None:
    """Refuse a module whose call is more than its class's ``forward``.

    Raises:
        SkipError: with the reason.
    """
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise SkipError(f"it is given to {name}, which is compiled by torch.jit")
    if hasattr(module, "parametrizations"):
        raise SkipError(f"it is given to {name}, which computes its weight by a parametrization")
    if type(module).__call__ is not nn.Module.__call__ or module._compiled_call_impl is not None:
        raise SkipError(f"it is given to {name}, whose __call__ is not torch's")
    if runtime.heard(module):
        raise SkipError(f"it is given to {name}, which has hooks that may see its input")
    replaced = vars(module).get("forward")
    if replaced is not None and not runtime.is_ours(replaced) and not is_original(replaced, module):
        raise SkipError(f"it is given to {name}, whose forward was replaced on the instance")
    if layer and type(module).__module__.startswith(("torch.ao.", "torchao.")):
        raise SkipError(f"it is given to {name}, a quantised layer")
    weight = module._parameters.get("weight")
    # Shards are put together by the time forward reads them; if not, the call itself will see.
    sharded = type(weight).__module__.startswith("torch.distributed.")
    plain = type(weight) is nn.Parameter or sharded
    if weight is not None and (not plain or not weight.is_floating_point()):
        raise SkipError(f"it is given to {name}, whose weight is no plain floating tensor")


def is_original(method: Any, module: nn.Module) -> bool:
    """Whether a bound method is what the class has: pickle leaves one in place of ours."""
    function = inspect.getattr_static(type(module), getattr(method, "__name__", ""), None)
    return getattr(method, "__self__", None) is module and method.__func__ is function


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution is a linear map of every position's features."""
    ones = (1,) * len(module.kernel_size)  # type: ignore[arg-type]
    zeros = (0,) * len(ones)
    return (
        module.kernel_size == ones
        and module.stride == ones
        and module.groups == 1
        and (module.padding == zeros or module.padding in ("same", "valid"))
    )


def _activation_module(module: nn.Module) -> str:
    name = ACTIVATION_MODULES.get(type(module), "none")
    try:
        check_module(module)
    except SkipError:
        return "none"
    if name == "gelu" and module.approximate == "tanh":
        return "gelu_tanh"
    return name


def _plain(module: nn.Module) -> bool:
    return all(type(m).__module__.startswith("torch.nn.modules.") for m in module.modules())
