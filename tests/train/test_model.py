"""The classifier really uses what it is given."""

import pytest
import torch
from torch import nn

from mmfast.train import Examples, MultimodalClassifier, Recipe, evaluate, fit, seeded


class Plain(nn.Module):
    out_dim = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        return torch.relu(self.layer(x))


def halves(count=512, seed=0):
    """Four classes; the image tells one bit of the class, the text the other."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, 3, generator=generator)
    return Examples(
        {"image": image, "text": text}, (image[:, 0] > 0).long() + 2 * (text[:, 1] > 0).long()
    )


def trained(*modalities):
    with seeded(0):
        model = MultimodalClassifier({name: Plain() for name in modalities}, 4, hidden=16)
    fit(model, halves(), halves(seed=1), Recipe(epochs=12, batch_size=32, lr=2e-2), seed=0)
    return model


def test_fused_uses_both_inputs():
    test = halves(seed=2)
    single = [evaluate(trained(name), test).accuracy for name in ("image", "text")]
    model = trained("image", "text")
    assert max(single) < 0.65
    assert evaluate(model, test).accuracy > 0.9
    for name in ("image", "text"):
        blind = {**test.inputs, name: torch.zeros_like(test.inputs[name])}
        assert evaluate(model, Examples(blind, test.labels)).accuracy < 0.65


def test_names_and_not_order_pair_inputs_with_encoders():
    model = MultimodalClassifier({"image": Plain(), "text": Plain()}, 4).eval()
    inputs = halves(5).inputs
    turned = dict(reversed(list(inputs.items())))
    assert model(inputs).equal(model(turned))


def test_it_is_the_formula():
    model = MultimodalClassifier({"image": Plain(), "text": Plain()}, 4, hidden=6).eval()
    x = halves(5).inputs
    codes = torch.cat([model.encoders["image"](x["image"]), model.encoders["text"](x["text"])], -1)
    fusion = model.fusion
    hidden = torch.relu(nn.functional.linear(codes, fusion.weight, fusion.bias))
    torch.testing.assert_close(model(x), model.head(hidden))


def test_no_encoders():
    with pytest.raises(ValueError, match="encoders must name at least one"):
        MultimodalClassifier({}, 4)


def test_an_encoder_without_out_dim_is_named():
    with pytest.raises(TypeError, match=r"encoders\['image'\] must have an int out_dim"):
        MultimodalClassifier({"image": nn.Linear(2, 2)}, 4)
