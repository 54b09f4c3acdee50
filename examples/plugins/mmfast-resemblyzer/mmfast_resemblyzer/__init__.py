"""Resemblyzer's speaker encoder, with a mel front end of its own, as an encoder of mmfast.

The network and its published weights are those of Resemblyzer 0.1.4 (GE2E: Wan et al., 2018,
"Generalized End-to-End Loss for Speaker Verification"). Its package is found and not imported,
since importing it takes librosa and webrtcvad. Left out: its trimming of long silences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.common import masked_mean, pad, valid
from mmfast.encoders.mel import mel_filters, read_waveform
from mmfast.plugins import Batch, EncoderSpec, Features

RATE, WINDOW, HOP, MELS = 16000, 400, 160, 40
PARTIAL = 160  # frames of a partial utterance, 1.6 s
STEP = round(RATE / 1.3 / HOP)  # frames from one to the next: 1.3 a second
COVERAGE = 0.75  # a last partial utterance must be that full
LOUDNESS = -30.0  # dB of full scale that quiet recordings are raised to
DIM = 256
OUTPUTS = ("pooled", "tokens")


class SpeakerEncoder(nn.Module):
    """Encodes who speaks: an LSTM over overlapping stretches of 1.6 s, and their mean.

    Args:
        output: ``pooled``, the mean of the stretches' vectors, or ``tokens``, those vectors, P of
            them; each of length 1, none below 0.

    Shape:
        - batch: ``mel`` float32 (B, P, 160, 40); ``mask`` bool (B, P).
        - output: pooled (B, 256) or tokens (B, P, 256).

    Raises:
        ValueError: another ``output``.
    """

    def __init__(self, output: str = "pooled") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}; it must be one of {', '.join(OUTPUTS)}")
        self.lstm = nn.LSTM(MELS, DIM, num_layers=3, batch_first=True)
        self.linear = nn.Linear(DIM, DIM)
        weights = torch.load(_weights(), map_location="cpu", weights_only=True)["model_state"]
        # The scale and offset of the loss it was trained with.
        self.load_state_dict({k: v for k, v in weights.items() if not k.startswith("similarity")})
        self.spec = EncoderSpec(
            api_version=1,
            modality="audio",
            out_dim=DIM,
            output=output,
            sample_rate=RATE,
            pretrained="resemblyzer",
            origin="Resemblyzer 0.1.4",
            licence="Apache-2.0",
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A Waveform, resampled to 16 kHz, to the mel frames of its stretches, (P, 160, 40)."""
        samples = louder(read_waveform(raw, RATE))
        starts = partial_starts(len(samples))
        end = (starts[-1] + PARTIAL) * HOP
        frames = mel_spectrogram(F.pad(samples, (0, max(0, end - len(samples)))))
        return torch.stack([frames[start : start + PARTIAL] for start in starts])

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed recordings, None where one is missing, to ``mel`` and ``mask``."""
        mel, mask = pad(samples, (PARTIAL, MELS))
        return {"mel": mel, "mask": mask}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B recordings."""
        mel, mask = batch["mel"], batch["mask"]
        # Not every processor has an LSTM in the 16-bit type of autocast.
        with torch.autocast("cpu", enabled=False):
            _, (hidden, _) = self.lstm(mel.flatten(0, 1))
        partials = F.normalize(torch.relu(self.linear(hidden[-1])), dim=1)
        partials = partials.unflatten(0, mask.shape)
        if self.spec.output == "tokens":
            return valid(partials, mask)
        return valid(F.normalize(masked_mean(partials, mask), dim=1), mask.any(dim=1))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The three layers of the LSTM, the linear layer."""
        layers = [
            [weight for name, weight in self.lstm.named_parameters() if name.endswith(f"_l{layer}")]
            for layer in range(3)
        ]
        return [*layers, list(self.linear.parameters())]


def mel_spectrogram(samples: Tensor) -> Tensor:
    """Power of 40 mel bands: samples (T,) at 16 kHz to (1 + T // 160, 40).

    What ``librosa.feature.melspectrogram(n_fft=400, hop_length=160, n_mels=40)`` gives: centred
    Hann windows, zeros beyond both ends, Slaney's mel scale and filters of area 1.
    """
    spectrum = torch.stft(
        samples,
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return spectrum.abs().square().T @ mel_filters(MELS, WINDOW, RATE, scale="slaney")


def louder(samples: Tensor) -> Tensor:
    """Samples (T,) raised to a root mean square of -30 dB of full scale; loud ones stay."""
    mean_square = samples.square().mean() if len(samples) else torch.zeros(())
    wanted = 10 ** (LOUDNESS / 20)
    if mean_square == 0 or mean_square.sqrt() >= wanted:
        return samples
    return samples * (wanted / mean_square.sqrt())


def partial_starts(length: int) -> list[int]:
    """The first frames of the stretches of a recording of that many samples; at least one.

    The last is left out if less than three quarters of it would be recording.
    """
    frames = -(-(length + 1) // HOP)
    starts = list(range(0, max(1, frames - PARTIAL + STEP + 1), STEP))
    covered = (length - starts[-1] * HOP) / (PARTIAL * HOP)
    return starts[:-1] if covered < COVERAGE and len(starts) > 1 else starts


def _weights() -> Path:
    found = find_spec("resemblyzer")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "mmfast-resemblyzer: the weights are missing: pip install --no-deps resemblyzer"
        )
    return Path(found.origin).parent / "pretrained.pt"
