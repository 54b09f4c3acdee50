"""``rank_product``: argument handling."""

from collections.abc import Sequence

from torch import Tensor

from mmfast.functional.common import broadcast, call
from mmfast.ops.rank_product import operator


def rank_product(
    factors: Sequence[Tensor], weights: Tensor | None = None, present: Tensor | None = None
) -> Tensor:
    r"""Sum over ranks of the product of all factors; one pass over memory.

    .. math:: y = \sum_r w_r \prod_m h_{m,r}

    The end of every low-rank bilinear fusion: LMF (Liu et al. 2018), MUTAN (Ben-Younes et al.
    2017), MLB (Kim et al. 2017), MFB (Yu et al. 2017), and with one rank the plain product.

    Args:
        factors: M tensors that broadcast to one shape (\*batch, R, D).
        weights: (R,), or None for ones.
        present: bool (\*batch, M) or broadcasting to it, True where a factor is there; None for
            all. An absent factor counts as 1: what it holds, NaN included, changes nothing, and its
            gradient is zero.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them. 16-bit types accumulate in float32.

    Returns:
        Tensor (\*batch, D); the sum of the weights in rows of which nothing is present.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit.

    Example:
        >>> image, text = torch.randn(2, 8, 4, 32)
        >>> rank_product([image, text]).shape
        torch.Size([8, 32])
    """
    factors, present = broadcast("factors", factors, present, row_dims=2)
    if weights is not None and not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor or None, got {type(weights).__name__}")
    tensors = factors if weights is None else [*factors, weights]
    return call(operator, tensors, present, (weights is not None,))  # type: ignore
