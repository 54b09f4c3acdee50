"""What a cell holds, as a hash: equal for equal contents, whatever the files are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from PIL import Image

from mmfast.data.files import Unreadable, file_bytes
from mmfast.data.images import Frames
from mmfast.data.read import ColumnSpec, cell_error, is_missing, read_cell
from mmfast.data.table import Table
from mmfast.plugins import Waveform


def content_of(table: Table, row: int, spec: ColumnSpec) -> bytes | None:
    """The hash, 32 bytes, of the content of a modality of a row; None if it is missing.

    Of images and recordings it is that of the bytes of the file; of other modalities, that of what
    has been read.

    Raises:
        CellError: the cell cannot be read.
    """
    if is_missing(table, row, spec):
        return None
    digest = blake2b(spec.modality.encode(), digest_size=32)
    try:
        for piece in _pieces(table, row, spec):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    except Unreadable as error:
        raise cell_error(table, row, spec, error) from error
    return digest.digest()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's elements, in order; without a copy where they are contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _pieces(table: Table, row: int, spec: ColumnSpec) -> Iterator[Any]:
    if spec.modality in ("image", "audio"):
        cell = table.cell(row, spec.column)
        if isinstance(cell, (torch.Tensor, Image.Image, Waveform)):
            yield from _of_object(cell)
        else:
            yield file_bytes(cell, table.base if spec.root is None else spec.root)
        return
    raw = read_cell(table, row, spec)
    if isinstance(raw, Frames):
        for index in range(len(raw)):
            yield raw.bytes(index)
    elif spec.modality == "video":
        for frame in raw:
            yield from _of_object(frame)
    elif isinstance(raw, torch.Tensor):
        yield from _of_object(raw)
    else:
        yield json.dumps(raw, sort_keys=True).encode()


def _of_object(raw: Any) -> Iterator[Any]:
    if isinstance(raw, Waveform):
        yield str(raw.sample_rate).encode()
        raw = raw.samples
    if isinstance(raw, Image.Image):
        yield f"{raw.mode} {raw.size}".encode()
        yield raw.tobytes()
    else:
        yield f"{raw.dtype} {tuple(raw.shape)}".encode()
        yield raw_bytes(raw)
