"""FiLM: one modality scaled and shifted by what the others say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.nn.concat_linear import ConcatLinear
from mmfast.nn.fusion import Fusion, Inputs, Sizes, without_absent
from mmfast.ops.concat_linear import batch_shape

Name = int | str


class FiLM(Fusion):
    r"""Feature-wise linear modulation of one input by all others.

    .. math:: y = \gamma(c) \odot P x + \beta(c), \qquad [\gamma(c) - 1; \beta(c)] = W c + b

    where :math:`x` is the modulated input, :math:`c` the concatenation of the conditions, which is
    never built, and :math:`P` a projection to N features, left out where x has N. Perez et al.,
    "FiLM: Visual Reasoning with a General Conditioning Layer", 2018; without :math:`\beta` it is a
    gate, over normalised features it is called adaptive or conditional normalisation (AdaIN,
    adaLN), and scale and shift in diffusion models.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        condition: the input, or the inputs, that modulate: names or positions. One input must
            remain, which is modulated. Default: all but the first.
        device, dtype: of the parameters.

    ``film`` is a :class:`ConcatLinear` from the conditions to 2 N features, first the scales,
    then the shifts; its bias starts at 0, so that a fresh layer with nothing to condition on leaves
    its input as it is. ``projection`` is a linear layer without bias, since the shift is one, or
    ``nn.Identity``.

    Shape:
        - inputs: a sequence of tensors (\*batch_m, K_m), or a mapping from the names given in
          ``in_features``. The batch shapes broadcast together: tokens (B, T, K_0) are modulated
          per sample by a condition (B, 1, K_1), channels-last maps (B, H, W, K_0) by one of shape
          (B, 1, 1, K_1).
        - present: bool (\*batch, M), True = there, or None for all; it may broadcast. An absent
          condition counts as zeros: without any, the scale is 1 and the shift 0, up to the learned
          bias. Where the modulated input is absent the result is the shift.
        - output: (\*broadcast batch, N).

    Raises:
        ValueError: fewer than two inputs, a negative size, conditions that are no inputs or leave
            none or several to be modulated; in ``forward``, inputs whose number, names or sizes do
            not fit.
        TypeError: in ``forward``, an argument of the wrong type.

    Example:
        >>> layer = FiLM({"image": 64, "text": 300}, 64, condition="text")
        >>> layer({"image": torch.randn(8, 7, 7, 64), "text": torch.randn(8, 1, 1, 300)}).shape
        torch.Size([8, 7, 7, 64])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        condition: Name | Sequence[Name] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        if len(self.in_features) < 2:
            raise ValueError(
                f"in_features is {in_features!r}; it must hold two inputs or more, one to be "
                "modulated and one that modulates"
            )
        self.condition = self._positions(condition)
        (self.modulated,) = set(range(len(self.in_features))) - set(self.condition)
        width = self.in_features[self.modulated]
        self.projection: nn.Module = nn.Identity()
        if width != out_features:
            self.projection = nn.Linear(width, out_features, False, device, dtype)
        widths = [self.in_features[i] for i in self.condition]
        self.film = ConcatLinear(widths, 2 * out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        if isinstance(self.projection, nn.Linear):
            self.projection.reset_parameters()
        self.film.reset_parameters()
        assert self.film.bias is not None
        nn.init.zeros_(self.film.bias)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Modulate; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        batch_shape(tensors)
        tensors = without_absent(tensors, present)
        x = self.projection(tensors[self.modulated])
        scale, shift = self.film([tensors[i] for i in self.condition]).chunk(2, -1)
        return torch.addcmul(shift, 1 + scale, x)

    def _positions(self, condition: Name | Sequence[Name] | None) -> tuple[int, ...]:
        count = len(self.in_features)
        if condition is None:
            return tuple(range(1, count))
        given: list[Any] = [condition]
        if not isinstance(condition, str) and isinstance(condition, Sequence):
            given = list(condition)
        known: list[Name] = [*range(count), *(self.names or ())]
        for name in given:
            if not isinstance(name, (int, str)) or isinstance(name, bool) or name not in known:
                raise ValueError(f"condition holds {name!r}; the inputs are {self._inputs()}")
        places = sorted({known.index(name) % count for name in given})
        if len(places) != count - 1:
            raise ValueError(
                f"condition is {condition!r}; it must leave one of the inputs {self._inputs()} "
                "to be modulated"
            )
        return tuple(places)

    def _inputs(self) -> str:
        return ", ".join(map(repr, self.names or range(len(self.in_features))))

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, condition={list(self.condition)}"
