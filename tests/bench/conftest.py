"""Fixtures of the benchmark tests: one thread, and runs with figures that are known."""

from collections.abc import Iterator

import pytest
import torch

from mmfast.bench.records import Measurement, Result, Run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Next to another process, threads that wait for each other take ten times as long.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measurement(times: dict[str, list[float]], **changes) -> Measurement:
    """A measurement of given seconds per call, by peer."""
    about = {
        "case": "pair",
        "group": "real",
        "kind": "equal",
        "series": "",
        "size": 0,
        "axis": "",
        "activation": "none",
        "shape": "2 x (8192, 8) -> 6",
        "rows": 8192,
        "width": 16,
        "out_features": 6,
        "dtype": "float32",
        "mode": "forward",
        "threads": 1,
        "moved_bytes": 1000,
        "flops": 2000,
        "result_bytes": 64,
        **changes,
    }
    peers = {name: Result(seconds) for name, seconds in times.items()}
    return Measurement(**about, peers=peers)


def a_run(*measurements: Measurement, **changes) -> Run:
    """A run of given measurements on a made-up machine."""
    about = {
        "machine": {
            "processor": "Abacus",
            "cores": 2,
            "threads": 2,
            "isa": "beads",
            "device": "cpu",
        },
        "versions": {"mmfast": "0.1", "torch": "2.13.0+cpu", "python": "3.11"},
        "date": "2026-01-01T00:00:00+00:00",
        "command": "mmfast bench",
        **changes,
    }
    return Run(**about, measurements=list(measurements))


@pytest.fixture(name="measurement")
def _measurement():
    return measurement


@pytest.fixture(name="a_run")
def _a_run():
    return a_run
