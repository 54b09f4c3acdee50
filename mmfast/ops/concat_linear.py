"""``concat_linear`` as PyTorch sees it: argument checks, fake kernel, autograd formula.

Two ways lead to the same kernels. Under ``torch.compile`` and ``torch.export`` the registered
operator is traced, with its registered autograd formula. Eager mode calls operators that have none,
for a third of the cost per call, and with gradients does so in :class:`ConcatLinearFunction`:
:func:`plain` where the result is all that is wanted, else ``eager``.
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
_plain = torch.ops.mmfast.concat_linear_plain.default
backward = torch.ops.mmfast.concat_linear_backward.default


Index = Sequence[Tensor | None]
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def split_index(index: Index, count: int) -> tuple[list[Tensor], list[int]]:
    """The operator's two lists: the index tensors there are, and which inputs they belong to.

    Raises:
        TypeError: ``index`` does not fit ``count`` inputs; :func:`check_arguments` says how.
    """
    if isinstance(index, Tensor) or len(index) != count:
        raise TypeError("index does not fit inputs")
    indexed = [i for i, rows in enumerate(index) if rows is not None]
    rows = [index[i] for i in indexed]
    return [x.long() if x.dtype == torch.int32 else x for x in rows], indexed  # type: ignore


def plain(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The result alone of inputs without an index: `eager` in fewer arguments, which cost.

    Raises:
        KeyError: the activation is unknown.
    """
    return _plain(inputs, weight, bias, _CODES[activation])


def check_arguments(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    index: Index | None = None,
) -> None:
    """Raise what is wrong with the arguments of ``concat_linear``, or return.

    The kernels check too; this function says more, and it is what tracing runs.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not a supported floating one.
        ValueError: shapes, dtypes or devices do not fit together, or the activation is unknown.
        IndexError: an index points outside its input.
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
        check_dense(name, tensor)
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
    if index is not None:
        _check_index(inputs, weight, index)
    batch_shape(inputs, index)


def _check_index(inputs: Sequence[Tensor], weight: Tensor, index: Index) -> None:
    if isinstance(index, Tensor) or not isinstance(index, Sequence):
        raise TypeError(
            f"index must be a sequence of a tensor or None per input, got {type(index).__name__}"
        )
    if len(index) != len(inputs):
        raise ValueError(
            f"index has {len(index)} entries but there are {len(inputs)} inputs; give each input a "
            "tensor or None"
        )
    for i, (x, rows) in enumerate(zip(inputs, index, strict=True)):
        if rows is None:
            continue
        if not isinstance(rows, Tensor):
            raise TypeError(f"index[{i}] must be a tensor or None, got {type(rows).__name__}")
        if rows.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"index[{i}] has dtype {rows.dtype}; it must be int64 or int32")
        check_dense(f"index[{i}]", rows)
        if rows.device != weight.device:
            raise ValueError(
                f"index[{i}] is on {rows.device} but weight is on {weight.device}; they must share "
                "a device (move one with .to())"
            )
        if x.dim() != 2:
            raise ValueError(
                f"inputs[{i}] has shape {tuple(x.shape)}; an indexed input must be 2-d, "
                "(rows, features)"
            )


def check_index_range(inputs: Sequence[Tensor], index: Index) -> None:
    """Raise IndexError if an index points outside its input; reads the index tensors' values."""
    for i, (x, rows) in enumerate(zip(inputs, index, strict=True)):
        if rows is not None and rows.numel():
            low, high = rows.min().item(), rows.max().item()
            if low < 0 or high >= x.shape[0]:
                raise IndexError(
                    f"index[{i}] holds {low if low < 0 else high}; it must lie in 0 .. "
                    f"{x.shape[0] - 1}, the rows of inputs[{i}]"
                )


def check_dense(name: str, x: Tensor) -> None:
    """Raise TypeError if ``x`` is sparse or nested: its elements have no strides, or no shape.

    RuntimeError if they have no memory.
    """
    if x.layout is not torch.strided or x.is_nested:
        raise TypeError(
            f"{name} {'is nested' if x.is_nested else f'has layout {x.layout}'}; it must be dense "
            f"({'.to_padded_tensor(0)' if x.is_nested else '.to_dense()'})"
        )
    check_memory(name, x)


def check_memory(name: str, x: Tensor) -> None:
    """Raise RuntimeError if the storage of ``x`` was freed or shrunk.

    The operators look themselves; PyTorch's read what is not there, and may end the process.
    """
    if type(x) not in (Tensor, torch.nn.Parameter) or x.is_meta or not x.numel():
        return
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    reach = [(size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)]
    end = x.storage_offset() + sum(reach) + 1
    if x.untyped_storage().nbytes() < end * x.element_size():
        raise RuntimeError(
            f"{name} has elements without memory: its storage was freed or shrunk; compute with it "
            "before that"
        )


