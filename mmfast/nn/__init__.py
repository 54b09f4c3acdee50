"""Fusion modules. Each joins several modalities and drops into models that already exist."""

from mmfast.nn.concat_linear import ConcatLinear

__all__ = ["ConcatLinear"]
