"""Features of frozen encoders, computed once and read from memory-mapped files ever after.

What a feature is stored under is made of the content of the cell and of everything about the
encoder: a file that changes, another option, other weights or another version never meet a stale
feature. Any number of runs and tables share one folder. What is read has the bits that were
computed; computed anew in batches of another size, the last bits may differ, as those of matrix
products do.
"""

from __future__ import annotations

import errno
import json
import re
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfast.data.cached import CachedFeatures, Part, Pending, join_parts, read_parts, write_part
from mmfast.data.content import content_of, raw_bytes
from mmfast.data.dataset import MultimodalDataset, detached_preprocess, make_loader, raised
from mmfast.data.read import ColumnSpec
from mmfast.data.table import Progress, Table
from mmfast.plugins import Encoder, Features

# Changes whenever reading or storing changes what an encoder would see or what is kept.
_VERSION = 1
_FLUSH_BYTES = 64 << 20
_FLUSH_SECONDS = 60.0
_HASHED_AT_ONCE = 1024


def cache_features(
    folder: str | Path,
    encoder: Encoder,
    *,
    identity: Mapping[str, Any],
    table: Table,
    spec: ColumnSpec,
    rows: Tensor,
    name: str = "features",
    missing: Collection[tuple[int, str]] = frozenset(),
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CachedFeatures:
    """The features of rows: from the cache as far as they are there, otherwise computed and stored.

    What has been computed is stored every minute, and when an error or an interruption ends it, so
    the next call goes on from there. A damaged file is told by its checksum, and its features are
    computed anew. Every file that the rows name is read once, for its hash.

    Args:
        folder: of the cache; made if it is not there.
        encoder: in evaluation mode while it computes, then as it was. Its ``preprocess`` must not
            be random in that mode.
        identity: what tells this encoder from others besides its spec and weights, as JSON holds
            it: name, options, and distribution and version of the plugin.
        table: where the cells are.
        spec: of the modality.
        rows: int64 (N,), the rows of the table.
        name: of the modality, in ``missing`` and in the name of the subfolder.
        missing: as for :class:`mmfast.data.MultimodalDataset`.
        batch_size: of the encoder.
        workers: processes that read and preprocess, and threads that hash.
        device: where the encoder computes; by default where its parameters are.
        progress: called with what is done and what there is: one for each row hashed, one for each
            encoded.

    Raises:
        CellError: a cell cannot be read.
        OSError: the folder cannot be written, such as on a full disk; what was stored stays.
    """
    home = _home(Path(folder), name, encoder, identity)
    absent = {row for row, other in missing if other == name}
    present = [row for row in rows.tolist() if row not in absent]
    keys = _keys(table, spec, present, workers, progress)
    parts = read_parts(home)
    known = {key for part in parts for key in part.keys}
    wanted: dict[bytes, int] = {}
    for row, key in keys.items():
        if key not in known:
            wanted.setdefault(key, row)
    if wanted:
        features = _encoded(
            encoder, table, spec, list(wanted.values()), batch_size, workers, device
        )
        pending = ((key, *one) for key, one in zip(wanted, features, strict=True))
        _store(home, _told(pending, progress, 2 * len(present), len(wanted)))
        parts = read_parts(home, parts)
        join_parts(home, parts)
        parts = read_parts(home, parts)
    elif progress:
        progress(2 * len(present), 2 * len(present))
    return _assembled(parts, keys, len(table), encoder)


def _home(folder: Path, name: str, encoder: Encoder, identity: Mapping[str, Any]) -> Path:
    """The subfolder of this encoder, with a note for people of what it is."""
    module: Any = encoder
    digest = blake2b(digest_size=16)
    for entry, value in sorted(module.state_dict().items()):
        digest.update(entry.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(raw_bytes(value))
        else:
            digest.update(repr(value).encode())
    facts = {
        "version": _VERSION,
        "identity": dict(identity),
        "spec": asdict(encoder.spec),
        "weights": digest.hexdigest(),
    }
    text = json.dumps(facts, sort_keys=True, indent=2, default=str)
    short = blake2b(text.encode(), digest_size=8).hexdigest()
    home = folder / f"{re.sub(r'[^a-zA-Z0-9._-]', '_', name)}-{short}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _note(home, text)
    except OSError as error:
        raise OSError(f"the feature cache {home} cannot be written: {error.strerror}") from error
    return home


def _note(home: Path, text: str) -> None:
    """Write encoder.json by a rename, which does not follow a link that somebody left there."""
    if home.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")
    fresh = home / f".encoder-{uuid.uuid4().hex}"
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(home / "encoder.json")


def _keys(
    table: Table, spec: ColumnSpec, rows: Sequence[int], workers: int, progress: Progress | None
) -> dict[int, bytes]:
    """The hash of the content of each row's cell; rows whose cell is empty are left out."""
    found: dict[int, bytes] = {}
    hashed = partial(content_of, table, spec=spec)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(rows), _HASHED_AT_ONCE):
            some = rows[start : start + _HASHED_AT_ONCE]
            for row, key in zip(some, pool.map(hashed, some), strict=True):
                if key is not None:
                    found[row] = key
            if progress:
                progress(start + len(some), 2 * len(rows))
    return found


@torch.no_grad()
def _encoded(
    encoder: Encoder,
    table: Table,
    spec: ColumnSpec,
    rows: Sequence[int],
    batch_size: int,
    workers: int,
    device: torch.device | str | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and mask of each row, on the CPU."""
    module: Any = encoder
    if device is None:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
    loader = make_loader(
        MultimodalDataset(
            table, {"x": spec}, torch.tensor(rows), {"x": detached_preprocess(encoder, False)}
        ),
        {"x": encoder.collate},
        batch_size=batch_size,
        num_workers=workers,
    )
    training = module.training
    module.eval()
    try:
        for batch in raised(loader):
            features: Features = encoder(batch.to(device).inputs["x"])
            yield from zip(features.values.cpu(), features.mask.cpu(), strict=True)
    finally:
        module.train(training)


def _told(
    pending: Iterable[Pending], progress: Progress | None, total: int, left: int
) -> Iterator[Pending]:
    for done, one in enumerate(pending, start=total - left + 1):
        yield one
        if progress:
            progress(done, total)


def _store(home: Path, samples: Iterable[Pending]) -> None:
    pending: list[Pending] = []
    held, since = 0, time.monotonic()
    try:
        for one in samples:
            pending.append(one)
            held += one[1].nbytes
            if held >= _FLUSH_BYTES or time.monotonic() - since >= _FLUSH_SECONDS:
                write_part(home, pending)
                pending, held, since = [], 0, time.monotonic()
    finally:
        if pending:
            write_part(home, pending)


def _assembled(
    parts: Sequence[Part], keys: Mapping[int, bytes], count: int, encoder: Encoder
) -> CachedFeatures:
    """Where each row of the table is; parts that none needs are left out."""
    places: dict[bytes, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for place, key in enumerate(part.keys):
            places.setdefault(key, (number, place))
    used = sorted({places[key][0] for key in keys.values()})
    part_of = torch.full((count,), -1, dtype=torch.int64)
    place_of = torch.zeros(count, dtype=torch.int64)
    for row, key in keys.items():
        number, place = places[key]
        part_of[row], place_of[row] = used.index(number), place
    spec = encoder.spec
    chosen = [parts[number] for number in used]
    return CachedFeatures(chosen, part_of, place_of, spec.out_dim, spec.output == "tokens")
