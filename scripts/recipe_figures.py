"""Trains recipes over several seeds or folds and writes what they reach, with confidence intervals.

Each modality alone, on the rows that have it, and all of them. A row's score is its mean over the
seeds; the interval, of 95 %, is that of drawing other rows: a bootstrap over the groups of the
recipe, rows that belong together being drawn together. The deviation is that of the seeds, which
also decide the division of the data. A JSON file per recipe holds every run.

    python scripts/recipe_figures.py emoji tuxpaint avmnist retrieval mosi_like [--seeds 3]

Encoders that are frozen run once, and the rest is trained on their features. For avmnist the
fusions are compared too. Each joins the same features: those of the encoders that were trained
alone, with the same seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from compare_fusions import options_of
from rich.console import Console
from rich.progress import track
from rich.table import Table as Printed

from mmfast.data import Table, group_numbers
from mmfast.doctor import examine
from mmfast.nn import list_fusions
from mmfast.plugins import Batch
from mmfast.train import Config, Run, fit, load_config
from mmfast.train.demo import subsets, variant
from mmfast.train.predictions import compute
from mmfast.train.prepare import (
    Examples,
    build_model,
    fill_cache,
    learn_labels,
    learn_options,
    read_examples,
)
from mmfast.train.report.demo import mean_and_deviation
from mmfast.train.run import ALONE
from mmfast.train.scores import Scores
from mmfast.train.statistics import Interval, Resampling, interval

ROOT = Path(__file__).resolve().parent.parent
FOLDS = ("tuxpaint",)  # the recipes that are cross-validated
METRICS = {"retrieval": None, "mosi_like": ("mae",)}  # None: all that there are
RECIPES = ("emoji", "tuxpaint", "avmnist", "retrieval", "mosi_like")


class Tally:
    """What every run of one model says of every row: scores (runs, rows), NaN where not tested."""

    def __init__(self) -> None:
        self.rows: dict[str, list[np.ndarray]] = {}
        self.seeds: dict[str, list[float]] = {}

    def add(self, runs: Iterable[Run], metrics: Sequence[str] | None) -> None:
        """The runs of one seed: one, or those of all folds."""
        found: dict[str, list[np.ndarray]] = {}
        for run in runs:
            predictions = compute(run)
            scores = Scores.of(predictions)
            for name in metrics or scores.per_row:
                size = int(predictions.rows.max()) + 1
                terms = np.full(size, np.nan)
                terms[predictions.rows.numpy()] = scores.per_row[name]
                found.setdefault(name, []).append(terms)
        for name, parts in found.items():
            self.rows.setdefault(name, []).extend(parts)
            self.seeds.setdefault(name, []).append(float(np.nanmean(_stacked(parts))))

    def by_row(self, name: str, rows: int) -> np.ndarray:
        """The mean of a row over the runs that tested it, (rows,); NaN for one that none did."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(_stacked(self.rows[name], rows), axis=0)


def _stacked(parts: Sequence[np.ndarray], rows: int | None = None) -> np.ndarray:
    rows = rows or max(map(len, parts))
    return np.stack([np.pad(part, (0, rows - len(part)), constant_values=np.nan) for part in parts])


