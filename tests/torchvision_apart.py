"""Finds torchvision for timm, which imports it.

Where the environment has none, `make build` has put PyPI's into `.venv/torchvision`, apart from
everything that would stumble over it beside the CPU build of torch; tests/torchvision_shim makes it
importable.
"""

import importlib.util
import pathlib
import sys

APART = pathlib.Path(sys.prefix) / "torchvision"


def find_torchvision() -> None:
    """Put it on the path, unless a torchvision is there already."""
    if importlib.util.find_spec("torchvision") is None and APART.is_dir():
        shim = pathlib.Path(__file__).parent / "torchvision_shim"
        sys.path[:0] = [str(shim), str(APART)]
