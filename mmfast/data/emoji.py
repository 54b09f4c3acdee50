"""The emoji set: real images with real texts, small enough to travel inside the package.

1906 drawings of Google's Noto Emoji at 24 px, with their English CLDR names and tags, labelled by
the nine groups of the Unicode chart. ``scripts/build_emoji.py`` rebuilds the files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from PIL import Image

from mmfast.data.split import Split, grouped_split
from mmfast.data.table import Table


@dataclass(frozen=True)
class EmojiSet:
    """Images, texts and labels of N emoji, row i of each belonging to one emoji.

    Attributes:
        images: uint8 (N, 3, 24, 24), RGB in 0..255, drawn over white.
        texts: N strings, the name and the tags of each: ``"red apple, apple, diet, ..."``. Tags
            that are words of a group's name ("animal", "food") are left out.
        labels: int64 (N,), index into ``classes``.
        classes: the nine group names.
        families: int64 (N,), equal for near-duplicates (genders, colours, directions, twin
            flags): a family must not be divided between training and test.
        codes: N Unicode sequences, ``"1F34E"``.
        names: N names without the tags.
    """

    images: torch.Tensor
    texts: list[str]
    labels: torch.Tensor
    classes: tuple[str, ...]
    families: torch.Tensor
    codes: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def load_emoji() -> EmojiSet:
    """Reads the emoji set from the package: 1906 emoji, 24 px, 9 classes.

    Every call reads the files anew, so the caller may change the tensors it gets.
    """
    folder = files("mmfast.data") / "emoji"
    facts = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    codes, names, tags, labels, families = map(list, zip(*facts["emoji"], strict=True))
    with (folder / "sheet.png").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGB"))
    return EmojiSet(
        images=_cut(sheet, facts["tile"], facts["columns"], len(codes)),
        texts=[", ".join([name, *more]) for name, more in zip(names, tags, strict=True)],
        labels=torch.tensor(labels),
        classes=tuple(facts["classes"]),
        families=torch.tensor(families),
        codes=codes,
        names=names,
    )


def emoji_table() -> Table:
    """The emoji set as a table, the dataset plugin ``emoji``.

    Its columns: ``image``, uint8 (3, 24, 24); ``text``; ``label``, the group's name; ``family``,
    what to group a split by; ``name`` and ``code``.
    """
    data = load_emoji()
    columns = {
        "image": list(data.images),
        "text": data.texts,
        "label": [data.classes[label] for label in data.labels.tolist()],
        "family": data.families.tolist(),
        "name": data.names,
        "code": data.codes,
    }
    return Table(columns, name="emoji")


def emoji_splits(
    data: EmojiSet, seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Split:
    """Divides the emoji into train, validation and test: by class alike, by family whole."""
    return grouped_split(data.labels, data.families, fractions=fractions, seed=seed)


def _cut(sheet: np.ndarray, tile: int, columns: int, count: int) -> torch.Tensor:
    """Cuts a sheet (rows * tile, columns * tile, 3) into the first `count` of its tiles."""
    grid = torch.from_numpy(sheet.copy()).reshape(-1, tile, columns, tile, 3)
    tiles = grid.permute(0, 2, 4, 1, 3).reshape(-1, 3, tile, tile)
    return tiles[:count].contiguous()
