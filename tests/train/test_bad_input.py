"""Bad input through the commands: a sentence that helps, the status 1, no traceback."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import suppress

import numpy as np
import pytest
import torch
import yaml
from data_files import noisy, wav
from pipeline import write_config

from mmfast.cli import main
from mmfast.encoders.audio import AudioConvNet
from mmfast.plugins.encoders import ENCODERS

COLUMNS = ("photo", "words", "speech", "kind")
SPEECH = {"data.columns": {"speech": {"modality": "audio", "column": "speech"}}}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with a table of files and first.yaml, in which the commands are run."""
    monkeypatch.chdir(tmp_path)
    tone = np.sin(np.arange(4000) / 5)
    rows = []
    for row in range(12):
        (tmp_path / f"{row}.png").write_bytes(noisy((16, 16), seed=row))
        (tmp_path / f"{row}.wav").write_bytes(wav(tone, rate=16000))
        rows.append([f"{row}.png", "purr" if row % 2 else "bark", f"{row}.wav", "ab"[row % 2]])
    return Job(tmp_path, rows)


class Job:
    """A table, a configuration, and what `mmfast train` says of them."""

    def __init__(self, folder, rows):
        self.folder, self.rows = folder, rows
        self.header = list(COLUMNS)
        self.settings = {
            "run": {"dir": "run"},
            "data": {
                "source": "table.csv",
                "columns": {
                    "photo": {"modality": "image", "column": "photo"},
                    "words": {"modality": "text", "column": "words"},
                    "speech": {"modality": "audio", "column": "speech"},
                },
                "label": "kind",
                "split": {"method": "random", "fractions": [0.5, 0.25, 0.25]},
            },
            "model": {
                "encoders": {
                    "photo": {"name": "image_convnet", "options": {"image_size": 8}},
                    "words": {"name": "text_bag", "options": {"dim": 4, "out_dim": 4}},
                    "speech": {"name": "audio_convnet"},
                },
                "fusion": {"name": "concat", "out_features": 8},
            },
            "task": {"type": "multiclass"},
            "train": {"epochs": 1, "device": "cpu"},
        }

    def write(self):
        """Write table.csv and first.yaml."""
        with (self.folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.header, *self.rows])
        (self.folder / "first.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def train(self, *overrides):
        """Write both, train, and return the status."""
        self.write()
        return main(["train", "first.yaml", *overrides])


@pytest.fixture
def told(capsys):
    """What a command that must fail with status 1 wrote to standard error."""

    def check(status):
        error = capsys.readouterr().err
        assert status == 1, error
        assert error.startswith("mmfast ")
        assert "Traceback" not in error
        return error

    return check


def test_good_input_is_taken(job):
    assert job.train() == 0


def test_a_typo_in_a_key_and_a_wrong_type_are_told_together(job, told):
    job.settings["train"] |= {"epoch": 3, "lr": "fast"}
    error = told(job.train())
    lines = (job.folder / "first.yaml").read_text().splitlines()
    typo = 1 + lines.index("  epoch: 3")
    assert f"first.yaml:{typo}: train.epoch: there is no such key (did you mean 'epochs'?)" in error
    assert "train.lr: is 'fast'; it must be a number" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: is -1; it must be at least 0"),
        ("model.encoders.words.lr_scale=0", "it must be greater than 0"),
        ("train.lr", "an override must read key.path=value"),
    ],
)
def test_overrides(job, told, override, message):
    assert message in told(job.train(override))


@pytest.mark.parametrize("name", ["a.b", "", "keys", "training"])
def test_a_modality_whose_name_no_module_can_have(job, told, name):
    for section in (job.settings["data"]["columns"], job.settings["model"]["encoders"]):
        section[name] = section.pop("words")
    error = told(job.train())
    assert f"name a modality {name!r}, which cannot be used" in error


def test_options_that_plugins_do_not_have_are_told_together(job, told):
    job.settings["model"]["encoders"]["photo"]["options"] = {"image_siz": 8}
    job.settings["model"]["encoders"]["words"]["options"] = {"max_words": 9, "dim": 4}
    job.settings["model"]["fusion"]["options"] = {"activatio": "relu"}
    job.write()
    error = told(main(["config", "check", "first.yaml"]))
    assert "model.encoders.photo: the encoder 'image_convnet' has no option 'image_siz'" in error
    assert "(did you mean 'image_size'?)" in error
    assert "model.fusion: the fusion 'concat' has no option 'activatio'" in error
    assert "words" not in error  # fit_options takes max_words


