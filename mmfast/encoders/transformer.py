"""The transformer behind the image and the text encoder: pre-norm blocks, masks, positions.

Pre-norm as in Xiong et al. (2020), "On Layer Normalization in the Transformer Architecture", which
trains without a warm-up. ``nn.TransformerEncoder`` is not used: in evaluation, with
``norm_first``, it gives NaN for a row that is masked throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.common import one_of, share, whole


class Transformer(nn.Module):
    """Blocks of self-attention and a two-layer network, then a layer norm.

    Args:
        dim: features D, a multiple of ``heads``.
        depth: blocks.
        heads: attention heads.
        dropout: of what each branch adds, while training.

    Shape:
        - x: (B, T, D); mask: bool (B, T), True = valid, or None for all.
        - output: (B, T, D). Valid tokens do not depend on invalid ones. A row without a valid token
          is finite, and means nothing.
    """

    def __init__(self, dim: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        whole("dim", dim)
        if dim % whole("heads", heads):
            raise ValueError(f"heads is {heads}; it must divide dim, which is {dim}")
        share("dropout", dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads, dropout) for _ in range(whole("depth", depth))
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transforms x (B, T, D) under mask (B, T)."""
        keys = None
        if mask is not None:
            # A row without any key is 0 / 0 to some attention kernels: it may look at its padding.
            keys = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        return self.norm(x)


class Block(nn.Module):
    """One block: x + attention(norm(x)), then x + network(norm(x))."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.network_norm = nn.LayerNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Transforms x (B, T, D); keys, bool (B, 1, 1, T), says where to look."""
        x = x + self.dropout(self.attention(self.attention_norm(x), keys))
        return x + self.dropout(self.network(self.network_norm(x)))

    def attention(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Self-attention over (B, T, D)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Positions(nn.Module):
    """Adds a vector for its position to each token.

    Args:
        shape: (T,) for a sequence of up to T tokens, (H, W) for a grid read by rows.
        dim: features D; for ``sinusoidal`` a multiple of twice the length of ``shape``.
        kind: ``learned``, or ``sinusoidal``: sines and cosines of wavelengths from 2 pi to
            10000 * 2 pi (Vaswani et al., 2017), in a grid one half of the features for the row and
            one for the column.
    """

    def __init__(self, shape: tuple[int, ...], dim: int, kind: str) -> None:
        super().__init__()
        one_of("positions", kind, ("learned", "sinusoidal"))
        if kind == "learned":
            # About as large as sinusoids and as the embeddings of words: with the usual 0.02, which
            # suits embeddings as small, the order of words took twice the steps to learn.
            self.table = nn.Parameter(0.5 * torch.randn(math.prod(shape), dim))
        else:
            if dim % (2 * len(shape)):
                raise ValueError(
                    f"dim is {dim}; for sinusoidal positions it must be a multiple of "
                    f"{2 * len(shape)}"
                )
            axes = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
            parts = [sinusoids(axis.reshape(-1), dim // len(shape)) for axis in axes]
            self.register_buffer("table", torch.cat(parts, dim=-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the first T positions to x (B, T, D)."""
        return x + self.table[: x.shape[1]]


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of positions (T,) at dim / 2 frequencies: float32 (T, dim)."""
    exponents = torch.arange(dim // 2, dtype=torch.float64) / max(dim // 2, 1)
    angles = positions[:, None].double() * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
