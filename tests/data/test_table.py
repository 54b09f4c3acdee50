"""Tables from CSV, TSV and JSONL files and from plugins, and files that are none."""

import pickle

import numpy as np
import pytest
import torch
from data_files import write_csv

from mmfast.data import Table, TableError, read_table
from mmfast.data.table import TextColumn
from mmfast.plugins import DATASETS


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def plugin(monkeypatch):
    """Registers a dataset plugin for the test."""
    monkeypatch.setattr(DATASETS, "registered", dict(DATASETS.registered))
    return DATASETS.register


def test_csv(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", ["image", "text"], [["a.png", 'says "hi", twice'], ["b.png", ""]]
    )
    table = read_table(path)
    assert list(table.columns) == ["image", "text"]
    assert len(table) == 2
    assert table.base == tmp_path
    assert table.cell(0, "text") == 'says "hi", twice'
    assert table.cell(1, "text") is None


def test_rows_are_named_by_the_line_they_start_on(tmp_path):
    path = write(tmp_path / "a.csv", 'text\none\n"two\nlines"\n\nthree\n')
    table = read_table(path)
    assert [table.cell(row, "text") for row in range(3)] == ["one", "two\nlines", "three"]
    assert [table.where(row) for row in range(3)] == [f"{path}:{line}" for line in (2, 3, 6)]


def test_csv_of_other_programs(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffname, label\r\né,1\r\n".encode())
    table = read_table(str(path))
    assert list(table.columns) == ["name", "label"]
    assert table.cell(0, "name") == "é"


def test_a_cell_may_be_long(tmp_path):
    text = "long " * 100_000
    assert read_table(write(tmp_path / "a.csv", f"text\n{text}\n")).cell(0, "text") == text


def test_strings_are_packed():
    cells = ["", "é", "b" * 1000, "", "\U0001f34e", "z"]
    column = TextColumn(cells)
    assert list(column) == cells
    assert len(column) == 6
    assert column[4] == "\U0001f34e"
    for row in (-1, 6):
        with pytest.raises(IndexError):
            column[row]
    many = pickle.dumps(TextColumn(f"{row}.png" for row in range(10_000)))
    assert len(many) < 200_000


def test_tsv(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", "a\tb\n1,5\tx\n"))
    assert (table.cell(0, "a"), table.cell(0, "b")) == ("1,5", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv is empty: its first line must name the columns"),
        ("a,b\n", r"a\.csv is empty: it has a header, and no row"),
        ("a,b\n1,2\n1,2,3\n", r"a\.csv:3: the row has 3 cells, the header 2"),
        ('a\n"x\ny"\nb,c\n', r"a\.csv:4: the row has 2 cells, the header 1"),
        ("a,b,a\n1,2,3\n", r"a\.csv:1: the header names the column 'a' twice"),
        ('a,b\n1,"2\n', r"a\.csv:2: unexpected end of data"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_table(write(tmp_path / "a.csv", text))


def test_csv_in_another_encoding(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("name\ncafé\n".encode("latin-1"))
    with pytest.raises(TableError, match=r"a\.csv is no UTF-8 text"):
        read_table(path)


def test_jsonl(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"text": "x", "vector": [1, 2]}\n\n{"text": null, "label": 3, "price": NaN}\n',
    )
    table = read_table(path)
    assert list(table.columns) == ["text", "vector", "label", "price"]
    assert table.cell(0, "vector") == [1, 2]
    assert table.cell(1, "label") == 3
    assert [table.cell(1, name) for name in ("text", "vector", "price")] == [None] * 3
    assert table.where(1) == f"{path}:3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "is empty"),
        ("{}\n", "is empty"),
        ('{"a": 1}\n{"a": \n', r"a\.jsonl:2: no valid JSON"),
        ("[1, 2]\n", r"a\.jsonl:1: the line is a list; it must be an object"),
        ('{"a": 1, "a": 2}\n', r"a\.jsonl:1: .*the key 'a' stands there twice"),
        ("[" * 100_000, r"a\.jsonl:1: no valid JSON"),
    ],
)
def test_bad_jsonl(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_table(write(tmp_path / "a.jsonl", text))


def test_a_column_that_is_not_there(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "image,label\na,b\n"))
    with pytest.raises(TableError, match=r"no column 'imgae' \(did you mean 'image'\?\); its col"):
        table.cell(0, "imgae")


@pytest.mark.parametrize("name", ["absent.csv", "absent.jsonl", "absent.parquet", "x/absent"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(TableError, match=rf"there is no file .*{name}"):
        read_table(tmp_path / name)


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(TableError, match=r"a\.xlsx is no table that mmfast reads: it must end in"):
        read_table(write(tmp_path / "a.xlsx", "x"))


def test_a_folder_that_is_no_table(tmp_path):
    with pytest.raises(TableError, match=r"a folder without state\.json"):
        read_table(tmp_path)


def test_columns_of_different_lengths():
    with pytest.raises(TableError, match="equally many rows, not 'a' 2, 'b' 1"):
        Table({"a": [1, 2], "b": [1]})


@pytest.mark.parametrize("columns", [{}, {"a": []}])
def test_an_empty_table(columns):
    with pytest.raises(TableError, match="table is empty"):
        Table(columns)


def test_cells_of_arrays_become_plain():
    table = Table({"a": np.array([1.5, np.nan]), "b": torch.tensor([1, 2]), "c": torch.ones(2, 3)})
    assert [table.cell(0, name) for name in "ab"] == [1.5, 1]
    assert isinstance(table.cell(0, "b"), int)
    assert table.cell(1, "a") is None
    assert table.cell(1, "c").shape == (3,)


def test_a_plugin(plugin):
    plugin("made_up", lambda size=2: Table({"text": ["x"] * size}, name="made_up"))
    assert len(read_table("made_up", {"size": 5})) == 5
    with pytest.raises(TypeError, match="'sise'"):
        read_table("made_up", {"sise": 5})
    with pytest.raises(TableError, match=r"'made_upp' is neither .*\(did you mean 'made_up'\?\)"):
        read_table("made_upp")


def test_a_plugin_that_returns_something_else(plugin):
    plugin("wrong", lambda: [1, 2])
    with pytest.raises(TableError, match=r"the dataset 'wrong' of .* returned a list"):
        read_table("wrong")


def test_files_take_no_options(tmp_path):
    with pytest.raises(TypeError, match="takes no options, got 'size'"):
        read_table(write(tmp_path / "a.csv", "a\n1\n"), {"size": 5})


def test_tables_travel(tmp_path):
    table = pickle.loads(pickle.dumps(read_table(write(tmp_path / "a.csv", "a\n1\n"))))
    assert table.cell(0, "a") == "1"
    assert table.where(0).endswith("a.csv:2")
