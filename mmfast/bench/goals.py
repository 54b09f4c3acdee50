"""The goals that concat_linear's speed is held against, and what a run says about each.

Those of the other operators are in :mod:`mmfast.bench.operator_goals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mmfast.bench.goal import Goal, geometric_mean, mean, points, worst
from mmfast.bench.operator_goals import operator_goals
from mmfast.bench.peers import FLOORS
from mmfast.bench.records import Measurement

LARGE, LARGEST, SMALL = 1024, 8192, 32  # rows from which, or up to which, a goal counts


def goals(measurements: Sequence[Measurement]) -> list[Goal]:
    """Every goal that the measurements say something about, in the order of the goals.

    They are about the real shapes and the grid; of the tiny shapes only the overhead is told, and
    sweeps are for looking at.
    """
    measured = [m for m in measurements if "mmfast" in m.peers and m.operator == "concat_linear"]
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
        *operator_goals([m for m in measurements if m.operator != "concat_linear"]),
    ]


def _against_linear(measurements: list[Measurement]) -> Iterator[Goal]:
    found = points(measurements, "mmfast", "linear")
    yield from mean("forward / linear alone", found, 1.05, True)
    # Where rows repeat, less is computed than by linear alone: these flatter the mean.
    plain = [(value, m) for value, m in found if m.kind == "equal"]
    yield from mean("forward / linear alone, without broadcast and index", plain, 1.05, True)
    large = [(value, m) for value, m in found if m.rows >= LARGE]
    yield from worst("forward / linear alone, M >= 1k", large, 1.15, True)


def _against_best(measurements: list[Measurement]) -> Iterator[Goal]:
    found = points(measurements, "mmfast", "best")
    yield from mean("both / best peer", found, 0.95, True)
    large = [(value, m) for value, m in found if m.rows >= LARGE]
    yield from worst("both / best peer, M >= 1k", large, 1.05, True)


def _overhead(name: str, measurements: list[Measurement]) -> Iterator[Goal]:
    found = points(measurements, "mmfast", "best")
    yield from worst(f"both / best peer, {name}", found, 1.3, True)
    extra = []
    for _, m in found:
        best = m.peers[m.best or ""].time.median
        extra.append((1e6 * (m.peers["mmfast"].time.median - best), m))
    yield from worst(f"both - best peer, {name}", extra, 15, True, "us")


def _against_eager(measurements: list[Measurement]) -> Iterator[Goal]:
    for dtype, bound in (("float32", 1.4), ("bfloat16", 1.8)):
        for mode in ("forward", "both"):
            chosen = [m for m in measurements if (m.dtype, m.mode) == (dtype, mode)]
            found = points(chosen, "eager", "mmfast")
            yield from mean(f"{mode}: eager / mmfast, {dtype}, M >= 8k", found, bound, False)


def _repeating(measurements: list[Measurement]) -> Iterator[Goal]:
    for mode in ("forward", "both"):
        chosen = [m for m in measurements if m.mode == mode]
        for peer, bound in (("eager", 3.0), ("compile", 2.0)):
            found = points(chosen, peer, "mmfast")
            name = f"{mode}: {peer} / mmfast, broadcast and index"
            yield from mean(name, found, bound, False)
            yield from worst(f"{name}, each", found, bound, False)


def _kept(measurements: list[Measurement]) -> Iterator[Goal]:
    """Bytes kept beyond inputs and weight: none, or the result's size behind an activation."""
    found = []
    for m in measurements:
        allowed = 0 if m.activation == "none" else m.result_bytes
        found.append(((m.peers["mmfast"].kept_extra_bytes or 0) - allowed, m))
    yield from worst("kept for backward beyond what is needed", list(found), 0, True, "bytes")


def geometric_means(measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """Geometric means of peer over mmfast, by operator, group, kind, dtype and mode.

    Returns:
        One dict per combination that occurs: these five, ``count``, and for each peer but ``copy``
        its mean time over mmfast's, above 1 where mmfast is faster.
    """
    rows: dict[tuple[str, ...], list[Measurement]] = {}
    for m in measurements:
        if "mmfast" in m.peers:
            key = (m.operator, m.group, m.kind, m.dtype, m.mode)
            rows.setdefault(key, []).append(m)
    table = []
    for about, chosen in rows.items():
        names = ("operator", "group", "kind", "dtype", "mode")
        row: dict[str, object] = dict(zip(names, about, strict=True))
        row["count"] = len(chosen)
        for peer in _in_all(chosen):
            if found := points(chosen, peer, "mmfast"):
                row[peer] = geometric_mean(value for value, _ in found)
        table.append(row)
    return table


def _in_all(measurements: Iterable[Measurement]) -> list[str]:
    """Peers that took part in every one of the measurements: means over others do not compare."""
    common: list[str] | None = None
    for m in measurements:
        names = [name for name in m.peers if name not in (FLOORS[0], "mmfast")]
        common = names if common is None else [name for name in common if name in names]
    return common or []