def test_a_missing_file(job, told):
    job.rows[3][0] = "none.png"
    assert "table.csv:5, column 'photo': none.png: there is no such file" in told(job.train())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image(job, told, workers):
    (job.folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    fractions = "data.split.fractions=[1, 0, 0]"
    error = told(job.train(f"data.workers={workers}", fractions))
    assert "table.csv:5, column 'photo': 3.png: is no readable image" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_met_by_the_cache(job, told, workers):
    (job.folder / "3.png").write_bytes(noisy()[:300])
    job.settings["model"]["encoders"]["photo"]["freeze"] = "all"
    overrides = (f"data.workers={workers}", "data.cache=cache")
    error = told(job.train(*overrides, "data.split.fractions=[1, 0, 0]"))
    assert "table.csv:5, column 'photo': 3.png: is no readable image" in error
    assert len(error.splitlines()) == 1


def test_a_truncated_wav(job, told):
    path = job.folder / "7.wav"
    path.write_bytes(path.read_bytes()[:1000])
    error = told(job.train("data.split.fractions=[1, 0, 0]"))
    assert "table.csv:9, column 'speech': 7.wav: " in error


@pytest.mark.parametrize("policy", ["skip", "missing"])
def test_what_cannot_be_read_is_left_out_where_that_is_wanted(job, policy, capsys):
    """The options that encoders learn from the training rows pass over it too."""
    rows = []
    for row, cells in enumerate(job.rows):
        np.save(job.folder / f"{row}.npy", np.full(3, row, np.float32))
        rows.append([*cells, f"{row}.npy"])
    job.rows, job.header = rows, [*COLUMNS, "facts"]
    (job.folder / "3.npy").write_bytes((job.folder / "3.npy").read_bytes()[:-2])
    (job.folder / "3.png").write_bytes(b"no image")
    job.settings["data"]["columns"]["facts"] = {"modality": "features", "column": "facts"}
    job.settings["model"]["encoders"]["facts"] = {"name": "features", "options": {"in_dim": 3}}
    status = job.train(f"data.on_error={policy}", "data.split.fractions=[1, 0, 0]")
    assert status == 0, capsys.readouterr().err


@pytest.fixture
def strict_audio(monkeypatch):
    class Strict(AudioConvNet):
        def preprocess(self, raw):
            if raw.sample_rate != 16000:
                raise ValueError(f"the sample rate is {raw.sample_rate}; it must be 16000")
            return super().preprocess(raw)

    monkeypatch.setattr(ENCODERS, "registered", dict(ENCODERS.registered))
    ENCODERS.register("strict_audio", Strict, ["audio"])


def test_a_wrong_sample_rate(job, told, strict_audio):
    """mmfast's own encoders resample; one that does not refuses, and the cell is named."""
    (job.folder / "2.wav").write_bytes(wav(np.zeros(2000), rate=8000))
    everything = ("data.split.fractions=[1, 0, 0]",)
    assert job.train(*everything) == 0
    job.settings["model"]["encoders"]["speech"]["name"] = "strict_audio"
    error = told(job.train(*everything, "run.dir=other"))
    assert "table.csv:4, column 'speech': 2.wav: the sample rate is 8000" in error


def test_an_empty_manifest(job, told):
    job.rows = []
    assert "table.csv is empty: it has a header, and no row" in told(job.train())


def test_a_manifest_that_is_not_there(job, told):
    assert "there is no file none.csv" in told(job.train("data.source=none.csv"))


def test_a_missing_column(job, told):
    job.header[1] = "word"
    error = told(job.train())
    assert "table.csv has no column 'words' (did you mean 'word'?)" in error


def test_a_label_that_training_has_not_seen(job, told):
    job.header.append("side")
    sides = ["train"] * 10 + ["val", "test"]
    job.rows = [[*cells, side] for cells, side in zip(job.rows, sides, strict=True)]
    job.rows[10][3] = "c"
    error = told(job.train("data.split={method: column, column: side}"))
    assert "'c' at table.csv:12" in error
    job.rows[10][3] = "a"
    assert job.train("data.split={method: column, column: side}") == 0
    job.rows[11][3] = "d"
    job.write()
    assert "'d' at table.csv:13" in told(main(["evaluate", "run", "--data", "table.csv"]))


def test_a_split_column_that_says_something_else(job, told):
    job.rows[0] = ["", "", "", "a"]  # left out: rows and places among those in use differ
    job.rows[5][3] = "c"
    split = "data.split={method: column, column: kind}"
    error = told(job.train(split, "data.on_error=skip"))
    assert "'c' in table.csv:7" in error


def test_a_row_without_any_modality(job, told):
    job.rows[4][:3] = ["", "", ""]
    error = told(job.train())
    assert "table.csv:6, column 'photo, words, speech': the row has no modality" in error


def test_one_class_only(job, told):
    for cells in job.rows:
        cells[3] = "a"
    assert "'kind' has 1 classes in the training split ('a')" in told(job.train())


def test_no_rows_to_validate_on(job, told):
    nothing = "data.split.fractions=[0.75, 0, 0.25]"
    for setting in ("train.schedule=plateau", "train.early_stopping={patience: 1}"):
        error = told(job.train(nothing, setting))
        assert "watches the validation split, which is empty" in error
    assert job.train(nothing) == 0


def test_a_loss_that_is_not_finite(job, told):
    overrides = ("train.lr=1e30", "train.epochs=3", "train.schedule=constant")
    error = told(job.train(*overrides))
    assert "the loss became" in error
    assert "in the batch of the table's rows" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(job, told):
    assert "torch sees no GPU" in told(job.train("train.device=cuda"))
    assert "needs a GPU" in told(job.train("train.precision=fp16"))


def test_a_tracker_that_is_not_installed(job, told, monkeypatch):
    monkeypatch.setattr("mmfast.train.accelerator.get_available_trackers", lambda: [])
    error = told(job.train("run.trackers=[tensorboard]"))
    assert "run.trackers names tensorboard, which is not installed" in error


def test_a_run_folder_that_cannot_be_made(job, told):
    (job.folder / "run").write_text("a file")
    assert "run.dir run cannot be written to: File exists" in told(job.train())
    assert "run.dir run/inside cannot be written to" in told(job.train("run.dir=run/inside"))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root, and a machine that allows it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(job, told, small_disk, capsys):
    frozen = ("model.encoders.photo.freeze=all", "data.cache=disk/cache")
    job.settings["model"]["encoders"]["photo"]["options"]["channels"] = [32, 64]
    error = told(job.train("run.dir=disk/run"))
    assert "disk/run/checkpoints/step-00000001 could not be written: the disk is full" in error
    (small_disk / "rest").write_bytes(b"0" * 250_000)
    assert job.train() == 0
    capsys.readouterr()
    with (small_disk / "rest").open("ab", buffering=0) as file, suppress(OSError):
        while True:  # to the last byte
            file.write(b"0" * 4096)
    error = told(job.train("run.dir=again", *frozen))
    assert "the feature cache disk/cache" in error
    for command in (
        ["predict", "run", "table.csv", "-o", "disk/said.csv"],
        ["export", "run", "-o", "disk/model.pt2"],
    ):
        error = told(main(command))
        assert f"{command[-1]} could not be written: No space left" in error
        assert sorted(os.listdir(small_disk)) == ["cache", "rest", "run"]


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "run", "table.csv", "-o", "none/said.csv"],
        ["export", "run", "-o", "none/model.pt2"],
        ["evaluate", "run", "--json", "none/found.json"],
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(job, told, command):
    """There is no run either; loading it would be told first."""
    assert "there is no folder none to write to" in told(main(command))


