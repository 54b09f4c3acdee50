"""The training loop, over accelerate: stages, epochs, steps; saved and resumed at any step.

It reads from `train` downwards. Everything that decides the next step's bits is in the checkpoint:
weights, optimizer, averages, random states, the position in the epoch; the learning rate and the
order of rows are functions of the position. On the CPU, a run that was killed and resumed therefore
ends with the bits of one that was not.

Several ranks are one run: each step's gradient is that of all their rows together, and everything
that decides (losses, metrics, whether to stop) is the same number on each of them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmfast.train.batches import Batches, ModelBatch
from mmfast.train.checkpoint import Checkpoint, save_checkpoint
from mmfast.train.clock import Clock
from mmfast.train.config import Config, Stage, to_yaml
from mmfast.train.learner import Learner
from mmfast.train.parts import Listener, Parts, Progress, TrainingError
from mmfast.train.ranks import exchange, meet, on_first, together
from mmfast.train.rng import restore_rng_state, rng_state
from mmfast.train.schedule import lr_factor
from mmfast.train.signals import Interruption
from mmfast.train.tasks import SMALLER_IS_BETTER


def train(
    parts: Parts,
    config: Config,
    accelerator: Accelerator,
    *,
    resume: Checkpoint | None = None,
    listener: Listener | None = None,
    interruption: Interruption | None = None,
) -> Progress:
    """Train ``parts.model`` in place, saving checkpoints in ``config.run.dir``.

    Args:
        parts: model, task, data.
        config: how to train.
        accelerator: from :func:`make_accelerator`.
        resume: the checkpoint to go on from.
        listener: is told how it goes.
        interruption: asked after each step whether to stop; then a checkpoint is saved first.

    Returns:
        The progress made; ``done`` unless interrupted.

    Raises:
        TrainingError: the loss is not finite, or nothing can be trained.
        CheckpointError: a checkpoint cannot be written, or ``resume`` does not fit.
    """
    run = _Run(parts, config, accelerator, listener or Listener(), interruption or Interruption())
    if resume is not None:
        run.progress = Progress(**resume.state["progress"])
    stages = config.train.stages or (Stage(name="train"),)
    while run.progress.stage < len(stages) and not run.progress.done:
        run.start_stage(stages[run.progress.stage], resume)
        resume = None
        if not run.finish_stage():
            return run.progress
        run.progress.stage += 1
        _begin_stage(run.progress)
        run.progress.done = run.progress.stage == len(stages)
        run.save()
    return run.progress


class _Run:
    """The objects of a training in progress."""

    def __init__(
        self,
        parts: Parts,
        config: Config,
        accelerator: Accelerator,
        listener: Listener,
        interruption: Interruption,
    ) -> None:
        self.parts, self.config, self.accelerator = parts, config, accelerator
        self.listener, self.interruption = listener, interruption
        self.progress = Progress()

    def start_stage(self, stage: Stage, resume: Checkpoint | None) -> None:
        """Build what the stage trains, and put it where the checkpoint left it."""
        train = self.config.train
        self.stage = stage
        self.clock = Clock(self.progress.seconds)
        self.epochs = stage.epochs or train.epochs
        batch_size = stage.batch_size or train.batch_size
        self.batches = self.parts.train(batch_size)
        self.steps_per_epoch = math.ceil(self.batches.count / train.accumulate)
        self.step_rows = batch_size * train.accumulate * self.accelerator.num_processes
        within = self.progress.stage_step > 0
        self.learner = Learner(
            self.parts, self.config, self.accelerator, stage, self.progress.stage, resume, within
        )
        if resume is not None:
            self._restore(resume)

    def finish_stage(self) -> bool:
        """Run the epochs that remain; whether the stage came to its end."""
        stopping = self.config.train.early_stopping
        patience = stopping.patience if stopping else math.inf
        while self.progress.epoch < self.epochs and self.progress.bad_epochs < patience:
            if not self._finish_epoch():
                return False
            self._end_epoch()
        self.learner.finish()
        return True

    def _finish_epoch(self) -> bool:
        progress = self.progress
        self.listener.on_epoch_start(
            self.stage, progress.epoch, self.epochs, self.steps_per_epoch, progress.epoch_step
        )
        self.learner.train()
        self.started = time.monotonic()
        every = self.config.run.checkpoint_steps
        done = min(progress.epoch_step * self.config.train.accumulate, self.batches.count)
        number = self.config.seed * 1_000_003 + progress.stage * 10_007 + progress.epoch
        self.clock.lap(None)
        for micro in self._read(self.batches, self.config.train.accumulate, number, done):
            self.clock.lap("data")
            self._step(micro)
            self.clock.lap("step")
            stop = self.interruption.agreed(self.accelerator)
            if stop or (every and progress.step % every == 0):
                self.save()
                self.clock.lap("checkpoints")
            if stop:
                return False
        return True

    def _read(
        self, batches: Batches, size: int, number: int = 0, start: int = 0
    ) -> Iterator[list[_Weighted]]:
        """The batches of an epoch, ``size`` at a time, and what they weigh in a mean of losses.

        What one rank cannot read ends them all.
        """
        chunks = _chunks(batches.epoch(number, start), size)
        for _ in range(math.ceil((batches.count - start) / size)):
            found: list[ModelBatch] = []
            failed = None
            try:
                found = next(chunks)
            except Exception as error:
                failed = error
            own = [0.0 if b.filler else self.learner.weight(b.labels, b.rows) for b in found]
            padding = [0.0] * (size - len(own))  # of the last; and where reading failed
            of_all = meet(self.accelerator, failed, *own, *padding)
            yield [_Weighted(*each) for each in zip(found, own, of_all, strict=False)]

    def _step(self, micro: Sequence[_Weighted]) -> None:
        """One optimizer step; its gradient is that of one batch of all the ranks' rows."""
        progress, learner, ranks = self.progress, self.learner, self.accelerator.num_processes
        factor = progress.lr_cut * lr_factor(
            self.config.train,
            progress.stage_step,
            self.steps_per_epoch * self.epochs,
            self.steps_per_epoch,
        )
        for group in learner.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        learner.optimizer.zero_grad()
        weight = sum(each.of_all for each in micro)
        total, failed = 0.0, None
        for number, each in enumerate(micro):
            last = number == len(micro) - 1
            with nullcontext() if last else learner.accumulating():
                loss, _ = self._loss(learner.wrapped, each.batch)
                self.clock.lap("forward")
                # The ranks' gradients are averaged: those of a part are to be as many times larger.
                share = each.of_all if learner.joint else each.own * ranks
                self.accelerator.backward(loss * (share / weight))
            value = loss.item()  # waits for a GPU
            if not each.batch.filler:
                total += value * each.own
                failed = failed or _not_finite(value, each.batch, progress)
            self.clock.lap("backward")
        (total,) = meet(self.accelerator, failed or learner.unreached(), total)
        learner.update()
        progress.epoch_step += 1
        progress.stage_step += 1
        progress.step += 1
        progress.loss_sum += total
        progress.loss_weight += weight
        self.listener.on_step(
            total / weight,
            min(self.step_rows, self.batches.rows - (progress.epoch_step - 1) * self.step_rows),
        )

    def _loss(self, objective: nn.Module, batch: ModelBatch) -> tuple[Tensor, Tensor | None]:
        device = self.accelerator.device
        inputs, labels = tree_map_only(
            Tensor, lambda x: x.to(device, non_blocking=True), (batch.inputs, batch.labels)
        )
        with self.accelerator.autocast():
            loss, outputs = objective(inputs, labels, batch.filler)
        return loss, outputs

    def _end_epoch(self) -> None:
        """Measure, record, save."""
        progress, train = self.progress, self.config.train
        record = {
            "stage": self.stage.name,
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": progress.loss_sum / progress.loss_weight,
            "lr": max(group["lr"] for group in self.learner.optimizer.param_groups),
            "seconds": time.monotonic() - self.started,
            **{f"val_{name}": value for name, value in self._validate().items()},
        }
        self.clock.lap("evaluation")
        progress.history.append(record)
        self.accelerator.log(record, step=progress.step)
        better = self._is_best(record)
        progress.epoch += 1
        progress.epoch_step, progress.loss_sum, progress.loss_weight = 0, 0.0, 0.0
        progress.bad_epochs = 0 if better else progress.bad_epochs + 1
        if (
            train.schedule == "plateau"
            and not better
            and progress.bad_epochs % train.step_epochs == 0
        ):
            progress.lr_cut *= train.step_gamma
        if progress.epoch < self.epochs:  # after the stage's last epoch, `train` saves
            self.save(best=better)
        elif better:
            self.save(best=True)
        self.clock.lap("checkpoints")
        self.listener.on_epoch_end(record)

    def _validate(self) -> dict[str, float]:
        if self.parts.val is None:
            return {}
        with self.learner.evaluated() as objective:
            return self._measure(objective, self.parts.val)

    @torch.no_grad()
    def _measure(self, objective: nn.Module, batches: Batches) -> dict[str, float]:
        found, total, weight, measured = [], 0.0, 0.0, False
        for (each,) in self._read(batches, 1):
            loss, outputs = self._loss(objective, each.batch)
            measured = outputs is not None
            if not each.batch.filler:
                total += loss.item() * each.own
                weight += each.own
                if outputs is not None:
                    found.append((each.batch.rows, outputs.float().cpu(), each.batch.labels))
        total, weight = meet(self.accelerator, None, total, weight)
        result = {"loss": total / weight}
        if measured:
            result |= on_first(
                self.accelerator, found, lambda parts: self.parts.task.measure(*join_rows(parts))
            )
        return result

    def _is_best(self, record: Mapping[str, Any]) -> bool:
        """Whether the stage's metric is its best so far; without validation, the last is."""
        of_task = self.stage.objective == "task"
        metric = self.parts.task.metric if of_task else "loss"
        value = record.get(f"val_{metric}")
        if value is None:
            if self.parts.val is not None:
                known = ", ".join(k.removeprefix("val_") for k in record if k.startswith("val_"))
                raise TrainingError(f"task.metric is {metric}; what is measured is {known}")
            return True
        stopping = self.config.train.early_stopping
        least = stopping.min_delta if stopping else 0.0
        sign = -1 if metric in SMALLER_IS_BETTER else 1
        best = self.progress.best
        if math.isnan(value):  # as bad as can be; the stage's first is still the best so far
            return self.progress.epoch == 0
        if best is not None and sign * (value - best) <= least:
            return False
        self.progress.best = value
        return True

    def save(self, best: bool = False) -> None:
        """Write ``last``, and ``best`` too where this is the best so far. Every rank takes part."""
        states = exchange(self.accelerator, rng_state())
        files, rest = self.learner.state()
        scaler = self.accelerator.scaler
        state = {
            **self.parts.state,
            "progress": asdict(self.progress),
            "optimizer": rest,
            "rng": states,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "step_rows": self.step_rows,
        }
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                save_checkpoint(
                    Path(self.config.run.dir),
                    self.progress.step,
                    tensors=files,
                    state=state,
                    config=to_yaml(self.config),
                    facts=self.parts.facts,
                    links=("last", "best") if best else ("last",),
                )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """What is neither weights nor optimizer: the random states, the place in the epoch."""
        state, progress = checkpoint.state, self.progress
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        states = state["rng"]
        rank = self.accelerator.process_index
        # With another number of ranks nothing can repeat bit by bit; the ranks only must differ.
        restore_rng_state(states[rank % len(states)])
        if rank >= len(states):
            torch.manual_seed(self.config.seed + progress.step + rank)
        if state["step_rows"] != self.step_rows:
            # Steps of another size: the first that reaches beyond what the epoch has seen.
            rows = min(progress.epoch_step * state["step_rows"], self.batches.rows)
            progress.epoch_step = rows // self.step_rows
            progress.stage_step = progress.epoch * self.steps_per_epoch + progress.epoch_step


