"""``concat_linear`` as PyTorch sees it: argument checks, fake kernel, autograd formula.

Two ways lead to the same kernels. Under ``torch.compile`` and ``torch.export`` the registered
operator is traced, with its registered autograd formula. In eager mode
:class:`ConcatLinearFunction` calls the overload without one, for a third of the cost per call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import library  # noqa: F401  registers torch.ops.mmfast

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# What backward needs of forward besides the arguments.
_SAVE_OUTPUT = ("relu", "tanh", "sigmoid")

traced = torch.ops.mmfast.concat_linear.default
eager = torch.ops.mmfast.concat_linear.no_autograd
backward = torch.ops.mmfast.concat_linear_backward.default


def check_arguments(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: str
) -> None:
    """Raise what is wrong with the arguments of ``concat_linear``, or return.

    The kernels check too; this function says more, and it is what tracing runs.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not a supported floating one.
        ValueError: shapes, dtypes or devices do not fit together, or the activation is unknown.
    """
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
                f"{name} has dtype {tensor.dtype}; it must be float32, float64, bfloat16 or "
                "float16 (convert it with .to(weight.dtype))"
            )
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name} has layout {tensor.layout}; it must be dense (.to_dense())")
    for name, tensor in named.items():
        if tensor.dtype != weight.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype} but weight has {weight.dtype}; they must be "
                "equal (convert one, or run under torch.autocast)"
            )
        if tensor.device != weight.device:
            raise ValueError(
                f"{name} is on {tensor.device} but weight is on {weight.device}; they must share "
                "a device (move one with .to())"
            )
    if weight.dim() != 2:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be 2-d, "
            "(out_features, sum of the inputs' last sizes)"
        )
    for i, x in enumerate(inputs):
        if x.dim() == 0:
            raise ValueError(f"inputs[{i}] is 0-d; it must be (*batch, features)")
    widths = [x.shape[-1] for x in inputs]
    if sum(widths) != weight.shape[1]:
        raise ValueError(
            f"weight has {weight.shape[1]} columns but the inputs' last sizes "
            f"{_sum_text(widths)} add up to {sum(widths)}; they must be equal"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), a value per "
            "row of weight"
        )
    check_activation(activation)
    _batch_shape(inputs)


def check_activation(activation: str) -> None:
    """Raise ValueError unless ``activation`` is one of :data:`ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}"
        )


def _sum_text(widths: Sequence[int]) -> str:
    shown = " + ".join(str(width) for width in widths[:8])
    return shown + (" + ..." if len(widths) > 8 else "")


def _batch_shape(inputs: Sequence[Tensor]) -> tuple[int, ...]:
    shapes = [x.shape[:-1] for x in inputs]
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        listed = ", ".join(str(tuple(shape)) for shape in shapes[:8])
        raise ValueError(
            f"the batch shapes of inputs do not broadcast together: {listed}"
            f"{', ...' if len(shapes) > 8 else ''}; each must be equal or 1, from the right"
        ) from None


def _fake(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    training: bool,
) -> tuple[Tensor, Tensor]:
    check_arguments(inputs, weight, bias, activation)
    shape = (*_batch_shape(inputs), weight.shape[0])
    keep = training and activation not in ("none", *_SAVE_OUTPUT)
    return weight.new_empty(shape), weight.new_empty(shape if keep else (0,))


torch.library.register_fake("mmfast::concat_linear")(_fake)
torch.library.register_fake("mmfast::concat_linear.no_autograd")(_fake)


@torch.library.register_fake("mmfast::concat_linear_backward")
def _fake_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weight: Tensor,
    saved: Tensor,
    activation: str,
    wanted: Sequence[int],
) -> list[Tensor]:
    shapes = [*(x.shape for x in inputs), weight.shape, weight.shape[:1]]
    return [weight.new_empty(shapes[position]) for position in wanted]


def _save(ctx: Any, activation: str, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Keep what backward needs: inputs, weight, and a result-sized tensor if one is needed."""
    weight, bias, *inputs = arguments
    output, preactivation = outputs
    ctx.activation = activation
    ctx.set_materialize_grads(False)
    if activation == "none":
        ctx.save_for_backward(weight, *inputs)
    else:
        # The bias is for double backward alone: it moves the point where the activation is bent.
        saved = output if activation in _SAVE_OUTPUT else preactivation
        ctx.save_for_backward(weight, *inputs, bias, saved)


def _gradients(ctx: Any, grad: Tensor | None, needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of (weight, bias, *inputs), None where ``needed``, in that order, is false."""
    gradients: list[Tensor | None] = [None] * len(needed)
    if grad is None or not any(needed):
        return gradients
    weight, *inputs = ctx.saved_tensors
    bias, saved = None, weight  # without an activation the kernel reads neither
    if ctx.activation != "none":
        *inputs, bias, saved = inputs
    if torch.is_grad_enabled():  # create_graph=True: the formula must itself be differentiable
        return _differentiable_gradients(grad, inputs, weight, bias, ctx.activation, needed)
    order = [*range(2, len(inputs) + 2), 0, 1]  # the operator's order: inputs, weight, bias
    wanted = [position for position, i in enumerate(order) if needed[i]]
    found = backward(grad, inputs, weight, saved, ctx.activation, wanted)
    for position, gradient in zip(wanted, found, strict=True):
        gradients[order[position]] = gradient
    return gradients


def decomposed(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """The same function in differentiable PyTorch operations, without the concatenation.

    What double backward and :mod:`torch.func` transforms go through.
    """
    parts = weight.split([x.shape[-1] for x in inputs], dim=1)
    total = None
    for x, part in zip(inputs, parts, strict=True):
        product = torch.nn.functional.linear(x, part)
        total = product if total is None else total + product
    assert total is not None
    if bias is not None:
        total = total + bias
    return _activate(total, activation)


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    if activation in ("tanh", "sigmoid"):
        return getattr(torch, activation)(x)
    return getattr(torch.nn.functional, activation)(x)


def _differentiable_gradients(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    if bias is None and needed[1]:  # not saved without an activation: its value does not matter
        bias = weight.new_zeros(weight.shape[0], requires_grad=True)
    # Views stand between the arguments and the result, so that one tensor given twice has two.
    arguments = [None if x is None else x.view_as(x) for x in (weight, bias, *inputs)]
    result = decomposed(arguments[2:], arguments[0], arguments[1], activation)  # type: ignore
    chosen = [x for x, need in zip(arguments, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, chosen, grad, create_graph=True))  # type: ignore
    return [next(found) if need else None for need in needed]


class ConcatLinearFunction(torch.autograd.Function):
    """Autograd for eager mode: ``apply(activation, weight, bias, *inputs)``."""

    @staticmethod
    def forward(
        ctx: Any, activation: str, weight: Tensor, bias: Tensor | None, *inputs: Tensor
    ) -> Tensor:
        outputs = eager(inputs, weight, bias, activation, True)
        _save(ctx, activation, (weight, bias, *inputs), outputs)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, grad, ctx.needs_input_grad[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, weight, bias, activation, training = inputs
    if not training and activation not in ("none", *_SAVE_OUTPUT):
        raise ValueError(
            f"training must be True to differentiate through activation {activation!r}"
        )
    ctx.mark_non_differentiable(output[1])
    _save(ctx, activation, (weight, bias, *tensors), output)


def _registered_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    inputs_needed, weight_needed, bias_needed = ctx.needs_input_grad[:3]
    needed = [weight_needed, bias_needed, *inputs_needed]
    weight, bias, *inputs = _gradients(ctx, grad, needed)
    return inputs, weight, bias, None, None


torch.library.register_autograd(
    "mmfast::concat_linear", _registered_backward, setup_context=_setup_context
)
