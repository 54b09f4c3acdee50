"""Tensors from plain descriptions: a shape, how it lies in memory, what it holds.

Whatever lies between, before and behind the elements is NaN (or an index far beyond any tensor), so
that a kernel that reads past what it was given is wrong, and not by luck right.
"""

import math
import random
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# plain: alone in its storage; inside: in the middle of one; odd: at an address that is no multiple
# of the element's size; gaps: sliced from a larger tensor; steps: every second feature; turned:
# dimensions in another order; repeated: some dimensions of stride 0; constant: all; windows: rows
# that overlap; far: rows gigabytes apart.
LAYOUTS = (
    "plain", "inside", "odd", "gaps", "steps", "turned", "repeated", "constant", "windows",
)  # fmt: skip
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
MARGIN = 70  # elements of nothing around a tensor: more than any vector register reads at once
FAR = 2**31 + 5  # elements between the rows of a tensor that lies far apart
BEYOND = 2**40  # an index where there should be none

Shape = Sequence[int]


def strides_of(shape: Shape, layout: str, rng: random.Random) -> list[int]:
    dims = list(range(len(shape)))
    padded = [max(size, 1) for size in shape]
    step = 1
    if layout == "gaps":
        padded = [size + rng.randint(0, 2) for size in padded]
    elif layout == "steps":
        step = 2
    elif layout == "turned":
        rng.shuffle(dims)
    strides = [0] * len(shape)
    for d in reversed(dims):
        strides[d] = step
        step *= padded[d]
    if layout == "repeated":
        strides = [0 if rng.random() < 0.5 else s for s in strides]
    elif layout == "constant":
        strides = [0] * len(shape)
    elif layout == "windows" and len(shape) > 1:
        strides[-2] = 1
    elif layout == "far" and len(shape) > 1:
        strides[-2] = FAR
    return strides


def laid_out(
    shape: Shape, layout: str, dtype: torch.dtype, seed: int, outside: float, fill
) -> Tensor:
    """A tensor of that shape and layout; ``fill(n)`` gives the n elements that it really has."""
    strides = strides_of(shape, layout, random.Random(seed))
    extent = 1 + sum((size - 1) * s for size, s in zip(shape, strides, strict=True) if size)
    margin = 0 if layout == "plain" else MARGIN
    odd = layout == "odd" and dtype.itemsize > 1
    count = 2 * margin + extent + odd
    if layout == "far":  # what is never touched is never given by the system
        storage = torch.empty(count, dtype=dtype)
    else:
        storage = torch.full((count,), outside, dtype=dtype)
    if odd:
        raw = bytearray(storage.view(torch.uint8).numpy().tobytes())
        storage = torch.frombuffer(raw, dtype=dtype, offset=1, count=count - 1)
    view = storage.as_strided(list(shape), strides, margin)
    if view.numel():
        places = 0
        for size, stride in zip(shape, strides, strict=True):
            places = torch.as_tensor(places)[..., None] + torch.arange(size) * stride
        places = torch.as_tensor(places).flatten().unique() + margin
        storage[places] = fill(len(places)).to(dtype)
    return view


def random_tensor(
    shape: Shape, layout: str, dtype: torch.dtype, seed: int, values: str, terms: int = 1
) -> Tensor:
    """A floating tensor. ``values``: ``integers``, whose sums of ``terms`` products no type rounds;
    ``normal``; ``large``, normal ones with outliers.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(count: int) -> Tensor:
        if values == "integers":
            found = torch.randint(-2, 3, (count,), generator=generator).double()
            # 16-bit types hold integers up to 256, float32 up to 2**24: few enough are not zero.
            some = 40 if dtype.itemsize == 2 else 1e5
            return found * (torch.rand(count, generator=generator) < some / max(terms, 1))
        found = torch.randn(count, generator=generator, dtype=torch.float64)
        if values == "large":
            found = found * 10 ** torch.randint(-2, 2, (count,), generator=generator)
        return found

    return laid_out(shape, layout, dtype, seed, math.nan, fill)


def random_mask(shape: Shape, layout: str, seed: int, share: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    layout = "inside" if layout == "odd" else layout
    fill = lambda count: torch.rand(count, generator=generator) < share  # noqa: E731
    return laid_out(shape, layout, torch.bool, seed, True, fill)


def random_index(shape: Shape, layout: str, dtype: torch.dtype, seed: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    layout = "inside" if layout == "odd" else layout
    outside = BEYOND if dtype == torch.int64 else 2**30
    fill = lambda count: torch.randint(max(rows, 1), (count,), generator=generator)  # noqa: E731
    return laid_out(shape, layout, dtype, seed, outside, fill)


def spoil(x: Tensor, keep: Tensor, seed: int) -> Tensor:
    """A copy of x, of dense rows, that holds NaN and infinities where ``keep`` is False."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.tensor([math.nan, math.inf, -math.inf, 3.0], dtype=x.dtype)
    bad = choice[torch.randint(4, tuple(x.shape), generator=generator)]
    return torch.where(keep, x, bad)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


# -------------------------------------------------------------------------------------- strategies

seeds = st.integers(0, 2**31)
layouts = st.sampled_from(LAYOUTS)
small = st.sampled_from(SIZES)


@st.composite
def batches(draw: st.DrawFn, largest: int = 300) -> list[int]:
    """Up to three dimensions, rarely seven, whose product is bounded; one may be 0."""
    dims = draw(st.sampled_from((0, 1, 1, 1, 2, 2, 3, 7)))
    shape: list[int] = []
    for _ in range(dims):
        room = largest // max(math.prod(shape), 1)
        size = draw(st.sampled_from([s for s in (*SIZES, 128, 257) if s <= max(room, 1)]))
        shape.append(size if dims < 4 else min(size, 2))
    if shape and draw(st.integers(0, 14)) == 0:
        shape[draw(st.integers(0, dims - 1))] = 0
    return shape


@st.composite
def smaller(draw: st.DrawFn, batch: Sequence[int], dims_too: bool = True) -> list[int]:
    """A shape that broadcasts to ``batch``; often that itself."""
    if draw(st.booleans()):
        return list(batch)
    shape = [size if draw(st.booleans()) else 1 for size in batch]
    return shape[draw(st.integers(0, len(shape))) :] if dims_too else shape
