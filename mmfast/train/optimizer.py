"""The optimizer of a stage: what it trains, and at which rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmfast.plugins import freeze, parameter_groups, unfreeze
from mmfast.train.config import Config, Stage, Train


def freeze_for_stage(model: nn.Module, config: Config, stage: Stage) -> None:
    """Set which layer groups of the encoders train in a stage; what joins them always does."""
    for name, encoder in model.get_submodule("encoders").named_children():
        wanted = stage.freeze.get(name, config.model.encoders[name].freeze)
        unfreeze(encoder)
        if wanted != "none":
            try:
                freeze(encoder, None if wanted == "all" else wanted)
            except ValueError as error:
                raise ValueError(
                    f"freeze of the encoder {name} in the stage {stage.name}: {error}"
                ) from error


def make_optimizer(
    objective: nn.Module, model: nn.Module, config: Config, stage: Stage
) -> torch.optim.Optimizer:
    """The optimizer over what of ``objective`` is not frozen.

    Every group has ``base_lr``, the rate that the schedule's factor multiplies.

    Args:
        objective: what the stage minimises.
        model: whose encoders it shares; these learn at rates of their own.
        config: rates, decays, the kind of optimizer.
        stage: may set the learning rate.

    Raises:
        ValueError: nothing is left to train.
    """
    train = config.train
    lr = stage.lr or train.lr
    groups: list[dict[str, Any]] = []
    in_encoders: set[int] = set()
    learning = {id(p) for p in objective.parameters() if p.requires_grad}
    for name, encoder in model.get_submodule("encoders").named_children():
        in_encoders |= {id(parameter) for parameter in encoder.parameters()}
        rate = lr * config.model.encoders[name].lr_scale
        groups += parameter_groups(encoder, rate, train.layer_decay, train.weight_decay)
    rest = [p for p in objective.parameters() if id(p) not in in_encoders]
    for decays in (True, False):
        params = [p for p in rest if (p.dim() > 1) == decays]
        decay = train.weight_decay if decays else 0.0
        groups.append({"params": params, "lr": lr, "weight_decay": decay})
    trained = []
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) in learning]
        if group["params"]:
            trained.append({**group, "base_lr": group["lr"]})
    if not trained:
        raise ValueError(
            f"in the stage {stage.name} everything is frozen: there is nothing to train"
        )
    return _make(train, trained, lr)


def _make(train: Train, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=train.momentum)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr)
