"""Small tables of the forms that the recipes read: pictures and texts of the emoji set, recordings.

Each function writes one under a folder and returns its path, relative to it. The recordings are
those of examples/plugins/mmfast-resemblyzer/tests/speech, cut to pieces.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from mmfast.data.emoji import load_emoji

SPEECH = Path(__file__).parents[1] / "examples/plugins/mmfast-resemblyzer/tests/speech"


def emoji(folder: Path, each: int = 6) -> Path:
    """``emoji.csv``: ``each`` emoji of each of nine groups; image, text, label, family."""
    rows = [
        {"image": image, "text": text, "label": label, "family": family}
        for image, text, label, family in _emoji(folder / "emoji", 9, each)
    ]
    return _write(folder, Path("emoji.csv"), rows)


def tuxpaint(folder: Path, each: int = 6) -> Path:
    """``data/tuxpaint/table.csv``: eight classes; a third of the rows has no speech."""
    home = folder / "data/tuxpaint"
    pieces = itertools.cycle(_recordings(home, 8, seconds=0.4))
    rows = [
        {
            "image": f"emoji/{Path(image).name}",
            "text": text,
            "speech": "" if number % 3 == 0 else next(pieces),
            "label": label,
            "group": number // 2,
        }
        for number, (image, text, label, _) in enumerate(_emoji(home / "emoji", 8, each))
    ]
    return _write(folder, Path("data/tuxpaint/table.csv"), rows)


def avmnist(folder: Path, each: int = 4) -> Path:
    """``data/avmnist/table.csv``: ten digits, ``each`` rows of each; half of them to train on."""
    home = folder / "data/avmnist"
    pieces = _recordings(home, 10, seconds=0.3)
    sides = itertools.cycle(("train", "val", "train", "test"))
    pictures = [image for image, *_ in _emoji(home / "emoji", 1, 10)]
    rows = [
        {
            "image": f"emoji/{Path(pictures[digit]).name}",
            "audio": pieces[digit],
            "label": digit,
            "split": side,
            "recording": digit,
        }
        for digit in range(10)
        for side in itertools.islice(sides, each)
    ]
    return _write(folder, Path("data/avmnist/table.csv"), rows)


def _emoji(folder: Path, classes: int, each: int) -> Iterator[tuple[str, str, str, int]]:
    """Emoji of different families, their pictures written to ``folder``, ``each`` per class."""
    data = load_emoji()
    folder.mkdir(parents=True)
    left, seen = dict.fromkeys(range(classes), each), set()
    for row, (label, family) in enumerate(
        zip(data.labels.tolist(), data.families.tolist(), strict=True)
    ):
        if family in seen or not left.get(label):
            continue
        seen.add(family)
        left[label] -= 1
        path = folder / f"{row}.png"
        Image.fromarray(data.images[row].permute(1, 2, 0).numpy()).save(path)
        yield f"{folder.name}/{path.name}", data.texts[row], data.classes[label], family
    assert not any(left.values())


def _recordings(folder: Path, count: int, seconds: float) -> list[str]:
    """Pieces of recordings, as files in ``folder``; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for path in itertools.cycle(sorted(SPEECH.glob("*.wav"))):
        samples, rate = soundfile.read(path)
        size = round(seconds * rate)
        start = size * (len(names) // 6)
        name = f"{len(names)}.wav"
        soundfile.write(folder / name, samples[start : start + size], rate)
        names.append(name)
        if len(names) == count:
            return names
    raise AssertionError("there are no recordings")


def _write(folder: Path, name: Path, rows: Iterable[dict[str, Any]]) -> Path:
    rows = list(rows)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return name
