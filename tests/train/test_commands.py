"""What the commands do beside the ordinary: trackers, folds, exported sizes, logs."""

import json

import torch
from pipeline import settings, small_config, write_config, write_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmfast.cli import main
from mmfast.train.config import load_config
from mmfast.train.prepare import Examples, read_examples
from mmfast.train.run import Run, fit
from mmfast.train.tasks import Task


def test_a_line_of_the_log_is_one_line(tmp_path, capsys):
    """Without a terminal rich would fold at 80 columns."""
    assert main(["train", str(write_config(tmp_path)), "train.epochs=2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train ")]
    assert len(lines) == 2
    assert all(line.endswith(" s)") and "val_accuracy" in line for line in lines)


def test_tensorboard_gets_the_configuration_and_the_metrics(tmp_path):
    fit(small_config(tmp_path, "run.trackers=[tensorboard]", "train.epochs=2"))
    found = {}
    for file in (tmp_path / "run").rglob("events.out.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [event.value for event in events.Scalars(tag)]
    assert len(found["train_loss"]) == 2
    assert len(found["val_accuracy"]) == 2
    notes = [path.read_text() for path in (tmp_path / "run").rglob("hparams.yml")]
    assert any("train.lr: 0.01" in note for note in notes)


def test_resumed_folds_are_those_of_the_same_configuration(tmp_path, capsys):
    path = str(write_config(tmp_path))
    assert main(["crossval", path, "train.epochs=1", "data.split.folds=2"]) == 0
    capsys.readouterr()
    again = ["crossval", path, "train.epochs=2", "data.split.folds=2", "--resume", "auto"]
    assert main(again) == 1
    assert "train.epochs was 1 and is 2" in capsys.readouterr().err


def test_each_value_of_a_column_is_a_fold(tmp_path):
    path = write_config(tmp_path)
    table = tmp_path / "table.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    parts = [{**row, "part": "xy"[number >= 30]} for number, row in enumerate(rows)]
    table.write_text("\n".join(map(json.dumps, parts)))
    split = "data.split={method: column, column: part}"
    assert main(["crossval", str(path), "train.epochs=1", split]) == 0
    summary = json.loads((tmp_path / "run" / "crossval.json").read_text())
    assert len(summary["loss"]["folds"]) == 2


def test_three_modalities_can_be_contrasted(tmp_path):
    write_table(tmp_path)
    values = settings(tmp_path)
    values["data"]["columns"]["tags"] = {"column": "tags", "modality": "text"}
    values["model"]["encoders"]["tags"] = {"name": "text_hashed"}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(values))
    run = fit(load_config(path, ["train.stages=[{name: a, objective: contrastive, epochs: 3}]"]))
    losses = [record["train_loss"] for record in run.progress.history]
    assert losses[-1] < losses[0]


def test_a_metric_that_is_not_defined_leaves_a_best_checkpoint(tmp_path, monkeypatch):
    values = iter([float("nan"), 2.0, float("nan"), 1.0])
    monkeypatch.setattr(Task, "measure", lambda *_: {"accuracy": next(values)})
    assert fit(small_config(tmp_path, "train.epochs=1")).progress.done
    run = fit(small_config(tmp_path, "train.epochs=3", f"run.dir={tmp_path / 'other'}"))
    assert Run.load(run.path).progress.best == 2.0


def test_an_exported_model_takes_other_lengths(tmp_path):
    """The first rows have no text: an example of them alone would fix its length at 1."""
    write_table(tmp_path)
    table = tmp_path / "table.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows[:10]:
        row.pop("text", None)
        row.setdefault("vector", [0.0] * 6)
    table.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings(tmp_path)))
    fusion = "model.fusion={name: sequence, out_features: 16, options: {num_heads: 2}}"
    text = "model.encoders.text={name: text_lstm}"
    run = fit(load_config(path, ["train.epochs=1", fusion, text]))
    program = torch.export.load(run.export(tmp_path / "model.pt2")).module()
    table, specs, checked = read_examples(run.config)
    for count in (2, 3, 30):
        chosen = checked.rows[-count:]
        batches = run._batches(Examples(table, specs, checked, None), chosen, False)
        inputs = next(batches.epoch()).inputs
        with torch.no_grad():
            torch.testing.assert_close(program(inputs), run.model(inputs))
