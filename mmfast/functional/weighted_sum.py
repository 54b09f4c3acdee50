"""``weighted_sum``: argument handling."""

from collections.abc import Sequence

from torch import Tensor

from mmfast.functional.common import broadcast, call
from mmfast.ops.fused import same_shape
from mmfast.ops.weighted_sum import operator


def weighted_sum(
    inputs: Sequence[Tensor],
    weights: Tensor,
    present: Tensor | None = None,
    *,
    normalize: bool = False,
    per: str | None = None,
) -> Tensor:
    r"""Sum of the present inputs, each times its weight, in one pass over memory.

    .. math:: y = \sum_m p_m w_m x_m \quad\text{or, normalized,}\quad
              y = \frac{\sum_m p_m w_m x_m}{\sum_m p_m w_m}

    Args:
        inputs: M tensors that broadcast to one shape (\*batch, D).
        weights: (M,), (M, D) or (\*batch, M); the last may broadcast.
        present: bool (\*batch, M) or broadcasting to it, True where an input is there; None for
            all. What an absent input holds, NaN included, changes nothing; its gradient is zero.
        normalize: divide by the sum of the present weights.
        per: what has a weight of its own: ``modality``, ``feature`` or ``row``. None takes what the
            shape of ``weights`` says, and refuses a shape that fits two of them.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them. 16-bit types accumulate in float32.

    Returns:
        Tensor (\*batch, D); 0 in rows of which nothing is present.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit.

    Example:
        >>> image, text = torch.ones(8, 32), torch.zeros(8, 32)
        >>> weighted_sum([image, text], torch.tensor([0.25, 0.75])).shape
        torch.Size([8, 32])
    """
    inputs, present = broadcast("inputs", inputs, present)
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor, got {type(weights).__name__}")
    shape = inputs[0].shape
    if per is None:
        per = _per(weights, shape, len(inputs))
    if (
        isinstance(per, str)
        and per == "row"
        and not same_shape(weights.shape, (*shape[:-1], len(inputs)))
    ):
        weights = _expanded(weights, (*shape[:-1], len(inputs)))
    return call(operator, [*inputs, weights], present, (per, normalize))  # type: ignore


def _per(weights: Tensor, shape: Sequence[int], count: int) -> str:
    """What the shape of ``weights`` says they belong to."""
    if weights.dim() == 1 and weights.shape[0] == count:  # without a batch, also by row: the same
        return "modality"
    row = (*shape[:-1], count)
    fits_row = weights.dim() == len(row) and all(
        size in (1, full) for size, full in zip(weights.shape, row, strict=True)
    )
    candidates = [
        name
        for name, fits in (
            ("feature", same_shape(weights.shape, (count, shape[-1]))),
            ("row", fits_row and weights.shape[-1] == count),
        )
        if fits
    ]
    if len(candidates) != 1:
        what = "could be per " + " or per ".join(candidates) if candidates else "fits nothing"
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, which {what}; it must be {(count,)}, "
            f"{(count, shape[-1])} or {row}" + (", and per must say which" if candidates else "")
        )
    return candidates[0]


def _expanded(weights: Tensor, shape: Sequence[int]) -> Tensor:
    try:
        return weights.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; with per='row' it must be {tuple(shape)}, "
            "or broadcast to it"
        ) from None
