"""Learning rates by step, against torch's schedulers and by hand."""

import pytest
import torch

from mmfast.train.config import Train
from mmfast.train.schedule import lr_factor


def factors(steps=12, steps_per_epoch=4, **options):
    train = Train(**options)
    return [lr_factor(train, step, steps, steps_per_epoch) for step in range(steps)]


def torchs(scheduler, steps, **options):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_constant():
    assert factors(schedule="constant") == [1.0] * 12
    assert factors(schedule="plateau") == [1.0] * 12


def test_cosine_is_torchs():
    expected = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 12, T_max=12)
    assert factors(schedule="cosine") == pytest.approx(expected, abs=1e-12)


def test_step_cuts_by_epoch_as_torchs():
    expected = torchs(torch.optim.lr_scheduler.StepLR, 12, step_size=4, gamma=0.5)
    assert factors(schedule="step", step_epochs=1, step_gamma=0.5) == pytest.approx(expected)


def test_warm_up_rises_to_one_and_the_cosine_starts_there():
    found = factors(schedule="cosine", warmup=0.25)
    assert found[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert found[3:] == pytest.approx(
        torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 9, T_max=9)
    )


def test_a_stage_of_warm_up_only():
    assert factors(steps=2, warmup=1.0) == [0.5, 1.0]
