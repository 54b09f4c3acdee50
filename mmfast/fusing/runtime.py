"""What the exchanged calls do: hand the pieces of a concatenation on, and consume them.

Pieces travel in a plain tuple ``(tensors, index, activation, seen)``, through the ``__call__`` of
every module between the concatenation and the layer. No tensor subclass and no mode: neither the
dispatcher nor autograd, Dynamo, FSDP's hooks or a pytree can mistake a tuple for something else,
and calls that were not exchanged cost what they cost before. Where anything is not as
:mod:`mmfast.fusing.flow` proved it, the concatenation is built and everything runs as written.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from mmfast import functional
from mmfast.ops import library
from mmfast.ops.concat_linear import DTYPES

Pieces = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...] | None, str, "Seen | None"]
Step = str | int
# The way from the module of the concatenation, a method, and what its class must say; None: ours.
Guard = tuple[tuple[Step, ...], str, Callable[..., Any] | None]

MARK = "_mmfast_fused"
DEVICES = tuple(name for name in library.DEVICES if name != "meta")
SMALL = 1 << 19  # multiplications up to which a call's own time decides; see docs/dropin.md

_SHARDING = ("torch.distributed.", "deepspeed.")  # their hooks read parameters, and know tuples
_PLAIN = (Tensor, nn.Parameter)
_TRACED = ("FakeTensor", "FunctionalTensor")  # what torch.export gives a model in their place


# --- before the layer -----------------------------------------------------------------------------


def make_cat(
    original: Callable[..., Tensor],
    guards: Sequence[Guard],
    activation: str,
    channels: bool,
    seen: "Seen | None" = None,
) -> Callable[..., Tensor | Pieces]:
    """What stands for ``torch.cat`` at one place.

    Args:
        original: the function called there.
        guards: every module that the pieces pass through.
        activation: what follows each layer, if it is the same.
        channels: whether convolutions consume it, whose features are dimension 1.
        seen: is told what becomes of the pieces, in a trial.
    """

    def cat(module: nn.Module, tensors: Any, dim: int = 0) -> Tensor | Pieces:
        found = split(tensors)
        if found is not None and passable(module, guards):
            parts, index = found
            first = parts[0].dim() if index is None or index[0] is None else index[0].dim() + 1
            fits = dim in ((1, 1 - first) if channels else (-1, first - 1))
            if fits and joinable(parts, index, 1 if channels else -1):
                return parts, index, activation, seen
        return original(built(tensors), dim)

    return cat


def split(tensors: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...] | None] | None:
    """Tensors and indices of a list of tensors and :func:`rows`; None if it is anything else."""
    if not isinstance(tensors, list | tuple) or len(tensors) < 2:
        return None
    if any(type(x) is tuple for x in tensors):
        parts = tuple([x[0] if type(x) is tuple else x for x in tensors])
        return parts, tuple([x[1] if type(x) is tuple else None for x in tensors])
    return tuple(tensors), None


def built(tensors: Any) -> Any:
    """What ``torch.cat`` would have been given."""
    if isinstance(tensors, list | tuple):
        return [x[0][x[1]] if type(x) is tuple else x for x in tensors]
    return tensors


def concatenated(value: Pieces, dim: int = -1) -> Tensor:
    """The concatenation after all."""
    tensors, index, *_ = value
    if index is not None:
        tensors = tuple([x if i is None else x[i] for x, i in zip(tensors, index, strict=True)])
    return torch.cat(tensors, dim)


class Seen:
    """What a trial has seen at one place, call by call."""

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.bytes = 0

    def tell(
        self, parts: Sequence[Tensor], index: Sequence[Tensor | None] | None, fused: bool
    ) -> None:
        """Keep the shapes of pieces that were not joined."""
        if fused:
            index = [None] * len(parts) if index is None else index
            shapes = tuple(
                tuple(x.shape) if i is None else (*i.shape, x.shape[-1])
                for x, i in zip(parts, index, strict=True)
            )
            self.shapes.append(shapes)
            elements = sum([torch.Size(shape).numel() for shape in shapes])
            self.bytes += elements * parts[0].element_size()


def joinable(parts: Sequence[Tensor], index: Sequence[Tensor | None] | None, dim: int = -1) -> bool:
    """Whether these are plain dense tensors that ``torch.cat`` joins without converting any."""
    first = parts[0]
    if not is_plain(first) or first.dtype not in DTYPES or first.device.type not in DEVICES:
        return False
    if torch._C._get_tracing_state() is not None:
        return False  # torch.jit.trace would record the operator
    shape = None
    for i, x in enumerate(parts):
        if not is_plain(x) or x.dtype != first.dtype or x.device != first.device:
            return False
        if x.layout is not torch.strided or x.dim() == 0:
            return False
        rows = None if index is None else index[i]
        batch = x.shape[:-1] if rows is None else rows.shape
        if dim == 1:
            batch = x.shape[:1] + x.shape[2:]
        if shape is None:
            shape = batch
        elif batch != shape:
            return False
    return True


def is_plain(x: Any) -> bool:
    """Whether this is a tensor of torch's own, with nothing of a subclass to lose."""
    if type(x) in _PLAIN:
        return True
    return isinstance(x, Tensor) and type(x).__name__ in _TRACED and torch.compiler.is_compiling()


def passable(module: nn.Module, guards: Sequence[Guard]) -> bool:
    """Whether every module on the way still is one that takes pieces, and nothing listens in."""
    if _module._has_any_global_hook():
        return False
    for steps, method, expected in guards:
        target: Any = module
        for step in steps:
            if isinstance(target, nn.Module):
                target = target._modules.get(step) or getattr(target, step)  # type: ignore
            else:
                target = target[step]
        found = target.__dict__.get(method)
        if found is None:
            if expected is None or getattr(type(target), method) is not expected:
                return False
        elif not is_ours(found):
            return False
        if steps and heard(target):
            return False
    return True


