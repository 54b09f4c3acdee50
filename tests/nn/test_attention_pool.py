"""AttentionPool and AttentionFusion against their formulas."""

import math

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, projected, randomise
from torch import nn

from mmfast.nn.attention_pool import AttentionFusion, AttentionPool

WIDTHS = [[6, 6, 6], [3, 6, 5], [6], [2, 6, 6, 1, 6]]


def softmax(scores):
    total = sum(score.exp() for score in scores.values())
    return {m: score.exp() / total for m, score in scores.items()}


def pool(heads):
    def formula(p, row):
        size = 6 // heads
        h = {m: projected(p, m, x) for m, x in row.items()}
        parts = []
        for i in range(heads):
            part = slice(i * size, (i + 1) * size)
            scores = {m: (p["query"][part] * x[part]).sum() / math.sqrt(size) for m, x in h.items()}
            start = torch.zeros(size, dtype=torch.float64)
            parts.append(sum((a * h[m][part] for m, a in softmax(scores).items()), start))
        return torch.cat(parts)

    return formula


def attention(widths):
    def formula(p, row):
        joint = [row.get(m, torch.zeros(k, dtype=torch.float64)) for m, k in enumerate(widths)]
        logits = p["attention.weight"] @ torch.cat(joint) + p["attention.bias"]
        weights = softmax({m: logits[m] for m in row})
        start = torch.zeros(6, dtype=torch.float64)
        return sum((a * projected(p, m, row[m]) for m, a in weights.items()), start)

    return formula


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_pool_formula(widths, heads, way):
    layer = randomise(AttentionPool(widths, 6, num_heads=heads))
    present = draw_present((2, 5), len(widths), way)
    check_formula(layer, pool(heads), draw(widths, (2, 5)), present)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_attention_fusion_formula(widths, way):
    layer = randomise(AttentionFusion(widths, 6))
    present = draw_present((2, 5), len(widths), way)
    check_formula(layer, attention(widths), draw(widths, (2, 5)), present)


def test_pool_starts_as_the_mean_of_the_present():
    inputs = draw([6, 6, 6], (4,))
    layer = AttentionPool([6, 6, 6], 6, num_heads=3).double()
    torch.testing.assert_close(layer(inputs), torch.stack(inputs).mean(0))
    found = layer(inputs, torch.tensor([True, False, True]))
    torch.testing.assert_close(found, (inputs[0] + inputs[2]) / 2)
    with torch.no_grad():
        layer.query.fill_(3.0)
    layer.reset_parameters()
    torch.testing.assert_close(layer(inputs), torch.stack(inputs).mean(0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", [None, 3])
def test_return_weights(heads, way):
    """They are those of the sum, zero where a modality is absent, one together elsewhere."""
    widths = [6, 6, 6]
    if heads is None:
        layer = randomise(AttentionFusion(widths, 6))
    else:
        layer = randomise(AttentionPool(widths, 6, num_heads=heads))
    inputs = draw(widths, (5, 2))
    present = draw_present((5, 2), 3, way)
    found, weights = layer(inputs, present, return_weights=True)
    torch.testing.assert_close(found, layer(inputs, present))
    assert weights.shape == ((5, 2, 3) if heads is None else (5, 2, heads, 3))
    there = torch.ones(5, 2, 3).bool() if present is None else present.expand(5, 2, 3)
    full = there if heads is None else there.unsqueeze(-2).expand(5, 2, heads, 3)
    assert (weights[~full] == 0).all()
    torch.testing.assert_close(weights.sum(-1), full.any(-1).double())
    values = [layer.projections[m](x) for m, x in enumerate(inputs)]
    per_head = weights.unsqueeze(-2) if heads is None else weights
    stacked = torch.stack(values, -1).unflatten(-2, (heads or 1, -1))
    torch.testing.assert_close((stacked * per_head.unsqueeze(-2)).sum(-1).flatten(-2), found)


def test_torchmultimodal():
    """AttentionFusionModule, whose inputs are in the order of their names, with its parameters."""
    scores = nn.Linear(8, 2).double()
    linears = nn.ModuleDict({"image": nn.Linear(3, 6), "text": nn.Linear(5, 6)}).double()
    image, text = draw([3, 5], (7,))
    weights = scores(torch.cat([image, text], -1)).softmax(-1)
    expected = weights[:, :1] * linears["image"](image) + weights[:, 1:] * linears["text"](text)
    layer = AttentionFusion({"image": 3, "text": 5}, 6).double()
    layer.attention.load_state_dict(scores.state_dict())
    layer.projections.load_state_dict(nn.ModuleList(linears.values()).state_dict())
    found = layer({"text": text, "image": image})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("heads", [4, 0, 2.0, 7])
def test_heads_are_refused(heads):
    with pytest.raises(ValueError, match=f"num_heads is {heads}; it must"):
        AttentionPool([6, 6], 6, num_heads=heads)


def test_repr():
    layer = AttentionPool([6, 6], 6, num_heads=2)
    assert layer.extra_repr() == "in_features=[6, 6], out_features=6, num_heads=2"
