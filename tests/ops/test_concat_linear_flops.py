"""Floating-point operations that PyTorch's counter finds in concat_linear."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmfast.functional import concat_linear

ROWS, OUT = 12, 5


def count(call, *leaves):
    with FlopCounterMode(display=False) as counter:
        result = call()
        if leaves:
            torch.autograd.grad(result.sum(), leaves)
    return counter.get_total_flops()


@pytest.fixture
def tensors():
    x, y = torch.randn(ROWS, 3), torch.randn(ROWS, 4)
    return x, y, torch.randn(OUT, 7), torch.randn(OUT)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("needed", [(), (0, 1, 2, 3), (2, 3), (1,), (3,)])
def test_as_eager(tensors, needed, activation):
    leaves = [tensors[i].requires_grad_() for i in needed]
    x, y, weight, bias = tensors
    bend = (lambda z: z) if activation == "none" else getattr(F, activation)
    found = count(lambda: concat_linear([x, y], weight, bias, activation=activation), *leaves)
    if needed == (1,):  # eager multiplies for all inputs, and throws one gradient away
        assert found == 2 * ROWS * OUT * (7 + 4)
        return
    assert found == count(lambda: bend(F.linear(torch.cat([x, y], -1), weight, bias)), *leaves)


def test_rows_that_repeat_count_once(tensors):
    x, _, weight, bias = tensors
    one = torch.randn(1, 4, requires_grad=True)
    forward = 2 * OUT * (ROWS * 3 + 4)
    with torch.no_grad():
        assert count(lambda: concat_linear([x, one], weight, bias)) == forward
    assert count(lambda: concat_linear([x, one], weight, bias), one) == forward + 2 * OUT * 4


@pytest.mark.parametrize(("nodes", "multiplied"), [(4, 4), (6, 6), (7, ROWS), (100, ROWS)])
def test_rows_that_an_index_picks(tensors, nodes, multiplied):
    x, _, weight, bias = tensors
    table, picked = torch.randn(nodes, 4), torch.randint(nodes, (ROWS,))
    found = count(lambda: concat_linear([x, table], weight, bias, index=[None, picked]))
    assert found == 2 * OUT * (ROWS * 3 + multiplied * 4)


def test_the_operator_that_is_traced(tensors):
    x, y, weight, bias = tensors
    with FlopCounterMode(display=False) as counter:
        torch.ops.mmfast.concat_linear.default([x, y], weight, bias, [], [], "none", False)
    assert counter.get_total_flops() == 2 * ROWS * 7 * OUT
