"""``mmfast doctor``: what a bug report should contain, also where nothing works."""

import json
import subprocess
import sys

import mmfast
from mmfast import doctor


def test_report():
    done = subprocess.run(
        [sys.executable, "-m", "mmfast.doctor", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["mmfast"] == mmfast.__version__
    assert report["kernels"]["loaded"].startswith("yes")
    assert "baseline" in report["kernels"]["instruction sets"]
    assert report["cuda"]["kernels"]
    assert report["cuda"]["device"]


def test_missing_extra_is_told(monkeypatch):
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda p: None if p == "pillow" else installed(p))
    assert "pillow not installed" in doctor.examine()["extras"]["train"]


def test_broken_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor.examine()
    assert report["machine"]["torch"].startswith("does not import")
    assert report["cuda"]["device"].startswith("unknown")
