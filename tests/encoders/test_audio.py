"""The audio encoders, beyond the contract."""

import math

import pytest
import torch

from mmfast.encoders import AudioAutoencoder, AudioConvNet, AudioLSTM
from mmfast.plugins import Waveform

MEL = {"mels": 16, "window": 0.032}
SMALL = {
    AudioConvNet: {"channels": [4, 8], "out_dim": 8},
    AudioLSTM: {"hidden": 4},
    AudioAutoencoder: {"channels": [4, 8], "out_dim": 8},
}


def tone(hertz, seconds=0.3):
    times = torch.arange(round(seconds * 16000)) / 16000
    return Waveform(torch.sin(2 * math.pi * hertz * times), 16000)


def batch_of(encoder, raws):
    return encoder.collate([None if raw is None else encoder.preprocess(raw) for raw in raws])


@pytest.mark.parametrize("kind", SMALL)
def test_max_length_is_the_tokens_of_the_longest_recording(kind):
    for seconds in (0.2, 0.33):
        mel = {**MEL, "max_seconds": seconds}
        encoder = kind(output="tokens", mel=mel, **SMALL[kind]).eval()
        features = encoder(batch_of(encoder, [tone(500, 1.0)]))
        assert features.mask.sum() == features.values.shape[1] == encoder.spec.max_length


@pytest.mark.parametrize("kind", SMALL)
def test_pitch_counts(kind):
    encoder = kind(mel=MEL, **SMALL[kind]).eval()
    values = encoder(batch_of(encoder, [tone(400), tone(420), tone(3000)])).values
    near, far = (values[0] - values[1]).norm(), (values[0] - values[2]).norm()
    assert far > 2 * near


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("train", [False, True])
def test_padding_does_not_matter_in_training_neither(kind, train):
    encoder = kind(output="tokens", mel=MEL, **SMALL[kind]).train(train)
    # Lengths that leave odd numbers of frames at every halving.
    raws = [tone(700, 0.13), tone(900, 0.41), None]
    together = encoder(batch_of(encoder, raws))
    for row, raw in enumerate(raws[:2]):
        alone = encoder(batch_of(encoder, [raw]))
        count = int(together.mask[row].sum())
        assert alone.mask.shape == (1, count)
        torch.testing.assert_close(together.values[row, :count], alone.values[0])


def test_lstm_steps_read_frames_in_order():
    encoder = AudioLSTM(hidden=2, stack=3, mel=MEL)
    frames = encoder.mel(tone(700))
    steps = encoder.preprocess(tone(700))
    count = -(-len(frames) // 3)
    assert steps.shape == (count, 48)
    assert steps.reshape(-1, 16)[: len(frames)].equal(frames)
    assert steps.reshape(-1, 16)[len(frames) :].eq(0).all()


@pytest.mark.parametrize("kind", SMALL)
def test_training_cuts_elsewhere(kind):
    encoder = kind(mel={**MEL, "max_seconds": 0.1}, **SMALL[kind])
    raw = Waveform(torch.randn(16000), 16000)
    encoder.train()
    assert not encoder.preprocess(raw).equal(encoder.preprocess(raw))
    encoder.eval()
    assert encoder.preprocess(raw).equal(encoder.preprocess(raw))


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (AudioConvNet, {"mel": {"mel": 3}}, TypeError, "mel has no option 'mel'; it takes sample"),
        (AudioConvNet, {"channels": 4}, ValueError, "channels is 4; it must be a list"),
        (AudioConvNet, {"output": "all"}, ValueError, "output is 'all'"),
        (AudioLSTM, {"stack": 0}, ValueError, "stack is 0"),
        (AudioAutoencoder, {"out_dim": 0}, ValueError, "out_dim is 0"),
    ],
)
def test_wrong_options_are_named(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options)
