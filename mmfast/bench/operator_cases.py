"""Cases of the operators beside concat_linear: tensors of given shapes in, one tensor out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """One tensor that an operator is given, and that gradients are wanted of.

    Attributes:
        shape: its sizes.
        batched: whether the first size is the case's batch.
        scale: standard deviation of its elements, which are normally distributed.
    """

    shape: tuple[int, ...]
    batched: bool = True
    scale: float = 1.0


@dataclass(frozen=True)
class OperatorCase:
    r"""One call of an operator to measure.

    Attributes:
        name: unique within a suite.
        operator: a key of :data:`mmfast.bench.operator_peers.PEERS`.
        tensors: in the order in which the peers take them.
        result: shape of the result.
        work: floating-point operations of a forward pass.
        workspace: elements of the largest thing that a peer builds on its way.
        options: what else the peers need to know.
        group: ``real``, ``tiny`` or ``sweep``.
        origin: where the shape comes from.
        series, size, axis, threads: see :class:`mmfast.bench.cases.Case`.
    """

    name: str
    operator: str
    tensors: tuple[Spec, ...]
    result: tuple[int, ...]
    work: int
    workspace: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    group: str = "real"
    origin: str = ""
    series: str = ""
    size: float = 0
    axis: str = ""
    threads: int | None = None

    activation = "none"
    kind = "equal"
    ceilings = ()  # but for the copy

    @property
    def option(self) -> Mapping[str, Any]:
        """The options by name."""
        return dict(self.options)

    @property
    def rows(self) -> int:
        """The batch."""
        return self.tensors[0].shape[0]

    @property
    def width(self) -> int:
        """Elements per row of all that has rows."""
        return sum(prod(x.shape[1:]) for x in self.tensors if x.batched)

    @property
    def out_features(self) -> int:
        """Elements per row of the result."""
        return prod(self.result) // self.rows if self.result else 1

    def _elements(self) -> tuple[int, int]:
        return sum(prod(x.shape) for x in self.tensors), prod(self.result)

    def moved_bytes(self, itemsize: int, mode: str) -> int:
        """Bytes that ``mode`` must read and write at least, if each is touched once."""
        given, result = self._elements()
        times = {"forward": 1, "backward": 2, "both": 3}[mode]  # backward: read, write gradients
        results = {"forward": 1, "backward": 1, "both": 2}[mode]
        return itemsize * (times * given + results * result)

    def needed_bytes(self, itemsize: int, mode: str) -> int:
        """Estimate of the memory that measuring ``mode`` takes, all peers' data together."""
        given, result = self._elements()
        copies = 3 if mode == "forward" else 6
        return itemsize * copies * (given + result + self.workspace)

    def flops(self, mode: str) -> int:
        """Floating-point operations; backward takes about twice those of forward."""
        return {"forward": 1, "backward": 2, "both": 3}[mode] * self.work

    def written(self, mode: str) -> list[int]:
        """Elements of each tensor that ``mode`` returns."""
        gradients = [prod(x.shape) for x in self.tensors]
        results = [prod(self.result)]
        return {"forward": results, "backward": gradients, "both": results + gradients}[mode]

    def describe(self) -> str:
        """Shapes in one line, such as ``3 x (8192, 768) + (3,) -> (8192, 768)``."""
        parts = []
        for shape, run in groupby(x.shape for x in self.tensors):
            count = len(list(run))
            parts.append(f"{count} x {shape}" if count > 1 else str(shape))
        return f"{' + '.join(parts)} -> {self.result}"


@dataclass(frozen=True)
class OperatorData:
    """The tensors of a case, and a gradient of its result."""

    case: OperatorCase
    tensors: list[Tensor]
    grad: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are wanted of."""
        return self.tensors

    @property
    def given(self) -> list[Tensor]:
        """Every tensor that exists before a call."""
        return [*self.tensors, self.grad]


def make_operator_data(
    case: OperatorCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> OperatorData:
    """Random tensors for a case."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).to(device, dtype)

    tensors = [normal(x.shape, x.scale).requires_grad_() for x in case.tensors]
    return OperatorData(case, tensors, normal(case.result, 1.0))


def scaled_operator(case: OperatorCase, most_rows: int) -> OperatorCase:
    """The case with its batch cut to ``most_rows``, and so out of its series."""
    return _with_rows(case, min(case.rows, most_rows))


def grown_operator(case: OperatorCase, least_rows: int) -> OperatorCase:
    """The case with a batch of at least ``least_rows``, out of its series, under another name."""
    rows = max(case.rows, least_rows)
    return replace(_with_rows(case, rows), name=f"{case.name}, batch {rows}")


def _with_rows(case: OperatorCase, rows: int) -> OperatorCase:
    def cut(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (rows, *shape[1:])

    return replace(
        case,
        tensors=tuple(replace(x, shape=cut(x.shape)) if x.batched else x for x in case.tensors),
        result=cut(case.result) if case.result else (),
        series="",
        work=case.work * rows // case.rows,
        workspace=case.workspace * rows // case.rows,
    )
