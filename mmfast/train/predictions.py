"""What a run says of its test rows, kept beside it: reports and comparisons start from here.

``RUN/predictions.safetensors`` holds the outputs for every test row, those with each modality
withheld, and what identifies the rows. It is computed once, and again if the run's best checkpoint
or the table's file has changed since.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmfast.data import Table, group_numbers
from mmfast.data.files import check_header
from mmfast.plugins import Features
from mmfast.train.checkpoint import CheckpointError
from mmfast.train.multimodal import encode
from mmfast.train.prepare import Examples, Notify, fill_cache, make_batches, read_examples
from mmfast.train.run import Alone, Run, divide
from mmfast.train.seed import threads

FILE = "predictions.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class About:
    """What the outputs are of, as JSON beside them.

    Attributes:
        kind: the task's type.
        loss: the name of its loss.
        metric: the metric that chose the checkpoint.
        modalities: in the order of the columns of ``present``.
        classes: in the order of the outputs; empty for regression and retrieval.
        mean, std: by which regression targets were standardised.
        source: the table.
        group: the column whose equal values belong together; None without one.
    """

    kind: str
    loss: str
    metric: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    mean: float
    std: float
    source: str
    group: str | None

    @classmethod
    def of(cls, run: Run) -> About:
        """That of a run."""
        labels = run.labels
        return cls(
            run.task.kind,
            run.task.loss_name,
            run.task.metric,
            tuple(run.config.model.encoders),
            labels.classes if labels else (),
            labels.mean if labels else 0.0,
            labels.std if labels else 1.0,
            run.config.data.source,
            run.config.data.group,
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of a run for N test rows with M modalities.

    Attributes:
        about: what they are of.
        rows: int64 (N,), numbers in the table.
        keys: int64 (N,), equal where the cells of two rows are, in any table; no two alike.
        groups: int64 (N,), equal for rows that belong together; None without ``data.group``.
        present: bool (N, M).
        outputs: (N, C), or (2, N, D) for retrieval, as ``mmfast.train.tasks`` has them.
        labels: the targets; None for retrieval.
        without: by modality, the outputs with it withheld; empty for retrieval.
        weights: (N, M), how much the fusion weighs each modality; None if it does not say.
    """

    about: About
    rows: Tensor
    keys: Tensor
    groups: Tensor | None
    present: Tensor
    outputs: Tensor
    labels: Tensor | None
    without: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Tensor) -> Predictions:
        """Those of some rows, by their places."""
        return Predictions(
            self.about,
            self.rows[places],
            self.keys[places],
            None if self.groups is None else self.groups[places],
            self.present[places],
            self.outputs[..., places, :],
            None if self.labels is None else self.labels[places],
            {name: outputs[places] for name, outputs in self.without.items()},
            None if self.weights is None else self.weights[places],
        )


def predictions_of(
    path: str | Path, *, fresh: bool = False, notify: Notify | None = None
) -> Predictions:
    """The predictions of a run's best checkpoint for its test split, stored or computed.

    Args:
        path: the folder of the run.
        fresh: compute them even if those stored are of this checkpoint and this table.
        notify: is told how far the computation is.

    Raises:
        CheckpointError: there is no such run.
        ValueError: its test split is empty.
    """
    folder = Path(path)
    digest = _digest(folder)
    if not fresh and (stored := _stored(folder / FILE, digest)) is not None:
        return stored
    run = Run.load(folder)
    with threads(run.config.train.threads):
        found = compute(run, notify)
    _store(found, folder / FILE, digest)
    return found


@torch.no_grad()
def compute(run: Run, notify: Notify | None = None) -> Predictions:
    """Run the model over the test split of a run, once with all and once without each modality."""
    config = run.config
    table, specs, checked = read_examples(config, notify=notify)
    rows = divide(config, table, checked.rows, run.fold).test
    if not len(rows):
        raise ValueError(f"{run.path}: the test split is empty; look at data.split")
    examples = Examples(table, specs, checked, run.labels)
    world = Alone(_device(run))
    with _on(run.model, world.device):
        options = _options(run.path)
        features = fill_cache(config, run.model, examples, rows, options, world, notify)
        batches = make_batches(
            config,
            run.model,
            examples,
            rows,
            training=False,
            batch_size=config.train.batch_size,
            world=world,
            features=features,
        )
        found: dict[str, list[Tensor]] = {}
        done = 0
        for batch in batches.epoch():
            inputs = tree_map_only(Tensor, lambda x: x.to(world.device), batch.inputs)
            for name, value in _said(run.model, inputs).items():
                found.setdefault(name, []).append(value.cpu())
            if batch.labels is not None:
                found.setdefault("labels", []).append(batch.labels)
            done += len(batch.rows)
            if notify is not None:
                notify("predicting the test rows", done, len(rows))
    joined = {n: torch.cat(v, -2 if v[0].dim() > 1 else 0) for n, v in found.items()}
    group = config.data.group
    return Predictions(
        About.of(run),
        rows,
        _keys(table, rows),
        None if group is None else group_numbers([table.cell(r, group) for r in rows.tolist()]),
        joined["present"],
        joined["outputs"],
        joined.get("labels"),
        _by_prefix(joined, "without."),
        joined.get("weights"),
    )


