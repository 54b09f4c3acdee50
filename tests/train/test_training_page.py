"""docs/training.md as its reader meets it: loose files, a table, every command in its order."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmfast.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")


def block(language, word):
    """The fenced block of a language in which the word stands."""
    (found,) = [
        text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text
    ]
    return found


def commands():
    """What the page says to type, in its order."""
    lines = block("sh", "mmfast predict").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Photos of two classes, three in four with a caption, none with a recording."""
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        kind, colour = (("animal", "brown"), ("vehicle", "red"))[number % 2]
        photo = Path("photos", kind, f"{number:02}.jpg")
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(photo)
        if number % 4:
            photo.with_suffix(".txt").write_text(f"a {colour} {kind}, number {number}\n")
    return tmp_path


def test_from_loose_files_to_a_report(home):
    exec(block("python", "Path("), {})
    rows = list(csv.DictReader(Path("table.csv").read_text().splitlines()))
    assert len(rows) == 24
    assert [row["class"] for row in rows] == ["animal"] * 12 + ["vehicle"] * 12
    assert sum(row["caption"] == "" for row in rows) == 6
    assert rows[1]["photo"] == "photos/animal/02.jpg"
    assert rows[1]["caption"] == "a brown animal, number 2"

    Path("first.yaml").write_text(block("yaml", "runs/first"))
    Path("other.csv").write_text(Path("table.csv").read_text())
    with Path("new.csv").open("w", newline="") as file:  # what has no label yet
        writer = csv.DictWriter(file, ["photo", "caption"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[:5])

    threads = torch.get_num_threads()
    try:
        for program, *arguments in commands():
            assert program == "mmfast"
            assert main(arguments) == 0, arguments
        exec(block("python", "fit("), {})
    finally:
        torch.set_num_threads(threads)
    for name in ("first", "second"):
        assert Path("runs", name, "report.html").stat().st_size > 50_000
    assert len(list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))) == 5
    assert Path("model.pt2").exists()
    assert {path.name for path in Path("runs").iterdir()} == {"first", "second", "third", "folds"}
