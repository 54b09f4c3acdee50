"""``gated_sum``: argument handling."""

from collections.abc import Sequence

from torch import Tensor

from mmfast.functional.common import broadcast, call, is_sequence
from mmfast.ops.concat_linear import check_dense
from mmfast.ops.gated_sum import operator


def gated_sum(
    values: Sequence[Tensor], gates: Sequence[Tensor], present: Tensor | None = None
) -> Tensor:
    r"""Values bent by tanh, mixed feature by feature as their gates say; one pass over memory.

    .. math:: y = \sum_m a_m \tanh(h_m), \qquad a = \mathrm{softmax}_{m \text{ present}}(g_m)

    The sum of a gated multimodal unit (GMU, Arevalo et al. 2017). With two values and one gate the
    softmax is a sigmoid: :math:`y = \sigma(g) \tanh(h_1) + (1 - \sigma(g)) \tanh(h_2)`.

    Args:
        values: M tensors that broadcast to one shape (\*batch, D).
        gates: M tensors that broadcast to that shape, or M - 1: the last logit is then 0.
        present: bool (\*batch, M) or broadcasting to it, True where a value is there; None for all.
            What an absent value or its gate holds, NaN included, changes nothing, and the gradients
            of both are zero.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them. 16-bit types accumulate in float32.

    Returns:
        Tensor (\*batch, D); 0 in rows of which nothing is present.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit.

    Example:
        >>> image, text, gate = torch.randn(3, 8, 32)
        >>> gated_sum([image, text], [gate]).shape
        torch.Size([8, 32])
    """
    values, present = broadcast("values", values, present)
    if not is_sequence(gates):
        raise TypeError(f"gates must be a sequence of tensors, got {type(gates).__name__}")
    shape = values[0].shape
    for i, gate in enumerate(gates):
        if isinstance(gate, Tensor) and gate.is_nested:  # it has no shape to broadcast
            check_dense(f"gates[{i}]", gate)
        if isinstance(gate, Tensor) and gate.shape != shape:
            gates = [_expanded(x, shape) for x in gates]
            break
    return call(operator, [*values, *gates], present, (len(values),))  # type: ignore


def _expanded(gate: Tensor, shape: Sequence[int]) -> Tensor:
    """The gate expanded, or, where that cannot be, as it is: the checks say why."""
    if not isinstance(gate, Tensor) or gate.dim() > len(shape):
        return gate
    sizes = zip(reversed(gate.shape), reversed(shape), strict=False)
    return gate.expand(shape) if all(size in (1, full) for size, full in sizes) else gate
