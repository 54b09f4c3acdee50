"""``mmfast crossval CONFIG [KEY=VALUE ...]``: train and test on every fold of ``data.split``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console as RichConsole
from rich.table import Table

from mmfast.train.commands.common import told
from mmfast.train.config import Config, load_config
from mmfast.train.console import Console
from mmfast.train.prepare import fold_rows, read_examples
from mmfast.train.ranks import is_first
from mmfast.train.run import Run, fit


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 for an error, 143 after SIGTERM and 130 after SIGINT."""
    parser = argparse.ArgumentParser(prog="mmfast crossval", description=__doc__)
    parser.add_argument("config", help="YAML file; data.split.folds says how many folds")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--resume", choices=("never", "auto"), default="never")
    arguments = parser.parse_intermixed_args(argv)

    def body() -> int:
        config = load_config(arguments.config, arguments.overrides)
        results = []
        count = _count(config)
        for fold in range(count):
            run = _fold(config, fold, count, arguments.resume == "auto")
            if run.signal is not None:
                if is_first():
                    print(f"interrupted in fold {fold + 1}; --resume auto goes on from there")
                return 128 + run.signal
            results.append(run.evaluate())
        if is_first():
            _report(Path(config.run.dir), results)
        return 0

    return told("crossval", body)


def _count(config: Config) -> int:
    if config.data.split.method != "column":
        return config.data.split.folds
    table, _, checked = read_examples(config)
    return len(fold_rows(config, table, checked.rows))


def _fold(config: Config, fold: int, count: int, resume: bool) -> Run:
    folder = Path(config.run.dir) / f"fold-{fold + 1}"
    run = config.run.model_copy(update={"dir": str(folder)})
    with Console(RichConsole(quiet=not is_first())) as console:
        console.console.print(f"fold {fold + 1} of {count}")
        return fit(
            config.model_copy(update={"run": run}),
            resume=resume,
            listener=console,
            notify=console.on_prepare,
            fold=fold,
        )


def _report(folder: Path, results: list[dict[str, float]]) -> None:
    summary = {
        name: {
            "mean": mean(values),
            "std": stdev(values) if len(values) > 1 else 0.0,
            "folds": values,
        }
        for name in results[0]
        if (values := [result[name] for result in results])
    }
    table = Table("metric", "mean", "standard deviation", title=f"{len(results)} folds")
    for name, found in summary.items():
        table.add_row(name, f"{found['mean']:.4f}", f"{found['std']:.4f}")
    RichConsole().print(table)
    path = folder / "crossval.json"
    partial = folder / f".{path.name}-{os.getpid()}"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    print(path)
