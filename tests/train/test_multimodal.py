"""The model of a configuration: tokens and vectors meet fusions of both kinds."""

import pytest
import torch
from torch import nn

from mmfast.plugins import EncoderSpec, Features
from mmfast.train.config import Fusion
from mmfast.train.multimodal import MultimodalModel


class Given(nn.Module):
    """An encoder whose features are its input."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="features", out_dim=4, output=output)

    def forward(self, batch):
        return Features(batch["values"], batch["mask"])


def model(name, **options):
    encoders = {"a": Given("tokens"), "b": Given("tokens")}
    fusion = Fusion(name=name, out_features=8, options=options)
    return MultimodalModel(encoders, fusion, 3).eval()


def tokens(rows=5, count=6):
    return {"values": torch.randn(rows, count, 4), "mask": torch.rand(rows, count) > 0.3}


def test_a_fusion_of_vectors_gets_the_means_of_tokens():
    torch.manual_seed(0)
    found, inputs = model("concat"), {"a": tokens(), "b": tokens(count=2)}
    inputs["b"]["mask"][:, 0] = True
    rows = []
    for row in range(5):
        means = [x["values"][row, x["mask"][row]].mean(0) for x in inputs.values()]
        rows.append(torch.cat(means))
    expected = found.output(nn.functional.linear(torch.stack(rows), *found.fusion.parameters()))
    torch.testing.assert_close(found(inputs), expected)


@pytest.mark.parametrize("name", ["cross_attention", "sequence"])
def test_a_fusion_that_gives_tokens_must_pool(name):
    inputs = {"a": tokens(), "b": tokens(count=2)}
    assert model(name, num_heads=2, pool=True)(inputs).shape == (5, 3)
    with pytest.raises(ValueError, match=r"a vector per token.*set its option pool to true"):
        model(name, num_heads=2, pool=False)(inputs)
