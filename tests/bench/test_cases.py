"""Cases and shapes: what they say about themselves is what the tensors are."""

from math import prod

import pytest
import torch

from mmfast.bench import shapes
from mmfast.bench.cases import Case, Input, scaled
from mmfast.bench.data import join, make_data

GRAPH = Case("graph", shapes.graph(10, 40, 8, 3), 5)
TOKENS = Case("tokens", (Input((2, 6, 4)), Input((2, 1, 7))), 3, "relu")
PAIR = Case("pair", (Input((4, 2)), Input((4, 3))), 6)
FROZEN = Case("frozen", PAIR.inputs, 6, frozen=True)


def test_what_a_case_says():
    assert (PAIR.kind, TOKENS.kind, GRAPH.kind) == ("equal", "broadcast", "index")
    assert (PAIR.rows, TOKENS.rows, GRAPH.rows) == (4, 12, 40)
    assert GRAPH.batch == (40,)
    assert GRAPH.widths == (8, 8, 3)
    assert TOKENS.describe() == "(2, 6, 4) + (2, 1, 7) -> 3 relu"
    assert GRAPH.describe() == "2 x (10, 8)[40] + (40, 3) -> 5"


def test_moved_bytes_count_each_tensor_once():
    inputs, parameters, result, index = 10 * 8 + 40 * 3, 19 * 5 + 5, 40 * 5, 2 * 40
    forward = 4 * (inputs + parameters + result) + 8 * index
    backward = 4 * (2 * (inputs + parameters) + result) + 8 * index
    assert GRAPH.moved_bytes(4, "forward") == forward
    assert GRAPH.moved_bytes(4, "backward") == backward
    assert GRAPH.moved_bytes(4, "both") == forward + backward
    assert PAIR.flops("forward") == 2 * 4 * 5 * 6
    assert PAIR.flops("both") == 3 * PAIR.flops("forward")


def test_frozen_inputs_have_no_gradients():
    inputs, weight, bias, result = 4 * 5, 5 * 6, 6, 4 * 6
    forward, backward = inputs + weight + bias + result, result + inputs + weight + bias
    assert FROZEN.moved_bytes(4, "forward") == 4 * forward == PAIR.moved_bytes(4, "forward")
    assert FROZEN.moved_bytes(4, "backward") == 4 * backward
    assert FROZEN.moved_bytes(4, "both") == 4 * (forward + backward)
    assert FROZEN.flops("both") == 2 * FROZEN.flops("forward") == 2 * PAIR.flops("forward")
    assert FROZEN.written("both") == [result, weight, bias]
    data = make_data(FROZEN, torch.float32)
    assert [x.shape for x in data.leaves] == [(6, 5), (6,)]
    assert not any(x.requires_grad for x in (*data.inputs, data.joined))
    assert len(data.given) == 6  # two inputs, weight, bias, the concatenation, the gradient


@pytest.mark.parametrize("case", [PAIR, TOKENS, GRAPH], ids=lambda case: case.name)
def test_data_is_what_the_case_says(case):
    data = make_data(case, torch.float32)
    assert [tuple(x.shape) for x in data.inputs] == [x.shape for x in case.inputs]
    assert data.joined.shape == (*case.batch, sum(case.widths))
    assert torch.equal(data.joined, join(data.inputs, data.index))
    assert data.grad.shape == (*case.batch, case.out_features)
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in (*data.leaves, data.joined))
    again = make_data(case, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(data.given, again.given, strict=True))


def test_an_input_given_twice_is_one_tensor():
    data = make_data(GRAPH, torch.float32)
    assert data.inputs[0] is data.inputs[1]
    assert not torch.equal(data.index[0], data.index[1])
    assert len(data.leaves) == 4  # h, e, weight, bias


def test_no_gradient_arrives_where_relu_bends():
    case = Case("relu", (Input((64, 8)), Input((64, 8))), 16, "relu")
    data = make_data(case, torch.float32)
    near = torch.nn.functional.linear(data.joined, data.weight, data.bias).abs() < 0.1
    assert near.any()
    assert (data.grad[near] == 0).all()
    assert (data.grad[~near] != 0).all()


@pytest.mark.parametrize("name", shapes.SUITES)
def test_suites(name):
    cases = shapes.suite(name, threads=2)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert all(case.width and case.rows for case in cases)
    assert all(case.origin for case in cases if case.group in ("real", "tiny"))
    for series in {case.series for case in cases} - {""}:
        sizes = [case.size for case in cases if case.series == series]
        assert len(sizes) > 1
        assert sorted(set(sizes)) == sizes


def test_the_suites_hold_what_was_agreed():
    grid = [case for case in shapes.suite("grid") if case.group == "grid"]
    assert len(grid) == 5 * 4 * 4
    assert {case.rows for case in grid} == {1, 32, 1024, 8192, 32768}
    assert {case.out_features for case in grid} == {10, 64, 256, 768}
    real = {case.name: case.describe() for case in shapes.REAL}
    assert real["graph edges"].startswith("2 x (10000, 128)[100000] + (100000, 16) -> 128")
    assert real["DLRM 26x64+64"].startswith("27 x (2048, 64) -> 512")
    assert max(case.rows for case in shapes.suite("quick", threads=2)) <= shapes.QUICK_ROWS
    assert [case.threads for case in shapes.sweeps(6) if case.axis == "threads"] == [1, 2, 4, 6]
    assert [case.threads for case in shapes.sweeps(1) if case.axis == "threads"] == [1]


def test_a_suite_of_some_operators():
    both = shapes.suite("default", operators=("gated_sum", "concat_linear"))
    assert {case.operator for case in both} == {"gated_sum", "concat_linear"}
    assert {case.operator for case in shapes.suite("default")} == set(shapes.OPERATORS)
    assert {case.operator for case in shapes.suite("grid")} == {"concat_linear"}


def test_only_and_unknown_suites():
    assert [case.name for case in shapes.suite("default", only="^critic")] == ["critic 376+17"]
    with pytest.raises(ValueError, match="name is 'huge'"):
        shapes.suite("huge")


@pytest.mark.parametrize("case", shapes.REAL, ids=lambda case: case.name)
@pytest.mark.parametrize("most", [1, 50, 1000])
def test_scaled_keeps_the_kind(case, most):
    small = scaled(case, most)
    assert small.rows <= max(most, 1)
    assert small.rows > most // 3 or small.rows == case.rows
    assert small.widths == case.widths
    if most > 1:
        assert small.kind == case.kind
    assert scaled(case, prod(case.batch)).inputs == case.inputs
