"""What a stage trains: its objective, spread over the ranks, its optimizer, its moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mmfast.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    restore_optimizer,
)
from mmfast.train.config import Config, Stage
from mmfast.train.objectives import is_joint, loss_weight, make_objective
from mmfast.train.optimizer import freeze_for_stage, make_optimizer
from mmfast.train.parts import Parts, TrainingError
from mmfast.train.ranks import same_buffers
from mmfast.train.sharding import (
    average_whole,
    clip_shards,
    moving_average,
    optimizer_shards,
    reshard,
    shard,
    whole,
)


class Learner:
    """The modules of a stage.

    Args:
        parts: the model and the task; trained in place, under FSDP2 in copies until :meth:`finish`.
        config: how to train.
        accelerator: the ranks.
        stage: what it minimises, what is frozen.
        number: of the stage.
        resume: the checkpoint whose weights it begins with.
        within: whether that is of this stage, and not of the end of the one before.

    Attributes:
        objective: from a batch to its loss.
        wrapped: the same, for training: its gradients are those of all ranks.
        optimizer: of accelerate.
        joint: whether the loss is one of all ranks' rows, see :mod:`mmfast.train.objectives`.

    Raises:
        CheckpointError: ``resume`` does not fit.
        ValueError: nothing can be trained.
    """

    def __init__(
        self,
        parts: Parts,
        config: Config,
        accelerator: Accelerator,
        stage: Stage,
        number: int,
        resume: Checkpoint | None = None,
        within: bool = False,
    ) -> None:
        self.parts, self.accelerator, train = parts, accelerator, config.train
        self.clip_norm, self.reached = train.clip_norm, False
        self.sharded = train.strategy == "fsdp2" and accelerator.num_processes > 1
        self.model, self.task = parts.model, parts.task
        if self.sharded:  # and for ever: each stage shards a copy of what waits on the CPU
            self.model, self.task = copy.deepcopy((parts.model.cpu(), parts.task.cpu()))
        freeze_for_stage(self.model, config, stage)
        # Its own parameters are drawn by a seed of its own, whatever was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + number)
            out_features = config.model.fusion.out_features
            objective = make_objective(stage.objective, self.model, self.task, out_features)
        self.objective = objective.to(accelerator.device)
        self.joint = is_joint(objective)
        if train.compile:
            objective.compile()
        self.ema: AveragedModel | None = None
        if train.ema is not None:
            average = moving_average(train.ema)
            self.ema = AveragedModel(objective, multi_avg_fn=average, use_buffers=True)
        if resume is not None:
            self._load(resume, within)
        self.wrapped = self._spread()
        optimizer = make_optimizer(objective, self.model, config, stage)
        if resume is not None and within:
            with _fitting(resume):
                tensors = optimizer_shards(optimizer, resume.tensors["optimizer"])
                restore_optimizer(optimizer, tensors, resume.state["optimizer"])
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)

    def _load(self, resume: Checkpoint, within: bool) -> None:
        tensors = resume.tensors
        with _fitting(resume):
            self.model.load_state_dict(tensors["model"])
            self.task.load_state_dict(tensors["task"])
            if within:  # otherwise the rest is of the stage before
                self.objective.load_state_dict(tensors["objective"], strict=False)
                if self.ema is not None:
                    self.ema.load_state_dict(tensors["average"])

    def _spread(self) -> nn.Module:
        """The objective whose gradients are those of all ranks."""
        if not self.sharded:
            wrapped: nn.Module = self.accelerator.prepare_model(self.objective)
            return wrapped
        shard(self.objective, self.accelerator)
        if self.ema is not None:
            shard(self.ema.module, self.accelerator)
        return self.objective

    def train(self) -> None:
        """Put the modules in training mode; what does not learn stays as it is evaluated."""
        self.wrapped.train()
        for encoder in self.model.get_submodule("encoders").children():
            # What does not learn is a fixed function: the same that fills a cache.
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()

    def weight(self, labels: Tensor | None, rows: Tensor) -> float:
        """What the mean loss of some rows weighs in that of more."""
        return loss_weight(getattr(self.objective, "task", None), labels, rows)

    def accumulating(self) -> Any:
        """A context in which gradients are added up without those of other ranks."""
        return nullcontext() if self.sharded else self.accelerator.no_sync(self.wrapped)

    def unreached(self) -> TrainingError | None:
        """What is wrong if a first backward gave a parameter no gradient: DDP waits for it."""
        if self.reached or self.sharded or self.accelerator.num_processes == 1:
            return None
        self.reached = True
        parameters = self.objective.named_parameters()
        names = [name for name, p in parameters if p.requires_grad and p.grad is None]
        if not names:
            return None
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return TrainingError(
            f"{', '.join(names[:3])}{more} got no gradient; on several ranks every parameter that "
            "learns needs one in each step. `mmfast encoders check` looks for such in an encoder; "
            "model.encoders.NAME.freeze keeps what is not used from learning"
        )

    def update(self) -> None:
        """Move the parameters, and their average."""
        if self.sharded:
            average_whole(self.objective)
        if self.clip_norm is not None and self.sharded:
            clip_shards(self.objective, self.clip_norm)
        elif self.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.objective)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The objective to measure: in evaluation mode, the average where there is one."""
        objective = self.objective if self.ema is None else self.ema.module
        objective.eval()
        same_buffers(objective, self.accelerator)
        yield objective
        if self.sharded:
            reshard(objective)

    def state(self) -> tuple[dict[str, Mapping[str, Tensor]], Any]:
        """What a checkpoint needs: tensors by file; the rest of the optimizer, as JSON holds it.

        Every rank takes part; under FSDP2 only the first gets the tensors.
        """
        same_buffers(self.objective, self.accelerator)
        tensors, rest = flatten_optimizer(self.optimizer)
        files: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "task": self.task.state_dict(),
            "optimizer": tensors,
            "objective": _own_state(self.objective, self.model, self.task),
        }
        if self.ema is not None:
            files["average"] = self.ema.state_dict()
        if self.sharded:
            keep = self.accelerator.is_main_process
            files = {name: whole(values, keep=keep) for name, values in files.items()}
        return files, rest

    def finish(self) -> None:
        """Leave the weights in the model and the task that the stage was given."""
        if self.sharded:
            self.parts.model.load_state_dict(whole(self.model.state_dict()))
            self.parts.task.load_state_dict(whole(self.task.state_dict()))


def _own_state(objective: nn.Module, *others: nn.Module) -> dict[str, Tensor]:
    """What the objective has beside model and task: projections, a temperature."""
    shared = {
        id(value) for module in others for value in module.state_dict(keep_vars=True).values()
    }
    state = objective.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if id(value) not in shared}


@contextmanager
def _fitting(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint.path} is of another model: {error}") from error
