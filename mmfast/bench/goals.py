"""The goals that concat_linear's speed is held against, and what a run says about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from mmfast.bench.peers import FLOORS
from mmfast.bench.records import Measurement

LARGE, LARGEST, SMALL = 1024, 8192, 32  # rows from which, or up to which, a goal counts


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


def goals(measurements: Sequence[Measurement]) -> list[Goal]:
    """Every goal that the measurements say something about, in the order of the goals.

    They are about the real shapes and the grid; of the tiny shapes only the overhead is told, and
    sweeps are for looking at.
    """
    measured = [m for m in measurements if "mmfast" in m.peers]
    counted = [m for m in measured if m.group in ("real", "grid")]
    tiny = [m for m in measured if m.group == "tiny"]
    return [
        *_against_linear([m for m in counted if m.mode == "forward"]),
        *_against_best([m for m in counted if m.mode == "both"]),
        *_overhead("M <= 32", [m for m in counted if m.mode == "both" and m.rows <= SMALL]),
        *_overhead("tiny shapes", [m for m in tiny if m.mode == "both"]),
        *_against_eager([m for m in counted if m.rows >= LARGEST]),
        *_repeating([m for m in counted if m.kind != "equal"]),
        *_kept([m for m in counted if m.peers["mmfast"].kept_bytes is not None]),
    ]


Points = list[tuple[float, Measurement]]


def _points(measurements: Iterable[Measurement], peer: str, base: str) -> Points:
    found = []
    for m in measurements:
        quotient = m.ratio(peer, (m.best or "") if base == "best" else base)
        if quotient is not None:
            found.append((quotient.median, m))
    return found


def _mean(name: str, points: Points, bound: float, at_most: bool) -> Iterator[Goal]:
    if points:
        mean = geometric_mean(value for value, _ in points)
        where = f"geometric mean of {len(points)}"
        yield Goal(name, mean, bound, at_most, "x", where)


def _worst(
    name: str, points: Points, bound: float, at_most: bool, unit: str = "x"
) -> Iterator[Goal]:
    if points:
        pick: Callable[..., tuple[float, Measurement]] = max if at_most else min
        value, m = pick(points, key=lambda point: point[0])
        yield Goal(name, value, bound, at_most, unit, f"worst of {len(points)}: {m.label}")


def _against_linear(measurements: list[Measurement]) -> Iterator[Goal]:
    points = _points(measurements, "mmfast", "linear")
    yield from _mean("forward / linear alone", points, 1.05, True)
    # Where rows repeat, less is computed than by linear alone: these flatter the mean.
    plain = [(value, m) for value, m in points if m.kind == "equal"]
    yield from _mean("forward / linear alone, without broadcast and index", plain, 1.05, True)
    large = [(value, m) for value, m in points if m.rows >= LARGE]
    yield from _worst("forward / linear alone, M >= 1k", large, 1.15, True)


def _against_best(measurements: list[Measurement]) -> Iterator[Goal]:
    points = _points(measurements, "mmfast", "best")
    yield from _mean("both / best peer", points, 0.95, True)
    large = [(value, m) for value, m in points if m.rows >= LARGE]
    yield from _worst("both / best peer, M >= 1k", large, 1.05, True)


def _overhead(name: str, measurements: list[Measurement]) -> Iterator[Goal]:
    points = _points(measurements, "mmfast", "best")
    yield from _worst(f"both / best peer, {name}", points, 1.3, True)
    extra = []
    for _, m in points:
        best = m.peers[m.best or ""].time.median
        extra.append((1e6 * (m.peers["mmfast"].time.median - best), m))
    yield from _worst(f"both - best peer, {name}", extra, 15, True, "us")


def _against_eager(measurements: list[Measurement]) -> Iterator[Goal]:
    for dtype, bound in (("float32", 1.4), ("bfloat16", 1.8)):
        for mode in ("forward", "both"):
            chosen = [m for m in measurements if (m.dtype, m.mode) == (dtype, mode)]
            points = _points(chosen, "eager", "mmfast")
            yield from _mean(f"{mode}: eager / mmfast, {dtype}, M >= 8k", points, bound, False)


def _repeating(measurements: list[Measurement]) -> Iterator[Goal]:
    for mode in ("forward", "both"):
        chosen = [m for m in measurements if m.mode == mode]
        for peer, bound in (("eager", 3.0), ("compile", 2.0)):
            points = _points(chosen, peer, "mmfast")
            name = f"{mode}: {peer} / mmfast, broadcast and index"
            yield from _mean(name, points, bound, False)
            yield from _worst(f"{name}, each", points, bound, False)


def _kept(measurements: list[Measurement]) -> Iterator[Goal]:
    """Bytes kept beyond inputs and weight: none, or the result's size behind an activation."""
    points = []
    for m in measurements:
        allowed = 0 if m.activation == "none" else m.result_bytes
        points.append(((m.peers["mmfast"].kept_extra_bytes or 0) - allowed, m))
    yield from _worst("kept for backward beyond what is needed", list(points), 0, True, "bytes")


def geometric_means(measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """Geometric means of peer over mmfast, by group, kind, dtype and mode.

    Returns:
        One dict per combination that occurs: ``group``, ``kind``, ``dtype``, ``mode``, ``count``,
        and for each peer but ``copy`` its mean time over mmfast's, above 1 where mmfast is faster.
    """
    rows: dict[tuple[str, str, str, str], list[Measurement]] = {}
    for m in measurements:
        if "mmfast" in m.peers:
            rows.setdefault((m.group, m.kind, m.dtype, m.mode), []).append(m)
    table = []
    for key, chosen in rows.items():
        row: dict[str, object] = dict(zip(("group", "kind", "dtype", "mode"), key, strict=True))
        row["count"] = len(chosen)
        for peer in _in_all(chosen):
            if points := _points(chosen, peer, "mmfast"):
                row[peer] = geometric_mean(value for value, _ in points)
        table.append(row)
    return table


def _in_all(measurements: Iterable[Measurement]) -> list[str]:
    """Peers that took part in every one of the measurements: means over others do not compare."""
    common: list[str] | None = None
    for m in measurements:
        names = [name for name in m.peers if name not in (FLOORS[0], "mmfast")]
        common = names if common is None else [name for name in common if name in names]
    return common or []
