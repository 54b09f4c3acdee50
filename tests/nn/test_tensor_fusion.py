"""mmfast.nn.TensorFusion against its formula, nn.Linear and the figure MultiBench publishes."""

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, randomise
from torch import nn

from mmfast.nn.tensor_fusion import TensorFusion

WIDTHS = [3, 4, 2]


def formula(parameters, row):
    """The sum over all index tuples, in which the last modality's index varies fastest."""
    factors = []
    for m, width in enumerate(WIDTHS):
        x = row.get(m, torch.zeros(width, dtype=torch.float64))
        factors.append([x.new_ones(()), *x])
    products = [a * b * c for a in factors[0] for b in factors[1] for c in factors[2]]
    return parameters["weight"] @ torch.stack(products) + parameters["bias"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("out", [1, 40])
def test_formula(out, way):
    inputs, present = draw(WIDTHS, (2, 3)), draw_present((2, 3), 3, way)
    check_formula(randomise(TensorFusion(WIDTHS, out)), formula, inputs, present)


def test_like_linear_behind_the_outer_product():
    """The parameters of that layer: names, shapes and the values that the seed gives it."""
    torch.manual_seed(3)
    linear = nn.Linear(4 * 5, 6)
    torch.manual_seed(3)
    layer = TensorFusion([3, 4], 6)
    assert list(layer.state_dict()) == list(linear.state_dict())
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    linear.reset_parameters()
    layer.load_state_dict(linear.state_dict())
    x, y = (torch.cat([torch.ones(7, 1), torch.randn(7, width)], 1) for width in (3, 4))
    expected = linear((x[:, :, None] * y[:, None]).flatten(1))
    torch.testing.assert_close(layer([x[:, 1:], y[:, 1:]]), expected)


def test_multibench():
    """Its TensorFusion is the outer product itself, whose norm its tests give for this seed."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 2) for _ in range(2)]
    layer = TensorFusion([2, 2], 9, bias=False)
    layer.load_state_dict({"weight": torch.eye(9)})
    found = layer(inputs)
    assert found.shape == (1, 2, 9)
    assert found.norm().item() == pytest.approx(5.0617828369140625, rel=1e-6)


def test_mapping_and_repr():
    layer = TensorFusion({"image": 3, "text": 4}, 5, bias=False)
    inputs = {"text": torch.randn(6, 4), "image": torch.randn(6, 3)}
    assert torch.equal(layer(inputs), layer([inputs["image"], inputs["text"]]))
    assert repr(layer) == (
        "TensorFusion(in_features={'image': 3, 'text': 4}, out_features=5, bias=False)"
    )


def test_device_and_dtype():
    assert TensorFusion([3, 4], 5, device="meta").weight.is_meta
    layer = TensorFusion([3, 4], 5, dtype=torch.bfloat16)
    found = layer([torch.ones(2, 3).bfloat16(), torch.ones(2, 4).bfloat16()])
    assert found.dtype == torch.bfloat16


def test_wrong_arguments():
    with pytest.raises(ValueError, match="out_features is -1"):
        TensorFusion([3, 4], -1)
    layer = TensorFusion([3, 4], 5)
    with pytest.raises(ValueError, match=r"last sizes \[4, 3\]; in_features says \[3, 4\]"):
        layer([torch.ones(2, 4), torch.ones(2, 3)])
    with pytest.raises(ValueError, match="batch shapes of inputs do not broadcast"):
        layer([torch.ones(2, 3), torch.ones(3, 4)])
