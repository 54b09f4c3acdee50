"""The emoji recipe, from the command line, on its own configuration."""

import csv
import json
from pathlib import Path

from mmfast.cli import main

RECIPE = str(Path(__file__).parents[2] / "examples" / "emoji.yaml")


def test_the_recipe_trains_measures_predicts_and_exports(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["config", "check", RECIPE]) == 0
    assert main(["train", RECIPE, f"run.dir={run}", "train.epochs=3"]) == 0
    assert main(["evaluate", run, "--json", str(tmp_path / "metrics.json")]) == 0
    # Nine classes, the largest a fifth of the rows; twenty epochs reach 80 %.
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] > 0.4
    assert main(["predict", run, "emoji", "-o", str(tmp_path / "said.csv")]) == 0
    with (tmp_path / "said.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1906
    assert main(["export", run, "-o", str(tmp_path / "model.pt2")]) == 0
    assert (tmp_path / "model.pt2").stat().st_size > 100_000