class _Weighted(NamedTuple):
    """A batch, what it weighs in a mean of losses, and what those of all ranks do together."""

    batch: ModelBatch
    own: float
    of_all: float


def join_rows(parts: Iterable[list[Any]]) -> tuple[Tensor, Tensor | None]:
    """Outputs and labels of all ranks in the order of the rows."""
    flat = [entry for part in parts for entry in part]
    order = torch.cat([entry[0] for entry in flat]).argsort()
    outputs = torch.cat([entry[1] for entry in flat], dim=-2)
    labels = None if flat[0][2] is None else torch.cat([entry[2] for entry in flat])
    return outputs.index_select(-2, order), None if labels is None else labels[order]


def _begin_stage(progress: Progress) -> None:
    progress.epoch = progress.epoch_step = progress.stage_step = progress.bad_epochs = 0
    progress.best, progress.lr_cut = None, 1.0


def _not_finite(value: float, batch: ModelBatch, progress: Progress) -> TrainingError | None:
    if math.isfinite(value):
        return None
    rows = ", ".join(map(str, batch.rows[:8].tolist()))
    more = ", ..." if len(batch.rows) > 8 else ""
    return TrainingError(
        f"the loss became {value} at step {progress.step + 1} (epoch {progress.epoch + 1}), in "
        f"the batch of the table's rows {rows}{more}; look at these rows, lower train.lr, "
        "or set train.clip_norm. The last checkpoint is intact."
    )


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
