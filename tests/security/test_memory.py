"""Files that say they are larger than they are, and files that grow when they are read.

Each is a real file of a few kilobytes or megabytes whose naive reading takes gigabytes. It must be
refused by name, with hardly any memory touched.
"""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confined import confined
from data_files import png, wav, write_tar
from PIL import Image

from mmfast.data import ColumnSpec, Table, read_cell, read_table
from mmfast.encoders.mel import read_waveform

MIB = 1 << 20


def read(cell, modality, root=None):
    return read_cell(Table({"x": [cell]}, base=root), 0, ColumnSpec("x", modality))


def refused(outcome, error, message, grown=100 * MIB):
    assert outcome.error == error, outcome
    assert message in outcome.message, outcome
    assert outcome.grown < grown, outcome


# Tables


def test_a_csv_file_of_one_line(tmp_path):
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.write(b"a,b\n")
        file.truncate(3 << 30)  # zeros, of which the disk holds none
    refused(confined(read_table, path), "TableError", "x.csv:2: the line is longer than")


def test_a_csv_header_of_many_names_takes_no_quadratic_time(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(",".join(map(str, range(50_000))) + "\n" + "," * 49_999 + "\n")
    assert confined(lambda: len(read_table(path)), seconds=10)[:2] == ("", "1")


def test_a_cell_of_a_csv_file_over_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.data.table._LONGEST_CELL", MIB)
    path = tmp_path / "x.csv"
    path.write_bytes(b'a\n"' + b"0\n" * MIB)
    refused(confined(read_table, path), "TableError", "field larger than field limit")


def test_a_jsonl_file_of_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    refused(confined(read_table, path), "TableError", "x.jsonl:1: the line is longer than")


def test_a_jsonl_file_with_a_new_column_in_each_line(tmp_path):
    """15,000 rows of 15,000 columns: 1.7 GiB of None in a list each."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"c{row}": {row}}}\n' for row in range(15_000)))
    outcome = confined(lambda: read_table(path).cell(14_999, "c14999"))
    assert outcome[:2] == ("", "14999")
    assert outcome.grown < 100 * MIB


def test_json_that_nests(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    refused(confined(read_table, path), "TableError", "x.jsonl:1: no valid JSON")


@pytest.mark.parametrize("lists", [False, True])
def test_a_parquet_file_of_repeated_numbers(tmp_path, monkeypatch, lists):
    """Equal numbers are run lengths: a billion of them take megabytes, as lists in a row or two."""
    monkeypatch.setattr("mmfast.data.arrow._DECODED", 32 * MIB)
    path = tmp_path / "x.parquet"
    same = pa.array(np.zeros(1 << 24, np.int64))
    if lists:
        same = pa.ListArray.from_arrays([0, 1 << 24], same)
    pq.write_table(pa.table({"x": same}), path)
    assert path.stat().st_size < MIB
    refused(confined(read_table, path), "TableError", "decodes to more than", grown=64 * MIB)


def test_a_parquet_file_of_one_long_text(tmp_path):
    path = tmp_path / "x.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(1 << 16, np.int32), pa.array(["x" * MIB]))
    pq.write_table(pa.table({"x": column}), path, store_schema=False)
    assert path.stat().st_size < 2 * MIB
    outcome = confined(lambda: len(read_table(path).cell(65_535, "x")))
    assert outcome[:2] == ("", f"{MIB}"), outcome
    assert outcome.grown < 100 * MIB


def saved(folder, batch, **options):
    """A folder as ``save_to_disk`` writes it."""
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    (folder / "dataset_info.json").write_text("{}")
    with pa.ipc.new_stream(
        folder / "x.arrow", batch.schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as stream:
        stream.write_batch(batch)
    return folder


def test_an_arrow_file_that_is_compressed(tmp_path):
    zeros = pa.record_batch({"x": np.zeros(1 << 28, np.int8)})
    saved(tmp_path, zeros, compression="zstd")
    assert (tmp_path / "x.arrow").stat().st_size < MIB
    refused(confined(read_table, tmp_path), "TableError", "x.arrow is compressed")


def test_an_arrow_file_whose_texts_lie_elsewhere_in_memory(tmp_path):
    """Offsets beyond the buffer would read whatever is there, or crash."""
    saved(tmp_path, pa.record_batch({"x": ["abcdefgh"] * 4}))
    path = tmp_path / "x.arrow"
    data = path.read_bytes()
    offsets = struct.pack("<5i", 0, 8, 16, 24, 32)
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, struct.pack("<5i", 0, 8, 1 << 30, 24, 32)))
    refused(confined(read_table, tmp_path), "TableError", "x.arrow is no readable Arrow file")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x{0..999999999}.tar", "there is no shard x1.tar"),
        ("x{0..99999999999}.tar", "there is no shard x{0..99999999999}.tar"),
        ("{./,./}" * 40 + "x.tar", "names more than 1000 shards"),
        ("{a,b}" * 5000 + ".tar", "names more than 1000 shards"),
    ],
)
def test_shards_without_end(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmfast.data.shards._MOST_SHARDS", 1000)
    write_tar(tmp_path / "x.tar", [("a.txt", b"a")])
    write_tar(tmp_path / "x0.tar", [("a.txt", b"a")])
    refused(confined(read_table, pattern), "TableError", message)


def test_a_shard_with_a_new_ending_for_each_file(tmp_path):
    """5,000 rows of 5,000 columns: 600 MB of places."""
    path = write_tar(tmp_path / "x.tar", [(f"{row}.e{row}", b"a") for row in range(5000)])
    outcome = confined(lambda: read_table(path).cell(4999, "e4999").read())
    assert outcome[:2] == ("", "b'a'"), outcome
    assert outcome.grown < 60 * MIB


def test_a_shard_with_a_new_key_in_each_json(tmp_path):
    files = [(f"{row}.json", f'{{"k{row}": 1}}'.encode()) for row in range(5000)]
    path = write_tar(tmp_path / "x.tar", files)
    outcome = confined(lambda: read_table(path).cell(4999, "json.k4999"))
    assert outcome[:2] == ("", "1"), outcome
    assert outcome.grown < 60 * MIB


def header(name, size, kind=tarfile.REGTYPE):
    """A tar header whose size, negative ones too, is written in base 256."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    block[148:156] = b"        "
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE])
def test_a_tar_file_that_leads_back(tmp_path, kind):
    """A negative size makes tarfile read the same header for ever (CVE-2025-8194)."""
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.txt", -512, kind) + bytes(2048))
    refused(confined(read_table, path, seconds=5), "TableError", "x.tar is")


