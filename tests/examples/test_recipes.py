"""Every recipe in examples/, end to end on a slice: what its head tells readers to type is typed.

The head of a recipe is the comment it opens with. Each of its lines that begins with ``mmfast`` is
run here as it stands, in a folder that holds ``examples/`` and a slice of the recipe's data where
the recipe looks for it. So a recipe is tested by one row of RECIPES:

- ``data``: writes the slice into a folder and returns the table's path; see recipe_slices.py.
- ``overrides``: make ``train`` and ``crossval`` quick, and replace what comes from the network.
- ``fusions``: for each run folder that the head names, the class of the fusion it must hold.
- ``check``: looks at what else the recipe promises: architectures, stages, metrics.

A table that the recipe names by a word (``emoji``, which is a data set inside the package) is given
by the override ``data.source=emoji.csv``; the same word of a command becomes that path.
"""

import csv
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import hf_models
import pytest
import recipe_slices
import torch
from pipeline import StopAt
from torch import nn

from mmfast.cli import main
from mmfast.data import read_table
from mmfast.encoders import FlatText
from mmfast.train import Run, fit, load_config
from mmfast.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
QUICK = ("train.threads=1", "train.batch_size=16", "train.epochs=2", "train.warmup=0")
RANDOM_WEIGHTS = ("model.encoders.image.options.pretrained=false",)
SMALL_PICTURES = ("model.encoders.image.options.image_size=32",)


@dataclass(frozen=True)
class Recipe:
    """How a recipe is tested; see the module."""

    data: Callable[[Path], Path]
    fusions: dict[str, str]
    check: Callable[["Ran"], None]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """A recipe whose commands have been run in ``folder``."""

    name: str
    recipe: Recipe
    folder: Path
    table: Path
    loaded: dict[tuple[str, str], Run] = field(default_factory=dict)

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*QUICK, *self.recipe.overrides)

    @property
    def first(self) -> list[str]:
        """The first of its commands that trains: two epochs and a report, the others one epoch."""
        return next(arguments for arguments in commands(self.name) if arguments[0] == "train")

    def load(self, run: str, which: Literal["best", "last"] = "best") -> Run:
        if (run, which) not in self.loaded:
            self.loaded[run, which] = Run.load(self.folder / "runs" / run, which)
        return self.loaded[run, which]


def blocks(encoder: nn.Module) -> list[int]:
    """How many blocks each stage of timm's ResNet has."""
    return [len(encoder.model.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)]


