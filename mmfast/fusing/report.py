"""What :func:`mmfast.fuse` did, what it left alone and why, and the way back."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmfast.fusing.runtime import is_ours


@dataclass(frozen=True)
class Fused:
    """A concatenation that is no longer built.

    Attributes:
        where: module and method that hold it, as in ``model.named_modules()``.
        line: ``file:line``.
        layers: names of the layers that consume it.
        activation: what is computed with the layer, or ``none``.
        shapes: of the pieces, one list per call, as seen with ``example_inputs``.
        bytes_saved: size of the concatenations of one forward pass, as seen there.
    """

    where: str
    line: str
    layers: tuple[str, ...]
    activation: str
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    bytes_saved: int = 0


@dataclass(frozen=True)
class Skipped:
    """A concatenation that is left as it was, and the reason."""

    where: str
    line: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """Seconds of one pass with ``example_inputs``, before and after; medians of turns.

    ``kind`` is ``forward`` (evaluation) or ``forward and backward`` (training).
    """

    before: float
    after: float
    kind: str


@dataclass
class Report:
    """What :func:`mmfast.fuse` did; ``print`` it.

    Attributes:
        fused: the places that changed.
        skipped: the other concatenations, each with a reason.
        measured: times before and after, given ``example_inputs``.
    """

    fused: list[Fused] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    measured: Measured | None = None
    _methods: list[tuple[nn.Module, str]] = field(default_factory=list, repr=False)
    _forget: Callable[[], None] | None = field(default=None, repr=False)

    def revert(self) -> None:
        """Put the model back as it was: no attribute of mmfast's remains. May be called twice."""
        for module, name in self._methods:
            if is_ours(vars(module).get(name)):
                del vars(module)[name]
        self._methods.clear()

    @property
    def bytes_saved(self) -> int:
        """Bytes of concatenations not built in one forward pass with ``example_inputs``.

        In training they are not kept for backward either.
        """
        return sum(x.bytes_saved for x in self.fused)

    def __str__(self) -> str:
        lines = [f"mmfast.fuse: {len(self.fused)} fused, {len(self.skipped)} left alone"]
        if self.fused:
            rows = [(x.where, _short(x.line), _layers(x), _shapes(x)) for x in self.fused]
            lines += _columns([("fused", "source", "layer", "pieces"), *rows])
        if self.skipped:
            lines += _columns([("left alone", "source", "why"), *_alike(self.skipped)])
        if self.bytes_saved:
            lines.append(
                f"concatenations not built: {self.bytes_saved / 2**20:.2f} MiB per forward"
            )
        if self.measured is not None:
            m = self.measured
            lines.append(
                f"{m.kind}: {m.before * 1e3:.3f} ms before, {m.after * 1e3:.3f} ms after "
                f"({m.before / m.after:.2f}x)"
            )
        return "\n".join(lines)


def _alike(skipped: list[Skipped]) -> list[tuple[str, str, str]]:
    """A row for each line and reason: the layers of a deep model are often of one class."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        groups.setdefault((_short(entry.line), entry.reason), []).append(entry.where)
    return [
        (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it", *key)
        for key, names in groups.items()
    ]


def _short(line: str) -> str:
    path, _, number = line.rpartition(":")
    return (
        f"{os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))}:{number}"
    )


def _layers(entry: Fused) -> str:
    names = ", ".join(entry.layers)
    return names if entry.activation == "none" else f"{names} + {entry.activation}"


def _shapes(entry: Fused) -> str:
    if not entry.shapes:
        return "-"
    text = " + ".join(str(shape) for shape in entry.shapes[0])
    return text if len(entry.shapes) == 1 else f"{text}, {len(entry.shapes)} calls"


def _columns(table: list[Any]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    return [
        "  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in table
    ]
