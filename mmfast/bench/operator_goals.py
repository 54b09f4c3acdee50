"""The goals of the operators beside concat_linear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log

from mmfast.bench.goal import Goal, points, worst
from mmfast.bench.records import Measurement

MEMORY_BOUND = ("weighted_sum", "attention_pool", "gated_sum", "rank_product")
LARGE = 12_000_000  # elements of all inputs together, as three of 4M have: from there memory bounds


def operator_goals(measurements: Sequence[Measurement]) -> list[Goal]:
    """Every goal that the measurements say something about; real and tiny shapes count."""
    by_operator: dict[str, list[Measurement]] = {}
    for m in measurements:
        by_operator.setdefault(m.operator, []).append(m)
    found: list[Goal] = []
    for operator, chosen in by_operator.items():
        real = [m for m in chosen if m.group == "real"]
        if operator in MEMORY_BOUND:
            found += _memory_bound(operator, [m for m in real if _large(m)])
            found += _overhead(operator, [m for m in chosen if m.group == "tiny"])
    found += _attention(by_operator.get("multi_source_attention", []))
    found += _tensor_fusion(by_operator.get("tensor_fusion", []))
    found += _contrastive(by_operator.get("contrastive_loss", []))
    return found


def _large(m: Measurement) -> bool:
    return m.rows * m.width >= LARGE


def _memory_bound(operator: str, measurements: list[Measurement]) -> Iterator[Goal]:
    for mode in ("forward", "both"):
        chosen = [m for m in measurements if m.mode == mode]
        name = f"{operator}, {mode}"
        yield from worst(f"{name}: copy / mmfast", points(chosen, "copy", "mmfast"), 0.7, False)
        yield from worst(f"{name}: eager / mmfast", points(chosen, "eager", "mmfast"), 3, False)
        compiled = points(chosen, "compile", "mmfast")
        yield from worst(f"{name}: compile / mmfast", compiled, 1.5, False)


def _overhead(operator: str, measurements: list[Measurement]) -> Iterator[Goal]:
    found = points(measurements, "mmfast", "best")
    yield from worst(f"{operator}, tiny shapes: mmfast / best peer", found, 1.3, True)


def _attention(measurements: list[Measurement]) -> Iterator[Goal]:
    name = "multi_source_attention: mmfast / concat + SDPA"
    yield from worst(name, points(measurements, "mmfast", "eager"), 1.05, True)
    yield from worst(f"{name}, peak memory", _peaks(measurements), 1, True)


def _tensor_fusion(measurements: list[Measurement]) -> Iterator[Goal]:
    faster = points(measurements, "eager", "mmfast")
    yield from worst("tensor_fusion: outer product / mmfast", faster, 4, False)
    name = "tensor_fusion: mmfast / outer product, peak memory"
    yield from worst(name, _peaks(measurements), 0.1, True)


def _peaks(measurements: Sequence[Measurement]) -> list[tuple[float, Measurement]]:
    """Mmfast's peak memory over eager's."""
    found = []
    for m in measurements:
        ours, theirs = (
            m.peers[p].peak_bytes if p in m.peers else None for p in ("mmfast", "eager")
        )
        if ours is not None and theirs:
            found.append((ours / theirs, m))
    return found


def _contrastive(measurements: list[Measurement]) -> Iterator[Goal]:
    """The power of N with which the peak grows from one size to the next."""
    series: dict[tuple[str, str, str], list[tuple[int, int, Measurement]]] = {}
    for m in measurements:
        peak = m.peers["mmfast"].peak_bytes if "mmfast" in m.peers else None
        if peak:
            series.setdefault((m.series, m.dtype, m.mode), []).append((m.rows, peak, m))
    found = []
    for sizes in series.values():
        for (rows, peak, _), (more_rows, more, m) in pairwise(sorted(sizes, key=lambda x: x[0])):
            found.append((log(more / peak) / log(more_rows / rows), m))
    yield from worst("contrastive_loss: peak memory, power of N", found, 1.1, True, "")
