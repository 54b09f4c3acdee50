"""Every example in README and docs: Python is run, commands are parsed, YAML is checked.

The worked example of docs/plugins.md has tests of its own, in test_docs.py.
"""

import argparse
import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
from data_files import noisy
from torch import nn

import mmfast
from mmfast.cli import main
from mmfast.train import config as configs
from mmfast.train import fit, load_config
from mmfast.train.yaml_source import parse_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# Blocks of a page that are files of a package, which test_docs.py writes, installs and tests.
ELSEWHERE = ("acme", "EncoderContract")


def blocks(language):
    """The fenced blocks of a language on all pages, as parameters named by page and line."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: found.start()].count("\n") + 1
            yield pytest.param(page.name, found.group(1), id=f"{page.name}:{line}")


# Python


class Model(nn.Module):
    """A model of the kind that the pages speak of."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2048 + 768, 512)

    def forward(self, image, text):
        return torch.relu(self.fc(torch.cat([image, text], -1)))


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the examples take for granted: tensors, a model, and the files of docs/training.md."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return {
        "torch": torch,
        "nn": nn,
        "mmfast": mmfast,
        "model": Model(),
        "image": torch.randn(4, 2048),
        "text": torch.randn(4, 768),
        "present": torch.tensor([[True, True], [True, False], [False, True], [False, False]]),
    }


def write_files(folder):
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    (first,) = (
        found
        for found in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        if "runs/first" in found
    )
    (folder / "first.yaml").write_text(first)
    (header,) = re.findall(r"```csv\n(.*?)\n", page)
    for name, rows in (("table.csv", 24), ("new.csv", 4)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header.split(","))
            for row in range(rows):
                (folder / f"{row}.png").write_bytes(noisy((16, 16), seed=row))
                words = ("a cat asleep", "a red lorry")[row % 2]
                writer.writerow([f"{row}.png", words, "", ("animal", "vehicle")[row % 2]])


def of_the_package(page, code):
    return page == "plugins.md" and any(word in code for word in ELSEWHERE)


HERE = [block for block in blocks("python") if not of_the_package(*block.values)]


@pytest.mark.parametrize(("page", "code"), HERE)
def test_python(page, code, names):
    if page == "fusion.md":
        names |= {"image": torch.randn(4, 512)}
    if page == "report.md":
        for name in ("first", "second"):
            fit(load_config("first.yaml", [f"run.dir=runs/{name}", "train.epochs=1"]))
    if page == "plugins.md":
        exec("import pydantic\nfrom typing import Literal", names)
    # "# before: y = f(x)" is code too.
    code = re.sub(r"^# (before|after): ", "", code, flags=re.MULTILINE)
    exec(compile(code, page, "exec"), names)
    if "report" in names:
        assert len(names["report"].fused) == 1


def test_python_of_every_page_is_found():
    found = {parameter.values[0] for parameter in blocks("python")}
    assert {"README.md", "dropin.md", "fusion.md", "plugins.md", "training.md"} <= found


# YAML


@pytest.mark.parametrize(("page", "text"), list(blocks("yaml")))
def test_yaml(page, text, tmp_path):
    """A whole configuration is loaded; of a part, each section is checked as it stands."""
    given = parse_yaml(text, page).values
    if {"data", "model", "task"} <= set(given):
        (tmp_path / "x.yaml").write_text(text)
        configs.load_config(tmp_path / "x.yaml")
        return
    for section, values in given.items():
        model = configs.Config.model_fields[section].annotation
        model.model_validate(values)


# Commands


def commands():
    """Every call of mmfast: in blocks of a shell, in indented lines, in the running text."""
    for page in PAGES:
        text = page.read_text("utf-8")
        shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        lines = re.findall(r"^    ((?:mmfast|torchrun) .*)$", text, re.MULTILINE)
        lines += shell.replace("\\\n", " ").splitlines()
        lines += [" ".join(said.split()) for said in re.findall(r"`([^`]+)`", text)]
        for line in lines:
            said = re.sub(r"\s#.*", "", line).strip()
            found = re.match(
                r"(?:torchrun .*? -m |python -m |\S+=\S+ )*mmfast(?:\.cli)?(?= )(.*)", said
            )
            if found:
                yield pytest.param(found.group(1), id=f"{page.name}: {said[:60]}")


class Parsed(Exception):
    """A command line has been understood; what it asks for is not done."""


def parsed(method):
    def wrapper(self, *arguments, **options):
        method(self, *arguments, **options)
        raise Parsed

    return wrapper


@pytest.mark.parametrize("line", list(commands()))
def test_command(line, monkeypatch, capsys, tmp_path):
    """Command and options exist. The running text may leave out what has to be given besides."""
    for name in ("parse_args", "parse_intermixed_args"):
        method = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, parsed(method))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r"[\[\]]", "", line).replace("...", "").replace("JSON", "{}"))
    try:
        status = main(words)
    except Parsed:
        return
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert re.search(r"arguments? (are|is) required|expected (one|at least one) argument", said), (
        said
    )


def test_commands_are_found():
    assert len(list(commands())) > 20


def test_targets_and_scripts_exist():
    """Each `make x` and `python x.py` that a page names."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named, scripts = set(), set()
    for page in PAGES:
        text = page.read_text("utf-8")
        named |= set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text, re.MULTILINE))
        scripts |= set(re.findall(r"python3? ((?:scripts|benchmarks|examples)/\w+\.py)", text))
    assert len(named) > 5
    assert named <= targets
    assert len(scripts) >= 2
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_links_lead_somewhere():
    """Each relative link of a page is a file of the repository."""
    broken = [
        f"{page.name}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []
