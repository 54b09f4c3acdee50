"""Recordings: read as they were written, and refused when they end before they should."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from data_files import wav

from mmfast.data.audio import decode_audio
from mmfast.data.files import Unreadable

TONE = 0.5 * np.sin(np.arange(8000) * 0.3)


def encoded(kind, subtype=None, samples=TONE, rate=16000):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_wav():
    samples, rate = decode_audio(wav([0, 0.5, -0.5], rate=11025))
    assert rate == 11025
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, torch.tensor([0, 0.5, -0.5]), atol=1e-4, rtol=0)


def test_stereo():
    samples, _ = decode_audio(wav([0.1, -0.2] * 5, channels=2))
    assert samples.shape == (2, 5)
    assert samples.is_contiguous()
    torch.testing.assert_close(samples[1], torch.full((5,), -0.2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "ULAW", 0.03),
        ("RF64", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.1),
        ("AU", "PCM_16", 1e-4),
    ],
)
def test_formats(kind, subtype, error):
    samples, rate = decode_audio(encoded(kind, subtype))
    assert rate == 16000
    assert samples.shape == (8000,)
    assert np.abs(samples.numpy() - TONE).max() < error


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "OPUS")])
def test_formats_that_keep_the_sound_and_not_the_samples(kind, subtype):
    samples, rate = decode_audio(encoded(kind, subtype, np.tile(TONE, 4)))
    assert rate == 16000
    assert abs(len(samples) - 32000) < 3000
    strongest = np.abs(np.fft.rfft(samples.numpy())).argmax() / len(samples)
    assert abs(strongest - 0.3 / (2 * np.pi)) < 1e-3  # cycles per sample


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.002, 0.02, 0.5, 0.99])
def test_truncated(kind, share):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 40000)
    data = encoded(kind, samples=noise)
    with pytest.raises(Unreadable, match=r"is truncated|is no readable recording"):
        decode_audio(data[: int(len(data) * share)])


def test_the_library_alone_would_not_notice():
    short, _ = soundfile.read(io.BytesIO(wav(TONE)[:5000]))
    assert 0 < len(short) < len(TONE)


def test_one_missing_byte():
    with pytest.raises(Unreadable, match="it declares 16000 bytes of sound and holds 15999"):
        decode_audio(wav(TONE)[:-1])


def test_a_recording_from_a_pipe_declares_no_length():
    data = bytearray(wav(TONE))
    data[4:8] = data[40:44] = b"\xff" * 4  # as ffmpeg writes to a pipe
    assert len(decode_audio(bytes(data)).samples) == 8000


def test_chunks_before_and_after_the_sound():
    data = wav([0.25, 0.5])
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    data = data[:12] + extra + data[12:] + extra
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert len(decode_audio(data).samples) == 2


@pytest.mark.parametrize("data", [b"", b"RIFF", b"OggS", b"fLaC", b"no sound at all" * 9])
def test_no_recording(data):
    with pytest.raises(Unreadable, match=r"is truncated|is no readable recording: (?!.*BytesIO)"):
        decode_audio(data)


def test_no_sample():
    with pytest.raises(Unreadable, match="holds no sample"):
        decode_audio(wav([]))


def test_declared_sizes_are_checked_before_reading(monkeypatch):
    monkeypatch.setattr("mmfast.data.audio.MAX_SAMPLES", 7999)
    with pytest.raises(Unreadable, match="declares 8000 samples in 1 channels"):
        decode_audio(wav(TONE))


def test_a_flac_that_declares_hours():
    data = bytearray(encoded("FLAC"))
    data[22:26] = b"\xff" * 4  # the low 32 of the 36 bits of its number of samples
    with pytest.raises(Unreadable, match=r"declares 4294967295 samples"):
        decode_audio(bytes(data))


def test_not_a_number():
    samples = TONE.copy()
    samples[5] = np.nan
    with pytest.raises(Unreadable, match="NaN or infinite"):
        decode_audio(encoded("WAV", "FLOAT", samples))
