"""The fusion layer timed as it trains, and refused where it computes something else."""

import pytest
import torch
from torch import nn

from mmfast.train import timing


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
