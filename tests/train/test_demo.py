"""The demo from command line to files, on a small part of the data."""

import dataclasses
import json

import pytest
from PIL import Image

from mmfast.data import load_emoji
from mmfast.train import Score, demo


@pytest.fixture
def small(monkeypatch):
    """Every sixth emoji, and small shapes to time."""
    whole = load_emoji()
    rows = range(0, len(whole), 6)
    part = dataclasses.replace(
        whole,
        images=whole.images[::6],
        labels=whole.labels[::6],
        families=whole.families[::6],
        texts=[whole.texts[row] for row in rows],
    )
    monkeypatch.setattr(demo, "load_emoji", lambda: part)
    monkeypatch.setattr(demo, "LARGE_SHAPE", (128, (16, 8), 8))


def results(out):
    assert demo.main(["--seeds", "2", "--epochs", "1", "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def test_demo_writes_prints_and_repeats(small, tmp_path, capsys):
    first, second = results(tmp_path / "one"), results(tmp_path / "two")
    with Image.open(tmp_path / "one" / "learning_curves.png") as image:
        assert image.format == "PNG"
    printed = capsys.readouterr().out
    for part in ("image only", "text only", "fused", "points", "learning_curves.png"):
        assert part in printed, part
    assert set(first["accuracy"]) == {"image only", "text only", "fused"}
    assert all(len(entry["by_seed"]) == 2 for entry in first["accuracy"].values())
    shapes = [(t["batch"], t["widths"], t["out_features"], t["backward"]) for t in first["timing"]]
    own, large = (64, [64, 128], 128), (128, [16, 8], 8)
    assert shapes == [(*own, False), (*own, True), (*large, False), (*large, True)]
    assert [t["threads"] for t in first["timing"][:2]] == [1, 1]
    assert first["history"] == second["history"]
    assert first["accuracy"] == second["accuracy"]


@pytest.mark.parametrize("option", ["--seeds", "--epochs"])
def test_numbers_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        demo.main([option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_the_test_split_is_for_the_last_measurement_alone(small, monkeypatch):
    data = demo.load_emoji()
    split = demo.emoji_splits(data, 0)
    examples = demo.prepare(data)
    fitted, scored = [], []
    monkeypatch.setattr(
        demo, "fit", lambda model, train, val, *_, **__: fitted.extend([train, val])
    )
    monkeypatch.setattr(
        demo, "evaluate", lambda model, rows: scored.append(rows) or Score(loss=1.0, accuracy=0.25)
    )
    _, accuracy = demo.train_one(("image", "text"), data, examples, demo.RECIPE, 0)
    assert accuracy == 0.25
    for part, rows in zip([*fitted, *scored], split, strict=True):
        assert part.inputs["text"].equal(examples.inputs["text"][rows])
        assert part.labels.equal(data.labels[rows])
