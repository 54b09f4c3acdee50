"""Rows checked before training: under error, skip and missing."""

import pickle
import sys

import pytest
import torch
from data_files import Letters, png, wav, write_csv

from mmfast.data import ColumnSpec, DataError, Table, TableError, check_rows, read_table

SPECS = {"photo": ColumnSpec("image", "image"), "caption": ColumnSpec("text", "text")}


@pytest.fixture
def table(tmp_path):
    """Rows: 0 good, 1 corrupt image, 2 absent one, 3 none, 4 nothing, 5 corrupt and no text."""
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(png()[:40])
    rows = [
        ["good.png", "a", "x"],
        ["bad.png", "b", "x"],
        ["absent.png", "c", "y"],
        ["", "d", ""],
        ["", "", "y"],
        ["bad.png", "", "y"],
    ]
    return read_table(write_csv(tmp_path / "rows.csv", ["image", "text", "label"], rows))


def told(problems):
    return [(error.row, error.column, error.path) for error in problems]


def test_good_rows_pass(table):
    checked = check_rows(table, SPECS, torch.tensor([3, 0]))
    assert checked.rows.tolist() == [3, 0]
    assert not checked.missing
    assert not checked.problems


def test_error_tells_all_problems_at_once(table):
    with pytest.raises(DataError) as caught:
        check_rows(table, SPECS, labels=["label"])
    assert told(caught.value.problems) == [
        (2, "image", "absent.png"),
        (3, "label", ""),
        (4, "image, text", ""),
    ]
    message = str(caught.value)
    assert message.startswith("3 cells of the table cannot be used:")
    assert "rows.csv:4, column 'image': absent.png: there is no such file" in message
    assert "rows.csv:5, column 'label': the label is missing" in message
    assert "rows.csv:6, column 'image, text': the row has no modality" in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_many_problems_are_cut_short(tmp_path):
    table = Table({"image": ["absent.png"] * 50}, base=tmp_path)
    with pytest.raises(DataError, match=r"50 cells(.|\n)*row 9,(.|\n)*and 40 more") as caught:
        check_rows(table, {"photo": ColumnSpec("image", "image")})
    assert "row 10" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_rows_out(table, workers):
    checked = check_rows(table, SPECS, on_error="skip", workers=workers)
    assert checked.rows.tolist() == [0, 3]
    assert not checked.missing
    assert told(checked.problems) == [
        (1, "image", "bad.png"),
        (2, "image", "absent.png"),
        (4, "image, text", ""),
        (5, "image", "bad.png"),
    ]
    assert "is no readable image" in checked.problems[0].reason


def test_skip_leaves_out_rows_without_a_label(table):
    checked = check_rows(table, SPECS, on_error="skip", labels=["label"])
    assert checked.rows.tolist() == [0]


def test_missing_keeps_what_remains_of_a_row(table):
    checked = check_rows(table, SPECS, on_error="missing")
    assert checked.rows.tolist() == [0, 1, 2, 3]
    assert checked.missing == {(1, "photo"), (2, "photo")}
    assert [error.row for error in checked.problems] == [1, 2, 4, 5]


def test_no_row_remains(table):
    with pytest.raises(
        ValueError, match=r"no row of .* can be used, of 2; the first: .*rows\.csv:"
    ):
        check_rows(table, SPECS, [4, 5], on_error="missing")


def test_what_an_encoder_refuses(tmp_path):
    table = Table({"text": ["short", "x" * 100]})
    specs = {"caption": ColumnSpec("text", "text")}
    preprocess = {"caption": Letters().preprocess}
    checked = check_rows(table, specs, on_error="skip", preprocess=preprocess)
    assert checked.rows.tolist() == [0]
    assert checked.problems[0].reason == "the text has more than 99 letters"


def test_a_truncated_recording(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav([0.5] * 100)[:-50])
    table = Table({"sound": ["a.wav"], "text": ["x"]}, base=tmp_path)
    specs = {"sound": ColumnSpec("sound", "audio"), "text": ColumnSpec("text", "text")}
    checked = check_rows(table, specs, on_error="missing")
    assert checked.missing == {(0, "sound")}
    assert "is truncated" in checked.problems[0].reason


def test_every_frame_of_a_video_is_read(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "1.png").write_bytes(png())
    (tmp_path / "clip" / "2.png").write_bytes(png()[:40])
    table = Table({"clip": ["clip"], "text": ["x"]}, base=tmp_path)
    specs = {"clip": ColumnSpec("clip", "video"), "text": ColumnSpec("text", "text")}
    checked = check_rows(table, specs, on_error="missing")
    assert told(checked.problems) == [(0, "clip", "clip")]
    assert "frame clip/2.png is no readable image" in checked.problems[0].reason


def test_features_with_a_part_are_looked_for_without_it(tmp_path):
    table = Table({"v": ["rows.npy#3"]}, base=tmp_path)
    with pytest.raises(DataError, match=r"rows\.npy: there is no such file"):
        check_rows(table, {"v": ColumnSpec("v", "features")})


def test_a_library_that_is_missing_is_not_the_fault_of_a_cell(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(wav([0.5]))
    table = Table({"sound": ["a.wav"], "text": ["x"]}, base=tmp_path)
    specs = {"sound": ColumnSpec("sound", "audio"), "text": ColumnSpec("text", "text")}
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        ImportError, match=r"needs soundfile; install it by pip install 'mmfast\[tr"
    ):
        check_rows(table, specs, on_error="missing")


@pytest.mark.parametrize("on_error", ["error", "skip", "missing"])
def test_progress_and_the_global_generator(table, on_error):
    before, calls = torch.get_rng_state(), []
    check_rows(table, SPECS, [0, 3], on_error=on_error, progress=lambda *call: calls.append(call))
    assert calls == [(2, 2)]
    assert torch.get_rng_state().equal(before)


def test_a_column_that_is_missing(table):
    with pytest.raises(TableError, match=r"no column 'imag' \(did you mean 'image'\?\)"):
        check_rows(table, {"photo": ColumnSpec("imag", "image")})
    with pytest.raises(TableError, match=r"no column 'labl'"):
        check_rows(table, SPECS, labels=["labl"])
