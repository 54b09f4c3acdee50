"""A run: trained from a configuration, or loaded from its folder; evaluated, used, exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmfast.data import Labels, Split, Table, derived_seed
from mmfast.plugins.weights import giving_weights
from mmfast.train.accelerator import end_training, make_accelerator, start_trackers
from mmfast.train.allowance import no_larger_than
from mmfast.train.batches import Batches
from mmfast.train.checkpoint import Checkpoint, CheckpointError
from mmfast.train.config import Config, config_from_yaml, differences, to_yaml
from mmfast.train.engine import train
from mmfast.train.export import example_rows, export_model, save_program
from mmfast.train.folder import former_checkpoint, locked, read_run
from mmfast.train.objectives import loss_weight
from mmfast.train.parts import Listener, Parts, Progress, TrainingError
from mmfast.train.prepare import (
    Examples,
    Notify,
    build_model,
    build_task,
    fill_cache,
    fold_rows,
    learn_labels,
    learn_options,
    make_batches,
    read_examples,
    split_rows,
    versions,
)
from mmfast.train.ranks import contact, exchange, together
from mmfast.train.seed import deterministic, seed_all, threads
from mmfast.train.signals import listen
from mmfast.train.tasks import Task

Side = Literal["train", "val", "test"]

# What may differ from machine to machine.
_LOCAL = ("run", "data.source", "data.workers", "data.cache", "train.threads", "train.timeout")


@dataclass
class Alone:
    """One process, for evaluation and prediction."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1


ALONE = Alone(torch.device("cpu"))


