"""The accelerator of a configuration, checked against the way the process was launched."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

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
