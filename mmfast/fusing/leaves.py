"""``forward`` of the layers that pieces meet: torch's own, for tensors and for pieces."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast import functional
from mmfast.fusing.runtime import (
    MARK,
    Pieces,
    autocasts,
    concatenated,
    dropout,
    is_plain,
    linear,
    worth,
)


def convolution(input: Pieces, layer: Any) -> Any:
    """A 1x1 convolution of pieces joined along the channels.

    In channels-last memory it is the operator. Elsewhere a copy of the features would cost more
    than the concatenation; but what is the same at every position is multiplied once.
    """
    tensors, _, activation, seen = input
    weight, bias = layer.weight, layer.bias
    flat = [x for x in tensors if any(x.stride()[2:]) or x[0, 0].numel() < 2]
    way = _way(tensors, flat, weight, bias)
    if seen is not None:
        seen.tell(tensors, None, way != "built")
    if way == "operator":
        moved = [x.permute(0, 2, 3, 1) for x in tensors]
        result = functional.concat_linear(moved, weight.flatten(1), bias, activation=activation)
        result = result.permute(0, 3, 1, 2)
        return result if activation == "none" else (result,)
    if way == "broadcast":
        vectors = [all(x is not y for y in flat) for x in tensors]
        return broadcast_convolution(tensors, vectors, weight, bias)
    return layer._conv_forward(concatenated(input, 1), weight, bias)


def _way(
    tensors: Sequence[Tensor], flat: Sequence[Tensor], weight: Tensor, bias: Tensor | None
) -> str:
    dtype = tensors[0].dtype
    if not is_plain(weight) or (bias is not None and not is_plain(bias)):
        return "built"
    if dtype is not weight.dtype or sum([x.shape[1] for x in tensors]) != weight.shape[1]:
        return "built"
    if len(flat) == len(tensors) and all(_channels_last(x) for x in tensors):
        moved = [x.permute(0, 2, 3, 1) for x in tensors]
        return "operator" if worth(moved, None, weight.flatten(1), bias) else "built"
    wide = dtype in (torch.float32, torch.float64)  # others would round every part
    wide = wide and not autocasts(weight)
    return "broadcast" if wide and 0 < len(flat) < len(tensors) else "built"


def _channels_last(x: Tensor) -> bool:
    """Whether torch.cat and the convolution would go on in channels-last memory; views count."""
    if x.dim() != 4 or x.shape[1] < 2 or x.shape[2] * x.shape[3] < 2:
        return False
    _, c, h, w = x.shape
    stride = x.stride()
    return (
        stride[1] == 1
        and stride[3] >= c
        and stride[2] >= w * stride[3]
        and (stride[0] >= h * stride[2])
    )


def broadcast_convolution(
    tensors: Sequence[Tensor], vectors: Sequence[bool], weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A 1x1 convolution of pieces, some of which are the same at every position."""
    parts = weight.split([x.shape[1] for x in tensors], 1)
    given = list(zip(tensors, parts, vectors, strict=True))
    added = bias
    for x, part, vector in given:
        if vector:
            product = F.linear(x.flatten(2)[..., 0], part.flatten(1))
            added = product if added is None else added + product
    kept = [x for x, _, vector in given if not vector]
    columns = [part for _, part, vector in given if not vector]
    joined = kept[0] if len(kept) == 1 else torch.cat(kept, 1)
    matrix = columns[0] if len(kept) == 1 else torch.cat(columns, 1)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[joined.dim()]
    result = convolve(joined, matrix)
    return result + added[(..., *(None,) * (result.dim() - 2))]  # type: ignore[index]


def _linear(self: nn.Linear, input: Any) -> Any:
    return linear(input, self.weight, self.bias)


def _convolution(self: Any, input: Any) -> Any:
    if type(input) is tuple:
        return convolution(input, self)
    return self._conv_forward(input, self.weight, self.bias)


def _dropout(self: nn.Dropout, input: Any) -> Any:
    return dropout(input, self.p, self.training, self.inplace)


def _activation(self: nn.Module, input: Any) -> Any:
    return input[0] if type(input) is tuple else type(self).forward(self, input)


def marked(function: Callable[..., Any], name: str) -> Any:
    """``function`` with the name that it gets, by which pickle finds the original again."""
    function.__name__ = name
    setattr(function, MARK, True)
    return function


LEAVES = {
    "linear": marked(_linear, "forward"),
    "convolution": marked(_convolution, "forward"),
    "dropout": marked(_dropout, "forward"),
    "activation": marked(_activation, "forward"),
}
