"""Parquet files and folders saved by Hugging Face datasets.

``saved_by_datasets`` was written by ``DatasetDict.save_to_disk`` of datasets 5.2.0. Its splits
train (in 2 files), validation and test have 3, 2 and 1 rows: an image of 5 x 4, a text, a
ClassLabel of cat and dog, and a list of floats.
"""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mmfast.data import ColumnSpec, TableError, read_cell, read_table

SAVED = Path(__file__).parent / "saved_by_datasets"


@pytest.fixture
def path(tmp_path):
    columns = {
        "text": ["one", None, ""],
        "score": [0.5, float("nan"), 2.0],
        "label": [3, None, 5],
        "vector": [[1.0, 2.0], None, [3.0, 4.0]],
        "frames": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], None],
        "names": [["a", "b"], ["c"], []],
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    return tmp_path / "a.parquet"


def test_parquet(path):
    table = read_table(path)
    assert len(table) == 3
    assert table.base == path.parent
    assert [table.cell(row, "text") for row in range(3)] == ["one", None, None]
    assert [table.cell(row, "score") for row in range(3)] == [0.5, None, 2.0]
    assert [table.cell(row, "label") for row in range(3)] == [3, None, 5]
    assert table.cell(0, "names") == ["a", "b"]
    assert table.where(2) == f"{path}, row 2"


def test_lists_of_numbers_are_features(path):
    table = read_table(path)
    assert isinstance(table.cell(2, "vector"), np.ndarray)
    vector, frames = ColumnSpec("vector", "features"), ColumnSpec("frames", "features")
    assert read_cell(table, 2, vector).tolist() == [3, 4]
    assert read_cell(table, 1, vector) is None
    assert read_cell(table, 0, frames).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"no parquet" * 20])
def test_a_damaged_parquet_file(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TableError, match=r"a\.parquet is no readable Parquet file"):
        read_table(path)


def test_a_damaged_text(tmp_path):
    texts = pa.array([b"good", b"\xff"]).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"a": texts}), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.cell(0, "a") == "good"
    with pytest.raises(TableError, match="column 'a', row 1: no UTF-8 text"):
        table.cell(1, "a")


def test_parquet_columns_travel(path):
    table = pickle.loads(pickle.dumps(read_table(path)))
    assert table.cell(0, "vector").tolist() == [1, 2]


def test_an_empty_parquet_file(tmp_path):
    parquet.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(TableError, match="is empty"):
        read_table(tmp_path / "a.parquet")


def test_a_saved_dataset():
    table = read_table(SAVED / "train")
    assert list(table.columns) == ["image", "text", "label", "vector"]
    assert [table.cell(row, "label") for row in range(3)] == ["cat", "dog", "cat"]
    assert [table.cell(row, "text") for row in range(3)] == ["text 0", None, "text 2"]
    image = read_cell(table, 2, ColumnSpec("image", "image"))
    assert image.size == (5, 4)
    assert image.getpixel((4, 3)) == (21, 21, 21)
    assert read_cell(table, 1, ColumnSpec("vector", "features")).tolist() == [1, 0.5]


def test_a_saved_dict_of_datasets():
    table = read_table(SAVED)
    assert [table.cell(row, "split") for row in range(6)] == (
        ["train"] * 3 + ["validation"] * 2 + ["test"]
    )
    assert table.cell(3, "vector").tolist() == [0, 0.5]
    assert table.cell(5, "label") is None  # -1, as datasets marks a label that is withheld
    assert read_cell(table, 4, ColumnSpec("image", "image")).getpixel((0, 0)) == (12, 12, 12)


def test_saved_columns_travel_by_name():
    column = read_table(SAVED).columns["image"]
    data = pickle.dumps(column)
    assert b"PNG" not in data
    assert pickle.loads(data)[4]["bytes"] == column[4]["bytes"]


def test_a_saved_dataset_that_lacks_a_file(tmp_path):
    folder = shutil.copytree(SAVED / "train", tmp_path / "train")
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(TableError, match=r"data-00001-of-00002\.arrow is no readable Arrow file"):
        read_table(folder)


def test_a_saved_dataset_that_is_truncated(tmp_path):
    folder = shutil.copytree(SAVED / "train", tmp_path / "train")
    file = folder / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(TableError, match=r"data-00000-of-00002\.arrow is no readable Arrow file"):
        read_table(folder)


def test_a_state_does_not_lead_out_of_its_folder(tmp_path):
    shutil.copytree(SAVED / "train", tmp_path / "train")
    state = tmp_path / "train" / "state.json"
    secret = tmp_path / "secret.arrow"
    shutil.copy(tmp_path / "train" / "data-00000-of-00002.arrow", secret)
    state.write_text(state.read_text().replace("data-00000-of-00002.arrow", "../secret.arrow"))
    with pytest.raises(TableError, match=r"train/secret\.arrow"):
        read_table(tmp_path / "train")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(TableError, match=r"dict/train is a folder without state\.json"):
        read_table(tmp_path / "dict")
