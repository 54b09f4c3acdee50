"""What the operators must compute, written from the formulas, and how near is near enough.

Independent of mmfast: plain PyTorch in float64, the concatenation built, activations from their
definitions. ``eager`` is what a user would write today, in the dtype under test.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: (
        0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))
    ),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
}

EAGER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def concatenate(inputs: Sequence[Tensor]) -> Tensor:
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*batch, x.shape[-1]) for x in inputs], dim=-1)


def concat_linear(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    z = concatenate(inputs) @ weight.transpose(0, 1)
    return ACTIVATIONS[activation](z if bias is None else z + bias)


def eager_concat_linear(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    return EAGER_ACTIVATIONS[activation](F.linear(concatenate(inputs), weight, bias))


def run(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor | None,
    dtype: torch.dtype | None = None,
    **options: object,
) -> list[Tensor]:
    """The result and, given ``grad``, the gradients of every input, weight and bias."""
    leaves = [x.detach().to(dtype or x.dtype) for x in (*inputs, weight, bias) if x is not None]
    if grad is not None:
        leaves = [x.requires_grad_() for x in leaves]
    count = len(inputs)
    result = function(leaves[:count], leaves[count], *leaves[count + 1 :] or [None], **options)
    if grad is None:
        return [result]
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))]


def worst(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).abs().max().item() if found.numel() else 0.0


class ErrorRule:
    """FlashAttention's rule: no more than ``factor`` times the error of plain PyTorch.

    Errors are the largest absolute ones over everything added, so that a case of few elements is
    judged over many draws and not by its luck. What a correctly rounded result may be off by, half
    a unit in the last place of the largest value, counts as PyTorch's error where that is smaller.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.unit = torch.finfo(dtype).eps / 2
        self.found = self.eager = self.largest = 0.0

    def add(self, found: Tensor, exact: Tensor, eager: Tensor, eager_exact: Tensor) -> None:
        assert found.shape == exact.shape
        assert found.isfinite().all() or not exact.isfinite().all()  # max() below would lose a NaN
        self.found = max(self.found, worst(found, exact))
        self.eager = max(self.eager, worst(eager, eager_exact))
        if exact.numel():
            self.largest = max(self.largest, exact.abs().max().item())

    def check(self, factor: float, what: str) -> None:
        allowed = factor * max(self.eager, self.unit * self.largest)
        assert self.found <= allowed, (
            f"{what}: error {self.found:.3g}, PyTorch's {self.eager:.3g}, "
            f"allowed {allowed:.3g} ({factor} times)"
        )
