"""What is noise and what is not: intervals by resampling, tests of two runs on the same rows.

All of it is about which rows happened to be in the test split. How much another seed of training
would change, only training again can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmfast.train.scores import Array, Scores

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 10_000
_WORK = 4e8  # rows times classes times resamples that take some seconds
_ENTRIES = 4e7  # of the matrix of weights, a third of a GB


class Interval(NamedTuple):
    """A figure with what it may be on other rows: NaN as bounds where resampling shows nothing."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two runs compared by one metric on the same rows.

    Attributes:
        difference: of the second from the first.
        p: how probable a difference as large would be if there was none.
        method: ``mcnemar``, ``permutation`` or ``bootstrap``.
    """

    difference: Interval
    p: float
    method: str


class Resampling:
    """Draws of N rows with replacement; of whole groups where rows belong together.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; for groups, the cluster
    bootstrap of Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.

    Args:
        rows: number N of rows.
        groups: int64 (N,), equal for rows that are no independent observations; None if all are.
        resamples: how many draws.
        seed: decides them; two runs on the same rows are compared under the same draws.

    Attributes:
        weights: (resamples, N), how often each row was drawn.
        units: how many rows, or groups, there are to draw from: the honest n.
        groups: (N,), numbers of the groups from 0.
    """

    def __init__(
        self,
        rows: int,
        groups: NDArray[np.int64] | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        known = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.groups = known.reshape(-1)
        self.units = int(self.groups.max()) + 1
        generator = np.random.default_rng(seed)
        equal = np.full(self.units, 1 / self.units)
        drawn = generator.multinomial(self.units, equal, size=resamples)
        self.weights: Array = drawn[:, self.groups].astype(float)

    @classmethod
    def of(cls, scores: Scores, groups: NDArray[np.int64] | None = None) -> Resampling:
        """Draws for the rows of scores, fewer where each is much work, never under 200."""
        columns = scores.true.shape[1] if hasattr(scores, "scores") else 1
        return cls(scores.count, groups, resamples=affordable(scores.count, columns))


def affordable(rows: int, columns: int) -> int:
    """How many resamples of so many rows and classes cost seconds and not minutes."""
    most = int(min(_WORK / columns, _ENTRIES) / max(1, rows))
    return min(RESAMPLES, max(200, most))


def interval(value: float, draws: Array) -> Interval:
    """The percentile interval of 95 % from a metric's values over resamples.

    Resamples for which the metric is not defined are left out. Where all that remain are equal,
    such as when every row is right, resampling says nothing, and the bounds are NaN.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws) or np.ptp(draws) == 0:
        return Interval(value, math.nan, math.nan)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def intervals(scores: Scores, resampling: Resampling) -> dict[str, Interval]:
    """Every metric with its interval."""
    return {
        name: interval(scores.point(name), scores.over(name, resampling.weights))
        for name in scores.measures
    }


def paired(first: Scores, second: Scores, name: str, resampling: Resampling) -> PairedTest:
    """Whether the second run differs from the first by a metric; both on the same rows.

    The interval of the difference is that of the paired bootstrap. Where every row is an
    observation of its own and right or wrong, p is McNemar's; for other means over rows it is that
    of a permutation test, whose units are the groups; for what is no mean, it is read off the
    bootstrap.
    """
    draws = second.over(name, resampling.weights) - first.over(name, resampling.weights)
    difference = interval(second.point(name) - first.point(name), draws)
    if name not in first.per_row:
        return PairedTest(difference, bootstrap_p(draws), "bootstrap")
    a, b = first.per_row[name], second.per_row[name]
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    if binary and resampling.units == len(a):
        p = mcnemar(int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
        return PairedTest(difference, p, "mcnemar")
    sums = np.bincount(resampling.groups, weights=b - a, minlength=resampling.units)
    return PairedTest(difference, sign_flip_p(sums.astype(float)), "permutation")


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: whether a coin that fell so each way is fair.

    Args:
        only_first: rows that the first run has right and the second wrong.
        only_second: rows that the second has right and the first wrong.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947; the exact form is the sign test of the rows on which the two differ.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways, term = 0, 1
    for k in range(fewer + 1):  # in integers, since 2.0**-count is 0 for long tests
        ways += term
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * ways / 2**count)


def sign_flip_p(differences: Array, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p that the mean of independent differences is 0: their signs are changed at random.

    Fisher's randomisation test of paired data ("The Design of Experiments", 1935). With the
    observed signs among the draws it is valid for any number of draws (Phipson and Smyth, 2010).
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(differences.sum()) * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    step = max(1, (1 << 22) // len(differences))
    extreme = 0
    for start in range(0, flips, step):
        size = (min(step, flips - start), len(differences))
        signs = generator.integers(0, 2, size, dtype=np.int8) * 2.0 - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (flips + 1)


def bootstrap_p(draws: Array) -> float:
    """Two-sided p that a difference is 0: how far the resampled differences reach across it."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that all of them together err in 5 of 100 cases.

    Holm, "A simple sequentially rejective multiple test procedure", 1979. NaN stays, uncounted.
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    adjusted, largest = list(p), 0.0
    for done, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * p[i]))
        adjusted[i] = largest
    return adjusted
