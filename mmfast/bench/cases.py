"""What one measurement is about: the inputs of a fusion and what computing it takes at least."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import torch


@dataclass(frozen=True)
class Input:
    r"""One input of a fusion.

    Attributes:
        shape: (\*batch, K), or (R, K) where rows are picked.
        index: shape of the tensor of row numbers that picks from it, or None.
        same_as: position of an earlier input that is this very tensor, or None.
    """

    shape: tuple[int, ...]
    index: tuple[int, ...] | None = None
    same_as: int | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch shape that the input contributes to the result."""
        return self.shape[:-1] if self.index is None else self.index


@dataclass(frozen=True)
class Case:
    """One fusion by concat_linear to measure; other operators' are ``OperatorCase``.

    Attributes:
        name: unique within a suite.
        inputs: in the order of the weight's columns.
        out_features: N, width of the result.
        activation: as in ``mmfast.concat_linear``.
        group: ``real``, ``tiny``, ``grid`` or ``sweep``.
        origin: where the shape comes from.
        series: cases of one series differ in ``size`` alone and make one plot; "" for none.
        size: place on that plot's axis.
        axis: name of that axis.
        threads: of torch, where the case is about them.
        frozen: whether the inputs come from frozen encoders and so have no gradients.
    """

    name: str
    inputs: tuple[Input, ...]
    out_features: int
    activation: str = "none"
    group: str = "real"
    origin: str = ""
    series: str = ""
    size: float = 0
    axis: str = ""
    threads: int | None = None
    frozen: bool = False

    operator = "concat_linear"
    ceilings = ("linear",)  # besides the copy

    @property
    def widths(self) -> tuple[int, ...]:
        """K of each input."""
        return tuple(x.shape[-1] for x in self.inputs)

    @property
    def width(self) -> int:
        """Columns of the concatenation."""
        return sum(self.widths)

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch shape of the result."""
        return tuple(torch.broadcast_shapes(*(x.batch for x in self.inputs)))

    @property
    def rows(self) -> int:
        """M, the number of rows of the result."""
        return prod(self.batch)

    @property
    def kind(self) -> str:
        """``index``, ``broadcast``, or ``equal`` where every input has the result's rows."""
        if any(x.index is not None for x in self.inputs):
            return "index"
        return "equal" if all(x.batch == self.batch for x in self.inputs) else "broadcast"

    def numbers(self) -> dict[str, int]:
        """Elements of the distinct inputs, the parameters, the result and the concatenation."""
        return {
            "inputs": sum(prod(x.shape) for x in self.inputs if x.same_as is None),
            "parameters": (self.width + 1) * self.out_features,
            "result": self.rows * self.out_features,
            "joined": self.rows * self.width,
        }

    def moved_bytes(self, itemsize: int, mode: str) -> int:
        """Bytes that ``mode`` must read and write at least, if each is touched once."""
        n = self.numbers()
        given = n["inputs"] + n["parameters"]
        times = {"forward": 1, "backward": 2, "both": 3}[mode]  # backward: read, write gradients
        results = {"forward": 1, "backward": 1, "both": 2}[mode]
        index = sum(prod(x.index) for x in self.inputs if x.index is not None)
        passes = 2 if mode == "both" else 1
        spared = 0
        if self.frozen and mode != "forward":  # backward: no input's gradient, no weight
            spared = n["inputs"] + n["parameters"]
        return itemsize * (times * given + results * n["result"] - spared) + 8 * passes * index

    def needed_bytes(self, itemsize: int, mode: str) -> int:
        """Estimate of the memory that measuring ``mode`` takes, all peers' data together."""
        n = self.numbers()
        copies = 2 if mode == "forward" else 5
        return itemsize * copies * (n["inputs"] + n["parameters"] + n["joined"] + n["result"])

    def flops(self, mode: str) -> int:
        """Floating-point operations of the linear layer on the concatenation."""
        backward = 1 if self.frozen else 2
        passes = {"forward": 1, "backward": backward, "both": 1 + backward}[mode]
        return 2 * passes * self.rows * self.width * self.out_features

    def written(self, mode: str) -> list[int]:
        """Elements of each tensor that ``mode`` returns."""
        gradients = [prod(x.shape) for x in self.inputs if x.same_as is None and not self.frozen]
        gradients += [self.width * self.out_features, self.out_features]
        results = [self.rows * self.out_features]
        return {"forward": results, "backward": gradients, "both": results + gradients}[mode]

    def describe(self) -> str:
        """Shapes in one line, such as ``(32, 128, 768) + (32, 1, 2048) -> 768 relu``."""
        parts = []
        for shape, run in _runs([(x.shape, x.index) for x in self.inputs]):
            size, index = shape
            text = str(size) if index is None else f"{size}[{', '.join(map(str, index))}]"
            parts.append(text if run == 1 else f"{run} x {text}")
        activation = "" if self.activation == "none" else f" {self.activation}"
        return f"{' + '.join(parts)} -> {self.out_features}{activation}"


Shape = tuple[tuple[int, ...], tuple[int, ...] | None]


def _runs(shapes: Iterable[Shape]) -> list[tuple[Shape, int]]:
    runs: list[tuple[Shape, int]] = []
    for shape in shapes:
        if runs and runs[-1][0] == shape:
            runs[-1] = (shape, runs[-1][1] + 1)
        else:
            runs.append((shape, 1))
    return runs


def scaled(case: Case, most_rows: int) -> Case:
    """The case with its batch cut to ``most_rows``, and what is picked from in proportion."""
    sizes = list(case.batch)
    for place, size in enumerate(sizes):
        sizes[place] = max(1, min(size, most_rows // (prod(sizes) // size)))

    def cut(batch: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(min, batch, sizes[len(sizes) - len(batch) :]))

    def cut_input(x: Input) -> Input:
        *batch, width = x.shape
        if x.index is None:
            return replace(x, shape=(*cut(tuple(batch)), width))
        table = max(1, batch[0] * prod(sizes) // case.rows)
        return replace(x, shape=(table, width), index=cut(x.index))

    return replace(case, inputs=tuple(map(cut_input, case.inputs)))
