"""Index arithmetic of the CUDA matrix products, against formulas written here from the PTX ISA."""

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gemm(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    library = tmp_path_factory.mktemp("gemm") / "gemm_functions.so"
    source = Path(__file__).with_name("gemm_functions.cpp")
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'csrc' / 'cuda'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    found = ctypes.CDLL(str(library))
    for name in ("descriptor", "step_of_descriptor"):
        getattr(found, name).restype = ctypes.c_uint64
    return found


def int64s(values):
    return (ctypes.c_int64 * len(values))(*values)


def int32s(values):
    return (ctypes.c_int32 * len(values))(*values)


WIDTHS = [(64,), (1,), (65, 63), (35, 300, 74), (128, 1, 64, 200), (16,) * 27, (64,) * 32]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (128, 64), (129, 65), (1000, 700)])
def test_every_tile_and_step_is_visited_once(gemm, widths, rows, cols):
    steps = [(g, k) for g, width in enumerate(widths) for k in range(0, width, 64)]
    for tile_cols, splits, strip in itertools.product((64, 128, 256), (1, 2, 3, 7), (1, 2, 8)):
        splits = min(splits, len(steps))
        shape = (-(-rows // 128), -(-cols // tile_cols), len(steps))
        visits = np.zeros(shape, dtype=np.int32)
        found = np.zeros((len(steps), 2), dtype=np.int32)
        gemm.visit(
            ctypes.c_int64(rows),
            ctypes.c_int64(cols),
            len(widths),
            int64s(widths),
            tile_cols,
            splits,
            strip,
            visits.ctypes.data_as(ctypes.c_void_p),
            found.ctypes.data_as(ctypes.c_void_p),
        )
        assert (visits == 1).all()
        assert found.tolist() == [list(step) for step in steps]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("tile_cols", [64, 128, 256])
def test_no_tile_of_columns_crosses_panels(gemm, widths, tile_cols):
    expected = [(g, n) for g, width in enumerate(widths) for n in range(0, width, tile_cols)]
    found = np.zeros((len(expected), 2), dtype=np.int32)
    data = found.ctypes.data_as(ctypes.c_void_p)
    assert gemm.panels(len(widths), int64s(widths), tile_cols, data) == len(expected)
    assert found.tolist() == [list(tile) for tile in expected]


def test_swizzle(gemm):
    for line, unit in itertools.product(range(256), range(8)):
        linear = line * 128 + unit * 16
        bits_7_to_9 = (linear >> 7) & 7
        assert gemm.swizzled(line, unit) == linear ^ (bits_7_to_9 << 4)


@pytest.mark.parametrize("mn_major", [0, 1])
def test_descriptor(gemm, mn_major):
    for address in (0, 1024, 8192 + 1024, 200 * 1024):
        descriptor = gemm.descriptor(mn_major, address)
        assert (descriptor & 0x3FFF) << 4 == address
        assert (descriptor >> 32) & 0x3FFF == 1024 >> 4  # 8 lines of 128 bytes
        if mn_major:
            assert (descriptor >> 16) & 0x3FFF == 64 * 128 >> 4  # to the next 64 rows
        assert descriptor >> 62 == 1  # 128-byte swizzle
        unused = (1 << 14) | (1 << 15) | (1 << 30) | (1 << 31) | (0x3FFF << 48 & ~(3 << 62))
        assert descriptor & unused == 0
        step = 16 * 128 if mn_major else 16 * 2
        later = descriptor + gemm.step_of_descriptor(mn_major)
        assert (later & 0x3FFF) << 4 == address + step


@pytest.mark.parametrize("mn_major", [0, 1])
def test_elements_lie_where_the_swizzled_canonical_layout_says(gemm, mn_major):
    seen = set()
    for row, k in itertools.product(range(128), range(64)):
        block, line, element = (row // 64, k, row % 64) if mn_major else (0, row, k)
        linear = block * 8192 + line * 128 + element * 2
        expected = linear ^ (((linear >> 7) & 7) << 4)
        assert gemm.place(mn_major, row, k) == expected
        seen.add(expected)
    assert len(seen) == 128 * 64


def test_fragments(gemm):
    """PTX ISA, matrix fragments of mma.m16n8 and wgmma.m64n*: accumulators."""
    seen = set()
    for lane, i in itertools.product(range(32), range(16)):
        row = lane // 4 + (8 if i % 4 >= 2 else 0)
        col = 8 * (i // 4) + lane % 4 * 2 + i % 2
        assert (gemm.row_of_register(lane, i), gemm.col_of_register(lane, i)) == (row, col)
        seen.add((row, col))
    assert len(seen) == 16 * 32


def banks(addresses, words):
    """How often the busiest of the 32 banks is used by lanes that access ``words`` words each."""
    used = [0] * 32
    for address in addresses:
        for word in range(words):
            used[(address + word) % 32] += 1
    return max(used)


def test_staging(gemm):
    places = {gemm.staging(row, col) for row in range(16) for col in range(32)}
    assert places == set(range(16 * 32))
    for i in range(0, 16, 2):  # written two words at a time, half a warp at once
        for half in (range(16), range(16, 32)):
            written = [
                gemm.staging(gemm.row_of_register(lane, i), gemm.col_of_register(lane, i))
                for lane in half
            ]
            assert banks(written, 2) == 1
    read = set()
    for step in range(4):  # read four words at a time, a quarter of a warp at once
        for quarter in range(4):
            lanes = range(quarter * 8, quarter * 8 + 8)
            places = [(gemm.row_of_step(lane, step), gemm.col_of_step(lane)) for lane in lanes]
            addresses = [gemm.staging(row, col) for row, col in places]
            assert banks(addresses, 4) == 1
            for (row, col), address in zip(places, addresses, strict=True):
                assert [gemm.staging(row, col + j) for j in range(4)] == [
                    address + j for j in range(4)
                ]
            read.update(places)
    assert read == {(row, col) for row in range(16) for col in range(0, 32, 4)}


def test_unit(gemm):
    for address, stride in itertools.product((0, 2, 4, 8, 16, 48), (8, 4, 2, 1, 300, 409)):
        expected = next(u for u in (16, 8, 4, 2) if address % u == 0 and stride * 2 % u == 0)
        assert gemm.unit(ctypes.c_uint64(address), ctypes.c_int64(stride)) == expected


@pytest.mark.parametrize(
    ("sizes", "strides"),
    [((), ()), ((7,), (1,)), ((3, 5), (1, 0)), ((3, 5, 2), (0, 2, 1)), ((2,) * 8, (0, 1) * 4)],
)
def test_distinct_rows(gemm, sizes, strides):
    for row, place in enumerate(itertools.product(*map(range, sizes))):
        expected = sum(p * s for p, s in zip(place, strides, strict=True))
        assert gemm.row_of(len(sizes), int32s(sizes), int32s(strides), row) == expected


def test_distinct_rows_of_large_batches(gemm):
    rows = 2**31 - 2000
    found = gemm.row_of(2, int32s((rows // 1000, 1000)), int32s((1000, 1)), rows - 1)
    assert found == rows - 1


def tiling(gemm, multiprocessors, hopper, rows, cols, steps):
    out = int32s((0, 0))
    gemm.tiling(multiprocessors, hopper, ctypes.c_int64(rows), ctypes.c_int64(cols), steps, out)
    return tuple(out)


def test_tiling(gemm):
    assert tiling(gemm, 132, 1, 65536, 4096, 64) == (256, 1)  # as large as tiles come
    assert tiling(gemm, 132, 1, 65536, 10, 16)[0] == 64
    assert tiling(gemm, 132, 1, 8, 2048, 64)[1] > 1  # few rows: split over the features
    assert tiling(gemm, 132, 1, 128, 64, 1)[1] == 1
    assert tiling(gemm, 108, 0, 65536, 4096, 64) == (128, 1)