def check_activation(activation: str) -> None:
    """Raise ValueError unless ``activation`` is one of :data:`ACTIVATIONS`."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}"
        )


def _sum_text(widths: Sequence[int]) -> str:
    shown = " + ".join(str(width) for width in widths[:8])
    return shown + (" + ..." if len(widths) > 8 else "")


def batch_shape(inputs: Sequence[Tensor], index: Index | None = None) -> tuple[int, ...]:
    """The batch shape of the result; ValueError if there is none."""
    index = [None] * len(inputs) if index is None else index
    shapes = [
        x.shape[:-1] if rows is None else rows.shape for x, rows in zip(inputs, index, strict=True)
    ]
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        listed = ", ".join(str(tuple(shape)) for shape in shapes[:8])
        raise ValueError(
            f"the batch shapes of inputs do not broadcast together: {listed}"
            f"{', ...' if len(shapes) > 8 else ''}; each must be equal or 1, from the right"
        ) from None


def _join_index(count: int, index: Sequence[Tensor], indexed: Sequence[int]) -> Index | None:
    """What :func:`split_index` split."""
    if not indexed:
        return None
    joined: list[Tensor | None] = [None] * count
    for i, rows in zip(indexed, index, strict=True):
        joined[i] = rows
    return joined


def _fake(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    index: Sequence[Tensor],
    indexed: Sequence[int],
    activation: str,
    training: bool,
) -> tuple[Tensor, Tensor]:
    joined = _join_index(len(inputs), index, indexed)
    check_arguments(inputs, weight, bias, activation, joined)
    shape = (*batch_shape(inputs, joined), weight.shape[0])
    keep = training and activation not in ("none", *_SAVE_OUTPUT)
    return weight.new_empty(shape), weight.new_empty(shape if keep else (0,))


torch.library.register_fake("mmfast::concat_linear")(_fake)
torch.library.register_fake("mmfast::concat_linear.no_autograd")(_fake)


@torch.library.register_fake("mmfast::concat_linear_plain")
def _fake_plain(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, activation: int
) -> Tensor:
    if not 0 <= activation < len(ACTIVATIONS):
        raise ValueError(
            f"activation is {activation}; it must be a position in {', '.join(ACTIVATIONS)}"
        )
    return _fake(inputs, weight, bias, [], [], ACTIVATIONS[activation], False)[0]


@torch.library.register_fake("mmfast::concat_linear_backward")
def _fake_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weight: Tensor,
    saved: Tensor,
    index: Sequence[Tensor],
    indexed: Sequence[int],
    activation: str,
    wanted: Sequence[int],
) -> list[Tensor]:
    joined = _join_index(len(inputs), index, indexed)
    check_arguments(inputs, weight, None, activation, joined)
    shape = (*batch_shape(inputs, joined), weight.shape[0])
    results = {"grad": grad} if activation == "none" else {"grad": grad, "saved": saved}
    for name, tensor in results.items():
        if tensor.shape != shape or tensor.dtype != weight.dtype or tensor.device != weight.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}; it must be "
                f"{tuple(shape)}, {weight.dtype} on {weight.device}"
            )
    shapes = [*(x.shape for x in inputs), weight.shape, weight.shape[:1]]
    for position in wanted:
        if not 0 <= position < len(shapes):
            raise ValueError(f"wanted holds {position}; it must lie in 0 .. {len(shapes) - 1}")
    return [weight.new_empty(shapes[position]) for position in wanted]


def _save(
    ctx: Any,
    activation: str,
    index: Sequence[Tensor],
    indexed: Sequence[int],
    arguments: Sequence[Any],
    needed: Sequence[bool],
    outputs: Sequence[Tensor | None],
) -> None:
    """Keep what backward needs: inputs, weight, and a result-sized tensor if one is needed."""
    weight, bias, *inputs = arguments
    output, preactivation = outputs
    ctx.activation = activation
    ctx.indexed = indexed
    ctx.set_materialize_grads(False)
    if activation == "none":
        # The weight's gradient needs the inputs, theirs need the weight; for the rest, shapes do.
        if not needed[0]:
            inputs = [_shape_only(x) for x in inputs]
        if not any(needed[2:]):
            weight = _shape_only(weight)
        ctx.save_for_backward(weight, *index, *inputs)
    else:
        # Inputs and bias are for double backward too: they move the point where the activation is
        # bent.
        saved = output if activation in _SAVE_OUTPUT else preactivation
        ctx.save_for_backward(weight, *index, *inputs, bias, saved)


def _shape_only(x: Tensor) -> Tensor:
    """A tensor of x's shape, dtype and device in the memory of one element, and nothing of x."""
    # Expanded, and not made by empty_strided: deterministic mode fills what is new, every element.
    return torch.empty((), dtype=x.dtype, device=x.device).expand(x.shape)


