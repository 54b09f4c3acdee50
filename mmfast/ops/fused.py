"""Autograd for operators over lists of tensors, written once.

Two ways lead to the same kernels, as in :mod:`mmfast.ops.concat_linear`: the registered operator
where it is traced, and :class:`FusedFunction` over the overload without an autograd formula in
eager mode.
"""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import library  # noqa: F401  registers torch.ops.mmfast
from mmfast.ops.concat_linear import check_dense

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Options = tuple[Any, ...]
Found = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Fused:
    """An operator over ``tensors``, which have gradients, ``present`` and ``options``.

    Attributes:
        name: of the operator in ``torch.ops.mmfast``.
        check: raises what is wrong with the arguments.
        arguments: puts them in the order of the operator's schema.
        parts: the opposite, for the arguments of the operator.
        formula: the same function in differentiable PyTorch operations, for double backward,
            :mod:`torch.func` and devices without a kernel.
        outputs: how many tensors the operator returns.
    """

    name: str
    check: Callable[[Sequence[Tensor], Tensor | None, Options], None]
    arguments: Callable[[Sequence[Tensor], Tensor | None, Options], tuple[Any, ...]]
    parts: Callable[..., tuple[list[Tensor], Tensor | None, Options]]
    formula: Callable[[Sequence[Tensor], Tensor | None, Options], Found]
    outputs: int = 1
    traced: Any = field(init=False)
    eager: Any = field(init=False)
    backward: Any = field(init=False)

    def __post_init__(self) -> None:
        packet = getattr(torch.ops.mmfast, self.name)
        object.__setattr__(self, "traced", packet.default)
        object.__setattr__(self, "eager", packet.no_autograd)
        object.__setattr__(
            self, "backward", getattr(torch.ops.mmfast, f"{self.name}_backward").default
        )
        self._register()

    def _register(self) -> None:
        def fake(*arguments: Any) -> Found:
            tensors, present, options = self.parts(*arguments)
            self.check(tensors, present, options)
            with torch.no_grad():
                found = self.formula(tensors, present, options)
            # The formula's results may be laid out like the inputs; the kernels' are contiguous.
            if isinstance(found, Tensor):
                return found.new_empty(found.shape)
            return tuple(y.new_empty(y.shape) for y in found)

        torch.library.register_fake(f"mmfast::{self.name}")(fake)
        torch.library.register_fake(f"mmfast::{self.name}.no_autograd")(fake)

        def fake_backward(*arguments: Any) -> list[Tensor]:
            *rest, wanted = arguments
            grads, rest = rest[: self.outputs], rest[self.outputs :]
            results = fake(*rest)
            _check_grads(grads, (results,) if isinstance(results, Tensor) else results)
            tensors, _, _ = self.parts(*rest)
            _check_wanted(wanted, len(tensors))
            return [tensors[position].new_empty(tensors[position].shape) for position in wanted]

        torch.library.register_fake(f"mmfast::{self.name}_backward")(fake_backward)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensors, present, options = self.parts(*inputs)
            ctx.options = options
            ctx.needed = [x.requires_grad for x in tensors]
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(present, *tensors)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            found = _gradients(ctx, self, ctx.options, ctx.needed, grads)
            # In the places of the operator's arguments: None for what has no gradient.
            marked = self.arguments(found, None, ctx.options)  # type: ignore[arg-type]
            return tuple(x if isinstance(x, (Tensor, list)) else None for x in marked)

        torch.library.register_autograd(
            f"mmfast::{self.name}", backward, setup_context=setup_context
        )


class FusedFunction(torch.autograd.Function):
    """Autograd for eager mode: ``apply(operator, options, present, *tensors)``."""

    @staticmethod
    def forward(
        ctx: Any, op: Fused, options: Options, present: Tensor | None, *tensors: Tensor
    ) -> Found:
        ctx.op = op
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(present, *tensors)
        return op.eager(*op.arguments(tensors, present, options))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *_gradients(ctx, ctx.op, ctx.options, needed, grads)


