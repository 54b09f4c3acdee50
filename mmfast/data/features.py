"""Precomputed features from arrays on disk, memory-mapped: one row of a large file is cheap."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfast.data.files import Unreadable, check_header, file_bytes, locate, named
from mmfast.data.shards import Member
from mmfast.data.table import need

MAX_VALUES = 1 << 28
"""Most numbers of a sample of precomputed features: 1 GiB as float32."""


def read_features(cell: Any, root: Path | None) -> torch.Tensor:
    """Features that something else has computed, as float32 (D,), or (T, D) for a sequence.

    Args:
        cell: path of a ``.npy`` file, or ``x.npy#3`` for row 3 of one; of a ``.safetensors`` file
            with one tensor, or ``x.safetensors#name``; bytes or member of either; a list of
            numbers, or its JSON.
        root: the folder that files must lie in.

    Raises:
        Unreadable: none of these; a damaged file, pickled objects in it; another shape, more than
            ``MAX_VALUES`` numbers, or some that are not finite in float32.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"is no JSON list of numbers: {error}") from error
    if isinstance(cell, (list, tuple, np.ndarray)):
        return _vector(_array(cell))
    if isinstance(cell, torch.Tensor):
        return _vector(cell)
    if isinstance(cell, (Member, bytes)):
        return _vector(_array_of(file_bytes(cell, root), named(cell)))
    if not isinstance(cell, str):
        raise Unreadable(f"the cell is a {type(cell).__name__}; it must be a path or a list")
    name, _, part = cell.partition("#") if _has_part(cell) else (cell, "", "")
    path = locate(name, root)
    if name.lower().endswith(".npy"):
        return _vector(_npy(path, name, part))
    if name.lower().endswith(".safetensors"):
        return _vector(_safetensors(path, name, part))
    raise Unreadable("features are read from .npy and .safetensors files", name)


def _has_part(cell: str) -> bool:
    return cell.rpartition("#")[0].lower().endswith((".npy", ".safetensors"))


def _array(cell: Any) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is told later
            return np.asarray(cell, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise Unreadable(f"the list must hold numbers, or rows of equal length: {error}") from error


def _npy(path: str, name: str, part: str) -> np.ndarray:
    try:
        # Mapped, so that one row of a file does not cost the file; never pickled objects.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers lead numpy to many kinds
        raise Unreadable(f"is no readable .npy array: {error}", name) from error
    if not isinstance(array, np.ndarray):
        raise Unreadable("is an archive of several arrays; save one array by numpy.save", name)
    if not part:
        return array
    held = len(array) if array.ndim else 0
    if not part.isdecimal() or len(part) > 18 or int(part) >= held:
        raise Unreadable(f"has {held} rows; there is no row {part[:99]!r}", name)
    return array[int(part)]


def _array_of(data: bytes, name: str) -> Any:
    if data[:6] == b"\x93NUMPY":
        try:
            return _array_in(data)
        except Exception as error:
            raise Unreadable(f"is no readable .npy array: {error}", name) from error
    try:
        check_header(data[:8])
        tensors = need("safetensors.torch").load(data)
    except Exception as error:
        raise Unreadable(f"is neither .npy nor .safetensors: {error}", name) from error
    return tensors[_only(list(tensors), "", name)]


def _array_in(data: bytes) -> np.ndarray:
    """The array of a .npy file in memory; numpy would take what the header declares first."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"it has version {version} of the format")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    declared, held = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if declared != held:
        raise ValueError(f"it declares {declared} bytes and holds {held}")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _safetensors(path: str, name: str, part: str) -> torch.Tensor:
    try:
        with open(path, "rb") as start:
            check_header(start.read(8))
        with need("safetensors").safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(_only(list(file.keys()), part, name))
            return tensor
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"is no readable .safetensors file: {error}", name) from error


def _only(names: list[str], part: str, path: str) -> str:
    if part in names or (not part and len(names) == 1):
        return part or names[0]
    told = ", ".join(names[:10])
    wanted = f"there is no {part!r}" if part else f"say which, as {path}#{(names or ['name'])[0]}"
    raise Unreadable(f"holds {len(names)} tensors ({told}); {wanted}", path)


def _vector(values: Any) -> torch.Tensor:
    """Numbers of any kind as float32 (D,) or (T, D); Unreadable for other shapes, and for NaN."""
    if len(values.shape) not in (1, 2) or 0 in values.shape:
        raise Unreadable(f"has shape {tuple(values.shape)}; features are (D,) or (T, D), not empty")
    size = int(np.prod(values.shape, dtype=np.int64))
    if size > MAX_VALUES:
        raise Unreadable(f"holds {size} numbers; a sample may have {MAX_VALUES}: cut it")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiub":
            raise Unreadable(f"holds {values.dtype}; features are numbers")
        with np.errstate(over="ignore"):
            values = torch.from_numpy(np.array(values, dtype=np.float32))
    elif values.is_complex():
        raise Unreadable(f"holds {values.dtype}; features are real numbers")
    tensor: torch.Tensor = values.to(torch.float32)
    if not bool(tensor.isfinite().all()):
        bad = int((~tensor.isfinite()).sum())
        raise Unreadable(f"holds {bad} numbers that are NaN, infinite or beyond float32")
    return tensor
