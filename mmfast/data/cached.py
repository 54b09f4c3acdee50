"""The files of the feature cache, memory-mapped safetensors, and how features are read from them.

A part is a file of n samples. It holds ``keys`` (n, 32), the hashes of the contents; ``values``,
(n, D) or, for tokens, those of all samples one below the other (sum of lengths, D); ``mask`` alike;
for tokens ``lengths`` (n,); and as metadata a checksum of all that.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfast.data.content import raw_bytes
from mmfast.data.files import check_header, own_file
from mmfast.data.table import need
from mmfast.plugins import Batch

Pending = tuple[bytes, Tensor, Tensor]
"""Key, values (D,) or (T, D), and mask () or (T,) of one sample."""

_JOIN_BYTES = 1 << 30
_STALE_SECONDS = 3600.0


class CachedSample(NamedTuple):
    """Features of one row: values (D,) and a mask (), or values (T, D) and a mask (T,)."""

    values: Tensor
    mask: Tensor


class Part:
    """One file, memory-mapped: what is not asked for is not read.

    Args:
        path: of the file.
        check: whether to compare its checksum.

    Raises:
        ValueError: it is damaged, or something else.
        FileNotFoundError: another run has just joined it with others.
    """

    def __init__(self, path: Path, check: bool = True) -> None:
        self.path = path
        try:
            with path.open("rb") as start:
                check_header(start.read(8))
            with need("safetensors").safe_open(path, framework="pt") as file:
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                digest = (file.metadata() or {}).get("digest")
        except FileNotFoundError:
            raise
        except Exception as error:  # SafetensorError, and whatever damaged bytes lead to
            raise ValueError(str(error)) from error
        if not {"keys", "values", "mask"} <= set(self._tensors):
            raise ValueError("it is not a file of this cache")
        if check and digest != _digest(self._tensors):
            raise ValueError("its checksum is wrong")
        self.values, self.mask = self._tensors["values"], self._tensors["mask"]
        lengths = self._tensors.get("lengths")
        self._ends = None if lengths is None else lengths.cumsum(0)

    def __reduce__(self) -> Any:
        return Part, (self.path, False)

    @property
    def keys(self) -> list[bytes]:
        """The hash of the content of each sample."""
        flat, width = self._tensors["keys"].numpy().tobytes(), 32
        return [flat[start : start + width] for start in range(0, len(flat), width)]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that the file holds."""
        return self._tensors

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return self.values.nbytes

    def sample(self, place: int) -> CachedSample:
        """Values and mask of one sample."""
        if self._ends is None:
            return CachedSample(self.values[place], self.mask[place])
        here = slice(int(self._ends[place - 1]) if place else 0, int(self._ends[place]))
        return CachedSample(self.values[here], self.mask[here])


class CachedFeatures:
    """The features of the rows of a table. Made by :func:`mmfast.data.cache_features`.

    It goes to workers as the names of its files.
    """

    def __init__(
        self, parts: Sequence[Part], part_of: Tensor, place_of: Tensor, width: int, tokens: bool
    ) -> None:
        self._parts = list(parts)
        self._part_of, self._place_of = part_of, place_of
        self._width, self._tokens = width, tokens
        self._dtype = parts[0].values.dtype if parts else torch.float32

    def sample(self, row: int) -> CachedSample | None:
        """The features of one row of the table; None if it is missing."""
        part, place = int(self._part_of[row]), int(self._place_of[row])
        return None if part < 0 else self._parts[part].sample(place)

    def batch(self, rows: Tensor) -> Batch:
        """``values`` and ``mask`` of the rows, int64 (B,), as :meth:`collate` gives them."""
        if self._tokens:
            return self.collate([self.sample(row) for row in rows.tolist()])
        # index_select: a third of the time of advanced indexing.
        part_of, place_of = (
            self._part_of.index_select(0, rows),
            self._place_of.index_select(0, rows),
        )
        if len(self._parts) == 1 and int(part_of.min()) == 0:
            part = self._parts[0]
            values = part.values.index_select(0, place_of)
            return {"values": values, "mask": part.mask.index_select(0, place_of)}
        values = torch.zeros(len(rows), self._width, dtype=self._dtype)
        mask = torch.zeros(len(rows), dtype=torch.bool)
        for number in part_of.unique().tolist():
            if number >= 0:
                here = part_of == number
                values[here] = self._parts[number].values[place_of[here]]
                mask[here] = self._parts[number].mask[place_of[here]]
        return {"values": values, "mask": mask}

    def collate(self, samples: Sequence[CachedSample | None]) -> Batch:
        """B samples, None where one is missing: ``Features(**batch)`` are the encoder's.

        Returns:
            ``values`` (B, D) and ``mask`` (B,), or (B, T, D) and (B, T), T the longest, at least 1;
            zeros and False where there is nothing.
        """
        shape: tuple[int, ...] = (len(samples),)
        if self._tokens:
            shape = (len(samples), max([1, *(len(s.mask) for s in samples if s is not None)]))
        values = torch.zeros(*shape, self._width, dtype=self._dtype)
        mask = torch.zeros(shape, dtype=torch.bool)
        for number, sample in enumerate(samples):
            if sample is not None:
                place: Any = (number, slice(len(sample.mask))) if self._tokens else number
                values[place], mask[place] = sample.values, sample.mask
        return {"values": values, "mask": mask}


