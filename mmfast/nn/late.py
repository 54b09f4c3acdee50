"""LateFusion: each modality decides for itself, then the decisions are averaged."""

import torch
from torch import Tensor, nn

from mmfast import functional
from mmfast.nn.fusion import Fusion, Inputs, Sizes, without_absent
from mmfast.nn.weighted_sum import softmax_present
from mmfast.ops.concat_linear import batch_shape
from mmfast.ops.fused import check_flag


class LateFusion(Fusion):
    r"""The average of one linear head per modality, over the modalities that are present.

    .. math:: y = \sum_m a_m (W_m x_m + b_m), \qquad
        a_m = \frac{p_m e^{s_m}}{\sum_j p_j e^{s_j}}

    with :math:`p_m` 1 where modality m is present and 0 where not, and learned scores :math:`s`, or
    none (:math:`s = 0`, the mean). Also called decision-level fusion, score fusion or ensemble
    averaging (Kittler et al., "On Combining Classifiers", 1998, compares such rules).

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result, the number of classes.
        weighted: whether to learn a score per modality; they start equal.
        device, dtype: of the parameters.

    ``heads`` are plain ``nn.Linear`` in the order of ``in_features``, so heads that were trained
    alone can be loaded; ``scores`` is (M,) or None.

    Shape:
        - inputs: a sequence of tensors (\*batch_m, K_m), or a mapping from the names given in
          ``in_features``; the batch shapes broadcast together.
        - present: bool (\*batch, M), True = there, or None for all; it may broadcast. With all
          absent the result is 0.
        - output: (\*broadcast batch, N).

    Raises:
        ValueError: no inputs or a negative size; in ``forward``, inputs whose number, names or
            sizes do not fit.
        TypeError: ``weighted`` is no bool; in ``forward``, an argument of the wrong type.

    Example:
        >>> layer = LateFusion({"image": 512, "text": 300}, 10, weighted=True)
        >>> layer({"image": torch.randn(8, 512), "text": torch.randn(8, 300)}).shape
        torch.Size([8, 10])
    """

    scores: Tensor | None

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        weighted: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_flag("weighted", weighted)
        self.heads = nn.ModuleList(
            nn.Linear(size, out_features, device=device, dtype=dtype) for size in self.in_features
        )
        if weighted:
            scores = torch.zeros(len(self.in_features), device=device, dtype=dtype)
            self.scores = nn.Parameter(scores)
        else:
            self.register_parameter("scores", None)

    def reset_parameters(self) -> None:
        """Draw the heads anew; the scores start equal."""
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            head.reset_parameters()
        if self.scores is not None:
            nn.init.zeros_(self.scores)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Average the heads' results; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        batch_shape(tensors)
        tensors = without_absent(tensors, present)
        logits = [head(x) for head, x in zip(self.heads, tensors, strict=True)]
        if self.scores is None:
            equal = logits[0].new_ones(len(logits))
            return functional.weighted_sum(logits, equal, present, normalize=True, per="modality")
        weights = softmax_present(self.scores, present)
        per = "modality" if present is None else "row"
        return functional.weighted_sum(logits, weights, present, per=per)

    def modality_weights(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        r"""The weights :math:`a`, (\*batch, M)."""
        tensors, present = self.ordered(inputs, present)
        scores = tensors[0].new_zeros(len(tensors)) if self.scores is None else self.scores
        return softmax_present(scores, present).expand(*batch_shape(tensors), len(tensors))

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, weighted={self.scores is not None}"
