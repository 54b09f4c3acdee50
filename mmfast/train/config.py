"""The configuration of a run: one YAML file, checked whole before anything is loaded.

The models below are the reference of every key; `mmfast config schema` prints them as JSON Schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from torch import nn

from mmfast.train.config_errors import problems_of
from mmfast.train.yaml_source import ConfigError, Source, apply_overrides, parse_yaml, read_yaml

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Options = dict[str, Any]
# YAML has lists only; strict pydantic would not take them for tuples.
Listed = Strict(strict=False)
Texts = Annotated[tuple[str, ...], Listed]


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class Run(_Section):
    """Where a run keeps its results."""

    dir: str = "runs/default"
    """Folder of the run: checkpoints, resolved configuration, metrics."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Listed] = ()
    """Experiment trackers that accelerate writes to."""
    checkpoint_steps: Count | None = None
    """Save every so many optimizer steps, besides the end of every epoch."""


class Column(_Section):
    """One modality of the table: where its cells are and what they hold."""

    modality: Literal["image", "text", "audio", "video", "tabular", "features"]
    """Kind of its cells. image, audio and video cells are paths; text cells are the text itself;
    features cells are paths of .npy or .safetensors files, or lists of numbers."""
    column: str | None = None
    """Name of the column; of every modality but tabular."""
    fields: Texts = ()
    """For tabular: the columns that make up a sample."""
    root: str | None = None
    """Folder that the files of this column must lie in; by default that of the table."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Column:
        if (self.modality == "tabular") != bool(self.fields) or bool(self.fields) == bool(
            self.column
        ):
            raise ValueError(
                "tabular data needs fields, a list of columns; every other modality needs column"
            )
        return self


class Split(_Section):
    """How rows are divided into training, validation and test."""

    method: Literal["column", "random", "stratified", "grouped"] = "stratified"
    """column: as the table says; random; stratified: every class in its share; grouped: as
    stratified, and no group of `data.group` on two sides."""
    column: str | None = None
    """For the method column: the column that holds train, val or test."""
    fractions: Annotated[tuple[Share, Share, Share], Listed] = (0.7, 0.1, 0.2)
    """Shares of training, validation and test; they sum to 1."""
    seed: int = 0
    """Decides the draw; `mmfast crossval` draws its folds by it too."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds of `mmfast crossval`."""

    @model_validator(mode="after")
    def _together(self) -> Split:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions sum to {sum(self.fractions):g}; they must sum to 1")
        if (self.method == "column") != (self.column is not None):
            raise ValueError("method: column and a column name go together")
        return self


class Data(_Section):
    """The table of examples, and how it is read."""

    source: str
    """A table (.csv, .tsv, .jsonl, .parquet), a folder saved by Hugging Face datasets, WebDataset
    shards (train-{0000..0007}.tar), or the name of a dataset plugin, such as emoji."""
    options: Options = {}
    """Options of the dataset plugin."""
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    """The modalities by the name they have in this run."""
    label: str | Texts | None = None
    """Column of the label; for the multi-label task one column of labels or a 0/1 column each."""
    label_separator: str = "|"
    """What divides the labels of a multi-label cell."""
    group: str | None = None
    """Column whose equal values belong together in a split."""
    split: Split = Split()
    on_error: Literal["error", "skip", "missing"] = "error"
    """What an unreadable cell means: stop, leave the row out, or treat the modality as missing."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0: the training process itself."""
    cache: str | None = None
    """Folder for features of encoders that are frozen throughout: computed once, then read."""


class Encoder(_Section):
    """One encoder, by the name that `mmfast encoders list` shows."""

    name: str
    options: Options = {}
    """The plugin's own options; the plugin checks them."""
    freeze: Literal["none", "all"] | Count = "none"
    """What stays as it is: nothing, everything, or that many layer groups from the input."""
    lr_scale: Positive = 1.0
    """Factor on the learning rate of this encoder; for one that is not to learn, `freeze: all`."""


