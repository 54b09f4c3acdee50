"""Whether memory grows while every operator runs: ``memory.py [iterations]``, 10,000 by default.

An iteration is forward and backward of one call of operator_calls.py. The small ones go through
all of them, the large ones through one in fifty. Asked are the bytes that the C heap and the blocks
that Python's heap have handed out, which shows the smallest leak, and the memory that the process
holds.
"""

import ctypes
import gc
import os
import sys
import time
from typing import NamedTuple

import torch
from operator_calls import CALLS, SMALL

ITERATIONS = 10_000
WARM_UP = 10
TRIES = 3


class Mallinfo2(ctypes.Structure):
    """Of glibc's malloc.h; arenas and maps of all threads."""

    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

    @property
    def in_use(self) -> int:
        """Uordblks and hblkhd."""
        return self.field7 + self.field4


class Memory(NamedTuple):
    heap: int  # bytes handed out
    blocks: int  # of Python
    resident: int  # bytes


def memory() -> Memory:
    gc.collect()
    info = ctypes.CDLL(None).mallinfo2
    info.restype = Mallinfo2
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return Memory(info().in_use, sys.getallocatedblocks(), pages * os.sysconf("SC_PAGE_SIZE"))


def growth(name: str, iterations: int) -> Memory:
    """Of one call after it has run a while."""
    for _ in range(WARM_UP):
        CALLS[name]()
    before = memory()
    for _ in range(iterations):
        CALLS[name]()
    return Memory(*(y - x for x, y in zip(before, memory(), strict=True)))


def main(iterations: int) -> int:
    torch.set_num_threads(1)
    for call in CALLS.values():
        call()
    start, begin = memory(), time.monotonic()
    leaking = []
    for name in CALLS:
        rounds = iterations if name in SMALL else max(20, iterations // 50)
        # What leaks does so every time; a cache that fills, or another thread's memory, does not.
        for _ in range(TRIES):
            found = growth(name, rounds)
            # A leak is of one object per iteration at least: 16 bytes, and hundreds for a tensor.
            if found.heap <= max(8 * rounds, 4096) and found.blocks <= max(rounds // 2, 40):
                break
        else:
            leaking.append(name)
        figures = f"{found.heap:9} bytes {found.blocks:6} blocks {found.resident:9} resident"
        print(f"{name:44}{rounds:6} iterations {figures}", flush=True)
    total = memory().resident - start.resident
    print(
        f"{len(SMALL)} calls {iterations} times, {len(CALLS) - len(SMALL)} larger ones "
        f"{max(20, iterations // 50)} times in {time.monotonic() - begin:.0f} s: "
        f"resident memory {start.resident / 2**20:.1f} MiB, {total / 2**20:+.1f} MiB"
    )
    print(f"leaking: {', '.join(leaking) or 'none'}")
    return 1 if leaking else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ITERATIONS))
