"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A run's checkpoints lie in ``RUN/checkpoints/step-N``; ``RUN/last`` and ``RUN/best`` are symbolic
links to two of them. A checkpoint is written under another name, forced to disk and renamed, and
only then does the link move, by one atomic rename. A process killed at any moment leaves the former
checkpoint in place, and at most a folder that nothing names, which the next save removes.

There is no pickle in them and loading one executes nothing: tensors are read by safetensors, the
rest as JSON, and every file is compared with its digest in the manifest. Nothing is written through
a symbolic link that somebody left in the folder, and only checkpoints are removed.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmfast.data.files import check_header

FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_CONFIG = "config.yaml"
_LONGEST_TEXT = 1 << 26

Tensors = Mapping[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or must not be loaded; the message says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: its folder.
        tensors: by file (``"model"``, ``"optimizer"``, ...), tensors by name, on the CPU.
        state: everything that is no tensor.
        config: the resolved configuration, as YAML.
        manifest: versions and plugins that wrote it.
    """

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    config: str
    manifest: dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    *,
    tensors: Mapping[str, Tensors],
    state: Mapping[str, Any],
    config: str,
    facts: Mapping[str, Any],
    links: Sequence[str] = ("last",),
) -> Path:
    """Write one checkpoint, move the links to it, and remove those that no link names.

    Args:
        run: folder of the run; it is made where it is absent.
        step: optimizer steps taken; names the folder.
        tensors: by file name without suffix, tensors by name. They may share memory and be strided.
        state: what JSON can hold.
        config: the resolved configuration, as YAML.
        facts: for the manifest: versions, plugins.
        links: which of ``last`` and ``best`` are to name it.

    Returns:
        The folder written.

    Raises:
        CheckpointError: it could not be written; what was there before is intact.
    """
    folder = run / "checkpoints"
    target = _free_name(folder, step)
    partial = folder / f".partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link; make it a folder", str(folder))
        _remove_partial(folder)
        partial.mkdir()
        _write_files(partial, tensors, state, config, facts)
        _sync_folder(partial)
        os.replace(partial, target)
        _sync_folder(folder)
        for link in links:
            _point(run, link, target)
        _sync_folder(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_why_not_written(target, error)) from error
    _remove_unnamed(run, folder)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check every file against its digest.

    Args:
        path: its folder, such as ``RUN/last``.

    Raises:
        CheckpointError: there is none, it is of another format, or a file is absent or altered.
    """
    manifest = _read_manifest(path)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; {path} is no whole checkpoint")
        if file.suffix != ".safetensors":
            _check_length(file)
        if _digest(file) != digest:
            raise CheckpointError(
                f"{file} is not the file that was saved: its SHA-256 differs from the one in "
                f"{_MANIFEST}; restore it, or resume from another checkpoint"
            )
        if file.suffix == ".safetensors":
            try:
                with file.open("rb") as start:
                    check_header(start.read(8))
                tensors[file.stem] = load_file(file)
            except (SafetensorError, ValueError) as error:
                raise CheckpointError(f"{file} is no safetensors file: {error}") from error
    for name in (_STATE, _CONFIG):
        if name not in manifest["files"]:
            raise CheckpointError(f"{path / _MANIFEST} lists no {name}; it is no mmfast checkpoint")
    state = _json(path / _STATE)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _STATE} is not of an mmfast checkpoint")
    config = (path / _CONFIG).read_text(encoding="utf-8")
    return Checkpoint(path, tensors, state, config, manifest)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Any]:
    """An optimizer's state as tensors by name, ``"3.exp_avg"``, and the rest ready for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, rest: Any) -> None:
    """Put back what :func:`flatten_optimizer` took out.

    Raises:
        CheckpointError: the optimizer is of other parameters.
    """
    try:
        state: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in rest["scalars"].items()
        }
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's optimizer is of another model: {error}") from error


def _free_name(folder: Path, step: int) -> Path:
    """A name that no checkpoint has: what a link points at is never replaced in place."""
    name = f"step-{step:08d}"
    names = itertools.chain([name], (f"{name}-{again}" for again in itertools.count(1)))
    return next(folder / name for name in names if not (folder / name).exists())


def _write_files(
    folder: Path,
    tensors: Mapping[str, Tensors],
    state: Mapping[str, Any],
    config: str,
    facts: Mapping[str, Any],
) -> None:
    for name, values in tensors.items():
        # safetensors refuses tensors that share memory; copies of what is shared cost little here.
        save_file(_separate(values), folder / f"{name}.safetensors")
    (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
    (folder / _CONFIG).write_text(config, encoding="utf-8")
    files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, **facts, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _separate(values: Tensors) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    result = {}
    for name, value in values.items():
        value = value.detach().cpu().contiguous()
        start = value.untyped_storage().data_ptr()
        whole = value.numel() * value.element_size() == value.untyped_storage().nbytes()
        result[name] = value.clone() if start in seen or not whole else value
        seen.add(start)
    return result


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / _MANIFEST).is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} holds no checkpoint: there is no file {_MANIFEST}")
    manifest = _json(path / _MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or "format" not in manifest:
        raise CheckpointError(f"{path / _MANIFEST} is not of an mmfast checkpoint")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {manifest['format']}; this mmfast reads {FORMAT}: use "
            f"the mmfast that wrote it ({manifest.get('mmfast', 'unknown')})"
        )
    for name in files:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise CheckpointError(
                f"{path / _MANIFEST} names {name!r}, which lies outside its folder"
            )
    return manifest


def _json(file: Path) -> Any:
    _check_length(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error


def _check_length(file: Path) -> None:
    size = file.stat().st_size
    if size > _LONGEST_TEXT:
        raise CheckpointError(f"{file} has {size} bytes; it may have {_LONGEST_TEXT}")


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(run: Path, link: str, target: Path) -> None:
    """Make ``run/link`` a relative link to ``target``, in one atomic step."""
    fresh = run / f".{link}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.relative_to(run), target_is_directory=True)
    os.replace(fresh, run / link)


def _remove_partial(folder: Path) -> None:
    for left in folder.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _remove_unnamed(run: Path, folder: Path) -> None:
    named = {(run / link).resolve() for link in ("last", "best")}
    for found in folder.glob("step-*"):
        if found.resolve() in named or found.is_symlink() or not (found / _MANIFEST).is_file():
            continue
        with suppress(OSError):  # under another name, since half of one is no checkpoint any more
            found.rename(folder / f".partial-{os.getpid()}-{found.name}")
    _remove_partial(folder)
    for left in run.glob(".last-*"), run.glob(".best-*"):
        for link in left:
            link.unlink(missing_ok=True)


def _why_not_written(target: Path, error: Exception) -> str:
    reason = str(error)
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "No space left" in reason:
        reason = "the disk is full; make room and resume"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = f"the folder cannot be written to ({error}); choose another run.dir"
    return f"{target} could not be written: {reason}. The checkpoints before it are intact."
