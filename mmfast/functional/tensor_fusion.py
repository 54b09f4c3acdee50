"""``tensor_fusion``: the linear map of an outer product, contracted group by group."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.functional.concat_linear import concat_linear
from mmfast.ops.concat_linear import DTYPES, batch_shape


def tensor_fusion(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    r"""Linear map of the outer product of ``inputs``, which is built only where that is smaller.

    .. math::
        y = W \, \mathrm{vec}([1; x_1] \otimes [1; x_2] \otimes \dots \otimes [1; x_M]) + b

    the tensor fusion network, TFN (Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment
    Analysis", 2017), with the linear layer that follows its tensor. For two inputs also called
    bilinear pooling; ``nn.Bilinear`` is its part without the ones.

    The inputs are split into a leading and a trailing group. The outer product of the trailing
    group is multiplied with the weight, the result contracted with the outer product of the leading
    group: the same sum in another order, in a few per cent of the memory.

    Args:
        inputs: M tensors of shape (\*batch_m, K_m) whose batch shapes broadcast together.
        weight: (N, product of K_m + 1); the index of the first modality varies slowest, and within
            each modality the constant 1 stands before the features.
        bias: (N,) or None.
        present: bool (\*batch, M), True where a modality is there, or None for all. It may
            broadcast. An absent modality counts as zeros (its constant 1 stays, so that the
            interactions of the others remain), whatever it holds; its gradient is zero. Where all
            are absent the result is weight[:, 0] + bias.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them.

    Returns:
        Tensor of shape (\*broadcast batch, N).

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit.

    Composed of differentiable PyTorch operations: double backward and torch.func work.

    Example:
        >>> image, text = torch.randn(8, 32), torch.randn(8, 16)
        >>> tensor_fusion([image, text], torch.randn(4, 33 * 17)).shape
        torch.Size([8, 4])
    """
    batch = _check(inputs, weight, bias, present)
    rows, out = math.prod(batch), weight.shape[0]
    factors = []
    for i, x in enumerate(inputs):
        if present is not None:
            x = x.where(present[..., i, None], 0)
        with_one = F.pad(x, (1, 0), value=1.0)
        factors.append(with_one.expand(*batch, with_one.shape[-1]).reshape(rows, -1))
    split = _split([factor.shape[1] for factor in factors], out)
    trailing = _outer(factors[split:])
    if split == 0:
        return concat_linear([trailing], weight, bias).view(*batch, out)
    # The weight takes the place of the input: so its gradient, by far the largest product's result,
    # is one that mmfast's own kernel writes, and sums over `lead` run along rows.
    leading = _outer(factors[:split])
    lead = leading.shape[1]
    z = concat_linear([weight.reshape(out * lead, -1)], trailing).view(out, lead, rows)
    y = (z * leading.t()).sum(1).t()
    # Under autocast the leading group is wider than z, which has the result's dtype.
    return (y if bias is None else y + bias).to(z.dtype).reshape(*batch, out)


def _outer(factors: Sequence[Tensor]) -> Tensor:
    """The outer product of each row, flattened, the first factor's index varying slowest."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
    return product


def _split(sizes: Sequence[int], out: int) -> int:
    """How many factors lead: the number that needs the least memory; 0 builds the whole product."""

    def elements(split: int) -> int:
        lead = sum(accumulate(sizes[:split], mul))
        trail = sum(accumulate(sizes[split:], mul))
        return lead + trail + (out * math.prod(sizes[:split]) if split else 0)

    return min(range(len(sizes)), key=elements)


def _check(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, present: Tensor | None
) -> tuple[int, ...]:
    """The batch shape of the result; raise what is wrong with the arguments."""
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError(f"inputs must be a sequence of tensors, got {type(inputs).__name__}")
    if len(inputs) == 0:
        raise ValueError("inputs is empty; it must hold at least one tensor")
    named = {f"inputs[{i}]": x for i, x in enumerate(inputs)}
    named["weight"] = weight
    if bias is not None:
        named["bias"] = bias
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; it must be float32, float64, bfloat16 or float16"
            )
    converts = torch.is_autocast_enabled(weight.device.type)
    for name, tensor in named.items():
        if tensor.dtype != weight.dtype and not converts:
            raise ValueError(
                f"{name} has dtype {tensor.dtype} but weight has {weight.dtype}; they must be "
                "equal (convert one, or run under torch.autocast)"
            )
        if tensor.device != weight.device:
            raise ValueError(
                f"{name} is on {tensor.device} but weight is on {weight.device}; they must share "
                "a device (move one with .to())"
            )
    for i, x in enumerate(inputs):
        if x.dim() == 0:
            raise ValueError(f"inputs[{i}] is 0-d; it must be (*batch, features)")
    sizes = [x.shape[-1] + 1 for x in inputs]
    if weight.dim() != 2 or weight.shape[1] != math.prod(sizes):
        product = " * ".join(map(str, sizes))
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be (out_features, "
            f"{math.prod(sizes)}), the product of the inputs' last sizes with 1 added to each: "
            f"{product}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), a value per "
            "row of weight"
        )
    batch = batch_shape(inputs)
    if present is not None:
        _check_present(present, (*batch, len(inputs)))
    return batch


def _check_present(present: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(present, Tensor):
        raise TypeError(f"present must be a bool tensor or None, got {type(present).__name__}")
    if present.dtype != torch.bool:
        raise TypeError(f"present has dtype {present.dtype}; it must be torch.bool, True = present")
    missing = len(shape) - present.dim()
    fits = 0 <= missing < len(shape) and present.shape[-1] == shape[-1]
    if not fits or any(
        size not in (1, full)
        for size, full in zip(present.shape, shape[max(missing, 0) :], strict=True)
    ):
        raise ValueError(
            f"present has shape {tuple(present.shape)}; it must be {shape}, a value per row and "
            "modality, or broadcast to it"
        )
