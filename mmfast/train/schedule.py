"""Learning rates as plain functions of the step, so that resuming needs no state of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmfast.train.config import Train


def lr_factor(train: Train, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the learning rates are multiplied by at a step.

    Args:
        train: the section ``train``; ``schedule``, ``warmup``, ``step_epochs`` and ``step_gamma``
            count.
        step: of the stage, from 0.
        steps: of the stage, in all.
        steps_per_epoch: for the step schedule.

    The rate rises linearly over the warm-up, reaching 1 at its end. The cosine falls from there to
    0 after the last step (Loshchilov and Hutter, "SGDR", 2017, without restarts). The plateau
    schedule depends on how training goes and is the caller's: here it is constant.
    """
    warmup = round(train.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    if train.schedule == "step":
        epoch: int = step // steps_per_epoch
        return float(train.step_gamma ** (epoch // train.step_epochs))
    return 1.0
