"""The comparison tells a slowdown from noise."""

import pytest

from mmfast.bench.compare import compare

STEADY = [1.00, 1.01, 0.99, 1.00, 1.02]
NOISY = [0.8, 1.4, 1.0, 1.6, 0.9]


def pair(a_run, measurement, old, new, linear=(1.0,) * 5):
    runs = (
        a_run(measurement({"mmfast": list(times), "linear": list(linear)})) for times in (old, new)
    )
    return compare(*runs)


def test_the_same_is_the_same(a_run, measurement):
    found = pair(a_run, measurement, STEADY, STEADY)
    assert len(found.changes) == 1
    assert found.slower == found.faster == []
    assert not found.failed


def test_a_slowdown_beyond_the_spread(a_run, measurement):
    found = pair(a_run, measurement, STEADY, [1.2 * time for time in STEADY])
    assert [round(change.factor, 2) for change in found.slower] == [1.2]
    assert found.failed
    back = pair(a_run, measurement, [1.2 * time for time in STEADY], STEADY)
    assert len(back.faster) == 1
    assert not back.failed


def test_noise_is_no_slowdown(a_run, measurement):
    assert not pair(a_run, measurement, NOISY, [1.2 * time for time in NOISY]).failed
    # Beyond the quartiles, but too little to be told from chance.
    assert not pair(a_run, measurement, [1.0] * 5, [1.03] * 5).failed


def test_a_machine_that_is_slower_as_a_whole_is_no_slowdown(a_run, measurement):
    old = a_run(measurement({"mmfast": STEADY, "linear": [1.0] * 5}))
    new = a_run(measurement({"mmfast": [9 * t for t in STEADY], "linear": [9.0] * 5}))
    assert not compare(old, new).failed


def test_other_operators_are_compared_by_their_eager_form(a_run, measurement):
    def run(ours, eager):
        times = {"mmfast": [ours] * 5, "eager": [eager] * 5, "copy": [1.0] * 5}
        return a_run(measurement(times, operator="gated_sum"))

    assert not compare(run(1.0, 2.0), run(3.0, 6.0)).failed
    assert compare(run(1.0, 2.0), run(3.0, 2.0)).failed
    with pytest.raises(ValueError, match="no measurement in common"):
        compare(run(1.0, 2.0), a_run(measurement({"mmfast": [1.0], "linear": [1.0]})))


def test_what_is_not_in_both(a_run, measurement):
    times = {"mmfast": STEADY, "linear": STEADY}
    old = a_run(measurement(times), measurement(times, case="gone"))
    new = a_run(measurement(times), measurement(times, case="added"))
    found = compare(old, new)
    assert found.missing == ["gone, float32, forward"]
    assert len(found.changes) == 1
    with pytest.raises(ValueError, match="no measurement in common"):
        compare(old, a_run(measurement(times, shape="another")))


def test_mmfast_refused_now_is_a_failure(a_run, measurement):
    old = a_run(measurement({"mmfast": STEADY, "linear": STEADY}))
    new = a_run(measurement({"linear": STEADY}))
    found = compare(old, new)
    assert found.lost == ["pair, float32, forward"]
    assert found.failed


def test_another_machine_is_told(a_run, measurement):
    m = measurement({"mmfast": STEADY, "linear": STEADY})
    new = a_run(m, versions={"mmfast": "0.2", "torch": "2.13.0+cpu", "python": "3.11"})
    assert compare(a_run(m), new).differs == ["mmfast: 0.1 -> 0.2"]