def check_vgg16(ran: Ran) -> None:
    encoders = ran.load("vgg16_concat").model.encoders
    convolutions = [m for m in encoders["image"].model.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert isinstance(encoders["text"], FlatText)


def check_resnet50_lstm(ran: Ran) -> None:
    linear, relu, svm = map(ran.load, ran.recipe.fusions)
    assert blocks(linear.model.encoders["image"]) == [3, 4, 6, 3]
    lstm = linear.model.encoders["audio"].lstm
    assert (len(lstm.forwards), len(lstm.backwards)) == (2, 0)
    assert linear.model.output.out_features == 10
    assert (linear.model.fusion.activation, relu.model.fusion.activation) == ("none", "relu")
    assert (linear.task.loss_name, svm.task.loss_name) == ("cross_entropy", "hinge")


def check_bert_resnet50(ran: Ran) -> None:
    run = ran.load("bert_resnet50_once")
    assert type(run.model.encoders["text"].model).__name__ == "BertModel"
    assert blocks(run.model.encoders["image"]) == [3, 4, 6, 3]
    assert [type(layer) for layer in run.model.fusion.projections] == [nn.Linear, nn.Linear]
    summary = json.loads(Path("runs/bert_resnet50_attention/crossval.json").read_text())
    for metric in ("auroc", "f1_macro"):
        assert len(summary[metric]["folds"]) == 2
        assert summary[metric]["mean"] == pytest.approx(sum(summary[metric]["folds"]) / 2)


def check_lstm_conv_audio(ran: Ran) -> None:
    run = ran.load("lstm_conv_audio", "last")
    stages = [record["stage"] for record in run.progress.history]
    assert stages == ["pretrain", "pretrain", "finetune", "finetune"]
    first, second, task, _ = run.progress.history
    assert second["train_loss"] < first["train_loss"]
    # Whoever rebuilds a sound says nothing of classes.
    assert ("val_auroc" in first, "val_auroc" in task) == (False, True)
    assert list(run.model.encoders) == ["text", "image", "speech"]
    assert run.task.loss_name == "bce"


def check_resnet18_decoder(ran: Ran) -> None:
    model = ran.load("resnet18_bilstm_decoder").model
    assert blocks(model.encoders["image"]) == [2, 2, 2, 2]
    lstm = model.encoders["text"].lstm
    assert (len(lstm.forwards), len(lstm.backwards)) == (2, 2)
    decoder = [m for m in (*model.hidden, model.output) if not isinstance(m, nn.Dropout)]
    assert [type(layer) for layer in decoder] == [nn.Linear, nn.ReLU, nn.Linear]


def small_bert(folder: Path) -> Path:
    """The slice of the stamps, and a tokenizer in ``tokenizer``."""
    hf_models.tokenizer(folder / "tokenizer")
    return recipe_slices.tuxpaint(folder)


BERT = json.dumps({**hf_models.FAMILIES["bert"], "processor": "tokenizer", "max_length": 16})
RECIPES = {
    "vgg16_concat": Recipe(
        recipe_slices.emoji,
        {
            "vgg16_concat": "ConcatLinear",
            "vgg16_weighted_sum": "WeightedSum",
            "vgg16_product": "ProductFusion",
        },
        check_vgg16,
        (
            *("data.source=emoji.csv", *RANDOM_WEIGHTS, *SMALL_PICTURES),
            # Of its two wide layers, which the recipe does not use; 119 million weights to draw.
            "model.encoders.image.options.model_options={mlp_ratio: 0.001}",
        ),
    ),
    "resnet50_lstm": Recipe(
        recipe_slices.avmnist,
        {
            "resnet50_lstm": "ConcatLinear",
            "resnet50_lstm_relu": "ConcatLinear",
            "resnet50_lstm_svm": "ConcatLinear",
        },
        check_resnet50_lstm,
        (*RANDOM_WEIGHTS, *SMALL_PICTURES),
    ),
    "bert_resnet50_attention": Recipe(
        small_bert,
        {
            "bert_resnet50_attention/fold-1": "AttentionPool",
            "bert_resnet50_attention/fold-2": "AttentionPool",
            "bert_resnet50_once": "AttentionPool",
        },
        check_bert_resnet50,
        (
            *(*RANDOM_WEIGHTS, *SMALL_PICTURES, "data.split.folds=2"),
            f"model.encoders.text.options={BERT}",
        ),
    ),
    "lstm_conv_audio": Recipe(
        recipe_slices.tuxpaint,
        {
            "lstm_conv_audio": "ConcatLinear",
            "lstm_conv_audio_weighted": "WeightedSum",
            "lstm_conv_audio_attention": "AttentionFusion",
        },
        check_lstm_conv_audio,
        ("train.stages.0.epochs=2", "train.stages.1.epochs=2"),
    ),
    "resnet18_bilstm_decoder": Recipe(
        recipe_slices.emoji,
        {
            "resnet18_bilstm_decoder": "ConcatLinear",
            "resnet18_bilstm_sequence": "SequenceFusion",
            "resnet18_bilstm_parallel": "BottleneckFusion",
            "resnet18_bilstm_attention": "AttentionFusion",
        },
        check_resnet18_decoder,
        (
            *("data.source=emoji.csv", *RANDOM_WEIGHTS, *SMALL_PICTURES),
            # AdamW would keep two numbers for each of 11 million weights, in every checkpoint.
            *("train.optimizer=sgd", "train.momentum=0", "train.lr=0.05"),
        ),
    ),
}


def head(name: str) -> str:
    """The comment that a recipe opens with, without the signs of a comment."""
    lines = (ROOT / "examples" / f"{name}.yaml").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def commands(name: str) -> list[list[str]]:
    """What its head says to type after ``mmfast``."""
    return [shlex.split(line) for line in re.findall(r"^ {4}mmfast (.+)$", head(name), re.M)]


@pytest.fixture(scope="module", params=RECIPES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A recipe after all its commands, with its folder as the working directory."""
    name, recipe = request.param, RECIPES[request.param]
    folder = tmp_path_factory.mktemp(name)
    (folder / "examples").symlink_to(ROOT / "examples")
    table = recipe.data(folder)
    made = Ran(name, recipe, folder, table)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in commands(name):
            if arguments[0] in ("train", "crossval"):
                once = ["train.epochs=1"]
                if arguments[0] == "train":  # cross-validation writes no report
                    once.append("--no-report")
                rest = [] if arguments == made.first else once
                arguments = [*arguments, *made.overrides, *rest]
            if arguments[0] == "evaluate":
                arguments += ["--json", f"{arguments[1]}/metrics.json"]
            arguments = [str(table) if word == table.stem else word for word in arguments]
            assert main(arguments) == 0, arguments
        yield made


def test_the_page_of_recipes_has_a_row_for_each():
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./examples/(\w+)\.yaml\)", page, re.M)
    assert sorted(rows) == [(path.stem,) * 2 for path in sorted((ROOT / "examples").glob("*.yaml"))]
    assert set(RECIPES) <= {name for name, _ in rows}


def test_its_head_tells_all_of_it(ran):
    told = {arguments[0] for arguments in commands(ran.name)}
    assert told >= {"train", "evaluate", "predict"}
    for script in re.findall(r"^ {4}python (\S+)", head(ran.name), re.M):
        assert script.startswith("scripts/build_")
    found = {str(path.parent.relative_to("runs")) for path in Path("runs").glob("**/last")}
    assert found == set(ran.recipe.fusions)


def test_each_run_holds_the_fusion_that_its_command_names(ran):
    found = {run: type(ran.load(run).model.fusion).__name__ for run in ran.recipe.fusions}
    assert found == ran.recipe.fusions


def test_its_loss_falls_and_its_report_is_written(ran):
    folder = Path(load_config(ran.first[1], ran.first[2:]).run.dir)
    page = (folder / "report.html").read_text()
    assert f"<title>{folder.name}: " in page
    assert "</html>" in page
    history = ran.load(folder.name, "last").progress.history
    losses = [record["train_loss"] for record in history if record["stage"] == history[-1]["stage"]]
    assert losses[-1] < losses[0]


def test_the_loaded_run_measures_what_the_command_wrote(ran):
    (path,) = Path("runs").glob("*/metrics.json")
    measured = json.loads(path.read_text())
    assert ran.load(path.parent.name).evaluate() == measured
    assert {"loss", "accuracy", "f1_macro", "auroc"} <= set(measured)
    assert all(math.isfinite(value) for value in measured.values()), measured


def test_it_says_something_of_each_row(ran):
    (path,) = Path("runs").glob("*/predictions.csv")
    table, run = read_table(str(ran.table)), ran.load(path.parent.name)
    with path.open() as file:
        said = list(csv.DictReader(file))
    assert [int(record["row"]) for record in said] == list(range(len(table)))
    known = {str(label) for label in table.column("label")}
    for record in said:
        scores = {c: float(record[f"score_{c}"]) for c in known}
        if run.task.kind == "multilabel":
            chosen = {label for label, score in scores.items() if score > 0.5}
            assert set(filter(None, record["label"].split("|"))) == chosen
        else:
            assert record["label"] == max(scores, key=scores.__getitem__)
            assert sum(scores.values()) == pytest.approx(1, abs=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(ran):
    """Stopped by SIGTERM in the middle of an epoch; the first of the head's runs is the other."""
    arguments = ran.first
    overrides = [*arguments[2:], *ran.overrides]
    whole = load_config(arguments[1], overrides)
    overrides.append("run.dir=runs/stopped")
    stopped = fit(load_config(arguments[1], overrides), listener=StopAt(1))
    assert stopped.signal is not None
    assert not stopped.progress.done
    assert main(["train", arguments[1], *overrides, "--resume", "auto", "--no-report"]) == 0
    found, expected = (
        load_checkpoint(Path(run) / "last").tensors["model"]
        for run in ("runs/stopped", whole.run.dir)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_it_is_what_its_name_says(ran):
    ran.recipe.check(ran)
