"""From a cell of a table to the raw sample that an encoder preprocesses.

What each modality takes is said at :func:`read_cell`. Nothing here trusts a file: sizes are checked
before memory is taken, pickles are not loaded, and paths do not leave their folder.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmfast.data.audio import decode_audio
from mmfast.data.features import read_features
from mmfast.data.files import Unreadable, file_bytes, locate, named
from mmfast.data.images import IMAGE_SUFFIXES, Frames, decode_animation, decode_image, natural
from mmfast.data.shards import Member
from mmfast.data.table import Table
from mmfast.plugins import MODALITIES, Waveform

_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class CellError(ValueError):
    """A cell that cannot be read.

    Attributes:
        row: its row in the table, from 0.
        column: its column, or the modality where no column is to blame.
        path: the file, empty if there is none.
        reason: what is wrong.
    """

    def __init__(
        self, reason: str, *, row: int = -1, column: str = "", path: str = "", where: str = ""
    ) -> None:
        place = f"{where}, column {column!r}" if where else ""
        super().__init__(": ".join(part for part in (place, path, reason) if part))
        self.row, self.column, self.path, self.reason = row, column, path, reason


@dataclass(frozen=True)
class ColumnSpec:
    """One modality of a table.

    Attributes:
        column: name of the column; not looked at for tabular data.
        modality: one of ``mmfast.plugins.MODALITIES``.
        root: folder that its files must lie in; by default that of the table.
        fields: for tabular data, the columns that make up a sample.
    """

    column: str
    modality: str
    root: Path | None = None
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(
                f"ColumnSpec: modality is {self.modality!r}; it must be one of "
                f"{', '.join(MODALITIES)}"
            )
        if self.modality == "tabular" and not self.fields:
            raise ValueError("ColumnSpec: tabular data needs fields, the columns it is made of")

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns of the table that it reads."""
        return self.fields if self.modality == "tabular" else (self.column,)


def check_columns(table: Table, specs: Mapping[str, ColumnSpec]) -> None:
    """Raise TableError for the first column that the table does not have."""
    for spec in specs.values():
        for name in spec.sources:
            table.column(name)


def is_missing(table: Table, row: int, spec: ColumnSpec) -> bool:
    """Whether the table holds nothing for this modality of the row; no file is looked at."""
    return all(table.cell(row, name) is None for name in spec.sources)


def read_cell(table: Table, row: int, spec: ColumnSpec) -> Any:
    """The raw sample of one modality of a row, None if it is missing.

    ============ =================================================== ==============================
    modality     cell                                                sample
    ============ =================================================== ==============================
    image        path of an image (PNG, JPEG, WebP, GIF, BMP, TIFF)  PIL image, RGB
    text         the text itself                                     str
    audio        path of a recording (WAV, FLAC, OGG, MP3, AIFF)     ``Waveform``
    video        path of a folder of frames, or of an animation      sequence of PIL images
                 (GIF, WebP, PNG); a list of paths
    tabular      the cells of ``fields``                             dict from column to cell
    features     path of .npy or .safetensors; a list of numbers     float32 (D,) or (T, D)
    ============ =================================================== ==============================

    Instead of a path, a cell may hold the bytes of the file, be a member of a shard, or, for image
    and video, be what the encoder takes already. ``x.npy#3`` is row 3 of an array and
    ``x.safetensors#name`` the tensor of that name. In tabular data a string that is written as a
    number (``3.5``, not ``007``) is one, since a CSV file has no types.

    Raises:
        CellError: the cell cannot be read. Sizes that a file declares are held against
            ``MAX_PIXELS``, ``MAX_VIDEO_PIXELS``, ``MAX_SAMPLES``, ``MAX_VALUES`` and ``MAX_FILE``.
    """
    if is_missing(table, row, spec):
        return None
    try:
        if spec.modality == "tabular":
            return _tabular(table, row, spec.fields)
        cell = table.cell(row, spec.column)
        root = table.base if spec.root is None else spec.root
        return _READERS[spec.modality](cell, root)
    except Unreadable as error:
        raise cell_error(table, row, spec, error) from error


def cell_error(table: Table, row: int, spec: ColumnSpec, error: Exception) -> CellError:
    """What went wrong with a cell, told with its place in the table."""
    column = spec.column or spec.modality
    path, reason = "", f"{error}" or type(error).__name__
    if isinstance(error, CellError):
        return error
    if isinstance(error, Unreadable):
        path, reason = error.path, error.reason
    if not path and spec.modality in ("image", "audio", "video", "features"):
        path = named(table.cell(row, spec.column))
    return CellError(reason, row=row, column=column, path=path, where=table.where(row))


def _image(cell: Any, root: Path | None) -> Any:
    if isinstance(cell, (torch.Tensor, Image.Image)):
        return cell
    return decode_image(file_bytes(cell, root))


def _text(cell: Any, root: Path | None) -> str:
    if isinstance(cell, (Member, bytes)):
        try:
            return file_bytes(cell, root).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"is no UTF-8 text: {error.reason}") from error
    if not isinstance(cell, (str, int, float)):
        raise Unreadable(f"the cell is a {type(cell).__name__}; it must be a text")
    text = str(cell)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write half of a character
            raise Unreadable(f"the text is no valid Unicode: {error.reason}") from error
    return text


def _audio(cell: Any, root: Path | None) -> Waveform:
    return cell if isinstance(cell, Waveform) else decode_audio(file_bytes(cell, root))


def _video(cell: Any, root: Path | None) -> Any:
    if isinstance(cell, torch.Tensor):
        return cell
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"is no JSON list of paths: {error}") from error
    if isinstance(cell, (list, tuple)):
        if not cell:
            raise Unreadable("the list of frames is empty")
        return Frames(cell, _Files(root))
    if isinstance(cell, str):
        path = locate(cell, root, folder=True)
        if os.path.isdir(path):
            return _folder(cell, path, root)
        if not cell.lower().endswith((".gif", ".webp", ".png", ".apng", ".avif")):
            raise Unreadable(
                "is no folder of frames and no GIF, WebP or PNG animation; videos are decoded "
                "beforehand, such as by: ffmpeg -i clip.mp4 clip/%05d.png",
                cell,
            )
    return decode_animation(file_bytes(cell, root))


def _folder(cell: str, path: str, root: Path | None) -> Frames:
    names = [name for name in os.listdir(path) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise Unreadable(f"holds no frames; they end in {', '.join(IMAGE_SUFFIXES)}", cell)
    return Frames([os.path.join(cell, name) for name in sorted(names, key=natural)], _Files(root))


@dataclass(frozen=True)
class _Files:
    """Reads the files of one root; a class because frames travel to other processes."""

    root: Path | None

    def __call__(self, cell: Any) -> bytes:
        return file_bytes(cell, self.root)


def _tabular(table: Table, row: int, fields: Sequence[str]) -> dict[str, Any]:
    found = {name: table.cell(row, name) for name in fields}
    for name, value in found.items():
        if not (value is None or isinstance(value, (str, int, float))):
            raise Unreadable(
                f"the cell of {name!r} is a {type(value).__name__}; tabular cells are numbers and "
                "strings"
            )
    return {
        name: _number(value) if isinstance(value, str) else value for name, value in found.items()
    }


def _number(text: str) -> float | str:
    """A CSV file has no types: what is written as a number is one, 007 and nan are not."""
    if not _NUMBER.fullmatch(text):
        return text
    value = float(text)
    return value if math.isfinite(value) else text


_READERS: dict[str, Callable[[Any, Path | None], Any]] = {
    "image": _image,
    "text": _text,
    "audio": _audio,
    "video": _video,
    "features": read_features,
}
