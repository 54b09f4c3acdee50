"""Precomputed features: from arrays on disk and from lists, and what is refused."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from mmfast.data.features import read_features
from mmfast.data.files import Unreadable

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def root(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "row.npy", ROWS[1].astype(np.float64))
    save_file({"only": torch.tensor([1.5, 2.5])}, tmp_path / "one.safetensors")
    tensors = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.zeros(3)}
    save_file(tensors, tmp_path / "two.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("row.npy", [3, 4, 5]),
        ("rows.npy", ROWS.tolist()),
        ("rows.npy#2", [6, 7, 8]),
        ("one.safetensors", [1.5, 2.5]),
        ("one.safetensors#only", [1.5, 2.5]),
        ("two.safetensors#a", [[1, 1, 1]] * 2),
        ([1, 2.5], [1, 2.5]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("[1, 2.5]", [1, 2.5]),
        (np.array([1, 2], np.int8), [1, 2]),
        (torch.tensor([1, 2], dtype=torch.float64), [1, 2]),
    ],
)
def test_features(root, cell, values):
    features = read_features(cell, root)
    assert features.dtype == torch.float32
    assert features.tolist() == values


def test_bytes():
    buffer = io.BytesIO()
    np.save(buffer, ROWS)
    assert read_features(buffer.getvalue(), None).tolist() == ROWS.tolist()
    assert read_features(save({"x": torch.ones(2)}), None).tolist() == [1, 1]


def test_one_row_of_a_large_file_is_cheap(tmp_path):
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (1 << 28, 256))
    big[1 << 27] = 7
    del big  # 256 GiB, nearly all of it a hole in the file
    assert read_features(f"big.npy#{1 << 27}", tmp_path).tolist() == [7] * 256


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("rows.npy#4", "has 4 rows; there is no row '4'"),
        ("rows.npy#-1", "there is no row '-1'"),
        ("two.safetensors", r"holds 2 tensors \(a, b\); say which, as two.safetensors#a"),
        ("two.safetensors#c", r"holds 2 tensors \(a, b\); there is no 'c'"),
        ("absent.npy", "there is no such file"),
        ("x.csv", r"features are read from \.npy and \.safetensors files"),
        ([], r"has shape \(0,\)"),
        ([[1, 2], [3]], "rows of equal length"),
        (["a"], "the list must hold numbers"),
        ([[[1.0]]], r"has shape \(1, 1, 1\); features are \(D,\) or \(T, D\)"),
        ([1.0, float("nan")], "holds 1 numbers that are NaN"),
        ([1e300], "holds 1 numbers that are NaN, infinite or beyond float32"),
        (torch.ones(2, dtype=torch.complex64), "features are real numbers"),
        (np.array(["a"]), "the list must hold numbers"),
        ({"a": 1}, "the cell is a dict"),
        ("[1, ", "is no JSON list of numbers"),
        (b"neither", "is neither .npy nor .safetensors"),
    ],
)
def test_refused(root, cell, message):
    (root / "x.csv").write_text("1,2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable, match=message):
            read_features(cell, root)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_an_archive_by_another_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=ROWS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(Unreadable, match=r"a\.npy: is an archive of several arrays"):
        read_features("a.npy", tmp_path)


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(Unreadable, match=r"a\.npy: is no readable \.npy array"):
        read_features("a.npy", tmp_path)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Unreadable, match=r"b\.npy: is no readable \.npy array"):
        read_features("b.npy", tmp_path)


@pytest.mark.parametrize("name", ["rows.npy", "two.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_truncated(root, name, share):
    path = root / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Unreadable, match=rf"{name}: is no readable"):
        read_features(name, root)


def test_a_header_that_declares_too_much(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones(4, np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(4,), }", b"(4000000000000,), }"))
    with pytest.raises(Unreadable, match="is no readable"):
        read_features("a.npy", tmp_path)
    monkeypatch.setattr("mmfast.data.features.MAX_VALUES", 3)
    with pytest.raises(Unreadable, match="holds 4 numbers; a sample may have 3"):
        read_features([1, 2, 3, 4], tmp_path)
