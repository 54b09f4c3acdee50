"""Text encoders that read words in order: laid flat, an LSTM, a transformer; from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.common import LICENCE, groups, pool, share, valid, whole
from mmfast.encoders.lstm import MaskedLSTM, check_pooling
from mmfast.encoders.transformer import Positions, Transformer
from mmfast.encoders.vocabulary import (
    PADDING,
    UNKNOWN,
    Vocabulary,
    collate_ids,
    with_vocabulary,
)
from mmfast.plugins.contract import Batch, EncoderSpec, Features


class FlatText(nn.Module):
    """The first words of a text side by side: their embeddings, flattened into one vector.

    The second input of many a two-branch network: each place of the text has weights of its own in
    the layer that follows. Short texts end in zeros.

    Args:
        vocabulary: the words it knows; :meth:`fit_options` finds them in the training texts.
        dim: width of the embeddings.
        max_length: words to read; what follows is cut off. ``out_dim`` is ``max_length * dim``.
        dropout: of the embeddings, while training.
        word_dropout: probability of taking a word for an unknown one, while training.

    Shape:
        - batch: ``ids`` int64 (B, max_length), padded with 0; ``mask`` bool (B, max_length).
        - output: pooled (B, max_length * dim), the first ``dim`` of them the first word's.

    Raises:
        ValueError: an option out of range, or a vocabulary with a word twice.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        dim: int = 32,
        max_length: int = 16,
        dropout: float = 0.0,
        word_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.words = _Words(vocabulary, dim, dropout, word_dropout)
        self.spec = _spec(whole("max_length", max_length) * dim, "pooled", max_length)

    @classmethod
    def fit_options(
        cls,
        samples: Iterable[str | None],
        *,
        max_words: int = 30000,
        min_count: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        """The options with the vocabulary of the training texts; as ``TextBag.fit_options``."""
        return with_vocabulary(samples, max_words, min_count, options)

    def preprocess(self, raw: str) -> Tensor:
        """A text to the numbers of its words, int64 (1 <= T <= max_length,)."""
        return self.words.vocabulary.encode(raw, self.spec.max_length)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, to ``ids`` and ``mask``."""
        batch = collate_ids(samples)
        assert self.spec.max_length
        rest = self.spec.max_length - batch["ids"].shape[1]
        return {name: F.pad(values, (0, rest)) for name, values in batch.items()}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts."""
        words = valid(self.words(batch["ids"]), batch["mask"])
        return Features(words.values.flatten(1), batch["mask"].any(dim=1))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embeddings."""
        return [list(self.words.parameters())]


class TextLSTM(nn.Module):
    """Text through word embeddings and an LSTM.

    Args:
        vocabulary: the words it knows; :meth:`fit_options` finds them in the training texts.
        dim: width of the embeddings.
        hidden: features of each direction.
        layers: LSTM layers.
        bidirectional: whether to read backwards too; ``out_dim`` is then twice ``hidden``.
        output: ``pooled`` or ``tokens``, a vector per word.
        pooling: ``last``, what each direction holds after the last word it read, or ``mean``.
        max_length: words to read; what follows is cut off.
        dropout: of the embeddings and between layers, while training.
        word_dropout: probability of taking a word for an unknown one, while training, which teaches
            the encoder what to do with those.

    Shape:
        - batch: ``ids`` int64 (B, T), padded with 0; ``mask`` bool (B, T).
        - output: pooled (B, D) or tokens (B, T, D).

    Raises:
        ValueError: an option out of range, or a vocabulary with a word twice.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        dim: int = 128,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = True,
        output: str = "pooled",
        pooling: str = "last",
        max_length: int = 256,
        dropout: float = 0.0,
        word_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pooling = check_pooling(pooling)
        self.words = _Words(vocabulary, dim, dropout, word_dropout)
        self.lstm = MaskedLSTM(
            dim, hidden, layers=layers, bidirectional=bidirectional, dropout=dropout
        )
        self.spec = _spec(self.lstm.out_features, output, max_length)

    @classmethod
    def fit_options(
        cls,
        samples: Iterable[str | None],
        *,
        max_words: int = 30000,
        min_count: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        """The options with the vocabulary of the training texts; as ``TextBag.fit_options``."""
        return with_vocabulary(samples, max_words, min_count, options)

    def preprocess(self, raw: str) -> Tensor:
        """A text to the numbers of its words, int64 (1 <= T <= max_length,)."""
        return self.words.vocabulary.encode(raw, self.spec.max_length)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, to ``ids`` and ``mask``."""
        return collate_ids(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts."""
        words = self.words(batch["ids"])
        return self.lstm.features(words, batch["mask"], self.spec.output, self.pooling)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embeddings, then each LSTM layer."""
        return [list(self.words.parameters()), *self.lstm.layers()]


class TextTransformer(nn.Module):
    """Text through word embeddings, positions and a pre-norm transformer.

    Args:
        vocabulary: the words it knows; :meth:`fit_options` finds them in the training texts.
        dim: features D, of embeddings and result.
        depth: blocks.
        heads: attention heads; they divide ``dim``.
        positions: ``learned`` or ``sinusoidal``.
        output: ``pooled``, the mean over the words, or ``tokens``, a vector per word.
        max_length: words to read; what follows is cut off.
        dropout: of the embeddings and in the blocks, while training.
        word_dropout: probability of taking a word for an unknown one, while training.

    Shape:
        - batch: ``ids`` int64 (B, T), padded with 0; ``mask`` bool (B, T).
        - output: pooled (B, dim) or tokens (B, T, dim).

    Raises:
        ValueError: an option out of range, or a vocabulary with a word twice.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        positions: str = "learned",
        output: str = "pooled",
        max_length: int = 256,
        dropout: float = 0.0,
        word_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.words = _Words(vocabulary, dim, dropout, word_dropout)
        self.positions = Positions((whole("max_length", max_length),), dim, positions)
        self.transformer = Transformer(dim, depth, heads, dropout)
        self.spec = _spec(dim, output, max_length)

    @classmethod
    def fit_options(
        cls,
        samples: Iterable[str | None],
        *,
        max_words: int = 30000,
        min_count: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        """The options with the vocabulary of the training texts; as ``TextBag.fit_options``."""
        return with_vocabulary(samples, max_words, min_count, options)

    def preprocess(self, raw: str) -> Tensor:
        """A text to the numbers of its words, int64 (1 <= T <= max_length,)."""
        return self.words.vocabulary.encode(raw, self.spec.max_length)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, to ``ids`` and ``mask``."""
        return collate_ids(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts."""
        words = self.positions(self.words(batch["ids"]))
        return pool(self.transformer(words, batch["mask"]), batch["mask"], self.spec.output)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Embeddings and positions, each block, the last norm."""
        first = [*self.words.parameters(), *self.positions.parameters()]
        return [first, *groups([*self.transformer.blocks, self.transformer.norm])]


class _Words(nn.Module):
    """The vocabulary and its embeddings."""

    def __init__(
        self, vocabulary: Sequence[str], dim: int, dropout: float, word_dropout: float
    ) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary)
        self.word_dropout = share("word_dropout", word_dropout)
        self.table = nn.Embedding(len(self.vocabulary), whole("dim", dim), padding_idx=PADDING)
        self.dropout = nn.Dropout(share("dropout", dropout))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ids (B, T) as (B, T, dim)."""
        if self.training and self.word_dropout:
            chosen = torch.rand(ids.shape, device=ids.device) < self.word_dropout
            ids = ids.masked_fill(chosen, UNKNOWN)
        return self.dropout(self.table(ids))


def _spec(out_dim: int, output: str, max_length: int) -> EncoderSpec:
    return EncoderSpec(
        api_version=1,
        modality="text",
        out_dim=out_dim,
        output=output,  # type: ignore[arg-type]
        max_length=max_length,
        origin="mmfast",
        licence=LICENCE,
    )
