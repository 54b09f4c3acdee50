"""The encoders mmfast ships: plain modules that state `modality` and `out_dim`.

Each has ``preprocess``, from raw data to the tensor its ``forward`` takes, and ``forward``, from
that tensor to (B, out_dim).
"""

from mmfast.encoders.conv import SmallConvNet
from mmfast.encoders.text import HashedText

__all__ = ["HashedText", "SmallConvNet"]
