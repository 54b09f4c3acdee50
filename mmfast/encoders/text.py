"""A text encoder without a vocabulary: words and their letter groups, hashed into one table.

The method is that of fastText (Bojanowski et al., 2017, "Enriching Word Vectors with Subword
Information"): rare words share the letter groups of frequent ones, and there is no tokenizer to
train or to ship.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from zlib import crc32

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

PADDING = 0


class HashedText(nn.Module):
    """Encodes texts as one vector each: the mean of hashed features, then a linear layer and ReLU.

    Args:
        out_dim: width of the result.
        buckets: rows of the table, row 0 being padding. Features that hash alike share a row.
        dim: width of the table.
        grams: shortest and longest group of letters taken from a word.
        dropout: probability of leaving a feature out, while training.
    """

    modality = "text"

    def __init__(
        self,
        out_dim: int = 128,
        *,
        buckets: int = 16384,
        dim: int = 64,
        grams: tuple[int, int] = (3, 5),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if buckets < 2:
            raise ValueError(f"HashedText: buckets must be at least 2, got {buckets}")
        if not 0 < grams[0] <= grams[1]:
            raise ValueError(f"HashedText: grams must be 0 < shortest <= longest, got {grams}")
        if not 0 <= dropout < 1:
            raise ValueError(f"HashedText: dropout must be in [0, 1), got {dropout}")
        self.out_dim = out_dim
        self.buckets = buckets
        self.grams = grams
        self.dropout = dropout
        self.table = nn.EmbeddingBag(buckets, dim, mode="mean", padding_idx=PADDING)
        self.project = nn.Linear(dim, out_dim)

    def preprocess(self, texts: Sequence[str]) -> torch.Tensor:
        """Turns B texts into int64 (B, L >= 1) rows of the table, padded at the end."""
        if not texts:
            return torch.empty(0, 1, dtype=torch.int64)
        ids = [torch.tensor(list(self._features(text)) or [PADDING]) for text in texts]
        return pad_sequence(ids, batch_first=True, padding_value=PADDING)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Encodes (B, L) as (B, out_dim). A text without any feature counts as the zero vector."""
        if self.training and self.dropout:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.dropout, PADDING)
        return torch.relu(self.project(self.table(ids)))

    def _features(self, text: str) -> Iterator[int]:
        for word in re.findall(r"\w+", text.lower()):
            yield self._bucket(word)
            marked = f"<{word}>"
            for size in range(self.grams[0], self.grams[1] + 1):
                for start in range(len(marked) - size + 1):
                    yield self._bucket(f"#{marked[start : start + size]}")

    def _bucket(self, feature: str) -> int:
        # crc32, not hash(): Python salts the latter anew in every process.
        return 1 + crc32(feature.encode()) % (self.buckets - 1)
