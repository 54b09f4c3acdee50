"""What a call allocates and what it keeps for backward, in bytes; apart from timing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for backward, each storage counted once.

    Attributes:
        total: all of them.
        extra: without those of tensors that exist anyway, such as inputs and weights.
    """

    total: int
    extra: int


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """The most that ``step`` allocates at one time, its result included.

    Counts what goes through torch's allocators: tensors, and the scratch memory of operators that
    ask torch for it. Buffers that a library obtains itself and reuses are not seen.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate((event.nbytes() for event in memory), initial=0))


def kept_bytes(forward: Callable[[], object], given: Iterable[Tensor]) -> Kept:
    """What ``forward`` keeps for backward.

    Args:
        forward: the forward pass, under autograd.
        given: tensors that exist without it.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()  # lives until the sum is done, or an address would be used twice
    total = sum(storages.values())
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    del result
    return Kept(total, sum(size for where, size in storages.items() if where not in known))


@contextmanager
def _silent() -> Iterator[None]:
    # The profiler writes a line per start and stop to the process's standard error, whatever the
    # log level; on a terminal it would tear the progress bar.
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
