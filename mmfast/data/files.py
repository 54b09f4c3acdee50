"""From what a cell holds to bytes, without following it out of its folder.

Manifests come from strangers. A cell may name files inside the root folder of its column, after all
symbolic links, and nothing else: not ``../../.ssh/id``, not a link that leads there, not ``/etc``,
no device and no pipe. Whoever wants more says so in the configuration, by a wider root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmfast.data.shards import Member

MAX_FILE = 1 << 30
"""Largest file that is read whole, in bytes."""
MAX_HEADER = 1 << 25
"""Longest header of a safetensors file, in bytes; parsed it takes ten times as much."""


class Unreadable(ValueError):
    """A cell that cannot be read: why, and the file if there is one."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason
        self.path = path

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.path)


def locate(cell: str, root: Path | None, *, folder: bool = False) -> str:
    """The real path of the file that a cell names.

    Args:
        cell: path, relative to ``root`` or absolute.
        root: the folder that it must lie in.
        folder: whether it may be a folder.

    Raises:
        Unreadable: it is not there, leads out of ``root``, or is neither a file nor such a folder.
    """
    if "://" in cell:
        raise Unreadable("is an address; only files are read: download it, and name the file", cell)
    if root is None:
        raise Unreadable("is a path, but the table has no folder; set root for this column", cell)
    home = _real(os.path.join(os.getcwd(), root))  # a notebook may change its folder
    try:
        path = os.path.realpath(os.path.join(home, cell))
        if os.path.commonpath([home, path]) != home:
            raise Unreadable(
                f"leads out of the folder {home}, to {path}; set root for this column to a folder "
                "that holds all its files, and write paths relative to it or inside it",
                cell,
            )
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise Unreadable(f"there is no such file (in {home})", cell) from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}", cell) from error
    except ValueError as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"is no path: {error}", repr(cell)) from error
    if not (stat.S_ISREG(mode) or (folder and stat.S_ISDIR(mode))):
        kind = "is a folder" if stat.S_ISDIR(mode) else "is a device, a pipe or a socket"
        raise Unreadable(f"{kind}; it must be a file{' or a folder' if folder else ''}", cell)
    return path


def file_bytes(cell: Any, root: Path | None) -> bytes:
    """What a cell stands for: a path, bytes, a member of a shard, or ``{"bytes", "path"}``.

    Raises:
        Unreadable: it is none of these, cannot be read, or is longer than ``MAX_FILE``.
    """
    if isinstance(cell, Mapping) and "path" in cell and "bytes" in cell:
        cell = cell["path"] if cell["bytes"] is None else cell["bytes"]  # as datasets stores files
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Member):
        _check_size(cell.size, str(cell))
        try:
            return cell.read()
        except OSError as error:
            raise Unreadable(f"cannot be read: {error}", str(cell)) from error
    if not isinstance(cell, str):
        raise Unreadable(f"the cell is a {type(cell).__name__}; it must be the path of a file")
    path = locate(cell, root)
    try:
        with open(path, "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, cell)
            return file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}", cell) from error


def check_header(first: bytes) -> None:
    """Raise ValueError if a safetensors file, by its first 8 bytes, has too long a header."""
    size = int.from_bytes(first, "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header declares {size} bytes; it may have {MAX_HEADER}")


def own_file(path: str, flags: int) -> int:
    """``opener`` of ``open``: a file here, none elsewhere by a link that was left here, no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def named(cell: Any) -> str:
    """The path that a cell names, for errors; empty if it names none."""
    if isinstance(cell, Mapping):
        cell = cell.get("path")
    return str(cell)[:500] if isinstance(cell, (str, Member)) else ""


def _check_size(size: int, path: str) -> None:
    if size > MAX_FILE:
        raise Unreadable(f"has {size} bytes; a file may have {MAX_FILE}", path)


@lru_cache(maxsize=64)
def _real(root: str) -> str:
    return os.path.realpath(root)
