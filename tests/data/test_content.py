"""Hashes of contents: equal for equal contents, different for different ones."""

import pytest
import torch
from data_files import png, wav
from PIL import Image

from mmfast.data import CellError, ColumnSpec, Table, content_of
from mmfast.plugins import Waveform


def hashed(cell, modality, base=None):
    spec = ColumnSpec("x", modality, fields=("x", "y") if modality == "tabular" else ())
    return content_of(Table({"x": [cell, "-"], "y": ["other", "-"]}, base=base), 0, spec)


def test_names_of_files_do_not_count(tmp_path):
    for name, colour in [("a.png", 1), ("b.png", 1), ("c.png", 2)]:
        (tmp_path / name).write_bytes(png((colour, 0, 0)))
    one, same, other = (hashed(f"{n}.png", "image", tmp_path) for n in "abc")
    assert one == same == hashed(png((1, 0, 0)), "image")
    assert one != other
    assert len(one) == 32


def test_what_is_missing_has_no_content():
    assert hashed("", "image") is None
    assert content_of(Table({"x": [None]}), 0, ColumnSpec("x", "text")) is None


@pytest.mark.parametrize(
    ("modality", "one", "other"),
    [
        ("text", "a", "b"),
        ("audio", wav([0.5]), wav([0.25])),
        ("audio", Waveform(torch.ones(2), 8000), Waveform(torch.ones(2), 16000)),
        ("image", torch.zeros(3, 2, 4).byte(), torch.zeros(3, 4, 2).byte()),
        ("image", Image.new("RGB", (2, 4)), Image.new("RGB", (4, 2))),
        ("features", [1.0, 2.0], [1.0, 2.5]),
        ("features", [1.0, 2.0], [[1.0, 2.0]]),
        ("tabular", "1", "2"),
        ("video", torch.zeros(2, 3, 4, 4).byte(), torch.zeros(1, 3, 4, 8).byte()),
    ],
)
def test_different_contents(modality, one, other):
    assert hashed(one, modality) == hashed(one, modality)
    assert hashed(one, modality) != hashed(other, modality)


def test_frames_are_told_apart(tmp_path):
    """Equal bytes in all, divided otherwise."""
    for name, data in [("1", b"ab"), ("2", b"c"), ("3", b"a"), ("4", b"bc")]:
        (tmp_path / name).write_bytes(data)
    assert hashed(["1", "2"], "video", tmp_path) != hashed(["3", "4"], "video", tmp_path)
    assert hashed(["1", "2"], "video", tmp_path) != hashed(["2", "1"], "video", tmp_path)


def test_modalities_are_told_apart():
    assert hashed(b"x", "image") != hashed(b"x", "audio")


def test_an_unreadable_cell(tmp_path):
    with pytest.raises(CellError, match=r"table, row 0, column 'x': absent\.png: there is no such"):
        hashed("absent.png", "image", tmp_path)