def train(
    name: str, config: Config, seeds: int, folder: Path, console: Console
) -> dict[str, Tally]:
    """Every model of a recipe with every seed; by its name what it says of the rows."""
    models = {"fused": tuple(config.model.encoders)}
    if config.task.type != "retrieval":
        models = subsets(config)
    metrics = METRICS.get(name, ("accuracy",))
    tallies = {model: Tally() for model in models}
    for seed in track(range(seeds), description=name, console=console):
        for model, modalities in models.items():
            place = folder / f"seed-{seed}" / model.replace(" ", "-")
            chosen = variant(config, modalities, seed, place)
            if len(modalities) < len(config.model.encoders):  # of some rows nothing remains
                data = chosen.data.model_copy(update={"on_error": "skip"})
                chosen = chosen.model_copy(update={"data": data})
            tallies[model].add(
                _runs(chosen, config.data.split.folds if name in FOLDS else 0), metrics
            )
            said = {n: round(values[-1], 4) for n, values in tallies[model].seeds.items()}
            console.print(f"seed {seed}, {model}: {said}")
        if name == "avmnist":
            alone = {m: folder / f"seed-{seed}" / f"{m}-only" for m in config.model.encoders}
            features = trained_features(alone)
            frozen = on_features(config, features, folder / f"seed-{seed}" / "features")
            for fusion in list_fusions():
                place = folder / f"seed-{seed}" / fusion
                chosen = variant(joined_by(frozen, fusion), tuple(alone), seed, place)
                tallies.setdefault(f"frozen, {fusion}", Tally()).add([_fit(chosen)], metrics)
    return tallies


def _runs(config: Config, folds: int) -> list[Run]:
    if not folds:
        return [_fit(config)]
    place = Path(config.run.dir)
    runs = []
    for fold in range(folds):
        own = config.run.model_copy(update={"dir": str(place / f"fold-{fold + 1}")})
        runs.append(_fit(config.model_copy(update={"run": own}), fold))
    return runs


def _fit(config: Config, fold: int | None = None) -> Run:
    run = fit(config, fold=fold)
    if run.signal is not None:
        raise SystemExit(128 + run.signal)
    return run


def is_frozen(config: Config) -> bool:
    """Whether no encoder learns."""
    return all(encoder.freeze == "all" for encoder in config.model.encoders.values())


def frozen_features(config: Config) -> dict[str, Batch]:
    """By modality ``values`` and ``mask`` of every row, from ``data.cache`` or into it."""
    table, specs, checked = read_examples(config)
    options = learn_options(config, table, specs, checked, checked.rows)
    labels = learn_labels(config, table, checked.rows)
    model = build_model(config, options, labels)
    examples = Examples(table, specs, checked, labels)
    stored = fill_cache(config, model, examples, checked.rows, options, ALONE)
    return {name: found.batch(checked.rows) for name, found in stored.items()}


@torch.no_grad()
def trained_features(runs: dict[str, Path]) -> dict[str, Batch]:
    """The same from the encoder of each run, which is one of a single modality."""
    found = {}
    for modality, place in runs.items():
        run = Run.load(place)
        table, specs, checked = read_examples(run.config)
        examples = Examples(table, specs, checked, run.labels)
        encoder = run.model.get_submodule(f"encoders.{modality}")
        batches = run._batches(examples, checked.rows, False).epoch()
        parts = [encoder(batch.inputs[modality]) for batch in batches]
        values, mask = (torch.cat(part) for part in zip(*parts, strict=True))
        found[modality] = {"values": values, "mask": mask}
    return found


def on_features(config: Config, features: dict[str, Batch], folder: Path) -> Config:
    """The recipe with a table of features, written to ``folder``, and no encoders.

    It learns what the recipe with these encoders, frozen, does; its checkpoints do not hold them.
    """
    folder.mkdir(parents=True)
    table, _, checked = read_examples(config)
    others = {config.data.label, config.data.group, config.data.split.column} - {None}
    columns = {name: [table.cell(row, name) for row in checked.rows.tolist()] for name in others}
    changed = config.model_dump(mode="json")
    changed["data"] |= {"source": str(folder / "table.csv"), "cache": str(folder / "cache")}
    for name, batch in features.items():
        np.save(folder / f"{name}.npy", batch["values"].numpy())
        cells = enumerate(batch["mask"].tolist())
        columns[name] = [f"{name}.npy#{row}" if there else "" for row, there in cells]
        changed["data"]["columns"][name] = {"modality": "features", "column": name}
        options = {"in_dim": batch["values"].shape[1], "standardise": False}
        encoder = {"name": "features", "options": options, "freeze": "all"}  # read but once
        changed["model"]["encoders"][name] = encoder
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return Config.model_validate(changed)


