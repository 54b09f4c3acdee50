"""Configurations: every mistake told at once, with line, key and what was meant."""

import copy
import json

import pytest
import yaml
from pydantic import ValidationError

from mmfast.train.config import LOSSES, ConfigError, json_schema, load_config, to_yaml

GOOD = {
    "data": {
        "source": "table.csv",
        "columns": {
            "image": {"column": "photo", "modality": "image"},
            "text": {"column": "caption", "modality": "text"},
        },
        "label": "class",
    },
    "model": {"encoders": {"image": {"name": "image_convnet"}, "text": {"name": "text_bag"}}},
    "task": {"type": "multiclass"},
}


def write(tmp_path, values=GOOD, name="c.yaml"):
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return path


def problems(tmp_path, change, overrides=()):
    values = copy.deepcopy(GOOD)
    change(values)
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, values), overrides)
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_the_overrides_of_the_documentation(tmp_path):
    config = load_config(
        write(tmp_path), ["run.dir=runs/a", "train.epochs=2", "train.lr=3e-4", "seed=1"]
    )
    assert (config.run.dir, config.train.epochs) == ("runs/a", 2)
    assert (config.train.lr, config.seed) == (3e-4, 1)


def test_resolved_configuration_reads_back_equal(tmp_path):
    first = "{name: pre, objective: contrastive, freeze: {text: all, image: 2}}"
    stages = f"train.stages=[{first}, {{name: b}}]"
    config = load_config(write(tmp_path), [stages, "task.classes=[cat, dog]", "data.group=g"])
    again = load_config(write(tmp_path, to_yaml(config), "resolved.yaml"))
    assert again == config
    assert again.train.stages[0].freeze == {"text": "all", "image": 2}


def test_configurations_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path):
    path = write(
        tmp_path,
        """
seed: zero
data:
  source: t.csv
  columns:
    image: {colum: photo, modality: imagee}
  label: 3
model:
  encoders:
    image: {name: image_convnet, freeze: al}
task: {type: multiclas}
train:
  epochs: 0
  lr: high
  compile: 1
  stages:
  - fine
  - {name: a, freez: {}}
  early_stopping: {patience: 2.5}
rum: {}
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]
    assert said == [
        "2: seed: is 'zero'; it must be a whole number",
        "6: data.columns.image.modality: is 'imagee'; it must be 'image', 'text', 'audio', "
        "'video', 'tabular' or 'features' (did you mean 'image'?)",
        "6: data.columns.image.colum: there is no such key (did you mean 'column'?); here can "
        "stand column, fields, modality, root",
        "7: data.label: is 3; it must be text or a list",
        "10: model.encoders.image.freeze: is 'al'; it must be 'none' or 'all' or a whole number "
        "(did you mean 'all'?)",
        "11: task.type: is 'multiclas'; it must be 'binary', 'multiclass', 'multilabel', "
        "'regression' or 'retrieval' (did you mean 'multiclass'?)",
        "13: train.epochs: is 0; it must be at least 1",
        "14: train.lr: is 'high'; it must be a number",
        "15: train.compile: is 1; it must be true or false",
        "17: train.stages.0: is 'fine'; it must be a mapping, key: value",
        "18: train.stages.1.freez: there is no such key (did you mean 'freeze'?); here can stand "
        "batch_size, epochs, freeze, lr, name, objective",
        "19: train.early_stopping.patience: is 2.5; it must be a whole number",
        "20: rum: there is no such key (did you mean 'run'?); here can stand data, model, run, "
        "seed, task, train",
    ]
    assert str(caught.value).startswith("13 problems in the configuration:")


def test_a_wrong_override_is_named_as_typed(tmp_path):
    with pytest.raises(ConfigError, match=r"override .train.lr=fast.: train.lr: is .fast."):
        load_config(write(tmp_path), ["train.lr=fast"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["data"].pop("label"), "data.label must name the label column"),
        (
            lambda c: c["model"]["encoders"].update(sound={"name": "x"}),
            "model.encoders names 'sound'; data.columns has 'image', 'text'",
        ),
        (
            lambda c: c.update(train={"stages": [{"name": "a", "freeze": {"video": "all"}}]}),
            "the stage a names 'video'; model.encoders has 'image', 'text'",
        ),
        (
            lambda c: c["data"].update(split={"method": "grouped"}),
            "data.split.method is grouped, which needs data.group",
        ),
        (
            lambda c: (c["task"].update(type="retrieval"), c["model"]["encoders"].pop("text")),
            "retrieval needs two encoders, got 1: image",
        ),
        (
            lambda c: c["data"].update(split={"fractions": [0.5, 0.1, 0.2]}),
            "fractions sum to 0.8; they must sum to 1",
        ),
        (
            lambda c: c["data"]["columns"].update(facts={"modality": "tabular", "column": "a"}),
            "tabular data needs fields, a list of columns; every other modality needs column",
        ),
        (
            lambda c: c["data"]["columns"]["text"].pop("column"),
            "tabular data needs fields, a list of columns; every other modality needs column",
        ),
        (
            lambda c: c["data"].update(split={"column": "side"}),
            "method: column and a column name go together",
        ),
        (
            lambda c: c["task"].update(loss="mse"),
            "the loss mse does not fit the task multiclass; it takes cross_entropy or hinge",
        ),
        (
            lambda c: c["task"].update(type="regression", balance="weights"),
            "balance: weights is for binary and multiclass tasks",
        ),
    ],
)
def test_keys_that_contradict_each_other(tmp_path, change, message):
    assert message in problems(tmp_path, change)[0][1]


def test_every_loss_fits_its_task(tmp_path):
    for task, losses in LOSSES.items():
        for loss in losses:
            config = load_config(write(tmp_path), [f"task.type={task}", f"task.loss={loss}"])
            assert config.task.loss == loss


def test_schema_knows_keys_meanings_and_bounds():
    schema = json.loads(json_schema())
    train = schema["$defs"]["Train"]
    assert schema["additionalProperties"] is False
    assert train["properties"]["epochs"]["minimum"] == 1
    assert "norm of all gradients" in train["properties"]["clip_norm"]["description"]
    assert {"data", "model", "task"} == set(schema["required"])
    undocumented = {
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, value in section["properties"].items()
        if "description" not in value and "$ref" not in value
    }
    assert undocumented <= {  # what their names say
        *("Encoder.name", "Fusion.name", "Fusion.out_features", "Stage.name", "Stage.epochs"),
        *("Stage.lr", "Stage.batch_size", "Task.type", "Task.label_smoothing", "Task.focal_gamma"),
        *("Train.epochs", "Train.optimizer", "Train.lr", "Train.schedule", "Train.precision"),
        *("Train.compile", "Train.device", "Train.early_stopping"),
    }
