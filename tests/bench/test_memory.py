"""The memory measure: counts of tensors that are known beforehand."""

import pytest
import torch

from mmfast.bench import memory, peers
from mmfast.bench.cases import Case, Input
from mmfast.bench.data import make_data

ROWS, WIDTHS, OUT = 2048, (64, 192), 32
CASE = Case("pair", tuple(Input((ROWS, width)) for width in WIDTHS), OUT)
JOINED, RESULT = 4 * ROWS * sum(WIDTHS), 4 * ROWS * OUT


def test_peak_is_the_most_at_one_time():
    def step():
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(700)
        return second, third

    assert memory.peak_bytes(step) == 4 * 1200
    assert memory.peak_bytes(lambda: None) == 0


def test_the_profiler_is_silent(capfd):
    memory.peak_bytes(lambda: torch.empty(10))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("peer", "least"), [("eager", JOINED + RESULT), ("mmfast", RESULT)])
def test_forward_builds_the_concatenation_in_eager_alone(peer, least):
    contender = peers.bind(peer, make_data(CASE, torch.float32))
    with torch.no_grad():
        contender.forward()
        peak = memory.peak_bytes(contender.forward)
    assert least <= peak < least + JOINED // 4


def test_backward_keeps_the_concatenation_in_eager_alone():
    data = make_data(CASE, torch.float32)
    weight = data.weight.nbytes
    for peer, total, extra in (
        ("eager", JOINED + weight, JOINED),
        ("mmfast", JOINED + weight, 0),  # the inputs themselves, which are as large together
        ("linear", JOINED + weight, 0),
    ):
        found = memory.kept_bytes(peers.bind(peer, data).forward, data.given)
        assert (found.total, found.extra) == (total, extra), peer


def test_an_activation_keeps_a_tensor_of_the_results_size():
    data = make_data(Case("relu", CASE.inputs, OUT, "relu"), torch.float32)
    assert memory.kept_bytes(peers.bind("mmfast", data).forward, data.given).extra == RESULT


def test_a_storage_kept_twice_counts_once():
    x = torch.randn(10, 10, requires_grad=True)

    def forward():
        return (x[0] * x[1]).sum() + (x * x).sum()

    assert memory.kept_bytes(forward, []).total == 400
    assert memory.kept_bytes(forward, [x]).extra == 0
