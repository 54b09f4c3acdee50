"""GatedFusion: each feature decides anew which modality it listens to."""

import torch
from torch import Tensor

from mmfast import functional
from mmfast.nn.concat_linear import ConcatLinear
from mmfast.nn.fusion import Fusion, Inputs, Sizes, without_absent
from mmfast.nn.projections import projections
from mmfast.nn.weighted_sum import softmax_present


class GatedFusion(Fusion):
    r"""Gated multimodal unit (GMU): gates computed from all modalities weigh each of them.

    With two modalities

    .. math::
        z = \sigma(W_z [x_1; x_2]), \qquad
        y = z \odot \tanh(h_1) + (1 - z) \odot \tanh(h_2), \qquad h_m = W_m x_m + b_m

    and with more

    .. math::
        y = \sum_m z_m \odot \tanh(h_m), \qquad
        z = \mathrm{softmax}_m(g_1, \dots, g_M), \qquad [g_1; \dots; g_M] = W_z [x_1; \dots; x_M]

    of which the first is the case :math:`g_2 = 0`. For the gates the concatenation is not built.

    Args:
        in_features: the features K_m of each of at least two inputs; a mapping names the inputs.
        out_features: features N of the result.
        device, dtype: of the parameters.

    ``projections`` holds an ``nn.Linear(K_m, N)`` per modality. ``gates`` holds :math:`W_z`: its
    ``weight`` is (N, sum of K_m) with two modalities, else (M N, sum of K_m), the N rows of the
    first modality first.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality counts as zeros in :math:`W_z [\dots]` and takes no part in the softmax: with one
          modality left, y is the tanh of its projection. A row without any modality is zero.
        - output: (\*batch, N).

    Raises:
        ValueError: fewer than two inputs, a negative size; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Arevalo et al., "Gated Multimodal Units for Information Fusion", 2017. For more than two
    modalities the paper has independent sigmoids instead of the softmax; those do not add up to 1,
    nor do they give the form with two as a special case.

    Example:
        >>> layer = GatedFusion({"image": 2048, "text": 768}, 512)
        >>> layer({"image": torch.randn(8, 2048), "text": torch.randn(8, 768)}).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        count = len(self.in_features)
        if count < 2:
            raise ValueError(f"in_features gives {count} input; gates choose between at least two")
        self.projections = projections(
            self.in_features, out_features, True, device=device, dtype=dtype
        )
        self.gate_count = 1 if count == 2 else count
        self.gates = ConcatLinear(
            self.in_features, self.gate_count * out_features, bias=False, device=device, dtype=dtype
        )

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        tensors = without_absent(tensors, present)
        values = [layer(x) for layer, x in zip(self.projections, tensors, strict=True)]
        gates = self.gates(tensors).unflatten(-1, (self.gate_count, self.out_features))
        return functional.gated_sum(values, gates.unbind(-2), present)

    def modality_weights(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        r"""The gates :math:`z`, averaged over the features: (\*batch, M)."""
        tensors, present = self.ordered(inputs, present)
        gates = self.gates(without_absent(tensors, present))
        gates = gates.unflatten(-1, (self.gate_count, self.out_features))
        if self.gate_count == 1:  # the second is the 0 that the formula with two leaves out
            gates = torch.cat([gates, torch.zeros_like(gates)], -2)
        there = None if present is None else present[..., None, :]
        return softmax_present(gates.transpose(-1, -2), there).mean(-2)
