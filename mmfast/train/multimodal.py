"""The model that a configuration describes: encoders, a fusion that joins them, an output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.nn import ModalityDropout, create_fusion
from mmfast.plugins import Batch, Features
from mmfast.train.config import Fusion


class MultimodalModel(nn.Module):
    """Encodes every modality, joins the codes, and maps them to the outputs of a task.

    Args:
        encoders: by modality name, modules that fulfil ``mmfast.plugins.Encoder``.
        fusion: which fusion joins them, how wide, its options.
        out_features: outputs of the task.
        hidden: widths of layers with ReLU between the fusion and the output layer.
        dropout: probability of zeroing an entry before the output layer and after hidden ones.
        modality_dropout: probability of withholding a modality of a sample, in training.
        normalise: bring each vector of each modality to mean 0 and deviation 1 before they meet.

    Fusions of tokens get the tokens of encoders that return them; others get their mean.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fusion: Fusion,
        out_features: int,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        modality_dropout: float = 0.0,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        widths = {name: out_dim(encoder) for name, encoder in encoders.items()}
        self.fusion = create_fusion(fusion.name, widths, fusion.out_features, **fusion.options)
        self.takes_tokens = "masks" in inspect.signature(self.fusion.forward).parameters
        self.modality_dropout = ModalityDropout(modality_dropout)
        self.normalise = normalise
        layers: list[nn.Module] = []
        before = fusion.out_features
        for width in hidden:
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(before, out_features)

    def forward(self, inputs: Mapping[str, Batch | Features]) -> Tensor:
        """The outputs (B, out_features).

        Args:
            inputs: by modality, what its encoder's ``collate`` returned, or the features themselves
                where they are known already (frozen encoders).
        """
        features = encode(self.encoders, inputs)
        present = torch.stack([found.present for found in features.values()], dim=1)
        codes = self.codes(features)
        if self.modality_dropout.p:
            present = self.modality_dropout(codes, present)
        if self.takes_tokens:
            masks = {n: f.mask if f.values.dim() == 3 else None for n, f in features.items()}
            joined = self.fusion(codes, present, masks)
        else:
            joined = self.fusion(codes, present)
        if joined.dim() != 2:
            raise ValueError(
                f"model.fusion gives {tuple(joined.shape)}, a vector per token; the output layer "
                "takes one per row: set its option pool to true"
            )
        return self.output(self.dropout(self.hidden(joined)))

    def codes(self, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """What the fusion is given of each modality: (B, D), or (B, T, D) if it takes tokens."""
        found = {n: f.values if self.takes_tokens else pooled(f) for n, f in features.items()}
        if not self.normalise:
            return found
        return {name: F.layer_norm(code, code.shape[-1:]) for name, code in found.items()}


class RetrievalModel(nn.Module):
    """Two encoders into one space, where what belongs together is near: the towers of CLIP.

    Args:
        encoders: by modality name, two modules that fulfil ``mmfast.plugins.Encoder``.
        dim: features of the common space.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], dim: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(out_dim(encoder), dim, bias=False)
                for name, encoder in encoders.items()
            }
        )

    def forward(self, inputs: Mapping[str, Batch | Features]) -> Tensor:
        """The embeddings (2, B, dim); inputs as in :class:`MultimodalModel`."""
        features = encode(self.encoders, inputs)
        return torch.stack(
            [project(pooled(features[name])) for name, project in self.projections.items()]
        )


def encode(encoders: nn.ModuleDict, inputs: Mapping[str, Batch | Features]) -> dict[str, Features]:
    """Every encoder's features, in the order of the encoders."""
    result = {}
    for name, encoder in encoders.items():
        given = inputs[name]
        result[name] = given if isinstance(given, Features) else encoder(given)
    return result


def pooled(features: Features) -> Tensor:
    """One vector per row (B, D): the vector itself, or the mean of the valid tokens."""
    values, mask = features
    if values.dim() == 2:
        return values
    total = values.masked_fill(~mask[..., None], 0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


def out_dim(encoder: nn.Module) -> int:
    """Features of each vector that an encoder returns."""
    return int(encoder.spec.out_dim)  # type: ignore[union-attr, arg-type]
