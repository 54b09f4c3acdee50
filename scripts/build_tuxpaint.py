"""Builds data/tuxpaint, a data set of the Tux Paint stamps: pictures, what they show, and a voice.

From the Debian package ``tuxpaint-stamps-default`` (GPL-2, see its copyright file), which is
fetched with apt-get and unpacked, not installed. The table has the columns

* ``image``: the drawing; vector drawings are rendered to at most 256 pixels;
* ``text``: its English description;
* ``speech``: the Spanish description, spoken, where there is one;
* ``label``: one of eight classes, by the folder of the package (see `CLASSES`);
* ``group``: the text again, so that drawings with one text stay on one side of a split.

The same package and the same version of resvg-py give the same bytes.

    python scripts/build_tuxpaint.py
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from packages import PackageError, Row, command, debian_package, write_table
from rich.progress import track

PACKAGE = "tuxpaint-stamps-default"
STAMPS = Path("usr/share/tuxpaint/stamps")
FIELDS = ("image", "text", "speech", "label", "group")
RENDERED = 256

# The package's sixteen folders; the small ones join the class that they are nearest to.
CLASSES = {
    "animals": "animals",
    "clothes": "people",
    "food": "food",
    "hobbies": "household",
    "household": "household",
    "medical": "people",
    "military": "town",
    "naturalforces": "nature",
    "people": "people",
    "plants": "nature",
    "seasonal": "seasonal",
    "space": "nature",
    "sports": "household",
    "symbols": "symbols",
    "town": "town",
    "vehicles": "town",
}


def stamps(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Description and drawing of each stamp, in the order of their paths.

    Two descriptions of the package have no drawing, and are left out.
    """
    for text in sorted(folder.rglob("*.txt"), key=lambda path: path.relative_to(folder).parts):
        for drawing in (text.with_suffix(".png"), text.with_suffix(".svg")):
            if drawing.exists():
                yield text, drawing
                break


def render(drawing: Path) -> bytes:
    """A vector drawing as PNG, its longer side `RENDERED` pixels."""
    try:
        import resvg_py
    except ImportError:
        raise PackageError(
            "vector drawings are rendered by resvg-py, which is not installed: pip install resvg-py"
        ) from None
    # No fonts of this machine, whose letters would differ from another's. Without a resolution,
    # sizes in points or millimetres come out as none.
    options = {"svg_path": str(drawing), "skip_system_fonts": True, "dpi": 96.0}
    png = resvg_py.svg_to_bytes(width=RENDERED, **options)
    width, height = struct.unpack(">II", png[16:24])
    return png if height <= width else resvg_py.svg_to_bytes(height=RENDERED, **options)


def add(text: Path, drawing: Path, stamps_folder: Path, out: Path) -> Row:
    """Copies one stamp to `out`; returns its row."""
    name = text.relative_to(stamps_folder).with_suffix("")
    image = out / "images" / name.parent / f"{name.name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(drawing.read_bytes() if drawing.suffix == ".png" else render(drawing))
    spoken = text.with_name(f"{name.name}_desc_es.ogg")
    speech = out / "speech" / name.parent / f"{name.name}.ogg"
    if spoken.exists():
        speech.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(spoken, speech)
    said = text.read_text("utf-8").splitlines()[0].strip()
    return {
        "image": image.relative_to(out).as_posix(),
        "text": said,
        "speech": speech.relative_to(out).as_posix() if spoken.exists() else "",
        "label": CLASSES[name.parts[0]],
        "group": said,
    }


def build(packages: Path, out: Path, every: int = 1) -> list[Row]:
    """Writes the data set to `out`, of all stamps or each `every`th; returns the rows."""
    folder = debian_package(PACKAGE, packages) / STAMPS
    found = list(stamps(folder))[::every]
    if not found:
        raise PackageError(f"{folder} holds no stamps; remove it and start again.")
    rows = [add(*stamp, folder, out) for stamp in track(found, description="stamps")]
    write_table(out, FIELDS, rows)
    return rows


def told(rows: Sequence[Row]) -> str:
    """How many there are."""
    spoken = sum(bool(row["speech"]) for row in rows)
    return f"{len(rows)} stamps, {spoken} of them spoken"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command("tuxpaint", __doc__, "stamp", build, told, argv)


if __name__ == "__main__":
    raise SystemExit(main())
