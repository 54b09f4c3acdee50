"""mmfast.nn.LateFusion against its formula."""

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, randomise
from torch import nn

from mmfast.nn.late import LateFusion

WIDTHS = [4, 3, 2]


def formula(out):
    def average(p, row):
        if not row:
            return torch.zeros(out, dtype=torch.float64)
        logits = {m: p[f"heads.{m}.weight"] @ x + p[f"heads.{m}.bias"] for m, x in row.items()}
        if "scores" not in p:
            return sum(logits.values()) / len(logits)
        odds = {m: p["scores"][m].exp() for m in row}
        return sum(odds[m] * logits[m] for m in row) / sum(odds.values())

    return average


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [(7,), (2, 3)], ids=str)
def test_formula(batch, weighted, way):
    layer = randomise(LateFusion(WIDTHS, 5, weighted=weighted))
    check_formula(layer, formula(5), draw(WIDTHS, batch), draw_present(batch, 3, way))


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_broadcast(weighted):
    layer = randomise(LateFusion(WIDTHS, 5, weighted=weighted))
    inputs = [*draw([4], (2, 3)), *draw([3], (2, 1)), *draw([2], ())]
    check_formula(layer, formula(5), inputs, draw_present((2, 3), 3))


def test_starts_as_the_mean():
    heads = [nn.Linear(4, 5), nn.Linear(3, 5)]
    inputs = [torch.randn(6, 4), torch.randn(6, 3)]
    expected = (heads[0](inputs[0]) + heads[1](inputs[1])) / 2
    for weighted in (False, True):
        layer = LateFusion([4, 3], 5, weighted=weighted)
        for ours, theirs in zip(layer.heads, heads, strict=True):
            ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(layer(inputs), expected)


def test_distant_scores():
    """A modality whose score is next to nothing still decides alone where it is alone."""
    layer, x = LateFusion([4, 3], 5, weighted=True), torch.randn(6, 3)
    with torch.no_grad():
        layer.scores.copy_(torch.tensor([200.0, -200.0]))
    found = layer([torch.randn(6, 4), x], torch.tensor([False, True]))
    torch.testing.assert_close(found, layer.heads[1](x))


def test_reset_parameters():
    layer = LateFusion([4, 3], 5, weighted=True)
    torch.manual_seed(1)
    layer.reset_parameters()
    first = [p.clone() for p in layer.parameters()]
    randomise(layer)
    torch.manual_seed(1)
    layer.float().reset_parameters()
    for a, b in zip(first, layer.parameters(), strict=True):
        assert torch.equal(a, b)
    assert layer.scores.count_nonzero() == 0


def test_mapping_repr_and_dtype():
    layer = LateFusion({"image": 4, "text": 3}, 5, weighted=True, dtype=torch.bfloat16)
    inputs = {"text": torch.randn(6, 3).bfloat16(), "image": torch.randn(6, 4).bfloat16()}
    found = layer(inputs)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, layer([inputs["image"], inputs["text"]]))
    assert "in_features={'image': 4, 'text': 3}, out_features=5, weighted=True" in repr(layer)
    assert list(layer.state_dict()) == [
        "scores",
        "heads.0.weight",
        "heads.0.bias",
        "heads.1.weight",
        "heads.1.bias",
    ]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="in_features is empty"):
        LateFusion([], 5)
    layer = LateFusion([4, 3], 5)
    with pytest.raises(ValueError, match=r"last sizes \[3, 4\]"):
        layer([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(ValueError, match="batch shapes of inputs do not broadcast"):
        layer([torch.ones(2, 4), torch.ones(3, 3)])
