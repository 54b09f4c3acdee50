"""Measuring: every peer in every mode, refusals, memory limits, threads."""

import pytest
import torch

from mmfast.bench import peers
from mmfast.bench import run as bench
from mmfast.bench.cases import Case, Input
from mmfast.bench.data import make_data

PAIR = Case("pair", (Input((16, 8)), Input((16, 4))), 6)
FAST = bench.Settings(
    modes=bench.MODES, dtypes=("float32",), turns=3, turn_s=1e-4, compile=(), memory=False
)


def test_every_peer_in_every_mode():
    found = bench.measure(PAIR, "bfloat16", FAST)
    assert [m.mode for m in found] == list(bench.MODES)
    for m in found:
        assert list(m.peers) == ["copy", "linear", "mmfast", "eager", "split"]
        assert m.refused == {}
        assert all(len(r.times_s) == 3 and min(r.times_s) > 0 for r in m.peers.values())
        assert (m.rows, m.width, m.out_features, m.dtype) == (16, 12, 6, "bfloat16")
        assert m.result_bytes == 2 * 16 * 6


def test_memory_is_looked_at():
    forward, _, both = bench.measure(
        PAIR, "float32", bench.Settings(**{**vars(FAST), "memory": True})
    )
    joined, result = 4 * 16 * 12, 4 * 16 * 6
    assert forward.peers["eager"].peak_bytes == joined + result
    assert forward.peers["mmfast"].kept_bytes is None
    assert both.peers["eager"].kept_extra_bytes == joined
    assert both.peers["mmfast"].kept_extra_bytes == 0
    assert both.peers["copy"].peak_bytes is None


@pytest.mark.parametrize("broken", ["result", "gradient", "raises"])
def test_a_broken_peer_is_refused_and_the_others_are_timed(broken, monkeypatch):
    def make(case):
        def run(inputs, weight, bias, index):
            if broken == "raises":
                raise RuntimeError("out of beads\nin two lines")
            joined = torch.cat(inputs, -1)
            if broken == "gradient":
                return torch.nn.functional.linear(joined.detach() * 2 - joined, weight, bias)
            return torch.nn.functional.linear(joined, weight, bias) + 1

        return run

    monkeypatch.setitem(peers.PEERS, "split", make)
    for m in bench.measure(PAIR, "float32", FAST):
        assert "split" not in m.peers
        assert {"mmfast", "eager", "linear"} <= set(m.peers)
    expected = {"result": "the result", "gradient": "gradient 1 of 4", "raises": "out of beads"}
    assert expected[broken] in m.refused["split"]
    assert "two lines" not in m.refused["split"]


def test_too_large_cases_are_skipped_by_mode():
    limit = PAIR.needed_bytes(4, "forward")
    settings = bench.Settings(**{**vars(FAST), "most_bytes": limit})
    found = bench.run([PAIR], settings)
    assert [m.mode for m in found.measurements] == ["forward"]
    assert list(found.skipped) == ["pair, float32, backward", "pair, float32, both"]
    nothing = bench.run([PAIR], bench.Settings(**{**vars(FAST), "most_bytes": 0}))
    assert nothing.measurements == []
    assert len(nothing.skipped) == 3


def test_a_run_says_where_and_with_what(monkeypatch):
    labels = []
    case = Case("two", PAIR.inputs, 6, threads=2)
    found = bench.run([PAIR, case], FAST, command="mmfast bench", on_case=labels.append)
    assert labels == ["pair, float32", "two, float32"]
    assert [m.threads for m in found.measurements] == [1, 1, 1, 2, 2, 2]
    assert torch.get_num_threads() == 1
    assert set(found.machine) == {"processor", "cores", "threads", "isa", "device"}
    assert found.versions["torch"] == torch.__version__
    assert found.command == "mmfast bench"


def test_steps():
    data = make_data(PAIR, torch.float32)
    contender = peers.bind("mmfast", data)
    shapes = [leaf.shape for leaf in contender.leaves]
    with torch.no_grad():
        assert not bench.step(contender, data.grad, "forward")().requires_grad
    for mode in ("backward", "both"):
        assert [g.shape for g in bench.step(contender, data.grad, mode)()] == shapes


def test_the_copy_moves_what_must_be_moved():
    data = make_data(PAIR, torch.float32)
    for mode in bench.MODES:
        copies = bench.copy_step(data, mode)()
        assert len(copies) == {"forward": 1, "backward": 4, "both": 5}[mode]
        moved = 2 * sum(copy.nbytes for copy in copies)
        assert abs(moved - PAIR.moved_bytes(4, mode)) < 8 * len(copies)
