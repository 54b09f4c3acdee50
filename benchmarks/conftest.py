"""How the benchmarks of all operators measure one peer."""

import pytest
import torch

from mmfast.bench import peers
from mmfast.bench.run import DTYPES, any_data, step
from mmfast.bench.timing import Prepared


@pytest.fixture
def measure(benchmark):
    """Checks a peer against the eager form, then times it."""

    def run(case, dtype, mode, peer):
        benchmark.group = f"{case.name}, {dtype}, {mode}"
        benchmark.extra_info["shape"] = case.describe()
        data = any_data(case, DTYPES[dtype])
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

    return run
