"""WeightedSum: modalities added with learned weights."""

import torch
from torch import Tensor, nn

from mmfast import functional
from mmfast.nn.fusion import Fusion, Inputs, Sizes
from mmfast.nn.projections import project, projections
from mmfast.ops.concat_linear import batch_shape

WEIGHTS = ("modality", "feature", "softmax")


class WeightedSum(Fusion):
    r"""The sum of the modalities, each times a weight that is learned.

    .. math:: y = \sum_m p_m\, a_m \odot h_m, \qquad h_m = W_m x_m + b_m

    where :math:`p_m` is 1 for a modality that is present and 0 for one that is not. Inputs that
    have N features already are not projected: there :math:`h_m = x_m`.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        weights: what :math:`a` is.

            - ``modality``: a number for each modality; ``weight`` is (M,).
            - ``feature``: a number for each modality and feature; ``weight`` is (M, N).
            - ``softmax``: positive numbers that add up to 1 over the modalities present in a row,
              :math:`a_m = e^{w_m} / \sum_k p_k e^{w_k}`; ``weight``, (M,), holds the :math:`w_m`.
        project: True to project every input; None (default) to project those whose K_m differs
            from N; False to refuse such inputs.
        device, dtype: of the parameters.

    Each way starts as the mean of the (projected) modalities. ``projections`` holds an
    ``nn.Linear`` or ``nn.Identity`` per modality.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. A row without
          any modality is zero.
        - output: (\*batch, N).

    Raises:
        ValueError: no inputs, a negative size, unknown ``weights``; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Elsewhere this is called additive or sum fusion; ``softmax`` is the scalar mix of ELMo (Peters
    et al., "Deep contextualized word representations", 2018) without its common factor.

    Example:
        >>> layer = WeightedSum({"image": 512, "text": 768}, 512, weights="softmax")
        >>> layer({"image": torch.randn(8, 512), "text": torch.randn(8, 768)}).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        weights: str = "modality",
        project: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        if not isinstance(weights, str) or weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
        self.weights = weights
        count = len(self.in_features)
        shape = (count, out_features) if weights == "feature" else (count,)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.projections = projections(
            self.in_features, out_features, project, device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights to the mean; the projections have a ``reset_parameters`` each."""
        equal = 0.0 if self.weights == "softmax" else 1 / len(self.in_features)
        nn.init.constant_(self.weight, equal)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        weights: Tensor = self.weight
        per = self.weights
        if per == "softmax":
            weights = softmax_present(weights, present)
            per = "modality" if present is None else "row"
        projected = project(self.projections, tensors, present)
        return functional.weighted_sum(projected, weights, present, per=per)

    def modality_weights(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        r"""The weights :math:`a`, averaged over features, (\*batch, M); they may be negative."""
        tensors, present = self.ordered(inputs, present)
        if self.weights == "softmax":
            weights = softmax_present(self.weight, present)
        else:
            mean = self.weight if self.weights == "modality" else self.weight.mean(-1)
            weights = mean if present is None else mean.where(present, 0)
        return weights.expand(*batch_shape(tensors), len(tensors))

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, weights={self.weights!r}"


def softmax_present(logits: Tensor, present: Tensor | None) -> Tensor:
    r"""Softmax over the modalities that are present; the others get 0, in rows without any too.

    Args:
        logits: (\*batch, M), finite where a modality is absent.
        present: bool (\*batch, M) or None; the two broadcast together.
    """
    if present is None:
        return logits.softmax(-1)
    # The lowest number and not -inf: a row without any modality would be NaN on its way, and so
    # would its gradient, which torch.autograd.detect_anomaly takes for an error.
    lowest = torch.finfo(logits.dtype).min
    return torch.where(present, torch.where(present, logits, lowest).softmax(-1), 0)
