"""Changes to training images that leave their meaning alone."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def random_shift(images: torch.Tensor, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Moves each image of a batch by up to `pixels` in both directions; the border repeats.

    Args:
        images: floating point (B, C, H, W).
        pixels: largest shift, in pixels, >= 0.
        generator: source of the shifts.

    Returns:
        A new tensor of the shape and dtype of `images`.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    shifts = torch.randint(0, 2 * pixels + 1, (2, batch, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    # Advanced indices around the channel slice put the channel last.
    moved = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)
