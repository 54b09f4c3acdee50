"""Runs survive being written and read; their names say what may be compared."""

import csv
import json

import pytest

from mmfast.bench import records
from mmfast.bench.records import Result


@pytest.fixture
def full(a_run, measurement):
    first = measurement({"copy": [0.5, 0.5], "linear": [1.0, 1.0], "mmfast": [2.0, 2.5]})
    first.peers["eager"] = Result([3.0, 3.5], 100, 50, 20)
    first.refused["split"] = "PeerDisagreesError: split: the result differs"
    second = measurement({"mmfast": [1e-6]}, case="none else", mode="both")
    return a_run(first, second, skipped={"huge": "needs more"}, elapsed_s=3.5)


def test_round_trip(full, tmp_path):
    path = tmp_path / "run.json"
    records.save_json(full, path)
    assert records.load_json(path) == full
    lines = path.read_text().splitlines()
    assert sum('"case": ' in line for line in lines) == len(full.measurements)


def test_times_are_rounded_and_the_run_is_left_alone(a_run, measurement, tmp_path):
    run = a_run(measurement({"mmfast": [0.123456789]}))
    records.save_json(run, tmp_path / "run.json")
    read = records.load_json(tmp_path / "run.json")
    assert read.measurements[0].peers["mmfast"].times_s == [0.1235]
    assert run.measurements[0].peers["mmfast"].times_s == [0.123456789]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1}'])
def test_another_file_is_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other.json is not the JSON of a benchmark run"):
        records.load_json(path)


def test_a_run_of_the_first_format_is_of_concat_linear(full, tmp_path):
    path = tmp_path / "run.json"
    records.save_json(full, path)
    found = json.loads(path.read_text())
    found["format"] = 1
    for m in found["measurements"]:
        del m["operator"]
    path.write_text(json.dumps(found))
    assert records.load_json(path) == full


def test_an_unknown_field_is_refused(full, tmp_path):
    path = tmp_path / "run.json"
    records.save_json(full, path)
    found = json.loads(path.read_text())
    found["measurements"][0]["mood"] = "good"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="mood"):
        records.load_json(path)


def test_csv_has_a_line_per_peer(full, tmp_path):
    path = tmp_path / "run.csv"
    records.save_csv(full, path)
    rows = list(csv.DictReader(path.open()))
    assert [row["peer"] for row in rows] == ["copy", "linear", "mmfast", "eager", "mmfast"]
    eager = rows[3]
    assert (eager["processor"], eager["torch"], eager["mmfast"]) == ("Abacus", "2.13.0+cpu", "0.1")
    assert float(eager["median_s"]) == 3.25
    assert float(eager["over_linear"]) == 3.25
    assert float(eager["gbyte_per_s"]) == pytest.approx(1000 / 3.25 / 1e9, rel=1e-3)
    assert (eager["peak_bytes"], eager["kept_extra_bytes"]) == ("100", "20")
    assert rows[4]["over_linear"] == ""


def test_key_names_machine_and_versions(full):
    assert full.key == "abacus-2t-beads-torch-2.13.0-cpu-mmfast-0.1"


def test_best_is_the_fastest_that_computes_the_same(measurement):
    times = {"copy": [0.1], "linear": [0.2], "mmfast": [0.3], "eager": [2.0], "split": [1.0]}
    assert measurement(times).best == "split"
    assert measurement({"mmfast": [1.0], "linear": [1.0]}).best is None
