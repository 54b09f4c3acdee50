"""Raw samples of every modality, made up on the spot: the same in every run."""

from __future__ import annotations

import math
from typing import Any

import torch

from mmfast.plugins import EncoderSpec, Waveform

RATE = 16000  # Hz, of recordings for an encoder that does not state its own

TEXTS = (
    "A cat sleeps on the warm stones of the harbour wall.",
    "Two dogs run.",
    "It rained all night, and in the morning the river stood at the door; nobody had seen it come.",
)
ROWS = (
    {"age": 31.0, "income": 1200.0, "city": "Oslo", "member": "yes"},
    {"age": 58.0, "income": None, "city": "Lima", "member": "no"},
    {"age": 44.0, "income": 3100.0, "city": None, "member": "yes"},
    {"age": 23.0, "income": 900.0, "city": "Oslo", "member": "no"},
)


def default_samples(modality: str, spec: EncoderSpec | None = None) -> list[list[Any]]:
    """Raw samples to try an encoder with, of different lengths where the modality has lengths.

    Args:
        modality: one of ``mmfast.plugins.MODALITIES``.
        spec: of the encoder, if there is one yet: recordings come at its sample rate, and images of
            different sizes if it makes them of one size.

    Returns:
        Alternatives, of three samples or more each: features are vectors or sequences.
    """
    random = torch.Generator().manual_seed(0)
    if modality == "text":
        return [list(TEXTS)]
    if modality == "tabular":
        return [[dict(row) for row in ROWS]]
    if modality == "audio":
        rate = (spec.sample_rate if spec else None) or RATE
        seconds = (0.8, 0.5, 1.1)
        return [[Waveform(_sound(int(s * rate), rate, random), rate) for s in seconds]]
    if modality == "image":
        sizes = [(64, 64)] * 3
        if spec and spec.image_size:
            sizes = [(48, 64), (64, 40), (72, 72)]
        return [[_image(*size, random) for size in sizes]]
    if modality == "video":
        return [[[_image(40, 48, random) for _ in range(frames)] for frames in (4, 2, 7)]]
    if modality == "features":
        vectors: list[Any] = [torch.randn(12, generator=random) for _ in range(3)]
        sequences: list[Any] = [torch.randn(t, 12, generator=random) for t in (5, 2, 9)]
        return [vectors, sequences]
    raise ValueError(f"there are no samples of the modality {modality!r}")


def varied(raw: Any, modality: str) -> Any:
    """Another sample of the same length: its order turned round, or its values changed."""
    if modality == "text":
        return " ".join(reversed(raw.split()))
    if modality == "audio":
        return Waveform(raw.samples.flip(-1), raw.sample_rate)
    if modality == "video":
        return list(reversed(raw))
    if modality == "tabular":
        return {key: value + 1 if isinstance(value, float) else value for key, value in raw.items()}
    if modality == "image":
        return raw.flip(-1) if isinstance(raw, torch.Tensor) else raw.rotate(180)
    return -raw


def tones(rate: int, seconds: float, highest: float) -> torch.Tensor:
    """Float32 (T,): four tones up to ``highest`` Hz, sampled at ``rate``."""
    time = torch.arange(int(rate * seconds)) / rate
    pitches = [highest * part for part in (0.13, 0.31, 0.57, 0.93)]
    return 0.2 * torch.stack([torch.sin(2 * math.pi * hz * time) for hz in pitches]).sum(dim=0)


def _sound(length: int, rate: int, random: torch.Generator) -> torch.Tensor:
    noise = 0.05 * torch.randn(length, generator=random)
    return tones(rate, length / rate + 1, rate / 8)[:length] + noise


def _image(height: int, width: int, random: torch.Generator) -> torch.Tensor:
    coarse = torch.rand((1, 3, 8, 8), generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth[0] * 255).to(torch.uint8)
