"""Where a concatenation goes, proved from the source of the modules it goes through.

A value is followed from the call that makes it to the layers that consume it: through local
variables, dropout, ``nn.Sequential``, and the ``forward`` of any module whose source can be read.
It may be handed on as pieces if every single use of it is such a step, and nothing runs between
the concatenation and its last consumer that could change a piece or the grad mode. Whatever is not
understood raises :class:`SkipError` with the reason, and the place is left as it is.
"""

import ast
import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmfast.fusing import runtime
from mmfast.fusing.layers import (
    ACTIVATION_METHODS,
    CONVOLUTIONS,
    DROPOUTS,
    activation_call,
    activation_of,
    check_module,
    is_plain_tree,
    is_pointwise,
)
from mmfast.fusing.names import (
    Scope,
    SkipError,
    around,
    declared,
    end_of,
    is_method_of,
    key_of,
    resolve,
    scan,
    scope_of,
    steps_of,
    uses_after,
    what_else,
    withs,
)
from mmfast.fusing.runtime import Guard, Step
from mmfast.fusing.source import Position, position

_QUIET_BUILTINS = {"len", "int", "float", "bool", "isinstance", "range", "enumerate", "zip"}
_QUIET_BUILTINS |= {"tuple", "list", "min", "max", "sorted", "str"}
_QUIET_METHODS = {"size", "dim", "numel", "keys", "values", "items"}
_QUIET_METHODS |= {"expand", "expand_as", "repeat", "repeat_interleave", "index_select"}
_QUIET_METHODS |= {"unsqueeze", "squeeze", "view", "reshape"}
_WRITES = (ast.AugAssign, ast.Delete, ast.Await, ast.Yield, ast.YieldFrom, ast.Try, ast.NamedExpr)
_DEPTH = 8


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

    def exchange(
        self, scope: Scope, node: ast.expr, helper: Callable[..., Any], call: ast.expr
    ) -> None:
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
        uses, _ = scan(tree.body, name)
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
        if target.id in declared(scope.source.tree):
            raise SkipError(f"it is kept: {target.id} is no local variable")
        return uses_after(scope.source, parent, target.id), True

    def accept(self, scope: Scope, use: ast.expr) -> ast.expr:
        """Check that a use hands the value to a consumer; the call that does."""
        parent = scope.source.parents[use]
        if isinstance(parent, ast.Compare):
            none = [isinstance(x, ast.Constant) and x.value is None for x in parent.comparators]
            if (
                parent.left is use
                and all(none)
                and all(isinstance(op, ast.Is | ast.IsNot) for op in parent.ops)
            ):
                return parent
        call = scope.source.parents[parent] if isinstance(parent, ast.keyword) else parent
        if not isinstance(call, ast.Call) or use is call.func:
            raise SkipError(what_else(scope.source, parent, use))
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
        elif is_method_of(scope, call.func):
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
            if not isinstance(layer, nn.Module) or not is_plain_tree(layer):
                raise SkipError(f"{ast.unparse(loop.iter)} holds other than torch's own layers")
            before = len(self.found.activations)
            steps = (*scope.steps, *steps_of(scope, loop.iter), key_of(layers, i))
            self.accept_module(layer, argument, steps)
            if len(self.found.activations) == before:
                self.found.activations.append("none")
        self.accepted.add(id(call))
        return node

    def accept_call_of(
        self,
        scope: Scope,
        call: ast.Call,
        module: nn.Module,
        argument: int,
        steps: tuple[Step, ...],
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
            method, called = node.attr, scope.source.parents[node]
            bare = isinstance(called, ast.Call) and not called.args and not called.keywords
            if not bare or method not in ACTIVATION_METHODS:
                return "none"
            node = called
            replaced = ast.copy_location(ast.Call(ast.Name("f", ast.Load()), [use], []), node)
            self.found.exchange(scope, node, runtime.make_method(method), replaced)  # type: ignore
            return method
        if not isinstance(node, ast.Call) or node.args[:1] != [use]:
            return "none"
        function = resolve(scope, node.func)
        if isinstance(function, nn.Module):
            name = activation_of(function)
            if name == "none":
                return "none"
            steps = (*scope.steps, *steps_of(scope, node.func))
            self.leaf(function, "activation", steps)
            return name
        name = activation_call(function)
        if name == "none" or len(node.args) > 1:
            return "none"
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
        for (name, layer), (next_name, following) in pairwise(layers):
            assert layer is not None
            if type(layer) in DROPOUTS or type(layer) is nn.Identity:
                self.pass_through(layer, (*steps, name))
                continue
            before = len(self.found.activations)
            self.accept_module(layer, 0, (*steps, name))
            if len(self.found.activations) == before:
                name = "none" if following is None else activation_of(following)
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
        start = (0, 0) if origin is None else end_of(origin)
        stop = max(end_of(end) for end in ends)
        inside = {id(n) for end in ends for n in around(source, end, origin)}
        accepted = self.accepted | {id(end) for end in ends}
        for end in ends:
            if end_of(end) != stop and not self.leaves_alone(scope, end):
                raise SkipError("it has several uses, and other code runs between them")
            if withs(source, end) != ([] if origin is None else withs(source, origin)):
                raise SkipError("a `with` block begins or ends before the layer")
        own = set() if origin is None else {id(n) for n in ast.walk(origin)}
        for node in ast.walk(source.tree):
            if id(node) in own or id(node) in accepted:
                continue
            if not hasattr(node, "end_lineno"):
                continue
            within = start < end_of(node) < stop or id(node) in inside
            if isinstance(node, ast.Call) and within and not self.quiet(scope, node):
                raise SkipError(
                    f"{ast.unparse(node.func)} is called between the concatenation and the layer"
                )
            writes = isinstance(node, _WRITES) or (
                isinstance(node, ast.Subscript | ast.Attribute)
                and not isinstance(node.ctx, ast.Load)
            )
            if writes and within:
                raise SkipError("something is written between the concatenation and the layer")

    def leaves_alone(self, scope: Scope, end: ast.expr) -> bool:
        """Whether a consumer that is not the last changes nothing: torch's own layers do not."""
        if not isinstance(end, ast.Call):
            return True
        function = resolve(scope, end.func)
        return function is F.linear or (isinstance(function, nn.Module) and is_plain_tree(function))

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
        if function is F.embedding and len(call.args) == 2 and not call.keywords:
            return True  # without max_norm, which writes
        if isinstance(function, nn.Module) and not function._modules and is_plain_tree(function):
            if getattr(function, "inplace", False) or runtime.heard(function):
                return False
            self.found.guards[(*scope.steps, *steps_of(scope, call.func)), function, "forward"] = (
                None
            )
            return True
        if function is None and isinstance(call.func, ast.Attribute):
            return call.func.attr in _QUIET_METHODS and not is_method_of(scope, call.func)
        return False
