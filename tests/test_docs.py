"""The worked example of docs/plugins.md: written to files, installed, tested and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The files that the page names, and a folder with the package as pip installs it."""
    page = (DOCS / "plugins.md").read_text()
    made = tmp_path_factory.mktemp("made")
    pieces = re.findall(r"`(acme-words/[\w.]+)`[^`]*```(?:toml|python)\n(.*?)```", page, re.DOTALL)
    assert [path for path, _ in pieces] == [
        "acme-words/pyproject.toml",
        "acme-words/acme_words.py",
        "acme-words/test_acme_words.py",
    ]
    for path, code in pieces:
        (made / path).parent.mkdir(exist_ok=True)
        (made / path).write_text(code)
    site = tmp_path_factory.mktemp("site")
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(made, site, "-m", "pip", *install, "--target", str(site), "./acme-words")
    return made, site, page


def run(made, site, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site), "MMFAST_PLUGINS": "acme-words"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=made, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_test(example):
    made, site, _ = example
    out = run(made, site, "-m", "pytest", "-p", "no:cacheprovider", "-v", "acme-words")
    assert "TestWords::test_missing PASSED" in out


def test_its_use(example):
    made, site, page = example
    use = re.search(r"like any other:\n\n```python\n(.*?)```", page, re.DOTALL).group(1)
    run(made, site, "-c", use)


def test_commands_are_the_real_ones(example):
    _, _, page = example
    for command in re.findall(r"^    mmfast encoders (\w+)", page, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", "mmfast.cli", "encoders", command, "--help"], capture_output=True
        )
        assert done.returncode == 0, command


def test_messages_are_the_real_ones(example):
    """What the page shows of the kit is what the kit says."""
    from mmfast.testing import EncoderContract

    page = " ".join(example[2].split())
    said = " ".join(EncoderContract.test_padding.__doc__.split())
    assert said in page