def _gradients(ctx: Any, grad: Tensor | None, needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of (weight, bias, *inputs), None where ``needed``, in that order, is false."""
    if grad is None or not any(needed):
        return [None] * len(needed)
    weight, *inputs = ctx.saved_tensors
    index, inputs = inputs[: len(ctx.indexed)], inputs[len(ctx.indexed) :]
    bias, saved = None, weight  # without an activation the kernel reads neither
    if ctx.activation != "none":
        *inputs, bias, saved = inputs
    # create_graph=True wants a formula that is itself differentiable; is_grads_batched=True, one in
    # operations that PyTorch knows how to batch.
    if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad):
        joined = _join_index(len(inputs), index, ctx.indexed)
        return _differentiable_gradients(grad, inputs, weight, bias, ctx.activation, joined, needed)
    if grad.layout is not torch.strided:
        grad = grad.to_dense()
    in_order = (*needed[2:], *needed[:2])  # the operator's order: inputs, weight, bias
    wanted = [position for position, need in enumerate(in_order) if need]
    found = backward(grad, inputs, weight, saved, index, ctx.indexed, ctx.activation, wanted)
    result: list[Tensor | None] = [None] * len(needed)
    for position, gradient in zip(wanted, found, strict=True):
        result[(position + 2) % len(needed)] = gradient
    return result


def decomposed(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    index: Index | None = None,
) -> Tensor:
    """The same function in differentiable PyTorch operations, without the concatenation.

    What double backward and transforms (:mod:`torch.func`, forward mode) go through. 16-bit types
    are computed in float32, as the kernels do.
    """
    dtype = weight.dtype
    if dtype in (torch.bfloat16, torch.float16):
        inputs, weight = [x.float() for x in inputs], weight.float()
        bias = None if bias is None else bias.float()
    parts = weight.split([x.shape[-1] for x in inputs], dim=1)
    total = None
    for i, (x, part) in enumerate(zip(inputs, parts, strict=True)):
        product = torch.nn.functional.linear(x, part)
        if index is not None and index[i] is not None:
            product = product[index[i]]
        total = product if total is None else total + product
    assert total is not None
    if bias is not None:
        total = total + bias
    return _activate(total, activation).to(dtype)


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
    index: Index | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    if bias is None and needed[1]:  # not saved without an activation: its value does not matter
        bias = weight.new_zeros(weight.shape[0], requires_grad=True)
    with torch.enable_grad():
        # Views stand between the arguments and the result: one tensor given twice has two.
        arguments = [None if x is None else x.view_as(x) for x in (weight, bias, *inputs)]
        for x, need in zip(arguments, needed, strict=True):
            if need and x is not None and not x.requires_grad:
                x.requires_grad_()  # kept as a shape only: its value does not matter
        result = decomposed(arguments[2:], arguments[0], arguments[1], activation, index)  # type: ignore
    chosen = [x for x, need in zip(arguments, needed, strict=True) if need]
    create_graph = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(result, chosen, grad, create_graph=create_graph))  # type: ignore
    return [next(found) if need else None for need in needed]


class ConcatLinearFunction(torch.autograd.Function):
    """Autograd for eager mode: ``apply(activation, index, indexed, weight, bias, *inputs)``."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: str,
        index: Sequence[Tensor],
        indexed: Sequence[int],
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        if indexed or activation not in ("none", *_SAVE_OUTPUT):
            outputs = eager(inputs, weight, bias, index, indexed, activation, True)
        else:
            outputs = plain(inputs, weight, bias, activation), None
        arguments = (weight, bias, *inputs)
        _save(ctx, activation, index, indexed, arguments, ctx.needs_input_grad[3:], outputs)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *_gradients(ctx, grad, ctx.needs_input_grad[3:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, weight, bias, index, indexed, activation, training = inputs
    if not training and activation not in ("none", *_SAVE_OUTPUT):
        raise ValueError(
            f"training must be True to differentiate through activation {activation!r}; trace or "
            "export with gradients enabled"
        )
    ctx.mark_non_differentiable(output[1])
    arguments = (weight, bias, *tensors)
    needed = [x is not None and x.requires_grad for x in arguments]  # ctx has not sorted them yet
    _save(ctx, activation, index, indexed, arguments, needed, output)


def _registered_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    inputs_needed, weight_needed, bias_needed = ctx.needs_input_grad[:3]
    needed = [weight_needed, bias_needed, *inputs_needed]
    weight, bias, *inputs = _gradients(ctx, grad, needed)
    # torch takes an empty list for one of tensors, and wants a list back.
    no_gradients: list[None] | None = None if ctx.indexed else []
    return inputs, weight, bias, [None] * len(ctx.indexed), no_gradients, None, None


torch.library.register_autograd(
    "mmfast::concat_linear", _registered_backward, setup_context=_setup_context
)
