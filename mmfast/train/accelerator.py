"""The accelerator of a configuration, checked against the way the process was launched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from mmfast.train.config import Config
from mmfast.train.parts import TrainingError


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of a configuration.

    Raises:
        TrainingError: the device or precision asked for is not to be had here, or this process was
            launched as one of several but would train alone.
    """
    train = config.train
    if train.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "train.device is cuda, but torch sees no GPU; install a CUDA build of torch, or set "
            "train.device to cpu or auto"
        )
    cpu = train.device == "cpu" or not torch.cuda.is_available()
    if train.precision == "fp16" and cpu:
        raise TrainingError(
            "train.precision is fp16, which needs a GPU; on the CPU use bf16 or fp32"
        )
    installed = {tracker.value for tracker in get_available_trackers()}
    for tracker in config.run.trackers:
        if tracker not in installed:
            raise TrainingError(
                f"run.trackers names {tracker}, which is not installed: pip install {tracker}"
            )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # accelerate keeps the first precision of a process for ever; a notebook trains more than once.
    AcceleratorState._reset_state(reset_partial_state=launched == 1)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if train.precision == "fp32" else train.precision,
        log_with=list(config.run.trackers) or None,
        project_dir=config.run.dir,
    )
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched but accelerate runs {accelerator.num_processes}: "
            "they would train apart. Launch with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    return accelerator


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Tell the trackers of the configuration which run it is."""
    accelerator.init_trackers(
        Path(config.run.dir).name, config=_flat(config.model_dump(mode="json"))
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as ``{"train.lr": 0.001}``: trackers take scalars and text alone."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, (int, float)) else str(value)
    return found
