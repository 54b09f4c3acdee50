"""The image encoder."""

import pytest
import torch

from mmfast.encoders import SmallConvNet


@pytest.mark.parametrize("channels", [(8,), (4, 6), (4, 8, 16)])
def test_out_dim_is_known_before_forward(channels):
    encoder = SmallConvNet(channels)
    assert encoder.out_dim == channels[-1]
    assert encoder(torch.randn(5, 3, 24, 24)).shape == (5, encoder.out_dim)


def test_preprocess_maps_bytes_to_minus_one_to_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    ready = SmallConvNet.preprocess(images)
    assert ready.dtype == torch.float32
    assert ready[0].eq(-1).all()
    assert ready[1].eq(1).all()


def test_preprocess_refuses_what_is_no_bytes():
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        SmallConvNet.preprocess(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("channels", [(), (8, 0)])
def test_channels_must_be_positive(channels):
    with pytest.raises(ValueError, match="channels"):
        SmallConvNet(channels)


def test_every_parameter_gets_a_gradient():
    encoder = SmallConvNet((4, 8))
    encoder(torch.randn(2, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_all_channels_and_places_count():
    encoder = SmallConvNet((4, 8)).eval()
    images = torch.randn(1, 3, 12, 12, requires_grad=True)
    encoder(images).square().sum().backward()
    assert images.grad.ne(0).float().mean() > 0.9


def test_each_stage_but_the_last_halves_the_resolution():
    encoder = SmallConvNet((4, 8, 16)).eval()
    assert encoder.stages(torch.randn(1, 3, 24, 24)).shape == (1, 16, 6, 6)
