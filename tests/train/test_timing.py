"""The stopwatch: takes turns, and refuses to compare what differs."""

import time

import pytest
import torch
from torch import nn

from mmfast.train import timing


def test_turns_alternate_and_measure_seconds_per_call():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.004)

    def quick():
        calls.append("quick")
        time.sleep(0.001)

    slow_s, quick_s = timing.interleave(slow, quick, turns=4, turn_s=0.0005)
    assert calls[2:] == ["slow", "quick", "quick", "slow"] * 2
    assert len(slow_s) == len(quick_s) == 4
    assert min(slow_s) >= 0.004
    assert 0.001 <= min(quick_s) < 0.004


def test_a_turn_of_short_calls_lasts_its_time():
    calls = []
    start = time.perf_counter()
    timing.interleave(lambda: calls.append(0), lambda: None, turns=2, turn_s=0.01)
    assert time.perf_counter() - start >= 0.04
    assert len(calls) > 100


@pytest.mark.parametrize("backward", [False, True])
def test_time_fusion(backward):
    result = timing.time_fusion(16, (8, 4), 8, backward=backward, turns=3, turn_s=1e-4)
    assert result.fused_s > 0
    assert result.ratio == pytest.approx(result.eager_s / result.fused_s)
    assert result.as_dict()["widths"] == (8, 4)
    assert result.as_dict()["ratio"] == result.ratio


def test_backward_means_all_gradients():
    x = torch.randn(3, 4, requires_grad=True)
    layer = nn.Linear(4, 2)
    grads = timing._step(lambda: layer(x), [x, *layer.parameters()], backward=True)()
    assert [g.shape for g in grads] == [(3, 4), (2, 4), (2,)]
    assert not timing._step(lambda: layer(x), [], backward=False)().requires_grad


def test_layers_that_disagree_are_not_timed(monkeypatch):
    class Wrong(timing.ConcatLinear):
        def forward(self, inputs):
            return super().forward(inputs) + 1

    monkeypatch.setattr(timing, "ConcatLinear", Wrong)
    with pytest.raises(RuntimeError, match="differ by"):
        timing.time_fusion(4, (3, 2), 5, backward=False)
