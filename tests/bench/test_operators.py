"""The operators beside concat_linear: cases, peers and goals."""

import math

import pytest
import torch

from mmfast.bench import operator_peers, operator_shapes, peers, shapes
from mmfast.bench import run as bench
from mmfast.bench.goals import goals
from mmfast.bench.operator_cases import make_operator_data, scaled_operator
from mmfast.bench.records import Result

EVERY = [*operator_shapes.REAL, *operator_shapes.TINY]
FAST = bench.Settings(
    modes=bench.MODES, dtypes=("float32",), turns=3, turn_s=1e-4, compile=(), memory=False
)


def small(operator, rows=6):
    """A case of the operator, cut to few rows."""
    return scaled_operator(next(x for x in EVERY if x.operator == operator), rows)


def results(name, data, gradients=True):
    return peers.results(peers.bind(name, data), data, gradients=gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_peers_agree_on_every_shape(case, dtype):
    data = make_operator_data(scaled_operator(case, 4), dtype)
    expected = results("eager", data)
    for name in operator_peers.PEERS[case.operator]:
        peers.check(name, results(name, data), expected, dtype)
        peers.check(name, results(name, data, gradients=False), expected[:1], dtype)


def test_compile_agrees():
    data = make_operator_data(small("gated_sum"), torch.float32)
    torch._dynamo.reset()
    peers.check("compile", results("compile", data), results("eager", data), torch.float32)


def formula(case, tensors):
    """Element by element from the definition, as far as that is short."""
    if case.operator == "weighted_sum":
        *inputs, weights = tensors
        return torch.stack([w * x for w, x in zip(weights, inputs, strict=True)]).sum(0)
    if case.operator == "attention_pool":
        *inputs, query = tensors
        rows = []
        for row in zip(*inputs, strict=True):
            shares = [math.exp(float(query @ x) / math.sqrt(len(query))) for x in row]
            rows.append(sum(share * x for share, x in zip(shares, row, strict=True)) / sum(shares))
        return torch.stack(rows)
    if case.operator == "gated_sum":
        first, second, gate = tensors
        share = 1 / (1 + (-gate).exp())
        return share * first.tanh() + (1 - share) * second.tanh()
    if case.operator == "rank_product":
        a, b, c, weights = tensors
        return torch.einsum("brd,brd,brd,r->bd", a, b, c, weights)
    if case.operator == "multi_source_attention":
        query, k1, k2, v1, v2 = tensors
        scores = [torch.einsum("bhqe,bhke->bhqk", query, k).exp() for k in (k1 / 8, k2 / 8)]
        total = sum(score.sum(-1, keepdim=True) for score in scores)
        return (scores[0] @ v1 + scores[1] @ v2) / total
    if case.operator == "tensor_fusion":
        *inputs, weight, bias = tensors
        one = torch.ones(len(inputs[0]), 1, dtype=torch.float64)
        a, b, c = (torch.cat((one, x), 1) for x in inputs)
        cube = weight.view(len(weight), a.shape[1], b.shape[1], c.shape[1])
        return torch.einsum("nijk,zi,zj,zk->zn", cube, a, b, c) + bias
    a, b = (x / x.norm(dim=1, keepdim=True) for x in tensors)
    shares = (a @ b.T / 0.07).exp()
    right = shares.diagonal()
    return -((right / shares.sum(0)).log() + (right / shares.sum(1)).log()).mean() / 2


@pytest.mark.parametrize("operator", operator_peers.PEERS)
def test_the_reference_is_the_formula(operator):
    case = small(operator)
    data = make_operator_data(case, torch.float64)
    tolerance = 1e-5 if operator == "contrastive_loss" else 1e-10  # eager's is in float32
    with torch.no_grad():
        expected = formula(case, data.tensors)
    (found,) = results("eager", data, gradients=False)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_a_case_says_what_its_tensors_are(case):
    case = scaled_operator(case, 5)
    data = make_operator_data(case, torch.float32)
    assert [x.shape for x in data.tensors] == [x.shape for x in case.tensors]
    assert case.rows == len(data.tensors[0]) == min(5, case.rows)
    with torch.no_grad():
        result = peers.bind("eager", data).forward()
    assert (result.shape, result.shape) == (data.grad.shape, case.result)
    given = 4 * sum(x.numel() for x in data.tensors)
    assert case.moved_bytes(4, "forward") == given + result.nbytes
    assert case.moved_bytes(4, "both") == 3 * given + 2 * result.nbytes
    assert case.written("both") == [result.numel(), *(x.numel() for x in data.tensors)]
    assert case.rows * case.out_features == result.numel() or case.result == ()
    assert str(tuple(result.shape)) in case.describe()
    assert case.flops("both") == 3 * case.flops("forward") > 0
    assert case.needed_bytes(4, "both") > given


def test_shapes_in_words():
    case = small("weighted_sum")
    assert case.describe() == "3 x (6, 768) + (3,) -> (6, 768)"
    assert (case.width, case.out_features) == (3 * 768, 768)


@pytest.mark.parametrize("operator", operator_peers.PEERS)
def test_every_peer_in_every_mode(operator):
    case = small(operator)
    found = bench.measure(case, "float32", FAST)
    assert [m.mode for m in found] == list(bench.MODES)
    for m in found:
        assert list(m.peers) == ["copy", *operator_peers.PEERS[operator]]
        assert m.refused == {}
        assert (m.operator, m.rows, m.shape) == (operator, 6, case.describe())


def test_the_copy_moves_what_must_be_moved():
    data = make_operator_data(small("rank_product"), torch.float32)
    for mode in bench.MODES:
        copies = bench.copy_step(data, mode)()
        assert len(copies) == len(data.case.written(mode))
        moved = 2 * sum(copy.nbytes for copy in copies)
        assert abs(moved - data.case.moved_bytes(4, mode)) <= 8 * len(copies)


def test_a_wrong_mmfast_is_refused(monkeypatch):
    wrong = {**operator_peers.PEERS["gated_sum"], "mmfast": lambda case: lambda *x: x[0] * 2}
    monkeypatch.setattr(operator_peers, "PEERS", {**operator_peers.PEERS, "gated_sum": wrong})
    m, *_ = bench.measure(small("gated_sum"), "float32", FAST)
    assert "mmfast" not in m.peers
    assert "differs from eager's" in m.refused["mmfast"]


def test_who_takes_part():
    case = small("attention_pool")
    assert peers.available(case, "cpu", compile=False) == ["mmfast", "eager", "by hand"]
    assert peers.available(case, "cpu", compile=True)[-1] == "compile"
    assert peers.available(case, "cuda", compile=True)[-1] == "max-autotune"


def named(*measurements):
    return {goal.name: goal for goal in goals(measurements)}


def test_large_and_tiny_shapes_of_memory_bound_operators(measurement):
    times = {"copy": [0.8], "eager": [2.0], "compile": [1.6], "mmfast": [1.0]}
    large = {"operator": "gated_sum", "rows": 8192, "width": 3 * 512}
    found = named(
        measurement(times, **large),
        measurement({**times, "mmfast": [0.5]}, **large, case="fast"),
        measurement({**times, "mmfast": [50.0]}, **{**large, "rows": 8}),
        measurement({"mmfast": [3.0], "eager": [2.0]}, operator="gated_sum", group="tiny"),
    )
    assert {name: (round(g.value, 6), g.met) for name, g in found.items()} == {
        "gated_sum, forward: copy / mmfast": (0.8, True),
        "gated_sum, forward: eager / mmfast": (2.0, False),
        "gated_sum, forward: compile / mmfast": (1.6, True),
        "gated_sum, tiny shapes: mmfast / best peer": (1.5, False),
    }


def test_time_and_memory_of_attention_and_tensor_fusion(measurement):
    attention = measurement({"mmfast": [1.1], "eager": [1.0]}, operator="multi_source_attention")
    attention.peers["mmfast"] = Result([1.1], 90)
    attention.peers["eager"] = Result([1.0], 100)
    fusion = measurement({"mmfast": [1.0], "eager": [5.0]}, operator="tensor_fusion")
    fusion.peers["mmfast"] = Result([1.0], 20)
    fusion.peers["eager"] = Result([5.0], 100)
    found = named(attention, fusion)
    assert {name: (round(g.value, 6), g.met) for name, g in found.items()} == {
        "multi_source_attention: mmfast / concat + SDPA": (1.1, False),
        "multi_source_attention: mmfast / concat + SDPA, peak memory": (0.9, True),
        "tensor_fusion: outer product / mmfast": (5.0, True),
        "tensor_fusion: mmfast / outer product, peak memory": (0.2, False),
    }


@pytest.mark.parametrize("power", [1, 2])
def test_the_power_with_which_memory_grows(measurement, power):
    runs = []
    for pairs in (100, 50, 400):
        m = measurement({"mmfast": [1.0]}, operator="contrastive_loss", rows=pairs)
        m.peers["mmfast"] = Result([1.0], 7 * pairs**power)
        runs.append(m)
    (goal,) = goals(runs)
    assert goal.value == pytest.approx(power)
    assert goal.met == (power == 1)


def test_operators_have_cases_of_both_kinds():
    assert set(shapes.OPERATORS) == {"concat_linear", *(case.operator for case in EVERY)}
    assert all(case.origin for case in EVERY)
    quick = shapes.suite("quick")
    assert {case.operator for case in quick} == set(shapes.OPERATORS)
