"""What fusions say of how much each modality counts, found out from their results alone."""

import pytest
import torch
from fusion_checks import WAYS, draw, draw_present, randomise

from mmfast.nn import create_fusion

BATCH, FEATURES = (2, 5), 4
PROJECTED, HEADS = "projections", "heads"
BY_LINEAR_LAYERS = {
    "attention": ("attention", {}, PROJECTED),
    "gated": ("gated", {}, PROJECTED),
    "late": ("late", {}, HEADS),
    "late, weighted": ("late", {"weighted": True}, HEADS),
    "weighted sum": ("weighted_sum", {"project": True}, PROJECTED),
    "by feature": ("weighted_sum", {"weights": "feature", "project": True}, PROJECTED),
    "by softmax": ("weighted_sum", {"weights": "softmax", "project": True}, PROJECTED),
}


def weight_of(layer, layers, m, inputs, present):
    """The result where modality m gives 1 in every feature and the others 0."""
    with torch.no_grad():
        for k, one in enumerate(getattr(layer, layers)):
            one.weight.zero_()
            one.bias.fill_(30.0 if k == m else 0.0)  # whose tanh is 1 too
    result = layer(inputs, present)
    scale = 1.0 if type(layer).__name__ == "GatedFusion" else 30.0
    return result.mean(-1) / scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", [[3, 5], [4, 2, 6]], ids=str)
@pytest.mark.parametrize("case", BY_LINEAR_LAYERS)
def test_weights_are_what_multiplies(case, widths, way):
    name, options, layers = BY_LINEAR_LAYERS[case]
    layer = randomise(create_fusion(name, widths, FEATURES, **options))
    inputs, present = draw(widths, BATCH), draw_present(BATCH, len(widths), way)
    found = layer.modality_weights(inputs, present)
    assert found.shape == (*BATCH, len(widths))
    expected = [weight_of(layer, layers, m, inputs, present) for m in range(len(widths))]
    torch.testing.assert_close(found, torch.stack(expected, -1))
    if present is not None:
        assert not found[~present.expand_as(found)].any()


@pytest.mark.parametrize("way", WAYS)
def test_those_of_an_attention_pool_are_the_mean_over_its_heads(way):
    layer = randomise(create_fusion("attention_pool", [3, 4, 6], FEATURES, num_heads=2))
    inputs, present = draw([3, 4, 6], BATCH), draw_present(BATCH, 3, way)
    _, weights = layer(inputs, present, return_weights=True)
    found = layer.modality_weights(inputs, present)
    torch.testing.assert_close(found, (weights[..., 0, :] + weights[..., 1, :]) / 2)


def test_what_is_absent_may_hold_anything():
    for name in ("attention", "attention_pool", "gated", "late", "weighted_sum"):
        layer = randomise(create_fusion(name, [3, 5], FEATURES))
        x, y = draw([3, 5], (4,))
        present = torch.tensor([True, False])
        found = layer.modality_weights([x, y.fill_(torch.nan)], present)
        assert found.isfinite().all(), name
        assert (found[:, 1] == 0).all(), name
