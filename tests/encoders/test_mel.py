"""The audio front end: filter bank, resampler and frames against their definitions."""

import math

import numpy as np
import pytest
import torch

from mmfast.encoders.mel import LogMel, mel_filters, read_waveform, resample
from mmfast.plugins import Waveform

# The example of librosa.mel_frequencies(n_mels=40) in librosa's documentation: Slaney's scale from
# 0 to 11025 Hz.
LIBROSA = """
    0.000 85.317 170.635 255.952 341.269 426.586 511.904 597.221 682.538 767.855 853.173 938.490
    1024.856 1119.114 1222.042 1334.436 1457.167 1591.187 1737.532 1897.337 2071.840 2262.393
    2470.470 2697.686 2945.799 3216.731 3512.582 3835.643 4188.417 4573.636 4994.285 5453.621
    5955.205 6502.920 7101.009 7754.107 8467.272 9246.028 10096.408 11025.000
"""


def sine(hertz, rate, seconds=1.0, amplitude=1.0):
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hertz * times)).float()


def test_slaney_filters_are_triangles_on_librosas_frequencies():
    corners = [float(word) for word in LIBROSA.split()]
    fft = 22050  # bins of 1 Hz
    filters = mel_filters(38, fft, 22050)
    hertz = np.arange(fft // 2 + 1)
    for number, (low, middle, high) in enumerate(
        zip(corners, corners[1:], corners[2:], strict=False)
    ):
        expected = np.interp(hertz, [low, middle, high], [0, 2 / (high - low), 0])
        np.testing.assert_allclose(filters[:, number], expected, atol=2e-6)


def test_htk_filters_are_equally_far_apart_in_mel():
    filters = mel_filters(10, 16000, 16000, f_min=100, f_max=7000, scale="htk")
    peaks = filters.argmax(dim=0).double()
    mels = 2595 * torch.log10(1 + peaks / 700)
    gaps = mels.diff()
    assert gaps.max() - gaps.min() < 0.02 * gaps.mean()
    assert filters[:100].eq(0).all()
    assert filters[7001:].eq(0).all()
    torch.testing.assert_close(filters.sum(dim=0), torch.ones(10), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f_min": -1.0}, "f_min and f_max are -1.0 and 8000.0 Hz"),
        ({"f_max": 9000.0}, "half the sample rate"),
        ({"mels": 200}, "hold no bin of a 400-sample spectrum: take fewer mels"),
        ({"scale": "bark"}, "scale is 'bark'; it must be one of slaney, htk"),
        ({"hop": 1e-6}, "hop is 1e-06 s"),
        ({"sample_rate": 16000.0}, "sample_rate is 16000.0; it must be an int"),
    ],
)
def test_impossible_front_ends_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        LogMel(**options)


@pytest.mark.parametrize(("rate", "new"), [(44100, 16000), (8000, 16000), (16000, 11025), (3, 7)])
def test_resampled_length(rate, new):
    for length in (1, 2, 10, 999):
        assert len(resample(torch.zeros(length), rate, new)) == math.ceil(length * new / rate)


