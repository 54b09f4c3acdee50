"""Text encoders that ignore the order of words: the mean of a table's rows, then a linear layer.

The averaging network of Iyyer et al. (2015), "Deep Unordered Composition Rivals Syntactic Methods
for Text Classification", its word dropout included: short texts need little more. Words and
punctuation are told apart by letters and spaces, so a language written without spaces wants
:class:`HashedText` or a tokenizer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from mmfast.encoders.common import LICENCE, groups, share, valid, whole
from mmfast.encoders.vocabulary import (
    PADDING,
    Vocabulary,
    collate_ids,
    with_vocabulary,
)
from mmfast.plugins.contract import Batch, EncoderSpec, Features


class HashedText(nn.Module):
    """Text as one vector, without a vocabulary: words and their letter groups, hashed into a table.

    The features are those of fastText (Bojanowski et al., 2017, "Enriching Word Vectors with
    Subword Information"): rare words share the letter groups of frequent ones, and there is nothing
    to fit or to ship beside the weights.

    Args:
        out_dim: features D of the result.
        buckets: rows of the table, row 0 being padding. Features that hash alike share a row.
        dim: width of the table.
        grams: shortest and longest group of letters taken from a word.
        dropout: probability of leaving a feature out, while training.

    Shape:
        - batch: ``ids`` int64 (B, L), padded with 0; ``mask`` bool (B, L).
        - output: pooled (B, out_dim). A text without any feature counts as the zero vector before
          the linear layer.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        out_dim: int = 128,
        *,
        buckets: int = 16384,
        dim: int = 64,
        grams: Sequence[int] = (3, 5),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.buckets = whole("buckets", buckets, 2)
        if len(grams) != 2 or not 0 < grams[0] <= grams[1]:
            raise ValueError(f"grams is {grams!r}; it must be two ints, 0 < shortest <= longest")
        self.grams = (grams[0], grams[1])
        self.spec = _spec(out_dim)
        self.bag = _Bag(buckets, dim, out_dim, dropout)

    def preprocess(self, raw: str) -> Tensor:
        """A text to rows of the table, int64 (L >= 1,)."""
        if not isinstance(raw, str):
            raise TypeError(f"text is a {type(raw).__name__}; it must be a str")
        return torch.tensor(list(self._rows(raw)) or [PADDING])

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, to ``ids`` and ``mask``."""
        return collate_ids(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts as (B, out_dim)."""
        return self.bag(batch["ids"], batch["mask"])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The table, then the linear layer."""
        return groups([self.bag.table, self.bag.project])

    def _rows(self, text: str) -> Iterator[int]:
        for word in re.findall(r"\w+", text.lower()):
            yield self._bucket(word)
            marked = f"<{word}>"
            for size in range(self.grams[0], self.grams[1] + 1):
                for start in range(len(marked) - size + 1):
                    yield self._bucket(f"#{marked[start : start + size]}")

    def _bucket(self, feature: str) -> int:
        # crc32, not hash(): Python salts the latter anew in every process.
        return 1 + crc32(feature.encode()) % (self.buckets - 1)


class TextBag(nn.Module):
    """Text as one vector: the mean of word embeddings, a linear layer and ReLU.

    Args:
        vocabulary: the words it knows; :meth:`fit_options` finds them in the training texts.
        out_dim: features D of the result.
        dim: width of the embeddings.
        dropout: probability of leaving a word out, while training.

    Shape:
        - batch: ``ids`` int64 (B, T), padded with 0; ``mask`` bool (B, T).
        - output: pooled (B, out_dim).

    Raises:
        ValueError: an option out of range, or a vocabulary with a word twice.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        out_dim: int = 128,
        dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary)
        self.spec = _spec(out_dim)
        self.bag = _Bag(len(self.vocabulary), dim, out_dim, dropout)

    @classmethod
    def fit_options(
        cls,
        samples: Iterable[str | None],
        *,
        max_words: int = 30000,
        min_count: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        """The options with the vocabulary of the training texts.

        Args:
            samples: texts; None, a missing one, is passed over.
            max_words: most words to keep, the commonest.
            min_count: how often a word must occur.
            options: of the constructor, passed on.
        """
        return with_vocabulary(samples, max_words, min_count, options)

    def preprocess(self, raw: str) -> Tensor:
        """A text to the numbers of its words, int64 (T >= 1,)."""
        return self.vocabulary.encode(raw)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, to ``ids`` and ``mask``."""
        return collate_ids(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts as (B, out_dim)."""
        return self.bag(batch["ids"], batch["mask"])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embeddings, then the linear layer."""
        return groups([self.bag.table, self.bag.project])


class _Bag(nn.Module):
    """relu(linear(mean of the table's rows)), invalid where no row is."""

    def __init__(self, rows: int, dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = share("dropout", dropout)
        self.table = nn.EmbeddingBag(rows, whole("dim", dim), mode="mean", padding_idx=PADDING)
        self.project = nn.Linear(dim, out_dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        if self.training and self.dropout:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.dropout, PADDING)
        return valid(torch.relu(self.project(self.table(ids))), mask.any(dim=1))


def _spec(out_dim: int) -> EncoderSpec:
    return EncoderSpec(
        api_version=1, modality="text", out_dim=out_dim, origin="mmfast", licence=LICENCE
    )
