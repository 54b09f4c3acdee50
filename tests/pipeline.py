"""A small problem with real files, for tests of the pipeline."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch
import yaml

from mmfast.train.config import Config, load_config
from mmfast.train.parts import Listener

WORDS = {"cat": "whiskers purr meow", "dog": "bark fetch tail", "owl": "night wings hoot"}


class StopAt(Listener):
    """Sends SIGTERM to this process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def write_table(folder: Path, rows: int = 60, *, missing: bool = True) -> Path:
    """A JSONL table: text, a feature vector, class, positive or not, a value, tags, a group."""
    torch.manual_seed(0)
    centres = torch.randn(3, 6)
    path = folder / "table.jsonl"
    with path.open("w") as file:
        for row in range(rows):
            label = row % 3
            name = list(WORDS)[label]
            vector = (centres[label] + 0.5 * torch.randn(6)).tolist()
            words = WORDS[name].split()
            record = {
                "text": f"{words[row % 3]} {words[(row + 1) % 3]}",
                "vector": vector,
                "label": name,
                "positive": int(label == 1),
                "value": 10 + 3 * label + vector[0],
                "tags": "|".join(sorted({words[0], words[row % 3]})),
                "group": row // 2,
            }
            if missing and row % 7 == 0:
                del record["text"]
            elif missing and row % 11 == 1:
                del record["vector"]
            file.write(json.dumps(record) + "\n")
    return path


def settings(folder: Path) -> dict:
    """A configuration of that table, as it stands in YAML."""
    return {
        "run": {"dir": str(folder / "run")},
        "data": {
            "source": str(folder / "table.jsonl"),
            "columns": {
                "text": {"column": "text", "modality": "text"},
                "vector": {"column": "vector", "modality": "features"},
            },
            "label": "label",
            "split": {"fractions": [0.6, 0.2, 0.2]},
        },
        "model": {
            "encoders": {
                "text": {"name": "text_hashed", "options": {"out_dim": 8, "dim": 8, "buckets": 64}},
                "vector": {"name": "features", "options": {"in_dim": 6, "out_dim": 8}},
            },
            "fusion": {"name": "concat", "out_features": 16, "options": {"activation": "relu"}},
            "dropout": 0.2,
        },
        "task": {"type": "multiclass"},
        "train": {"epochs": 3, "batch_size": 8, "lr": 0.01, "device": "cpu"},
    }


def write_config(folder: Path, **table: object) -> Path:
    """The table and its configuration, as files."""
    write_table(folder, **table)  # type: ignore[arg-type]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings(folder)))
    return path


def small_config(folder: Path, *overrides: str, **table: object) -> Config:
    """The configuration of a table that is written for it."""
    return load_config(write_config(folder, **table), overrides)
