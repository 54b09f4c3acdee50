"""mmfast.nn.ConcatLinear: a drop-in for nn.Linear behind a concatenation."""

import copy
import io
import pickle

import pytest
import reference
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, randomise
from torch import nn

from mmfast.nn import ConcatLinear


def test_like_linear_behind_concatenation():
    torch.manual_seed(3)
    linear = nn.Linear(8, 6)
    torch.manual_seed(3)
    layer = ConcatLinear([3, 5], 6)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(layer([x, y]), linear(torch.cat([x, y], -1)))


def test_state_dict_moves_both_ways():
    linear, layer = nn.Linear(8, 6), ConcatLinear([3, 5], 6)
    assert list(layer.state_dict()) == list(linear.state_dict()) == ["weight", "bias"]
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.weight, linear.weight)
    nn.Linear(8, 6).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("bias", [False, True])
def test_from_linear_and_back_shares_parameters(bias):
    linear = nn.Linear(8, 6, bias=bias, dtype=torch.float64).eval()
    layer = ConcatLinear.from_linear(linear, {"image": 3, "text": 5}, activation="relu")
    back = layer.to_linear()
    assert layer.weight is linear.weight is back.weight
    assert layer.bias is linear.bias is back.bias
    assert not layer.training
    assert not back.training
    assert (layer.in_features, layer.out_features, layer.activation) == ((3, 5), 6, "relu")
    assert (back.in_features, back.out_features) == (8, 6)
    x = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(back(x), linear(x))
    torch.testing.assert_close(layer({"text": x[:, 3:], "image": x[:, :3]}), torch.relu(linear(x)))


def test_from_linear_draws_no_random_numbers():
    linear = nn.Linear(8, 6)
    state = torch.get_rng_state()
    ConcatLinear.from_linear(linear, [8]).to_linear()
    assert torch.equal(torch.get_rng_state(), state)


def test_from_linear_refuses():
    with pytest.raises(ValueError, match=r"\[3, 4\] add up to 7 but linear\.in_features is 8"):
        ConcatLinear.from_linear(nn.Linear(8, 6), [3, 4])
    with pytest.raises(TypeError, match=r"linear must be a torch\.nn\.Linear, got Conv1d"):
        ConcatLinear.from_linear(nn.Conv1d(8, 6, 1), [3, 5])
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
    with pytest.raises(TypeError, match="got ParametrizedLinear"):
        ConcatLinear.from_linear(parametrized, [3, 5])


def test_mapping():
    layer = ConcatLinear({"image": 3, "text": 5}, 6)
    image, text = torch.randn(4, 3), torch.randn(4, 5)
    ordered = layer([image, text])
    assert torch.equal(layer({"text": text, "image": image}), ordered)
    with pytest.raises(ValueError, match=r"names \['audio', 'image'\].*\['image', 'text'\]"):
        layer({"image": image, "audio": text})
    with pytest.raises(ValueError, match=r"\['image'\].*\['image', 'text'\]"):
        layer({"image": image})
    with pytest.raises(ValueError, match="inputs is a mapping but in_features names no inputs"):
        ConcatLinear([3, 5], 6)({"image": image, "text": text})


def test_swapped_inputs_are_refused():
    """Their widths add up all the same: the function could not know, the module does."""
    layer = ConcatLinear([3, 5], 6)
    with pytest.raises(ValueError, match=r"last sizes \[5, 3\]; in_features says \[3, 5\]"):
        layer([torch.randn(4, 5), torch.randn(4, 3)])
    with pytest.raises(ValueError, match=r"last sizes \[3\]"):
        layer([torch.randn(4, 3)])


@pytest.mark.parametrize("shape", [(), (8,), (2, 8), (2, 5)], ids=str)
@pytest.mark.parametrize("widths", [[3, 5], [5, 5], [8]], ids=str)
def test_a_tensor_is_no_sequence(widths, shape):
    """It could be iterated over: its rows must not pass for inputs, nor confuse the message."""
    with pytest.raises(TypeError, match="inputs must be a sequence of tensors, got Tensor"):
        ConcatLinear(widths, 6)(torch.randn(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 6), "in_features is empty"),
        (([3, -1], 6), "in_features holds -1"),
        (([3, 2.5], 6), "in_features holds 2.5"),
        (([3, True], 6), "in_features holds True"),
        (([3, 5], -6), "out_features is -6"),
        (([3, 5], 6.0), "out_features is 6.0"),
        (([3, 5], 6, True, "swish"), "activation is 'swish'"),
    ],
    ids=str,
)
def test_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConcatLinear(*arguments)


def test_repr():
    layer = ConcatLinear({"image": 3, "text": 5}, 6, bias=False, activation="relu")
    assert repr(layer) == (
        "ConcatLinear(in_features={'image': 3, 'text': 5}, out_features=6, bias=False, "
        "activation='relu')"
    )
    assert repr(ConcatLinear([3, 5], 6)) == (
        "ConcatLinear(in_features=[3, 5], out_features=6, bias=True)"
    )