def test_evaluate_takes_a_table_or_a_split(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "run", "--data", "x.csv", "--split", "val"])
    assert exit_.value.code == 2


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", str(write_config(folder)), "train.epochs=1"]) == 0
    return folder / "run"


def forged(run, folder, name, change):
    """A copy of a run with one file changed, and its digest with it."""
    shutil.copytree(run, folder, symlinks=True)
    place = folder / "best"
    data = change((place / name).read_bytes())
    (place / name).write_bytes(data)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def test_a_tampered_tensor(small_run, tmp_path, told):
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "best" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    error = told(main(["evaluate", str(tmp_path / "run")]))
    assert f"{file} is not the file that was saved" in error


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.yaml",
            lambda data: data.replace(b"text_hashed", b"os/system"),
            "no encoder is named 'os/system'",
        ),
        ("state.json", lambda data: b"{}", "its state lacks fingerprint, fold, labels"),
        ("state.json", lambda data: b"[]", "is not of an mmfast checkpoint"),
        ("state.json", lambda data: data[:-5], "state.json is no JSON"),
        ("model.safetensors", lambda data: b"\x80\x04.", "is no safetensors file"),
    ],
)
def test_a_forged_checkpoint(small_run, tmp_path, told, name, change, message):
    run = forged(small_run, tmp_path / "run", name, change)
    assert message in told(main(["evaluate", run]))


def test_ctrl_c_before_training_is_no_traceback(job, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmfast.train.run.read_examples", interrupted)
    try:
        assert job.train() == 130
    except KeyboardInterrupt:  # it would end pytest
        pytest.fail("the interruption reached the caller")
    assert capsys.readouterr().err == "mmfast train: interrupted\n"
