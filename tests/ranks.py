"""Launches ``mmfast`` on several ranks, as torchrun would, and in a fraction of its time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfast.train.checkpoint import Checkpoint, load_checkpoint

SCRIPT = Path(__file__).parent / "train" / "forked.py"


@dataclass
class Ended:
    """How the ranks ended: by rank their statuses (minus the signal that killed one), their output
    and their errors."""

    status: list[int]
    out: list[str]
    err: list[str]


class Ranks:
    """A process that forks ranks; they end with it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.running: list[int] = []
        assert self._answer(180) == "ready"

    def start(self, ranks: int, folder: Path, *arguments: Any, code: str = "") -> list[int]:
        """Start ``mmfast`` with some arguments; returns the processes."""
        self.folder = folder
        launch = {"ranks": ranks, "arguments": list(map(str, arguments)), "code": code}
        self._ask({**launch, "folder": str(folder)})
        self.running = self._answer(60)
        return self.running

    def wait(self, timeout: float = 150) -> Ended:
        """Wait for the ranks that were started; those that hang are killed, and fail the test."""
        self._ask(self.running)
        try:
            status = self._answer(timeout)
        except TimeoutError:
            for pid in self.running:
                os.kill(pid, signal.SIGKILL)
            self._answer(60)
            raise
        finally:
            said = [
                [(self.folder / f"{name}-{rank}").read_text() for rank in range(len(self.running))]
                for name in ("out", "err")
            ]
            self.running = []
        return Ended(status, *said)

    def run(self, ranks: int, folder: Path, *arguments: Any, code: str = "") -> Ended:
        """Start, wait, and expect that all goes well."""
        self.start(ranks, folder, *arguments, code=code)
        ended = self.wait()
        assert ended.status == [0] * ranks, "\n".join(ended.err)[-3000:]
        return ended

    def close(self) -> None:
        """End the process that forks."""
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def _ask(self, what: Any) -> None:
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def _answer(self, timeout: float) -> Any:
        found, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not found:
            raise TimeoutError(f"the ranks did not answer within {timeout} s")
        return json.loads(self.process.stdout.readline())


def wait_for(path: Path, seconds: float = 150) -> None:
    """Wait until a file is there."""
    for _ in range(int(seconds * 50)):
        if path.exists():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path} did not come")


def last(run: Path) -> Checkpoint:
    """The last checkpoint of a run."""
    return load_checkpoint(run / "last")


def history(run: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs."""
    return last(run).state["progress"]["history"]
