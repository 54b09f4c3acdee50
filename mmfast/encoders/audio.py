"""Audio encoders over log-mel frames: a convolutional network and an LSTM, trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.common import groups, pool, share, whole, wholes
from mmfast.encoders.frames import (
    FrameConv,
    audio_spec,
    collate_frames,
    front_end,
    halved,
    run,
)
from mmfast.encoders.lstm import MaskedLSTM, check_pooling
from mmfast.plugins.contract import Batch, Features


class AudioConvNet(nn.Module):
    """A recording through stages of two convolutions over its log-mel spectrogram.

    Each stage ends at half the frames and half the frequencies; what is left of the frequencies
    goes through one linear layer, so that pitch is not averaged away.

    Args:
        channels: width of each stage.
        out_dim: features D of the result.
        output: ``pooled``, the mean over time, or ``tokens``, one vector for every 2 ** stages
            frames.
        dropout: before the linear layer, while training.
        mel: options of the front end, :class:`mmfast.encoders.mel.LogMel`; by default 64 mel bands
            at 16 kHz every 10 ms, of at most 10 s.

    Shape:
        - batch: ``frames`` float32 (B, T, mels), ``mask`` bool (B, T).
        - output: pooled (B, out_dim) or tokens (B, ceil(T / 2 ** stages), out_dim).

    Raises:
        ValueError: an option out of range. TypeError: an unknown option of ``mel``.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        *,
        out_dim: int = 128,
        output: str = "pooled",
        dropout: float = 0.0,
        mel: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        channels = wholes("channels", channels)
        self.mel = front_end(mel)
        self.layers = nn.ModuleList()
        for before, width in zip((1, *channels[:-1]), channels, strict=True):
            self.layers += [FrameConv(before, width), FrameConv(width, width, stride=2)]
        left = halved(self.mel.mels, len(channels))
        self.dropout = nn.Dropout(share("dropout", dropout))
        self.project = nn.Linear(channels[-1] * left, whole("out_dim", out_dim))
        self.spec = audio_spec(
            self.mel, out_dim, output, halved(self.mel.max_frames, len(channels))
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A :class:`mmfast.plugins.Waveform` of any rate to log-mel frames, float32 (T, mels)."""
        return self.mel(raw, training=self.training)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed recordings, None where one is missing, to ``frames`` and ``mask``."""
        return collate_frames(samples, self.mel.mels)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B recordings."""
        maps, mask = run(self.layers, batch["frames"], batch["mask"])
        tokens = maps.permute(0, 2, 1, 3).flatten(2)
        return pool(self.project(self.dropout(tokens)).relu(), mask, self.spec.output)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Each stage, then the linear layer."""
        stages = zip(self.layers[::2], self.layers[1::2], strict=True)
        return groups([*(nn.ModuleList(stage) for stage in stages), self.project])


class AudioLSTM(nn.Module):
    """A recording through an LSTM over its log-mel frames.

    Args:
        hidden: features of each direction.
        layers: LSTM layers.
        bidirectional: whether to read backwards too; ``out_dim`` is then twice ``hidden``.
        stack: frames that one step reads together (Sak et al., 2015, "Fast and Accurate Recurrent
            Neural Network Acoustic Models for Speech Recognition"): fewer steps, each of 10 ms
            times this.
        output: ``pooled`` or ``tokens``, a vector per step.
        pooling: ``mean`` over the steps, or ``last``, what each direction holds at its end.
        dropout: between layers, while training.
        mel: options of the front end, :class:`mmfast.encoders.mel.LogMel`; by default 64 mel bands
            at 16 kHz every 10 ms, of at most 10 s.

    Shape:
        - batch: ``frames`` float32 (B, T, stack * mels), ``mask`` bool (B, T).
        - output: pooled (B, D) or tokens (B, T, D).

    Raises:
        ValueError: an option out of range. TypeError: an unknown option of ``mel``.
    """

    def __init__(
        self,
        hidden: int = 128,
        *,
        layers: int = 1,
        bidirectional: bool = True,
        stack: int = 4,
        output: str = "pooled",
        pooling: str = "mean",
        dropout: float = 0.0,
        mel: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.mel = front_end(mel)
        self.stack = whole("stack", stack)
        self.pooling = check_pooling(pooling)
        self.lstm = MaskedLSTM(
            stack * self.mel.mels,
            hidden,
            layers=layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        steps = -(-self.mel.max_frames // stack)
        self.spec = audio_spec(self.mel, self.lstm.out_features, output, steps)

    def preprocess(self, raw: Any) -> Tensor:
        """A :class:`mmfast.plugins.Waveform` of any rate to float32 (T, stack * mels)."""
        frames = self.mel(raw, training=self.training)
        return F.pad(frames, (0, 0, 0, -len(frames) % self.stack)).reshape(
            -1, self.stack * self.mel.mels
        )

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed recordings, None where one is missing, to ``frames`` and ``mask``."""
        return collate_frames(samples, self.stack * self.mel.mels)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B recordings."""
        return self.lstm.features(batch["frames"], batch["mask"], self.spec.output, self.pooling)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Each LSTM layer."""
        return self.lstm.layers()
