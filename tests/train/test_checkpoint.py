"""Checkpoints: whole or not at all, whatever happens while they are written."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmfast.train.checkpoint import (
    CheckpointError,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from mmfast.train.rng import restore_rng_state, rng_state


def save(run, step, value=1.0, **more):
    tensors = {"model": {"weight": torch.full((3, 2), value)}, "optimizer": {}}
    arguments = {"state": {"step": step, "loss": 0.1 + 0.2}, "config": "a: 1\n", "facts": {"x": 1}}
    return save_checkpoint(run, step, tensors=tensors, **{**arguments, **more})


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system which file it is")
def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Names may outlive a loss of power that contents do not."""
    synced, fsync, replace = [], os.fsync, os.replace

    def noted(handle):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def named(source, target):
        if os.path.isdir(source) and not os.path.islink(source):
            assert set(os.listdir(source)) <= set(synced), "named before it was on disk"
            assert os.path.basename(source) in synced
            synced.append("named")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", named)
    assert len(os.listdir(save(tmp_path, 1))) >= 4
    assert "named" in synced


def test_what_was_saved_is_read_back(tmp_path):
    base = torch.randn(4, 6)
    tied = torch.randn(2, 2)
    values = OrderedDict(
        strided=base.t(),
        part=base[1],
        tied=tied,
        same=tied,
        half=base.bfloat16(),
        one=torch.tensor(3),
    )
    state = {"step": 7, "rng": rng_state(), "tiny": 5e-324, "third": 1 / 3}
    save_checkpoint(
        tmp_path, 7, tensors={"model": values}, state=state, config="k: ü\n", facts={"mmfast": "1"}
    )
    found = load_checkpoint(tmp_path / "last")
    assert found.state == state
    assert found.config == "k: ü\n"
    assert found.manifest["mmfast"] == "1"
    for name, value in values.items():
        assert torch.equal(found.tensors["model"][name], value), name
        assert found.tensors["model"][name].dtype == value.dtype


def test_only_what_a_link_names_is_kept(tmp_path):
    save(tmp_path, 1, links=("last", "best"))
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000001",
        "step-00000003",
    ]
    assert load_checkpoint(tmp_path / "last").state["step"] == 3
    assert load_checkpoint(tmp_path / "best").state["step"] == 1
    moved = tmp_path.parent / "moved"
    shutil.move(tmp_path, moved)  # the links are relative
    assert load_checkpoint(moved / "last").state["step"] == 3


def test_one_step_saved_twice_never_leaves_the_link_without_its_checkpoint(tmp_path):
    save(tmp_path, 5, value=1.0)
    save(tmp_path, 5, value=2.0)
    assert load_checkpoint(tmp_path / "last").tensors["model"]["weight"][0, 0] == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def kill_at(call, run, step):
    """Whether a process that saves `step` is killed at its `call`-th call into C."""
    child = os.fork()
    if child == 0:
        left = call

        def count(frame, event, function):
            nonlocal left
            left -= event == "c_call"
            if left < 0:
                os._exit(9)

        sys.setprofile(count)
        save(run, step, value=2.0, state={"value": 2})
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("step", [1, 2])
def test_a_process_killed_anywhere_in_a_save_leaves_a_whole_checkpoint(tmp_path, step):
    values, call = [], 0
    while True:
        run = tmp_path / str(call)
        save(run, 1, state={"value": 1})
        killed = kill_at(call, run, step)
        found = load_checkpoint(run / "last")
        assert found.tensors["model"]["weight"][0, 0] == found.state["value"]
        values.append(found.state["value"])
        save(run, 3)  # and the next save clears what was left
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]
        assert all(p.name in ("last", "checkpoints") for p in run.iterdir())
        if not killed:
            break
        call += 7
    assert values == sorted(values)
    assert set(values) == {1, 2}
    assert values.count(1) > 20  # most of the calls were before the link moved


def rewrite_tensor(folder):
    values = load_file(folder / "model.safetensors")
    values["weight"][0, 0] = 100
    save_file(values, folder / "model.safetensors")


def edit_manifest(**change):
    def edit(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite_tensor, "model.safetensors is not the file that was saved"),
        (
            lambda f: (f / "state.json").write_text("{}"),
            "state.json is not the file that was saved",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "holds no checkpoint"),
        (lambda f: (f / "manifest.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not of an mmfast checkpoint"),
        (
            edit_manifest(format=2, mmfast="9.1"),
            r"format 2; .* use the mmfast that wrote it \(9.1\)",
        ),
        (edit_manifest(files={"../../secret": "0"}), "lies outside its folder"),
        (edit_manifest(files={}), "lists no state.json"),
        (
            lambda f: (
                (f / "model.safetensors").write_bytes(b"\xff" * 64),
                edit_manifest(files=digests(f))(f),
            ),
            "is no safetensors file",
        ),
    ],
)
def test_damage_is_told(tmp_path, damage, message):
    folder = save(tmp_path, 1)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "last")


def digests(folder):
    from hashlib import sha256

    names = ("model.safetensors", "state.json", "config.yaml")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no checkpoint: there is no file manifest\.json"
    ):
        load_checkpoint(tmp_path / "last")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file", 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        save(disk / "run", 1)
        large = {"model": {"weight": torch.zeros(200_000)}}
        with pytest.raises(CheckpointError, match=r"the disk is full.*are intact"):
            save_checkpoint(disk / "run", 2, tensors=large, state={}, config="", facts={})
        assert load_checkpoint(disk / "run" / "last").state["step"] == 1
        save(disk / "run", 3)  # there is room again: nothing of step 2 was left
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_an_optimizer_continues_bit_for_bit(tmp_path, kind):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}]
        more = {"momentum": 0.9} if kind == "SGD" else {"betas": (0.8, 0.9)}
        return model, getattr(torch.optim, kind)(groups, lr=0.1, **more)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.arange(6.0).view(2, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = made()
    step(model, optimizer)
    tensors, rest = flatten_optimizer(optimizer)
    save_checkpoint(
        tmp_path,
        1,
        tensors={"model": model.state_dict(), "optimizer": tensors},
        state={"optimizer": rest},
        config="",
        facts={},
    )
    step(model, optimizer)
    other, resumed = made()
    found = load_checkpoint(tmp_path / "last")
    other.load_state_dict(found.tensors["model"])
    restore_optimizer(resumed, found.tensors["optimizer"], found.state["optimizer"])
    step(other, resumed)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimizer_of_another_model_is_told():
    optimizer = torch.optim.Adam([torch.ones(2, requires_grad=True)])
    tensors, rest = flatten_optimizer(optimizer)
    two = torch.optim.Adam([torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)])
    with pytest.raises(CheckpointError, match="optimizer is of another model"):
        restore_optimizer(two, tensors, rest)


def test_random_generators_continue_where_they_stood():
    random.gauss(0, 1)  # leaves a second number waiting
    np.random.standard_normal()
    state = json.loads(json.dumps(rng_state()))

    def draw():
        return (
            random.gauss(0, 1),
            random.random(),
            np.random.randn(3).tolist(),
            torch.rand(3).tolist(),
        )

    first = draw()
    restore_rng_state(state)
    assert draw() == first


def test_random_states_of_gpus_that_are_not_here():
    state = {**rng_state(), "cuda": ["00"] * (torch.cuda.device_count() + 1)}
    with pytest.raises(ValueError, match="the checkpoint holds the random states of"):
        restore_rng_state(state)
