"""The stopwatch of a GPU: absolute times of the device's work, with inputs that it does not hold.

A step is captured once in a CUDA graph, where it can be, so that what is timed is the device's
work and not Python's. Before every call so much else is read that nothing of the step's inputs is
left in the level-2 cache. Events around each call give its time; a turn's is the median of its
calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from mmfast.bench.timing import Prepared, Step

CALLS = 10  # of a turn, at least
WARM_UP = 3


@dataclass(frozen=True)
class Ready:
    """A step as it is timed.

    Attributes:
        call: puts its work on the current stream.
        captured: whether that is the replay of a graph; else Python's own time can be part of it.
        kept: what must live as long.
    """

    call: Callable[[], object]
    captured: bool
    kept: Any = None


def make_ready(step: Step) -> Ready:
    """Warm a step up and capture it; where that cannot be done, it is called as it is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    prepared = isinstance(step, Prepared)
    try:
        with torch.cuda.stream(stream):
            state = step.prepare() if isinstance(step, Prepared) else None
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            result = step.run(state) if isinstance(step, Prepared) else step()
    except Exception:  # it waits for the device, or is a graph already
        torch.cuda.synchronize()
        return Ready(step, captured=False)
    return Ready(graph.replay, captured=True, kept=(state if prepared else None, result))


class ColdCache:
    """Reads as much as twice fills the level-2 cache; nothing is left there to be written back."""

    def __init__(self, device: str) -> None:
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        self.other = torch.zeros(max(2 * size, 1 << 20) // 4, device=device)

    def __call__(self) -> None:
        """Put the reading on the current stream."""
        self.other.sum()


def interleave(
    *steps: Step,
    turns: int,
    turn_s: float,
    limit_s: float,
    least_turns: int,
    device: str,
) -> tuple[list[float], ...]:
    """Measures steps in turns, as :func:`mmfast.bench.timing.interleave`; seconds per call."""
    with torch.cuda.device(device):
        cold = ColdCache(device)
        ready = [make_ready(step) for step in steps]
        times: tuple[list[float], ...] = tuple([] for _ in steps)
        start = perf_counter()
        for turn in range(turns):
            if turn >= least_turns and perf_counter() - start >= limit_s:
                break
            for place in range(len(steps)):
                which = (turn + place) % len(steps)
                times[which].append(seconds_per_call(ready[which], steps[which], cold, turn_s))
        return times


def seconds_per_call(ready: Ready, step: Step, cold: Callable[[], object], turn_s: float) -> float:
    """The median of as many calls as fill the turn, or of CALLS."""
    found: list[float] = []
    begin = perf_counter()
    while len(found) < CALLS or perf_counter() - begin < turn_s:
        found += _calls(ready, step, cold)
    return median(found)


def _calls(ready: Ready, step: Step, cold: Callable[[], object]) -> list[float]:
    pairs = []
    for _ in range(CALLS):
        half = not ready.captured and isinstance(step, Prepared)
        state = step.prepare() if half and isinstance(step, Prepared) else None
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        cold()
        events[0].record()
        if half and isinstance(step, Prepared):
            step.run(state)
        else:
            ready.call()
        events[1].record()
        pairs.append(events)
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
