"""The commands of docs/distributed.md, and what torchrun itself does with them."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipeline import settings, write_table
from ranks import history, last, wait_for

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's first.yaml."""
    write_table(tmp_path)
    config = settings(tmp_path)
    config["run"]["dir"] = str(tmp_path / "runs" / "first")
    config["train"] |= {"epochs": 2, "threads": 1}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def environment(**more):
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": tools, "OMP_NUM_THREADS": "1", **more}


def test_commands_on_one_machine(ranks, folder):
    lines = [line for block in BLOCKS[:-1] for line in block.strip().split("\n")]
    assert len(lines) == 3
    for line in lines:
        launcher, arguments = re.fullmatch(r"(torchrun .* -m )?mmfast (.*)", line).groups()
        count = 2 if launcher else 1
        assert launcher in (None, "torchrun --nproc-per-node 2 -m ")
        code = f"import os; os.chdir({str(folder)!r})"
        ended = ranks.run(count, folder, *shlex.split(arguments), "--no-report", code=code)
        assert "trained: " in ended.out[0]


def test_two_machines_in_one(folder):
    """With two torchruns, as on two machines; one speaks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert BLOCKS[-1].count("29500") == BLOCKS[-1].count("--node-rank") == 2
    done = subprocess.run(
        ["bash", "-c", BLOCKS[-1].replace("29500", port)],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2") == done.stdout.count("trained: ") == 1
    run = folder / "runs" / "two-nodes"
    assert len(history(run)) == 2
    assert len(last(run).state["rng"]) == 2


def test_torchrun_is_told_to_stop(folder):
    command = "torchrun --standalone --nproc-per-node 2 -m mmfast train first.yaml"
    endless = ("train.epochs=100000", "run.checkpoint_steps=1")
    process = subprocess.Popen(
        [*command.split(), *endless],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(folder / "runs" / "first" / "last", 200)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    step = last(folder / "runs" / "first").state["progress"]["step"]
    assert f"--resume auto goes on from step {step}" in said
