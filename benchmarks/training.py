"""What the training pipeline costs, and what its feature cache brings.

    python benchmarks/training.py [--rows 16384] [--batch 256] [--rounds 5]

Overhead: two columns of precomputed features (2048 and 768 wide, as of ResNet-50 and BERT) are
joined by `concat` with 512 features. An epoch of the engine and an epoch of a bare PyTorch loop of
the same model, its data in memory, run in turns in one process; printed is the median of the ratios
of their times per step, without validation and checkpoints on either side.

Cache: the emoji with frozen encoders, rows per second with `data.cache` over those without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mmfast.plugins import Features
from mmfast.train.accelerator import make_accelerator
from mmfast.train.config import Config, load_config
from mmfast.train.engine import train
from mmfast.train.parts import Listener
from mmfast.train.run import _parts, fit
from mmfast.train.seed import seed_all


class Clock(Listener):
    """Seconds of the steps of each epoch, without the validation and the checkpoint after it."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_epoch_start(self, stage, epoch, epochs, steps, done) -> None:
        self.start = time.perf_counter()

    def on_step(self, loss, rows) -> None:
        self.last = time.perf_counter()

    def on_epoch_end(self, record) -> None:
        self.epochs.append(self.last - self.start)
        self.between()

    def between(self) -> None:
        """Called after each epoch."""


def config_of(folder: Path, rows: int, batch: int, epochs: int) -> Config:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, rows)
    for name, width in (("image", 2048), ("text", 768)):
        centres = rng.standard_normal((10, width), dtype=np.float32)
        values = centres[labels] + rng.standard_normal((rows, width), dtype=np.float32)
        np.save(folder / f"{name}.npy", values)
    lines = [f"image.npy#{i},text.npy#{i},{label}" for i, label in enumerate(labels)]
    (folder / "table.csv").write_text("image,text,label\n" + "\n".join(lines) + "\n")
    features = {"modality": "features"}
    return Config.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "data": {
                "source": str(folder / "table.csv"),
                "columns": {n: {"column": n, **features} for n in ("image", "text")},
                "label": "label",
                "split": {"fractions": [1.0, 0.0, 0.0]},
                "cache": str(folder / "cache"),
            },
            "model": {
                "encoders": {
                    "image": {"name": "features", "options": {"in_dim": 2048}, "freeze": "all"},
                    "text": {"name": "features", "options": {"in_dim": 768}, "freeze": "all"},
                },
                "fusion": {
                    "name": "concat",
                    "out_features": 512,
                    "options": {"activation": "relu"},
                },
            },
            "task": {"type": "multiclass"},
            "train": {
                "epochs": epochs,
                "batch_size": batch,
                "schedule": "constant",
                "device": "cpu",
            },
        }
    )


class Bare:
    """The same model, data in memory, nothing but the steps."""

    def __init__(self, parts, batch: int) -> None:
        self.model, self.task, self.batch = parts.model, parts.task, batch
        loaded = list(parts.train(batch).epoch())
        self.values = {
            name: torch.cat([b.inputs[name].values for b in loaded]) for name in loaded[0].inputs
        }
        self.labels = torch.cat([b.labels for b in loaded])
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def epoch(self) -> float:
        start = time.perf_counter()
        self.model.train()
        for rows in torch.randperm(len(self.labels)).split(self.batch):
            present = torch.ones(len(rows), dtype=torch.bool)
            inputs = {name: Features(v[rows], present) for name, v in self.values.items()}
            loss = self.task.loss(self.model(inputs), self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - start


def step_overhead(rows: int, batch: int, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        config = config_of(Path(name), rows, batch, rounds + 1)
        accelerator = make_accelerator(config)
        seed_all(0)
        parts = _parts(config, accelerator, None, None, None)
        bare = Bare(_parts(config, accelerator, None, None, None), batch)
        clock = Clock()
        others: list[float] = []
        clock.between = lambda: others.append(bare.epoch())  # type: ignore[method-assign]
        train(parts, config, accelerator, listener=clock)
    return [ours / theirs for ours, theirs in list(zip(clock.epochs, others, strict=True))[1:]]


def cache_gain(rounds: int) -> list[float]:
    frozen = [f"model.encoders.{name}.freeze=all" for name in ("image", "text")]
    gains = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds + 1):
            times = []
            for kind, more in (("cached", [f"data.cache={name}/cache"]), ("plain", [])):
                config = load_config(
                    Path(__file__).parents[1] / "examples" / "emoji.yaml",
                    [f"run.dir={name}/{kind}-{number}", "train.epochs=1", *frozen, *more],
                )
                clock = Clock()
                fit(config, listener=clock)
                times.append(clock.epochs[0])
            gains.append(times[1] / times[0])
    return gains[1:]


def told(values: list[float]) -> str:
    return f"median {median(values):.3f} ({' '.join(f'{value:.3f}' for value in sorted(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    overhead = step_overhead(arguments.rows, arguments.batch, arguments.rounds)
    print(f"time per step over that of a bare loop: {told(overhead)}")
    print(f"rows per second, cached over uncached: {told(cache_gain(arguments.rounds))}")


if __name__ == "__main__":
    main()
