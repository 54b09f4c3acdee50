"""Words and their numbers, for the encoders that learn a vocabulary from the training split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.encoders.common import pad, whole
from mmfast.plugins.contract import Batch

PADDING, UNKNOWN, FIRST = 0, 1, 2
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in lower case: "It's red!" as it's, red, !."""
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; it must be a str")
    return _WORD.findall(text.lower())


class Vocabulary:
    """Numbers words: 0 is padding, 1 a word it does not know, from 2 on the known ones.

    Args:
        known: different words.
    """

    def __init__(self, known: Sequence[str]) -> None:
        if isinstance(known, str) or not all(isinstance(word, str) for word in known):
            raise ValueError(
                f"vocabulary is {known!r:.80}; it must be a list of words, as fit_options finds "
                "them in the training texts"
            )
        self.known = list(known)
        self.ids = {word: number for number, word in enumerate(self.known, FIRST)}
        if len(self.ids) != len(self.known):
            twice = next(word for word, count in Counter(known).items() if count > 1)
            raise ValueError(f"vocabulary holds {twice!r} twice; each word may be there once")

    def __len__(self) -> int:
        """Rows of the table that it needs."""
        return len(self.known) + FIRST

    def encode(self, text: str, max_length: int | None = None) -> Tensor:
        """The first ``max_length`` words as int64 (T,); a text of none is one unknown word."""
        ids = [self.ids.get(word, UNKNOWN) for word in words(text)[:max_length]]
        return torch.tensor(ids or [UNKNOWN])


def collate_ids(samples: Sequence[Tensor | None]) -> Batch:
    """Sequences of numbers to ``ids``, int64 (B, T), and ``mask``, bool (B, T)."""
    ids, mask = pad(samples, dtype=torch.int64)
    return {"ids": ids, "mask": mask}


def with_vocabulary(
    texts: Iterable[str | None], max_words: int, min_count: int, options: dict[str, Any]
) -> dict[str, Any]:
    """The options of an encoder with ``vocabulary``, unless they have one already.

    Args:
        texts: of the training split; None is passed over.
        max_words: most words to keep; the commonest stay, among equals the first in the alphabet.
        min_count: how often a word must occur.
        options: the others.
    """
    whole("max_words", max_words)
    whole("min_count", min_count)
    if options.get("vocabulary") is not None:
        return options
    counts = Counter(word for text in texts if text is not None for word in words(text))
    common = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return {**options, "vocabulary": [word for _, word in common[:max_words]]}
