"""Whether the weights of an encoder follow: those of a run that is loaded are in its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FOLLOW = ContextVar("weights follow", default=False)


@contextmanager
def giving_weights() -> Iterator[None]:
    """All weights of the encoders that are made meanwhile are given to them afterwards."""
    former = _FOLLOW.set(True)
    try:
        yield
    finally:
        _FOLLOW.reset(former)


def weights_follow() -> bool:
    """Whether an encoder need not fetch pretrained weights, since all of its own follow.

    Its constructor may ask. The state dict that follows is complete; what else the encoder takes
    from its source, such as the vocabulary of a tokenizer, is its own affair.
    """
    return _FOLLOW.get()
