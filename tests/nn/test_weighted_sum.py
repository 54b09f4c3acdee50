"""mmfast.nn.WeightedSum against its formula."""

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, projected, randomise
from torch import nn

from mmfast.nn.weighted_sum import WeightedSum, softmax_present

KINDS = ["modality", "feature", "softmax"]
WIDTHS = {"equal": [4, 4, 4], "projected": [3, 4, 6], "one": [5], "two of five": [4, 2, 4, 4, 1]}


def formula(kind, features):
    def weighted(p, row):
        weight = p["weight"]
        if kind == "softmax" and row:
            total = sum(weight[m].exp() for m in row)
            weight = {m: weight[m].exp() / total for m in row}
        start = torch.zeros(features, dtype=torch.float64)
        return sum((weight[m] * projected(p, m, x) for m, x in row.items()), start)

    return weighted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_formula(kind, widths, way):
    layer = randomise(WeightedSum(WIDTHS[widths], 4, weights=kind))
    inputs = draw(WIDTHS[widths], (3, 5))
    present = draw_present((3, 5), len(inputs), way)
    check_formula(layer, formula(kind, 4), inputs, present)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_mean(kind):
    inputs = draw([4, 4, 4], (6,))
    layer = WeightedSum([4, 4, 4], 4, weights=kind).double()
    torch.testing.assert_close(layer(inputs), torch.stack(inputs).mean(0))
    with torch.no_grad():
        layer.weight.fill_(9.0)
    layer.reset_parameters()
    torch.testing.assert_close(layer(inputs), torch.stack(inputs).mean(0))


def test_softmax_starts_as_the_mean_of_the_present():
    inputs = draw([4, 4, 4], (6,))
    layer = WeightedSum([4, 4, 4], 4, weights="softmax").double()
    found = layer(inputs, torch.tensor([True, False, True]))
    torch.testing.assert_close(found, (inputs[0] + inputs[2]) / 2)


def test_softmax_of_distant_logits():
    """A modality whose weight is next to nothing still has all of it when it is alone."""
    layer = WeightedSum([4, 4], 4, weights="softmax")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([200.0, -200.0]))
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(layer([x, y], torch.tensor([[False, True], [True, True]]))[0], y[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_softmax_present():
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    present = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    found = softmax_present(logits, present)
    odds = torch.tensor([1.0, 3.0]).softmax(0)
    expected = torch.tensor([[odds[0], 0, odds[1]], [0, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(found, expected)
    with torch.autograd.detect_anomaly(check_nan=True):
        (softmax_present(logits, present) * torch.randn(3, 3)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("project", "kinds"),
    [(None, [nn.Linear, nn.Identity]), (True, [nn.Linear, nn.Linear])],
)
def test_what_is_projected(project, kinds):
    layer = WeightedSum([3, 4], 4, project=project)
    assert [type(x) for x in layer.projections] == kinds


def test_no_projection():
    layer = WeightedSum([4, 4], 4, project=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    with pytest.raises(
        ValueError, match=r"in_features holds \[3, 4\] but out_features is 4.*equal"
    ):
        WeightedSum([3, 4], 4, project=False)


def test_parameters():
    shapes = {kind: WeightedSum([4, 4], 4, weights=kind).weight.shape for kind in KINDS}
    assert shapes == {"modality": (2,), "feature": (2, 4), "softmax": (2,)}


@pytest.mark.parametrize("weights", ["rows", "", None])
def test_constructor_refuses(weights):
    with pytest.raises(ValueError, match=r"weights is .*modality, feature, softmax"):
        WeightedSum([4, 4], 4, weights=weights)


def test_repr():
    assert repr(WeightedSum([4, 4], 4, weights="feature")).startswith(
        "WeightedSum(\n  in_features=[4, 4], out_features=4, weights='feature'\n"
    )
