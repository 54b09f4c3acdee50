"""What mmfast writes lies in run.dir and data.cache, whatever a stranger left there.

The stranger's file outside, ``victim``, must keep its bytes, and no file may appear beside it.
"""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from data_files import write_tar
from pipeline import write_config

from mmfast.cli import main
from mmfast.data import ColumnSpec, read_cell, read_table
from mmfast.data.cached import join_parts
from mmfast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

FROZEN = ("model.encoders.text.freeze=all", "train.epochs=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run after one epoch, with its table and configuration."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["train", str(write_config(folder)), "train.epochs=1"]) == 0
    return folder


@pytest.fixture
def victim(tmp_path):
    """A file of the user's, alone in its folder."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"
    assert os.listdir(path.parent) == ["victim"]


@pytest.fixture
def job(made, tmp_path, monkeypatch):
    """The configuration of a run that a stranger may have prepared, in ``tmp_path / "run"``."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "table.jsonl", tmp_path)
    shutil.copy(made / "config.yaml", tmp_path)
    return [str(tmp_path / "config.yaml"), f"data.source={tmp_path}/table.jsonl", "run.dir=run"]


def test_a_lock_that_leads_out(job, tmp_path, victim, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    assert main(["train", *job, "train.epochs=1"]) == 1
    assert "run.dir run cannot be written to" in capsys.readouterr().err


def test_a_lock_that_is_a_pipe(job, tmp_path, capsys):
    """Opening one waits for its other end."""
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / ".lock")
    assert main(["train", *job, "train.epochs=1"]) == 1
    assert "run.dir run cannot be written to" in capsys.readouterr().err


