"""An LSTM over padded sequences that gives what it would give without the padding.

Packed sequences would do the same, at a cost: their lengths have to come to the host, and on CPU
they leave the library's LSTM (at 64 sequences of 50 vectors, training took 1.7 times as long). Here
each direction runs over the padded tensor: padding at the end cannot touch what came before it, and
the backward direction reads each sequence turned around within its own length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfast.encoders.common import masked_mean, one_of, share, valid, whole
from mmfast.plugins.contract import Features

POOLINGS = ("last", "mean")

# oneDNN has no LSTM in bfloat16 for other x86-64 processors, and torch 2.13 asks it for one under
# autocast all the same.
_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class MaskedLSTM(nn.Module):
    """One or more LSTM layers, of one or both directions.

    Args:
        in_features: features of the input.
        hidden: features of each direction.
        layers: number of layers; each reads both directions of the one below.
        bidirectional: whether to read backwards too; ``out_features`` is then twice ``hidden``.
        dropout: between layers, while training.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        *,
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_features = whole("hidden", hidden) * (1 + bidirectional)
        widths = [in_features] + [self.out_features] * (whole("layers", layers) - 1)
        self.forwards = nn.ModuleList(_layer(width, hidden) for width in widths)
        self.backwards = nn.ModuleList(_layer(width, hidden) for width in widths * bidirectional)
        self.dropout = nn.Dropout(share("dropout", dropout))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Runs over x (B, T, in_features); mask, bool (B, T), is True, then False, in each row.

        Returns:
            The output at each step (B, T, out_features), and the last one of each direction, which
            has read the whole sequence (B, out_features). Both are undefined, and finite, where
            mask is False.
        """
        steps = torch.arange(x.shape[1], device=x.device)
        lengths = mask.sum(dim=1, keepdim=True)
        turned = torch.where(mask, lengths - 1 - steps, steps)
        for number, layer in enumerate(self.forwards):
            x = self.dropout(x) if number else x
            outputs = [_run(layer, x)]
            if self.backwards:
                back = _run(self.backwards[number], _take(x, turned))
                outputs.append(_take(back, turned))
            x = torch.cat(outputs, dim=-1)
        last = [_take(outputs[0], (lengths - 1).clamp(min=0))[:, 0]]
        last += [back[:, 0] for back in outputs[1:]]
        return x, torch.cat(last, dim=-1)

    def features(self, x: Tensor, mask: Tensor, output: str, pooling: str) -> Features:
        """The outputs as an encoder returns them: tokens, or pooled to the last or the mean."""
        tokens, last = self(x, mask)
        if output == "tokens":
            return valid(tokens, mask)
        present = mask.any(dim=1)
        if pooling == "mean":
            return Features(masked_mean(tokens, mask), present)
        return valid(last, present)

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, from the input on."""
        found = [list(layer.parameters()) for layer in self.forwards]
        for parameters, layer in zip(found, self.backwards, strict=False):
            parameters += layer.parameters()
        return found


def check_pooling(pooling: str) -> str:
    """``pooling`` itself, or ValueError."""
    return one_of("pooling", pooling, POOLINGS)


def _layer(in_features: int, hidden: int) -> nn.LSTM:
    layer = nn.LSTM(in_features, hidden, batch_first=True)
    # A forget gate that starts open remembers (Jozefowicz et al., 2015, "An Empirical Exploration
    # of Recurrent Network Architectures"). Gates are ordered input, forget, cell, output.
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = 1
    return layer


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a layer at each step; where autocast cannot be had, in its own dtype."""
    if _BFLOAT16 or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return layer(x)[0]
    with torch.autocast("cpu", enabled=False):
        return layer(x.to(layer.get_parameter("weight_ih_l0").dtype))[0]


def _take(x: Tensor, steps: Tensor) -> Tensor:
    """Picks x (B, T, D) at the steps (B, S) of each row: (B, S, D)."""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[-1]))
