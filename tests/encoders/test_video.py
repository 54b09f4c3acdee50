"""Video frames, beyond the contract."""

import pytest
import torch

from mmfast.encoders import VideoFrames

IMAGE = {"channels": [4, 6], "image_size": 8}


def video(frames):
    return torch.randint(256, (frames, 3, 10, 12), dtype=torch.uint8)


def batch_of(encoder, raws):
    return encoder.collate([None if raw is None else encoder.preprocess(raw) for raw in raws])


def test_pooled_is_the_mean_of_the_frames_as_images():
    encoder = VideoFrames(encoder_options=IMAGE).eval()
    raws = [video(2), None, video(5)]
    found = encoder(batch_of(encoder, raws))
    image = encoder.image
    for row in (0, 2):
        frames = image(image.collate([image.preprocess(frame) for frame in raws[row]])).values
        torch.testing.assert_close(found.values[row], frames.mean(dim=0))
    assert found.mask.tolist() == [True, False, True]


def test_tokens_are_the_frames():
    encoder = VideoFrames(encoder_options=IMAGE, output="tokens").eval()
    found = encoder(batch_of(encoder, [video(2), video(3)]))
    assert found.values.shape == (2, 3, 6)
    assert found.mask.tolist() == [[True, True, False], [True] * 3]


def test_frames_come_from_equal_segments():
    encoder = VideoFrames(encoder_options=IMAGE, max_frames=4).eval()
    raw = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 8, 8)

    def places():
        frames = torch.stack(encoder.preprocess(raw))[:, 0, 0, 0]
        return ((frames + 1) * 127.5).round().int().tolist()

    assert places() == places() == [5, 15, 25, 35]
    encoder.train()
    drawn = torch.tensor([places() for _ in range(200)])
    assert (drawn // 10).eq(torch.arange(4)).all()
    assert all(len(set(column.tolist())) == 10 for column in drawn.T)


def test_a_short_video_is_taken_whole():
    encoder = VideoFrames(encoder_options=IMAGE, max_frames=4)
    for frames in (1, 3, 4):
        assert len(encoder.preprocess(video(frames))) == frames


def test_the_spec_is_that_of_the_image_encoder():
    encoder = VideoFrames(encoder_options=IMAGE, max_frames=4, output="tokens")
    spec, inner = encoder.spec, encoder.image.spec
    assert (spec.modality, spec.output, spec.max_length) == ("video", "tokens", 4)
    for name in ("out_dim", "image_size", "mean", "std", "licence"):
        assert getattr(spec, name) == getattr(inner, name), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "text_hashed"}, "encodes text as pooled features; it must encode images"),
        ({"encoder_options": {"output": "tokens"}}, "encodes image as tokens features"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"encoder": "image_convnets"}, "image_convnet"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VideoFrames(**options)


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ([], ValueError, "video has no frames"),
        ("clip.mp4", TypeError, "video is a str; it must be a sequence of images"),
        (7, TypeError, "video is a int"),
    ],
)
def test_what_is_no_video_is_told(raw, error, message):
    with pytest.raises(error, match=message):
        VideoFrames(encoder_options=IMAGE).preprocess(raw)