@pytest.mark.parametrize(
    ("rate", "new"), [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000), (16000, 44100)]
)
def test_a_sine_stays_the_sine(rate, new):
    for share in (0.05, 0.4, 0.8):
        hertz = share * min(rate, new) / 2
        found, expected = resample(sine(hertz, rate), rate, new), sine(hertz, new)
        inner = slice(new // 20, -new // 20)  # at the ends the filter looks into silence
        assert (found - expected)[inner].abs().max() < 2e-4, share


@pytest.mark.parametrize(("rate", "new"), [(44100, 16000), (48000, 8000), (16000, 11025)])
def test_what_the_new_rate_cannot_carry_is_gone(rate, new):
    for share in (1.01, 1.3):
        hertz = share * new / 2
        if hertz < rate / 2:
            found = resample(sine(hertz, rate), rate, new)[new // 20 : -new // 20]
            assert 20 * math.log10(found.abs().max()) < -75, share


def test_rates_without_a_common_divisor_are_refused():
    with pytest.raises(ValueError, match="sample_rate is 44101 Hz and 16000 Hz is wanted"):
        resample(torch.zeros(10), 44101, 16000)
    with pytest.raises(ValueError, match="sample_rate is 0"):
        resample(torch.zeros(10), 0, 16000)


def test_a_frame_is_its_formula():
    """One window by the definition of the Fourier transform, in float64."""
    mel = LogMel(mels=20)
    samples = 0.1 * torch.randn(2000)
    frame, middle = 5, 5 * 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    piece = samples.double().numpy()[middle - 200 : middle + 200] * window
    turns = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    power = np.abs(turns @ piece) ** 2 / window.sum() ** 2
    expected = power @ mel_filters(20, 400, 16000).double().numpy() * 40
    np.testing.assert_allclose(mel.power(samples)[frame], expected, rtol=1e-4)
    frames = mel.power(samples).log()
    normal = (frames - frames.mean()) / frames.std(correction=0)
    torch.testing.assert_close(mel(Waveform(samples, 16000)), normal, atol=1e-2, rtol=0)


def test_a_sine_lights_the_filter_of_its_pitch():
    mel = LogMel(mels=40)
    for hertz in (300, 1000, 3000):
        frames = mel(Waveform(sine(hertz, 16000), 16000))
        peaks = mel_filters(40, 400, 16000).argmax(dim=0) * 40
        assert abs(peaks[frames.mean(0).argmax()] - hertz) < 0.1 * hertz


def test_loudness_rate_and_channels_do_not_count():
    mel = LogMel()
    noise = 0.1 * torch.randn(48000)
    frames = mel(Waveform(noise, 16000))
    torch.testing.assert_close(mel(Waveform(0.3 * noise, 16000)), frames, atol=1e-2, rtol=0)
    torch.testing.assert_close(mel(Waveform(torch.stack([noise, noise]), 16000)), frames)
    low = resample(noise, 16000, 8000)
    high = mel(Waveform(resample(low, 8000, 44100), 44100))
    both = mel(Waveform(low, 8000)), high
    assert (both[0] - both[1])[:, :40].abs().mean() < 0.02  # up to 2.6 kHz; above is rounding


def test_channels_are_averaged():
    left, right = torch.randn(2, 100)
    found = read_waveform(Waveform(torch.stack([left, right]), 8000), 8000)
    torch.testing.assert_close(found, (left + right) / 2)
    assert read_waveform((left.double(), 8000), 8000).equal(left)


@pytest.mark.parametrize("length", [0, 1, 159, 160, 16001])
def test_any_length_has_frames(length):
    frames = LogMel()(Waveform(torch.randn(length), 16000))
    assert frames.shape == (1 + length // 160, 64)
    assert frames.isfinite().all()


def test_silence_is_near_zero():
    assert LogMel()(Waveform(torch.zeros(16000), 16000)).abs().max() < 0.05


def test_long_recordings_are_cut_at_random_in_training_alone():
    mel = LogMel(max_seconds=0.5)
    samples = torch.randn(16000)
    raw = Waveform(samples, 16000)
    start = mel(raw)
    assert len(start) == mel.max_frames == 51
    assert start.equal(mel(Waveform(samples[:8000], 16000)))
    assert mel(raw).equal(start)
    assert len({mel(raw, training=True).sum().item() for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (torch.zeros(5), TypeError, r"audio is a Tensor; it must be a Waveform"),
        ((torch.zeros(5, dtype=torch.int16), 8000), TypeError, "audio samples are torch.int16"),
        (([0.0], 8000), TypeError, "audio samples are list"),
        ((torch.zeros(1, 2, 5), 8000), ValueError, r"shape \(1, 2, 5\)"),
        ((torch.tensor([0.0, float("nan")]), 8000), ValueError, "must be finite"),
        ((torch.zeros(5), 8000.0), ValueError, "sample_rate is 8000.0"),
    ],
)
def test_what_is_no_recording_is_told(raw, error, message):
    with pytest.raises(error, match=message):
        read_waveform(raw, 16000)
