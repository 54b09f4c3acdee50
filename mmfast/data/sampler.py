"""The order in which rows are drawn: one for each epoch, known without reading any of them.

Batch 37 of epoch 4 is the same whether training came there or was resumed there, and what a rank
draws does not depend on how many workers read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One draw of a sample.

    Attributes:
        position: in the data set.
        epoch: in which it is drawn.
        copy: how often the epoch drew it before; the random choices of copies differ.
    """

    position: int
    epoch: int = 0
    copy: int = 0


class Draws(Sequence[Draw]):
    """The draws of one batch, in arrays: what a step costs beside the model is to be little.

    Args:
        positions: int64 (B,).
        epoch: of all of them.
        copies: int64 (B,).
    """

    def __init__(self, positions: np.ndarray, epoch: int, copies: np.ndarray) -> None:
        self.positions, self.epoch, self.copies = positions, epoch, copies

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Draw: ...
    @overload
    def __getitem__(self, index: slice) -> Draws: ...
    def __getitem__(self, index: int | slice) -> Draw | Draws:
        if isinstance(index, slice):
            return Draws(self.positions[index], self.epoch, self.copies[index])
        return Draw(int(self.positions[index]), self.epoch, int(self.copies[index]))


class BatchSampler(Sampler[Draws]):
    """The batches of one rank in one epoch, for ``DataLoader(batch_sampler=...)``.

    Batch k of all ranks together is batch k of one rank with ``world_size`` times the batch size,
    each row of it once; in the epoch's last batch ranks may differ by one row. All ranks get
    equally many batches: one for which the last has no row left draws a row of another, a filler
    (:meth:`is_filler`), which is not to count.

    Args:
        length: number of samples.
        batch_size: rows of a batch and rank.
        seed: with the epoch it decides the order.
        shuffle: a new order each epoch; without it the rows come as they are.
        weights: float (length,), >= 0: draw ``length`` times with replacement, in proportion to
            these, such as :func:`inverse_frequency` gives. Implies ``shuffle``.
        rank, world_size: which of how many processes draws.
        drop_last: leave out a last batch that is not full.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        weights: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(
                f"length and batch_size must be at least 1, got {length} and {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be at least 0 and below world_size, got {rank} of {world_size}"
            )
        if weights is not None and (
            weights.shape != (length,) or bool((weights < 0).any()) or not float(weights.sum()) > 0
        ):
            raise ValueError(
                f"weights must be {length} numbers of at least 0, not all 0, got shape "
                f"{tuple(weights.shape)}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.shuffle = shuffle or weights is not None
        self.weights = weights
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and the batch that it begins with."""
        if epoch < 0 or not 0 <= start <= self.batches:
            raise ValueError(
                f"epoch must be at least 0 and start in 0..{self.batches}, got {epoch}, {start}"
            )
        self.epoch, self.start = epoch, start

    @property
    def batches(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        together = self.batch_size * self.world_size
        return self.length // together if self.drop_last else -(-self.length // together)

    def __len__(self) -> int:
        """Batches that are left in the epoch."""
        return self.batches - self.start

    def __iter__(self) -> Iterator[Draws]:
        order, copies = self._order()
        for batch in range(self.start, self.batches):
            places = self._places(batch)
            yield Draws(order[places], self.epoch, copies[places])

    def is_filler(self, batch: int) -> bool:
        """Whether this rank has no row of its own in a batch, counted from 0."""
        return batch * self.batch_size * self.world_size + self.rank >= self.length

    def _places(self, batch: int) -> np.ndarray:
        """Where in the epoch's order the rows of a batch stand; the ranks' form one stretch."""
        first = batch * self.batch_size * self.world_size
        last = min(first + self.batch_size * self.world_size, self.length)
        if self.is_filler(batch):
            return np.array([first])
        return np.arange(first + self.rank, last, self.world_size)

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions of the whole epoch, and how often each stood before."""
        none = np.zeros(self.length, dtype=np.int64)
        if not self.shuffle:
            return np.arange(self.length), none
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
        if self.weights is None:
            return torch.randperm(self.length, generator=generator).numpy(), none
        # Not torch.multinomial, which ends at 2**24 rows.
        bounds = self.weights.double().cumsum(0)
        points = torch.rand(self.length, generator=generator, dtype=torch.float64) * bounds[-1]
        order = torch.searchsorted(bounds, points, right=True).clamp(max=self.length - 1)
        return order.numpy(), _counted(order).numpy()


def inverse_frequency(labels: Tensor) -> Tensor:
    """Weights, float64 (N,), that draw every class of ``labels``, int64 (N,), equally often."""
    return 1 / torch.bincount(labels).double()[labels]


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits for a purpose: hashed, so that neighbouring seeds share nothing."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def _counted(order: Tensor) -> Tensor:
    """How often each value of ``order`` stood before it: [7, 2, 7, 7] gives [0, 0, 1, 2]."""
    by_value = torch.argsort(order, stable=True)
    values = order[by_value]
    starts = torch.searchsorted(values, values)  # where the run of each value begins
    counts = torch.empty_like(order)
    counts[by_value] = torch.arange(len(order)) - starts
    return counts