def test_a_folder_of_checkpoints_that_leads_out(job, tmp_path, victim, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(victim.parent)
    assert main(["train", *job, "train.epochs=1"]) == 1
    assert "is a symbolic link; make it a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["last", "best"])
def test_links_that_lead_out_are_replaced_not_followed(job, tmp_path, victim, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    if name == "best":
        assert main(["train", *job, "train.epochs=1"]) == 0
        assert (tmp_path / "run" / name).resolve().parent.name == "checkpoints"
    else:
        assert main(["train", *job, "train.epochs=1", "--resume", "auto"]) == 1


def test_only_checkpoints_are_removed(tmp_path):
    """Another program's folders of that name stay, and links are not followed."""
    run = tmp_path / "run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    for name in ("step-00000001", "step-final"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "weights.pt").write_text("precious")
    (run / "checkpoints" / "step-link").symlink_to(tmp_path / "other")
    for step in (5, 6, 7):
        save_checkpoint(run, step, tensors={}, state={}, config="", facts={})
    left = sorted(os.listdir(run / "checkpoints"))
    assert left == ["step-00000001", "step-00000007", "step-final", "step-link"]
    assert (run / "checkpoints" / "step-final" / "weights.pt").read_text() == "precious"
    assert os.listdir(tmp_path / "other") == ["manifest.json"]


def test_a_summary_that_leads_out(job, tmp_path, victim):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "crossval.json").symlink_to(victim)
    assert main(["crossval", *job, "train.epochs=1", "data.split.folds=2"]) == 0
    assert json.loads((tmp_path / "run" / "crossval.json").read_text())


def test_trackers_write_in_the_run(job, tmp_path):
    """The name that a tracker gives its folder is the run's, and ``..`` is none."""
    where = tmp_path / "inside"
    (where / "deep").mkdir(parents=True)
    settings = (f"run.dir={where}/deep/..", "train.epochs=1", "run.trackers=[tensorboard]")
    assert main(["train", *job, *settings]) == 0
    found = list(tmp_path.rglob("events.*"))
    assert found
    assert all(where in path.parents for path in found)


def test_a_tracker_whose_folder_leads_out(job, tmp_path, victim, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run").symlink_to(victim.parent)
    assert main(["train", *job, "train.epochs=1", "run.trackers=[tensorboard]"]) == 1
    assert "symbolic link" in capsys.readouterr().err


# Checkpoints


@pytest.mark.parametrize(
    "name", ["../victim", "/etc/passwd", "..", ".", "", "a/b", "../run/config.yaml", "x\0y"]
)
def test_names_in_a_manifest(made, tmp_path, name):
    run = shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    manifest = json.loads((run / "best" / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (run / "best" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"lies outside its folder|is no name of a file"):
        load_checkpoint(run / "best")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_of_a_checkpoint_that_are_none(made, tmp_path, name, kind):
    """A pipe would be waited for, /dev/zero read for ever."""
    run = shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    path = run / "best" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(CheckpointError, match=r"there is no file|is missing"):
        load_checkpoint(run / "best")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "config.yaml"])
def test_a_text_of_a_checkpoint_without_measure(made, tmp_path, name):
    run = shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    with (run / "best" / name).open("r+b") as file:
        file.truncate(1 << 40)  # none of it on the disk
    with pytest.raises(CheckpointError, match=r"has 1099511627776 bytes; it may have"):
        load_checkpoint(run / "best")


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_of_a_checkpoint_that_nests(made, tmp_path, name):
    import hashlib

    run = shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    data = b"[" * 100_000
    (run / "best" / name).write_bytes(data)
    if name != "manifest.json":
        manifest = json.loads((run / "best" / "manifest.json").read_text())
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
        (run / "best" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_checkpoint(run / "best")


# The feature cache


def cache_of(folder):
    (found,) = folder.iterdir()
    return found


def test_links_in_the_cache_that_lead_out(job, tmp_path, victim, capsys):
    """A note is replaced; a folder is refused."""
    assert main(["train", *job, *FROZEN, "data.cache=cache"]) == 0
    home = cache_of(tmp_path / "cache")
    note = home / "encoder.json"
    note.unlink()
    note.symlink_to(victim)
    assert main(["train", *job, *FROZEN, "data.cache=cache", "run.dir=again"]) == 0
    assert not note.is_symlink()
    shutil.rmtree(home)
    home.symlink_to(victim.parent)
    assert main(["train", *job, *FROZEN, "data.cache=cache", "run.dir=third"]) == 1
    assert "it is a symbolic link" in capsys.readouterr().err


def test_a_lock_in_the_cache_that_leads_out(tmp_path, victim):
    (tmp_path / ".joining").symlink_to(victim.parent / "new")
    with pytest.raises(OSError, match="symbolic links"):
        join_parts(tmp_path, [])


def test_a_modality_named_like_a_path(job, tmp_path):
    """Dots are refused in names; a slash becomes an underscore."""
    text = (tmp_path / "config.yaml").read_text().replace("text:", "/etc/text:")
    (tmp_path / "config.yaml").write_text(text)
    frozen = ("model.encoders./etc/text.freeze=all", "train.epochs=1")
    assert main(["train", *job, *frozen, "data.cache=cache"]) == 0
    assert cache_of(tmp_path / "cache").name.startswith("_etc_text-")


# Shards


def test_members_of_a_shard_are_never_written(tmp_path, victim):
    """Absolute names, names that climb, links and devices: nothing is unpacked."""
    array = np.zeros(3, np.float32)
    np.save(tmp_path / "x.npy", array)
    data = (tmp_path / "x.npy").read_bytes()
    names = [f"{victim}.npy", "../home/victim.npy", "a/../../home/victim2.npy"]
    path = write_tar(tmp_path / "x.tar", [(name, data) for name in names])
    with tarfile.open(path, "a") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
            info = tarfile.TarInfo(f"link{number}.npy")
            info.type, info.linkname = kind, str(victim)
            tar.addfile(info)
    before = sorted(os.listdir(tmp_path))
    table = read_table(path)
    assert len(table) == 3
    for row in range(3):
        assert len(read_cell(table, row, ColumnSpec("npy", "features"))) == 3
    assert sorted(os.listdir(tmp_path)) == before
