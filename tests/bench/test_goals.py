"""Means and goals from figures that can be computed by hand."""

import pytest

from mmfast.bench.goals import geometric_mean, geometric_means, goals
from mmfast.bench.records import Result


def named(found):
    return {goal.name: goal for goal in found}


def test_geometric_mean():
    assert geometric_mean([4.0]) == pytest.approx(4)
    assert geometric_mean([0.5, 8.0]) == pytest.approx(2)


def test_forward_against_linear_alone(measurement):
    found = named(
        goals(
            [
                measurement({"mmfast": [1.0], "linear": [2.0]}, case="a", rows=1),
                measurement({"mmfast": [2.0], "linear": [1.0]}, case="b", rows=1024),
                measurement({"mmfast": [1.0], "linear": [8.0]}, case="c", kind="broadcast"),
                measurement({"mmfast": [9.0], "linear": [1.0]}, case="d", group="sweep"),
                measurement({"mmfast": [9.0], "linear": [1.0]}, case="e", mode="both"),
            ]
        )
    )
    mean = found["forward / linear alone"]
    assert mean.value == pytest.approx(0.5)
    assert mean.met
    plain = found["forward / linear alone, without broadcast and index"]
    assert plain.value == pytest.approx(1)
    worst = found["forward / linear alone, M >= 1k"]
    assert (worst.value, worst.met) == (2, False)
    assert "b, float32, forward" in worst.where


def test_both_against_the_best_peer(measurement):
    times = {"linear": [0.1], "copy": [0.1], "eager": [4.0], "split": [2.0]}
    found = named(
        goals(
            [
                measurement({**times, "mmfast": [1.0]}, case="a", mode="both"),
                measurement({**times, "mmfast": [2.2]}, case="b", mode="both"),
                measurement({**times, "mmfast": [2.0 + 2e-5]}, case="c", mode="both", rows=32),
                measurement({**times, "mmfast": [6.0]}, case="d", mode="both", group="tiny"),
            ]
        )
    )
    assert found["both / best peer"].value == pytest.approx((0.5 * 1.1 * 1.00001) ** (1 / 3))
    assert found["both / best peer, M >= 1k"].value == pytest.approx(1.1)
    assert not found["both / best peer, M >= 1k"].met
    assert found["both / best peer, M <= 32"].met
    assert found["both / best peer, tiny shapes"].value == 3
    extra = found["both - best peer, M <= 32"]
    assert (round(extra.value), extra.unit, extra.met) == (20, "us", False)


def test_against_eager_by_dtype_counts_large_batches_alone(measurement):
    found = named(
        goals(
            [
                measurement({"mmfast": [1.0], "eager": [1.5]}),
                measurement({"mmfast": [1.0], "eager": [9.0]}, rows=8191),
                measurement({"mmfast": [1.0], "eager": [1.5]}, dtype="bfloat16"),
            ]
        )
    )
    single, half = (
        found[f"forward: eager / mmfast, {dtype}, M >= 8k"] for dtype in ("float32", "bfloat16")
    )
    assert (single.value, single.met) == (pytest.approx(1.5), True)
    assert (half.value, half.met) == (pytest.approx(1.5), False)


def test_broadcast_and_index(measurement):
    times = {"mmfast": [1.0], "compile": [2.5]}
    found = named(
        goals(
            [
                measurement({**times, "eager": [8.0]}, kind="broadcast"),
                measurement({**times, "eager": [2.0]}, kind="index"),
                measurement({**times, "eager": [1.0]}),
            ]
        )
    )
    name = "forward: eager / mmfast, broadcast and index"
    assert (found[name].value, found[name].met) == (pytest.approx(4), True)
    assert (found[f"{name}, each"].value, found[f"{name}, each"].met) == (2, False)
    assert found["forward: compile / mmfast, broadcast and index"].met


def test_kept_bytes_beyond_what_is_needed(measurement):
    def kept(extra, activation):
        m = measurement({"mmfast": [1.0]}, activation=activation, mode="both")
        m.peers["mmfast"] = Result([1.0], 0, 1000, extra)
        return named(goals([m]))["kept for backward beyond what is needed"]

    assert kept(0, "none").met
    assert kept(64, "relu").met
    assert not kept(64, "none").met
    assert kept(65, "relu").value == 1


def test_a_refused_mmfast_is_no_figure(measurement):
    assert goals([measurement({"linear": [1.0], "eager": [1.0]})]) == []


def test_means_by_group_leave_out_peers_that_were_not_everywhere(measurement):
    found = geometric_means(
        [
            measurement({"mmfast": [1.0], "eager": [2.0], "compile": [3.0], "copy": [1.0]}),
            measurement({"mmfast": [1.0], "eager": [8.0], "copy": [1.0]}),
            measurement({"mmfast": [2.0], "eager": [1.0]}, mode="both"),
        ]
    )
    assert [(row["mode"], row["count"]) for row in found] == [("forward", 2), ("both", 1)]
    assert found[0]["eager"] == pytest.approx(4)
    assert "compile" not in found[0]
    assert "copy" not in found[0]
    assert found[1]["eager"] == pytest.approx(0.5)
