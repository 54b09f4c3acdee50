"""The state of every random generator that training draws from, as JSON can hold it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, the CUDA ones among them."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = numpy
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned; ValueError where this machine cannot."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"]:
        if torch.cuda.device_count() != len(state["cuda"]):
            raise ValueError(
                f"the checkpoint holds the random states of {len(state['cuda'])} GPUs; this "
                f"process sees {torch.cuda.device_count()}"
            )
        torch.cuda.set_rng_state_all([_bytes(one) for one in state["cuda"]])


def _hex(state: torch.Tensor) -> str:
    return bytes(state.cpu().tolist()).hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
