"""ModalityDropout: modalities go missing in training, so that a model learns to do without."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfast.nn.fusion import Inputs
from mmfast.ops.concat_linear import batch_shape
from mmfast.ops.fused import check_flag


class ModalityDropout(nn.Module):
    r"""Draws which modalities a fusion may see: ``fusion(inputs, dropout(inputs, present))``.

    In training each modality that is present in a row is dropped with probability p, independently
    of the others. Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition", 2015; also
    called sensor dropout. Nothing is scaled up for it: a fusion module counts only what is present.

    Args:
        p: the probability of dropping a modality, 0 to 1.
        at_least_one: whether a row that would lose all its modalities keeps one of them, drawn
            uniformly.

    Shape:
        - inputs: the fusion's inputs, a sequence or mapping of tensors (\*batch_m, K_m). Only their
          shapes and device are read, and only where ``present`` is None.
        - present: bool (\*batch, M), or None for all present. A row is a row of ``present``: for
          tokens (B, T_m, K_m) that are to be dropped together give what the fusion takes, (B, M) or
          (B, 1, M).
        - output: bool, of the shape of ``present``, or (\*broadcast batch, M); True = keep. In
          evaluation it is ``present``, or all True.

    Draws from torch's default generator of the device, so ``torch.manual_seed`` repeats it.

    Raises:
        ValueError: p is no probability; ``inputs`` or ``present`` have shapes that do not fit.
        TypeError: ``inputs`` holds no tensors, ``present`` or ``at_least_one`` is not bool.

    Example:
        >>> dropout = ModalityDropout(0.3)
        >>> inputs = [torch.randn(8, 512), torch.randn(8, 300)]
        >>> dropout(inputs).any(-1).all()
        tensor(True)
    """

    def __init__(self, p: float = 0.1, at_least_one: bool = True) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ValueError(f"p is {p!r}; it must be a probability, 0 to 1")
        check_flag("at_least_one", at_least_one)
        self.p = p
        self.at_least_one = at_least_one

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Which modalities are to be seen; see the class for shapes."""
        given = inputs.values() if isinstance(inputs, Mapping) else inputs
        if not isinstance(inputs, (Mapping, Sequence)):
            raise TypeError(
                f"inputs must be a sequence or mapping of tensors, got {type(inputs).__name__}"
            )
        tensors = list(given)
        for i, x in enumerate(tensors):
            if not isinstance(x, Tensor):
                raise TypeError(f"inputs[{i}] must be a tensor, got {type(x).__name__}")
        if not tensors:
            raise ValueError("inputs is empty; it must hold at least one tensor")
        if present is None:
            shape = (*batch_shape(tensors), len(tensors))
            present = torch.ones(shape, dtype=torch.bool, device=tensors[0].device)
        else:
            _check_present(present, len(tensors))
        if not self.training or self.p == 0:
            return present
        draw = torch.rand(present.shape, device=present.device)
        keep = draw >= self.p
        if self.at_least_one:
            # Whatever is kept at all, the present modality of the largest draw is: keeping that one
            # in any case touches only rows that would be left with none.
            draw = draw.where(present, -1)
            keep = keep | (draw == draw.amax(-1, keepdim=True))
        return present & keep

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"p={self.p}, at_least_one={self.at_least_one}"


def _check_present(present: Tensor, modalities: int) -> None:
    # Less than a fusion asks for: for sequences it has fewer dimensions than the inputs.
    if not isinstance(present, Tensor) or present.dtype != torch.bool:
        found = present.dtype if isinstance(present, Tensor) else type(present).__name__
        raise TypeError(f"present must be a bool tensor, True = present, or None, got {found}")
    if present.dim() == 0 or present.shape[-1] != modalities:
        raise ValueError(
            f"present has shape {tuple(present.shape)}; it must be (*batch, {modalities}), a value "
            "per row and input"
        )
