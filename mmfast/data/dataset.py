"""The samples of a training run: cells read and preprocessed in workers, then joined to batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmfast.data.cache import CachedFeatures
from mmfast.data.read import CellError, ColumnSpec, cell_error, check_columns, read_cell
from mmfast.data.sampler import Draw, Draws, derived_seed
from mmfast.data.table import Table
from mmfast.plugins import Batch, Encoder

Collates = Mapping[str, Callable[[Sequence[Any]], Batch]]


class Sample(NamedTuple):
    """One row, ready to be joined with others.

    Attributes:
        inputs: by modality what ``preprocess`` returned, None where it is missing.
        label: its target, None if there are none.
        row: its number in the table.
    """

    inputs: dict[str, Any]
    label: Tensor | None
    row: int


@dataclass(frozen=True)
class MultimodalBatch:
    """B rows as tensors.

    Attributes:
        inputs: by modality what the encoder's ``collate`` returned; for cached features ``values``
            and ``mask``, the fields of ``Features``.
        labels: the targets of the rows, first dimension B; None if there are none.
        rows: int64 (B,), their numbers in the table.
    """

    inputs: dict[str, Batch]
    labels: Tensor | None
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MultimodalBatch:
        """The batch on a device; ``rows`` stays on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MultimodalBatch:
        """The batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MultimodalBatch:
        inputs = {
            name: {key: change(tensor) for key, tensor in batch.items()}
            for name, batch in self.inputs.items()
        }
        labels = None if self.labels is None else change(self.labels)
        return replace(self, inputs=inputs, labels=labels)


class MultimodalDataset(Dataset[Sample]):
    """Rows of a table as samples, for a ``DataLoader`` with :class:`mmfast.data.BatchSampler`.

    What is random in preprocessing is decided by the seed, the epoch, the row and the modality, and
    by
    nothing else: not by the number of workers, not by where a run was resumed, and not by whether
    another modality is cached. The global generator is as before afterwards.

    Args:
        table: where the cells are.
        specs: the modalities by name.
        rows: int64 (N,), the rows in use, such as those of :func:`mmfast.data.check_rows`.
        preprocess: by modality, such as :func:`detached_preprocess` gives. Modalities that stand
            neither here nor in ``features`` are left out.
        labels: targets of the rows in use, first dimension N.
        missing: rows and modalities to treat as missing though their cell is not empty.
        features: by modality, features to take from a cache instead.
        seed: of the random choices.

    Raises:
        TableError: the table lacks a column.
        ValueError: labels and rows differ in number, or a modality has no spec.

    ``dataset[draw]``, where ``draw`` is a :class:`Draw` or a position, raises CellError where a
    cell cannot be read or is refused by ``preprocess``.
    """

    def __init__(
        self,
        table: Table,
        specs: Mapping[str, ColumnSpec],
        rows: Tensor,
        preprocess: Mapping[str, Callable[[Any], Any]],
        *,
        labels: Tensor | None = None,
        missing: Collection[tuple[int, str]] = frozenset(),
        features: Mapping[str, CachedFeatures] | None = None,
        seed: int = 0,
    ) -> None:
        self.features = dict(features or {})
        self.preprocess = {name: p for name, p in preprocess.items() if name not in self.features}
        for name in self.preprocess:
            if name not in specs:
                raise ValueError(f"specs has no {name!r}; it has {', '.join(map(repr, specs))}")
        if labels is not None and len(labels) != len(rows):
            raise ValueError(f"labels must be as many as rows, got {len(labels)} and {len(rows)}")
        self.specs = {name: specs[name] for name in self.preprocess}
        check_columns(table, self.specs)
        self.table, self.rows, self.labels = table, rows, labels
        self.missing, self.seed = frozenset(missing), seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Sample:
        if not isinstance(draw, Draw):
            draw = Draw(draw)
        row = int(self.rows[draw.position])
        inputs = {name: self._input(name, row, draw) for name in self.preprocess}
        for name, cached in self.features.items():
            inputs[name] = cached.sample(row)
        label = None if self.labels is None else self.labels[draw.position]
        return Sample(inputs, label, row)

    def __getitems__(self, draws: Sequence[Draw | int]) -> Any:
        """What a DataLoader calls for a batch: where all is cached, the batch itself, at one go."""
        if self.preprocess:
            return [self[draw] for draw in draws]
        if isinstance(draws, Draws):
            places = torch.from_numpy(draws.positions)
        else:
            places = torch.tensor([one.position if isinstance(one, Draw) else one for one in draws])
        rows = self.rows.index_select(0, places)
        inputs = {name: cached.batch(rows) for name, cached in self.features.items()}
        labels = None if self.labels is None else self.labels.index_select(0, places)
        return MultimodalBatch(inputs, labels, rows)

    def _input(self, name: str, row: int, draw: Draw) -> Any:
        if (row, name) in self.missing:
            return None
        spec = self.specs[name]
        raw = read_cell(self.table, row, spec)
        if raw is None:
            return None
        with _seeded(derived_seed(self.seed, name, draw.epoch, row, draw.copy)):
            try:
                return self.preprocess[name](raw)
            except (ImportError, MemoryError):  # not the cell's fault
                raise
            except Exception as error:
                raise cell_error(self.table, row, spec, error) from error


def collate(samples: Sequence[Sample] | MultimodalBatch, collates: Collates) -> MultimodalBatch:
    """Join samples; ``functools.partial(collate, collates=...)`` is a DataLoader's ``collate_fn``.

    Args:
        samples: of one :class:`MultimodalDataset`; a batch that it has already joined is returned.
        collates: by modality the ``collate`` of its encoder or of its cached features.
    """
    if isinstance(samples, MultimodalBatch):
        return samples
    inputs = {
        name: collates[name]([sample.inputs[name] for sample in samples])
        for name in samples[0].inputs
    }
    labels = [sample.label for sample in samples if sample.label is not None]
    rows = torch.tensor([sample.row for sample in samples], dtype=torch.int64)
    return MultimodalBatch(inputs, torch.stack(labels) if labels else None, rows)


def make_loader(
    dataset: MultimodalDataset, collates: Collates, **options: Any
) -> DataLoader[MultimodalBatch | CellError]:
    """A loader whose batches :func:`raised` returns; ``options`` are those of ``DataLoader``."""
    return DataLoader(
        _CellErrorsAsItems(dataset),
        collate_fn=partial(_collate_unless_error, collates=collates),
        generator=torch.Generator(),  # it would draw a seed from the global one
        **options,
    )


def raised(loader: DataLoader[MultimodalBatch | CellError]) -> Iterator[MultimodalBatch]:
    """The batches of a loader from :func:`make_loader`; raises the CellError of one that failed."""
    for batch in loader:
        if isinstance(batch, CellError):
            raise batch
        yield batch


class _CellErrorsAsItems(Dataset[Any]):
    """Hands a CellError on: raised in a worker, it would arrive with a traceback for a message."""

    def __init__(self, dataset: MultimodalDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draws: Sequence[Draw | int]) -> Any:
        try:
            return self.dataset.__getitems__(draws)
        except CellError as error:
            return error


def _collate_unless_error(samples: Any, collates: Collates) -> MultimodalBatch | CellError:
    return samples if isinstance(samples, CellError) else collate(samples, collates)


def detached_preprocess(encoder: Encoder, training: bool) -> Callable[[Any], Any]:
    """The encoder's ``preprocess`` as it is in training or in evaluation, whatever happens to it.

    Workers see the mode that an encoder was in when they started; this keeps the mode of the data
    apart from that of the model. Parameters are shared, not copied.
    """
    if isinstance(encoder, nn.Module):
        return _in_mode(encoder, training).preprocess
    return encoder.preprocess


def _in_mode(module: nn.Module, training: bool) -> Any:
    clone = copy.copy(module)
    clone._modules = {
        name: child if child is None else _in_mode(child, training)
        for name, child in module._modules.items()
    }
    clone.training = training
    return clone


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # The CPU generator alone: torch.manual_seed would seed the GPU's as well, and not put it back.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
