"""concat_linear against what users write today, one benchmark per shape, mode and peer.

The shapes and the peers are those of ``mmfast bench``, which runs the peers in turns, adds the
ceilings and memory and is what figures are quoted from. This suite is for pytest-benchmark's own
tools: ``pytest benchmarks -k "critic and forward"``, ``--benchmark-compare``. It runs one peer
after the other: on a machine that others use, read its ratios with care.
"""

import pytest

from mmfast.bench.shapes import REAL, TINY


@pytest.mark.parametrize("peer", ["linear", "mmfast", "eager", "split", "compile"])
@pytest.mark.parametrize("mode", ["forward", "backward", "both"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*REAL, *TINY], ids=lambda case: case.name)
def test_concat_linear(measure, case, dtype, mode, peer):
    measure(case, dtype, mode, peer)
