"""A run that is killed and resumed ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipeline import StopAt, small_config, write_config

from mmfast.train.checkpoint import CheckpointError, load_checkpoint
from mmfast.train.parts import TrainingError
from mmfast.train.run import fit

EVERYTHING = (
    "train.precision=bf16",
    "train.accumulate=2",
    "train.ema=0.9",
    "data.workers=2",
    "model.modality_dropout=0.2",
    "train.schedule=plateau",
    "train.step_epochs=1",
    "train.clip_norm=1.0",
    "task.balance=sampler",
    "train.stages=[{name: align, objective: contrastive, epochs: 2}, {name: fine, epochs: 3}]",
)


def assert_same_weights(a, b):
    first, second = load_checkpoint(a / "last"), load_checkpoint(b / "last")
    assert first.tensors.keys() == second.tensors.keys()
    for file, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[file].keys()
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors[file][name]), f"{file} {name}"
    assert first.state["rng"] == second.state["rng"]
    untimed = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in state["history"]]
        for state in (first.state["progress"], second.state["progress"])
    ]
    assert untimed[0] == untimed[1]
    assert first.state["progress"]["done"]


@pytest.mark.parametrize("overrides", [(), EVERYTHING], ids=["plain", "everything"])
def test_killed_at_random_moments_and_resumed(tmp_path, overrides):
    config = write_config(tmp_path)
    script = Path(__file__).parent / "killed.py"
    done = subprocess.run(
        [sys.executable, script, config, "10", "0", "run.checkpoint_steps=1", *overrides],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, done.stderr  # kills that met it at work
    assert_same_weights(tmp_path / "run", tmp_path / "run-whole")


@pytest.mark.parametrize("overrides", [(), EVERYTHING], ids=["plain", "everything"])
def test_told_to_stop_at_every_step(tmp_path, overrides):
    whole = small_config(tmp_path, f"run.dir={tmp_path / 'whole'}", *overrides)
    fit(whole)
    stopped = small_config(tmp_path, f"run.dir={tmp_path / 'stopped'}", *overrides)
    step = 0
    while True:
        run = fit(stopped, resume=True, listener=StopAt(2))
        if run.signal is None:
            break
        assert run.signal == signal.SIGTERM
        step += 2
        assert load_checkpoint(tmp_path / "stopped" / "last").state["progress"]["step"] == step
    assert step > 8
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_the_status_of_the_signal(tmp_path, number):
    config = write_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "mmfast.cli", "train", config, "train.epochs=100000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "last").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume auto goes on from step" in said
    assert load_checkpoint(tmp_path / "run" / "last").state["progress"]["step"] > 0


def test_a_run_is_not_overwritten_and_resumes_only_as_it_was(tmp_path):
    config = small_config(tmp_path, "train.epochs=1")
    fit(config)
    with pytest.raises(TrainingError, match="holds a run already; go on with it by --resume auto"):
        fit(config)
    other = small_config(tmp_path, "train.epochs=1", "train.lr=0.5")
    with pytest.raises(TrainingError, match=r"cannot be resumed .* train.lr was 0.01 and is 0.5"):
        fit(other, resume=True)
    small_config(tmp_path, rows=70)
    with pytest.raises(CheckpointError, match="the table or what can be read of it has changed"):
        fit(config, resume=True)


def test_a_finished_run_resumed_stays_as_it_is(tmp_path):
    config = small_config(tmp_path, "train.epochs=1")
    fit(config)
    before = (tmp_path / "run" / "last").resolve()
    assert fit(config, resume=True).progress.done
    assert (tmp_path / "run" / "last").resolve() == before


HOLD = """
import os, sys, time
from pathlib import Path
from mmfast.train.folder import _lock

with _lock(Path(sys.argv[1]), "token"):
    worker = os.fork()
    if not worker:
        time.sleep(120)
        os._exit(0)
    print(worker, flush=True)
    sys.stdin.read()
    os._exit(0)  # as if killed: nothing is released by hand
"""


def test_two_processes_do_not_share_a_folder(tmp_path):
    """But a worker that outlives the process that held it does not hold it."""
    config = small_config(tmp_path, "train.epochs=1")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(TrainingError, match="another process is training in"):
            fit(config)
        holder.stdin.close()
        holder.wait()
        assert fit(config).progress.done
    finally:
        os.kill(worker, signal.SIGKILL)
