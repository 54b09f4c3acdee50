"""The speaker encoder: the contract, Resemblyzer's own numbers, two speakers."""

import wave
from pathlib import Path

import pytest
import torch
from mmfast_resemblyzer import louder, mel_spectrogram, partial_starts

from mmfast import create_encoder
from mmfast.plugins import Waveform
from mmfast.testing import EncoderContract

NAME = "mmfast-resemblyzer/speaker"
SPEECH = Path(__file__).parent / "speech"


class TestContract(EncoderContract):
    name = NAME


def recording(name: str) -> Waveform:
    with wave.open(str(SPEECH / name)) as file:
        data = bytearray(file.readframes(file.getnframes()))
        rate = file.getframerate()
    return Waveform(torch.frombuffer(data, dtype=torch.int16).float() / 32768, rate)


def embed(names: list[str]) -> torch.Tensor:
    encoder = create_encoder(NAME).eval()
    samples = [encoder.preprocess(recording(name)) for name in names]
    with torch.no_grad():
        return encoder(encoder.collate(samples)).values


def test_one_speaker_is_nearer_than_another():
    """Both say the same things, in English and in French."""
    phrases = ["vm-reenterpassword", "vm-repeat", "vm-review-urgent"]
    vectors = embed([f"{who}-{phrase}.wav" for who in ("en", "fr") for phrase in phrases])
    near = vectors @ vectors.T
    apart = ~torch.eye(3, dtype=torch.bool)
    same = torch.stack([near[:3, :3][apart], near[3:, 3:][apart]])
    assert same.mean() > near[:3, 3:].mean() + 0.08
    # The same words by the other speaker are further than other words by the same one.
    assert same.mean(dim=1).min() > near[:3, 3:].diagonal().mean() + 0.03


# Made by VoiceEncoder.embed_utterance of Resemblyzer 0.1.4, librosa 0.11.0, on the recording at 16
# kHz after its normalize_volume: the largest six of 256 features.
@pytest.mark.parametrize(
    ("name", "want"),
    [
        (
            "en-vm-repeat.wav",
            {89: 0.29637, 20: 0.22026, 243: 0.21308, 162: 0.20548, 11: 0.18844, 0: 0.18633},
        ),
        (
            "fr-vm-reenterpassword.wav",
            {0: 0.31188, 237: 0.23248, 89: 0.20677, 20: 0.19621, 173: 0.18781, 58: 0.17195},
        ),
    ],
)
def test_features_are_those_of_resemblyzer(name, want):
    got = embed([name])[0]
    assert {index: float(got[index]) for index in want} == pytest.approx(want, abs=1e-3)
    assert float(got.norm()) == pytest.approx(1)


def test_mel_spectrogram_is_that_of_librosa():
    time = torch.arange(4000, dtype=torch.float64) / 16000
    rising = 0.5 * torch.sin(2 * torch.pi * (200 * time + 6000 * time**2))
    got = mel_spectrogram(rising.float())
    assert got.shape == (26, 40)
    # librosa.feature.melspectrogram(y, sr=16000, n_fft=400, hop_length=160, n_mels=40), 0.11.0
    want = {
        (0, 0): 1.51162,
        (3, 5): 2.69776,
        (5, 9): 13.4161,
        (10, 14): 0.00163138,
        (12, 20): 5.86503,
        (25, 33): 0.00423704,
        (25, 39): 0.000862538,
    }
    assert {at: float(got[at]) for at in want} == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "starts"),
    # VoiceEncoder.compute_partial_slices(length, rate=1.3, min_coverage=0.75)
    [
        (1, [0]),
        (30000, [0]),
        (40000, [0, 77]),
        (44000, [0, 77, 154]),
        (60000, [0, 77, 154, 231]),
    ],
)
def test_stretches(length, starts):
    assert partial_starts(length) == starts


def test_quiet_recordings_are_raised():
    quiet = 0.001 * torch.randn(1000)
    assert float(louder(quiet).square().mean().sqrt()) == pytest.approx(10**-1.5, rel=1e-4)
    loud = torch.randn(1000)
    assert louder(loud) is loud
    silence = torch.zeros(1000)
    assert louder(silence) is silence
