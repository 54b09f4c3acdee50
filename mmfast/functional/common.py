"""What the functions of this package share: autocast, broadcasting, the way to an operator."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmfast.ops.concat_linear import check_dense
from mmfast.ops.fused import Found, Fused, FusedFunction, Options, check_tensors, same_shape
from mmfast.ops.library import DEVICES


def autocast(device: str, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Convert to autocast's dtype what it would convert for ``F.linear``: all but float64."""
    dtype = torch.get_autocast_dtype(device)

    def convert(x: Tensor | None) -> Tensor | None:
        # What is no tensor at all is left to the checks, which say so.
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64:
            return x.to(dtype)
        return x

    return [convert(x) for x in tensors]


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which operators do not see."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def any_requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one of the tensors requires a gradient."""
    for x in tensors:  # noqa: SIM110  any() of a generator takes twice as long
        if x is not None and x.requires_grad:
            return True
    return False


def call(op: Fused, tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> Found:
    """Call ``op`` the way that fits: autocast, traced, transformed, with gradients or without."""
    first = tensors[0]
    on_cpu = first.is_cpu
    device = "cpu" if on_cpu else first.device.type  # the latter makes two objects
    if device != "meta" and torch.is_autocast_enabled(device):
        tensors = autocast(device, tensors)  # type: ignore[assignment]
    try:
        # Transforms come first, also while tracing: they would not see into the operator.
        if device not in DEVICES or transformed():
            op.check(tensors, present, options)
            return op.formula(tensors, present, options)
        if torch.compiler.is_compiling():
            return op.traced(*op.arguments(tensors, present, options))
        if torch.is_grad_enabled() and any_requires_grad(tensors):
            return FusedFunction.apply(op, options, present, *tensors)
        return op.eager(*op.arguments(tensors, present, options))
    except (AttributeError, IndexError, RuntimeError, TypeError):
        # Something refused the arguments: say why in the user's terms, if that is it.
        op.check(tensors, present, options)
        raise


def is_sequence(x: object) -> bool:
    """Whether ``x`` is a sequence other than a tensor."""
    if isinstance(x, (list, tuple)):
        return True
    return isinstance(x, Sequence) and not isinstance(x, Tensor)


def broadcast(
    name: str,
    inputs: Sequence[Tensor],
    present: Tensor | None,
    row_dims: int = 1,
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Inputs and ``present`` expanded to one shape; nothing is copied.

    Raises:
        TypeError: ``inputs`` is not a sequence of tensors.
        ValueError: the shapes do not broadcast together.
    """
    if not is_sequence(inputs):
        raise TypeError(f"{name} must be a sequence of tensors, got {type(inputs).__name__}")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{i}] must be a tensor, got {type(x).__name__}")
        if x.is_nested:  # it has no shape to broadcast
            check_dense(f"{name}[{i}]", x)
    if not inputs:
        raise ValueError(f"{name} is empty; it must hold at least one tensor")
    shape = inputs[0].shape
    for x in inputs:
        if not same_shape(x.shape, shape):
            shape = _common_shape(name, inputs)
            inputs = [x.expand(shape) for x in inputs]
            break
    if len(shape) < row_dims:
        check_tensors(name, inputs, row_dims)  # raises
    if isinstance(present, Tensor):
        check_dense("present", present)
        wanted = (*shape[: len(shape) - row_dims], len(inputs))
        if not same_shape(present.shape, wanted):
            try:
                present = present.expand(wanted)
            except RuntimeError:
                raise ValueError(
                    f"present has shape {tuple(present.shape)}; it must be {wanted}, a value per "
                    "row and input, or broadcast to it"
                ) from None
    return inputs, present


def _common_shape(name: str, inputs: Sequence[Tensor]) -> torch.Size:
    try:
        return torch.broadcast_shapes(*(x.shape for x in inputs))
    except RuntimeError:
        listed = ", ".join(str(tuple(x.shape)) for x in inputs[:8])
        raise ValueError(
            f"the shapes of {name} do not broadcast together: {listed}; sizes must be equal or "
            "1, from the right"
        ) from None
