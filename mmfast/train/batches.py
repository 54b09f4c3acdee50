"""The batches of an epoch, from any batch on, the same on every resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mmfast.data import BatchSampler, MultimodalDataset
from mmfast.data.dataset import Collates, make_loader, raised
from mmfast.plugins import Batch, Features


@dataclass(frozen=True)
class ModelBatch:
    """B rows as a model takes them.

    Attributes:
        inputs: by modality what the encoder takes, or its features where they come from a cache.
        labels: targets, None for retrieval and for prediction.
        rows: int64 (B,), numbers of the rows in the table; on the CPU.
        filler: whether it only keeps this rank in step with those that have rows left, and does not
            count.
    """

    inputs: dict[str, Batch | Features]
    labels: Tensor | None
    rows: Tensor
    filler: bool = False


class Batches:
    """The batches that one rank draws from a data set.

    Args:
        dataset: the samples.
        collates: by modality, what joins its samples.
        sampler: which samples, in which order.
        workers: processes that read and preprocess; 0: this one.
        pin_memory: whether batches go to a GPU.
    """

    def __init__(
        self,
        dataset: MultimodalDataset,
        collates: Collates,
        sampler: BatchSampler,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = sampler
        self.cached = frozenset(dataset.features)
        self.loader = make_loader(
            dataset, collates, batch_sampler=sampler, num_workers=workers, pin_memory=pin_memory
        )

    @property
    def count(self) -> int:
        """Batches of an epoch."""
        return self.sampler.batches

    @property
    def rows(self) -> int:
        """Rows of an epoch, of all ranks."""
        return self.sampler.length

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[ModelBatch]:
        """The batches of an epoch, from the batch ``start`` on."""
        self.sampler.set_epoch(number, start)
        for place, batch in enumerate(raised(self.loader), start):
            inputs: dict[str, Batch | Features] = dict(batch.inputs)
            for name in self.cached:
                inputs[name] = Features(**inputs[name])  # type: ignore[arg-type]
            yield ModelBatch(inputs, batch.labels, batch.rows, self.sampler.is_filler(place))
