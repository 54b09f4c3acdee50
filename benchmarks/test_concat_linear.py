"""concat_linear against what users write today, on shapes from real models: ``make bench``.

Each case runs four ways, reported side by side: ``linear`` on inputs already concatenated (the
floor: the concatenation for nothing), mmfast, eager ``cat`` then ``linear``, and the hand-written
sum of products. Read the ratios within one run; machines differ and drift.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.functional import concat_linear

# name: input shapes, out_features
SHAPES = {
    "late fusion 2048+768": ([(1024, 2048), (1024, 768)], 512),
    "three modalities 3x768": ([(1024, 768)] * 3, 768),
    "CMU-MOSI 300+74+35": ([(1024, 300), (1024, 74), (1024, 35)], 128),
    "DLRM 26x64": ([(1024, 64)] * 26, 512),
    "critic 376+17": ([(256, 376), (256, 17)], 256),
    "tiny 8+8": ([(1, 8), (1, 8)], 8),
    "image vector over tokens": ([(8, 128, 768), (8, 1, 2048)], 768),
}


def concatenate(inputs: list[Tensor]) -> Tensor:
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*batch, x.shape[-1]) for x in inputs], dim=-1)


def eager(inputs: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(concatenate(inputs), weight, bias)


def split(inputs: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    parts = weight.split([x.shape[-1] for x in inputs], dim=1)
    total = F.linear(inputs[0], parts[0], bias)
    for x, part in zip(inputs[1:], parts[1:], strict=True):
        total = total + F.linear(x, part)
    return total


WAYS = {"linear": None, "mmfast": concat_linear, "eager": eager, "split": split}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_concat_linear(benchmark, shape, dtype, backward, way):
    benchmark.group = f"{shape}, {str(dtype).removeprefix('torch.')}, " + (
        "forward and backward" if backward else "forward"
    )
    torch.manual_seed(0)
    shapes, cols = SHAPES[shape]
    inputs = [torch.randn(s).to(dtype) for s in shapes]
    width = sum(s[-1] for s in shapes)
    weight = (torch.randn(cols, width) / width**0.5).to(dtype)
    bias = torch.randn(cols).to(dtype)
    expected = eager(inputs, weight, bias)
    if way == "linear":
        inputs = [concatenate(inputs)]
        call = lambda xs, w, b: F.linear(xs[0], w, b)  # noqa: E731
    else:
        call = WAYS[way]
    torch.testing.assert_close(call(inputs, weight, bias), expected, rtol=0.05, atol=0.05)
    if not backward:
        benchmark(call, inputs, weight, bias)
        return
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    grad = torch.randn_like(expected)

    def step():
        return torch.autograd.grad(call(leaves[:-2], *leaves[-2:]), leaves, grad)

    benchmark(step)
