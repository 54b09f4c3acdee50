"""Two runs side by side: what became slower by more than the noise.

What is compared is mmfast's time over that of linear alone, or of another operator's eager form,
which was measured in the same rounds: two runs seldom find a machine equally busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmfast.bench.records import Measurement, Run
from mmfast.bench.timing import Spread

LEAST = 1.05  # quartiles of a few rounds can miss each other by chance: less is not told


@dataclass(frozen=True)
class Change:
    """A measurement that both runs have.

    Attributes:
        measurement: of the new run.
        old: mmfast over linear alone, or eager, in the old run.
        new: the same in the new run.
    """

    measurement: Measurement
    old: Spread
    new: Spread

    @property
    def factor(self) -> float:
        """New over old: above 1 it became slower."""
        return self.new.median / self.old.median

    @property
    def slower(self) -> bool:
        """Whether it became slower, and the quartiles of old and new do not meet."""
        return self.factor >= LEAST and self.new.low > self.old.high

    @property
    def faster(self) -> bool:
        """The opposite of slower."""
        return self.factor <= 1 / LEAST and self.new.high < self.old.low


@dataclass(frozen=True)
class Comparison:
    """What a new run says about an old one.

    Attributes:
        changes: the measurements in common, those that lost most first.
        missing: labels of those that only the old run has.
        lost: labels of those in which mmfast was measured before and is refused now.
        differs: machine and versions that are not the same, as ``name: old -> new``.
    """

    changes: list[Change]
    missing: list[str]
    lost: list[str]
    differs: list[str]

    @property
    def slower(self) -> list[Change]:
        """Changes for the worse, beyond the spread."""
        return [change for change in self.changes if change.slower]

    @property
    def faster(self) -> list[Change]:
        """Changes for the better, beyond the spread."""
        return [change for change in self.changes if change.faster]

    @property
    def failed(self) -> bool:
        """Whether something became slower or stopped working."""
        return bool(self.slower or self.lost)


def compare(old: Run, new: Run) -> Comparison:
    """Compares the measurements that both runs have.

    Raises:
        ValueError: there are none.
    """
    before = _measured(old.measurements)
    now = {m.key: m for m in new.measurements}
    common = [key for key in before if key in now]
    if not common:
        raise ValueError("the two runs have no measurement in common")
    changes, lost = [], []
    for key in common:
        was, is_ = _relative(before[key]), _relative(now[key])
        if is_ is None:
            lost.append(now[key].label)
        elif was is not None:
            changes.append(Change(now[key], was, is_))
    return Comparison(
        changes=sorted(changes, key=lambda change: -change.factor),
        missing=[m.label for key, m in before.items() if key not in now],
        lost=lost,
        differs=_differs(old, new),
    )


def _measured(measurements: Sequence[Measurement]) -> dict[tuple[object, ...], Measurement]:
    return {m.key: m for m in measurements if _relative(m) is not None}


def _relative(m: Measurement) -> Spread | None:
    return m.ratio("mmfast", m.base)


def _differs(old: Run, new: Run) -> list[str]:
    before, now = {**old.machine, **old.versions}, {**new.machine, **new.versions}
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
