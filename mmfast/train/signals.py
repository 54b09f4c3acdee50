"""Requests to stop: a run that is told to ends at a step boundary, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed
from accelerate import Accelerator

_SAME_REQUEST_SECONDS = 1.0


class Interruption:
    """Whether somebody asked training to stop.

    Attributes:
        signal: number of the signal that was received, or None.
        since: when, by ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any rank was told to stop; all ranks get the same answer."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        told = torch.tensor([self.signal or 0], device=accelerator.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        self.signal = int(told.item()) or None
        return self.signal is not None


@contextmanager
def listen() -> Iterator[Interruption]:
    """Turn SIGTERM and SIGINT into a request to stop; a later one ends the process at once.

    Not one that comes within a second: schedulers signal torchrun and its ranks, and torchrun
    passes it on to them.

    Outside the main thread, where Python delivers no signals, nothing is listened to.
    """
    interruption = Interruption()
    former = {}

    def receive(number: int, frame: FrameType | None) -> None:
        if interruption.signal is None:
            interruption.signal, interruption.since = number, time.monotonic()
        elif time.monotonic() - interruption.since > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                former[number] = signal.signal(number, receive)
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
