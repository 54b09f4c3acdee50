"""Times two ways of doing one thing in turns, so that a noisy machine is noisy to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import nn

from mmfast.bench.timing import interleave
from mmfast.nn import ConcatLinear

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Median seconds per call of the fused layer and of eager cat + Linear at one shape.

    Attributes:
        batch: rows of every input.
        widths: width of each input.
        out_features: width of the result.
        dtype: of inputs and parameters, without the ``torch.`` prefix.
        threads: of torch's operators.
        backward: whether a call includes the backward pass (gradients of inputs and parameters).
        fused_s: median over the turns of ``ConcatLinear``, in seconds per call.
        eager_s: the same of ``Linear(torch.cat(inputs, -1))``.
    """

    batch: int
    widths: tuple[int, ...]
    out_features: int
    dtype: str
    threads: int
    backward: bool
    fused_s: float
    eager_s: float

    @property
    def ratio(self) -> float:
        """Eager time over fused time: above 1 the fused layer is faster."""
        return self.eager_s / self.fused_s

    def as_dict(self) -> dict[str, object]:
        """The attributes and the ratio, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def time_fusion(
    batch: int,
    widths: tuple[int, ...],
    out_features: int,
    *,
    backward: bool,
    turns: int = 11,
    turn_s: float = 0.02,
) -> Timing:
    """Times ``ConcatLinear`` against eager cat + Linear on the CPU in float32.

    Args:
        batch: rows of every input.
        widths: width of each input.
        out_features: width of the result.
        backward: time forward and backward instead of forward alone, without autograd.
        turns: pairs of measurements, the order within a pair changing every time.
        turn_s: least length of one measurement in seconds; shorter calls are repeated to fill it.

    Raises:
        RuntimeError: the two layers disagree, so that their times say nothing.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(batch, width, generator=generator, requires_grad=backward) for width in widths
    ]
    fused = ConcatLinear(widths, out_features)
    eager = nn.Linear(sum(widths), out_features)
    eager.load_state_dict(fused.state_dict())
    _check_agree(fused(inputs), eager(torch.cat(inputs, -1)))
    leaves = [*inputs, *fused.parameters()], [*inputs, *eager.parameters()]
    run_fused = _step(lambda: fused(inputs), leaves[0], backward)
    run_eager = _step(lambda: eager(torch.cat(inputs, -1)), leaves[1], backward)
    fused_s, eager_s = interleave(run_fused, run_eager, turns=turns, turn_s=turn_s)
    return Timing(
        batch=batch,
        widths=widths,
        out_features=out_features,
        dtype="float32",
        threads=torch.get_num_threads(),
        backward=backward,
        fused_s=median(fused_s),
        eager_s=median(eager_s),
    )


def _step(forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor], backward: bool) -> Step:
    if not backward:
        return torch.no_grad()(forward)
    with torch.no_grad():
        grad = torch.ones_like(forward())
    # autograd.grad and not .backward(): adding to .grad would cost the same on both sides and
    # hide a part of the difference.
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def _check_agree(fused: torch.Tensor, eager: torch.Tensor) -> None:
    apart = (fused - eager).abs().max().item()
    if not apart <= 1e-4 * max(1.0, eager.abs().max().item()):
        raise RuntimeError(f"time_fusion: ConcatLinear and cat + Linear differ by {apart:.3g}")
