"""The model that the loop trains: encoders, a fusion that joins them, a head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmfast.nn import create_fusion


class MultimodalClassifier(nn.Module):
    """Encodes every modality, joins the codes and classifies.

    With one encoder it is the single-modality model of the same depth, so that a comparison of
    the two shows the value of the second modality and not that of a further layer.

    Args:
        encoders: by modality name, modules with ``out_dim`` that return (B, out_dim).
        classes: number of classes C.
        hidden: width of the joined representation.
        dropout: probability of zeroing one of its entries, while training.
        fusion: name of the fusion that joins them; see ``mmfast.nn.list_fusions``.
        options: of that fusion; by default ``concat`` has a relu.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        *,
        hidden: int = 128,
        dropout: float = 0.0,
        fusion: str = "concat",
        options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("MultimodalClassifier: encoders must name at least one, got none")
        self.encoders = nn.ModuleDict(encoders)
        widths = {name: _out_dim(name, encoder) for name, encoder in encoders.items()}
        if options is None:
            options = {"activation": "relu"} if fusion == "concat" else {}
        self.fusion = create_fusion(fusion, widths, hidden, **options)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the logits (B, C). Inputs of modalities without an encoder are not looked at."""
        codes = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        return self.head(self.dropout(self.fusion(codes)))


def _out_dim(name: str, encoder: nn.Module) -> int:
    width = getattr(encoder, "out_dim", None)
    if not isinstance(width, int):
        raise TypeError(
            f"MultimodalClassifier: encoders[{name!r}] must have an int out_dim, got {width!r}"
        )
    return width
