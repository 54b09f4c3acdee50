"""The pipeline from files to a trained, evaluated, used model; what goes wrong is told."""

import csv
import hashlib
import json
import math
import re
import shutil

import pytest
import torch
import yaml
from pipeline import settings, small_config, write_config, write_table

from mmfast.cli import main
from mmfast.data import TableError, read_table
from mmfast.data.check import DataError
from mmfast.data.labels import LabelError
from mmfast.plugins import Features
from mmfast.train.checkpoint import CheckpointError, load_checkpoint
from mmfast.train.config import Fusion, load_config
from mmfast.train.multimodal import MultimodalModel, pooled
from mmfast.train.parts import Listener, TrainingError
from mmfast.train.prepare import Examples, build_model, read_examples, split_rows
from mmfast.train.run import Run, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return fit(small_config(folder, "train.epochs=12"))


def test_it_learns_and_the_loaded_run_measures_the_same(trained):
    measured = trained.evaluate()
    assert measured["accuracy"] > 0.8
    assert Run.load(trained.path).evaluate() == measured
    losses = [record["train_loss"] for record in trained.progress.history]
    assert losses[-1] < 0.5 * losses[0]
    assert len(losses) == 12


def test_evaluation_by_hand(trained):
    """Loss and accuracy of the test rows, computed from the predictions that predict gives."""
    table = read_table(trained.config.data.source)
    said = {record["row"]: record for record in trained.predict()}
    assert len(said) == len(table)
    rows = split_rows(trained.config, table, read_examples(trained.config)[2].rows).test.tolist()
    labels = [table.cell(row, "label") for row in rows]
    right = [said[row]["label"] == label for row, label in zip(rows, labels, strict=True)]
    losses = [
        -math.log(said[row][f"score_{label}"]) for row, label in zip(rows, labels, strict=True)
    ]
    measured = trained.evaluate()
    assert measured["accuracy"] == pytest.approx(sum(right) / len(right))
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_every_parameter_is_trained(tmp_path):
    config = small_config(tmp_path, "train.epochs=1", "train.weight_decay=0")
    run = fit(config)
    torch.manual_seed(0)
    state = load_checkpoint(run.path / "last").state
    fresh = build_model(config, state["options"], run.labels)
    for (name, before), after in zip(fresh.named_parameters(), run.model.parameters(), strict=True):
        assert not torch.equal(before, after), name


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(tmp_path):
    runs = [
        fit(small_config(tmp_path, f"run.dir={tmp_path / name}", f"seed={seed}", "train.epochs=2"))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = ([p.detach() for p in run.model.parameters()] for run in runs)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_workers_change_nothing(tmp_path):
    a = fit(small_config(tmp_path, f"run.dir={tmp_path / 'a'}", "train.epochs=2"))
    b = fit(small_config(tmp_path, f"run.dir={tmp_path / 'b'}", "train.epochs=2", "data.workers=2"))
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    overrides = ("train.epochs=2", "model.dropout=0", "train.clip_norm=0.5")
    large = fit(
        small_config(tmp_path, f"run.dir={tmp_path / 'a'}", "train.batch_size=12", *overrides)
    )
    small = fit(
        small_config(
            tmp_path,
            f"run.dir={tmp_path / 'b'}",
            "train.batch_size=4",
            "train.accumulate=3",
            *overrides,
        )
    )
    for x, y in zip(large.model.parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_features_from_the_cache_give_the_same_numbers(tmp_path):
    frozen = ("model.encoders.text.freeze=all", "model.encoders.vector.freeze=all")
    plain = fit(small_config(tmp_path, f"run.dir={tmp_path / 'a'}", *frozen))
    cached = fit(
        small_config(
            tmp_path, f"run.dir={tmp_path / 'b'}", f"data.cache={tmp_path / 'cache'}", *frozen
        )
    )
    assert list((tmp_path / "cache").glob("text-*/part-*.safetensors"))
    for x, y in zip(plain.model.parameters(), cached.model.parameters(), strict=True):
        # A matrix product of other rows together may differ in the last bit.
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    assert cached.evaluate() == pytest.approx(plain.evaluate(), rel=1e-5)
    for encoder in cached.model.encoders.values():
        encoder.preprocess = None  # not needed again, nor for another fold
    assert cached.evaluate() == pytest.approx(plain.evaluate(), rel=1e-5)


def test_frozen_encoders_do_not_change_and_partly_frozen_ones_do_in_part(tmp_path):
    config = small_config(
        tmp_path, "model.encoders.text.freeze=1", "model.encoders.vector.freeze=all"
    )
    run = fit(config)
    options = load_checkpoint(run.path / "last").state["options"]
    fresh = build_model(config, options, run.labels)
    before, after = fresh.state_dict(), run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("encoders.vector") for name in changed)
    text = {name for name in changed if name.startswith("encoders.text")}
    assert text
    assert not any("table" in name for name in text)


def test_stages_train_what_they_say(tmp_path):
    seen = []

    class Watch(Listener):
        def on_epoch_start(self, stage, epoch, epochs, steps, done):
            seen.append((stage.name, epoch, epochs, steps))

    run = fit(
        small_config(
            tmp_path,
            "train.stages=[{name: align, objective: contrastive, epochs: 2, batch_size: 12}, "
            "{name: fine, lr: 0.02, freeze: {text: all}}]",
        ),
        listener=Watch(),
    )
    assert seen == [
        ("align", 0, 2, 3),
        ("align", 1, 2, 3),
        *[("fine", epoch, 3, 5) for epoch in range(3)],
    ]
    assert [record["stage"] for record in run.progress.history] == ["align"] * 2 + ["fine"] * 3
    assert "val_accuracy" not in run.progress.history[0]


def test_early_stopping(tmp_path):
    run = fit(
        small_config(
            tmp_path,
            "train.epochs=50",
            "train.lr=1e-9",
            "train.early_stopping={patience: 2, min_delta: 0.01}",
        )
    )
    assert len(run.progress.history) == 3
    assert run.progress.done


def test_averaged_weights_are_those_that_are_evaluated(tmp_path):
    run = fit(small_config(tmp_path, "train.ema=0.5", "train.schedule=constant"))
    found = load_checkpoint(run.path / "best").tensors
    name = "output.weight"
    assert torch.equal(run.model.state_dict()[name], found["average"][f"module.model.{name}"])
    assert not torch.equal(run.model.state_dict()[name], found["model"][name])


def test_what_is_measured_while_training_are_the_averaged_weights(tmp_path):
    run = fit(small_config(tmp_path, "train.ema=0.9", "train.schedule=constant"))
    best = min(run.progress.history, key=lambda record: record["val_loss"])
    assert run.evaluate(side="val")["loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_gradients_are_clipped(tmp_path):
    """A step of plain SGD moves the parameters by the norm of their gradients times the rate."""
    moved = {}
    for clip in ("null", "0.01"):
        run = fit(
            small_config(
                tmp_path,
                f"run.dir={tmp_path / clip}",
                f"train.clip_norm={clip}",
                *("train.epochs=1", "train.batch_size=60", "train.schedule=constant"),
                *("train.optimizer=sgd", "train.momentum=0", "train.weight_decay=0", "train.lr=1"),
            )
        )
        torch.manual_seed(0)
        state = load_checkpoint(run.path / "last").state
        fresh = build_model(run.config, state["options"], run.labels).parameters()
        pairs = zip(fresh, run.model.parameters(), strict=True)
        moved[clip] = math.hypot(*(float((x - y).detach().norm()) for x, y in pairs))
    assert moved["null"] > 0.1
    assert moved["0.01"] == pytest.approx(0.01, rel=1e-3)


def test_matrices_decay_and_biases_do_not(tmp_path):
    run = fit(small_config(tmp_path, "train.epochs=1", "train.weight_decay=0.3"))
    found = {0.3: 0, 0.0: 0}
    for group in load_checkpoint(run.path / "last").state["optimizer"]["groups"]:
        found[group["weight_decay"]] += len(group["params"])
    matrices = [p.dim() > 1 for p in run.model.parameters()]
    assert found == {0.3: matrices.count(True), 0.0: matrices.count(False)}


@pytest.mark.parametrize(
    ("overrides", "metric"),
    [
        (("task.type=binary", "data.label=positive"), "f1"),
        (("task.type=multilabel", "data.label=tags"), "f1_micro"),
        (("task.type=regression", "data.label=value"), "correlation"),
        (("task.loss=hinge",), "accuracy"),
        (("task.loss=focal", "task.balance=weights"), "f1_macro"),
    ],
)
def test_every_task_learns(tmp_path, overrides, metric):
    run = fit(
        small_config(
            tmp_path, "train.epochs=15", "data.split.method=random", "model.dropout=0", *overrides
        )
    )
    assert run.evaluate()[metric] > 0.7
    first = next(iter(run.predict()))
    assert first["row"] == 0
    if run.task.kind == "regression":
        assert 5 < first["value"] < 25
    elif run.task.kind == "multilabel":
        assert set(first["label"].split("|")) <= set(run.labels.classes)


def test_retrieval(tmp_path):
    run = fit(
        small_config(
            tmp_path,
            "task.type=retrieval",
            "data.label=null",
            "data.split.method=random",
            "train.epochs=20",
            rows=120,
        )
    )
    measured = run.evaluate()
    # A class shares its texts, so partners are found among those of the class only.
    assert measured["text_to_vector_recall_at_10"] > 0.8
    record = next(iter(run.predict()))
    assert math.hypot(*record["embedding_text"]) == pytest.approx(1, abs=1e-5)
    assert len(record["embedding_vector"]) == 16


def test_commands(tmp_path, capsys):
    path = write_config(tmp_path)
    assert main(["config", "check", str(path)]) == 0
    assert main(["config", "show", str(path), "train.epochs=7"]) == 0
    assert "epochs: 7" in capsys.readouterr().out
    assert main(["train", str(path), "train.epochs=2"]) == 0
    assert "epoch 2" in capsys.readouterr().out
    run = str(tmp_path / "run")
    assert main(["evaluate", run, "--json", str(tmp_path / "m.json")]) == 0
    measured = json.loads((tmp_path / "m.json").read_text())
    assert measured == Run.load(run).evaluate()
    unlabelled = tmp_path / "new.csv"
    unlabelled.write_text("text,vector\nnight hoot,\nbark tail,\n")
    assert main(["predict", run, str(unlabelled), "-o", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1"]
    assert set(rows[0]) == {"row", "label", "score_cat", "score_dog", "score_owl"}
    assert main(["evaluate", run, "--data", str(tmp_path / "table.jsonl")]) == 0
    assert main(["train", str(path)]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_crossval(tmp_path, capsys):
    path = write_config(tmp_path)
    overrides = ["train.epochs=2", "data.split.folds=3"]
    assert main(["crossval", str(path), *overrides]) == 0
    summary = json.loads((tmp_path / "run" / "crossval.json").read_text())
    assert len(summary["accuracy"]["folds"]) == 3
    tested = [Run.load(tmp_path / "run" / f"fold-{k}") for k in (1, 2, 3)]
    assert [run.fold for run in tested] == [0, 1, 2]
    assert summary["loss"]["folds"] == [run.evaluate()["loss"] for run in tested]
    before = [p.resolve() for p in (tmp_path / "run").glob("fold-*/last")]
    assert main(["crossval", str(path), *overrides, "--resume", "auto"]) == 0
    assert [p.resolve() for p in (tmp_path / "run").glob("fold-*/last")] == before


def test_export_gives_the_outputs_of_the_model(trained, tmp_path):
    program = torch.export.load(trained.export(tmp_path / "model.pt2")).module()
    table, specs, checked = read_examples(trained.config)
    batches = trained._batches(Examples(table, specs, checked, None), checked.rows[:20], False)
    for batch in batches.epoch():
        with torch.no_grad():
            torch.testing.assert_close(program(batch.inputs), trained.model(batch.inputs))


def broken(tmp_path, change):
    values = settings(tmp_path)
    change(values)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c["data"].update(source="none.csv"), TableError, "none.csv"),
        (
            lambda c: c["data"].update(label="lable"),
            TableError,
            r"no column 'lable' \(did you mean 'label'",
        ),
        (
            lambda c: c["data"]["columns"]["text"].update(column="txt"),
            TableError,
            "no column 'txt'",
        ),
        (
            lambda c: c["model"]["encoders"]["text"].update(name="text_hash"),
            ValueError,
            "text_hashed",
        ),
        (
            lambda c: c["model"]["encoders"]["text"].update(options={"bucket": 3}),
            TypeError,
            "bucket",
        ),
        (
            lambda c: c["model"]["encoders"]["vector"].update(name="text_hashed", options={}),
            ValueError,
            "encodes text; data.columns.vector holds features",
        ),
        (lambda c: c["model"]["fusion"].update(name="concatt"), ValueError, "did you mean"),
        (lambda c: c["train"].update(device="cuda"), TrainingError, "torch sees no GPU"),
        (lambda c: c["train"].update(precision="fp16"), TrainingError, "needs a GPU"),
        (
            lambda c: c["train"].update(stages=[{"name": "r", "objective": "reconstruction"}]),
            ValueError,
            "needs an encoder that can rebuild its input",
        ),
        (
            lambda c: [e.update(freeze=9) for e in c["model"]["encoders"].values()],
            ValueError,
            "freeze of the encoder text in the stage train: groups is 9",
        ),
        (lambda c: c["run"].update(dir="/proc/none"), TrainingError, "cannot be written to"),
        (lambda c: c["task"].update(metric="accurcy"), TrainingError, "what is measured is loss,"),
        (
            lambda c: c["task"].update(classes=["cat", "dog"]),
            LabelError,
            "'owl'",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, change, error, message):
    if torch.cuda.is_available():
        pytest.skip("asks for a GPU where there is none")
    write_table(tmp_path)
    with pytest.raises(error, match=message):
        fit(broken(tmp_path, change))


def test_a_row_without_any_modality(tmp_path):
    write_table(tmp_path)
    with (tmp_path / "table.jsonl").open("a") as file:
        file.write(json.dumps({"label": "cat"}) + "\n")
    config = broken(tmp_path, lambda c: None)
    with pytest.raises(DataError, match=r"table\.jsonl:61.*has no modality"):
        fit(config)
    run = fit(broken(tmp_path, lambda c: c["data"].update(on_error="skip")))
    assert run.progress.done


def test_a_loss_that_is_not_finite_names_its_rows(tmp_path):
    config = small_config(tmp_path, "train.lr=1e30", "train.schedule=constant")
    with pytest.raises(TrainingError) as caught:
        fit(config)
    found = re.search(
        r"the loss became (nan|inf) at step 2 .* rows ((\d+, ){7}\d+);", f"{caught.value}"
    )
    assert found, caught.value
    table, _, checked = read_examples(config)
    rows = {int(row) for row in found[2].split(", ")}
    assert rows <= set(split_rows(config, table, checked.rows).train.tolist())


def test_a_checkpoint_that_names_an_unknown_plugin(trained, tmp_path):

    shutil.copytree(trained.path, tmp_path / "run", symlinks=True)
    folder = (tmp_path / "run" / "best").resolve()
    text = (folder / "config.yaml").read_text().replace("text_hashed", "elsewhere/text")
    (folder / "config.yaml").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.yaml"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="elsewhere/text"):
        Run.load(tmp_path / "run")


def test_a_tampered_run(trained, tmp_path):

    shutil.copytree(trained.path, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "best" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        Run.load(tmp_path / "run")


def test_tokens_and_known_features_reach_the_fusion():
    class Constant(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.spec = type("Spec", (), {"out_dim": dim})

        def forward(self, batch):
            return Features(batch["values"], batch["mask"])

    torch.manual_seed(0)
    fusion = Fusion(name="sequence", out_features=8, options={"num_heads": 2})
    model = MultimodalModel({"a": Constant(4), "b": Constant(6)}, fusion, 3).eval()
    assert model.takes_tokens
    mask = torch.tensor([[True, True, False], [True, False, False]])
    tokens = torch.randn(2, 3, 4)
    vector = Features(torch.randn(2, 6), torch.tensor([True, False]))
    first = model({"a": {"values": tokens, "mask": mask}, "b": vector})
    tokens[~mask] = float("nan")
    assert torch.equal(model({"a": Features(tokens, mask), "b": vector}), first)
    torch.testing.assert_close(
        pooled(Features(tokens, mask)), torch.stack([tokens[0, :2].mean(0), tokens[1, 0]])
    )


def test_normalised_codes_do_not_depend_on_the_scale_of_an_encoder(tmp_path):
    config = small_config(tmp_path, "model.normalise=true", "train.epochs=1")
    model = fit(config).model
    there = torch.ones(4, dtype=torch.bool)
    widths = {name: encoder.spec.out_dim for name, encoder in model.encoders.items()}
    features = {name: Features(torch.randn(4, width), there) for name, width in widths.items()}
    larger = {name: Features(5 * values, there) for name, (values, _) in features.items()}
    torch.testing.assert_close(model(larger), model(features), rtol=1e-3, atol=1e-3)
    model.normalise = False
    assert not torch.allclose(model(larger), model(features), rtol=1e-2)
