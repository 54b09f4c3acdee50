"""Loads the compiled kernels, which registers ``torch.ops.mmfast.*``.

Every operator module imports this one, so that whatever goes wrong with the library is said once,
in words that tell what to do.
"""

import torch

OLDEST_TORCH = (2, 10)

_version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if _version < OLDEST_TORCH:
    raise ImportError(
        f"mmfast needs torch 2.10 or newer, but torch is {torch.__version__}; "
        "upgrade torch or use another environment"
    )

try:
    import mmfast._C as host
except ImportError as error:
    raise ImportError(
        f"mmfast's compiled library could not be loaded ({error}). In a source tree, build it "
        "with `make build`; otherwise reinstall mmfast with a torch that runs on this machine"
    ) from error

# Where the operators have kernels; elsewhere functions use their formulas.
DEVICES = ("cpu", "meta", "cuda") if host.build_info()["cuda"] else ("cpu", "meta")

__all__ = ["DEVICES", "OLDEST_TORCH", "host"]
