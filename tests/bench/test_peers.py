"""Peers: all compute the same, and one that does not is not timed."""

import pytest
import torch

from mmfast.bench import peers, shapes
from mmfast.bench.cases import Case, Input, scaled
from mmfast.bench.data import make_data

PAIR = Case("pair", (Input((16, 8)), Input((16, 4))), 6)
EVERY = [*shapes.REAL, *shapes.TINY]


def run(name, data, gradients=True):
    return peers.results(peers.bind(name, data), data, gradients=gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_peers_agree_on_every_shape(case, dtype):
    data = make_data(scaled(case, 24), dtype)
    expected = run("eager", data)
    for name in ("linear", "mmfast", "split"):
        peers.check(name, run(name, data), expected, dtype)
        peers.check(name, run(name, data, gradients=False), expected[:1], dtype)


@pytest.mark.parametrize("activation", peers.ACTIVATIONS)
@pytest.mark.parametrize("name", ["linear", "mmfast", "split"])
def test_peers_agree_on_every_activation(name, activation):
    data = make_data(Case("", PAIR.inputs, 6, activation), torch.float32)
    peers.check(name, run(name, data), run("eager", data), torch.float32)


def test_compile_agrees():
    case = Case("tokens", (Input((2, 5, 4)), Input((2, 1, 3))), 6)
    data = make_data(case, torch.float32)
    torch._dynamo.reset()
    peers.check("compile", run("compile", data), run("eager", data), torch.float32)


def test_split_picks_first_where_the_table_is_the_larger():
    case = Case("", (Input((500, 4), index=(9,)), Input((9, 3))), 5)
    data = make_data(case, torch.float32)
    peers.check("split", run("split", data), run("eager", data), torch.float32)


def test_the_reference_is_the_concatenation():
    data = make_data(PAIR, torch.float64)
    result, *gradients = run("eager", data)
    joined = torch.cat(data.inputs, -1)
    assert torch.allclose(result, joined @ data.weight.T + data.bias)
    wanted = data.grad @ data.weight
    assert torch.allclose(torch.cat(gradients[:2], -1), wanted)
    assert torch.allclose(gradients[2], data.grad.T @ joined)


@pytest.mark.parametrize("dtype", peers.TOLERANCE)
def test_one_wrong_element_is_seen(dtype):
    data = make_data(PAIR, dtype)
    expected = run("eager", data)
    for place in range(len(expected)):
        found = [x.clone() for x in expected]
        found[place].view(-1)[-1] += 1
        what = "result" if place == 0 else f"gradient {place} of 4"
        with pytest.raises(peers.PeerDisagreesError, match=f"wrong: the {what} differs"):
            peers.check("wrong", found, expected, dtype)


def test_nan_wrong_shape_and_dtype_are_seen():
    data = make_data(PAIR, torch.float32)
    (expected,) = run("eager", data, gradients=False)
    for wrong in (expected * float("nan"), expected[:1], expected.double()):
        with pytest.raises(peers.PeerDisagreesError):
            peers.check("wrong", [wrong], [expected], torch.float32)


def test_who_takes_part():
    few = Case("", PAIR.inputs, 6)
    assert peers.available(few, "cpu", compile=False) == ["mmfast", "eager", "split"]
    assert peers.available(few, "cpu", compile=True)[-1] == "compile"
    assert "max-autotune" in peers.available(few, "cuda", compile=True)
    assert "max-autotune" not in peers.available(few, "cuda", compile=False)


def test_tiled_matmul_takes_part_where_it_can(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name == "xformers")
    tokens = Case("", (Input((2, 5, 4)), Input((2, 1, 3))), 6)
    many = Case("", PAIR.inputs * 2, 6)
    taking_part = [c for c in (PAIR, tokens, many) if "tiled_matmul" in _cuda_peers(c)]
    assert taking_part == [PAIR]
    assert "tiled_matmul" not in peers.available(PAIR, "cpu", compile=False)


def _cuda_peers(case):
    return peers.available(case, "cuda", compile=False)
