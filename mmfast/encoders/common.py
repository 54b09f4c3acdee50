"""What the encoders share: missing samples, padding, pooling, images, checks of options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.plugins.contract import Features

LICENCE = "Apache-2.0"


def stack(
    samples: Sequence[Tensor | None], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """B samples of one shape, None where one is missing, as one tensor.

    Where one is missing stands one of the others, in turn, or zeros if there is none: what batch
    norm learns in training is then learnt from samples alone, not from blanks.

    Returns:
        values (B, \\*shape); present, bool (B,).
    """
    values = torch.zeros(len(samples), *shape, dtype=dtype)
    there = [sample for sample in samples if sample is not None]
    missing = 0
    for row, sample in zip(values, samples, strict=True):
        if sample is None and there:
            sample = there[missing % len(there)]
            missing += 1
        if sample is not None:
            row.copy_(sample)
    return values, torch.tensor([sample is not None for sample in samples], dtype=torch.bool)


def pad(
    samples: Sequence[Tensor | None],
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """B sequences (T_b, \\*shape), None where one is missing, padded at the end.

    Returns:
        values (B, T, \\*shape), T the longest, at least 1, zeros as padding; mask, bool (B, T),
        True = valid.
    """
    lengths = [0 if sample is None else len(sample) for sample in samples]
    values = torch.zeros(len(samples), max([1, *lengths]), *shape, dtype=dtype)
    for row, sample, length in zip(values, samples, lengths, strict=True):
        if sample is not None:
            row[:length] = sample
    ends = torch.tensor(lengths, dtype=torch.int64)[:, None]
    return values, torch.arange(values.shape[1]) < ends


def valid(values: Tensor, mask: Tensor) -> Features:
    """Features whose invalid vectors are zero, and let no gradient through.

    Args:
        values: (B, D) or (B, T, D), finite.
        mask: bool (B,) or (B, T).
    """
    return Features(values.masked_fill(~mask[..., None], 0), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the valid vectors of each sequence; zeros where there is none.

    Args:
        values: (B, T, D).
        mask: bool (B, T).
    """
    total = values.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def pool(values: Tensor, mask: Tensor, output: str) -> Features:
    """Tokens (B, T, D) and their mask as they are, or as pooled features, their masked mean."""
    if output == "tokens":
        return valid(values, mask)
    return Features(masked_mean(values, mask), mask.any(dim=1))


def groups(modules: Iterable[nn.Module]) -> list[list[nn.Parameter]]:
    """The parameters of each module; modules without any are left out."""
    found = [list(module.parameters()) for module in modules]
    return [parameters for parameters in found if parameters]


def read_image(
    raw: Any, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """An image at the size and on the scale that an encoder wants.

    The middle of the image, as large as the aspect ratio of ``size`` allows, is resized (bilinear,
    with antialiasing).

    Args:
        raw: a PIL image of any mode, or a uint8 tensor (3, H, W), RGB in 0..255.
        size: height and width of the result.
        mean: of each channel, on the 0..1 scale.
        std: likewise.

    Returns:
        float32 (3, \\*size).
    """
    pixels = _crop(rgb(raw), size)
    if tuple(pixels.shape[1:]) != size:
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    scale = torch.tensor(std)[:, None, None] * 255
    return (pixels - torch.tensor(mean)[:, None, None] * 255) / scale


def shifted(image: Tensor, pixels: int) -> Tensor:
    """An image (3, H, W), moved by chance, up to ``pixels`` along each side; the border repeats."""
    height, width = image.shape[1:]
    padded = F.pad(image[None], (pixels,) * 4, mode="replicate")[0]
    top, left = torch.randint(0, 2 * pixels + 1, (2,)).tolist()
    return padded[:, top : top + height, left : left + width]


def rgb(raw: Any) -> Tensor:
    """The pixels of a PIL image of any mode, or a uint8 tensor (3, H, W): uint8 (3, H, W).

    Raises:
        TypeError: neither of these.
        ValueError: an image without pixels.
    """
    if isinstance(raw, Tensor):
        pixels = raw
    elif callable(getattr(raw, "convert", None)):  # a PIL image; PIL itself need not be there
        pixels = torch.from_numpy(np.array(raw.convert("RGB"))).permute(2, 0, 1)
    else:
        raise TypeError(
            f"image is a {type(raw).__name__}; it must be a PIL image or a uint8 tensor (3, H, W)"
        )
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] != 3:
        raise TypeError(
            f"image is a {pixels.dtype} tensor of shape {tuple(pixels.shape)}; it must be uint8 "
            "(3, H, W), RGB in 0..255"
        )
    if 0 in pixels.shape:
        raise ValueError(f"image has shape {tuple(pixels.shape)}; it must have at least one pixel")
    return pixels


def _crop(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = pixels.shape[1:]
    scale = min(height / size[0], width / size[1])
    rows = min(height, max(1, round(size[0] * scale)))
    columns = min(width, max(1, round(size[1] * scale)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[:, top : top + rows, left : left + columns]


def whole(name: str, value: object, least: int = 1) -> int:
    """``value`` itself, or ValueError unless it is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an int of at least {least}")
    return value


def wholes(name: str, values: Sequence[int], least: int = 1) -> tuple[int, ...]:
    """``values`` as a tuple, or ValueError unless it is one or more ints of at least ``least``."""
    given = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not given or not all(
        isinstance(value, int) and not isinstance(value, bool) and value >= least
        for value in values
    ):
        raise ValueError(
            f"{name} is {values!r}; it must be a list of one or more ints of at least {least}"
        )
    return tuple(values)


def size_2d(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width: of two ints, or one int for both."""
    both = (value, value) if isinstance(value, int) else value
    if not isinstance(both, Sequence) or len(both) != 2:
        raise ValueError(f"{name} is {value!r}; it must be an int, or two: height and width")
    return whole(name, both[0]), whole(name, both[1])


def share(name: str, value: float) -> float:
    """``value`` itself, or ValueError unless it is a probability below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; it must be at least 0 and below 1")
    return value


def one_of(name: str, value: object, choices: Sequence[str]) -> Any:
    """``value`` itself, or ValueError unless it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    return value
