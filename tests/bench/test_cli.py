"""The command line: what it writes, its exit status, and errors that name the argument."""

import json
import os
import subprocess
import sys

import pytest

from mmfast.bench import cli, peers
from mmfast.bench.records import load_json, save_json

COMMON = ["--quick", "--dtype", "float32", "--threads", "1", "--limit", "0"]
TINY = [*COMMON, "--operator", "concat_linear", "--only", "tiny"]


def test_list(capsys, monkeypatch):
    monkeypatch.setattr(cli, "run", None)  # nothing is measured
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["--list"]) == 0
    assert "graph edges" in (text := capsys.readouterr().out)
    assert "2 x (10000, 128)[100000]" in text
    assert cli.main(["--list", "--grid", "--only", "^grid 26x64 -> 10,"]) == 0
    assert capsys.readouterr().out.count("26 x") == 5


def test_a_run_writes_json_csv_and_a_page(tmp_path, capsys):
    assert cli.main([*TINY, "--out", str(tmp_path / "new" / "out")]) == 0
    paths = sorted((tmp_path / "new" / "out").iterdir())
    assert [path.suffix for path in paths] == [".csv", ".html", ".json"]
    assert len({path.stem for path in paths}) == 1
    found = load_json(paths[2])
    assert [(m.case, m.mode) for m in found.measurements] == [
        ("tiny 8+8", "forward"),
        ("tiny 8+8", "both"),
    ]
    assert found.machine["threads"] == 1
    assert found.command.startswith("mmfast bench --quick --dtype float32")
    text = capsys.readouterr().out
    assert "tiny 8+8" in text
    assert paths[0].name in text


def test_another_operator(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--operator", "weighted_sum", "--only", "tiny", "--out", str(tmp_path)]
    assert cli.main([*COMMON, *arguments]) == 0
    (path,) = tmp_path.glob("*.json")
    found = load_json(path)
    assert {(m.operator, m.case) for m in found.measurements} == {
        ("weighted_sum", "tiny sum 3x64, batch 1")
    }
    assert list(found.measurements[0].peers) == ["copy", "mmfast", "eager", "by hand"]
    text = capsys.readouterr().out
    assert "weighted_sum, tiny shapes: mmfast / best peer" in " ".join(text.split())


def test_compare_sets_the_exit_status(tmp_path, capsys):
    arguments = [*TINY, "--mode", "forward", "--no-memory", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (path,) = tmp_path.glob("*.json")
    now = load_json(path)
    for name, factor, status in (("slow.json", 100, 0), ("fast.json", 0.01, 1)):
        for m in now.measurements:
            result = m.peers["mmfast"]
            times = [seconds * factor for seconds in result.times_s]
            m.peers["mmfast"] = type(result)(times)
        save_json(now, tmp_path / name)
        now = load_json(path)
        assert cli.main([*arguments, "--compare", str(tmp_path / name)]) == status, name
    assert "slower" in capsys.readouterr().out


def test_a_disagreeing_mmfast_is_a_failure(tmp_path, monkeypatch, capsys):
    def make(case):
        return lambda inputs, weight, bias, index: inputs[0] @ weight[:, :8].T

    monkeypatch.setitem(peers.PEERS, "mmfast", make)
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 1
    assert "refused: mmfast, tiny 8+8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float32,int3"], "argument --dtype: 'int3' is none of float32, bfloat16"),
        (["--mode", "sideways"], "argument --mode: 'sideways' is none of forward"),
        (
            ["--operator", "sum"],
            "argument --operator: 'sum' is none of concat_linear, weighted_sum",
        ),
        (["--grid", "--operator", "gated_sum"], "argument --grid: the grid is concat_linear's"),
        (["--threads", "0"], "argument --threads: '0' is not a whole number of at least 1"),
        (["--only", "("], "argument --only: '(' is not a regular expression"),
        (["--only", "no such case"], "argument --only: no case of this suite matches"),
        (["--limit", "soon"], "argument --limit: 'soon' is not a number of seconds"),
        (["--device", "tpu"], "argument --device: 'tpu' is neither cpu nor cuda"),
        (["--compare", "nowhere.json"], "argument --compare: "),
        (["--out", __file__], f"argument --out: {__file__} is not a directory"),
        (["--quick", "--grid"], "argument --grid: not allowed with argument --quick"),
    ],
)
def test_errors_name_the_argument(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_compare_with_another_suite_is_an_error(tmp_path, capsys, a_run, measurement):
    old = tmp_path / "old.json"
    save_json(a_run(measurement({"mmfast": [1.0], "linear": [1.0]})), old)
    with pytest.raises(SystemExit):
        cli.main([*TINY, "--mode", "forward", "--out", str(tmp_path), "--compare", str(old)])
    assert "argument --compare:" in (text := capsys.readouterr().err)
    assert "no measurement in common" in text


def test_the_module_runs_and_the_stopwatch_needs_no_extra():
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "mmfast.bench", "--list", "--only", "critic"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "376" in done.stdout
    code = """
import json, sys, mmfast.bench.timing
print(json.dumps([name for name in ("matplotlib", "rich") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout) == []
