"""The folder of a run: one run at a time trains in it, all its ranks in the same one."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from accelerate import Accelerator

from mmfast.data.files import own_file
from mmfast.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from mmfast.train.config import Config, config_from_yaml, differences
from mmfast.train.parts import TrainingError
from mmfast.train.ranks import exchange, together

_STATE = {
    "progress", "labels", "options", "fold", "fingerprint",
    "optimizer", "rng", "scaler", "step_rows",
}  # fmt: skip
_SHOWN_WITHIN_SECONDS = 5


@contextmanager
def locked(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep a second process from training in the same folder; see that all ranks share it."""
    with ExitStack() as held:
        token = uuid4().hex if accelerator.is_main_process else ""
        with together(accelerator):
            if accelerator.is_main_process:
                held.enter_context(_lock(folder, token))
        token = exchange(accelerator, token)[0]
        with together(accelerator):
            if not accelerator.is_main_process and not _shows(folder / ".lock", token):
                raise TrainingError(
                    f"run.dir {folder.absolute()} on {socket.gethostname()} is not the folder that "
                    "rank 0 trains in: it must be on storage that all ranks share"
                )
        yield


@contextmanager
def _lock(folder: Path, token: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a", opener=own_file)  # noqa: SIM115
    except OSError as error:
        raise TrainingError(f"run.dir {folder} cannot be written to: {error.strerror}") from error
    with handle:
        try:
            # Not flock: the workers of a run that was killed would hold on to it for seconds.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"another process is training in {folder}") from error
        handle.truncate(0)
        handle.write(token)
        handle.flush()
        yield


def _shows(file: Path, token: str) -> bool:
    """Whether a file holds a text; network storage may show it some seconds late."""
    for _ in range(_SHOWN_WITHIN_SECONDS * 10):
        with suppress(OSError):
            if file.read_text() == token:
                return True
        time.sleep(0.1)
    return False


def former_checkpoint(
    config: Config, folder: Path, resume: bool, accelerator: Accelerator
) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one and it is wanted."""
    with together(accelerator):
        return _former(config, folder, resume, accelerator.num_processes)


def _former(config: Config, folder: Path, resume: bool, ranks: int) -> Checkpoint | None:
    if not (folder / "last").is_symlink() and not (folder / "last").exists():
        return None
    if not resume:
        raise TrainingError(
            f"{folder} holds a run already; go on with it by --resume auto, or choose another "
            "run.dir"
        )
    checkpoint = read_run(folder / "last")
    former = config_from_yaml(checkpoint.config, str(checkpoint.path / "config.yaml"))
    besides: tuple[str, ...] = (
        "run", "data.workers", "data.cache", "train.strategy", "train.timeout",
    )  # fmt: skip
    if len(checkpoint.state["rng"]) != ranks:  # so that the batch of all ranks can stay as it was
        besides += ("train.batch_size", "train.accumulate")
    changed = differences(former, config, besides)
    if changed:
        raise TrainingError(
            f"{folder} was trained with another configuration and cannot be resumed with this one: "
            f"{'; '.join(changed)}"
        )
    return checkpoint


def read_run(path: Path) -> Checkpoint:
    """A checkpoint of a run.

    Raises:
        CheckpointError: there is none, it was altered, or it is of something else.
    """
    checkpoint = load_checkpoint(path)
    lacking = _STATE - set(checkpoint.state)
    if lacking:
        raise CheckpointError(
            f"{path} is of no run of mmfast: its state lacks {', '.join(sorted(lacking))}"
        )
    return checkpoint
