"""The demo from command line to files, on a small problem."""

import json
import signal

import pytest
from PIL import Image
from pipeline import StopAt, small_config, write_config

from mmfast.train import demo


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(demo, "LARGE_SHAPE", (128, (16, 8), 8))


def results(config, out):
    overrides = ["train.epochs=2", "train.threads=1"]
    assert demo.main([str(config), *overrides, "--seeds", "2", "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def test_demo_writes_prints_and_repeats(tmp_path, capsys):
    config = write_config(tmp_path, missing=False)
    first, second = results(config, tmp_path / "one"), results(config, tmp_path / "two")
    with Image.open(tmp_path / "one" / "learning_curves.png") as image:
        assert image.format == "PNG"
    printed = capsys.readouterr().out
    for part in ("text only", "vector only", "fused", "points", "learning_curves.png"):
        assert part in printed, part
    assert set(first["accuracy"]) == {"text only", "vector only", "fused"}
    assert all(len(entry["by_seed"]) == 2 for entry in first["accuracy"].values())
    shapes = [(t["batch"], t["widths"], t["out_features"], t["backward"]) for t in first["timing"]]
    own, large = (8, [8, 8], 16), (128, [16, 8], 8)
    assert shapes == [(*own, False), (*own, True), (*large, False), (*large, True)]
    assert [t["threads"] for t in first["timing"][:2]] == [1, 1]
    assert first["accuracy"] == second["accuracy"]
    one, two = first["history"]["fused"][1][1], second["history"]["fused"][1][1]
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    # Over itself, as a second `make demo` does.
    assert results(config, tmp_path / "one")["accuracy"] == first["accuracy"]


@pytest.mark.parametrize("own", ["runs/mine/weights", "results.json"])
def test_what_the_demo_did_not_make_stays(tmp_path, monkeypatch, capsys, own):
    """--out . in a project has the folder that other runs are in."""
    config = write_config(tmp_path, missing=False)
    (tmp_path / own).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / own).write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert demo.main([str(config), "train.epochs=1", "--seeds", "1", "--out", "."]) == 1
    told = capsys.readouterr().err
    assert "--out is ., which holds files that mmfast demo did not make" in told
    assert "name a new or an empty folder" in told
    assert (tmp_path / own).read_text() == "mine"


def test_what_others_put_beside_its_runs_stays(tmp_path):
    config = write_config(tmp_path, missing=False)
    mine = tmp_path / "out" / "runs" / "mine"
    results(config, tmp_path / "out")
    mine.mkdir()
    results(config, tmp_path / "out")
    assert mine.is_dir()


def test_a_signal_ends_the_demo(tmp_path, monkeypatch, capsys):
    """Training ends by itself at a step, with a checkpoint: the next one must not begin."""
    trained, fit = [], demo.fit

    def interrupted(config, listener):
        trained.append(config.run.dir)
        return fit(config, listener=StopAt(2))

    monkeypatch.setattr(demo, "fit", interrupted)
    config = write_config(tmp_path, missing=False)
    with pytest.raises(SystemExit) as end:
        demo.main([str(config), "train.epochs=2", "--out", str(tmp_path / "out")])
    assert end.value.code == 128 + signal.SIGTERM
    assert len(trained) == 1
    assert "interrupted" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()


def test_variants_differ_in_modalities_seed_and_split_alone(tmp_path):
    config = small_config(tmp_path)
    assert demo.subsets(config) == {
        "text only": ("text",),
        "vector only": ("vector",),
        "fused": ("text", "vector"),
    }
    found = demo.variant(config, ("vector",), 7, tmp_path / "x")
    assert list(found.model.encoders) == ["vector"]
    assert (found.seed, found.data.split.seed, found.run.dir) == (7, 7, str(tmp_path / "x"))
    back = demo.variant(config, ("text", "vector"), config.seed, config.run.dir)
    assert back == config


def test_wrong_calls_are_told(tmp_path, capsys):
    config = write_config(tmp_path)
    with pytest.raises(SystemExit):
        demo.main([str(config), "--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
    assert demo.main([str(config), "task.type=regression", "data.label=value"]) == 1
    assert "compares accuracies; the task is regression" in capsys.readouterr().err
