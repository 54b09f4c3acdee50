"""An encoder under DistributedDataParallel, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import SkipTest

import torch
from torch import Tensor, distributed, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from mmfast.plugins import Batch
from mmfast.testing.compare import weights_like


def train_under_ddp(encoder: nn.Module, batches: Sequence[Batch]) -> None:
    """One backward pass for each batch.

    DDP finds a parameter without gradient at the pass after, with one process as with many, so one
    is enough, and quick.

    Raises:
        RuntimeError: DDP's, naming the parameters that got no gradient.
    """
    if not distributed.is_available():
        raise SkipTest("this torch is built without torch.distributed")
    alone = not distributed.is_initialized()
    if alone:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(encoder)
        if alone:
            # Gloo's threads let go of their work under the interpreter's lock, and are waited for
            # with it held when the group ends: there must be no work just before (torch 2.13).
            model.register_comm_hook(None, lambda _, bucket: _done(bucket.buffer()))
        for batch in batches:
            values = torch.nan_to_num(model(batch).values)
            (values * weights_like(values)).sum().backward()
    finally:
        if alone:
            distributed.destroy_process_group()


def _done(gradients: Tensor) -> Future[Tensor]:
    found: Future[Tensor] = Future()
    found.set_result(gradients)
    return found
