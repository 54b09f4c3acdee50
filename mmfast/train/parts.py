"""What the engine is given, and what it tells: the parts of a training, its progress, listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmfast.train.batches import Batches
from mmfast.train.config import Stage
from mmfast.train.tasks import Task


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where."""


@dataclass
class Progress:
    """How far training has come; JSON in the checkpoint.

    Attributes:
        stage: index of the current stage.
        epoch: of the stage, from 0.
        epoch_step: optimizer steps taken in the epoch.
        stage_step: optimizer steps taken in the stage.
        step: optimizer steps taken in all.
        loss_sum: of the epoch so far on all ranks, each batch's mean loss times its weight.
        loss_weight: the sum of these weights.
        best: the best value of the stage's metric so far.
        bad_epochs: epochs since then.
        lr_cut: what the plateau schedule has multiplied the rates by.
        done: whether all stages have ended.
        history: a record per epoch.
        seconds: spent so far, by part: data, forward, backward, step, evaluation, checkpoints. On a
            GPU ``forward`` launches what ``backward`` then waits for.
    """

    stage: int = 0
    epoch: int = 0
    epoch_step: int = 0
    stage_step: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    best: float | None = None
    bad_epochs: int = 0
    lr_cut: float = 1.0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Parts:
    """What is trained and on what.

    Attributes:
        model: a ``MultimodalModel`` or ``RetrievalModel``.
        task: its loss and metrics.
        train: batches to learn from, by batch size.
        val: batches to measure on after each epoch; None without a validation split.
        facts: for the manifest of the checkpoints: versions, plugins.
        state: for the state of the checkpoints: what rebuilds the model.
    """

    model: nn.Module
    task: Task
    train: Callable[[int], Batches]
    val: Batches | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


class Listener:
    """What is told of training as it goes; a console or a test overrides what it wants."""

    def on_epoch_start(self, stage: Stage, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch begins, or goes on after ``done`` of its ``steps`` steps."""

    def on_step(self, loss: float, rows: int) -> None:
        """A step of ``rows`` rows was taken."""

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        """An epoch ended; ``record`` is its entry of the history."""
