"""Paths in manifests: what they may name, and what they may not lead to."""

import os
import pickle
from pathlib import Path

import pytest
from data_files import png

from mmfast.data import CellError, ColumnSpec, Table, read_cell
from mmfast.data.files import Unreadable, file_bytes, locate


@pytest.fixture
def tree(tmp_path):
    """root/a.png, root/deep/b.png; outside of it secret.png."""
    (tmp_path / "root" / "deep").mkdir(parents=True)
    for name in ("root/a.png", "root/deep/b.png", "secret.png"):
        (tmp_path / name).write_bytes(png())
    return tmp_path


def read(cell, root, modality="image"):
    return read_cell(Table({"x": [cell]}, base=root), 0, ColumnSpec("x", modality))


@pytest.mark.parametrize("cell", ["a.png", "./a.png", "deep/b.png", "deep/../a.png"])
def test_files_inside_the_root(tree, cell):
    assert read(cell, tree / "root").size == (5, 4)


def test_an_absolute_path_inside_the_root(tree):
    assert read(str(tree / "root" / "a.png"), tree / "root").size == (5, 4)


def test_the_root_may_be_a_link_and_relative(tree, monkeypatch):
    (tree / "link").symlink_to(tree / "root")
    assert read("a.png", tree / "link").size == (5, 4)
    monkeypatch.chdir(tree)
    assert file_bytes("a.png", os.path.relpath("link")) == png()


def test_a_relative_root_follows_the_working_folder(tree, monkeypatch):
    for name in ("one", "two"):
        (tree / name / "here").mkdir(parents=True)
        (tree / name / "here" / "a").write_text(name)
        monkeypatch.chdir(tree / name)
        assert file_bytes("a", Path("here")) == name.encode()


@pytest.mark.parametrize("modality", ["image", "audio", "video", "features"])
@pytest.mark.parametrize("cell", ["../secret.png", "deep/../../secret.png", "{}/secret.png"])
def test_paths_that_lead_out(tree, cell, modality):
    with pytest.raises(CellError, match=r"leads out of the folder .*; set root for this column"):
        read(cell.format(tree), tree / "root", modality)


def test_links_that_lead_out(tree):
    (tree / "root" / "link.png").symlink_to(tree / "secret.png")
    (tree / "root" / "up").symlink_to(tree)
    for cell in ("link.png", "up/secret.png"):
        with pytest.raises(CellError, match=r"leads out of the folder"):
            read(cell, tree / "root")


def test_links_that_stay_inside(tree):
    (tree / "root" / "link.png").symlink_to(tree / "root" / "deep" / "b.png")
    assert read("link.png", tree / "root").size == (5, 4)


def test_a_folder_of_frames_does_not_lead_out_either(tree):
    (tree / "root" / "clip").mkdir()
    (tree / "root" / "clip" / "1.png").symlink_to(tree / "secret.png")
    frames = read("clip", tree / "root", "video")
    with pytest.raises(Unreadable, match="leads out of the folder"):
        frames[0]
    with pytest.raises(Unreadable, match="leads out of the folder"):
        read('["../secret.png"]', tree / "root", "video")[0]


def test_a_wider_root_allows_more(tree):
    table = Table({"x": [str(tree / "secret.png")]}, base=tree / "root")
    assert read_cell(table, 0, ColumnSpec("x", "image", root=tree)).size == (5, 4)
    assert locate(str(tree / "secret.png"), "/") == os.path.realpath(tree / "secret.png")


def test_a_neighbour_that_begins_like_the_root(tree):
    (tree / "root2").mkdir()
    (tree / "root2" / "a.png").write_bytes(png())
    with pytest.raises(Unreadable, match="leads out"):
        locate("../root2/a.png", tree / "root")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("absent.png", "there is no such file"),
        ("a.png/b.png", "cannot be read: Not a directory"),
        ("deep", "is a folder; it must be a file"),
        ("pipe", "is a device, a pipe or a socket; it must be a file"),
        ("nul\0.png", "is no path"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("https://example.org/a.png", "is an address; only files are read"),
        ("loop", "cannot be read: .*symbolic links"),
    ],
)
def test_what_is_no_file(tree, cell, message):
    os.mkfifo(tree / "root" / "pipe")  # opening it would wait for ever
    (tree / "root" / "loop").symlink_to(tree / "root" / "loop")
    with pytest.raises(Unreadable, match=message):
        locate(cell, tree / "root")


def test_a_table_without_a_folder_has_no_paths():
    with pytest.raises(CellError, match="the table has no folder; set root"):
        read("a.png", None)


def test_a_file_that_is_too_long(tree, monkeypatch):
    monkeypatch.setattr("mmfast.data.files.MAX_FILE", 20)
    with pytest.raises(Unreadable, match=r"a\.png: has \d+ bytes; a file may have 20"):
        file_bytes("a.png", tree / "root")


def test_bytes_in_the_cell(tree):
    assert file_bytes(b"xyz", None) == b"xyz"
    assert file_bytes({"bytes": b"xyz", "path": "../nowhere"}, None) == b"xyz"
    assert file_bytes({"bytes": None, "path": "a.png"}, tree / "root") == png()
    with pytest.raises(Unreadable, match="the cell is a int; it must be the path of a file"):
        file_bytes(3, tree)


def test_errors_travel():
    error = pickle.loads(pickle.dumps(Unreadable("why", "where")))
    assert (error.reason, error.path, str(error)) == ("why", "where", "where: why")
