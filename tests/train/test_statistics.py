"""Intervals and tests: against enumeration of every case, and on data whose truth is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmfast.train.predictions import About
from mmfast.train.scores import Scores
from mmfast.train.statistics import (
    Resampling,
    affordable,
    bootstrap_p,
    holm,
    interval,
    intervals,
    mcnemar,
    paired,
    sign_flip_p,
)

VALUES = About("regression", "mse", "mae", ("a",), (), 0.0, 1.0, "table.csv", None)
CLASSES = About("binary", "bce", "accuracy", ("a",), ("no", "yes"), 0.0, 1.0, "table.csv", None)


def errors(values):
    """Scores whose mean absolute error is the mean of the values."""
    outputs = torch.as_tensor(np.asarray(values), dtype=torch.float64)[:, None]
    return Scores(VALUES, outputs, torch.zeros(len(outputs)))


def answers(right):
    """Scores of a binary task of which these rows are right."""
    right = torch.as_tensor(np.asarray(right, dtype=bool))
    return Scores(CLASSES, torch.where(right, 1.0, -1.0)[:, None], torch.ones(len(right)).long())


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 0), (1, 6), (4, 4), (5, 3)])
def test_mcnemar_counts_every_way_a_coin_can_fall(only_first, only_second):
    count = only_first + only_second
    observed = abs(only_first - only_second)
    falls = itertools.product((-1, 1), repeat=count)
    extreme = sum(abs(sum(fall)) >= observed for fall in falls)
    assert mcnemar(only_first, only_second) == pytest.approx(extreme / 2**count)


def test_mcnemar_of_many_rows():
    """Where powers of one half are 0 in floating point; the normal approximation is close then."""
    z = (1600 - 1500) / math.sqrt(3100)
    assert mcnemar(1500, 1600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)
    assert mcnemar(0, 5000) == 0.0


def test_sign_flips_are_those_of_all_signs():
    differences = np.array([0.9, -0.2, 1.3, 0.4, 0.0, 0.7, -0.1, 0.5, 1.1])
    given = differences[differences != 0]
    sums = [abs(np.dot(s, given)) for s in itertools.product((-1, 1), repeat=len(given))]
    exact = np.mean(np.array(sums) >= abs(given.sum()) - 1e-12)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.r_[np.ones(6), -np.ones(1)]) == pytest.approx(mcnemar(6, 1), abs=0.01)


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.02, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.02])


def coverage(draw, truth, *, grouped=True, trials=200):
    """How often the interval of a mean holds the true one."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(trials):
        values, groups = draw(generator)
        resampling = Resampling(len(values), groups if grouped else None, resamples=300)
        _, low, high = interval(
            values.mean(), resampling.weights @ values / resampling.weights.sum(1)
        )
        held += low <= truth <= high
    return held / trials


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.9 <= coverage(lambda g: (g.random(80) < 0.7, None), 0.7) <= 0.99


def test_rows_that_belong_together_are_no_more_than_their_groups():
    """Twenty groups of eight equal rows hold what twenty rows hold: only groups give that away."""

    def clustered(generator):
        return np.repeat(generator.normal(size=20), 8), np.repeat(np.arange(20), 8)

    assert coverage(clustered, 0.0, trials=150) >= 0.85
    assert coverage(clustered, 0.0, grouped=False, trials=150) < 0.65
    assert Resampling(160, np.repeat(np.arange(20), 8)).units == 20


def test_equal_runs_are_rarely_told_apart_and_unequal_ones_are():
    generator = np.random.default_rng(0)
    found = {"equal": 0, "unequal": 0}
    for _ in range(100):
        base = generator.random(150)
        first, equal = (base + 0.3 * generator.normal(size=150) < 0.7 for _ in range(2))
        unequal = base + 0.3 * generator.normal(size=150) < 0.95
        resampling = Resampling(150, resamples=50)
        for name, other in (("equal", equal), ("unequal", unequal)):
            found[name] += paired(answers(first), answers(other), "accuracy", resampling).p < 0.05
    assert found["equal"] <= 10
    assert found["unequal"] >= 90


def test_the_test_fits_the_metric():
    right = np.arange(40) % 3 > 0
    other = np.arange(40) % 4 > 0
    alone = Resampling(40, resamples=200)
    test = paired(answers(right), answers(other), "accuracy", alone)
    gained, lost = (other & ~right).sum(), (right & ~other).sum()
    assert (test.method, test.p) == ("mcnemar", mcnemar(int(lost), int(gained)))
    assert test.difference.value == pytest.approx(other.mean() - right.mean())
    grouped = Resampling(40, np.arange(40) // 2, resamples=200)
    assert paired(answers(right), answers(other), "accuracy", grouped).method == "permutation"
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 40))
    assert paired(errors(a), errors(b), "mae", alone).method == "permutation"
    assert paired(errors(a), errors(b), "rmse", alone).method == "bootstrap"


def test_groups_count_once_in_the_test_too():
    """Ten groups that agree prove as much as ten rows that agree, however many rows they have."""
    first, second = answers(np.zeros(200)), answers(np.repeat([1, 1, 1, 1, 0] * 2, 20))
    few = paired(first, second, "accuracy", Resampling(200, np.repeat(np.arange(10), 20)))
    many = paired(first, second, "accuracy", Resampling(200))
    assert few.p == pytest.approx(2 / 2**8, abs=0.003)
    assert many.p < 1e-20


def test_bootstrap_p():
    assert bootstrap_p(np.linspace(-1, 1, 1001)) == pytest.approx(1.0, abs=0.01)
    assert bootstrap_p(np.linspace(0.1, 1, 999)) == pytest.approx(2 / 1000)
    assert math.isnan(bootstrap_p(np.full(3, np.nan)))


def test_no_interval_where_resampling_shows_nothing():
    found = intervals(answers(np.ones(12)), Resampling(12))
    assert found["accuracy"].value == 1.0
    assert math.isnan(found["accuracy"].low)
    assert math.isnan(found["auroc"].value)


def test_many_rows_are_resampled_less_often():
    assert [affordable(rows, 1) for rows in (100, 100_000, 10_000_000)] == [2000, 400, 200]
    assert affordable(1000, 1000) == 400


def test_two_runs_are_resampled_alike():
    a, b = Resampling(50), Resampling(50)
    assert (a.weights == b.weights).all()
    assert (a.weights.sum(1) == 50).all()
    assert not (a.weights == Resampling(50, seed=1).weights).all()
