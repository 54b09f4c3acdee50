"""A model that is read from a checkpoint may not be much larger than what the checkpoint holds.

The configuration in a checkpoint says how wide its layers are. A few bytes could ask for all of the
memory, and would get it before the weights turn out not to fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmfast.train.checkpoint import CheckpointError

# Encoders may build more than they keep: the decoder beside an encoder, a head.
_TIMES = 4
_LEAST = 1 << 28


@contextmanager
def no_larger_than(tensors: Mapping[str, torch.Tensor], path: object) -> Iterator[None]:
    """Refuse parameters beyond four times what ``tensors`` hold, before they are filled.

    Raises:
        CheckpointError: the modules that are made meanwhile are larger; ``path`` is to blame.
    """
    held = sum(tensor.nbytes for tensor in tensors.values())
    limit = max(_LEAST, _TIMES * held)
    made = 0

    def look(_: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += 0 if parameter is None else parameter.nbytes
        if made > limit:
            raise _too_large(path, held, made)

    hook = register_module_parameter_registration_hook(look)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CheckpointError) or "allocate memory" not in f"{error}":
            raise
        raise _too_large(path, held, None) from error
    finally:
        hook.remove()


def _too_large(path: object, held: int, made: int | None) -> CheckpointError:
    asked = "more than there is memory" if made is None else f"{made} bytes or more"
    return CheckpointError(
        f"{path} holds weights of {held} bytes, and its config.yaml describes a model of {asked}; "
        "they do not belong together"
    )
