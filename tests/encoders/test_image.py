"""The image encoders, beyond the contract."""

import pytest
import torch

from mmfast.encoders import ImageConvNet, ImageTransformer


def images(count, *size):
    return [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(count)]


def batch_of(encoder, raws):
    return encoder.collate([None if raw is None else encoder.preprocess(raw) for raw in raws])


@pytest.mark.parametrize("channels", [[8], [4, 6], [4, 8, 16]])
def test_each_stage_but_the_last_halves_the_resolution(channels):
    encoder = ImageConvNet(channels, image_size=24).eval()
    maps = encoder.stages(torch.randn(1, 3, 24, 24))
    side = 24 >> (len(channels) - 1)
    assert maps.shape == (1, channels[-1], side, side)
    assert encoder.spec.out_dim == channels[-1]


def test_preprocess_maps_bytes_to_minus_one_to_one():
    encoder = ImageConvNet(image_size=4)
    for byte, expected in ((0, -1.0), (255, 1.0)):
        assert encoder.preprocess(torch.full((3, 4, 4), byte).byte()).eq(expected).all()


def test_all_channels_and_places_count():
    encoder = ImageConvNet([4, 8], image_size=12).eval()
    batch = batch_of(encoder, images(1, 12, 12))
    batch["image"].requires_grad_()
    encoder(batch).values.square().sum().backward()
    assert batch["image"].grad.ne(0).float().mean() > 0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda output: ImageConvNet([4, 8], image_size=(12, 8), output=output),
        lambda output: ImageTransformer(
            image_size=(12, 8), patch=4, dim=8, depth=1, heads=2, output=output
        ),
    ],
)
def test_tokens_are_the_places_and_their_mean_is_pooled(make):
    pooled, tokens = make("pooled").eval(), make("tokens").eval()
    tokens.load_state_dict(pooled.state_dict())
    batch = batch_of(pooled, [*images(2, 12, 8), None])
    found = tokens(batch)
    torch.testing.assert_close(found.values.mean(dim=1), pooled(batch).values)
    assert found.mask.all(dim=1).tolist() == [True, True, False]


def test_batch_norm_learns_from_images_alone():
    """Where images are missing, its statistics are those of the others, not of blanks."""
    torch.manual_seed(0)
    encoder, other = (ImageConvNet([4], image_size=8) for _ in range(2))
    other.load_state_dict(encoder.state_dict())
    raws = images(2, 8, 8)
    encoder(batch_of(encoder, [raws[0], None, raws[1], None]))
    other(batch_of(other, [raws[0], raws[0], raws[1], raws[1]]))
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key])


def test_transformer_tells_places_apart():
    for positions in ("learned", "sinusoidal"):
        encoder = ImageTransformer(
            image_size=8, patch=4, dim=8, depth=1, heads=2, positions=positions, output="tokens"
        ).eval()
        flat = torch.full((3, 8, 8), 100, dtype=torch.uint8)
        tokens = encoder(batch_of(encoder, [flat])).values[0]
        apart = torch.cdist(tokens, tokens) + torch.eye(4)
        assert apart.min() > 1e-3, positions


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ImageConvNet, {"channels": []}, r"channels is \[\]; it must be a list of one or more"),
        (ImageConvNet, {"channels": [8, 0]}, "channels"),
        (ImageConvNet, {"channels": [4] * 5, "image_size": 8}, "need at least 16 pixels"),
        (ImageConvNet, {"image_size": [1, 2, 3]}, "height and width"),
        (ImageConvNet, {"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        (ImageConvNet, {"output": "token"}, "output is 'token'; it must be one of pooled, tokens"),
        (ImageConvNet, {"std": [1.0, 1.0, 0.0]}, "std above 0"),
        (ImageTransformer, {"image_size": 20, "patch": 8}, "patch is 8; it must divide image_size"),
        (ImageTransformer, {"dim": 10, "heads": 4}, "heads is 4; it must divide dim"),
        (ImageTransformer, {"dim": 6, "heads": 2}, "a multiple of 4"),
        (ImageTransformer, {"positions": "rotary"}, "positions is 'rotary'"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_shift_moves_training_images_alone_and_repeats_the_border():
    encoder = ImageConvNet((4,), image_size=6, shift=2, mean=(0, 0, 0), std=(1, 1, 1))
    raw = torch.arange(108, dtype=torch.uint8).view(3, 6, 6)
    still = encoder.eval().preprocess(raw)
    assert torch.equal(still, encoder.preprocess(raw))
    encoder.train()
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        moved = encoder.preprocess(raw)
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if all(
                torch.equal(
                    moved[:, row, column],
                    still[:, min(5, max(0, row + down)), min(5, max(0, column + right))],
                )
                for row in range(6)
                for column in range(6)
            )
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25
