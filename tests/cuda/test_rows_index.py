"""Who computes what on a GPU, and where it lies: csrc/cuda/rows.h, called on the host.

References are written from what the header says, in Python's integers.
"""

import ctypes
import random

import cuda_on_host
import pytest

pytestmark = pytest.mark.on_host

THREADS = 256
BIG = 2**31 + 12345


@pytest.fixture(scope="module")
def functions():
    return cuda_on_host.index_functions()


def called(function, count, *arguments):
    out = (ctypes.c_int64 * count)()
    function(*(ctypes.c_int64(x) for x in arguments), out)
    return list(out)


def tiles_of(functions, rows, cols, packet):
    return called(functions.mmfast_tiles_of, 3, rows, cols, packet)


def tile_at(functions, rows, cols, packet, block, thread):
    return called(functions.mmfast_tile_at, 2, rows, cols, packet, block, thread)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 255, 256, 300])
@pytest.mark.parametrize("cols", [1, 3, 4, 5, 31, 33, 100, 1024, 1025, 3000])
@pytest.mark.parametrize("packet", [2, 4, 8])
def test_every_element_is_one_threads(functions, rows, cols, packet):
    lanes, _, blocks = tiles_of(functions, rows, cols, packet)
    assert lanes in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    seen = set()
    for block in range(blocks):
        for thread in range(THREADS):
            row, col = tile_at(functions, rows, cols, packet, block, thread)
            if row < rows and col < cols:
                assert (row, col) not in seen
                seen.add((row, col))
    assert seen == {(row, col) for row in range(rows) for col in range(0, cols, packet)}


@pytest.mark.parametrize(
    ("rows", "cols"), [(BIG, 1), (BIG, 100), (3, BIG), (1, 2**40 + 3), (BIG, BIG)], ids=str
)
@pytest.mark.parametrize("packet", [2, 8])
def test_tiles_beyond_31_bits(functions, rows, cols, packet):
    lanes, col_blocks, blocks = tiles_of(functions, rows, cols, packet)
    lines = THREADS // lanes
    assert col_blocks == -(-cols // (packet * lanes))
    assert blocks == -(-rows // lines) * col_blocks
    draw = random.Random(0)
    for block in [0, 1, blocks - 1, *(draw.randrange(blocks) for _ in range(200))]:
        thread = draw.randrange(THREADS)
        row = block // col_blocks * lines + thread // lanes
        col = (block % col_blocks * lanes + thread % lanes) * packet
        assert tile_at(functions, rows, cols, packet, block, thread) == [row, col]


@pytest.mark.parametrize("rows", [0, 1, 31, 500, 4097, BIG])
@pytest.mark.parametrize("packets", [0, 1, 3, 32, 33, 96, 128, 129, 4000])
@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("bytes_each", [0, 16 * 3, 16 * 100, 16 * 2048])
def test_every_row_is_one_groups(functions, rows, packets, each, bytes_each):
    found = called(functions.mmfast_groups_of, 4, rows, packets, each, bytes_each, 2112, 64)
    lanes, steps, blocks, shared = found
    assert lanes in (1, 2, 4, 8, 16, 32, 256)
    assert lanes == 256 or packets <= lanes * each
    assert 1 <= steps <= 64
    assert shared <= 48 * 1024
    in_block = THREADS // lanes

    def row_at(block, group, step):
        arguments = (ctypes.c_int(lanes), ctypes.c_int(steps), ctypes.c_int64(block))
        return functions.mmfast_row_at(*arguments, ctypes.c_int(group), ctypes.c_int(step))

    assert blocks == -(-rows // (in_block * steps))
    if rows < BIG:
        everything = [
            row_at(block, group, step)
            for block in range(blocks)
            for group in range(in_block)
            for step in range(steps)
        ]
        assert sorted(everything) == list(range(blocks * in_block * steps))
    else:
        assert row_at(blocks - 1, in_block - 1, steps - 1) == blocks * in_block * steps - 1
        assert row_at(blocks - 1, 0, 0) < rows <= blocks * in_block * steps


def test_offsets(functions):
    """Of the rows of a batch of up to four dimensions, the innermost first."""
    draw = random.Random(1)
    for _ in range(2000):
        dims = draw.randrange(0, 5)
        sizes = [draw.choice([1, 2, 3, 50, 7_000]) for _ in range(dims)]
        strides = [draw.choice([0, 1, 96, 2**31 + 1, 2**40]) for _ in range(dims)]
        index = [draw.randrange(size) for size in sizes]
        row = 0
        for size, i in zip(reversed(sizes), reversed(index), strict=True):
            row = row * size + i
        found = functions.mmfast_offset_of(
            dims,
            (ctypes.c_int64 * dims)(*sizes),
            (ctypes.c_int64 * dims)(*strides),
            ctypes.c_int64(row),
        )
        assert found == sum(i * s for i, s in zip(index, strides, strict=True))
