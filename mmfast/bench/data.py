"""The tensors of a case, the same for every peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.bench.cases import Case

Index = Sequence[Tensor | None]
# A bent activation has another gradient to either side of 0, and rounding decides on which side a
# result is: gradients that arrive this near to 0 are set to 0, or equal peers would differ.
KINK = 0.1


@dataclass(frozen=True)
class Data:
    """Tensors of one case.

    Attributes:
        case: the case.
        inputs: one per input; equal ones are the same tensor.
        index: one per input, int64 row numbers or None.
        weight: (N, sum of K).
        bias: (N,).
        grad: gradient of the result, of its shape.
        joined: the inputs picked, broadcast and concatenated, (*batch, sum of K).
    """

    case: Case
    inputs: list[Tensor]
    index: list[Tensor | None]
    weight: Tensor
    bias: Tensor
    grad: Tensor
    joined: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are wanted of: each distinct input if not frozen, the weight, the bias."""
        return [*([] if self.case.frozen else self._distinct), self.weight, self.bias]

    @property
    def _distinct(self) -> list[Tensor]:
        shared = zip(self.inputs, self.case.inputs, strict=True)
        return [x for x, spec in shared if spec.same_as is None]

    @property
    def given(self) -> list[Tensor]:
        """Every tensor that exists before a call."""
        return [
            *self._distinct,
            self.weight,
            self.bias,
            *(x for x in self.index if x is not None),
            self.joined,
            self.grad,
        ]


def make_data(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Data:
    """Random tensors for a case, scaled so that results are of the order of 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).to(device, dtype)

    inputs: list[Tensor] = []
    index: list[Tensor | None] = []
    for x in case.inputs:
        inputs.append(normal(*x.shape) if x.same_as is None else inputs[x.same_as])
        picked = None
        if x.index is not None:
            picked = torch.randint(x.shape[0], x.index, generator=generator).to(device)
        index.append(picked)
    width = sum(case.widths)
    weight = normal(case.out_features, width, scale=width**-0.5)
    bias = normal(case.out_features)
    joined = join(inputs, index)
    grad = normal(*case.batch, case.out_features)
    if case.activation == "relu":
        grad.masked_fill_(F.linear(joined, weight, bias).abs() < KINK, 0)
    data = Data(case, inputs, index, weight, bias, grad, joined)
    for leaf in (*data.leaves, *([] if case.frozen else [joined])):
        leaf.requires_grad_()
    return data


def join(inputs: Sequence[Tensor], index: Index) -> Tensor:
    """Picks, broadcasts and concatenates."""
    picked = [x if i is None else x[i] for x, i in zip(inputs, index, strict=True)]
    shapes = [x.shape[:-1] for x in picked]
    if any(shape != shapes[0] for shape in shapes):
        batch = torch.broadcast_shapes(*shapes)
        picked = [x.expand(*batch, x.shape[-1]) for x in picked]
    return torch.cat(picked, -1)
