"""concat_linear against what users write today, one benchmark per shape, mode and peer.

The shapes and the peers are those of ``mmfast bench``, which runs the peers in turns, adds the
ceilings and memory and is what figures are quoted from. This suite is for pytest-benchmark's own
tools: ``pytest benchmarks -k "critic and forward"``, ``--benchmark-compare``. It runs one peer
after the other: on a machine that others use, read its ratios with care.
"""

import pytest
import torch

from mmfast.bench import peers
from mmfast.bench.data import make_data
from mmfast.bench.run import DTYPES, step
from mmfast.bench.shapes import REAL, TINY
from mmfast.bench.timing import Prepared


@pytest.mark.parametrize("peer", ["linear", "mmfast", "eager", "split", "compile"])
@pytest.mark.parametrize("mode", ["forward", "backward", "both"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*REAL, *TINY], ids=lambda case: case.name)
def test_concat_linear(benchmark, case, dtype, mode, peer):
    benchmark.group = f"{case.name}, {dtype}, {mode}"
    benchmark.extra_info["shape"] = case.describe()
    data = make_data(case, DTYPES[dtype])
    torch._dynamo.reset()
    contender = peers.bind(peer, data)
    gradients = mode != "forward"
    expected = peers.results(peers.bind("eager", data), data, gradients=gradients)
    found = peers.results(contender, data, gradients=gradients)
    peers.check(peer, found, expected, DTYPES[dtype])
    with torch.set_grad_enabled(gradients):
        timed = step(contender, data.grad, mode)
        if isinstance(timed, Prepared):
            benchmark.pedantic(
                timed.run, setup=lambda: ((timed.prepare(),), {}), rounds=20, warmup_rounds=2
            )
        else:
            benchmark(timed)