def joined_by(config: Config, fusion: str) -> Config:
    """The configuration with another fusion."""
    changed = config.model.fusion.model_copy(update={"name": fusion, "options": options_of(fusion)})
    model = config.model.model_copy(update={"fusion": changed})
    return config.model_copy(update={"model": model})


def summary(tallies: dict[str, Tally], config: Config, table: Table) -> dict[str, Any]:
    """Figures by metric and model; of the fused one also what it has over the best other."""
    found: dict[str, Any] = {}
    for metric in next(iter(tallies.values())).rows:
        rows = {model: tally.by_row(metric, len(table)) for model, tally in tallies.items()}
        tested = np.flatnonzero(~np.isnan(rows["fused"]))
        group = config.data.group
        groups = None if group is None else group_numbers([table.cell(r, group) for r in tested])
        draws = Resampling(len(tested), None if groups is None else groups.numpy())
        of = {model: _figure(values[tested], draws) for model, values in rows.items()}
        by_model = {
            model: {
                **_told(figure),
                "seed_deviation": mean_and_deviation(tallies[model].seeds[metric])[1],
                "by_seed": tallies[model].seeds[metric],
            }
            for model, figure in of.items()
        }
        found[metric] = {"rows": len(tested), "groups": draws.units, "models": by_model}
        alone = [model for model in of if model.endswith(" only")]
        if alone:
            best = (min if metric == "mae" else max)(alone, key=lambda model: of[model].value)
            gain = _figure(rows["fused"][tested] - rows[best][tested], draws)
            found[metric]["fused_over_best_alone"] = {"best": best, **_told(gain)}
    return found


def _figure(terms: np.ndarray, draws: Resampling) -> Interval:
    """The mean of what is not NaN, with its interval."""
    there = ~np.isnan(terms)
    terms, weights = terms[there], draws.weights[:, there]
    return interval(fmean(terms), weights @ terms / weights.sum(axis=1))


def _told(figure: Interval) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def show(name: str, found: dict[str, Any], console: Console) -> None:
    """The figures as tables."""
    for metric, about in found.items():
        title = f"{name}: {metric}, {about['rows']} rows in {about['groups']} groups"
        printed = Printed("model", "value", "95 % interval", "seeds", title=title)
        for model, told in about["models"].items():
            cells = (told["value"], told["low"], told["high"], told["seed_deviation"])
            value, low, high, deviation = (f"{cell:.3f}" for cell in cells)
            printed.add_row(model, value, f"{low} to {high}", f"± {deviation}")
        console.print(printed)
        if gain := about.get("fused_over_best_alone"):
            console.print(
                f"fused over {gain['best']}: {gain['value']:+.3f} "
                f"({gain['low']:+.3f} to {gain['high']:+.3f})"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recipes")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="torchmetrics")
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.recipes:
        config = load_config(ROOT / "examples" / f"{name}.yaml", options.set)
        start = perf_counter()
        with TemporaryDirectory() as folder:
            used = config
            if is_frozen(config):
                used = on_features(config, frozen_features(config), Path(folder) / "features")
            tallies = train(name, used, options.seeds, Path(folder), console)
            table, _, _ = read_examples(used)
        about = {
            "command": " ".join(["python", "scripts/recipe_figures.py", *(argv or sys.argv[1:])]),
            "seeds": options.seeds,
            "folds": config.data.split.folds if name in FOLDS else None,
            "date": date.today().isoformat(),
            "machine": examine()["machine"],
            "torch": torch.__version__,
            "elapsed_s": round(perf_counter() - start),
            "config": config.model_dump(mode="json"),
        }
        found = summary(tallies, config, table)
        show(name, found, console)
        text = json.dumps({**about, "metrics": found}, indent=1)
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
