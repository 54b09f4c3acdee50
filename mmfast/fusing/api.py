"""``mmfast.fuse``: find, exchange, check, report."""

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from mmfast.fusing import runtime
from mmfast.fusing.flow import Flow
from mmfast.fusing.layers import is_original
from mmfast.fusing.leaves import LEAVES, marked
from mmfast.fusing.names import Scope, SkipError, resolve, scope_of
from mmfast.fusing.pieces import check_call, check_unchanged, concatenations, defer_pieces
from mmfast.fusing.report import Fused, Report, Skipped
from mmfast.fusing.source import UnreadableError, exchanged, innermost
from mmfast.fusing.stacked import defer_stack, make_sum, weighted_sums
from mmfast.fusing.trial import Trial

_NAMES = {"cat", "concat", "concatenate", "stack"}
_UNUSED = "example_inputs do not reach it, are too small to gain, or are not channels-last"


class Site:
    """One place that can be fused: an expression, and what makes the function to stand there."""

    def __init__(
        self,
        flow: Flow,
        scope: Scope,
        node: ast.Call,
        call: ast.Call,
        entry: Fused,
        make: Callable[[runtime.Seen | None], Callable[..., Any]],
    ) -> None:
        self.flow, self.scope, self.node, self.call = flow, scope, node, call
        self.entry, self.make = entry, make
        self.seen = runtime.Seen()

    def exchange(self, record: bool) -> None:
        """Say what stands there from now on."""
        helper = self.make(self.seen if record else None)
        self.flow.found.exchange(self.scope, self.node, helper, self.call)


def fuse(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    strict: bool = False,
) -> Report:
    """Make the concatenations of ``model`` that go into linear layers cost nothing, in place.

    Looks into the source of every module's methods for ``torch.cat`` along the last dimension whose
    value only linear layers take (``nn.Linear``, ``F.linear`` with a parameter, a 1x1 convolution
    for channels): directly, through ``nn.Sequential``, dropout, or modules whose ``forward`` can
    be read. There the pieces go to :func:`mmfast.concat_linear` instead. Parameters, their names,
    ``state_dict``, hooks and wrappers stay what they are; no class and no global is touched.
    Whatever cannot be proved to be the same is left alone, and the report says why.

    Args:
        model: any module. It is changed: some methods get a counterpart on the instances.
        example_inputs: arguments of ``model``: a tuple, a mapping of keyword arguments, or one
            tensor. The model is then run before and after, in its present mode (parameters,
            buffers and random state are put back); places where results or gradients differ are
            left alone, and the report tells shapes and times.
        filter_fn: called with a module that holds a concatenation and its name; false leaves the
            module alone.
        strict: raise if nothing was fused.

    Returns:
        A :class:`mmfast.fusing.Report`: ``fused``, ``skipped``, ``revert()``; ``print`` it.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``strict`` and nothing was fused; the message holds the report.

    A second call starts anew. A pickled model is the original one; a deep copy is fused.

    Example:
        >>> report = mmfast.fuse(model, example_inputs=(image, text))
        >>> print(report)
        >>> report.revert()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        _restore(module)
    report = Report()
    sites = list(_sites(model, filter_fn, report))
    if example_inputs is not None and sites:
        sites = _tried(model, example_inputs, sites, report)
    _install(sites, report)
    report.fused = [site.entry for site in sites]
    if strict and not sites:
        raise ValueError(
            f"strict=True but nothing in {type(model).__name__} could be fused\n{report}"
        )
    return report


def _restore(module: nn.Module) -> None:
    """Take off what an earlier call, or pickle in its place, left on the instance."""
    for name, method in list(vars(module).items()):
        if runtime.is_ours(method) or (type(method) is MethodType and is_original(method, module)):
            del vars(module)[name]


def _sites(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None, report: Report
) -> Iterator[Site]:
    tied = _tied(model)
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(
            "torch.nn."
        ):
            continue
        chosen: bool | None = True if filter_fn is None else None
        for method in _methods(module):
            where = f"{name or type(module).__name__}.{method}"
            try:
                scope = scope_of(module, method)
            except SkipError as error:
                report.skipped.append(Skipped(where, "-", str(error)))
                continue
            places: list[tuple[ast.Call, Callable[[], Site]]] = [
                (call, partial(_concatenation, scope, call, where, tied, names))
                for call in concatenations(scope)
            ]
            places += [
                (p[0], partial(_weighted_sum, scope, p, where)) for p in weighted_sums(scope)
            ]
            for node, make in places:
                if chosen is None:  # asked only where there is something to choose
                    chosen = bool(filter_fn(module, name))  # type: ignore[misc]
                try:
                    if not chosen:
                        raise SkipError("filter_fn says no")
                    _check_method(scope)
                    yield make()
                except SkipError as error:
                    report.skipped.append(Skipped(where, scope.source.line(node), str(error)))


def _methods(module: nn.Module) -> Iterator[str]:
    """Methods of the module's class that may hold a concatenation."""
    for cls in type(module).__mro__:
        if cls is nn.Module:
            return
        for name, value in vars(cls).items():
            if not isinstance(value, FunctionType):
                continue
            if inspect.getattr_static(type(module), name) is not value:
                continue  # a subclass has its own
            try:
                code = innermost(value).__code__
            except UnreadableError:
                continue
            if _NAMES & set(code.co_names):
                yield name


