"""AttentionPool and AttentionFusion: modalities weighed by a softmax over them."""

import torch
from torch import Tensor, nn

from mmfast import functional
from mmfast.nn.concat_linear import ConcatLinear
from mmfast.nn.fusion import Fusion, Inputs, Sizes, check_size, without_absent
from mmfast.nn.projections import project, projections
from mmfast.nn.weighted_sum import softmax_present
from mmfast.ops.fused import check_flag


class AttentionPool(Fusion):
    r"""Attention over the modalities with one learned query.

    .. math::
        y = \sum_m a_m h_m, \qquad
        a = \mathrm{softmax}_m\left(\frac{q \cdot h_m}{\sqrt{N}}\right), \qquad h_m = W_m x_m + b_m

    With several heads, this for every head's share of the features by itself: the first N / heads
    features of :math:`q` and :math:`h_m` are the first head's. Inputs that have N features already
    are not projected: there :math:`h_m = x_m`.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        num_heads: heads, a divisor of N.
        project: True to project every input; None (default) to project those whose K_m differs
            from N; False to refuse such inputs.
        device, dtype: of the parameters.

    ``query`` is (N,). It starts as zeros, which makes the module the mean of the modalities
    present. ``projections`` holds an ``nn.Linear`` or ``nn.Identity`` per modality.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. The softmax is
          over the modalities present; a row without any is zero.
        - output: (\*batch, N), and with ``return_weights`` also the weights :math:`a`,
          (\*batch, num_heads, M), which are zero for absent modalities.

    Raises:
        ValueError: no inputs, a negative size, ``num_heads`` that does not divide ``out_features``;
            in ``forward``, what :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    The attention of Yang et al., "Hierarchical Attention Networks for Document Classification",
    2016, over modalities; also called attention pooling or pooling by a learned query.

    Example:
        >>> layer = AttentionPool({"image": 512, "text": 768}, 512, num_heads=8)
        >>> layer({"image": torch.randn(4, 512), "text": torch.randn(4, 768)}).shape
        torch.Size([4, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        num_heads: int = 1,
        project: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.num_heads = check_size("num_heads", num_heads, 1)
        if out_features % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}; it must divide out_features, which is {out_features}"
            )
        self.query = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.projections = projections(
            self.in_features, out_features, project, device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the query to zeros; the projections have a ``reset_parameters`` each."""
        nn.init.zeros_(self.query)

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        return functional.attention_pool(
            project(self.projections, tensors, present),
            self.query,
            present,
            num_heads=self.num_heads,
            return_weights=return_weights,
        )

    def modality_weights(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        r"""The weights :math:`a`, averaged over the heads: (\*batch, M)."""
        _, weights = self(inputs, present, return_weights=True)
        return weights.mean(-2)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, num_heads={self.num_heads}"


class AttentionFusion(Fusion):
    r"""Attention over the modalities whose scores come from all of them together.

    .. math::
        y = \sum_m a_m (W_m x_m + b_m), \qquad
        a = \mathrm{softmax}(W_a [x_1; \dots; x_M] + b_a)

    The concatenation is not built.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        device, dtype: of the parameters.

    ``attention`` has the ``weight`` (M, sum of K_m) and ``bias`` (M,) of an ``nn.Linear``,
    ``projections`` an ``nn.Linear`` to N features per modality. They are ``attention.0`` and
    ``encoding_projection`` of torchmultimodal's ``AttentionFusionModule`` when the inputs are in
    the order of their sorted names, which is the order there.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality counts as zeros in :math:`W_a [\dots]` and takes no part in the softmax; a row
          without any is zero.
        - output: (\*batch, N), and with ``return_weights`` also the weights :math:`a`,
          (\*batch, M), which are zero for absent modalities.

    Raises:
        ValueError: no inputs, a negative size; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    torchmultimodal's ``AttentionFusionModule``, for any batch shape.

    Example:
        >>> layer = AttentionFusion({"image": 2048, "text": 768}, 512)
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
        self.attention = ConcatLinear(
            self.in_features, len(self.in_features), device=device, dtype=dtype
        )
        self.projections = projections(
            self.in_features, out_features, True, device=device, dtype=dtype
        )

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Join ``inputs``; see the class for shapes."""
        check_flag("return_weights", return_weights)
        tensors, present = self.ordered(inputs, present)
        tensors = without_absent(tensors, present)
        weights = softmax_present(self.attention(tensors), present)
        values = [layer(x) for layer, x in zip(self.projections, tensors, strict=True)]
        result = functional.weighted_sum(values, weights, present, per="row")
        return (result, weights) if return_weights else result

    def modality_weights(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        r"""The weights :math:`a`, (\*batch, M)."""
        weights: Tensor = self(inputs, present, return_weights=True)[1]
        return weights