@dataclass
class Run:
    """A trained model with what is needed to use it.

    Attributes:
        path: folder of the run.
        config: its configuration.
        model: in evaluation mode.
        task: its loss, predictions and metrics.
        labels: what the outputs stand for; None for retrieval.
        progress: how far training came, with the history of its epochs.
        fold: the fold of a cross-validation that it tests on.
        options: of its encoders, completed by what they learnt from the training rows.
        signal: the signal that interrupted training, if one did.
    """

    path: Path
    config: Config
    model: nn.Module
    task: Task
    labels: Labels | None
    progress: Progress
    fold: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    signal: int | None = None

    @classmethod
    def load(cls, path: str | Path, which: Literal["best", "last"] = "best") -> Run:
        """The run in a folder, on the CPU.

        Args:
            path: the folder, ``run.dir``.
            which: the checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or it was altered.
            ValueError, PluginLoadError: an encoder or fusion that it needs is not to be had.
        """
        checkpoint = read_run(Path(path) / which)
        config = config_from_yaml(checkpoint.config, str(checkpoint.path / "config.yaml"))
        state = checkpoint.state
        labels = None if state["labels"] is None else Labels.from_dict(state["labels"])
        try:
            with no_larger_than(_weights(checkpoint), checkpoint.path), giving_weights():
                model = build_model(config, state["options"], labels)
                task = build_task(config, labels, None)
        except (KeyError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{checkpoint.path} is of no run: {error!r}") from error
        try:
            model.load_state_dict(_weights(checkpoint))
            task.load_state_dict(checkpoint.tensors["task"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{checkpoint.path} does not fit its model: {error}") from error
        progress = Progress(**state["progress"])
        fold, options = state["fold"], state["options"]
        return cls(Path(path), config, model.eval(), task.eval(), labels, progress, fold, options)

    def evaluate(
        self, source: str | None = None, side: Side = "test", notify: Notify | None = None
    ) -> dict[str, float]:
        """Loss and metrics on one side of the run's own table, or on all rows of another.

        Of its own rows, what frozen encoders make is read from ``data.cache`` and kept there.

        Raises:
            ValueError: there are no such rows.
        """
        table, specs, checked = read_examples(self.config, source=source, notify=notify)
        rows = checked.rows
        if source is None:
            rows = getattr(divide(self.config, table, rows, self.fold), side)
        if not len(rows):
            raise ValueError(f"there are no rows to evaluate on: the {side} split is empty")
        examples = Examples(table, specs, checked, self.labels)
        known = {}
        if source is None:
            facts = (self.config, self.model, examples, rows, self.options)
            known = fill_cache(*facts, ALONE, notify)
        batches = self._batches(examples, rows, True, features=known)
        outputs, labels, total, weight = [], [], 0.0, 0.0
        for batch, found in self._outputs(batches):
            given = batch.labels
            own = loss_weight(self.task, given, batch.rows)
            total += self.task.loss(found, given).item() * own
            weight += own
            outputs.append(found)
            if given is not None:
                labels.append(given)
        joined = torch.cat(outputs, dim=-2)
        measured = self.task.measure(joined, torch.cat(labels) if labels else None)
        return {"loss": total / weight, **measured}

    def predict(
        self, source: str | None = None, notify: Notify | None = None
    ) -> Iterator[dict[str, Any]]:
        """What the model says of each row of a table, which needs no labels.

        Yields:
            By row: ``row``, its number; ``label`` and ``score`` for classes (``score_CLASS`` for
            several), ``value`` for regression, ``embedding_MODALITY`` for retrieval.
        """
        table, specs, checked = read_examples(
            self.config, source=source, labelled=False, notify=notify
        )
        batches = self._batches(Examples(table, specs, checked, None), checked.rows, False)
        for batch, outputs in self._outputs(batches):
            found = {k: v.tolist() for k, v in self.task.predict(outputs).items()}
            for place, row in enumerate(batch.rows.tolist()):
                yield {"row": row, **self._told(found, place)}

    def export(self, path: str | Path) -> Path:
        """Write the model as a ``torch.export`` program (.pt2), with a batch of any size.

        It takes what the encoders' ``collate`` return, by modality; preprocessing stays in Python.
        """
        table, specs, checked = read_examples(self.config, labelled=False)
        rows = example_rows(table, specs, checked)
        batches = self._batches(Examples(table, specs, checked, None), rows, False)
        save_program(export_model(self.model, next(batches.epoch()).inputs), Path(path))
        return Path(path)

    def _told(self, found: Mapping[str, Any], place: int) -> dict[str, Any]:
        if "value" in found:
            return {"value": found["value"][place]}
        if "embedding" in found:
            names = self.config.model.encoders
            return {
                f"embedding_{n}": e[place] for n, e in zip(names, found["embedding"], strict=True)
            }
        assert self.labels is not None
        classes, label, score = self.labels.classes, found["label"][place], found["score"][place]
        if self.task.kind == "binary":
            return {"label": classes[label], "score": score}
        scores = {f"score_{name}": value for name, value in zip(classes, score, strict=True)}
        if self.task.kind == "multilabel":
            chosen = [name for name, yes in zip(classes, label, strict=True) if yes]
            return {"label": self.labels.separator.join(chosen), **scores}
        return {"label": classes[label], **scores}

    def _batches(self, examples: Examples, rows: Tensor, labelled: bool, **given: Any) -> Batches:
        return make_batches(
            self.config,
            self.model,
            examples,
            rows,
            training=False,
            batch_size=self.config.train.batch_size,
            world=ALONE,
            labelled=labelled,
            **given,
        )

    @torch.no_grad()
    def _outputs(self, batches: Batches) -> Iterator[tuple[Any, Tensor]]:
        for batch in batches.epoch():
            yield batch, self.model(batch.inputs).float()


def fit(
    config: Config,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    notify: Notify | None = None,
    fold: int | None = None,
) -> Run:
    """Train what a configuration describes.

    Args:
        config: from :func:`mmfast.train.load_config`.
        resume: go on from ``last`` in ``run.dir``, if there is one.
        listener: is told how training goes.
        notify: is told how far the preparation is.
        fold: train on this fold of the cross-validation that ``data.split`` describes, instead of
            on its one division.

    Returns:
        The run with its best weights; with ``signal`` set and its last ones, if SIGTERM or SIGINT
        ended it.

    Raises:
        TrainingError: ``run.dir`` holds a run already, or training cannot go on.
        TableError, DataError, LabelError, CellError: the data cannot be used.
        CheckpointError: a checkpoint cannot be written or read.
        PluginLoadError, ValueError, TypeError: an encoder or fusion cannot be made.
    """
    accelerator = make_accelerator(config)
    folder = Path(config.run.dir)
    with (
        contact(accelerator),
        locked(folder, accelerator),
        deterministic(config.train.deterministic),
        threads(config.train.threads),
    ):
        checkpoint = former_checkpoint(config, folder, resume, accelerator)
        seed_all(derived_seed(config.seed, "rank", accelerator.process_index))
        parts = _parts(config, accelerator, checkpoint, fold, notify)
        start_trackers(accelerator, config)
        with listen() as interruption:
            progress = train(
                parts,
                config,
                accelerator,
                resume=checkpoint,
                listener=listener,
                interruption=interruption,
            )
        end_training(accelerator)
    run = Run.load(folder, "best" if progress.done else "last")
    run.progress = progress
    run.signal = None if progress.done else interruption.signal
    return run


def divide(config: Config, table: Table, rows: Tensor, fold: int | None) -> Split:
    """The division of the rows in use: that of ``data.split``, or one of its folds."""
    if fold is None:
        return split_rows(config, table, rows)
    return fold_rows(config, table, rows)[fold]


def _parts(
    config: Config,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None,
    fold: int | None,
    notify: Notify | None,
) -> Parts:
    with together(accelerator):
        table, specs, checked = read_examples(config, notify=notify)
        split = divide(config, table, checked.rows, fold)
        if not len(split.train):
            raise TrainingError("the training split is empty; look at data.split.fractions")
        _check_validation(config, split)
        fingerprint = _fingerprint(table, split)
        if checkpoint is None:
            labels = learn_labels(config, table, split.train)
            options = learn_options(config, table, specs, checked, split.train)
        else:
            labels, options = _learned(checkpoint, fingerprint)
        examples = Examples(table, specs, checked, labels)
        model = build_model(config, options, labels)
        model.to(accelerator.device)
    _check_alike(config, fingerprint, accelerator)
    used = torch.cat([split.train, split.val])
    features = fill_cache(config, model, examples, used, options, accelerator, notify)

    def batches(rows: Tensor, training: bool, size: int) -> Batches:
        return make_batches(
            config,
            model,
            examples,
            rows,
            training=training,
            batch_size=size,
            world=accelerator,
            features=features,
        )

    return Parts(
        model=model,
        task=build_task(config, labels, examples.targets(split.train)).to(accelerator.device),
        train=lambda size: batches(split.train, True, size),
        val=batches(split.val, False, config.train.batch_size) if len(split.val) else None,
        facts=versions(config),
        state={
            "labels": None if labels is None else asdict(labels),
            "options": options,
            "fold": fold,
            "fingerprint": fingerprint,
        },
    )


def _check_alike(config: Config, fingerprint: str, accelerator: Accelerator) -> None:
    """Raise on every rank if they were given different configurations or rows."""
    if accelerator.num_processes == 1:
        return
    found = exchange(accelerator, (to_yaml(config), fingerprint))
    first, rows = found[0]
    for rank, (text, others) in enumerate(found):
        changed = differences(
            config_from_yaml(first, "rank 0"), config_from_yaml(text, f"rank {rank}"), _LOCAL
        )
        if changed:
            raise TrainingError(
                f"ranks 0 and {rank} were started with different configurations: "
                f"{'; '.join(changed)}"
            )
        if others != rows:
            raise TrainingError(
                f"ranks 0 and {rank} found different rows in {config.data.source}: the table, or "
                "what can be read of it, differs between their machines"
            )


def _check_validation(config: Config, split: Split) -> None:
    wanted = {
        "train.early_stopping": config.train.early_stopping is not None,
        "train.schedule: plateau": config.train.schedule == "plateau",
    }
    for name, on in wanted.items():
        if on and not len(split.val):
            raise TrainingError(
                f"{name} watches the validation split, which is empty; give it rows by "
                "data.split, or take the setting out"
            )


def _learned(
    checkpoint: Checkpoint, fingerprint: str
) -> tuple[Labels | None, dict[str, dict[str, Any]]]:
    state = checkpoint.state
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other rows: the table or what can be read of it has "
            "changed since. Restore it, or train anew in another run.dir"
        )
    labels = None if state["labels"] is None else Labels.from_dict(state["labels"])
    return labels, state["options"]


def _weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights to evaluate with: the moving average where there is one."""
    prefix = "module.model."
    average = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.tensors.get("average", {}).items()
        if name.startswith(prefix)
    }
    return average or checkpoint.tensors["model"]


def _fingerprint(table: Table, split: Split) -> str:
    digest = blake2b(f"{len(table)}".encode(), digest_size=16)
    for side in split:
        digest.update(np.ascontiguousarray(side.numpy()).tobytes() + b"|")
    return digest.hexdigest()
