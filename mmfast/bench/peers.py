"""Whom an operator is measured against: ways to compute one fusion, checked before they are timed.

The ways of concat_linear are here, those of the others in :mod:`mmfast.bench.operator_peers`.

``linear`` is no such way but what bounds them all: the library's matrix product on an input
that somebody else has concatenated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.bench import operator_peers
from mmfast.bench.cases import Case
from mmfast.bench.data import Data, Index, join
from mmfast.bench.operator_cases import OperatorCase, OperatorData
from mmfast.functional import concat_linear

# inputs, weight, bias, index -> result. What depends on the case alone is decided when a fusion is
# made, as in hand-written code: at tiny shapes a microsecond of Python is a tenth of the call.
Fusion = Callable[[Sequence[Tensor], Tensor, Tensor, Index], Tensor]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
FLOORS = ("copy", "linear")  # they bound the time of a fusion and compute none
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def linear(case: Case) -> Fusion:
    """The linear layer alone, on one input that is already concatenated."""
    bend = ACTIVATIONS[case.activation]

    def run(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, index: Index) -> Tensor:
        result = F.linear(inputs[0], weight, bias)
        return result if bend is None else bend(result)

    return run


def mmfast(case: Case) -> Fusion:
    """``mmfast.concat_linear``."""
    activation, has_index = case.activation, case.kind == "index"

    def run(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, index: Index) -> Tensor:
        if has_index:
            return concat_linear(inputs, weight, bias, activation=activation, index=index)
        return concat_linear(inputs, weight, bias, activation=activation)

    return run


def eager(case: Case) -> Fusion:
    """``act(Linear(cat))``, what is mostly written."""
    bend, equal = ACTIVATIONS[case.activation], case.kind == "equal"

    def run(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, index: Index) -> Tensor:
        joined = torch.cat(inputs, -1) if equal else join(inputs, index)  # type: ignore[arg-type]
        result = F.linear(joined, weight, bias)
        return result if bend is None else bend(result)

    return run


def split(case: Case) -> Fusion:
    """The hand-written sum of products, ``addmm`` and ``addmm_``; it has gradients too.

    What repeats is multiplied once per distinct row, then broadcast or picked.
    """
    bend, widths, batch = ACTIVATIONS[case.activation], list(case.widths), case.batch
    whole = [i for i, x in enumerate(case.inputs) if x.index is None and x.batch == batch]
    rest = [i for i in range(len(widths)) if i not in whole]
    flat = len(batch) == 1
    picks_first = [x.index is not None and x.shape[0] > case.rows for x in case.inputs]

    def multiply(x: Tensor, part: Tensor, index: Tensor | None, pick_first: bool) -> Tensor:
        if index is None:
            return F.linear(x, part)
        return F.linear(x[index], part) if pick_first else F.linear(x, part)[index]

    def run(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, index: Index) -> Tensor:
        parts = weight.split(widths, dim=1)
        result, fresh = bias, False
        for i in whole:
            rows = inputs[i] if flat else inputs[i].reshape(-1, widths[i])
            if fresh:
                result.addmm_(rows, parts[i].t())
            else:
                result, fresh = torch.addmm(bias, rows, parts[i].t()), True
        if fresh and not flat:
            result = result.view(*batch, -1)
        in_place = fresh and not torch.is_grad_enabled()
        for i in rest:  # with gradients, writing into a view would cost a copy in backward
            product = multiply(inputs[i], parts[i], index[i], picks_first[i])
            result = result.add_(product) if in_place else result + product
        return result if bend is None else bend(result)

    return run


def tiled_matmul(case: Case) -> Fusion:
    """One launch of xformers over two or three tiles of K; bias and activation are not fused."""
    from xformers.ops import tiled_matmul as multiply  # type: ignore[import-not-found]

    bend, widths, batch = ACTIVATIONS[case.activation], list(case.widths), case.batch

    def run(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, index: Index) -> Tensor:
        rows = [x.reshape(-1, width) for x, width in zip(inputs, widths, strict=True)]
        tiles = [[part.t()] for part in weight.split(widths, dim=1)]
        result = multiply([rows], tiles)[0][0].view(*batch, -1) + bias
        return result if bend is None else bend(result)

    return run


def compiled(case: Case, **options: Any) -> Fusion:
    """``torch.compile`` of the eager form.

    Before another case ``torch._dynamo.reset()`` is due, or that is compiled with dynamic shapes.
    """
    return torch.compile(eager(case), **options)


PEERS: Mapping[str, Callable[[Case], Fusion]] = {
    "mmfast": mmfast,
    "eager": eager,
    "split": split,
    "compile": compiled,
    "max-autotune": partial(compiled, mode="max-autotune"),
    "tiled_matmul": tiled_matmul,
}


def available(case: Case | OperatorCase, device: str, *, compile: bool) -> list[str]:
    """Names of the peers that can run a case; ``mmfast`` is the first."""
    if isinstance(case, Case):
        names = ["mmfast", "eager", "split"]
    else:
        names = list(operator_peers.PEERS[case.operator])
    cuda = device.startswith("cuda")
    if compile:
        names += ["compile", "max-autotune"] if cuda else ["compile"]
    few = isinstance(case, Case) and case.kind == "equal" and len(case.inputs) <= 3
    if cuda and few and importlib.util.find_spec("xformers") is not None:
        names.append("tiled_matmul")
    return names


@dataclass(frozen=True)
class Contender:
    """A peer bound to the data of a case: its forward pass, and what that has gradients for."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]


