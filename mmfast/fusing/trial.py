"""Running a model on an example, before and after, without a trace of having done so."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmfast.fusing.report import Measured

# Sums in another order differ by some units in the last place of the largest value.
_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SECONDS = 1.0


class Trial:
    """A model and the arguments it is run with."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(example, Mapping):
            self.kwargs = dict(example)
        elif isinstance(example, tuple | list):
            self.args = tuple(example)
        else:
            self.args = (example,)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        tensors = [*model.parameters(), *model.buffers(), *_tensors((self.args, self.kwargs))]
        self.gpus = sorted({x.device.index for x in tensors if x.is_cuda})
        self.training = model.training and torch.is_grad_enabled() and bool(self.parameters)

    def run(self) -> list[Tensor]:
        """Results and, in training, gradients; buffers and the random state are put back."""
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        with torch.random.fork_rng(self.gpus):
            torch.manual_seed(0)
            try:
                return self.step()
            finally:
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)

    def step(self) -> list[Tensor]:
        """One pass as training or evaluation does it."""
        args, kwargs = pytree.tree_map_only(
            Tensor,
            lambda x: x.detach().clone().requires_grad_(x.requires_grad),
            (self.args, self.kwargs),
        )
        with torch.set_grad_enabled(self.training):
            leaves = _tensors(self.model(*args, **kwargs))
        if not self.training:
            return leaves
        # Squares, so that no gradient is the same everywhere.
        losses = [x.float().square().mean() for x in leaves if x.requires_grad]
        if not losses:
            return leaves
        total = torch.stack(losses).sum()
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return [*leaves, *(g for g in gradients if g is not None)]

    def difference(self, expected: list[Tensor], found: list[Tensor]) -> str | None:
        """What differs by more than the order of sums explains, or None."""
        if len(expected) != len(found):
            return "the number of results differs"
        # A gradient that should be nothing, as of a bias before batch normalisation, is all noise.
        noise = 1e-3 * max([x.detach().abs().max().item() for x in expected if _real(x)], default=0)
        for one, other in zip(expected, found, strict=True):
            if one.shape != other.shape or one.dtype != other.dtype:
                return f"a result is {tuple(other.shape)} {other.dtype}, was {tuple(one.shape)}"
            if not _real(one):
                continue  # decisions on numbers may fall otherwise where these are nearly equal
            a, b = one.detach().double(), other.detach().double()
            finite = a.isfinite()
            if not torch.equal(finite, b.isfinite()):
                return "values that are not finite differ"
            if finite.any():
                largest = max(a[finite].abs().max().item(), noise)
                error = (a - b)[finite].abs().max().item()
                if error > _RELATIVE.get(one.dtype, 1e-1) * largest:
                    return f"results differ by {error:.1e}, the largest being {largest:.1e}"
        return None

    def measure(self, install: Callable[[], None], remove: Callable[[], None]) -> Measured:
        """Time the model as it was and as it is, in turns."""
        times: dict[bool, list[float]] = {False: [], True: []}
        end = time.perf_counter() + _SECONDS
        while len(times[True]) < 3 or (time.perf_counter() < end and len(times[True]) < 100):
            for fused in (False, True):
                (install if fused else remove)()
                self.run()
                self.wait()
                start = time.perf_counter()
                self.run()
                self.wait()
                times[fused].append(time.perf_counter() - start)
        remove()
        kind = "forward and backward" if self.training else "forward"
        return Measured(statistics.median(times[False]), statistics.median(times[True]), kind)

    def wait(self) -> None:
        """Until the model's GPUs have done what they were told."""
        for gpu in self.gpus:
            torch.cuda.synchronize(gpu)


def _real(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
