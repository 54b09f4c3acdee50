"""The contract kit without pytest: every check of an encoder, run in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

from mmfast.testing.contract import EncoderContract


@dataclass(frozen=True)
class Check:
    """What one check of the contract found.

    Attributes:
        name: of the check, without ``test_``.
        outcome: passed, failed or skipped (the check means nothing for this encoder).
        message: why it failed or was skipped; empty if it passed.
        seconds: that it took.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str
    seconds: float


def check_encoder(name: str, options: Mapping[str, Any] | None = None) -> Iterator[Check]:
    """Run the contract kit on an encoder; yields each check as it ends.

    Args:
        name: as for :func:`mmfast.create_encoder`.
        options: its options.

    Raises:
        Exception: whatever stands in the way of creating the encoder, once and not for every check.

    Example:
        >>> [check.name for check in check_encoder("text_hashed") if check.outcome == "failed"]
        []
    """
    kit = EncoderContract()
    kit.name = name
    kit.options = dict(options or {})
    kit.make_encoder()
    return run_checks(kit)


def run_checks(kit: EncoderContract) -> Iterator[Check]:
    """Run the checks of a kit, a subclass of :class:`EncoderContract` for instance; yields each."""
    for attribute in dir(kit):
        if attribute.startswith("test_"):
            yield _run(attribute.removeprefix("test_"), getattr(kit, attribute))


def _run(name: str, test: Callable[[], None]) -> Check:
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    message = ""
    start = time.perf_counter()
    try:
        test()
    except SkipTest as reason:
        outcome, message = "skipped", str(reason)
    except Exception as error:  # an encoder may raise anything; the other checks go on
        outcome, message = "failed", str(error)
    return Check(name, outcome, message, time.perf_counter() - start)
