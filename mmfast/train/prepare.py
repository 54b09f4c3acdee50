"""From a configuration to what the engine trains: table, division, encoders, model."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.data import (
    BatchSampler,
    CachedFeatures,
    Checked,
    ColumnSpec,
    Labels,
    MultimodalDataset,
    Split,
    Table,
    cache_features,
    check_rows,
    column_split,
    derived_seed,
    detached_preprocess,
    fit_labels,
    group_numbers,
    grouped_split,
    inverse_frequency,
    kfold,
    random_split,
    read_cell,
    read_table,
    stratified_split,
)
from mmfast.data.read import is_missing
from mmfast.plugins import create_encoder, encoder_info, fit_encoder_options
from mmfast.train.batches import Batches
from mmfast.train.config import Config
from mmfast.train.multimodal import MultimodalModel, RetrievalModel
from mmfast.train.ranks import World, together
from mmfast.train.tasks import Task

Notify = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Examples:
    """The rows of a configuration's table that can be used.

    Attributes:
        table: all of it.
        specs: by modality, where its cells are.
        checked: the rows in use, and what was wrong with others.
        labels: what the labels are; None for retrieval.
    """

    table: Table
    specs: Mapping[str, ColumnSpec]
    checked: Checked
    labels: Labels | None

    def targets(self, rows: Tensor) -> Tensor | None:
        """The targets of rows; None for retrieval."""
        return None if self.labels is None else self.labels.encode(self.table, rows)


def read_examples(
    config: Config,
    *,
    source: str | None = None,
    labelled: bool = True,
    notify: Notify | None = None,
) -> tuple[Table, dict[str, ColumnSpec], Checked]:
    """Read the table and find the rows that can be used.

    Args:
        config: the configuration.
        source: another table than the configuration's.
        labelled: whether a row needs a label.
        notify: is told how far reading is.
    """
    data = config.data
    options = data.options if source is None else None
    table = read_table(source or data.source, options)
    specs = {name: column_spec(config, name) for name in config.model.encoders}
    rows = None
    if config.task.type == "retrieval":
        rows = torch.tensor(
            [
                row
                for row in range(len(table))
                if not any(is_missing(table, row, spec) for spec in specs.values())
            ],
            dtype=torch.int64,
        )
    checked = check_rows(
        table,
        specs,
        rows,
        on_error=data.on_error,
        labels=_label_columns(config) if labelled and config.task.type != "multilabel" else (),
        workers=data.workers,
        progress=notify and (lambda done, total: notify("checking rows", done, total)),
    )
    return table, specs, checked


def split_rows(config: Config, table: Table, rows: Tensor) -> Split:
    """Divide the rows in use as ``data.split`` says."""
    split = config.data.split
    drawn: dict[str, Any] = {"fractions": split.fractions, "seed": split.seed}
    if split.method == "column":
        assert split.column is not None
        cells, numbers = table.column(split.column), rows.tolist()
        found = column_split(
            [cells[row] for row in numbers], lambda place: table.where(numbers[place])
        )
    elif split.method == "random":
        found = random_split(len(rows), **drawn)
    elif split.method == "grouped":
        found = grouped_split(_classes(config, table, rows), _groups(config, table, rows), **drawn)
    else:
        found = stratified_split(_classes(config, table, rows), **drawn)
    return Split(*(rows[side] for side in found))


def fold_rows(config: Config, table: Table, rows: Tensor) -> list[Split]:
    """The folds of a cross-validation, of the kind that ``data.split`` says."""
    split = config.data.split
    grouped = split.method == "grouped"
    column = table.column(split.column) if split.column is not None else None
    share = split.fractions[1] / max(split.fractions[0] + split.fractions[1], 1e-9)
    folds = kfold(
        split.method,
        folds=split.folds,
        seed=split.seed,
        labels=_classes(config, table, rows),
        groups=_groups(config, table, rows) if grouped else None,
        column=None if column is None else [column[row] for row in rows.tolist()],
        val=share,
    )
    return [Split(*(rows[side] for side in fold)) for fold in folds]


def learn_labels(config: Config, table: Table, rows: Tensor) -> Labels | None:
    """What the labels of the training rows are; None for retrieval."""
    kind = config.task.type
    if kind == "retrieval":
        return None
    return fit_labels(
        table,
        _label_columns(config),
        kind,
        rows,
        classes=config.task.classes,
        separator=config.data.label_separator,
        standardize=kind == "regression",
    )


def learn_options(
    config: Config,
    table: Table,
    specs: Mapping[str, ColumnSpec],
    checked: Checked,
    rows: Tensor,
) -> dict[str, dict[str, Any]]:
    """By modality, the encoder's options completed by what it finds in the training rows."""
    found = {}
    for name, encoder in config.model.encoders.items():
        readable = [row for row in rows.tolist() if (row, name) not in checked.missing]
        samples = _RawSamples(table, specs[name], readable)
        found[name] = fit_encoder_options(encoder.name, samples, **encoder.options)
    return found


