"""mmfast: multimodal fusion for PyTorch in which the concatenation costs nothing."""

from importlib.metadata import version as _version

__version__ = _version("mmfast")

__all__ = [
    "__version__",
    "concat_linear",
    "create_encoder",
    "functional",
    "fuse",
    "inductor",
    "list_encoders",
    "losses",
    "nn",
    "plugins",
    "register_encoder",
]

try:
    from mmfast import functional, losses, nn, plugins
    from mmfast.functional import concat_linear
    from mmfast.fusing import fuse, inductor
    from mmfast.plugins import create_encoder, list_encoders, register_encoder
except ImportError as _error:
    # Told at first use, so that `mmfast doctor` can be imported and say more.
    _reason = _error

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(f"mmfast.{name} is unavailable: {_reason}") from _reason
        raise AttributeError(f"module 'mmfast' has no attribute {name!r}")
