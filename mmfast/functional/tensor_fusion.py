"""``tensor_fusion``: the linear map of an outer product, contracted group by group."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.functional.concat_linear import concat_linear
from mmfast.functional.rank_product import rank_product
from mmfast.ops.concat_linear import batch_shape
from mmfast.ops.fused import check_floating, check_like, check_present


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
        with_one, size = F.pad(x, (1, 0), value=1.0), x.shape[-1] + 1
        factors.append(with_one.expand(*batch, size).reshape(rows, size))
    split = _split([factor.shape[1] for factor in factors], out)
    trailing = _outer(factors[split:])
    if split == 0:
        return concat_linear([trailing], weight, bias).view(*batch, out)
    # The weight takes the place of the input: so its gradient, by far the largest product's result,
    # is one that mmfast's own kernel writes, and sums over `lead` run along rows.
    leading = _outer(factors[:split])
    lead = leading.shape[1]
    matrix = weight.reshape(out * lead, trailing.shape[1])
    # In 16 bits the library's products of these shapes are the faster ones, backward by far.
    wide = trailing.dtype in (torch.float32, torch.float64)
    z = concat_linear([matrix], trailing) if wide else F.linear(matrix, trailing)
    y = rank_product([z.view(out, lead, rows), leading.t().contiguous()]).t()
    return (y if bias is None else y + bias).to(z.dtype).reshape(*batch, out)


def _outer(factors: Sequence[Tensor]) -> Tensor:
    """The outer product of each row, flattened, the first factor's index varying slowest."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
    return product


def _split(sizes: Sequence[int], out: int) -> int:
    """How many factors lead: the number that needs the least memory; 0 builds the whole product."""
    elements = []
    for split in range(len(sizes)):
        lead, trail = sizes[:split], sizes[split:]
        between = out * math.prod(lead) if lead else 0
        elements.append(sum(accumulate(lead, mul)) + sum(accumulate(trail, mul)) + between)
    return elements.index(min(elements))


def _check(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, present: Tensor | None
) -> tuple[int, ...]:
    """The batch shape of the result; raise what is wrong with the arguments."""
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError(f"inputs must be a sequence of tensors, got {type(inputs).__name__}")
    if len(inputs) == 0:
        raise ValueError("inputs is empty; it must hold at least one tensor")
    named = {"weight": weight, **{f"inputs[{i}]": x for i, x in enumerate(inputs)}}
    if bias is not None:
        named["bias"] = bias
    for name, x in named.items():
        check_floating(name, x)
        if weight.is_meta or not torch.is_autocast_enabled(weight.device.type):
            check_like(name, x, "weight", weight)
    for i, x in enumerate(inputs):
        if x.dim() == 0:
            raise ValueError(f"inputs[{i}] is 0-d; it must be (*batch, features)")
    sizes = [x.shape[-1] + 1 for x in inputs]
    if weight.dim() != 2 or weight.shape[1] != math.prod(sizes):
        product = " * ".join(f"({x.shape[-1]} + 1)" for x in inputs)
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be (out_features, "
            f"{math.prod(sizes)}), where {math.prod(sizes)} = {product} for these inputs"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), a value per "
            "row of weight"
        )
    batch = batch_shape(inputs)
    if isinstance(present, Tensor) and present.shape[-1:] == (len(inputs),):
        try:  # noqa: SIM105  torch.compile of torch 2.10 does not know contextlib.suppress
            present = present.expand(*batch, len(inputs))
        except RuntimeError:  # what does not broadcast keeps its own shape, and is told below
            pass
    check_present(present, batch, len(inputs))
    return batch