def build_model(
    config: Config, options: Mapping[str, Mapping[str, Any]], labels: Labels | None
) -> nn.Module:
    """The model with its initial weights, which the seed decides.

    Each encoder draws from a seed of its own, so that it starts the same with or without others.
    """
    encoders = {}
    with torch.random.fork_rng(devices=[]):
        for name, encoder in config.model.encoders.items():
            torch.manual_seed(derived_seed(config.seed, "encoder", name))
            encoders[name] = create_encoder(encoder.name, **options[name])
            wanted, got = config.data.columns[name].modality, encoders[name].spec.modality
            if wanted != got:
                raise ValueError(
                    f"model.encoders.{name} is {encoder.name}, which encodes {got}; "
                    f"data.columns.{name} holds {wanted}"
                )
        torch.manual_seed(derived_seed(config.seed, "model"))
        model = config.model
        if labels is None:
            return RetrievalModel(encoders, model.fusion.out_features)
        outputs = max(1, len(labels.classes))
        return MultimodalModel(
            encoders,
            model.fusion,
            1 if labels.kind == "binary" else outputs,
            hidden=model.hidden,
            dropout=model.dropout,
            modality_dropout=model.modality_dropout,
            normalise=model.normalise,
        )


def build_task(config: Config, labels: Labels | None, targets: Tensor | None) -> Task:
    """The task; ``targets`` are those of the training rows, for class weights."""
    counts = None
    if labels is not None and targets is not None and labels.kind in ("binary", "multiclass"):
        counts = torch.bincount(targets, minlength=len(labels.classes)).tolist()
    return Task(
        config.task,
        len(labels.classes) if labels else 0,
        counts=counts,
        modalities=tuple(config.model.encoders),
        mean=labels.mean if labels else 0.0,
        std=labels.std if labels else 1.0,
    )


def fill_cache(
    config: Config,
    model: nn.Module,
    examples: Examples,
    rows: Tensor,
    options: Mapping[str, Mapping[str, Any]],
    world: World,
    notify: Notify | None = None,
) -> dict[str, CachedFeatures]:
    """The features of encoders that are frozen throughout, if ``data.cache`` names a folder."""
    if config.data.cache is None:
        return {}
    found = {}
    # Of several ranks each computes a part first, and then reads those of the others.
    parts = [rows]
    if world.num_processes > 1:
        parts = [rows[world.process_index :: world.num_processes], rows]
    for name, encoder in model.get_submodule("encoders").named_children():
        if not _always_frozen(config, name):
            continue
        chosen = config.model.encoders[name]
        plugin = encoder_info(chosen.name)
        for some in parts:
            with together(world):
                found[name] = cache_features(
                    config.data.cache,
                    encoder,  # type: ignore[arg-type]
                    identity={
                        "name": chosen.name,
                        "options": options[name],
                        "plugin": plugin.source,
                    },
                    table=examples.table,
                    spec=examples.specs[name],
                    rows=some,
                    name=name,
                    missing=examples.checked.missing,
                    batch_size=config.train.batch_size,
                    workers=config.data.workers,
                    device=world.device,
                    progress=notify and _named(notify, f"encoding {name}"),
                )
    return found


