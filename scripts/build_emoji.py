"""Rebuilds mmfast/data/emoji: why it exists: real images and texts that a demo can ship whole.

Sources, both from the npm registry:

* ``emoji-datasource-google`` 16.0.0: Google's Noto Emoji drawings (Apache-2.0) at 64 px, their
  order and the Unicode group of each;
* ``emojibase-data`` 17.0.0 (MIT): the English CLDR name and tags of each emoji.

Result: ``sheet.png``, one palette image of all drawings at 24 px, and ``emoji.json``, one row per
drawing. The same tarballs and the same Pillow give the same bytes.

    python scripts/build_emoji.py                         # fetches both with `npm pack`
    python scripts/build_emoji.py images.tgz names.tgz    # uses files that are already here
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES_PACKAGE = "emoji-datasource-google@16.0.0"
NAMES_PACKAGE = "emojibase-data@17.0.0"
DESTINATION = Path(__file__).resolve().parent.parent / "mmfast" / "data" / "emoji"

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
TILE = 24
COLUMNS = 44
COLOURS = 256


def words(text: str) -> frozenset[str]:
    """The words of a text, for the tables below."""
    return frozenset(text.split())


# Two drawings closer than this (see `ink_distance`) are one family. Chosen by eye: below it lie
# twins such as the flags of Norway and Svalbard, above it distinct things begin to appear.
NEAR_DUPLICATE = 0.05

# A tag that is a word of a group's name would state the label, so it is dropped.
GROUP_WORDS = words(
    "activity activities animal animals body drink drinks emotion emotions flag flags food foods "
    "nature object objects people person place places smiley smileys symbol symbols travel"
)

# Words that tell members of one family apart: gender and age, colour, size, direction, number,
# state. A name without them is the family's stem.
VARIANT_WORDS = words(
    "man men woman women person people adult boy girl child old older "
    "red orange yellow green blue purple brown black white grey pink light dark "
    "large medium small big low high volume heavy "
    "left right up down upward upwards downward downwards leftward leftwards rightward rightwards "
    "leftfacing rightfacing oncoming facing pointing pointed curving tilted above below "
    "one two three four five six seven eight nine ten "
    "1st 2nd 3rd first last quarter waxing waning gibbous crescent full new "
    "open closed raised lowered hollow double with without and the of on in a"
)

# Names of one thing that differ in more than a variant word.
SAME_STEM = {
    "princess": "prince",
    "mermaid": "merperson",
    "merman": "merperson",
    "santa claus": "claus",
    "mrs claus": "claus",
    "mx claus": "claus",
}

# Code points that mark a variant inside a sequence: joiner, emoji style, gender signs, direction.
VARIANT_CODES = words("200D FE0F 2640 2642 27A1")
# Man, woman and person: which of them begins a profession does not matter.
ADULT_CODES = words("1F468 1F469 1F9D1")


def fetch(package: str, directory: Path) -> Path:
    """Downloads one npm package and returns the path of its tarball."""
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return directory / done.stdout.strip().splitlines()[-1]


def without_style(code: str) -> str:
    """The two packages disagree on FE0F (emoji style), which changes no drawing."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_sources(images: Path, names: Path) -> tuple[list[dict], np.ndarray]:
    """Joins the packages: rows in Unicode's order, and drawings as uint8 (N, TILE, TILE, 3)."""
    with tarfile.open(names) as archive:
        entries = json.load(archive.extractfile("package/en/data.json"))
    named = {without_style(entry["hexcode"]): entry for entry in entries}
    rows, tiles = [], []
    with tarfile.open(images) as archive:
        # A gzip stream only goes forward: read all drawings in one pass, then put them in order.
        drawings = {
            Path(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.name.startswith("package/img/google/64/")
            or member.name == "package/emoji.json"
        }
    listed = json.loads(drawings.pop("emoji.json"))
    for item in sorted(listed, key=lambda item: item["sort_order"]):
        # "Component" holds bare skin tones, which are no emoji of their own.
        if item["category"] == "Component" or not item["has_img_google"]:
            continue
        entry = named[without_style(item["unified"])]
        rows.append(
            {
                "code": item["unified"],
                "name": entry["label"],
                "tags": [tag for tag in entry["tags"] if tag.lower() not in GROUP_WORDS],
                "group": GROUPS.index(item["category"]),
            }
        )
        tiles.append(shrink(drawings[item["image"]]))
    return rows, np.stack(tiles)


def shrink(png: bytes) -> np.ndarray:
    """Draws one image over white and scales it down to TILE pixels."""
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", drawing.size, "white")
    page.alpha_composite(drawing)
    return np.asarray(page.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))


