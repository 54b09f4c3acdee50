"""The training loop, over accelerate: stages, epochs, steps; saved and resumed at any step.

It reads from `train` downwards. Everything that decides the next step's bits is in the checkpoint:
weights, optimizer, averages, random states, the position in the epoch; the learning rate and the
order of rows are functions of the position. On the CPU, a run that was killed and resumed therefore
ends with the bits of one that was not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only

from mmfast.train.batches import Batches
from mmfast.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    restore_optimizer,
    save_checkpoint,
)
from mmfast.train.clock import Clock
from mmfast.train.config import Config, Stage, to_yaml
from mmfast.train.objectives import make_objective
from mmfast.train.optimizer import freeze_for_stage, make_optimizer
from mmfast.train.parts import Listener, Parts, Progress, TrainingError
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
        self.batches = self.parts.train(stage.batch_size or train.batch_size)
        self.steps_per_epoch = math.ceil(self.batches.count / train.accumulate)
        freeze_for_stage(self.parts.model, self.config, stage)
        # Its own parameters are drawn by a seed of its own, whatever was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + self.progress.stage)
            objective = make_objective(
                stage.objective,
                self.parts.model,
                self.parts.task,
                self.config.model.fusion.out_features,
            )
        optimizer = make_optimizer(objective, self.parts.model, self.config, stage)
        self.objective = objective.to(self.accelerator.device)
        if train.compile:
            self.objective.compile()
        self.ema: AveragedModel | None = None
        if train.ema is not None:
            average = get_ema_multi_avg_fn(train.ema)
            self.ema = AveragedModel(self.objective, multi_avg_fn=average, use_buffers=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
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
        return True

    def _finish_epoch(self) -> bool:
        progress = self.progress
        self.listener.on_epoch_start(
            self.stage, progress.epoch, self.epochs, self.steps_per_epoch, progress.epoch_step
        )
        self.wrapped.train()
        for encoder in self.parts.model.get_submodule("encoders").children():
            # What does not learn is a fixed function: the same that fills a cache.
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        self.started = time.monotonic()
        every = self.config.run.checkpoint_steps
        done = min(progress.epoch_step * self.config.train.accumulate, self.batches.count)
        number = self.config.seed * 1_000_003 + progress.stage * 10_007 + progress.epoch
        self.clock.lap(None)
        for micro in _chunks(self.batches.epoch(number, done), self.config.train.accumulate):
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

    def _step(self, micro: list[Any]) -> None:
        """One optimizer step; the gradients of the batches add up to those of one large batch."""
        progress = self.progress
        factor = progress.lr_cut * lr_factor(
            self.config.train,
            progress.stage_step,
            self.steps_per_epoch * self.epochs,
            self.steps_per_epoch,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad()
        rows = sum(len(batch.rows) for batch in micro)
        total = 0.0
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, _ = self._loss(self.wrapped, batch)
                self.clock.lap("forward")
                share = len(batch.rows) / rows
                self.accelerator.backward(loss * share)
            total += _finite(loss, batch, progress) * share  # waits for a GPU
            self.clock.lap("backward")
        clip = self.config.train.clip_norm
        if clip is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.objective)
        progress.epoch_step += 1
        progress.stage_step += 1
        progress.step += 1
        progress.loss_sum += total * rows
        progress.rows += rows
        self.listener.on_step(total, rows)

    def _loss(self, objective: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
        device = self.accelerator.device
        inputs, labels = tree_map_only(
            Tensor, lambda x: x.to(device, non_blocking=True), (batch.inputs, batch.labels)
        )
        with self.accelerator.autocast():
            loss, outputs = objective(inputs, labels)
        return loss, outputs

    def _end_epoch(self) -> None:
        """Measure, record, save."""
        progress, train = self.progress, self.config.train
        sums = torch.tensor([progress.loss_sum, progress.rows], dtype=torch.float64)
        loss_sum, rows = self._add_up(sums).tolist()
        record = {
            "stage": self.stage.name,
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": loss_sum / rows,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "seconds": time.monotonic() - self.started,
            **{f"val_{name}": value for name, value in self._validate().items()},
        }
        self.clock.lap("evaluation")
        progress.history.append(record)
        self.accelerator.log(record, step=progress.step)
        better = self._is_best(record)
        progress.epoch += 1
        progress.epoch_step, progress.loss_sum, progress.rows = 0, 0.0, 0
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
        objective = self.ema.module if self.ema is not None else self.objective
        return self._measure(objective, self.parts.val)

    @torch.no_grad()
    def _measure(self, objective: nn.Module, batches: Batches) -> dict[str, float]:
        objective.eval()
        found, total, rows = [], 0.0, 0
        for batch in batches.epoch(0, 0):
            loss, outputs = self._loss(objective, batch)
            total += loss.item() * len(batch.rows)
            rows += len(batch.rows)
            if outputs is not None:
                found.append((batch.rows, outputs.float().cpu(), batch.labels))
        sums = self._add_up(torch.tensor([total, rows], dtype=torch.float64))
        result = {"loss": (sums[0] / sums[1]).item()}
        if found:
            outputs, labels = join_rows(gather_object([found]))
            result |= self.parts.task.measure(outputs, labels)
        return result

    def _add_up(self, sums: Tensor) -> Tensor:
        """The sums of all ranks together."""
        if self.accelerator.num_processes == 1:
            return sums
        return torch.stack(gather_object([sums])).sum(0)

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
        states = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            tensors, rest = flatten_optimizer(self.optimizer)
            own = _own_state(self.objective, self.parts)
            files: dict[str, Mapping[str, Tensor]] = {
                "model": self.parts.model.state_dict(),
                "task": self.parts.task.state_dict(),
                "optimizer": tensors,
                "objective": own,
            }
            if self.ema is not None:
                files["average"] = self.ema.state_dict()
            scaler = self.accelerator.scaler
            state = {
                **self.parts.state,
                "progress": asdict(self.progress),
                "optimizer": rest,
                "rng": states,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_checkpoint(
                Path(self.config.run.dir),
                self.progress.step,
                tensors=files,
                state=state,
                config=to_yaml(self.config),
                facts=self.parts.facts,
                links=("last", "best") if best else ("last",),
            )
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        try:
            self.parts.model.load_state_dict(tensors["model"])
            self.parts.task.load_state_dict(tensors["task"])
            if self.progress.stage_step:  # at a boundary the rest is of the stage before
                self.objective.load_state_dict(tensors["objective"], strict=False)
                restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
                if self.ema is not None:
                    self.ema.load_state_dict(tensors["average"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{checkpoint.path} is of another model: {error}") from error
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        states = state["rng"]
        rank = self.accelerator.process_index
        # With another number of ranks nothing can repeat bit by bit; the ranks only must differ.
        restore_rng_state(states[rank % len(states)])
        if rank >= len(states):
            torch.manual_seed(self.config.seed + self.progress.step + rank)


def join_rows(parts: Iterable[list[Any]]) -> tuple[Tensor, Tensor | None]:
    """Outputs and labels of all ranks in the order of the rows, each row once."""
    flat = [entry for part in parts for entry in part]
    rows = torch.cat([entry[0] for entry in flat])
    outputs = torch.cat([entry[1] for entry in flat], dim=-2)
    labels = None if flat[0][2] is None else torch.cat([entry[2] for entry in flat])
    order = rows.argsort(stable=True)
    ordered = rows[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    order = order[first]
    return outputs.index_select(-2, order), None if labels is None else labels[order]


def _begin_stage(progress: Progress) -> None:
    progress.epoch = progress.epoch_step = progress.stage_step = progress.bad_epochs = 0
    progress.best, progress.lr_cut = None, 1.0


def _own_state(objective: nn.Module, parts: Parts) -> dict[str, Tensor]:
    """What the objective has beside the model and the task: projections, a temperature."""
    shared = {
        id(value)
        for module in (parts.model, parts.task)
        for value in module.state_dict(keep_vars=True).values()
    }
    state = objective.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if id(value) not in shared}


def _finite(loss: Tensor, batch: Any, progress: Progress) -> float:
    value: float = loss.item()
    if not math.isfinite(value):
        rows = ", ".join(map(str, batch.rows[:8].tolist()))
        more = ", ..." if len(batch.rows) > 8 else ""
        raise TrainingError(
            f"the loss became {value} at step {progress.step + 1} (epoch {progress.epoch + 1}), in "
            f"the batch of the table's rows {rows}{more}; look at these rows, lower train.lr, "
            "or set train.clip_norm. The last checkpoint is intact."
        )
    return value


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
