"""Video as the pooled features of its frames, by any image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.encoders.common import one_of, pool, whole
from mmfast.plugins import create_encoder
from mmfast.plugins.contract import Batch, EncoderSpec, Features


class VideoFrames(nn.Module):
    """Some frames of a video, each encoded as an image.

    A longer video is cut into ``max_frames`` segments of equal length and gives one frame of each:
    in training a random one, else the middle one (Wang et al., 2016, "Temporal Segment Networks").

    Args:
        encoder: name of an image encoder with pooled output, as ``mmfast.create_encoder`` takes it.
        encoder_options: its options.
        max_frames: most frames to look at.
        output: ``pooled``, the mean of the frames, or ``tokens``, a vector per frame.

    Shape:
        - batch: what the image encoder's ``collate`` makes of frames, each tensor (B, ...) become
          (B, frames, ...), and ``frames``, bool (B, frames), True = there.
        - output: pooled (B, D) or tokens (B, frames, D), D the image encoder's.

    Raises:
        ValueError: an option out of range, or an encoder that is not one of images, pooled.
    """

    def __init__(
        self,
        encoder: str = "image_convnet",
        *,
        encoder_options: Mapping[str, Any] | None = None,
        max_frames: int = 8,
        output: str = "pooled",
    ) -> None:
        super().__init__()
        self.image: Any = create_encoder(encoder, **(encoder_options or {}))
        inner: EncoderSpec = self.image.spec
        if inner.modality != "image" or inner.output != "pooled":
            raise ValueError(
                f"encoder is {encoder!r}, which encodes {inner.modality} as {inner.output} "
                "features; it must encode images, pooled"
            )
        self.spec = replace(
            inner,
            modality="video",
            output=one_of("output", output, ("pooled", "tokens")),
            max_length=whole("max_frames", max_frames),
        )

    def preprocess(self, raw: Sequence[Any]) -> list[Any]:
        """A sequence of images, or a uint8 tensor (T, 3, H, W), to preprocessed frames."""
        if not isinstance(raw, (Sequence, Tensor)) or isinstance(raw, str):
            raise TypeError(f"video is a {type(raw).__name__}; it must be a sequence of images")
        if len(raw) == 0:
            raise ValueError(
                "video has no frames; it must have at least one, or be None if missing"
            )
        return [self.image.preprocess(raw[place]) for place in self._places(len(raw))]

    def collate(self, samples: Sequence[Sequence[Any] | None]) -> Batch:
        """B preprocessed videos, None where one is missing, padded to the longest."""
        most = max([1, *(len(sample) for sample in samples if sample is not None)])
        flat: list[Any] = []
        for sample in samples:
            frames = list(sample or ())
            flat += frames + [None] * (most - len(frames))
        batch = {
            name: tensor.unflatten(0, (len(samples), most))
            for name, tensor in self.image.collate(flat).items()
        }
        there = torch.tensor([frame is not None for frame in flat], dtype=torch.bool)
        return {**batch, "frames": there.view(len(samples), most)}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B videos."""
        mask = batch["frames"]
        inner = {name: x.flatten(0, 1) for name, x in batch.items() if name != "frames"}
        values = self.image(inner).values
        return pool(values.unflatten(0, mask.shape), mask, self.spec.output)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Those of the image encoder."""
        return self.image.layer_groups()

    def _places(self, frames: int) -> list[int]:
        """The numbers of the frames to look at, ascending."""
        segments = self.spec.max_length
        assert segments is not None
        if frames <= segments:
            return list(range(frames))
        within = torch.rand(segments) if self.training else torch.full((segments,), 0.5)
        places = (torch.arange(segments) + within) * frames / segments
        return places.long().clamp(max=frames - 1).tolist()