def read_parts(folder: Path, known: Sequence[Part] = ()) -> list[Part]:
    """All parts in a folder; damaged ones are told by a warning and removed.

    Args:
        folder: of one encoder.
        known: parts that need not be opened and checked again.
    """
    for unfinished in folder.glob(".part-*"):  # of runs that were killed
        with suppress(FileNotFoundError):
            if time.time() - unfinished.stat().st_mtime > _STALE_SECONDS:
                unfinished.unlink()
    opened = {part.path: part for part in known}
    parts = []
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            parts.append(opened.get(path) or Part(path))
        except FileNotFoundError:  # another run has joined it with others just now
            return read_parts(folder, parts)
        except ValueError as error:
            warnings.warn(
                f"the cached features in {path} are damaged ({error}); they are computed anew",
                stacklevel=3,
            )
            path.unlink(missing_ok=True)
    return parts


def write_part(folder: Path, samples: Sequence[Pending]) -> None:
    """Store samples in a new part.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left of it then.
    """
    keys, values, masks = zip(*samples, strict=True)
    tensors = {"keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, 32)}
    if masks[0].dim() == 0:
        tensors |= {"values": torch.stack(values), "mask": torch.stack(masks)}
    else:
        lengths = [_length(mask) for mask in masks]  # padding is that of a batch: not kept
        cut = zip(values, masks, lengths, strict=True)
        pairs = [(value[:length], mask[:length]) for value, mask, length in cut]
        tensors["values"] = torch.cat([value for value, _ in pairs])
        tensors["mask"] = torch.cat([mask for _, mask in pairs])
        tensors["lengths"] = torch.tensor(lengths)
    _write(folder, tensors)


def join_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Make few large files of many small ones: a batch then finds its rows in few places.

    One process at a time: of two that join the same parts, each would leave them once more.
    """
    with open(folder / ".joining", "a", opener=own_file) as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        _join(folder, [part for part in parts if part.path.exists()])


def _join(folder: Path, parts: Sequence[Part]) -> None:
    group: list[Part] = []
    for part in sorted(parts, key=lambda part: part.nbytes):
        if sum(one.nbytes for one in group) + part.nbytes > _JOIN_BYTES:
            break
        group.append(part)
    if len(group) < 2:
        return
    tensors = {name: torch.cat([part.tensors[name] for part in group]) for name in group[0].tensors}
    _write(folder, tensors)
    for part in group:
        part.path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that a rename in the folder outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    name = uuid.uuid4().hex
    path, unfinished = folder / f"part-{name}.safetensors", folder / f".part-{name}"
    try:
        need("safetensors.torch").save_file(ready, unfinished, {"digest": _digest(ready)})
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(folder)
    except Exception as error:  # safetensors has an exception of its own for a full disk
        raise OSError(f"the feature cache {folder} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _length(mask: Tensor) -> int:
    valid = mask.nonzero()
    return int(valid[-1]) + 1 if len(valid) else 0
