"""The stopwatch of a GPU: the order of things, with events that write it down instead."""

import pytest
import torch

from mmfast.bench import cuda_timing
from mmfast.bench.timing import Prepared


@pytest.fixture
def order(monkeypatch):
    """What was done, in order; the n-th pair of events is n milliseconds apart."""
    done = []

    class Event:
        pairs = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def elapsed_time(self, end):
            Event.pairs += 1
            return float(Event.pairs)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    return done


def cold(order):
    return lambda: order.append("cold")


def test_a_call_is_timed_alone_and_cold(order):
    ready = cuda_timing.Ready(lambda: order.append("call"), captured=True)
    found = cuda_timing.seconds_per_call(ready, lambda: None, cold(order), 0.0)
    assert order == ["cold", "event", "call", "event"] * cuda_timing.CALLS + ["wait"]
    assert found == pytest.approx((1 + cuda_timing.CALLS) / 2 / 1e3)  # the median, in seconds


def test_preparation_is_not_timed(order):
    step = Prepared(lambda: order.append("prepare"), lambda state: order.append("run"))
    ready = cuda_timing.Ready(step, captured=False)
    cuda_timing.seconds_per_call(ready, step, cold(order), 0.0)
    assert order[:5] == ["prepare", "cold", "event", "run", "event"]


def test_what_cannot_be_captured_is_called(monkeypatch, order):
    class Stream:
        def wait_stream(self, other):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    def refuse(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing")

    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: stream,
        "CUDAGraph": object,
        "graph": refuse,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    ready = cuda_timing.make_ready(step := lambda: order.append("call"))
    assert not ready.captured
    assert ready.call is step
    assert order.count("call") == cuda_timing.WARM_UP
