"""mmfast: multimodal fusion for PyTorch in which the concatenation costs nothing."""

import sys
from importlib.metadata import version as _version

__version__ = _version("mmfast")

__all__ = ["__version__", "concat_linear", "functional", "nn"]

# `python -m mmfast.doctor` must be able to say why the library does not load.
if "mmfast.doctor" not in sys.orig_argv:
    from mmfast import functional, nn
    from mmfast.functional import concat_linear
