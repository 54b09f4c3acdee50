"""The accelerator of a configuration, checked against the way the process was launched."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from mmfast.train.config import Config
from mmfast.train.parts import TrainingError
from mmfast.train.ranks import launched


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of a configuration.

    Raises:
        TrainingError: the device or precision asked for is not to be had here, the other ranks do
            not come, or this process was launched as one of several but would train alone.
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
    ranks, here = launched(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and here > torch.cuda.device_count():
        raise TrainingError(
            f"{here} ranks were launched on this machine, which has {torch.cuda.device_count()} "
            "GPUs; launch one per GPU (torchrun --nproc-per-node gpu), or set train.device to cpu"
        )
    # accelerate keeps the first precision of a process for ever; a notebook trains more than once.
    AcceleratorState._reset_state(reset_partial_state=ranks == 1)
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if train.precision == "fp32" else train.precision,
            log_with=list(config.run.trackers) or None,
            project_dir=config.run.dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=train.timeout))],
        )
    except dist.DistError as error:
        raise TrainingError(
            f"the {ranks} ranks that were launched did not find each other within train.timeout "
            f"({train.timeout:g} s): were all started, with the same MASTER_ADDR and MASTER_PORT, "
            f"and can they reach it? (torch.distributed said: {str(error).splitlines()[0][:200]})"
        ) from error
    if accelerator.num_processes != ranks:
        raise TrainingError(
            f"{ranks} processes were launched but accelerate runs {accelerator.num_processes}: "
            "they would train apart. Launch with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    return accelerator


def end_training(accelerator: Accelerator) -> None:
    """Close the trackers; the ranks take leave of each other when the process ends.

    Not before: it may train once more, as a cross-validation does.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Tell the trackers of the configuration which run it is."""
    folder = Path(config.run.dir).resolve()
    if (folder / folder.name).is_symlink():  # the trackers' folder; they would follow it
        raise TrainingError(f"{folder / folder.name} is a symbolic link; remove it")
    accelerator.init_trackers(folder.name, config=_flat(config.model_dump(mode="json")))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as ``{"train.lr": 0.001}``: trackers take scalars and text alone."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, (int, float)) else str(value)
    return found