class Fusion(_Section):
    """What joins the encoders, by the name that `mmfast.nn.list_fusions` knows."""

    name: str = "concat"
    out_features: Count = 128
    options: Options = {}
    """Options of the fusion module, such as rank or activation."""


class Model(_Section):
    """Encoders, fusion and head."""

    encoders: Annotated[dict[str, Encoder], Field(min_length=1)]
    """By the names of `data.columns`; a modality without an encoder is left out."""
    fusion: Fusion = Fusion()
    hidden: Annotated[tuple[Count, ...], Listed] = ()
    """Widths of hidden layers, each with ReLU, between the fusion and the output."""
    dropout: Share = 0.0
    """Before the output layer, and after each hidden one."""
    modality_dropout: Share = 0.0
    """Probability of withholding a modality of a sample while training; one always remains."""
    normalise: bool = False
    """Bring what each encoder returns to mean 0 and deviation 1, vector by vector, before it is
    joined: for frozen encoders whose scales differ. Not of retrieval."""


class Task(_Section):
    """What is predicted, how it is scored."""

    type: Literal["binary", "multiclass", "multilabel", "regression", "retrieval"]
    loss: Literal["cross_entropy", "bce", "mse", "hinge", "focal", "contrastive"] | None = None
    """By default cross_entropy for multiclass, bce for binary and multilabel, mse for regression,
    contrastive for retrieval."""
    classes: Texts | None = None
    """Names of the classes in the order of the outputs; by default those of the training split."""
    balance: Literal["none", "weights", "sampler"] = "none"
    """Against rare classes: class weights in the loss, or drawing rows by inverse frequency."""
    label_smoothing: Share = 0.0
    focal_gamma: NotNegative = 2.0
    metric: str | None = None
    """The metric that chooses the best checkpoint and stops early; by default accuracy,
    f1_macro for multilabel, mae for regression, recall_at_1 for retrieval."""

    @model_validator(mode="after")
    def _fits(self) -> Task:
        allowed = LOSSES[self.type]
        if self.loss is not None and self.loss not in allowed:
            raise ValueError(
                f"the loss {self.loss} does not fit the task {self.type}; "
                f"it takes {' or '.join(allowed)}"
            )
        if self.balance != "none" and self.type not in ("binary", "multiclass"):
            raise ValueError(f"balance: {self.balance} is for binary and multiclass tasks")
        return self


LOSSES = {
    "binary": ("bce", "hinge", "focal"),
    "multiclass": ("cross_entropy", "hinge", "focal"),
    "multilabel": ("bce", "focal"),
    "regression": ("mse",),
    "retrieval": ("contrastive",),
}
"""The losses that fit a task; the first is its default."""


class EarlyStopping(_Section):
    """Stop when the chosen metric has not improved for a while."""

    patience: Count
    """Epochs without improvement before training stops."""
    min_delta: NotNegative = 0.0
    """An improvement by less does not count."""


class Stage(_Section):
    """A part of the training. What it leaves out is as in `train`."""

    name: str
    objective: Literal["task", "reconstruction", "contrastive"] = "task"
    """reconstruction: encoders that can rebuild their input learn to; contrastive: codes of one row
    are drawn together, those of others apart; task: the model as a whole."""
    epochs: Count | None = None
    lr: Positive | None = None
    batch_size: Count | None = None
    freeze: dict[str, Literal["none", "all"] | Count] = {}
    """By encoder: what is frozen in this stage instead of the encoder's own `freeze`."""


