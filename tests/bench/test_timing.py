"""The stopwatch: whose turn it is, when it stops, what it makes of the figures."""

import ast
import sys
import time
from pathlib import Path

import pytest

from mmfast.bench import timing


def recorder(calls, name, seconds=0.0):
    def step():
        calls.append(name)
        time.sleep(seconds)

    return step


def test_turns_rotate_after_a_warm_up():
    calls = []
    steps = [recorder(calls, name, 0.001) for name in "ABC"]
    times = timing.interleave(*steps, turns=4, turn_s=0.0005)
    assert "".join(calls) == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert [len(seconds) for seconds in times] == [4, 4, 4]


def test_times_belong_to_their_steps():
    steps = [recorder([], "", seconds) for seconds in (0.001, 0.004, 0.002)]
    short, long, middle = timing.interleave(*steps, turns=3, turn_s=0.0005)
    assert 0.001 <= min(short) < 0.002 <= min(middle) < 0.004 <= min(long)


def test_a_turn_of_short_calls_lasts_its_time():
    calls = []
    start = time.perf_counter()
    (seconds,) = timing.interleave(recorder(calls, ""), turns=2, turn_s=0.01)
    assert time.perf_counter() - start >= 0.02
    assert len(calls) > 50
    assert max(seconds) < 0.001


def test_no_round_begins_after_the_limit():
    calls = []
    timing.interleave(recorder(calls, "", 0.005), turns=50, turn_s=0.0, limit_s=0.012)
    assert 1 + 3 <= len(calls) <= 1 + 4
    calls.clear()
    timing.interleave(recorder(calls, ""), turns=50, turn_s=0.0, limit_s=0.0, least_turns=5)
    assert len(calls) == 1 + 5


def test_preparation_is_not_timed():
    order = []

    def prepare():
        order.append("prepare")
        time.sleep(0.005)
        return "state"

    prepared = timing.Prepared(prepare, lambda state: order.append(state))
    assert timing.seconds_per_call(prepared, 1e-9) < 0.004
    assert order[:2] == ["prepare", "state"]


def test_spread():
    assert timing.spread([3.0]) == timing.Spread(3, 3, 3)
    found = timing.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == timing.Spread(3, 2, 4)
    assert found.relative == pytest.approx(1 / 3)


def test_ratios_are_taken_round_by_round():
    # The machine is 1, 10 and 100 times busy: the ratio does not notice.
    assert timing.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == timing.Spread(2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        timing.ratio([1.0], [1.0, 2.0])


def test_it_needs_only_the_standard_library():
    tree = ast.parse(Path(timing.__file__).read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {name.split(".")[0] for name in modules} <= set(sys.stdlib_module_names)