def _gradients(
    ctx: Any,
    op: Fused,
    options: Options,
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    if all(grad is None for grad in grads) or not any(needed):
        return [None] * len(needed)
    present, *tensors = ctx.saved_tensors
    # An embedding with sparse=True sends sparse gradients.
    grads = [x.to_dense() if x is not None and x.is_sparse else x for x in grads]
    batched = any(x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in grads)
    if torch.is_grad_enabled() or batched:
        return _differentiable_gradients(op, tensors, present, options, needed, grads)
    first, *others = grads
    if first is None:  # only a further output was used
        first = torch.zeros_like(op.formula(tensors, present, options)[0])
    wanted = [position for position, need in enumerate(needed) if need]
    arguments = op.arguments(tensors, present, options)
    found = iter(op.backward(first, *others, *arguments, wanted))
    return [next(found) if need else None for need in needed]


def _differentiable_gradients(
    op: Fused,
    tensors: Sequence[Tensor],
    present: Tensor | None,
    options: Options,
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    with torch.enable_grad():
        # Views stand between the arguments and the result: one tensor given twice has two.
        arguments = [x.view_as(x) for x in tensors]
        results = op.formula(arguments, present, options)
    results = (results,) if isinstance(results, Tensor) else results
    used = [(y, grad) for y, grad in zip(results, grads, strict=True) if grad is not None]
    chosen = [x for x, need in zip(arguments, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in used],
            chosen,
            [grad for _, grad in used],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    )
    return [next(found) if need else None for need in needed]


def check_tensors(name: str, tensors: Sequence[Tensor], row_dims: int = 1) -> None:
    """Raise unless ``tensors`` is a sequence of floating tensors of one shape, dtype and device."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"{name} must be a sequence of tensors, got {type(tensors).__name__}")
    if len(tensors) == 0:
        raise ValueError(f"{name} is empty; it must hold at least one tensor")
    for i, x in enumerate(tensors):
        check_floating(f"{name}[{i}]", x)
        if x.dim() < row_dims:
            raise ValueError(
                f"{name}[{i}] has shape {tuple(x.shape)}; it must have at least {row_dims} "
                f"dimension{'s' if row_dims > 1 else ''}"
            )
        check_like(f"{name}[{i}]", x, f"{name}[0]", tensors[0])
        if x.shape != tensors[0].shape:
            raise ValueError(
                f"{name}[{i}] has shape {tuple(x.shape)} but {name}[0] has "
                f"{tuple(tensors[0].shape)}; they must be equal"
            )


def same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, while tracing from the right.

    Tuples compare from the left before they look at lengths: while tracing, that ties the batch
    size to whatever stands first in the other shape.
    """
    if not torch.compiler.is_compiling():
        return a == b
    return len(a) == len(b) and a[::-1] == b[::-1]


def check_floating(name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a dense tensor of a supported dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} has dtype {x.dtype}; it must be float32, float64, bfloat16 or float16"
        )
    check_dense(name, x)


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless ``x`` has dtype and device of ``other``."""
    if x.dtype != other.dtype:
        raise ValueError(
            f"{name} has dtype {x.dtype} but {other_name} has {other.dtype}; they must be equal "
            "(convert one, or run under torch.autocast)"
        )
    check_device(name, x, other_name, other.device)


def check_device(name: str, x: Tensor, other_name: str, device: torch.device) -> None:
    """Raise ValueError unless ``x`` is on ``device``, where the other one is."""
    if x.device != device:
        raise ValueError(
            f"{name} is on {x.device} but {other_name} is on {device}; they must share a device "
            "(move one with .to())"
        )


def check_flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bool: what else is true in Python says nothing."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a real number; a tensor is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _check_grads(grads: Sequence[Tensor | None], results: Sequence[Tensor]) -> None:
    for i, (grad, y) in enumerate(zip(grads, results, strict=True)):
        if grad is not None and (grad.shape, grad.dtype, grad.device) != (
            y.shape,
            y.dtype,
            y.device,
        ):
            raise ValueError(
                f"the gradient of result {i} is {tuple(grad.shape)}, {grad.dtype} on "
                f"{grad.device}; it must be {tuple(y.shape)}, {y.dtype} on {y.device}"
            )


def _check_wanted(wanted: Sequence[int], count: int) -> None:
    for position in wanted:
        if not 0 <= position < count:
            raise ValueError(f"wanted holds {position}; it must lie in 0 .. {count - 1}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"wanted holds a position twice: {list(wanted)}")


def check_present(
    present: Tensor | None,
    batch: Sequence[int],
    count: int,
    device: torch.device | None = None,
) -> None:
    """Raise unless ``present`` is None or a bool tensor (*batch, count), on ``device`` if given."""
    if present is None:
        return
    if not isinstance(present, Tensor):
        raise TypeError(f"present must be a bool tensor or None, got {type(present).__name__}")
    if present.dtype != torch.bool:
        raise TypeError(f"present has dtype {present.dtype}; it must be torch.bool, True = present")
    check_dense("present", present)
    if tuple(present.shape) != (*batch, count):
        raise ValueError(
            f"present has shape {tuple(present.shape)}; it must be {(*batch, count)}, a value per "
            "row and input, or broadcast to it"
        )
    if device is not None and present.device != device:
        raise ValueError(
            f"present is on {present.device} but the inputs are on {device}; they must share a "
            "device (move one with .to())"
        )


def there(present: Tensor | None, m: int, dims: int = 1) -> Tensor | None:
    """Where input ``m`` is present, with ``dims`` dimensions of size 1 for those of a row."""
    return None if present is None else present[(..., m, *[None] * dims)]


def silenced(x: Tensor, mask: Tensor | None, value: float = 0) -> Tensor:
    """``x``, and ``value`` where ``mask`` is False, whatever stood there."""
    return x if mask is None else x.where(mask, value)
