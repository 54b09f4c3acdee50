"""What a run wrote about itself, read without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfast.train.checkpoint import CheckpointError
from mmfast.train.config import Config, config_from_yaml
from mmfast.train.parts import Progress


@dataclass(frozen=True)
class Record:
    """A run as its checkpoints tell it.

    Attributes:
        path: its folder.
        config: its configuration.
        yaml: the same as text, every default written out.
        progress: of the last checkpoint, with the history of all epochs.
        best: of the checkpoint that is evaluated.
        manifest: the versions and plugins that wrote it.
    """

    path: Path
    config: Config
    yaml: str
    progress: Progress
    best: Progress
    manifest: dict[str, Any]


def read_record(path: Path) -> Record:
    """The record of a run.

    Raises:
        CheckpointError: the folder holds no run.
    """
    try:
        yaml = (path / "best" / "config.yaml").read_text(encoding="utf-8")
        manifest = json.loads((path / "best" / "manifest.json").read_text(encoding="utf-8"))
        last, best = (_progress(path / which) for which in ("last", "best"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no run that can be reported: {error}") from error
    config = config_from_yaml(yaml, str(path / "best" / "config.yaml"))
    return Record(path, config, yaml, last, best, manifest)


def _progress(checkpoint: Path) -> Progress:
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return Progress(**state["progress"])
