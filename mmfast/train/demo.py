"""The main job, ``mmfast demo``: what a second modality brings, and what joining it costs.

Trains a configuration with each of its modalities alone and with all joined, on the same splits,
once per seed; then times the fusion layer against eager cat + Linear. The test split is used once
for each model, for the weights of the epoch that was best on the validation split.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmfast.train.commands.common import told
from mmfast.train.config import Config, Stage, load_config
from mmfast.train.parts import Listener
from mmfast.train.report.demo import mean_and_deviation, results_table, save_learning_curves
from mmfast.train.run import Run, fit
from mmfast.train.seed import threads
from mmfast.train.timing import Timing, time_fusion

LARGE_SHAPE = (8192, (2048, 768), 512)
TIMINGS = 4  # two shapes, forward with and without backward
MARK = ".mmfast-demo"  # in the folder that it writes: what is there, it made


class _Steps(Listener):
    """Moves a bar by one for each epoch."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        self.advance()


def subsets(config: Config) -> dict[str, tuple[str, ...]]:
    """By name of the model its modalities: each alone, then all."""
    names = tuple(config.model.encoders)
    return {**{f"{name} only": (name,) for name in names}, "fused": names}


def variant(config: Config, modalities: Sequence[str], seed: int, folder: Path) -> Config:
    """The configuration with some of its modalities, another seed and split, in another folder."""
    encoders = {name: config.model.encoders[name] for name in modalities}
    split = config.data.split.model_copy(update={"seed": seed})
    return config.model_copy(
        update={
            "seed": seed,
            "run": config.run.model_copy(update={"dir": str(folder)}),
            "data": config.data.model_copy(update={"split": split}),
            "model": config.model.model_copy(update={"encoders": encoders}),
        }
    )


def time_fusion_layer(config: Config, run: Run, on_step: Callable[[], None]) -> list[Timing]:
    """Times the layer at the demo's own shape and threads, and at a large shape on all threads."""
    fusion: Any = run.model.get_submodule("fusion")
    own = (config.train.batch_size, fusion.in_features, fusion.out_features)
    every = torch.get_num_threads()
    timings = []
    for shape, count in ((own, config.train.threads or every), (LARGE_SHAPE, every)):
        for backward in (False, True):
            with threads(count):
                timings.append(time_fusion(*shape, backward=backward))
            on_step()
    return timings


def claim(out: Path) -> None:
    """Make the folder to write, or take that of an earlier demo.

    Raises:
        ValueError: it holds something else, which would be replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / MARK).is_file():
        raise ValueError(
            f"--out is {out}, which holds files that mmfast demo did not make and might replace; "
            "name a new or an empty folder, such as runs/demo"
        )
    (out / MARK).touch()


def compare(config: Config, seeds: Sequence[int], out: Path, console: Console) -> dict[str, Any]:
    """Trains, times, reports; returns what it also writes to ``out/results.json``.

    Raises:
        SystemExit: SIGTERM or SIGINT ended a training.
    """
    start = perf_counter()
    models = subsets(config)
    histories: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in models}
    accuracies: dict[str, list[float]] = {name: [] for name in models}
    stages = config.train.stages or (Stage(name="train"),)
    epochs = sum(stage.epochs or config.train.epochs for stage in stages)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(seeds) * len(models) * epochs + TIMINGS)
        steps = _Steps(lambda: progress.advance(task))
        for seed in seeds:
            for name, modalities in models.items():
                progress.update(task, description=f"seed {seed}: {name}")
                folder = out / "runs" / f"seed-{seed}" / name.replace(" ", "-")
                if folder.exists():  # of an earlier demo
                    shutil.rmtree(folder)
                run = fit(variant(config, modalities, seed, folder), listener=steps)
                if run.signal is not None:
                    console.print("interrupted; what was not trained cannot be compared")
                    raise SystemExit(128 + run.signal)
                with threads(config.train.threads):
                    accuracies[name].append(run.evaluate()["accuracy"])
                histories[name].append(run.progress.history)
        progress.update(task, description="timing the fusion layer")
        timings = time_fusion_layer(config, run, lambda: progress.advance(task))
    results = {
        "accuracy": {name: _summary(values) for name, values in accuracies.items()},
        "timing": [timing.as_dict() for timing in timings],
        "history": histories,
        "seeds": list(seeds),
        "config": config.model_dump(mode="json"),
        "torch": torch.__version__,
        "elapsed_s": perf_counter() - start,
    }
    save_learning_curves(histories, out / "learning_curves.png")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(results_table(accuracies, timings))
    return results


def _summary(values: Sequence[float]) -> dict[str, object]:
    mean, deviation = mean_and_deviation(values)
    return {"mean": mean, "std": deviation, "by_seed": list(values)}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 for an error, 143 after SIGTERM and 130 after SIGINT."""
    parser = argparse.ArgumentParser(prog="mmfast demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", help="YAML file, such as examples/emoji.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="a new or an empty folder, or that of an earlier demo (default: runs/demo)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    options = parser.parse_intermixed_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")

    def body() -> int:
        config = load_config(options.config, options.overrides)
        if config.task.type not in ("binary", "multiclass"):
            raise ValueError(f"the demo compares accuracies; the task is {config.task.type}")
        claim(options.out)
        console = Console()
        with warnings.catch_warnings():
            # A class may be absent from a small validation split; its AUC is then left out.
            warnings.filterwarnings("ignore", module="torchmetrics")
            results = compare(config, range(options.seeds), options.out, console)
        console.print(f"{results['elapsed_s']:.0f} s in all. Written:")
        for name in ("learning_curves.png", "results.json"):
            console.print(f"  {options.out / name}", soft_wrap=True, highlight=False)
        return 0

    return told("demo", body)


if __name__ == "__main__":
    raise SystemExit(main())
