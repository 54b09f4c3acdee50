"""A figure of a run beside its bound, and how such figures are taken from measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from mmfast.bench.records import Measurement


@dataclass(frozen=True)
class Goal:
    """One figure of a run beside its bound.

    Attributes:
        name: what the figure is.
        value: the figure.
        bound: what it is to be at most, or at least.
        at_most: which of the two.
        unit: behind the figure.
        where: the measurement it comes from, or how many it is the mean of.
    """

    name: str
    value: float
    bound: float
    at_most: bool
    unit: str
    where: str

    @property
    def met(self) -> bool:
        """Whether the figure keeps to its bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive figures, at least one."""
    return exp(fmean(log(value) for value in values))


Points = list[tuple[float, Measurement]]


def points(measurements: Iterable[Measurement], peer: str, base: str) -> Points:
    """Time of ``peer`` over that of ``base`` where both were measured; ``best`` is a base too."""
    found = []
    for m in measurements:
        quotient = m.ratio(peer, (m.best or "") if base == "best" else base)
        if quotient is not None:
            found.append((quotient.median, m))
    return found


def mean(name: str, found: Points, bound: float, at_most: bool) -> Iterator[Goal]:
    """The goal of a geometric mean, unless there is nothing to take it of."""
    if found:
        value = geometric_mean(value for value, _ in found)
        where = f"geometric mean of {len(found)}"
        yield Goal(name, value, bound, at_most, "x", where)


def worst(name: str, found: Points, bound: float, at_most: bool, unit: str = "x") -> Iterator[Goal]:
    """The goal that every figure is held against, unless there is none."""
    if found:
        pick: Callable[..., tuple[float, Measurement]] = max if at_most else min
        value, m = pick(found, key=lambda point: point[0])
        yield Goal(name, value, bound, at_most, unit, f"worst of {len(found)}: {m.label}")