def test_a_text_in_a_shard_that_says_it_is_long(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.txt", 1 << 40) + bytes(2048))
    refused(confined(read_table, path), "TableError", f"a.txt has {1 << 40} bytes")


def test_an_image_in_a_shard_that_says_it_is_long(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.png", 1 << 40) + bytes(2048))
    outcome = confined(lambda: read_cell(read_table(path), 0, ColumnSpec("png", "image")))
    refused(outcome, "TableError", "unexpected end of data", grown=10 * MIB)


# Features


def npy(shape, dtype="<f4", data=b""):
    """A .npy file of any declared shape."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize("shape", [(1 << 29,), (1 << 50,), (1 << 40, 1 << 40), (-1,)])
@pytest.mark.parametrize("way", ["file", "bytes"])
def test_an_array_that_says_it_is_large(tmp_path, shape, way):
    data = npy(shape, data=bytes(400))
    (tmp_path / "x.npy").write_bytes(data)
    cell = "x.npy" if way == "file" else data
    refused(confined(read, cell, "features", tmp_path), "CellError", "", grown=10 * MIB)


def test_bytes_of_an_array_are_not_taken_before_its_size_is_known():
    outcome = confined(read, npy((1 << 27,)), "features")
    refused(outcome, "CellError", "declares 536870912 bytes and holds 0", grown=10 * MIB)


def test_a_row_number_of_many_digits(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3, np.float32))
    outcome = confined(read, "x.npy#" + "9" * 5000, "features", tmp_path)
    refused(outcome, "CellError", "has 3 rows; there is no row")


@pytest.mark.parametrize("size", [1 << 40, (1 << 64) - 1, 1 << 30])
@pytest.mark.parametrize("way", ["file", "bytes"])
def test_a_safetensors_header_that_says_it_is_long(tmp_path, size, way):
    data = size.to_bytes(8, "little") + b"{}"
    (tmp_path / "x.safetensors").write_bytes(data)
    cell = "x.safetensors" if way == "file" else data
    refused(confined(read, cell, "features", tmp_path), "CellError", "", grown=10 * MIB)


def test_a_safetensors_header_of_many_tensors(tmp_path):
    """The library takes 100 MB of JSON, which become gigabytes of its objects."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(f'"{number}":{entry}' for number in range(700_000)) + "}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    refused(confined(read, "x.safetensors#7", "features", tmp_path), "CellError", "header")


def test_an_archive_of_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npy", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy((1 << 24,)) + bytes(1 << 26))
    outcome = confined(read, "x.npy", "features", tmp_path)
    refused(outcome, "CellError", "archive", grown=10 * MIB)


def test_a_compressed_array(tmp_path):
    (tmp_path / "x.npy").write_bytes(gzip.compress(npy((1 << 24,)) + bytes(1 << 26)))
    outcome = confined(read, "x.npy", "features", tmp_path)
    refused(outcome, "CellError", "", grown=10 * MIB)


@pytest.mark.parametrize("modality", ["features", "video"])
def test_a_cell_of_json_that_nests(tmp_path, modality):
    refused(confined(read, "[" * 100_000, modality, tmp_path), "CellError", "is no JSON list")


# Images


def test_an_image_that_says_it_is_large():
    data = png()
    size = struct.pack(">II", 60_000, 60_000)
    chunk = b"IHDR" + size + data[24:29]
    data = data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    refused(confined(read, data, "image"), "CellError", "pixels", grown=10 * MIB)


def test_a_text_in_an_image_that_unfolds():
    data = png()
    text = b"zTXtname\0\0" + zlib.compress(bytes(1 << 27))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    refused(confined(read, data[:33] + chunk + data[33:], "image"), "CellError", "")


def gif(first, others, count):
    """A GIF whose first frame has one size and the others, all one frame, another."""
    buffer = io.BytesIO()
    Image.new("P", others).save(buffer, "GIF")
    data = buffer.getvalue()
    colours = 3 << (1 + (data[10] & 7)) if data[10] & 128 else 0
    start = 13 + colours
    frame = data[data.index(b"\x2c", start) : -1]
    small = io.BytesIO()
    Image.new("P", first).save(small, "GIF")
    return small.getvalue()[:-1] + frame * count + b";"


def test_an_animation_whose_frames_outgrow_its_first():
    """Each of 40 frames has 144 million pixels, in 70 KB of code; the first has one."""
    data = gif((1, 1), (12_000, 12_000), 40)
    assert len(data) < 20 * MIB
    refused(confined(read, data, "video"), "CellError", "pixels", grown=10 * MIB)


def test_an_animation_of_a_million_dots(monkeypatch):
    """A frame of one pixel takes a kilobyte of Python's, and 20 bytes of the file."""
    monkeypatch.setattr("mmfast.data.images.MAX_VIDEO_PIXELS", 1 << 22)
    data = gif((1, 1), (1, 1), 1_000_000)
    refused(confined(read, data, "video"), "CellError", "more than 1024 frames", grown=100 * MIB)


# Recordings


def test_a_recording_that_says_it_is_long():
    data = bytearray(wav(np.zeros(100)))
    data[40:44] = struct.pack("<I", 0x7FFFFFFF)
    refused(confined(read, bytes(data), "audio"), "CellError", "truncated", grown=10 * MIB)


@pytest.mark.parametrize("rate", [1, 0x7FFFFFFF])
def test_a_recording_of_an_absurd_rate(rate):
    """At 1 Hz, a second of recording becomes hours when it is resampled."""
    data = wav(np.zeros(1 << 20), rate=rate)
    outcome = confined(lambda: read_waveform(read(data, "audio"), 16_000).shape)
    refused(outcome, "ValueError", "16000 Hz", grown=40 * MIB)


def test_json_of_a_shard_that_nests(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.json", json.dumps("x").encode() + b"[" * 100_000)])
    refused(confined(read_table, path), "TableError", "is no valid json")
