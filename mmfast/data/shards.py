"""WebDataset shards: tar files whose neighbours with one name and different endings are one sample.

The shards are searched once for where their members lie; after that any row is read directly, so
rows can be shuffled, split and resumed as those of any other table. The format is that of
https://github.com/webdataset/webdataset: ``a/0001.jpg`` and ``a/0001.cls`` are the columns ``jpg``
and ``cls`` of the sample ``a/0001``.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.data.table import Progress, SparseColumn, Table, TableError, TextColumn, packed

KEY = "__key__"
# What these endings hold is small, and is needed as values: it is read while searching.
_TEXTS = ("txt", "text", "transcript", "caption", "cls", "cls2", "class", "id", "index", "json")
_LONGEST_TEXT = 1 << 24
_MOST_SHARDS = 100_000
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """Where a file lies inside a tar file."""

    shard: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes; OSError if the shard has become shorter since it was searched."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise OSError(f"{self.shard} has become shorter since it was searched")
        return data

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


class MemberColumn(Sequence[Any]):
    """The members of one ending, in arrays: a million of them take 20 MB and not 300."""

    def __init__(self, shards: Sequence[str], keys: Sequence[str], ending: str) -> None:
        self._shards, self._keys, self._ending = shards, keys, ending
        self._places: Any = []

    def append(self, row: int, shard: int, offset: int, size: int) -> None:
        """Note where the member of a row lies; rows come in ascending order."""
        self._places.append((row, shard, offset, size))

    def close(self, keys: Sequence[str]) -> None:
        """Pack the places once all are known."""
        self._keys = keys
        if 8 * len(self._places) < len(keys):
            self._places = SparseColumn({row: at for row, *at in self._places}, len(keys))
            return
        table = np.full((len(keys), 3), -1, dtype=np.int64)
        places = np.asarray(self._places, dtype=np.int64)
        table[places[:, 0]] = places[:, 1:]
        self._places = table

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, row: Any) -> Any:
        place = self._places[row]
        if place is None or place[0] < 0:
            return None
        shard, offset, size = map(int, place)
        return Member(self._shards[shard], f"{self._keys[row]}.{self._ending}", offset, size)


def read_shards(pattern: str, progress: Progress | None = None) -> Table:
    """The table of WebDataset shards.

    Args:
        pattern: path of a tar file, with ``{0000..0007}``, ``{a,b}`` or shell wildcards.
        progress: called after each shard with how many are done and how many there are.

    Returns:
        A table with a column for each ending and ``__key__``, the common part of the names. Members
        that end in txt, text, transcript, caption, cls, cls2, class, id or index are strings; each
        key of a json member is a column ``json.<key>``; any other cell says where the member lies,
        and ``read_cell`` reads it.

    Raises:
        TableError: no such shard, one that is compressed, truncated or no tar file, or a sample
            with two files of one ending.
    """
    shards = _shards(pattern)
    keys: list[str] = []
    members: dict[str, MemberColumn] = {}
    values: dict[str, dict[int, Any]] = {}
    for number, shard in enumerate(shards):
        rows: dict[str, int] = {}
        seen: set[tuple[int, str]] = set()
        for tar, info in _files(shard):
            key, ending = _parts(info.name)
            if not ending:
                continue
            if key not in rows:
                rows[key] = len(keys)
                keys.append(key)
            row = rows[key]
            if (row, ending) in seen:
                raise TableError(f"{shard}: the sample {key!r} has two files that end in .{ending}")
            seen.add((row, ending))
            if ending in _TEXTS:
                for name, value in _values(shard, ending, info, tar):
                    values.setdefault(name, {})[row] = value
            else:
                column = members.setdefault(ending, MemberColumn(shards, keys, ending))
                column.append(row, number, info.offset_data, info.size)
        if progress:
            progress(number + 1, len(shards))
    if not keys:
        raise TableError(f"{pattern} is empty: the shards hold no files with an ending")
    names = TextColumn(keys)
    for column in members.values():
        column.close(names)
    texts = {name: _texts(found, len(keys)) for name, found in values.items()}
    return Table({KEY: names, **members, **texts}, Path(shards[0]).parent, pattern)


def _texts(found: dict[int, Any], count: int) -> Sequence[Any]:
    column = packed(found, count)
    if isinstance(column, list) and all(isinstance(value, str) for value in found.values()):
        return TextColumn(value or "" for value in column)
    return column


def _shards(pattern: str) -> list[str]:
    found: list[str] = []
    if pattern.count("{") < 100:
        for one in _braces(pattern):
            found += _wildcards(one)
            if len(found) > _MOST_SHARDS:
                break
        else:
            return found
    raise TableError(f"{pattern[:200]!r} names more than {_MOST_SHARDS} shards")


def _braces(pattern: str) -> Iterator[str]:
    """``a{1..3}`` as a1, a2, a3 and ``a{x,y}`` as ax, ay, as a shell does."""
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        yield pattern
        return
    first, last, listed = found.groups()
    choices: Iterable[str]
    if listed is not None:
        choices = listed.split(",")
    else:
        choices = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    for choice in choices:
        yield from _braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _wildcards(path: str) -> list[str]:
    if Path(path).is_file():
        return [path]
    found = sorted(glob.glob(path))
    if not found:
        raise TableError(f"there is no shard {path} (looked from {Path.cwd()})")
    return found


def _files(shard: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar file; links and devices are left out."""
    try:
        with tarfile.open(shard, "r:") as tar, open(shard, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _BLOCK))
            # An archive ends with blocks of zeros; tarfile does not mind if they are not there.
            if any(file.read()):
                raise TableError(f"{shard} is truncated: it lacks the mark of its end")
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if info.size < 0:  # tarfile would follow a negative one back, for ever
                    raise TableError(
                        f"{shard} is no readable tar file: {info.name!r} declares {info.size} bytes"
                    )
                if not info.isreg() or info.issparse():
                    continue
                yield tar, info
    except TableError:
        raise
    except (tarfile.TarError, ValueError) as error:
        raise TableError(
            f"{shard} is no readable tar file: {error}; it must be complete and uncompressed"
        ) from error
    except OSError as error:
        raise TableError(f"{shard} cannot be read: {error.strerror}") from error


def _parts(name: str) -> tuple[str, str]:
    """``a/0001.seg.png`` as ``a/0001`` and ``seg.png``; no ending for what is no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or base.startswith("__"):
        return name, ""
    return f"{folder}{slash}{stem}", ending.lower()


def _values(
    shard: str, ending: str, info: tarfile.TarInfo, tar: tarfile.TarFile
) -> Iterator[tuple[str, Any]]:
    file = tar.extractfile(info)
    if info.size > _LONGEST_TEXT or file is None:
        raise TableError(f"{shard}: {info.name} has {info.size} bytes; texts have {_LONGEST_TEXT}")
    try:
        text = file.read().decode("utf-8")
        if ending != "json":
            yield ending, text.strip()
            return
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{shard}: {info.name} is no valid {ending}: {error}") from error
    if not isinstance(facts, dict):
        raise TableError(f"{shard}: {info.name} must hold a JSON object")
    for name, value in facts.items():
        yield f"json.{name}", value
