"""Recordings from files. A file that ends before the end it declares is an error, not silence."""

from __future__ import annotations

import io

import torch

from mmfast.data.files import Unreadable
from mmfast.data.table import need
from mmfast.plugins import Waveform

MAX_SAMPLES = 1 << 28
"""Most samples of a recording, all channels together: 1 GiB, 46 minutes of stereo at 48 kHz."""
# What a program that writes to a pipe puts where the length belongs.
_UNKNOWN = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def decode_audio(data: bytes) -> Waveform:
    """A sound file's bytes, in a format that libsndfile knows (WAV, FLAC, OGG, MP3, AIFF ...).

    Returns:
        The recording: float32 (T,) if it has one channel, else (channels, T).

    Raises:
        Unreadable: no such file, damaged or truncated, without any sample, with NaN or infinite
            ones, or with more than ``MAX_SAMPLES``. An MP3 declares no length, so its missing end
            goes unnoticed.
    """
    _check_complete(data)
    soundfile = need("soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
            if frames * channels > MAX_SAMPLES:
                raise Unreadable(
                    f"declares {frames} samples in {channels} channels; a recording may have "
                    f"{MAX_SAMPLES}: cut it into pieces"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except Unreadable:
        raise
    except Exception as error:  # soundfile.LibsndfileError and what damaged bytes lead to
        said = str(error).partition("object at")[2].partition(": ")[2] or str(error)
        raise Unreadable(f"is no readable recording: {said}") from error
    if len(samples) < frames:
        raise Unreadable(f"is truncated: it declares {frames} samples and holds {len(samples)}")
    if not len(samples):
        raise Unreadable("holds no sample")
    waveform = torch.from_numpy(samples).T.contiguous()
    if not bool(waveform.isfinite().all()):
        raise Unreadable("holds samples that are NaN or infinite")
    return Waveform(waveform[0] if channels == 1 else waveform, int(rate))


def _check_complete(data: bytes) -> None:
    """Unreadable for a file that stops short, where libsndfile would only see a shorter one."""
    kind = data[:4]
    if kind in (b"RIFF", b"RF64", b"FORM"):
        _check_chunks(data, "big" if kind == b"FORM" else "little")
    elif kind == b"OggS":
        _check_last_page(data[data.rfind(b"OggS") :])


def _check_last_page(page: bytes) -> None:
    """The last page of an Ogg stream has a flag that says so, and all its bytes (RFC 3533)."""
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not lengths or not page[5] & 4 or len(page) < 27 + len(lengths) + sum(lengths):
        raise Unreadable("is truncated: its stream does not end")


def _check_chunks(data: bytes, order: str) -> None:
    """Walk the chunks of WAV and AIFF (Microsoft and IBM, 1991; EA IFF 85) up to the samples."""
    start, long_size = 12, None
    while start + 8 <= len(data):
        name, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], order)  # type: ignore[arg-type]
        if name == b"ds64":  # RF64, EBU Tech 3306: the sizes above 4 GiB stand here
            long_size = int.from_bytes(data[start + 16 : start + 24], "little")
        if name in (b"data", b"SSND"):
            if size == 0xFFFFFFFF and long_size is not None:
                size = long_size
            held = len(data) - start - 8
            if size > held and size not in _UNKNOWN:
                raise Unreadable(
                    f"is truncated: it declares {size} bytes of sound and holds {held}"
                )
            return
        start += 8 + size + size % 2
    raise Unreadable("is truncated: it ends before the sound begins")
