"""Comparing runs: on the rows they share, told apart where there is a difference and only there."""

import json
import math
import re

import pytest
import torch
from browser import opened
from pipeline import small_config, write_config

from mmfast.cli import main
from mmfast.train.compare import NO_DIFFERENCE, compare_runs, explanation, run_names
from mmfast.train.config import load_config
from mmfast.train.predictions import FILE, predictions_of
from mmfast.train.run import fit
from mmfast.train.scores import Scores
from mmfast.train.statistics import mcnemar

VALUES = ("task.type=regression", "data.label=value")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one table, a sixth of whose labels are wrong."""
    folder = tmp_path_factory.mktemp("compared")
    config = write_config(folder, rows=240)
    table = folder / "table.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows[::6]:
        row["label"] = "cat" if row["label"] == "dog" else "dog"
    table.write_text("\n".join(map(json.dumps, rows)))
    runs = {
        "good": ["train.epochs=5"],
        "twin": ["train.epochs=5", "seed=1"],
        "bad": ["train.epochs=1", "train.lr=1e-9"],
        "apart": ["train.epochs=1", "data.split.seed=1"],
        "value": ["train.epochs=1", "train.lr=1e-9", *VALUES],
        "value-good": ["train.epochs=8", *VALUES],
        "other": ["train.epochs=1", "data.label=positive", "task={type: multiclass}"],
    }
    for name, overrides in runs.items():
        split = "data.split.fractions=[0.5, 0.1, 0.4]"
        fit(load_config(config, [split, f"run.dir={folder / name}", *overrides]))
    return folder


def test_noise_is_called_noise_and_a_difference_a_difference(folder):
    found = compare_runs([folder / name for name in ("good", "twin", "bad")])
    verdicts = {(pair.first, pair.second): pair.better for pair in found.pairs}
    assert verdicts == {("good", "twin"): None, ("good", "bad"): "good", ("twin", "bad"): "twin"}
    assert (found.metric, found.warnings) == ("accuracy", [])
    assert "Holm's method for 3 pairs" in explanation(found)
    predictions = [predictions_of(folder / name) for name in ("good", "bad")]
    right = [p.outputs.argmax(1) == p.labels for p in predictions]
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    pair = next(pair for pair in found.pairs if pair.second == "bad" and pair.first == "good")
    assert pair.test.p == mcnemar(*only)
    assert pair.p >= pair.test.p, "adjusted for three pairs"
    assert found.rows == len(predictions[0]) == found.units
    for name, run in zip(("good", "bad"), predictions, strict=True):
        accuracy = found.metrics[name]["accuracy"]
        assert accuracy.value == pytest.approx(Scores.of(run).point("accuracy"))
        assert accuracy.low < accuracy.value < accuracy.high


def test_the_smaller_error_is_the_better(folder):
    """The metric that chose may be an error; its sign is not that of accuracy."""
    found = compare_runs([folder / "value", folder / "value-good"])
    assert found.metric == "mae"
    assert found.pairs[0].better == "value-good"
    assert found.pairs[0].test.difference.value < 0


def test_only_common_rows_count_and_that_is_said(folder):
    found = compare_runs([folder / "good", folder / "apart"])
    rows = [set(predictions_of(folder / n).rows.tolist()) for n in ("good", "apart")]
    assert 0 < found.rows == len(rows[0] & rows[1]) < len(rows[0])
    assert "different test rows" in found.warnings[0]
    assert any("few" in warning for warning in found.warnings) == (found.rows < 30)
    good = predictions_of(folder / "good")
    kept = torch.tensor([row in rows[1] for row in good.rows.tolist()])
    expected = (good.outputs.argmax(1) == good.labels)[kept].double().mean()
    assert found.metrics["good"]["accuracy"].value == pytest.approx(float(expected))


def test_what_cannot_be_compared_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"different tasks.*good multiclass, value regression"):
        compare_runs([folder / "good", folder / "value"])
    with pytest.raises(ValueError, match=r"different labels: row \d+ is '\w+' in good"):
        compare_runs([folder / "good", folder / "other"])
    with pytest.raises(ValueError, match="two runs or more, got 1"):
        compare_runs([folder / "good"])
    with pytest.raises(ValueError, match="is named twice"):
        compare_runs([folder / "good", folder / ".." / folder.name / "good"])
    with pytest.raises(ValueError, match="metric is 'f2'; what is measured is accuracy"):
        compare_runs([folder / "good", folder / "bad"], metric="f2")
    config = small_config(tmp_path, "train.epochs=1", rows=30)
    table = tmp_path / "table.jsonl"
    table.write_text(table.read_text().replace('"group"', '"family"'))
    elsewhere = fit(config)
    with pytest.raises(ValueError, match="no test row in common"):
        compare_runs([folder / "good", elsewhere.path])


def test_runs_are_named_by_what_tells_them_apart():
    assert list(run_names(["runs/a", "runs/b"])) == ["a", "b"]
    assert list(run_names(["x/seed-0/fused", "x/seed-1/fused"])) == ["seed-0/fused", "seed-1/fused"]


def test_the_command_prints_and_writes(folder, tmp_path, capsys):
    out, data = tmp_path / "page.html", tmp_path / "all.json"
    runs = [str(folder / name) for name in ("good", "twin")]
    assert main(["compare", *runs, "-o", str(out), "--json", str(data)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (NO_DIFFERENCE, "accuracy", "McNemar's exact test", "another seed"):
        assert part in printed, part
    told = json.loads(data.read_text())
    assert told["pairs"][0]["better"] is None
    assert told["pairs"][0]["test"] == "mcnemar"
    assert set(told["runs"]["good"]["accuracy"]) == {"value", "low", "high"}
    assert "Holm" not in printed, "there is but one pair"
    assert NO_DIFFERENCE in out.read_text()
    assert "good" in out.read_text()
    heads = re.findall(r"<th[^>]*>([^<]*)", out.read_text())
    assert heads.index("verdict") == heads.index("difference in accuracy") - 1, "seen on a phone"
    assert main(["compare", *runs, "--json", "x.txt"]) == 1
    assert "must end in .json" in capsys.readouterr().err
    assert main(["report", *runs]) == 1
    assert "name it by -o" in capsys.readouterr().err
    assert main(["report", *runs, "-o", str(out)]) == 0


def test_a_browser_shows_the_page_in_silence_and_asks_nobody(folder, tmp_path):
    out = tmp_path / "page.html"
    runs = [str(folder / name) for name in ("good", "twin", "bad")]
    assert main(["report", *runs, "-o", str(out)]) == 0
    assert opened(out) == ([], [])


def test_json_has_no_nan(folder):
    """A copy agrees with itself wholly: no interval, and no p but 1."""
    copy = folder / "copy"
    copy.mkdir(exist_ok=True)
    for name in ("best", "last", "checkpoints", FILE):
        if not (copy / name).exists():
            (copy / name).symlink_to(folder / "good" / name)
    found = compare_runs([folder / "good", copy])
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["pairs"][0]["difference"] == {"value": 0.0, "low": None, "high": None}
    assert told["pairs"][0]["p"] == 1.0
    assert math.isnan(found.pairs[0].test.difference.low)
