"""Cells to samples: texts, tabular rows, missing cells, and errors that name the place."""

import pickle

import pytest
import torch
from data_files import png, wav, write_csv
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmfast.data import CellError, ColumnSpec, Table, TableError, read_cell, read_table
from mmfast.plugins import Waveform


def text(cell):
    return read_cell(Table({"x": [cell, "-"]}), 0, ColumnSpec("x", "text"))


def test_a_row_of_a_manifest(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png())
    (tmp_path / "media" / "a.wav").write_bytes(wav([0.5], rate=16000))
    path = write_csv(
        tmp_path / "rows.csv",
        ["photo", "sound", "caption", "price", "town"],
        [["media/a.png", "a.wav", "a red square", "3.5", ""], ["", "", "", "", ""]],
    )
    table = read_table(path)
    specs = [
        ColumnSpec("photo", "image"),
        ColumnSpec("sound", "audio", root=tmp_path / "media"),
        ColumnSpec("caption", "text"),
        ColumnSpec("", "tabular", fields=("price", "town")),
    ]
    photo, sound, caption, row = (read_cell(table, 0, spec) for spec in specs)
    assert photo.getpixel((0, 0)) == (255, 0, 0)
    assert sound.sample_rate == 16000
    assert caption == "a red square"
    assert row == {"price": 3.5, "town": None}
    assert [read_cell(table, 1, spec) for spec in specs] == [None] * 4


@pytest.mark.parametrize(("cell", "read"), [("é", "é"), (5, "5"), (b"\xc3\xa9", "é"), ("", None)])
def test_texts(cell, read):
    assert text(cell) == read


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (b"\xff", "is no UTF-8 text"),
        (["a"], "the cell is a list; it must be a text"),
        ("\ud800", "the text is no valid Unicode"),
    ],
)
def test_no_texts(cell, message):
    with pytest.raises(CellError, match=rf"table, row 0, column 'x': {message}"):
        text(cell)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("12", 12),
        ("-3.5", -3.5),
        ("+.5", 0.5),
        ("1e-3", 0.001),
        ("2.", 2),
        ("0", 0),
        (7, 7),
        (True, True),
        ("007", "007"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        (".", "."),
        ("-", "-"),
        ("1 2", "1 2"),
        ("\u0663", "\u0663"),
        ("Rome", "Rome"),
    ],
)
def test_numbers_and_categories_of_tabular_data(cell, value):
    spec = ColumnSpec("", "tabular", fields=("a", "b"))
    read = read_cell(Table({"a": [cell], "b": ["-"]}), 0, spec)["a"]
    assert read == value
    assert isinstance(read, str) == isinstance(value, str)


def test_tabular_cells_are_scalars():
    table = Table({"a": [1], "b": [[2]]})
    with pytest.raises(CellError, match="the cell of 'b' is a list"):
        read_cell(table, 0, ColumnSpec("", "tabular", fields=("a", "b")))


def test_what_encoders_take_already_stays_as_it_is():
    image, sound = Image.new("RGB", (2, 2)), Waveform(torch.zeros(3), 8000)
    pixels, clip = torch.zeros(3, 4, 4).byte(), torch.zeros(2, 3, 4, 4).byte()
    table = Table({"a": [image], "b": [sound], "c": [pixels], "d": [clip]})
    assert read_cell(table, 0, ColumnSpec("a", "image")) is image
    assert read_cell(table, 0, ColumnSpec("b", "audio")) is sound
    assert read_cell(table, 0, ColumnSpec("c", "image")) is pixels
    assert read_cell(table, 0, ColumnSpec("d", "video")) is clip


def test_an_error_names_line_column_and_file(tmp_path):
    (tmp_path / "bad.png").write_bytes(png()[:30])
    path = write_csv(tmp_path / "rows.csv", ["photo", "n"], [["", "1"], ["bad.png", "2"]])
    with pytest.raises(CellError) as caught:
        read_cell(read_table(path), 1, ColumnSpec("photo", "image"))
    error = caught.value
    assert (error.row, error.column, error.path) == (1, "photo", "bad.png")
    assert str(error) == f"{path}:3, column 'photo': bad.png: {error.reason}"
    assert error.reason.startswith("is no readable image: ")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


class Failing(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise CellError("why", row=3, column="c", path="p", where="t.csv:5")


def test_an_error_keeps_its_kind_and_text_on_its_way_from_a_worker():
    with pytest.raises(CellError, match=r"t\.csv:5, column 'c': p: why"):
        list(DataLoader(Failing(), num_workers=1))


def test_a_column_that_is_missing():
    with pytest.raises(TableError, match="no column 'y'"):
        read_cell(Table({"x": [1]}), 0, ColumnSpec("y", "text"))


def test_a_modality_that_does_not_exist():
    with pytest.raises(ValueError, match="modality is 'smell'; it must be one of image, text"):
        ColumnSpec("x", "smell")
    with pytest.raises(ValueError, match="tabular data needs fields"):
        ColumnSpec("", "tabular")
