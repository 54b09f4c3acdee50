"""The recipes on data that a script builds, end to end on a slice of that data.

The head of a recipe is the comment it opens with; each of its lines that begins with ``mmfast`` is
run as it stands, in a folder that holds ``examples/`` and ``data/``. Small encoders stand in for
those of the three plugins: test_plugins.py runs the recipe with these.
"""

import csv
import importlib
import json
import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import StopAt

from mmfast.cli import main
from mmfast.train import Run, fit, load_config
from mmfast.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
QUICK = ("train.threads=1", "train.epochs=3", "train.batch_size=16", "train.warmup=0")
IMAGE = "model.encoders.image={name: image_convnet, options: {image_size: 16}, freeze: all}"
TEXT = "model.encoders.text={name: text_hashed, freeze: all}"
HEARD = "{channels: [4, 8], mel: {sample_rate: 8000, mels: 16}}"
SPEECH = f"model.encoders.speech={{name: audio_convnet, options: {HEARD}, freeze: all}}"
SHORT = (
    "model.encoders.spanish.options.max_length=40",
    "model.encoders.russian.options.max_length=40",
)


@dataclass(frozen=True)
class Recipe:
    """The script that builds its data, of which each so many are taken; what it leaves behind."""

    data: str
    every: int
    runs: set[str]
    metrics: set[str]
    overrides: tuple[str, ...] = ()


CLASSES = {"loss", "accuracy", "f1_macro", "auroc", "average_precision"}
RECALLS = {
    f"{way}recall_at_{k}" for way in ("", "image_to_text_", "text_to_image_") for k in (1, 5, 10)
}
RECIPES = {
    "tuxpaint": Recipe(
        "tuxpaint",
        12,
        {"tuxpaint/fold-1", "tuxpaint/fold-2", "tuxpaint_once"},
        CLASSES,
        (IMAGE, TEXT, SPEECH, "data.split.folds=2"),
    ),
    "avmnist": Recipe("avmnist", 50, {"avmnist"}, CLASSES),
    "retrieval": Recipe("tuxpaint", 12, {"retrieval"}, {"loss", *RECALLS}, (IMAGE, TEXT)),
    "mosi_like": Recipe(
        "mosi_like",
        12,
        {"mosi_like", "mosi_like_attention"},
        {"loss", "mae", "rmse", "correlation", "r2"},
        SHORT,
    ),
}


def commands(name: str) -> list[list[str]]:
    """What the head of a recipe says to type after ``mmfast``."""
    head, _, _ = (ROOT / "examples" / f"{name}.yaml").read_text().partition("\nrun:")
    return [shlex.split(line) for line in re.findall(r"^# {5}mmfast (.+)$", head, re.M)]


def table_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "data" / name / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module


