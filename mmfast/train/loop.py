"""The training loop, readable from top to bottom: batches, loss, step, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from mmfast.train.seed import seeded

Inputs = Mapping[str, torch.Tensor]
Augment = Callable[[Inputs, torch.Generator], Inputs]


class Examples(NamedTuple):
    """N examples in memory: by modality name a tensor (N, ...), and labels int64 (N,)."""

    inputs: Inputs
    labels: torch.Tensor

    def rows(self, index: torch.Tensor) -> Examples:
        """The examples whose numbers `index`, int64 (M,), lists."""
        return Examples({name: x[index] for name, x in self.inputs.items()}, self.labels[index])


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW with a one-cycle learning rate over a fixed number of epochs.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples per step; the last batch of an epoch may be smaller.
        lr: highest learning rate of the cycle.
        weight_decay: AdamW's decoupled weight decay.
        label_smoothing: share of the target spread over all classes.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0


class Score(NamedTuple):
    """Mean cross-entropy in nats, and accuracy in 0..1."""

    loss: float
    accuracy: float


@dataclass
class History:
    """One entry per epoch: mean training loss in nats, validation loss and accuracy in 0..1."""

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)


def fit(
    model: nn.Module,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    *,
    seed: int,
    augment: Augment | None = None,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Trains `model` in place and returns how it went.

    Equal models, examples, recipe and seed give equal bits on one machine with one thread count.
    The model is left as the last epoch left it: nothing is chosen by validation.

    Args:
        model: takes the inputs of `Examples` and returns logits (B, C).
        train: what to learn from.
        val: what to measure after each epoch.
        recipe: epochs, batch size, learning rate.
        seed: decides the order of batches, augmentation and dropout; not the initialisation,
            which is the caller's (see `mmfast.train.seeded`).
        augment: changes the inputs of a training batch, drawing from the generator it is given.
        on_epoch: called after each epoch, for a progress bar.

    Raises:
        ValueError: there are no training examples.
        RuntimeError: the loss is not finite.
    """
    count = len(train.labels)
    if count == 0:
        raise ValueError("fit: train must hold at least one example, got 0")
    steps = recipe.epochs * -(-count // recipe.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    history = History()
    with seeded(seed) as generator:
        for _ in range(recipe.epochs):
            model.train()
            total = 0.0
            for batch in _shuffled(train, recipe.batch_size, generator):
                inputs = augment(batch.inputs, generator) if augment else batch.inputs
                loss = F.cross_entropy(
                    model(inputs), batch.labels, label_smoothing=recipe.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += _finite(loss) * len(batch.labels)
            score = evaluate(model, val)
            history.train_loss.append(total / count)
            history.val_loss.append(score.loss)
            history.val_accuracy.append(score.accuracy)
            if on_epoch:
                on_epoch(history)
    return history


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, batch_size: int = 256) -> Score:
    """Measures `model`, in evaluation mode, on `examples`.

    Raises:
        ValueError: there are no examples.
    """
    if len(examples.labels) == 0:
        raise ValueError("evaluate: examples must hold at least one example, got 0")
    was_training = model.training
    model.eval()
    everything = torch.arange(len(examples.labels))
    logits = torch.cat(
        [model(examples.rows(index).inputs) for index in everything.split(batch_size)]
    )
    model.train(was_training)
    accuracy = MulticlassAccuracy(logits.shape[1], average="micro")
    return Score(
        F.cross_entropy(logits, examples.labels).item(),
        accuracy(logits, examples.labels).item(),
    )


def _shuffled(examples: Examples, size: int, generator: torch.Generator) -> Iterator[Examples]:
    order = torch.randperm(len(examples.labels), generator=generator)
    for index in order.split(size):
        yield examples.rows(index)


def _finite(loss: torch.Tensor) -> float:
    value = loss.item()
    if value != value or value in (float("inf"), float("-inf")):
        raise RuntimeError(f"fit: the training loss became {value}; try a lower learning rate")
    return value