def bind(name: str, data: Data | OperatorData) -> Contender:
    """A peer, or ``linear``, ready to run on the data."""
    if isinstance(data, OperatorData):
        call, tensors = operator_peers.make(name, data.case), data.tensors
        return Contender(lambda: call(*tensors), data.leaves)
    inputs, index, weight, bias = data.inputs, data.index, data.weight, data.bias
    leaves = data.leaves
    if name == "linear":
        fusion, inputs = linear(data.case), [data.joined]
        leaves = [*([] if data.case.frozen else inputs), weight, bias]
    else:
        fusion = PEERS[name](data.case)
    return Contender(lambda: fusion(inputs, weight, bias, index), leaves)


Results = list[Tensor]


class PeerDisagreesError(RuntimeError):
    """A peer computes something else than eager PyTorch, so that its time says nothing."""


def results(contender: Contender, data: Data | OperatorData, *, gradients: bool) -> Results:
    """The result and, if asked for, the gradients of the contender's leaves."""
    if not gradients:
        with torch.no_grad():
            return [contender.forward()]
    result = contender.forward()
    return [result.detach(), *torch.autograd.grad(result, contender.leaves, data.grad)]


def check(name: str, found: Results, expected: Results, dtype: torch.dtype) -> None:
    """Raises :class:`PeerDisagreesError` unless results and gradients are equal up to rounding.

    Of ``linear`` those that have the eager form's shape are compared: the result and the gradients
    of weight and bias, which come last.
    """
    if len(found) > 1 and len(found) != len(expected):
        expected = [expected[0], *expected[-2:]]
        found = [found[0], *found[-2:]]
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        what = "result" if place == 0 else f"gradient {place} of {len(expected) - 1}"
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise PeerDisagreesError(
                f"{name}: the {what} is {tuple(ours.shape)} {ours.dtype}, eager's is "
                f"{tuple(theirs.shape)} {theirs.dtype}"
            )
        apart = _distance(ours, theirs)
        if not apart <= TOLERANCE[dtype]:
            raise PeerDisagreesError(
                f"{name}: the {what} differs from eager's by {apart:.3g}, {TOLERANCE[dtype]} is "
                "allowed (relative to each element plus the root mean square)"
            )


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest of |ours - theirs| / (|theirs| + root mean square of theirs)."""
    if ours.numel() == 0:
        return 0.0
    compute = torch.float64 if ours.dtype == torch.float64 else torch.float32
    ours, theirs = ours.detach().to(compute), theirs.detach().to(compute)
    typical = theirs.square().mean().sqrt().clamp_min(torch.finfo(compute).tiny)
    return (ours - theirs).abs_().div_(theirs.abs() + typical).max().item()
