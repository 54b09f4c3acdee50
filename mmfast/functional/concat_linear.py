"""``concat_linear``: argument handling, autocast, and the choice of path to the operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfast.functional.common import any_requires_grad, autocast, transformed
from mmfast.ops import concat_linear as _concat_linear
from mmfast.ops import concat_linear_flops  # noqa: F401  registers what calls count as
from mmfast.ops import concat_linear_plan as _concat_linear_plan


def concat_linear(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    index: Sequence[Tensor | None] | None = None,
) -> Tensor:
    r"""Linear map of the concatenation of ``inputs``, which is never built.

    .. math:: y = \mathrm{act}([x_1; \dots; x_n] W^T + b) = \mathrm{act}(\sum_i x_i W_i^T + b)

    where :math:`W_i` are the columns of ``weight`` that meet input :math:`i`. The same values as
    ``act(F.linear(torch.cat(inputs, -1), weight, bias))``, for inputs that broadcast too.

    Args:
        inputs: tensors of shape (\*batch_i, K_i) whose batch shapes broadcast together. An input
            that broadcasts is multiplied once per distinct row. K_i may be 0.
        weight: (N, sum of K_i), columns in the order of ``inputs``, as in ``nn.Linear``.
        bias: (N,) or None.
        activation: ``none``, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh`` or ``sigmoid``.
        index: per input None, or an int64 or int32 tensor of any shape whose entries pick rows of
            an input of shape (R_i, K_i): the same as giving ``input[index]``, but where an index
            names rows several times each is multiplied once. Its shape is the input's batch shape.

    All tensors share one dtype (float32, float64, bfloat16 or float16) and one device, except under
    ``torch.autocast``, which converts them. 16-bit types accumulate in float32.

    Returns:
        Tensor of shape (\*broadcast batch, N).

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: shapes, dtypes or devices do not fit, or the activation is unknown.
        IndexError: an entry of ``index`` is negative or beyond the rows of its input. On a GPU, as
            in PyTorch's own indexing, a failed assertion there, after which the device is lost.

    Only the needed gradients are computed. Backward keeps the inputs, the weight and, where the
    activation needs it, one tensor of the result's size. Double backward works, through plain
    PyTorch operations.

    Example:
        >>> image, text = torch.randn(8, 2048), torch.randn(8, 768)
        >>> weight = torch.randn(512, 2816)
        >>> concat_linear([image, text], weight, activation="relu").shape
        torch.Size([8, 512])
    """
    try:
        if isinstance(inputs, Tensor):  # a tensor can be iterated over: it would pass as its rows
            raise TypeError
        device = "cpu" if weight.is_cpu else weight.device.type  # the latter makes two objects
        if device != "meta" and torch.is_autocast_enabled(device):
            *inputs, weight, bias = autocast(device, [*inputs, weight, bias])  # type: ignore
        if transformed():
            _concat_linear.check_arguments(inputs, weight, bias, activation, index)
            return _concat_linear.decomposed(inputs, weight, bias, activation, index)
        picked, indexed = (
            _NO_INDEX if index is None else _concat_linear.split_index(index, len(inputs))
        )
        training = torch.is_grad_enabled() and any_requires_grad((weight, bias, *inputs))
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting() and not indexed:
                # AOTInductor's runtime hands an empty list on as None (pytorch 194324): one input
                # of no features, picked by an index, changes nothing and makes both lists real.
                inputs = [*inputs, weight.new_zeros(1, 0)]
                picked = [weight.new_zeros(1, dtype=torch.int64)]
                indexed = [len(inputs) - 1]
            arguments = (inputs, weight, bias, picked, indexed, activation, training)
            return _concat_linear.traced(*arguments)[0]
        if training:
            return _concat_linear.ConcatLinearFunction.apply(
                activation, picked, indexed, weight, bias, *inputs
            )
        if not indexed:
            return _concat_linear.plain(inputs, weight, bias, activation)
        return _concat_linear.eager(inputs, weight, bias, picked, indexed, activation, False)[0]
    except (AttributeError, KeyError, RuntimeError, TypeError):
        # Something refused the arguments: say why in the user's terms. Checking only now keeps
        # calls cheap; the kernels check whatever could do harm.
        _concat_linear.check_arguments(inputs, weight, bias, activation, index)
        if index is not None and not torch.compiler.is_compiling():
            _concat_linear.check_index_range(inputs, index)
        raise


def explain_concat_linear(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    index: Sequence[Tensor | None] | None = None,
) -> _concat_linear_plan.Plan:
    """Which way :func:`concat_linear` would take with these arguments, and why.

    Takes the arguments of :func:`concat_linear`, computes nothing, and raises what it would raise.
    The plan depends on shapes, strides, dtype and instruction set alone; on a GPU also on
    alignment, the activation and the GPU.

    Returns:
        A plan; ``print`` it, or read its attributes.

    Example:
        >>> tokens, image = torch.randn(32, 128, 768), torch.randn(32, 1, 2048)
        >>> plan = explain_concat_linear([tokens, image], torch.randn(768, 2816))
        >>> plan.groups, plan.repeated
        (((0,),), (1,))
    """
    _concat_linear.check_arguments(inputs, weight, bias, activation, index)
    return _concat_linear_plan.plan(inputs, weight, index, activation)


_NO_INDEX: tuple[list[Tensor], list[int]] = ([], [])
