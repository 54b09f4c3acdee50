"""WebDataset shards, written with tarfile."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from data_files import png, wav, write_tar

from mmfast.data import ColumnSpec, TableError, read_cell, read_table


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        members = []
        for sample in range(4):
            key = f"photos/{shard:02d}{sample:02d}"
            members.append((f"{key}.PNG", png((10 * shard, 10 * sample, 0))))
            members.append((f"{key}.cls", f"{sample % 2}\n".encode()))
            if sample != 2:
                members.append((f"{key}.json", json.dumps({"age": sample}).encode()))
            members.append((f"{key}.left.wav", wav([0.5] * (sample + 1))))
        write_tar(tmp_path / f"train-{shard:04d}.tar", members)
    return tmp_path


@pytest.mark.parametrize("pattern", ["train-{0000..0002}.tar", "train-*.tar"])
def test_rows_are_read_in_any_order(shards, pattern):
    calls = []
    table = read_table(f"{shards}/{pattern}", progress=lambda *call: calls.append(call))
    assert len(table) == 12
    assert sorted(table.columns) == ["__key__", "cls", "json.age", "left.wav", "png"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert table.cell(5, "__key__") == "photos/0101"
    assert table.cell(5, "cls") == "1"
    assert [table.cell(row, "json.age") for row in (4, 6, 7)] == [0, None, 3]
    for row in (7, 0, 11):
        pixel = read_cell(table, row, ColumnSpec("png", "image")).getpixel((0, 0))
        assert pixel == (10 * (row // 4), 10 * (row % 4), 0)
        assert len(read_cell(table, row, ColumnSpec("left.wav", "audio")).samples) == row % 4 + 1


def test_lists_in_braces(shards):
    assert len(read_table(f"{shards}/train-{{0000,0002}}.tar")) == 8


def test_one_shard(shards):
    assert len(read_table(shards / "train-0001.tar")) == 4


def test_members_travel(shards):
    table = pickle.loads(pickle.dumps(read_table(f"{shards}/train-*.tar")))
    assert read_cell(table, 9, ColumnSpec("png", "image")).getpixel((0, 0)) == (20, 10, 0)


def test_features_in_shards(tmp_path):
    buffer = io.BytesIO()
    values = torch.arange(6.0).reshape(2, 3)
    np.save(buffer, values.numpy())
    write_tar(tmp_path / "a.tar", [("x.npy", buffer.getvalue()), ("y.txt", b"only text")])
    table = read_table(tmp_path / "a.tar")
    assert read_cell(table, 0, ColumnSpec("npy", "features")).equal(values)
    assert read_cell(table, 1, ColumnSpec("npy", "features")) is None
    assert read_cell(table, 1, ColumnSpec("txt", "text")) == "only text"


def test_a_damaged_member_is_told_with_its_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", png()[:40]), ("y.png", png())])
    table = read_table(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"row 0, column 'png': .*a\.tar:x\.png: is no readable"):
        read_cell(table, 0, ColumnSpec("png", "image"))


def test_a_shard_that_is_not_there(shards):
    with pytest.raises(TableError, match=r"there is no shard .*train-0003\.tar"):
        read_table(f"{shards}/train-{{0000..0003}}.tar")


@pytest.mark.parametrize("blocks", [0.6, 1, 2, 3.01, 7, 20])
def test_a_truncated_shard(shards, blocks):
    path = shards / "train-0000.tar"
    path.write_bytes(path.read_bytes()[: int(blocks * 512)])
    with pytest.raises(TableError, match=r"train-0000\.tar (is truncated|is no readable tar file)"):
        read_table(path)


def test_a_shard_that_ends_within_zeros(tmp_path):
    """Its last bytes are like the mark of an end, and yet a member is not complete."""
    path = write_tar(tmp_path / "a.tar", [("x.txt", b"x"), ("y.bin", bytes(5000))])
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(TableError, match=r"a\.tar is no readable tar file: unexpected end of data"):
        read_table(path)


def test_a_compressed_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.txt", b"x")], "w:gz")
    with pytest.raises(TableError, match="it must be complete and uncompressed"):
        read_table(tmp_path / "a.tar")


def test_two_files_for_one_cell(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.txt", b"1"), ("x.txt", b"2")])
    with pytest.raises(TableError, match=r"the sample 'x' has two files that end in \.txt"):
        read_table(tmp_path / "a.tar")


def test_links_in_a_shard_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(TableError, match="is empty: the shards hold no files with an ending"):
        read_table(tmp_path / "a.tar")


def test_bad_json_in_a_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.json", b"{")])
    with pytest.raises(TableError, match=r"a\.tar: x\.json is no valid json"):
        read_table(tmp_path / "a.tar")
