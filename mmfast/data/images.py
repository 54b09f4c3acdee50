"""Images and videos from files. What a file declares is checked before it is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps, ImageSequence, features

from mmfast.data.files import Unreadable

MAX_PIXELS = 89_478_485
"""Largest image, in pixels; Pillow's own limit, 256 MiB of RGB."""
MAX_VIDEO_PIXELS = 1 << 27
"""Pixels of all frames of an animation together, since they are decoded at once."""
_LEAST_FRAME = 1 << 12  # what the objects of a frame take besides, in pixels
IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
    ".avif",
)


def decode_image(data: bytes) -> Image.Image:
    """An image file's bytes as an RGB image, upright, over white where it is transparent.

    Raises:
        Unreadable: no image of a format in ``IMAGE_SUFFIXES``, damaged, truncated, or of more than
            ``MAX_PIXELS``; 16-bit grey is scaled to 8 bits, images of floats are refused.
    """
    try:
        return _rgb(ImageOps.exif_transpose(_open(data)))
    except Unreadable:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise Unreadable(f"is no readable image: {_said(error)}") from error


def decode_animation(data: bytes) -> list[Image.Image]:
    """The frames of a GIF, WebP or PNG animation's bytes, each as :func:`decode_image` gives it.

    Raises:
        Unreadable: as there; or all frames together have more than ``MAX_VIDEO_PIXELS``.
    """
    frames: list[Image.Image] = []
    try:
        image = _open(data)
        pixels = 0
        for frame in ImageSequence.Iterator(image):
            # Of each frame, since a later one may be larger than the first.
            pixels += max(_LEAST_FRAME, frame.width * frame.height)
            if pixels > MAX_VIDEO_PIXELS:
                raise Unreadable(
                    f"has more than {len(frames)} frames of {frame.width} x {frame.height}; at "
                    f"most {MAX_VIDEO_PIXELS} pixels are decoded: give a folder of frames instead"
                )
            frames.append(_rgb(frame.copy()))
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"is no readable animation: {_said(error)}") from error
    return frames


class Frames(Sequence[Image.Image]):
    """The frames of a video as a sequence of images, each decoded when it is asked for.

    Encoders look at a few of many frames, so the rest is never read.

    Args:
        names: what stands for each frame.
        read: the bytes of one of them; raises Unreadable.
    """

    def __init__(self, names: Sequence[Any], read: Callable[[Any], bytes]) -> None:
        self._names = names
        self._read = read

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Frames:
        if isinstance(index, slice):
            return Frames(self._names[index], self._read)
        name = self._names[index]
        try:
            return decode_image(self._read(name))
        except Unreadable as error:
            raise Unreadable(f"frame {name} {error.reason}", error.path) from error

    def bytes(self, index: int) -> bytes:
        """One frame as it is in its file."""
        return self._read(self._names[index])


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sorting key that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(
            f"declares {image.width} x {image.height} pixels; an image may have {MAX_PIXELS}"
        )
    return image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    # Not all that Pillow knows: for EPS it would run Ghostscript on a stranger's program.
    own = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
    return (*own, "AVIF") if features.check("avif") else own


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 and not scale
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise Unreadable("has 32-bit pixels; images have 8 or 16 bits a channel")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise Unreadable("has floating-point pixels, whose range is unknown; save it with 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return paper
    return image.convert("RGB")


def _said(error: Exception) -> str:
    # Pillow's own says "<_io.BytesIO object at 0x...>" and no more.
    unknown = type(error).__name__ == "UnidentifiedImageError"
    return "its format is not known" if unknown else f"{error}" or type(error).__name__
