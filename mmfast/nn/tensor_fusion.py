"""TensorFusion: a linear layer over the outer product of all modalities."""

import math

import torch
from torch import Tensor, nn

from mmfast.functional.tensor_fusion import tensor_fusion
from mmfast.nn.fusion import Fusion, Inputs, Sizes
from mmfast.ops.fused import check_flag


class TensorFusion(Fusion):
    r"""``Linear(vec([1; x_1] ⊗ ... ⊗ [1; x_M]))`` without the outer product.

    .. math::
        y = W \, \mathrm{vec}([1; x_1] \otimes [1; x_2] \otimes \dots \otimes [1; x_M]) + b

    The tensor fusion network, TFN (Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment
    Analysis", 2017), with the linear layer that follows its tensor; for two inputs also called
    bilinear pooling. The ones let every product of fewer modalities take part too.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        bias: whether to learn an additive bias.
        device, dtype: of the parameters.

    ``weight`` (N, product of K_m + 1) and ``bias`` (N,) have the names, shapes and initialisation
    of the ``nn.Linear`` that would follow the flattened outer product whose first modality varies
    slowest and whose constants stand first, so state dicts move both ways. The weight grows with
    the product of all sizes: project wide inputs first, or take a low-rank fusion.

    Shape:
        - inputs: a sequence of tensors (\*batch_m, K_m), or a mapping from the names given in
          ``in_features``; the batch shapes broadcast together.
        - present: bool (\*batch, M), True = there, or None for all; it may broadcast. An absent
          modality counts as zeros, and its constant stays: with all absent the result is
          weight[:, 0] + bias.
        - output: (\*broadcast batch, N).

    Raises:
        ValueError: no inputs or a negative size; in ``forward``, inputs whose number, names or
            sizes do not fit.
        TypeError: ``bias`` is no bool; in ``forward``, an argument of the wrong type or dtype.

    Example:
        >>> layer = TensorFusion({"image": 32, "text": 16}, 4)
        >>> layer({"image": torch.randn(8, 32), "text": torch.randn(8, 16)}).shape
        torch.Size([8, 4])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_flag("bias", bias)
        width = math.prod(size + 1 for size in self.in_features)
        self.weight = nn.Parameter(torch.empty(out_features, width, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as ``nn.Linear`` draws them."""
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        return tensor_fusion(tensors, self.weight, self.bias, present)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"