@pytest.fixture(scope="module")
def home(scripts, tmp_path_factory) -> Path:
    """A folder with ``examples/`` and a slice of each data set; fails with what a script says."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, every in {(recipe.data, recipe.every) for recipe in RECIPES.values()}:
        arguments = ["--out", str(folder / "data" / name), "--every", str(every)]
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", type("Said", (), {"write": said.append}))
            status = scripts(f"build_{name}").main(arguments)
        assert status == 0, "".join(said)
    return folder


@pytest.fixture(scope="module", params=RECIPES)
def ran(request, home):
    """A recipe after all its commands; the working directory is their folder."""
    name, recipe = request.param, RECIPES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for arguments in commands(name):
            if arguments[0] in ("train", "crossval"):
                arguments += [*recipe.overrides, *QUICK]
            if arguments[0] == "evaluate":
                arguments += ["--json", "metrics.json"]
            assert main(arguments) == 0, arguments
        yield name, recipe


def test_its_commands_leave_the_runs_that_they_name(ran):
    name, recipe = ran
    assert {arguments[0] for arguments in commands(name)} >= {"train", "evaluate", "predict"}
    found = {str(path.parent.relative_to("runs")) for path in Path("runs").glob("**/last")}
    assert found & {run for run in found if run.startswith(name)} == recipe.runs


def test_the_loss_of_every_run_falls(ran):
    _, recipe = ran
    for run in recipe.runs:
        history = Run.load(f"runs/{run}", "last").progress.history
        losses = [record["train_loss"] for record in history]
        assert losses[-1] < losses[0], run


def test_the_loaded_run_measures_what_the_command_wrote(ran):
    name, recipe = ran
    (run,) = [arguments[1] for arguments in commands(name) if arguments[0] == "evaluate"]
    measured = json.loads(Path("metrics.json").read_text())
    assert set(measured) == recipe.metrics
    assert all(math.isfinite(value) for value in measured.values()), measured
    assert Run.load(run).evaluate() == measured


def test_it_says_something_of_each_row(ran):
    name, recipe = ran
    rows = table_of(Path(), recipe.data)
    (output,) = [arguments[-1] for arguments in commands(name) if arguments[0] == "predict"]
    lines = Path(output).read_text().splitlines()
    if name == "retrieval":
        said = [json.loads(line) for line in lines]
        for record in said:
            for modality in ("image", "text"):
                assert np.linalg.norm(record[f"embedding_{modality}"]) == pytest.approx(1, abs=1e-4)
    elif name == "mosi_like":
        said = list(csv.DictReader(lines))
        errors = [
            abs(float(s["value"]) - float(r["seconds"])) for s, r in zip(said, rows, strict=True)
        ]
        # Better than the same for all, though it has seen but 50 rows.
        seconds = np.array([float(row["seconds"]) for row in rows])
        assert np.mean(errors) < np.abs(seconds - seconds.mean()).mean()
    else:
        said = list(csv.DictReader(lines))
        assert {record["label"] for record in said} <= {row["label"] for row in rows}
    assert [int(record["row"]) for record in said] == list(range(len(rows)))


def test_a_stopped_run_goes_on_to_the_same_weights(ran):
    name, recipe = ran
    arguments = next(a for a in commands(name) if a[0] == "train")
    overrides = [*arguments[2:], *recipe.overrides, *QUICK]
    whole = load_config(arguments[1], overrides)
    overrides.append(f"run.dir=runs/stopped-{name}")
    stopped = fit(load_config(arguments[1], overrides), listener=StopAt(2))
    assert stopped.signal is not None
    assert main(["train", arguments[1], *overrides, "--resume", "auto"]) == 0
    found, expected = (
        load_checkpoint(Path(run) / "last").tensors["model"]
        for run in (f"runs/stopped-{name}", whole.run.dir)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_figures_of_folds(scripts, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    figures = scripts("recipe_figures")
    overrides = [*RECIPES["tuxpaint"].overrides, *QUICK]
    arguments = ["tuxpaint", "--seeds", "1", "--out", str(tmp_path)]
    assert figures.main([*arguments, *(f"--set={override}" for override in overrides)]) == 0
    told = json.loads((tmp_path / "tuxpaint.json").read_text())
    accuracy = told["metrics"]["accuracy"]
    rows = table_of(home, "tuxpaint")
    # Every row is tested in one of the folds.
    assert (accuracy["rows"], accuracy["groups"]) == (len(rows), len({r["group"] for r in rows}))
    assert set(accuracy["models"]) == {"image only", "text only", "speech only", "fused"}
    for name, model in accuracy["models"].items():
        assert model["value"] == pytest.approx(model["by_seed"][0])
        tested = sum(bool(r["speech"]) for r in rows) if name == "speech only" else len(rows)
        assert model["value"] * tested == pytest.approx(round(model["value"] * tested))
        assert model["low"] <= model["value"] <= model["high"]
    gain = accuracy["fused_over_best_alone"]
    others = {name: m["value"] for name, m in accuracy["models"].items() if name != "fused"}
    assert others[gain["best"]] == max(others.values())
    assert gain["value"] == pytest.approx(
        accuracy["models"]["fused"]["value"] - max(others.values())
    )


def test_figures_of_every_fusion(scripts, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    figures = scripts("recipe_figures")
    monkeypatch.setattr(figures, "list_fusions", lambda: ["product", "sequence"])
    overrides = [f"--set={override}" for override in (*QUICK, "train.epochs=1")]
    assert figures.main(["avmnist", "--seeds", "1", "--out", str(tmp_path), *overrides]) == 0
    models = json.loads((tmp_path / "avmnist.json").read_text())["metrics"]["accuracy"]["models"]
    alone = {"image only", "audio only", "fused"}
    assert set(models) == alone | {"frozen, product", "frozen, sequence"}


def test_training_on_the_features_of_frozen_encoders_is_training_with_them(
    scripts, home, tmp_path, monkeypatch
):
    monkeypatch.chdir(home)
    figures = scripts("recipe_figures")
    overrides = [*RECIPES["tuxpaint"].overrides, *QUICK, "data.cache=runs/cache-of-all"]
    config = load_config("examples/tuxpaint.yaml", [*overrides, "run.dir=runs/with-encoders"])
    whole = fit(config)
    features = figures.frozen_features(config)
    assert not features["speech"]["mask"].all()
    config = figures.on_features(config, features, tmp_path / "features")
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"dir": "runs/without"})}
    )
    apart = fit(config)
    for name, value in apart.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert apart.evaluate() == pytest.approx(whole.evaluate(), rel=1e-4)


def test_a_row_counts_once_however_often_it_was_tested(scripts):
    tally = scripts("recipe_figures").Tally()
    tally.rows["accuracy"] = [
        np.array([1.0, np.nan, 0.0]),
        np.array([0.0, np.nan, np.nan, 1.0]),
        np.array([0.0]),
    ]
    found = tally.by_row("accuracy", 5)
    np.testing.assert_array_equal(found, [1 / 3, np.nan, 0, 1, np.nan])
