"""Tensors beyond 2**31 elements, in inputs and in results; on demand, one after another.

Memory that is never written is never given by the system: an input of zeros with a few numbers at
its ends costs next to nothing, and what is written of 2**31 bfloat16 numbers is 4 GiB. Integers, so
that every number that is looked at must be exact.
"""

import sys
import time
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

import mmfast
from mmfast import functional

BF16 = torch.bfloat16
MORE = 2**31 + 2**10


def zeros(*shape: int) -> Tensor:
    """By numpy, which leaves it to the system to clear pages when they are written."""
    return torch.from_numpy(numpy.zeros(shape, numpy.int16)).view(BF16)


def equal(found: Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected)
    assert torch.equal(found.double(), expected.double()), f"{found} instead of {expected}"


def input_of_many_elements() -> None:
    """(2**16 + 1, 2**15): the rows at both ends, and the gradients that come from them."""
    x, weight = zeros(2**16 + 1, 2**15), zeros(2, 2**15)
    x[0, :3], x[-1, -3:] = 1, 2
    weight[0], weight[1, -1] = 1, 3
    weight.requires_grad_()
    y = mmfast.concat_linear([x], weight)
    equal(y[[0, 1, -2, -1]], [[3, 0], [0, 0], [0, 0], [6, 6]])
    grad = torch.zeros_like(y)
    grad[-1, 0], grad[0, 1] = 1, 5
    [found] = torch.autograd.grad(y, weight, grad)
    equal(found[:, [0, 2, 3, -4, -3, -1]], [[0, 0, 0, 0, 2, 2], [5, 5, 0, 0, 0, 0]])


def result_of_many_elements() -> None:
    """A row, repeated: 2**31 results of which each is written."""
    x = torch.ones(1, 1, dtype=BF16).expand(MORE // 2, 1)
    y = mmfast.concat_linear([x], torch.tensor([[2.0], [3.0]], dtype=BF16))
    assert y.numel() > 2**31
    equal(y[[0, 2**30, -1]], [[2, 3]] * 3)
    assert (y.view(torch.int32) == y[:1].view(torch.int32)).all()


def index_of_a_far_row() -> None:
    """An index that names rows beyond 2**31 elements, and their gradient."""
    x, weight = zeros(2**16 + 1, 2**15), zeros(1, 2**15)
    x[-1, -1], x[0, 0], weight[0] = 2, 1, 1
    index = torch.tensor([2**16, 0, 2**16, 5])
    y = mmfast.concat_linear([x], weight.requires_grad_(), index=[index])
    equal(y[:, 0], [2, 1, 2, 0])
    [found] = torch.autograd.grad(y, weight, torch.ones_like(y))
    equal(found[0, [0, 1, -2, -1]], [1, 0, 0, 4])


def far_strides() -> None:
    """Rows 2**31 + 5 elements apart."""
    storage = torch.empty(3 * 2**31, dtype=BF16)
    x = storage.as_strided((2, 4), (2**31 + 5, 1))
    x.copy_(torch.arange(8).view(2, 4))
    weight = torch.ones(1, 4, dtype=BF16)
    equal(mmfast.concat_linear([x], weight)[:, 0], [6, 22])
    equal(
        functional.weighted_sum([x, x], torch.tensor([1.0, 2.0], dtype=BF16))[1], [12, 15, 18, 21]
    )
    equal(functional.rank_product([x[:, None], x[:, None]])[1], [16, 25, 36, 49])
    column = storage.as_strided((4, 2), (1, 2**31 + 5))  # features far apart
    equal(mmfast.concat_linear([column], torch.ones(1, 2, dtype=BF16))[:, 0], [4, 6, 8, 10])


def row_operators_of_many_elements() -> None:
    """Results of over 2**31 elements from rows that repeat; of them, the ends."""
    shape = (2**16 + 1, 2**15)
    nothing, one, two = (torch.full((1, 1), i, dtype=BF16).expand(shape) for i in range(3))
    there = torch.ones(1, 2, dtype=torch.bool).expand(shape[0], 2).clone()
    there[-1, 0] = False
    weights = torch.tensor([1.0, 3.0], dtype=BF16)
    for call, usual, last in (
        (lambda: functional.weighted_sum([one, two], weights, there), 7, 6),
        (lambda: functional.rank_product([one[:, None], two[:, None]], None, there), 2, 2),
        (lambda: functional.gated_sum([nothing, nothing], [one, two], there), 0, 0),
    ):
        y = call()
        equal(y[[0, 2**15, -2]][:, [0, -1]], [[usual] * 2] * 3)
        equal(y[-1, [0, -1]], [last] * 2)
        del y


def many_inputs() -> None:
    """5,000 inputs of one feature each."""
    count = 5000
    inputs = [
        torch.full((3, 1), i % 5, dtype=torch.float32, requires_grad=i == 4999)
        for i in range(count)
    ]
    weight = torch.ones(2, count)
    y = mmfast.concat_linear(inputs, weight)
    equal(y, [[sum(i % 5 for i in range(count))] * 2] * 3)
    [found] = torch.autograd.grad(y, inputs[-1], torch.ones_like(y))
    equal(found, [[2]] * 3)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        input_of_many_elements,
        result_of_many_elements,
        index_of_a_far_row,
        far_strides,
        row_operators_of_many_elements,
        many_inputs,
    )
}


def main() -> int:
    failures = 0
    for name, check in CHECKS.items():
        start = time.time()
        try:
            check()
            said = "ok"
        except Exception as error:
            said, failures = f"FOUND {type(error).__name__}: {error}", failures + 1
        print(f"{name:34} {time.time() - start:7.1f} s  {said}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
