"""The predictions kept with a run: right, withheld as an empty cell is, and computed only once."""

import json
import os

import pytest
import torch
from pipeline import small_config

from mmfast.data.files import MAX_HEADER
from mmfast.train import predictions
from mmfast.train.checkpoint import CheckpointError
from mmfast.train.predictions import FILE, compute, predictions_of
from mmfast.train.run import Run, fit
from mmfast.train.scores import Scores


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    return fit(small_config(folder, "train.epochs=8", "model.fusion={name: gated}"))


def lines(run):
    path = run.path.parent / "table.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_they_are_those_of_evaluation(run):
    found = predictions_of(run.path)
    scores = Scores.of(found)
    expected = run.evaluate()
    assert {n: scores.point(n) for n in scores.measures} == pytest.approx(
        {n: v for n, v in expected.items() if n != "loss"}, abs=1e-6
    )
    rows = lines(run)
    said = {record["row"]: record["label"] for record in run.predict()}
    for place, row in enumerate(found.rows.tolist()):
        classes = found.about.classes
        assert classes[found.labels[place]] == rows[row]["label"]
        assert classes[found.outputs[place].argmax()] == said[row]
        assert found.present[place].tolist() == ["text" in rows[row], "vector" in rows[row]]


def test_a_modality_withheld_is_a_cell_left_empty(run, tmp_path):
    found = predictions_of(run.path)
    for name in ("text", "vector"):
        rows = lines(run)
        other = "vector" if name == "text" else "text"
        rest = [place for place, row in enumerate(found.rows.tolist()) if other in rows[row]]
        table = tmp_path / "less.jsonl"
        with table.open("w") as file:
            for place in rest:
                record = rows[int(found.rows[place])]
                record[name] = None
                file.write(json.dumps(record) + "\n")
        said = list(run.predict(str(table)))
        scores = found.without[name][rest].softmax(1)
        for record, expected in zip(said, scores, strict=True):
            told = [record[f"score_{c}"] for c in found.about.classes]
            assert told == pytest.approx(expected.tolist(), abs=1e-5)


def test_what_the_fusion_weighs(run):
    found = predictions_of(run.path)
    assert found.weights.shape == found.present.shape
    assert (found.weights[~found.present] == 0).all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found)))


def test_they_are_computed_once(run, monkeypatch):
    first = predictions_of(run.path)

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(predictions, "compute", refuse)
    again = predictions_of(run.path)
    assert again.about == first.about
    for name in ("rows", "keys", "present", "outputs", "labels", "weights"):
        assert torch.equal(getattr(again, name), getattr(first, name)), name
    assert again.without.keys() == first.without.keys() == {"text", "vector"}
    assert all(torch.equal(again.without[n], first.without[n]) for n in first.without)
    with pytest.raises(AssertionError, match="computed again"):
        predictions_of(run.path, fresh=True)


def spoil_file(run):
    (run.path / FILE).write_bytes(b"no safetensors")


def cut_file(run):
    path = run.path / FILE
    path.write_bytes(path.read_bytes()[:-10])


def lengthen_header(run):
    """The file is whole, but its header is more JSON than a stranger's file may hold."""
    path = run.path / FILE
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].ljust(MAX_HEADER + 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def touch_table(run):
    table = run.path.parent / "table.jsonl"
    os.utime(table, ns=(0, table.stat().st_mtime_ns + 1_000_000))


def another_checkpoint(run):
    manifest = run.path / "best" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")


@pytest.mark.parametrize(
    "change", [spoil_file, cut_file, lengthen_header, touch_table, another_checkpoint]
)
def test_and_again_after_a_change(run, change, monkeypatch):
    predictions_of(run.path)
    change(run)
    seen = []
    monkeypatch.setattr(predictions, "compute", lambda *a: seen.append(a) or compute(*a))
    expected = predictions_of(run.path)
    assert len(seen) == 1
    assert torch.equal(predictions_of(run.path).outputs, expected.outputs)
    assert len(seen) == 1, "what was computed is stored"


def test_a_folder_that_cannot_be_written_to_only_costs_time(run, monkeypatch):
    (run.path / FILE).unlink(missing_ok=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.os, "replace", full)
    assert len(predictions_of(run.path)) == len(predictions_of(run.path)) > 0
    assert not (run.path / FILE).exists()
    assert not list(run.path.glob(f".{FILE}*"))


def test_rows_are_known_again_in_another_order(run, tmp_path):
    expected = dict(zip(*keys(run), strict=True))
    table = run.path.parent / "table.jsonl"
    rows = table.read_text().splitlines()
    (tmp_path / "table.jsonl").write_text("\n".join([rows[5], rows[5], *rows[::-1]]))
    config = run.config.model_copy(
        update={
            "data": run.config.data.model_copy(update={"source": str(tmp_path / "table.jsonl")})
        }
    )
    moved = Run.load(run.path)
    moved.config = config
    by_row = dict(zip(*keys(moved, everything=True), strict=True))
    assert len(set(by_row.values())) == len(by_row), "a row that is there twice too"
    for row, key in expected.items():
        assert by_row[len(rows) - row + 1] == key or row == 5


def keys(run, everything=False):
    if not everything:
        found = compute(run)
        return found.rows.tolist(), found.keys.tolist()
    from mmfast.data import read_table

    table = read_table(run.config.data.source)
    rows = torch.arange(len(table))
    return rows.tolist(), predictions._keys(table, rows).tolist()


def test_groups(run, tmp_path):
    assert predictions_of(run.path).groups is None
    grouped = fit(small_config(tmp_path, "train.epochs=1", "data.group=group"))
    found = predictions_of(grouped.path)
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert found.groups.tolist() == [rows[row]["group"] for row in found.rows.tolist()]


def test_wrong_folders_and_empty_splits_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        predictions_of(tmp_path / "nothing")
    run = fit(small_config(tmp_path, "train.epochs=1", "data.split.fractions=[0.8, 0.2, 0]"))
    with pytest.raises(ValueError, match="the test split is empty"):
        predictions_of(run.path)
