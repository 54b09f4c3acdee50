"""An encoder in the workers of a DataLoader, started both ways."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

TIMEOUT = 180  # seconds; a worker that hangs is told, not waited for

_spawned: tuple[BaseProcess, Connection] | None = None


class Pipeline:
    """``preprocess`` and ``collate`` as a DataLoader's ``collate_fn``."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def __call__(self, raws: Sequence[Any]) -> Any:
        """A batch from raw samples."""
        return self.encoder.collate([self.encoder.preprocess(raw) for raw in raws])


def batch_of_forked_worker(encoder: Any, raws: Sequence[Any]) -> Any:
    """The batch that a forked worker makes."""
    with warnings.catch_warnings():
        # Python 3.12 and newer warn of a fork while threads run; that is what DataLoader does.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            list(raws),  # type: ignore[arg-type]
            batch_size=len(raws),
            num_workers=1,
            multiprocessing_context="fork",
            collate_fn=Pipeline(encoder),
            timeout=TIMEOUT,
        )
        return next(iter(loader))


def batch_of_spawned_worker(encoder: Any, raws: Sequence[Any]) -> Any:
    """The batch that a spawned worker makes.

    One worker serves all checks of the process: starting one takes as long as importing torch. It
    is no pool of concurrent.futures, whose threads would be there when the other check forks.

    Raises:
        RuntimeError: what the worker raised, with its traceback, or that it died or hangs.
    """
    global _spawned
    # By value and as bytes: torch's own way passes tensors as open files.
    sent = pickle.dumps((encoder, list(raws)))
    if _spawned is None:
        _spawned = _start()
    process, connection = _spawned
    try:
        connection.send_bytes(pickle.dumps(sys.path))
        connection.send_bytes(sent)
        if not connection.poll(TIMEOUT):
            raise EOFError(f"no answer in {TIMEOUT} s")
        batch, error = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError) as died:
        process.kill()
        _spawned = None
        raise RuntimeError(f"the spawned worker died or hangs: {died}") from died
    if error:
        raise RuntimeError(f"in the spawned worker: {error}")
    return batch


def _start() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)  # ends with this process
    process.start()
    there.close()
    return process, here


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # what a plugin prints is no output of the command that checks it
    while True:
        try:
            sys.path[:] = pickle.loads(connection.recv_bytes())
            received = connection.recv_bytes()
        except EOFError:
            return
        batch, error = None, ""
        try:
            encoder, raws = pickle.loads(received)
            batch = Pipeline(encoder)(raws)
        except Exception:  # told to who asked
            error = traceback.format_exc()
        connection.send_bytes(pickle.dumps((batch, error)))