def _said(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs for a batch whose encoders run but once, whatever is withheld afterwards."""
    encoders = model.get_submodule("encoders")
    assert isinstance(encoders, nn.ModuleDict)
    features = encode(encoders, inputs)
    present = torch.stack([found.present for found in features.values()], 1)
    said = {"present": present, "outputs": model(features).float()}
    fusion = getattr(model, "fusion", None)
    if fusion is None:
        return said
    for name, (values, mask) in features.items():
        withheld = {**features, name: Features(values, torch.zeros_like(mask))}
        said[f"without.{name}"] = model(withheld).float()
    if hasattr(fusion, "modality_weights"):
        codes = model.codes(features)  # type: ignore[operator]
        said["weights"] = fusion.modality_weights(codes, present).float()
    return said


def _device(run: Run) -> torch.device:
    cuda = run.config.train.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device, and back on the CPU afterwards."""
    model.to(device)
    try:
        yield
    finally:
        model.cpu()


def _options(run: Path) -> Any:
    """What the encoders learnt from the training rows; the checkpoint was checked when loaded."""
    return json.loads((run / "best" / "state.json").read_text(encoding="utf-8"))["options"]


def _keys(table: Table, rows: Tensor) -> Tensor:
    """Equal cells, equal keys; a row that stands there twice has another key the second time."""
    seen: Counter[bytes] = Counter()
    keys = []
    for row in rows.tolist():
        digest = blake2b(digest_size=8)
        for name in sorted(table.columns):
            digest.update(f"\x1f{name}\x1e".encode())
            digest.update(_cell_bytes(table.cell(row, name)))
        once = digest.digest()
        seen[once] += 1
        if seen[once] > 1:
            once = blake2b(once + seen[once].to_bytes(8, "little"), digest_size=8).digest()
        keys.append(int.from_bytes(once, "little", signed=True))
    return torch.tensor(keys, dtype=torch.int64)


def _cell_bytes(cell: Any) -> bytes:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Tensor):
        cell = cell.numpy()
    if isinstance(cell, np.ndarray):
        return f"{cell.dtype}{cell.shape}".encode() + np.ascontiguousarray(cell).tobytes()
    return repr(cell if isinstance(cell, (str, int, float, list, dict)) else str(cell)).encode()


def _by_prefix(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _digest(folder: Path) -> str:
    """Of the manifest of the best checkpoint, which holds the digests of its files."""
    manifest = folder / "best" / "manifest.json"
    try:
        return sha256(manifest.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no run: {manifest} cannot be read ({error.strerror})"
        ) from error


def _stamp(digest: str, source: str) -> dict[str, Any]:
    """What the predictions depend on, as far as it is told at a glance."""
    try:
        facts = os.stat(source)
        table = [facts.st_size, facts.st_mtime_ns]
    except OSError:  # no file: a plugin, shards
        table = []
    return {"format": _FORMAT, "checkpoint": digest, "table": table}


def _stored(path: Path, digest: str) -> Predictions | None:
    """What is stored, if it is of this checkpoint and the table is as it was."""
    try:
        with path.open("rb") as start:
            check_header(start.read(8))
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["mmfast"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in facts["about"].items()
        }
        about = About(**told)
        if facts["stamp"] != _stamp(digest, about.source):
            return None
        return Predictions(
            about,
            tensors["rows"],
            tensors["keys"],
            tensors.get("groups"),
            tensors["present"],
            tensors["outputs"],
            tensors.get("labels"),
            _by_prefix(tensors, "without."),
            tensors.get("weights"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # absent, cut short or of another version: it is computed again


def _store(found: Predictions, path: Path, digest: str) -> None:
    """Write them whole or not at all; a folder that cannot be written to only costs time later."""
    stamp = _stamp(digest, found.about.source)
    facts = json.dumps({"stamp": stamp, "about": asdict(found.about)})
    tensors = {name: getattr(found, name) for name in ("rows", "keys", "present", "outputs")}
    for name in ("groups", "labels", "weights"):
        if (value := getattr(found, name)) is not None:
            tensors[name] = value
    tensors |= {f"without.{name}": value for name, value in found.without.items()}
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, partial, metadata={"mmfast": facts})
        os.replace(partial, path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