def make_batches(
    config: Config,
    model: nn.Module,
    examples: Examples,
    rows: Tensor,
    *,
    training: bool,
    batch_size: int,
    world: World,
    features: Mapping[str, CachedFeatures] | None = None,
    labelled: bool = True,
) -> Batches:
    """The batches of some rows, for training or for evaluation."""
    encoders: dict[str, Any] = dict(model.get_submodule("encoders").named_children())
    features = dict(features or {})
    targets = examples.targets(rows) if labelled else None
    dataset = MultimodalDataset(
        examples.table,
        examples.specs,
        rows,
        {
            name: detached_preprocess(encoder, training and not _always_frozen(config, name))
            for name, encoder in encoders.items()
        },
        labels=targets,
        missing=examples.checked.missing,
        features=features,
        seed=config.seed,
    )
    weights = None
    if training and config.task.balance == "sampler" and targets is not None:
        weights = inverse_frequency(targets)
    sampler = BatchSampler(
        len(dataset),
        batch_size,
        seed=config.seed,
        shuffle=training,
        weights=weights,
        rank=world.process_index,
        world_size=world.num_processes,
    )
    collates = {n: features[n].collate if n in features else e.collate for n, e in encoders.items()}
    return Batches(
        dataset,
        collates,
        sampler,
        workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
    )


def versions(config: Config) -> dict[str, Any]:
    """What wrote a checkpoint: versions of mmfast, torch and Python, and the plugins it needs."""
    return {
        "mmfast": version("mmfast"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "encoders": {
            encoder.name: encoder_info(encoder.name).source
            for encoder in config.model.encoders.values()
        },
    }


class _RawSamples(Sequence[Any]):
    """The raw samples of some rows, read when they are asked for."""

    def __init__(self, table: Table, spec: ColumnSpec, rows: Sequence[int]) -> None:
        self.table, self.spec, self.rows = table, spec, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [read_cell(self.table, row, self.spec) for row in self.rows[index]]
        return read_cell(self.table, self.rows[index], self.spec)

    def __iter__(self) -> Iterator[Any]:
        return (read_cell(self.table, row, self.spec) for row in self.rows)


def column_spec(config: Config, name: str) -> ColumnSpec:
    """Where the cells of a modality are, as ``data.columns`` says."""
    column = config.data.columns[name]
    return ColumnSpec(
        column.column or "",
        column.modality,
        None if column.root is None else Path(column.root),
        column.fields,
    )


def _label_columns(config: Config) -> tuple[str, ...]:
    label = config.data.label
    if config.task.type == "retrieval" or label is None:
        return ()
    return (label,) if isinstance(label, str) else label


def _classes(config: Config, table: Table, rows: Tensor) -> Tensor:
    """By what rows are stratified: the class where there is one, otherwise nothing."""
    if config.task.type not in ("binary", "multiclass"):
        return torch.zeros(len(rows), dtype=torch.int64)
    (column,) = _label_columns(config)
    found = group_numbers([str(table.cell(row, column)) for row in rows.tolist()])
    return found.unique(return_inverse=True)[1]


def _groups(config: Config, table: Table, rows: Tensor) -> Tensor:
    assert config.data.group is not None
    table.column(config.data.group)
    return group_numbers([table.cell(row, config.data.group) for row in rows.tolist()])


def _always_frozen(config: Config, name: str) -> bool:
    if config.model.encoders[name].freeze != "all":
        return False
    stages = config.train.stages
    return all(
        stage.freeze.get(name, "all") == "all" and stage.objective != "reconstruction"
        for stage in stages
    )


def _named(notify: Notify, what: str) -> Callable[[int, int], None]:
    return lambda done, total: notify(what, done, total)
