"""``attention_pool``: argument handling."""

import math
import numbers
from collections.abc import Sequence

from torch import Tensor

from mmfast.functional.common import broadcast, call
from mmfast.ops.attention_pool import operator
from mmfast.ops.fused import check_flag


def attention_pool(
    inputs: Sequence[Tensor],
    query: Tensor,
    present: Tensor | None = None,
    *,
    num_heads: int = 1,
    temperature: float | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Mean of the inputs, weighted by how well each matches ``query``; one pass over memory.

    .. math:: y = \sum_m a_m x_m, \qquad
              a = \mathrm{softmax}_{m \text{ present}}(q \cdot x_m / \tau)

    in each head, which takes D / num_heads features. Bahdanau et al. 2015 and Yang et al. 2016
    (hierarchical attention) over modalities instead of words; also called attention pooling or
    modality attention.

    Args:
        inputs: M tensors that broadcast to one shape (\*batch, D).
        query: (D,), one for all rows, or (\*batch, D).
        present: bool (\*batch, M) or broadcasting to it, True where an input is there; None for
            all. What an absent input holds, NaN included, changes nothing; its gradient is zero.
        num_heads: must divide D.
        temperature: of the softmax; None for sqrt(D / num_heads).
        return_weights: return the weights too.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them. 16-bit types accumulate in float32.

    Returns:
        Tensor (\*batch, D), and if asked the weights (\*batch, num_heads, M). Both are 0 in rows of
        which nothing is present.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit, or the temperature is not positive.

    Example:
        >>> image, text = torch.randn(8, 32), torch.randn(8, 32)
        >>> attention_pool([image, text], torch.randn(32)).shape
        torch.Size([8, 32])
    """
    inputs, present = broadcast("inputs", inputs, present)
    if isinstance(temperature, Tensor):  # it would pass as a number, and get no gradient
        raise TypeError(
            "temperature must be a number or None, got a tensor; divide the query by it instead"
        )
    if not isinstance(temperature, (numbers.Real, type(None))):
        raise TypeError(f"temperature must be a number or None, got {type(temperature).__name__}")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive, or None")
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads is {num_heads!r}; it must be an int of at least 1")
    scale = (
        1 / temperature if temperature else 1 / math.sqrt(max(1, inputs[0].shape[-1] / num_heads))
    )
    check_flag("return_weights", return_weights)
    pooled, weights = call(operator, [*inputs, query], present, (num_heads, scale))
    return (pooled, weights) if return_weights else pooled
