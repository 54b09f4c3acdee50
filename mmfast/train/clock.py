"""Where the time of a training goes, at the price of reading a clock."""

from __future__ import annotations

from time import perf_counter


class Clock:
    """Adds up seconds by part, as a stopwatch with laps does: what is timed has no gaps.

    Args:
        seconds: by part, what was counted before; it is added to in place.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = perf_counter()

    def lap(self, part: str | None) -> None:
        """Count the time since the last lap for a part, or for none."""
        now = perf_counter()
        if part is not None:
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now
