"""`mmfast encoders list | show | check`, as a user calls them."""

import json
import subprocess
import sys

import pytest

import mmfast
from mmfast.encoders_cli import main
from mmfast.plugins.encoders import ENCODERS

ENCODER = """
print("welcome to acme")
import torch
from torch import nn
from mmfast.plugins import EncoderSpec, Features

class A(nn.Module):
    def __init__(self, extra=0):
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="features", out_dim=4, licence="MIT")
        self.last = nn.Linear(12, 4 + extra)
        print("made")

    def preprocess(self, raw):
        if raw.dim() != 1:
            raise ValueError("not a vector")
        return raw * 1

    def collate(self, samples):
        rows = [torch.zeros(12) if s is None else s for s in samples]
        return {"x": torch.stack(rows), "there": torch.tensor([s is not None for s in samples])}

    def forward(self, batch):
        print("forward")
        values = self.last(batch["x"])
        return Features(torch.where(batch["there"][:, None], values, 0), batch["there"])

    def layer_groups(self):
        return [list(self.parameters())]
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(ENCODERS, "registered", {})


@pytest.fixture
def acme(install):
    install("acme", {"acme/a": "acme_module:A [features]"}, ENCODER, headers="License: MIT\n")


def rows(capsys, *arguments):
    assert main(["list", "--json", *arguments]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


# ---------------------------------------------------------------------------------------- list


def test_list(acme, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "MODALITY", "STATUS", "LICENCE", "ORIGIN"]
    assert lines[1].split() == ["acme/a", "features", "installed", "MIT", "acme", "1.2.3"]
    assert [line.split()[0] for line in lines[1:]] == mmfast.list_encoders()
    assert any(line.split()[1] == "audio,image,text" for line in lines)


def test_list_of_a_modality(acme, capsys):
    assert set(rows(capsys, "--modality", "features")) == {"acme/a", "features", "feature_sequence"}


def test_list_of_nothing(capsys, monkeypatch):
    monkeypatch.setattr(ENCODERS, "group", "mmfast.nothing")
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", "there is no such encoder\n")


def test_status(acme, install, capsys, monkeypatch):
    install("broken", {"broken/a": "broken_module:A [text]"}, "raise OSError('no disk')")
    install("stale", {"stale/a": "gone_module.inner:A [text]"})
    install("twin", {"acme/a": "twin_module:A [features]"}, ENCODER)
    install("silent", {"silent/a": "silent_module:A"}, ENCODER)
    install("hidden", {"hidden/a": "hidden_module:A"}, ENCODER)
    monkeypatch.setenv("MMFAST_PLUGINS", "acme,broken,stale,twin,silent")
    found = {name: row["status"] for name, row in rows(capsys).items()}
    assert {name: found[name] for name in found if "/" in name} == {
        "acme/a": "claimed twice",
        "broken/a": "installed",
        "hidden/a": "not allowed",
        "silent/a": "installed",
        "stale/a": "no module gone_module",
    }
    loaded = rows(capsys, "--load")
    assert loaded["broken/a"]["status"] == "broken (OSError)"
    assert loaded["stale/a"]["status"] == "broken (ModuleNotFoundError)"
    assert loaded["silent/a"] == {
        "name": "silent/a",
        "modality": "not stated",
        "status": "loads",
        "licence": "",
        "origin": "silent 1.2.3",
    }
    assert loaded["text_hashed"]["status"] == "loads"


def test_what_plugins_print_stays_out_of_the_table(acme, capsys):
    assert main(["list", "--json", "--load"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "welcome to acme" in err


# ---------------------------------------------------------------------------------------- show


def test_show(acme, capsys):
    assert main(["show", "acme/a", "--options", '{"extra": 1}']) == 0
    out, err = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) == 2)
    assert (facts["name"], facts["out_dim"], facts["licence"]) == ("acme/a", "4", "MIT")
    assert facts["target"] == "acme_module:A"
    assert facts["parameters"] == "65"
    assert "acme 1.2.3" in out
    assert "welcome to acme\nmade\n" in err


def test_show_as_json(acme, capsys):
    assert main(["show", "acme/a", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["spec"]["modality"] == "features"
    assert facts["distribution's licence"] == "MIT"


def test_show_of_a_broken_one_shows_what_is_known(install, capsys):
    install("acme", {"acme/a": "acme_module:A [text]"}, "raise OSError('no disk')")
    assert main(["show", "acme/a"]) == 1
    out = capsys.readouterr().out
    assert "acme 1.2.3" in out
    assert "unknown: PluginLoadError: the encoder 'acme/a' of acme 1.2.3" in out
    assert "OSError: no disk" in out


def test_wrong_calls(acme, capsys):
    assert main(["show", "acme/b"]) == 1
    assert "no encoder is named 'acme/b' (did you mean 'acme/a'?)" in capsys.readouterr().err
    for options, said in (("{", "is no JSON"), ("3", "is no JSON object")):
        with pytest.raises(SystemExit):
            main(["show", "acme/a", "--options", options])
        assert said in capsys.readouterr().err


# --------------------------------------------------------------------------------------- check


def test_check(acme, capsys):
    assert main(["check", "acme/a"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[-1] == "acme/a: keeps the contract"
    assert {line.split()[0] for line in lines[:-1]} == {"ok", "-"}
    assert "-       sample_rate         only for audio" in lines
    assert "forward" not in out


def test_check_of_a_spec_that_lies(acme, capsys):
    """An installed plugin whose spec says another dimension than comes."""
    assert main(["check", "acme/a", "--options", '{"extra": 2}']) == 1
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert failed == ["FAILED  output              values are (3, 6); the spec says out_dim 4"]
    assert "The contract: What forward returns is Features(values, mask)" in out
    assert out.endswith("acme/a: 1 check failed\n")


def test_torch_alone_is_enough():
    """Also to check: no pytest, no table printer, no model validator."""
    code = """
import sys
for name in ("PIL", "pydantic", "pytest", "rich", "transformers", "yaml"):
    sys.modules[name] = None
from mmfast.cli import main
sys.exit(main(["encoders", "list"]) or main(["encoders", "check", "features"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "features: keeps the contract" in done.stdout


def test_check_of_an_unknown_name(capsys):
    assert main(["check", "acme/b"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "acme/b cannot be made: ValueError: no encoder is named 'acme/b'" in err


def test_check_of_what_cannot_be_made(acme, capsys):
    """Told once, not by every check."""
    assert main(["check", "acme/a", "--options", '{"extra": -9}']) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("acme/a cannot be made: RuntimeError: ") == 1