def is_ours(method: Any) -> bool:
    """Whether a method in an instance's ``__dict__`` is one that :func:`mmfast.fuse` put there."""
    return type(method) is MethodType and hasattr(method.__func__, MARK)


def heard(module: nn.Module) -> bool:
    """Whether hooks see what goes into ``module``, other than those that shard parameters."""
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ):
        if hooks and not all(
            (getattr(hook, "__module__", None) or "").startswith(_SHARDING)
            for hook in hooks.values()
        ):
            return True
    return False


def rows(x: Any, index: Any, negative: bool = True) -> Any:
    """``x[index]`` in a concatenation, left to the operator where it is a plain gather of rows."""
    if (
        is_plain(x)
        and x.dim() == 2
        and is_plain(index)
        and index.dtype in (torch.int64, torch.int32)
        and index.dim() > 0
        and index.device == x.device
        and not torch.jit.is_tracing()
    ):
        if negative and (x.is_cuda or torch.compiler.is_compiling()):
            # A GPU and a graph cannot fall back when they meet an entry that counts from the end.
            index = torch.where(index < 0, index + x.shape[0], index)
        return x, index
    return x[index]


def selected(x: Any, dim: Any, index: Any) -> Any:
    """``x.index_select(dim, index)`` likewise."""
    if dim == 0 and is_plain(index) and index.dim() == 1 and index.dtype is torch.int64:
        found = rows(x, index, negative=False)
        if type(found) is tuple:
            return found
    return torch.index_select(x, dim, index)


def repeated(x: Tensor, *sizes: Any) -> Tensor:
    """``x.repeat(*sizes)`` in a concatenation, as a view where only sizes of 1 are repeated."""
    counts = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    if is_plain(x) and len(counts) >= x.dim() and all(isinstance(n, int) for n in counts):
        shape = (1,) * (len(counts) - x.dim()) + tuple(x.shape)
        if all(n == 1 or (size == 1 and n > 1) for size, n in zip(shape, counts, strict=True)):
            return x.expand([n * size for size, n in zip(shape, counts, strict=True)])
    return x.repeat(*sizes)


def interleaved(x: Any, repeats: Any, dim: int) -> Any:
    """``x.repeat_interleave(repeats, dim)`` in a concatenation, as a gather of rows."""
    if is_plain(x) and x.dim() == 2 and dim in (0, -2):
        one_each = is_plain(repeats) and repeats.dim() == 1 and repeats.numel() == x.shape[0]
        if type(repeats) is int or one_each:
            return x, torch.arange(x.shape[0], device=x.device).repeat_interleave(repeats)
    return x.repeat_interleave(repeats, dim)


def embedded(index: Any, weight: Any) -> Any:
    """``F.embedding(index, weight)`` likewise."""
    found = rows(weight, index, negative=False)
    return found if type(found) is tuple else F.embedding(index, weight)


# --- at the layer ---------------------------------------------------------------------------------


def linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    """``F.linear`` for tensors and for pieces; a 1-tuple if the activation is done already."""
    if type(input) is not tuple:
        return F.linear(input, weight, bias)
    tensors, index, activation, seen = input
    wanted = worth(tensors, index, weight, bias)
    if seen is not None:
        seen.tell(tensors, index, wanted)
    if not wanted:
        return F.linear(concatenated(input), weight, bias)
    if index is None:
        result = functional.concat_linear(tensors, weight, bias, activation=activation)
    else:
        try:
            result = functional.concat_linear(
                tensors, weight, bias, activation=activation, index=index
            )
        except IndexError:  # negative entries count from the end; those beyond it raise again
            return F.linear(concatenated(input), weight, bias)
    return result if activation == "none" else (result,)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is at work where ``x`` lies."""
    return torch.is_autocast_enabled(x.device.type)


def worth(
    tensors: Sequence[Tensor],
    index: Sequence[Tensor | None] | None,
    weight: Tensor,
    bias: Tensor | None,
) -> bool:
    """Whether the operator takes these arguments, and is not slower than what it replaces."""
    dtype = weight.dtype
    if weight.device != tensors[0].device:
        return False
    if tensors[0].dtype is not dtype and not autocasts(weight):
        return False
    if weight.dim() != 2 or sum([x.shape[-1] for x in tensors]) != weight.shape[1]:
        return False
    if not is_plain(weight):
        return False
    if bias is not None and (bias.dtype is not dtype or bias.dim() != 1):
        return False
    if torch.compiler.is_compiling():
        return True  # no call of Python's remains; sizes may be symbolic
    first = tensors[0] if index is None or index[0] is None else index[0].unsqueeze(-1)
    return first.numel() // max(1, first.shape[-1]) * weight.numel() > SMALL


def make_activation(original: Callable[..., Any]) -> Callable[..., Any]:
    """An activation behind a layer that may have computed it already."""

    def activation(value: Any, *args: Any, **options: Any) -> Any:
        return value[0] if type(value) is tuple else original(value, *args, **options)

    return activation


def make_method(name: str) -> Callable[..., Any]:
    """The same for an activation written as a method of the tensor."""

    def activation(value: Any) -> Any:
        return value[0] if type(value) is tuple else getattr(value, name)()

    return activation


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """``F.dropout``, which lets pieces pass unless it is at work."""
    if type(input) is tuple:
        if not training:
            return input
        input = concatenated(input)
    return F.dropout(input, p, training, inplace)