def name_stem(name: str, group: int) -> str:
    """The part of a name that its whole family shares.

    >>> name_stem("light blue heart", 0), name_stem("woman: red hair", 1)
    ('heart', 'person')
    """
    text = re.sub(r"“.*?”|\(.*?\)|[.\u2019']", "", name.lower())
    text = SAME_STEM.get(text, text)
    text = re.sub(r"^\w+(-thirty| oclock)$", "clock face", text)
    if GROUPS[group] != "Flags":  # "flag: Peru" and "flag: Chad" are different things
        text = text.split(":")[0]
    found = re.findall(r"\w+", text.replace("-facing", "facing"))
    kept = [word for word in found if word not in VARIANT_WORDS]
    if not kept:
        return "person" if GROUPS[group] == "People & Body" else text
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in kept)


def code_stem(code: str) -> str:
    """What a sequence of code points shares with its gendered and mirrored variants."""
    parts = [part for part in code.split("-") if part not in VARIANT_CODES]
    return "-".join("adult" if part in ADULT_CODES else part for part in parts)


def ink_distance(tiles: np.ndarray) -> np.ndarray:
    """Bray-Curtis distance between all drawings, (N, N) in 0..1.

    Measured on ink (255 - value), so that two thin signs are not alike for being mostly paper.
    """
    ink = 255.0 - tiles.reshape(len(tiles), -1).astype(np.float32)
    total = ink.sum(axis=1)
    apart = np.stack([np.abs(ink - one).sum(axis=1) for one in ink])
    return apart / (total[:, None] + total[None, :])


def find_families(rows: list[dict], tiles: np.ndarray) -> list[int]:
    """Numbers the families: drawings joined by a stem or by being near-duplicates, transitively."""
    links: list[tuple[int, int]] = [
        (int(one), int(other))
        for one, other in np.argwhere(ink_distance(tiles) < NEAR_DUPLICATE)
        if one < other
    ]
    for stems in (
        [name_stem(row["name"], row["group"]) for row in rows],
        [code_stem(row["code"]) for row in rows],
    ):
        first: dict[str, int] = {}
        links += [(first.setdefault(stem, index), index) for index, stem in enumerate(stems)]
    return connected_components(len(rows), links)


def connected_components(size: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """Component number of each of `size` nodes, counted in order of first appearance."""
    parent = list(range(size))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(node), len(numbers)) for node in range(size)]


def make_sheet(tiles: np.ndarray) -> Image.Image:
    """Lays the drawings out row by row, COLUMNS wide, in one palette of COLOURS colours."""
    lines = -(-len(tiles) // COLUMNS)
    grid = np.full((lines * COLUMNS, TILE, TILE, 3), 255, dtype=np.uint8)
    grid[: len(tiles)] = tiles
    grid = grid.reshape(lines, COLUMNS, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(np.ascontiguousarray(grid.reshape(lines * TILE, COLUMNS * TILE, 3)))
    return sheet.quantize(
        COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE
    )


def write(rows: list[dict], tiles: np.ndarray, families: list[int], directory: Path) -> None:
    """Writes sheet.png and emoji.json, the latter with one emoji a line so that diffs read well."""
    directory.mkdir(parents=True, exist_ok=True)
    make_sheet(tiles).save(directory / "sheet.png", optimize=True)
    head = {"tile": TILE, "columns": COLUMNS, "classes": GROUPS}
    head["fields"] = ["code", "name", "tags", "class", "family"]
    lines = [
        json.dumps(
            [row["code"], row["name"], row["tags"], row["group"], family],
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for row, family in zip(rows, families, strict=True)
    ]
    text = json.dumps(head)[:-1] + ', "emoji": [\n' + ",\n".join(lines) + "\n]}\n"
    (directory / "emoji.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the emoji data set of mmfast.")
    parser.add_argument("images", nargs="?", type=Path, help=f"tarball of {IMAGES_PACKAGE}")
    parser.add_argument("names", nargs="?", type=Path, help=f"tarball of {NAMES_PACKAGE}")
    parser.add_argument("--out", type=Path, default=DESTINATION, help="directory to write to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        images = options.images or fetch(IMAGES_PACKAGE, Path(scratch))
        names = options.names or fetch(NAMES_PACKAGE, Path(scratch))
        rows, tiles = read_sources(images, names)
    families = find_families(rows, tiles)
    write(rows, tiles, families, options.out)
    print(f"{len(rows)} emoji in {max(families) + 1} families written to {options.out}")


if __name__ == "__main__":
    main()
