"""The command line: every command is reached, and wrong calls are told."""

import os
import pathlib
import subprocess
import sys

import pytest

import mmfast
from mmfast import cli


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == mmfast.__version__
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_unknown_command(capsys):
    assert cli.main(["dmeo"]) == 2
    assert "there is no command 'dmeo'" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"mmfast {command}" in capsys.readouterr().out


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ["--help", "bench --help", "config schema", "encoders list"])
def test_a_reader_that_goes_is_no_error(command, buffered):
    code = f"import sys; from mmfast import cli; sys.exit(cli.main({command.split()!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() in (0, 1)  # argparse does not mind a failed write


def test_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["--help"]) == 0


def test_other_broken_pipes_are_told(monkeypatch, capsys):
    def broken(argv: list[str]) -> int:
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setattr("mmfast.doctor.main", broken)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "mmfast: a worker has gone\n"
    monkeypatch.setenv("MMFAST_TRACEBACK", "1")
    with pytest.raises(BrokenPipeError):
        cli.main(["doctor"])


@pytest.mark.parametrize("missing", ["matplotlib", "rich", "torchmetrics", "PIL"])
def test_missing_package_is_named(missing):
    done = run(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from mmfast import cli; sys.exit(cli.main(['demo', '--help']))"
    )
    assert done.returncode == 1, done.stderr
    assert f"mmfast demo needs {missing}" in done.stderr
    assert "pip install 'mmfast[train]'" in done.stderr


def test_doctor_runs_where_the_library_does_not_load():
    done = run(
        "import sys; sys.modules['mmfast._C'] = None\n"
        "from mmfast import cli; sys.exit(cli.main(['doctor']))"
    )
    assert done.returncode == 1, done.stderr
    assert "no: mmfast's compiled library could not be loaded" in done.stdout


def test_demo_refuses_an_unwritable_directory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    recipe = pathlib.Path(__file__).parents[1] / "examples" / "emoji.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "mmfast.cli", "demo", recipe, "--out", str(blocked / "runs")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(blocked) in done.stderr
