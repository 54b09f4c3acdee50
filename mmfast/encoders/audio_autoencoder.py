"""A convolutional autoencoder of log-mel spectrograms: an encoder that learns without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.common import groups, masked_mean, pool, whole, wholes
from mmfast.encoders.frames import (
    FrameConv,
    audio_spec,
    collate_frames,
    front_end,
    halved,
    run,
)
from mmfast.plugins.contract import Batch, Features


class AudioAutoencoder(nn.Module):
    """The encoder of an autoencoder: strided convolutions, then one linear layer a step.

    It encodes like any other. To learn without labels first, train what :meth:`pretrainer` returns:
    a module that holds this very encoder and a decoder, and whose ``forward(batch)`` is the loss.
    The decoder lives there and not here, so that no parameter is without a gradient when the
    encoder is fine-tuned, and the state dict is that of the encoder alone.

    Args:
        channels: width of each stage; each halves time and frequency.
        out_dim: features D of the code, one for every 2 ** stages frames.
        output: ``pooled``, the mean over time, or ``tokens``.
        mel: options of the front end, :class:`mmfast.encoders.mel.LogMel`; by default 64 mel bands
            at 16 kHz every 10 ms, of at most 10 s.

    Shape:
        - batch: ``frames`` float32 (B, T, mels), ``mask`` bool (B, T).
        - output: pooled (B, out_dim) or tokens (B, ceil(T / 2 ** stages), out_dim).

    Raises:
        ValueError: an option out of range. TypeError: an unknown option of ``mel``.

    Example:
        >>> encoder = AudioAutoencoder(out_dim=32)
        >>> learner = encoder.pretrainer()  # wrap this one in DistributedDataParallel
        >>> optimizer = torch.optim.AdamW(learner.parameters())
        >>> recording = Waveform(torch.randn(16000), 16000)
        >>> learner(encoder.collate([encoder.preprocess(recording)])).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64),
        *,
        out_dim: int = 128,
        output: str = "pooled",
        mel: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.channels = wholes("channels", channels)
        self.mel = front_end(mel)
        pairs = zip((1, *self.channels[:-1]), self.channels, strict=True)
        self.layers = nn.ModuleList(FrameConv(before, width, stride=2) for before, width in pairs)
        self.bands = halved(self.mel.mels, len(self.channels))
        self.project = nn.Linear(self.channels[-1] * self.bands, whole("out_dim", out_dim))
        self.spec = audio_spec(
            self.mel, out_dim, output, halved(self.mel.max_frames, len(self.channels))
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A :class:`mmfast.plugins.Waveform` of any rate to log-mel frames, float32 (T, mels)."""
        return self.mel(raw, training=self.training)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed recordings, None where one is missing, to ``frames`` and ``mask``."""
        return collate_frames(samples, self.mel.mels)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The code (B, T', out_dim) of B recordings, and its mask (B, T')."""
        maps, mask = run(self.layers, batch["frames"], batch["mask"])
        return self.project(maps.permute(0, 2, 1, 3).flatten(2)), mask

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B recordings."""
        return pool(*self.encode(batch), self.spec.output)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Each stage, then the linear layer."""
        return groups([*self.layers, self.project])

    def pretrainer(self) -> AudioReconstruction:
        """A new module that trains this encoder to reconstruct what it encodes."""
        return AudioReconstruction(self)


class AudioReconstruction(nn.Module):
    """An :class:`AudioAutoencoder` and a decoder that mirrors it; ``forward`` is the loss.

    Args:
        encoder: shared, not copied: what is trained here is trained there.
    """

    def __init__(self, encoder: AudioAutoencoder) -> None:
        super().__init__()
        self.encoder = encoder
        widths = encoder.channels[::-1]
        self.expand = nn.Linear(encoder.spec.out_dim, widths[0] * encoder.bands)
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)
            for width, after in zip(widths, (*widths[1:], 1), strict=True)
        )

    def reconstruct(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The frames (B, T, mels) that the decoder makes of the code; zeros where mask is False."""
        frames, mask = batch["frames"], batch["mask"]
        code, valid = self.encoder.encode(batch)
        maps = self.expand(code).unflatten(2, (-1, self.encoder.bands)).permute(0, 2, 1, 3)
        for number, layer in enumerate(self.layers):
            maps = layer(maps.masked_fill(~valid[:, None, :, None], 0))
            valid = valid.repeat_interleave(2, dim=1)
            if number < len(self.layers) - 1:
                maps = torch.relu(maps)
        made = maps[:, 0, : frames.shape[1], : frames.shape[2]]
        return made.masked_fill(~mask[..., None], 0)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The squared error, a scalar: mean over bands, frames and the recordings there are."""
        made, mask = self.reconstruct(batch), batch["mask"]
        error = F.mse_loss(made.float(), batch["frames"], reduction="none")
        each = masked_mean(error, mask).mean(dim=1)
        return each.sum() / mask.any(dim=1).sum().clamp(min=1)
