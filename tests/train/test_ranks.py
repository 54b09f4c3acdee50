"""Two processes train as one does, and their runs are one another's."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from pipeline import StopAt, write_config

from mmfast.train import fit, load_config
from mmfast.train.checkpoint import load_checkpoint

# Rows that fill every batch of both, so that each step sees the same rows.
SAME = ("model.dropout=0", "data.split.method=random", "data.split.fractions=[0.8, 0.1, 0.1]")


def start(folder, ranks, *overrides):
    """The processes that a launcher would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mmfast.cli", "train", folder / "config.yaml"]
    settings = (*SAME, f"train.batch_size={8 // ranks}", "train.threads=1", *overrides)
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [*command, *settings],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def train(folder, ranks, *overrides):
    processes = start(folder, ranks, *overrides)
    said = [process.communicate(timeout=240) for process in processes]
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error[-3000:]
    return "".join(out for out, _ in said)


def test_two_ranks_with_half_the_batch_are_one(tmp_path):
    write_config(tmp_path)
    told = [train(tmp_path, n, f"run.dir={tmp_path / str(n)}") for n in (1, 2)]
    assert told[1].count("epoch 3") == told[0].count("epoch 3") == 1  # one rank speaks
    one, two = (load_checkpoint(tmp_path / str(n) / "last") for n in (1, 2))
    for a, b in zip(
        one.state["progress"]["history"], two.state["progress"]["history"], strict=True
    ):
        for name in ("train_loss", "val_loss", "val_accuracy", "lr"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    for name, value in one.tensors["model"].items():
        torch.testing.assert_close(two.tensors["model"][name], value, rtol=1e-3, atol=1e-5)


def test_a_killed_run_of_two_resumes_on_one(tmp_path):
    config = write_config(tmp_path)
    endless = ("train.epochs=100000", "run.checkpoint_steps=1")
    processes = start(tmp_path, 2, *endless)
    while not (tmp_path / "run" / "last").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.communicate()
    before = load_checkpoint(tmp_path / "run" / "last").state
    assert len(before["rng"]) == 2
    same = load_config(config, [*SAME, "train.batch_size=4", "train.threads=1", *endless])
    run = fit(same, resume=True, listener=StopAt(2))
    assert run.progress.step == before["progress"]["step"] + 2
    assert load_checkpoint(tmp_path / "run" / "last").state["progress"]["step"] == run.progress.step
