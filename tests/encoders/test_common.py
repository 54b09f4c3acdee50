"""What the encoders share: missing samples, padding, pooling, images."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.encoders.common import masked_mean, pad, pool, read_image, rgb, stack, valid

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def test_stack_fills_the_place_of_a_missing_sample_with_the_others_in_turn():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    values, present = stack([None, a, None, b, None], (2,))
    assert values.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4], [1, 2]]
    assert present.tolist() == [False, True, False, True, False]


def test_stack_without_any_sample_is_zeros():
    values, present = stack([None, None], (2, 3), torch.int64)
    assert values.equal(torch.zeros(2, 2, 3, dtype=torch.int64))
    assert not present.any()
    assert [tensor.shape for tensor in stack([], (2,))] == [(0, 2), (0,)]


def test_pad_keeps_every_sequence_and_its_length():
    values, mask = pad([torch.tensor([1, 2, 3]), None, torch.tensor([4])], dtype=torch.int64)
    assert values.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert [tensor.shape for tensor in pad([None], (5,))] == [(1, 1, 5), (1, 1)]


def test_masked_mean_is_the_mean_of_what_is_valid():
    values = torch.randn(3, 4, 2)
    values[0, 2:] = float("nan")
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    found = masked_mean(values, mask)
    torch.testing.assert_close(found[0], (values[0, 0] + values[0, 1]) / 2)
    assert found[1].eq(0).all()
    torch.testing.assert_close(found[2], values[2].sum(0) / 4)


def test_invalid_vectors_are_zero_and_let_no_gradient_through():
    values = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    features = valid(values, mask)
    assert features.values[~mask].eq(0).all()
    assert features.values[mask].equal(values[mask])
    features.values.sum().backward()
    assert values.grad[~mask].eq(0).all()
    assert values.grad[mask].eq(1).all()
    assert pool(values, mask, "tokens").present.tolist() == [True, False]
    assert pool(values, mask, "pooled").present.tolist() == [True, False]


def test_an_image_of_the_right_size_is_only_scaled():
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (pixels.numpy() / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    found = read_image(pixels, (5, 7), mean, std)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 20), (10, 30), (90, 60)])
def test_resizing_agrees_with_pillow(size):
    """The middle of the image, at the aspect ratio of the result; Pillow's own filter."""
    noise = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    scale = min(48 / size[0], 64 / size[1])
    height, width = round(size[0] * scale), round(size[1] * scale)
    left, top = (64 - width) // 2, (48 - height) // 2
    cropped = image.crop((left, top, left + width, top + height))
    expected = np.array(cropped.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    found = read_image(image, size, *PLAIN) * 255
    assert found.shape == (3, *size)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1.01  # both round


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    pixels = rgb(image)
    assert pixels.shape == (3, 3, 4)
    assert pixels.eq(255).all()


def test_rows_and_columns_keep_their_places():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[1, 2] = (10, 20, 30)
    assert rgb(Image.fromarray(pixels))[:, 1, 2].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (torch.zeros(3, 4, 4), TypeError, r"image is a torch.float32 tensor of shape \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), TypeError, r"must be uint8 \(3, H, W\)"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, "at least one pixel"),
        ("cat.png", TypeError, "image is a str; it must be a PIL image or a uint8 tensor"),
    ],
)
def test_what_is_no_image_is_told(raw, error, message):
    with pytest.raises(error, match=message):
        read_image(raw, (2, 2), *PLAIN)
