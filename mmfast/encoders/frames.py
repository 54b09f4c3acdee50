"""Convolutions over padded spectrograms that give what they would give without the padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.encoders.common import LICENCE, one_of, pad
from mmfast.encoders.mel import LogMel
from mmfast.plugins.contract import Batch, EncoderSpec


class FrameConv(nn.Module):
    """A 3x3 convolution over time and frequency, layer norm over the channels, ReLU.

    Padding counts as the zeros that a convolution sees beyond the end of its input, and is set back
    to zeros afterwards; layer norm, unlike batch norm, looks at one place alone. So what is valid
    does not depend on the padding, in training neither.

    Args:
        before: channels of the input.
        width: channels of the result.
        stride: 1, or 2 to halve time and frequency, rounding up.
    """

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.LayerNorm(width)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Convolves x (B, C, T, F), zeros where mask (B, T) is False; returns both anew."""
        mask = mask[:, :: self.stride]
        # Channels last, the layer norm reads memory in order.
        maps = self.conv(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        maps = torch.relu(self.norm(maps)).masked_fill(~mask[:, :, None, None], 0)
        return maps.permute(0, 3, 1, 2), mask


def run(layers: Sequence[Any] | nn.ModuleList, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Runs frames x (B, T, F) through :class:`FrameConv` layers: (B, C, T', F') and its mask."""
    maps = x.masked_fill(~mask[..., None], 0)[:, None]
    for layer in layers:
        maps, mask = layer(maps, mask)
    return maps, mask


def halved(size: int, times: int) -> int:
    """``size`` after ``times`` layers of stride 2."""
    return -(-size // 2**times)


def collate_frames(samples: Sequence[Tensor | None], width: int) -> Batch:
    """Sequences (T, width) to ``frames``, float32 (B, T, width), and ``mask``, bool (B, T)."""
    frames, mask = pad(samples, (width,))
    return {"frames": frames, "mask": mask}


def audio_spec(mel: LogMel, out_dim: int, output: str, max_length: int) -> EncoderSpec:
    """The spec of an audio encoder of mmfast's own."""
    return EncoderSpec(
        api_version=1,
        modality="audio",
        out_dim=out_dim,
        output=one_of("output", output, ("pooled", "tokens")),
        sample_rate=mel.sample_rate,
        max_length=max_length,
        origin="mmfast",
        licence=LICENCE,
    )


def front_end(options: Mapping[str, Any] | None) -> LogMel:
    """A :class:`LogMel` of these options; TypeError for one that it does not have."""
    known = [field.name for field in fields(LogMel)]
    for name in options or {}:
        if name not in known:
            raise TypeError(f"mel has no option {name!r}; it takes {', '.join(known)}")
    return LogMel(**(options or {}))
