"""A package for a new encoder plugin, written from the templates in ``mmfast/template``."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

from mmfast.plugins import MODALITIES

# Template: the file that it becomes.
FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "init.py.in": "@PACKAGE@/__init__.py",
    "@MODALITY@.py.in": "@PACKAGE@/encoder.py",
    "test.py.in": "tests/test_encoder.py",
}


def write_package(name: str, modality: str, into: Path) -> Path:
    """Write a package with an encoder that works, and a test of it.

    Args:
        name: of the distribution; the encoder is called ``name/modality``.
        modality: one of ``mmfast.plugins.MODALITIES``.
        into: the directory in which the directory ``name`` is made.

    Returns:
        That directory.

    Raises:
        ValueError: no name for a distribution, or no such modality.
        FileExistsError: the directory is there already.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; it must be one of {', '.join(MODALITIES)}")
    package = re.sub(r"[-.]+", "_", name).lower()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]", name) or keyword.iskeyword(package):
        raise ValueError(
            f"name is {name!r}; it must be letters, digits, '-', '_' and '.', begin with a letter "
            "and end with a letter or digit"
        )
    values = {
        "@NAME@": name,
        "@MODALITY@": modality,
        "@PACKAGE@": package,
        "@CLASS@": "".join(part.capitalize() for part in package.split("_")),
    }
    folder = into / name
    folder.mkdir(parents=True)
    for template, path in FILES.items():
        text = (files("mmfast") / "template" / _filled(template, values)).read_text("utf-8")
        file = folder / _filled(path, values)
        file.parent.mkdir(exist_ok=True)
        file.write_text(_filled(text, values), "utf-8")
    return folder


def _filled(text: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text
