"""What a stage minimises: the task, the reconstruction of the inputs, or a contrast of modalities.

Each objective is a module from a batch to its loss and the task's outputs, if it has any, so that
data parallel training wraps it like any model. It shares the encoders with the model; parameters of
its own (projections, a temperature) live as long as the stage.

A loss that compares rows with each other compares those of all ranks: every rank has the whole of
it. A ``filler`` is a batch whose rows do not count there (see ``ModelBatch``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.losses import ContrastiveLoss
from mmfast.plugins import Batch, Features
from mmfast.train.multimodal import encode, out_dim, pooled
from mmfast.train.ranks import gather_rows
from mmfast.train.tasks import Task

Inputs = Mapping[str, Batch | Features]


class TaskObjective(nn.Module):
    """The loss of the task; trains the whole model."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(
        self, inputs: Inputs, labels: Tensor | None, filler: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, 0-d, and the outputs."""
        outputs = self.model(inputs)
        # Losses of 16-bit outputs lose what metrics need.
        outputs = outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
        if self.task.contrastive is None:
            return self.task.loss(outputs, labels), outputs
        rows = gather_rows(outputs.transpose(0, 1)[: 0 if filler else None])
        return self.task.loss(rows.transpose(0, 1), None), outputs


class ReconstructionObjective(nn.Module):
    """The sum of the reconstruction losses of the encoders that have one; trains those encoders.

    Raises:
        ValueError: no encoder has a method ``pretrainer``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        encoders: Any = model.get_submodule("encoders").named_children()
        self.pretrainers = nn.ModuleDict(
            {name: e.pretrainer() for name, e in encoders if hasattr(e, "pretrainer")}
        )
        if not self.pretrainers:
            raise ValueError(
                "a stage of objective reconstruction needs an encoder that can rebuild its input, "
                "one with a method pretrainer(), as audio_autoencoder has"
            )

    def forward(
        self, inputs: Inputs, labels: Tensor | None, filler: bool = False
    ) -> tuple[Tensor, None]:
        """The loss, 0-d, and no outputs."""
        losses = [pretrainer(inputs[name]) for name, pretrainer in self.pretrainers.items()]
        return torch.stack(losses).sum(), None


class ContrastiveObjective(nn.Module):
    """CLIP's loss between every two modalities, over rows that have both; trains the encoders."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        super().__init__()
        encoders = model.get_submodule("encoders")
        assert isinstance(encoders, nn.ModuleDict)
        self.encoders = encoders
        if len(self.encoders) < 2:
            raise ValueError("a stage of objective contrastive needs at least two encoders")
        self.projections = nn.ModuleDict(
            {n: nn.Linear(out_dim(encoder), dim, bias=False) for n, encoder in encoders.items()}
        )
        self.contrastive = ContrastiveLoss()

    def forward(
        self, inputs: Inputs, labels: Tensor | None, filler: bool = False
    ) -> tuple[Tensor, None]:
        """The loss, 0-d, and no outputs."""
        found = encode(self.encoders, inputs)
        codes = {name: self.projections[name](pooled(f)) for name, f in found.items()}
        losses = []
        for a, b in itertools.combinations(found, 2):
            both = found[a].present & found[b].present & (not filler)
            pair = (gather_rows(codes[name][both].float()) for name in (a, b))
            losses.append(self.contrastive(*pair))
        return torch.stack(losses).mean(), None


def make_objective(kind: str, model: nn.Module, task: Task, dim: int) -> nn.Module:
    """The objective of a stage; ``dim`` is the width of a contrastive stage's common space."""
    if kind == "reconstruction":
        return ReconstructionObjective(model)
    if kind == "contrastive":
        return ContrastiveObjective(model, dim)
    return TaskObjective(model, task)


def is_joint(objective: nn.Module) -> bool:
    """Whether its loss is one of all ranks' rows, and not the mean over those of this rank."""
    if isinstance(objective, TaskObjective):
        return objective.task.contrastive is not None
    return isinstance(objective, ContrastiveObjective)


def loss_weight(task: Task | None, labels: Tensor | None, rows: Tensor) -> float:
    """What the mean loss of some rows weighs in the mean over more: the number that divides it.

    ``task`` is None for the loss of another objective.
    """
    if task is None or task.weight is None or labels is None or task.loss_name == "hinge":
        return float(len(rows))
    return float(task.weight.cpu()[labels].sum())
