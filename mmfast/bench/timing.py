"""The stopwatch: contenders take turns, so that a noisy machine is noisy to all of them.

Only ratios within one run mean something on a machine that others use too. This file needs nothing
beyond the standard library, so that whoever wants to time two things can use it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Step = Callable[[], object]


@dataclass(frozen=True)
class Prepared:
    """A step of which only the second half is timed: ``run(prepare())``."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]

    def __call__(self) -> object:
        """Both halves, as an untimed call wants them."""
        return self.run(self.prepare())


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some figures."""

    median: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """Half the distance of the quartiles over the median: 0.02 reads as +- 2 %."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one figure."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def ratio(times_s: Sequence[float], base_s: Sequence[float]) -> Spread:
    """Spread of the ratios of two contenders, round by round.

    What slowed a round slowed both: these ratios are steadier than the ratio of the medians.
    """
    return spread([time / base for time, base in zip(times_s, base_s, strict=True)])


def interleave(
    *steps: Step,
    turns: int,
    turn_s: float,
    limit_s: float = float("inf"),
    least_turns: int = 3,
) -> tuple[list[float], ...]:
    """Measures steps in turns, A B C, B C A, C A B ...; returns seconds per call of each turn.

    Args:
        steps: what to measure. Each is called once beforehand, which warms it up.
        turns: how often each step has its turn.
        turn_s: least length of a turn in seconds; shorter calls are repeated to fill it.
        limit_s: no round begins once this much time has passed ...
        least_turns: ... and this many rounds are done.
    """
    times: tuple[list[float], ...] = tuple([] for _ in steps)
    for step in steps:
        step()
    start = perf_counter()
    with _without_garbage_collection():
        for turn in range(turns):
            if turn >= least_turns and perf_counter() - start >= limit_s:
                break
            for place in range(len(steps)):
                which = (turn + place) % len(steps)
                times[which].append(seconds_per_call(steps[which], turn_s))
    return times


def seconds_per_call(step: Step, least_s: float) -> float:
    """Calls ``step`` until ``least_s`` seconds have passed; returns their mean.

    Counts calls until the time is up, instead of timing a number of calls fixed beforehand: where
    threads wait in a spin loop, a machine that turns busy can make one call a hundred times longer.
    """
    if isinstance(step, Prepared):
        return _seconds_per_prepared_call(step, least_s)
    calls = 0
    start = perf_counter()
    while True:
        step()
        calls += 1
        elapsed = perf_counter() - start
        if elapsed >= least_s:
            return elapsed / calls


def _seconds_per_prepared_call(step: Prepared, least_s: float) -> float:
    calls, elapsed = 0, 0.0
    while elapsed < least_s:
        state = step.prepare()
        start = perf_counter()
        step.run(state)
        elapsed += perf_counter() - start
        calls += 1
    return elapsed / max(calls, 1)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