def test_device_and_dtype():
    assert ConcatLinear([3], 6, device="meta").weight.is_meta
    layer = ConcatLinear([3, 5], 6, dtype=torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert layer([torch.ones(2, 3).bfloat16(), torch.ones(2, 5).bfloat16()]).dtype == torch.bfloat16


def test_copies():
    layer = ConcatLinear({"a": 3, "b": 5}, 6, activation="tanh")
    inputs = {"a": torch.randn(2, 3), "b": torch.randn(2, 5)}
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(other(inputs), layer(inputs))
        assert other.weight is not layer.weight


def test_trains():
    """A regression on two inputs reaches the noise that ordinary least squares reaches."""
    x, y = torch.randn(256, 3), torch.randn(256, 5)
    target = x @ torch.randn(3, 2) + y @ torch.randn(5, 2) + 1.5
    layer = ConcatLinear([3, 5], 2)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = (layer([x, y]) - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 1e-6


def test_unnormalised_weight_is_read_in_forward():
    """Parametrizations and hooks that change the weight before forward take effect."""
    layer = ConcatLinear([3, 5], 6)
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    expected = reference.concat_linear([x, y], layer.weight, layer.bias)
    torch.testing.assert_close(layer([x, y]), expected)


# ----------------------------------------------------------------------------------------- present


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("shapes", [[(4, 3), (4, 3), (4, 3)], [(4, 3), (1, 3), ()]], ids=str)
def test_absent_inputs_count_as_zeros(shapes, activation, way):
    """Inputs that broadcast too: they may be absent in some rows and present in others."""
    widths = [3, 5, 2]

    def formula(p, row):
        zeros = [torch.zeros(width, dtype=torch.float64) for width in widths]
        joint = [row.get(m, zero) for m, zero in enumerate(zeros)]
        return reference.concat_linear(joint, p["weight"], p["bias"], activation)

    layer = randomise(ConcatLinear(widths, 6, activation=activation))
    inputs = [draw([k], shape)[0] for k, shape in zip(widths, shapes, strict=True)]
    check_formula(layer, formula, inputs, draw_present((4, 3), 3, way))


def test_without_any_input_the_bias_remains():
    layer = ConcatLinear([3, 5], 6, activation="tanh")
    nothing = [torch.full((2, 3), torch.nan), torch.full((2, 5), torch.inf)]
    found = layer(nothing, torch.zeros(2, 2).bool())
    torch.testing.assert_close(found, layer.bias.tanh().expand(2, 6))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_absent_entries_of_an_index(compiled):
    """An absent entry may point anywhere, and at a row of NaN, which is there for no other."""
    layer = randomise(ConcatLinear({"node": 3, "other": 3, "edge": 5}, 6, activation="gelu"))
    nodes, edges = torch.randn(4, 3).double(), torch.randn(7, 5).double()
    nodes[2] = torch.nan
    index = [torch.tensor([0, 2, 1, 99, 3, 0, -1]), torch.tensor([1, 1, 2, 3, 0, 0, 3]).int(), None]
    present = torch.rand(7, 3) > 0.3
    present[[1, 3, 6], 0] = False
    present[:, 1] = torch.tensor([True, True, False, True, True, False, True])
    safe = [(index[0] % 4).where(present[:, 0], 0), index[1].long()]

    def formula(nodes, edges, weight, bias):
        parts = [nodes.nan_to_num()[entries] for entries in safe] + [edges]
        parts = [x.where(present[:, i, None], 0) for i, x in enumerate(parts)]
        return reference.concat_linear(parts, weight, bias, "gelu")

    def run(call):
        leaves = [nodes.clone().requires_grad_(), edges.clone().requires_grad_()]
        wanted = [*leaves, layer.weight, layer.bias]
        result = call(*wanted)
        return [result, *torch.autograd.grad(result, wanted, torch.ones_like(result))]

    module = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    found = run(lambda x, e, *_: module([x, x, e], present, index))
    for f, e in zip(found, run(formula), strict=True):
        torch.testing.assert_close(f, e)
    assert not found[1][2].any()


def test_present_and_index_are_checked():
    layer = ConcatLinear({"node": 3, "edge": 5}, 6)
    inputs, present = [torch.randn(2, 3), torch.randn(4, 5)], torch.ones(4, 2).bool()
    index = [torch.tensor([0, 1, 1, 0]), None]
    torch.testing.assert_close(layer(inputs, present, index), layer(inputs, index=index))
    torch.testing.assert_close(
        layer(inputs, present, {"node": index[0]}), layer(inputs, index=index)
    )
    with pytest.raises(IndexError, match=r"index\[0\] holds 2; it must lie in 0 .. 1"):
        layer(inputs, present, [index[0] + 1, None])
    with pytest.raises(ValueError, match=r"present has shape \(3, 2\)"):
        layer(inputs, present[:3], index)
    with pytest.raises(TypeError, match="present must be a bool tensor or None, got list"):
        layer(inputs, index)
