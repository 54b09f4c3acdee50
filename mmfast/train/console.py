"""Progress on a terminal: a bar per epoch with rate, loss and time left, a line when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmfast.train.config import Stage
from mmfast.train.parts import Listener


class Console(Listener):
    """Prints how training goes; a context manager. Without a terminal, the lines alone."""

    def __init__(self, console: RichConsole | None = None) -> None:
        self.console = console or RichConsole()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} rows/s  loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Console:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def on_prepare(self, what: str, done: int, total: int) -> None:
        """Shows a bar for work before training, such as reading files or filling a cache."""
        if not self.bar.tasks or self.bar.tasks[-1].description != what:
            self._new_bar(what, total, 0)
        self.bar.update(self.bar.task_ids[-1], completed=done, total=total)

    def on_epoch_start(self, stage: Stage, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Starts a bar."""
        self._new_bar(f"{stage.name} {epoch + 1}/{epochs}", steps, done)
        self.mean, self.rows = 0.0, 0

    def on_step(self, loss: float, rows: int) -> None:
        """Moves the bar; the loss shown is a moving average."""
        self.rows += rows
        self.mean = loss if self.mean == 0 else 0.95 * self.mean + 0.05 * loss
        task = self.bar.tasks[-1]
        rate = f"{self.rows / task.elapsed:.0f}" if task.elapsed else "-"
        self.bar.update(task.id, advance=1, rate=rate, loss=f"{self.mean:.4g}")

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        """Prints one line: losses and metrics."""
        values = {k: v for k, v in record.items() if isinstance(v, float) and k != "seconds"}
        told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        head = f"{record['stage']} epoch {record['epoch']}"
        line = f"{head}  {told}  ({record['seconds']:.1f} s)"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _new_bar(self, what: str, total: int, done: int) -> None:
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.bar.add_task(what, total=total, completed=done, rate="-", loss="-")
