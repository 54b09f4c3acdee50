"""`mmfast encoders new`: what it writes installs, is found, and keeps the contract at once."""

import ast
import os
import subprocess
import sys

import pytest

from mmfast import scaffold
from mmfast.encoders_cli import main
from mmfast.plugins import MODALITIES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site folder with a new package of every modality, as pip built and installed them."""
    made = tmp_path_factory.mktemp("made")
    for modality in MODALITIES:
        assert main(["new", f"acme-{modality}", "--modality", modality, "--into", str(made)]) == 0
    folder = tmp_path_factory.mktemp("site")
    quiet = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    packages = [str(made / f"acme-{modality}") for modality in MODALITIES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(folder), *packages],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return made, folder


def run(site, *arguments):
    made, folder = site
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "MMFAST_PLUGINS": "",
        "OMP_NUM_THREADS": "1",
    }
    environment["MMFAST_PLUGINS"] = ",".join(f"acme-{modality}" for modality in MODALITIES)
    return subprocess.run(
        [sys.executable, *arguments], cwd=made, env=environment, capture_output=True, text=True
    )


def test_its_own_tests_pass(site):
    """The contract kit of each package, run by pytest from where it was written."""
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", ".")
    assert done.returncode == 0, done.stdout
    for modality in MODALITIES:
        assert (site[0] / f"acme-{modality}" / "tests" / "test_encoder.py").is_file()
    assert "failed" not in done.stdout


def test_listed_and_shown(site):
    done = run(site, "-m", "mmfast.cli", "encoders", "list", "--modality", "audio")
    assert "acme-audio/audio" in done.stdout, done.stderr
    assert "acme-image/image" not in done.stdout
    done = run(site, "-m", "mmfast.cli", "encoders", "show", "acme-audio/audio")
    assert done.returncode == 0, done.stderr
    assert "acme_audio.encoder:AcmeAudio" in done.stdout


def test_check(site):
    done = run(site, "-m", "mmfast.cli", "encoders", "check", "acme-features/features")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "acme-features/features: keeps the contract" in done.stdout


@pytest.mark.parametrize("modality", MODALITIES)
def test_files(tmp_path, modality):
    folder = scaffold.write_package("my.First-encoder", modality, tmp_path)
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {
        "README.md",
        "pyproject.toml",
        "my_first_encoder/__init__.py",
        "my_first_encoder/encoder.py",
        "tests/test_encoder.py",
    }
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "@" not in text.replace("@classmethod", ""), path
            if path.suffix == ".py":
                ast.parse(text)
                assert max(len(line) for line in text.splitlines()) <= 100, path
    entry = (
        f'"my.First-encoder/{modality}" = "my_first_encoder.encoder:MyFirstEncoder [{modality}]"'
    )
    assert entry in (folder / "pyproject.toml").read_text().splitlines()


def test_refuses(tmp_path, capsys):
    with pytest.raises(ValueError, match="modality is 'smell'; it must be one of image, "):
        scaffold.write_package("acme", "smell", tmp_path)
    for name in ("", "1up", "a b", "../up", "acme-", "class"):
        with pytest.raises(ValueError, match="it must be letters, digits"):
            scaffold.write_package(name, "text", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "acme").mkdir()
    assert main(["new", "acme", "--modality", "text", "--into", str(tmp_path)]) == 1
    assert str(tmp_path / "acme") in capsys.readouterr().err
