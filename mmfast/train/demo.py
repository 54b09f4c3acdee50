"""The main job, ``mmfast demo``: what a second modality brings and what joining it costs.

Trains three models on the emoji set (image only, text only, both joined by ``ConcatLinear``) on
the same splits, once per seed, then times the fusion layer against eager cat + Linear. The recipe
was chosen on validation splits of other seeds (100 to 104); the test split is used once, for the
models as the last epoch leaves them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from mmfast.data import EmojiSet, emoji_splits, load_emoji, random_shift
from mmfast.encoders import HashedText, SmallConvNet
from mmfast.nn import ConcatLinear
from mmfast.train.loop import Examples, History, Inputs, Recipe, evaluate, fit
from mmfast.train.model import MultimodalClassifier
from mmfast.train.report import mean_and_deviation, results_table, save_learning_curves
from mmfast.train.seed import seeded, threads
from mmfast.train.timing import Timing, time_fusion

MODELS: Mapping[str, tuple[str, ...]] = {
    "image only": ("image",),
    "text only": ("text",),
    "fused": ("image", "text"),
}
RECIPE = Recipe(epochs=20, batch_size=64, lr=5e-3, weight_decay=0.05, label_smoothing=0.1)
# Steps of a few milliseconds gain little from a second thread, and lose tenfold when another
# process takes its core. It also frees the result from the number of cores.
TRAIN_THREADS = 1
LARGE_SHAPE = (8192, (2048, 768), 512)
TIMINGS = 4  # two shapes, forward with and without backward


def build_encoders(modalities: Sequence[str]) -> dict[str, nn.Module]:
    """Makes the demo's encoder of each modality, "image" or "text"."""
    make: dict[str, Callable[[], nn.Module]] = {
        "image": SmallConvNet,
        "text": lambda: HashedText(dropout=0.5),
    }
    return {name: make[name]() for name in modalities}


def prepare(data: EmojiSet) -> Examples:
    """Turns the emoji set into what the encoders take, once for all runs."""
    inputs = {
        "image": SmallConvNet.preprocess(data.images),
        "text": HashedText().preprocess(data.texts),
    }
    return Examples(inputs, data.labels)


def shift_images(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """The demo's augmentation: images move by up to two pixels, texts stay."""
    return {**inputs, "image": random_shift(inputs["image"], 2, generator)}


def train_one(
    modalities: Sequence[str],
    data: EmojiSet,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[History], None] | None = None,
) -> tuple[History, float]:
    """Trains one model on one split; returns its history and its test accuracy in 0..1."""
    split = emoji_splits(data, seed)
    with seeded(seed):
        model = MultimodalClassifier(build_encoders(modalities), len(data.classes))
    train, val, test = (examples.rows(rows) for rows in split)
    augment = shift_images if "image" in modalities else None
    history = fit(model, train, val, recipe, seed=seed, augment=augment, on_epoch=on_epoch)
    return history, evaluate(model, test).accuracy


def time_fusion_layer(recipe: Recipe, classes: int, on_step: Callable[[], None]) -> list[Timing]:
    """Times the layer at the demo's own shape and threads, and at a large shape on all threads."""
    fusion = MultimodalClassifier(build_encoders(MODELS["fused"]), classes).fusion
    assert isinstance(fusion, ConcatLinear)
    own = (recipe.batch_size, fusion.in_features, fusion.out_features)
    timings = []
    for shape, count in ((own, TRAIN_THREADS), (LARGE_SHAPE, torch.get_num_threads())):
        for backward in (False, True):
            with threads(count):
                timings.append(time_fusion(*shape, backward=backward))
            on_step()
    return timings


def run(seeds: Sequence[int], recipe: Recipe, out: Path, console: Console) -> dict[str, object]:
    """Trains, times, reports; returns what it also writes to ``out/results.json``."""
    start = perf_counter()
    data = load_emoji()
    examples = prepare(data)
    histories: dict[str, list[History]] = {name: [] for name in MODELS}
    accuracies: dict[str, list[float]] = {name: [] for name in MODELS}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        steps = len(seeds) * len(MODELS) * recipe.epochs + TIMINGS
        task = progress.add_task("", total=steps)
        for seed in seeds:
            for name, modalities in MODELS.items():
                progress.update(task, description=f"seed {seed}: {name}")
                with threads(TRAIN_THREADS):
                    history, accuracy = train_one(
                        modalities, data, examples, recipe, seed, lambda _: progress.advance(task)
                    )
                histories[name].append(history)
                accuracies[name].append(accuracy)
        progress.update(task, description="timing the fusion layer")
        timings = time_fusion_layer(recipe, len(data.classes), lambda: progress.advance(task))
    results = {
        "accuracy": {name: _summary(values) for name, values in accuracies.items()},
        "timing": [timing.as_dict() for timing in timings],
        "history": {name: [asdict(run) for run in runs] for name, runs in histories.items()},
        "seeds": list(seeds),
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "training_threads": TRAIN_THREADS,
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
    """Command line of the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mmfast demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory to write")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="default: %(default)s")
    options = parser.parse_args(argv)
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made a directory: {error}")
    console = Console()
    recipe = Recipe(**{**asdict(RECIPE), "epochs": options.epochs})
    results = run(range(options.seeds), recipe, options.out, console)
    console.print(f"{results['elapsed_s']:.0f} s in all. Written:")
    for name in ("learning_curves.png", "results.json"):
        console.print(f"  {options.out / name}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
