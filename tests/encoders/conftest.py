"""Finds torchvision for timm, and makes small models and tokenizers of transformers.

timm imports torchvision. Where the environment has none, `make build` has put PyPI's into
`.venv/torchvision`, apart from everything that would stumble over it beside the CPU build of torch;
tests/torchvision_shim makes it importable.
"""

import importlib.util
import os
import pathlib
import sys

# Before huggingface_hub is first imported: no test reaches for the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

APART = pathlib.Path(sys.prefix) / "torchvision"

if importlib.util.find_spec("torchvision") is None and APART.is_dir():
    shim = pathlib.Path(__file__).parent.parent / "torchvision_shim"
    sys.path[:0] = [str(shim), str(APART)]