class Train(_Section):
    """Optimisation."""

    epochs: Count = 10
    batch_size: Count = 64
    """Rows per step and rank."""
    accumulate: Count = 1
    """Batches whose gradients are added before a step."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    """Not applied to biases and norms."""
    momentum: Share = 0.9
    """Of sgd."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each layer group of an encoder to the one before it."""
    schedule: Literal["constant", "cosine", "step", "plateau"] = "cosine"
    warmup: Share = 0.0
    """Share of the stage's steps in which the learning rate rises from 0."""
    step_epochs: Count = 10
    """Of the step schedule: epochs between cuts; of plateau: epochs without improvement."""
    step_gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of a cut, for step and plateau."""
    clip_norm: Positive | None = None
    """Largest norm of all gradients together."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated."""
    early_stopping: EarlyStopping | None = None
    compile: bool = False
    deterministic: bool = False
    """Only operators whose results repeat; slower on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Of several ranks. ddp: each has the whole model; fsdp2: each keeps a share of every
    parameter, of its gradient and its optimizer state."""
    timeout: Positive = 600.0
    """Seconds that a rank waits for another before it gives up: more than one of them may need to
    write a checkpoint or to encode its part of the rows for the cache."""
    threads: Count | None = None
    """Of operators on the CPU; by default torch's own choice. Small models are faster with 1."""
    stages: Annotated[tuple[Stage, ...], Listed] = ()
    """Run one after another; none: one stage that trains the task."""

    @model_validator(mode="after")
    def _shardable(self) -> Train:
        if self.strategy == "fsdp2" and self.precision == "fp16":
            raise ValueError("strategy: fsdp2 does not go with precision: fp16; use bf16")
        if self.strategy == "fsdp2" and self.compile:
            raise ValueError("strategy: fsdp2 does not go with compile: true; use one of them")
        return self


class Config(_Section):
    """A whole configuration; see the sections for every key."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    run: Run = Run()
    data: Data
    model: Model
    task: Task
    train: Train = Train()

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        _known("model.encoders", self.model.encoders, "data.columns", self.data.columns)
        for name in self.model.encoders:
            # They become names of modules, which dots divide and methods of nn.ModuleDict occupy.
            if not name or "." in name or hasattr(nn.ModuleDict, name) or name == "training":
                raise ValueError(
                    f"model.encoders and data.columns name a modality {name!r}, which cannot be "
                    "used: it must not be empty, contain a dot, or be a name that PyTorch's "
                    "modules use themselves, such as 'type'; choose another"
                )
        for stage in self.train.stages:
            _known(f"the stage {stage.name}", stage.freeze, "model.encoders", self.model.encoders)
        if self.data.split.method == "grouped" and self.data.group is None:
            raise ValueError("data.split.method is grouped, which needs data.group")
        if self.task.type == "retrieval":
            if len(self.model.encoders) != 2:
                raise ValueError(
                    f"retrieval needs two encoders, got {len(self.model.encoders)}: "
                    f"{', '.join(self.model.encoders)}"
                )
        elif self.data.label is None:
            raise ValueError(f"data.label must name the label column of the {self.task.type} task")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: YAML file.
        overrides: ``key.path=value`` each, applied over the file; values are read as YAML.

    Raises:
        ConfigError: whatever is wrong, all of it, each problem with file, line and key.
    """
    source = read_yaml(path)
    apply_overrides(source, overrides)
    return _checked(source)


def config_from_yaml(text: str, name: str) -> Config:
    """The configuration in a string; ``name`` stands for its file in errors."""
    return _checked(parse_yaml(text, name))


def differences(a: Config, b: Config, besides: Sequence[str] = ()) -> list[str]:
    """The keys in which two configurations differ, with both values; not those in ``besides``."""
    return list(_differences("", a.model_dump(mode="json"), b.model_dump(mode="json"), besides))


def to_yaml(config: Config) -> str:
    """The configuration with every default written out, as YAML that ``load_config`` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> str:
    """The JSON Schema of a configuration, for editors that complete and check YAML."""
    return json.dumps(Config.model_json_schema(), indent=2)


def _checked(source: Source) -> Config:
    try:
        return Config.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(problems_of(error, source, Config)) from None


def _differences(key: str, a: Any, b: Any, besides: Sequence[str]) -> Iterator[str]:
    if key in besides or a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            inner = f"{key}.{name}" if key else name
            yield from _differences(inner, a.get(name), b.get(name), besides)
    else:
        yield f"{key} was {a!r} and is {b!r}"


def _known(where: str, names: dict[str, Any], other: str, known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where} names {name!r}; {other} has {', '.join(map(repr, known))}")
