"""A vision transformer small enough to learn from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmfast.encoders.common import groups, size_2d, valid
from mmfast.encoders.image import HALF, collate_images, image_spec, preprocess
from mmfast.encoders.transformer import Positions, Transformer
from mmfast.plugins.contract import Batch, EncoderSpec, Features


class ImageTransformer(nn.Module):
    """Patches of an image, each a token, through a pre-norm transformer.

    The network of Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words", with the mean of the
    tokens in place of a class token and, unless told otherwise, sinusoidal positions, both of which
    Beyer et al. (2022), "Better plain ViT baselines for ImageNet-1k", found to train better from
    scratch.

    Args:
        image_size: height and width in pixels, or one int for both; images are cropped to this
            aspect ratio and resized.
        patch: height and width of a patch, or one int for both; they divide ``image_size``.
        dim: features D of tokens and result.
        depth: blocks.
        heads: attention heads; they divide ``dim``.
        positions: ``sinusoidal`` (``dim`` a multiple of 4) or ``learned``.
        output: ``pooled``, the mean of the tokens, or ``tokens``, the patches row by row.
        dropout: in the blocks, while training.
        mean, std: of each channel on the 0..1 scale; by default pixels come to lie in -1..1.

    Shape:
        - batch: ``image`` float32 (B, 3, H, W); ``present`` bool (B,). Where an image is missing
          stands another one, whose features are thrown away.
        - output: pooled (B, dim) or tokens (B, number of patches, dim).

    Raises:
        ValueError: an option out of range, or sizes that do not divide each other.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 64,
        patch: int | Sequence[int] = 8,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        positions: str = "sinusoidal",
        output: str = "pooled",
        dropout: float = 0.0,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
    ) -> None:
        super().__init__()
        height, width = size_2d("image_size", image_size)
        rows, columns = size_2d("patch", patch)
        if height % rows or width % columns:
            raise ValueError(f"patch is {patch}; it must divide image_size, which is {image_size}")
        self.transformer = Transformer(dim, depth, heads, dropout)
        self.positions = Positions((height // rows, width // columns), dim, positions)
        self.patches = nn.Conv2d(3, dim, (rows, columns), stride=(rows, columns))
        self.spec: EncoderSpec = image_spec(dim, output, (height, width), mean, std)

    def preprocess(self, raw: Any) -> Tensor:
        """A PIL image or a uint8 tensor (3, H, W) to float32 (3, \\*image_size)."""
        return preprocess(raw, self.spec)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed images, None where one is missing, to ``image`` and ``present``."""
        return collate_images(samples, self.spec)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B images."""
        tokens = self.patches(batch["image"]).flatten(2).transpose(1, 2)
        tokens = self.transformer(self.positions(tokens))
        present = batch["present"]
        if self.spec.output == "pooled":
            return valid(tokens.mean(dim=1), present)
        return valid(tokens, present[:, None].expand(tokens.shape[:2]))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Patch embedding and positions, each block, the last norm."""
        first = [*self.patches.parameters(), *self.positions.parameters()]
        return [first, *groups([*self.transformer.blocks, self.transformer.norm])]