def _check_method(scope: Scope) -> None:
    """Refuse a method that cannot be exchanged."""
    if scope.method in vars(scope.module):
        raise SkipError(f"{scope.method} was replaced on the instance")
    if not scope.self_name:
        raise SkipError(f"{scope.method} has no self")
    reason = _why_not(inspect.getattr_static(type(scope.module), scope.method))
    if reason:
        raise SkipError(reason)


@lru_cache(maxsize=4096)
def _why_not(method: FunctionType) -> str:
    """Why a method cannot be compiled again, or nothing."""
    try:
        exchanged(method, {})
    except UnreadableError as error:
        return str(error)
    return ""


def _weighted_sum(
    scope: Scope, place: tuple[ast.Call, ast.expr, ast.expr, int], where: str
) -> Site:
    node, stack, weights, dim = place
    first = (stack.lineno, stack.col_offset) < (weights.lineno, weights.col_offset)
    flow = Flow({})
    defer_stack(flow, scope, stack, node)
    sides = [stack, weights] if first else [weights, stack]  # evaluated in the order of the source
    call = ast.copy_location(ast.Call(node.func, sides, []), node)
    entry = Fused(where, scope.source.line(node), ("weighted sum",), "none")
    return Site(flow, scope, node, call, entry, partial(make_sum, dim, first))


def _concatenation(
    scope: Scope, call: ast.Call, where: str, tied: dict[int, str], names: dict[nn.Module, str]
) -> Site:
    maybe_channels = check_call(scope, call)
    flow = Flow(tied)
    flow.follow_expression(scope, call)
    check_unchanged(scope, call)
    found = flow.found
    if not found.consumers:
        raise SkipError("no layer consumes it")
    if len(found.channels) > 1:
        raise SkipError("linear layers and convolutions consume it")
    channels = found.channels == {True}
    if channels and not maybe_channels:
        raise SkipError("it is given to a convolution but does not join channels")
    if not channels:
        defer_pieces(flow, scope, call)
    together = set(found.activations)
    activation = together.pop() if len(together) == 1 else "none"
    layers = tuple(
        f"{names.get(m, type(m).__name__)}{'.' + detail if detail else ''}"
        for m, detail in found.consumers
    )
    make = partial(runtime.make_cat, resolve(scope, call.func), found.seal(), activation, channels)
    keywords = [ast.keyword("dim" if k.arg == "axis" else k.arg, k.value) for k in call.keywords]
    itself = ast.copy_location(ast.Name(scope.self_name, ast.Load()), call)
    new = ast.copy_location(ast.Call(call.func, [itself, *call.args], keywords), call)
    entry = Fused(where, scope.source.line(call), layers, activation)
    return Site(flow, scope, call, new, entry, make)


def _tied(model: nn.Module) -> dict[int, str]:
    """Parameters that several modules own, by identity, with the names."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return {key: " and ".join(found) for key, found in owners.items() if len(found) > 1}


def _install(sites: Sequence[Site], report: Report, record: bool = False) -> None:
    """Put the exchanged methods on the instances."""
    report.revert()
    methods: dict[tuple[nn.Module, str], dict] = {}
    leaves: dict[nn.Module, str] = {}
    for site in sites:
        site.exchange(record)
        for key, calls in site.flow.found.exchanges.items():
            methods.setdefault(key, {}).update(calls)
        leaves.update(site.flow.found.leaves)
    functions: dict[tuple[nn.Module, str], FunctionType] = {}
    for (module, name), calls in methods.items():
        decorated = inspect.getattr_static(type(module), name)
        functions[module, name] = marked(exchanged(decorated, calls), name)
    for module, kind in leaves.items():
        functions[module, "forward"] = LEAVES[kind]
    for (module, name), function in functions.items():
        vars(module)[name] = MethodType(function, module)
        report._methods.append((module, name))


def _tried(model: nn.Module, example: Any, sites: list[Site], report: Report) -> list[Site]:
    """The sites that pass a trial with the example; fills in what it shows."""
    trial = Trial(model, example)
    expected = trial.run()

    def wrong(some: Sequence[Site]) -> str | None:
        _install(some, report, record=True)
        try:
            return trial.difference(expected, trial.run())
        except Exception as error:  # whatever the model raises
            return f"{type(error).__name__}: {error}"
        finally:
            report.revert()

    if wrong(sites) is not None:
        good = []
        for site in sites:
            reason = wrong([site])
            if reason is None:
                good.append(site)
            else:
                entry = site.entry
                why = f"with example_inputs, {reason}"
                report.skipped.append(Skipped(entry.where, entry.line, why))
        sites = good
    for site in sites:
        site.seen = runtime.Seen()
    if sites and wrong(sites) is not None:
        raise RuntimeError(
            "the fused model does not give the model's own results with example_inputs; "
            "please report this. The model is as it was"
        )
    kept = []
    for site in sites:
        entry, seen = site.entry, site.seen
        if seen.shapes:
            site.entry = replace(entry, shapes=tuple(seen.shapes), bytes_saved=seen.bytes)
            kept.append(site)
        else:
            report.skipped.append(Skipped(entry.where, entry.line, _UNUSED))
    if kept:
        report.measured = trial.measure(lambda: _install(kept, report), report.revert)
    return kept
