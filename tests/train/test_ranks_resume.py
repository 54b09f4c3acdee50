"""A run saved on some ranks goes on on others, under another strategy."""

import pytest
import torch
from pipeline import write_config
from ranks import history, last

STOP = """
import os, signal, mmfast.train.console as c
left = [{steps}]
def on_step(*a):
    left[0] -= 1
    if left[0] == 0 and rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
c.Console.on_step = on_step
"""
SETTINGS = ("model.dropout=0", "train.epochs=3", "train.ema=0.8", "train.clip_norm=1.0")


def train(ranks, folder, name, count, *overrides, strategy="ddp", steps=0):
    """Train, or go on, as one rank with a batch of 8 would; stops after so many steps."""
    ranks.start(
        count, folder, "train", folder / "config.yaml", "--no-report", "--resume", "auto",
        *SETTINGS, f"train.strategy={strategy}", f"train.batch_size={8 // count}",
        f"run.dir={folder / name}", *overrides, code=STOP.format(steps=steps),
    )  # fmt: skip
    ended = ranks.wait()
    assert ended.status == [143 if steps else 0] * count, "\n".join(ended.err)[-3000:]


def test_goes_on_on_others(ranks, tmp_path):
    """From one rank to two that share it, to two that do not, and back to one.

    Without chance in the model, it ends as a run that was never stopped.
    """
    write_config(tmp_path)
    train(ranks, tmp_path, "whole", 1)
    for count, strategy, steps in ((1, "ddp", 4), (2, "fsdp2", 3), (2, "ddp", 2), (1, "ddp", 0)):
        train(ranks, tmp_path, "run", count, strategy=strategy, steps=steps)
    for a, b in zip(history(tmp_path / "whole"), history(tmp_path / "run"), strict=True):
        for name in ("train_loss", "val_loss", "val_auroc", "lr"):
            assert b[name] == pytest.approx(a[name], rel=2e-5), name
    expected, found = last(tmp_path / "whole").tensors, last(tmp_path / "run").tensors
    for name, value in expected["average"].items():
        torch.testing.assert_close(found["average"][name], value, rtol=1e-3, atol=2e-5)


def test_two_ranks_go_on_with_their_bits(ranks, tmp_path):
    write_config(tmp_path)
    chance = ("model.dropout=0.3", "train.accumulate=2")
    train(ranks, tmp_path, "whole", 2, *chance)
    train(ranks, tmp_path, "run", 2, *chance, steps=4)
    train(ranks, tmp_path, "run", 2, *chance)
    whole, run = last(tmp_path / "whole"), last(tmp_path / "run")
    for file, tensors in whole.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(run.tensors[file][name], value), (file, name)
    assert run.state["rng"] == whole.state["rng"]
    for a, b in zip(history(tmp_path / "whole"), history(tmp_path / "run"), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_steps_of_another_size(ranks, tmp_path):
    """Half as many ranks with the same batch size: no row of the epoch is left out."""
    write_config(tmp_path)
    train(ranks, tmp_path, "run", 2, "train.batch_size=3", steps=4)  # 24 of the epoch's 36 rows
    code = STOP.format(steps=1)
    ranks.start(
        1, tmp_path, "train", tmp_path / "config.yaml", "--no-report", "--resume", "auto",
        *SETTINGS, "train.batch_size=4", f"run.dir={tmp_path / 'run'}", code=code,
    )  # fmt: skip
    assert ranks.wait().status == [143]
    progress = last(tmp_path / "run").state["progress"]
    assert progress["step"] == 5
    assert progress["epoch_step"] == progress["stage_step"] == 24 // 4 + 1
