"""A convolutional image encoder small enough to learn from scratch on a CPU in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class SmallConvNet(nn.Module):
    """Encodes small RGB images as one vector each.

    Stages of two 3x3 convolutions (batch norm, ReLU), each stage but the last halving the
    resolution, then the average over all positions.

    Args:
        channels: width of each stage; the last is ``out_dim``.
        dropout: probability of zeroing a whole feature map after each stage, while training.
    """

    modality = "image"

    def __init__(self, channels: Sequence[int] = (16, 32, 64), dropout: float = 0.0) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(
                f"SmallConvNet: channels must be one or more positive widths, got {channels}"
            )
        self.out_dim = channels[-1]
        stages: list[nn.Module] = []
        for before, width in zip([3, *channels[:-1]], channels, strict=True):
            stages += [_block(before, width), _block(width, width)]
            stages += [nn.MaxPool2d(2), nn.Dropout2d(dropout)]
        # The average below takes the place of the last halving.
        del stages[-2]
        self.stages = nn.Sequential(*stages)

    @staticmethod
    def preprocess(images: torch.Tensor) -> torch.Tensor:
        """Turns uint8 (B, 3, H, W), RGB in 0..255, into float32 in -1..1."""
        if images.dtype != torch.uint8:
            raise TypeError(f"SmallConvNet: images must be uint8, got {images.dtype}")
        return images.float() / 127.5 - 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, H, W) as (B, out_dim)."""
        # Channels last, the convolutions run a third faster on CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        return self.stages(images).mean(dim=(2, 3))


def _block(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
