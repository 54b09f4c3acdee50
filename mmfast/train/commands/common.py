"""What the commands share: errors told in a sentence, tables of numbers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmfast.train.checkpoint import CheckpointError
from mmfast.train.parts import TrainingError

# What a user can mend. Anything else is a defect, whose traceback is wanted.
_TOLD = (ValueError, TypeError, OSError, CheckpointError, TrainingError)
# All ranks that torchrun starts take part in these; the others are for the first alone.
_OF_ALL_RANKS = ("train", "crossval")


def told(command: str, body: Callable[[], int]) -> int:
    """Run a command; an error that its user can mend becomes one sentence and the status 1.

    With ``MMFAST_TRACEBACK=1`` in the environment the traceback is shown too.
    """
    from mmfast.plugins import PluginLoadError

    if command not in _OF_ALL_RANKS and os.environ.get("RANK", "0") != "0":
        return 0
    try:
        return body()
    except BrokenPipeError:  # mmfast.cli looks whether the reader has gone
        raise
    except (*_TOLD, PluginLoadError) as error:
        if os.environ.get("MMFAST_TRACEBACK") == "1":
            raise
        print(f"mmfast {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mmfast {command}: interrupted", file=sys.stderr)
        return 130


def output_path(option: str, name: str, *suffixes: str) -> Path:
    """The path of a file to write, found fit before the work that fills it.

    Raises:
        ValueError: it ends in none of ``suffixes``, or its folder is not there or not writable.
    """
    path = Path(name)
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {name}; it must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} is {name}; there is no folder {path.parent} to write to")
    return path


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Print one row per metric."""
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
