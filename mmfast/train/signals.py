"""Requests to stop: a run that is told to ends at a step boundary, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed
from accelerate import Accelerator


class Interruption:
    """Whether somebody asked training to stop.

    Attributes:
        signal: number of the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

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
    """Turn SIGTERM and SIGINT into a request to stop; a second one ends the process at once.

    Outside the main thread, where Python delivers no signals, nothing is listened to.
    """
    interruption = Interruption()
    former = {}

    def receive(number: int, frame: FrameType | None) -> None:
        if interruption.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        interruption.signal = number

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                former[number] = signal.signal(number, receive)
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
