"""Ways in which an argument can be wrong: each makes something else of the right one."""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

Change = Callable[[Any], Any]


class Unfit(Exception):
    pass


def only(kind: type, change: Change) -> Change:
    def apply(x: Any) -> Any:
        if not isinstance(x, kind):
            raise Unfit
        try:
            return change(x)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise Unfit from error  # nobody can make such a thing of this one

    return apply


def tensor(change: Callable[[Tensor], Any]) -> Change:
    return only(Tensor, change)


def sequence(change: Callable[[list], Any]) -> Change:
    return only(list, change)


def constant(value: Any) -> Change:
    return lambda x: value


def freed(x: Tensor) -> Tensor:
    if x.untyped_storage().nbytes() == 0:
        raise ValueError  # freed already: it cannot be copied
    x = x.detach().clone()
    x.untyped_storage().resize_(0)
    return x


def negative(x: Tensor) -> Tensor:
    """A view whose sign is only noted."""
    if not x.is_floating_point():
        raise ValueError
    return torch._neg_view(x)


def huge(x: Tensor, size: int) -> Tensor:
    """A size that no memory holds, of stride 0."""
    return x[:1].expand(size, *x.shape[1:])


def resized(x: Tensor, by: int, dim: int) -> Tensor:
    if x.shape[dim] + by < 0:
        raise ValueError
    shape = list(x.shape)
    shape[dim] += by
    return x.new_ones(shape)


def entry(x: Tensor, value: int) -> Tensor:
    """An index with one entry that points somewhere else."""
    if x.dtype not in (torch.int64, torch.int32) or not x.numel():
        raise ValueError
    x = x.clone()
    x.view(-1)[-1] = value
    return x


def in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.detach().clone()


TENSORS: dict[str, Change] = {
    **{f"to {t}".replace("torch.", ""): tensor(lambda x, t=t: x.to(t)) for t in (
        torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float16,
        torch.bfloat16, torch.float64, torch.float8_e4m3fn,
    )},
    "uint16": tensor(lambda x: x.abs().to(torch.uint16)),
    "quantized": tensor(lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8)),
    "sparse": tensor(lambda x: x.to_sparse()),
    "csr": tensor(lambda x: x.to_sparse_csr()),
    "mkldnn": tensor(lambda x: x.to_mkldnn()),
    "meta": tensor(lambda x: x.to("meta")),
    "nested": tensor(lambda x: torch.nested.nested_tensor([x, x])),
    "jagged": tensor(lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged)),
    "conjugate": tensor(lambda x: x.to(torch.complex64).conj()),
    "negative": tensor(negative),
    "zero tensor": tensor(lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype)),
    "parameter": tensor(lambda x: torch.nn.Parameter(x.detach())),
    "inference": tensor(in_inference),
    "freed": tensor(freed),
    "scalar": tensor(lambda x: x.sum().to(x.dtype)),
    "flat": tensor(lambda x: x.flatten()),
    "one more dimension": tensor(lambda x: x[None]),
    "two more at the end": tensor(lambda x: x[..., None, None]),
    "first row": tensor(lambda x: x[0]),
    "transposed": tensor(lambda x: x.transpose(0, -1)),
    "30 dimensions": tensor(lambda x: x.reshape(*[1] * (30 - x.dim()), *x.shape)),
    "empty": tensor(lambda x: x[:0]),
    "no features": tensor(lambda x: x[..., :0]),
    **{f"size {d} {by:+}": tensor(lambda x, d=d, by=by: resized(x, by, d))
       for d in (0, -1) for by in (-1, 1, 1000)},
    **{f"2**{n} rows": tensor(lambda x, n=n: huge(x, 2**n)) for n in (31, 40, 62)},
    "2**40 twice": tensor(lambda x: x[:1, None].expand(2**40, 2**22, *x.shape[1:])),
    "2**62 features of nothing": tensor(lambda x: x[:0, :1].expand(0, 2**62)),
    "overlapping": tensor(lambda x: x.as_strided(x.shape, [1] * x.dim())),
    **{f"entry {name}": tensor(lambda x, v=v: entry(x, v)) for name, v in (
        ("-1", -1), ("far", 2**30), ("2**40", 2**40), ("lowest", -(2**63)), ("highest", 2**63 - 1),
    )},
    "numpy": tensor(lambda x: x.detach().float().numpy()),
    "list of numbers": tensor(lambda x: x.tolist()),
    "in a list": tensor(lambda x: [x]),
}  # fmt: skip
SEQUENCES: dict[str, Change] = {
    "empty list": sequence(lambda x: []),
    "shorter": sequence(lambda x: x[:-1]),
    "longer": sequence(lambda x: [*x, x[0]]),
    "a thousand": sequence(lambda x: x * 500),
    "backwards": sequence(lambda x: x[::-1]),
    "tuple": sequence(tuple),
    "nested list": sequence(lambda x: [x]),
    "as a dict": sequence(lambda x: dict(enumerate(x))),
    "generator": sequence(lambda x: (y for y in x)),
    "stacked": sequence(lambda x: torch.stack([y for y in x if isinstance(y, Tensor)])),
    "with None": sequence(lambda x: [*x[:-1], None]),
    "with str": sequence(lambda x: ["x", *x[1:]]),
    "with int": sequence(lambda x: [*x[:-1], 3]),
    "with array": sequence(lambda x: [*x[:-1], numpy.ones((4, 3), numpy.float32)]),
}
OBJECTS: dict[str, Change] = {
    "None": constant(None),
    "True": constant(True),
    "0": constant(0),
    "-1": constant(-1),
    "3": constant(3),
    "2**31": constant(2**31),
    "2**62": constant(2**62),
    "2**63": constant(2**63),
    "-2**63": constant(-(2**63)),
    "1.5": constant(1.5),
    "nan": constant(float("nan")),
    "inf": constant(float("inf")),
    "1j": constant(1j),
    "a word": constant("relu6"),
    "no word": constant(""),
    "a long word": constant("x" * 100_000),
    "half a character": constant("\ud800"),
    "zero byte": constant("relu\0"),
    "bytes": constant(b"relu"),
    "object": constant(object()),
    "type": constant(torch.Tensor),
    "dtype": constant(torch.float32),
    "size": constant(torch.Size([4, 3])),
    "a tensor": lambda x: torch.ones(4, 3),
    "a number in a tensor": lambda x: torch.tensor(3.0),
}
CHANGES: dict[str, Change] = {**TENSORS, **SEQUENCES, **OBJECTS}
