"""What every fusion module shares: inputs by position or by name, and which of them are present."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfast.ops.concat_linear import check_dense
from mmfast.ops.fused import check_device

Sizes = Sequence[int] | Mapping[str, int]
Inputs = Sequence[Tensor] | Mapping[str, Tensor]
LARGEST = 2**63 - 1  # a size of a tensor


class Fusion(nn.Module):
    r"""Joins the features of several modalities; the parent of the modules of this package.

    Args:
        in_features: the features K_i of each input, in order; a mapping names the inputs.
        out_features: features N of the result.

    Subclasses define ``forward(inputs, present=None)`` and begin it with :meth:`ordered`:

    - inputs: a sequence of tensors (\*batch, K_i), or a mapping from the names given in
      ``in_features``.
    - present: bool (\*batch, M), True where a modality is there, or None for all. It may broadcast.
      What an absent modality holds, NaN included, changes neither result nor gradients, and its own
      gradient is zero.

    Those that weigh modalities also define ``modality_weights(inputs, present=None)``: how much
    each counts in each row, (\*batch, M), 0 where it is absent; averaged over heads or features
    where these have weights of their own. It is what reports show; a large weight on small features
    still contributes little.
    """

    def __init__(self, in_features: Sizes, out_features: int) -> None:
        super().__init__()
        self.names: tuple[str, ...] | None = (
            tuple(in_features) if isinstance(in_features, Mapping) else None
        )
        self.in_features = sizes(in_features)
        self.out_features = check_size("out_features", out_features)

    def ordered(
        self, inputs: Inputs, present: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """The inputs in the order of ``in_features``, and ``present``, both checked.

        Raises:
            TypeError: an input is not a dense floating tensor, or ``present`` not a bool tensor.
            ValueError: number, names or last sizes differ from ``in_features``, ``present`` does
                not broadcast with the inputs' batch shapes, or they are on several devices.
        """
        tensors = by_name(inputs, self.names)
        if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
            raise TypeError(
                f"inputs must be a sequence or mapping of tensors, got {type(tensors).__name__}"
            )
        check_inputs(tensors)
        widths = tuple([x.shape[-1] if x.dim() else 0 for x in tensors])
        if widths != self.in_features:
            raise ValueError(
                f"inputs have last sizes {list(widths)}; in_features says {list(self.in_features)}"
            )
        if present is not None:
            check_present(present, [x.shape[:-1] for x in tensors], tensors[0].device)
        return list(tensors), present

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        features: object = list(self.in_features)
        if self.names is not None:
            features = dict(zip(self.names, self.in_features, strict=True))
        return f"in_features={features}, out_features={self.out_features}"


def by_name(inputs: Inputs, names: tuple[str, ...] | None) -> Sequence[Tensor]:
    """The inputs as a sequence: a mapping is put into the order of ``names``."""
    if not isinstance(inputs, Mapping):
        return inputs
    if names is None:
        raise ValueError(
            "inputs is a mapping but in_features names no inputs; "
            "give in_features as a mapping, or the inputs as a sequence"
        )
    if set(inputs) != set(names):
        raise ValueError(
            f"inputs has the names {_sorted(inputs)}; in_features says {_sorted(names)}"
        )
    return [inputs[name] for name in names]


def check_inputs(tensors: Sequence[Tensor]) -> None:
    """Raise unless they are dense floating tensors on one device.

    That they have the dtype of the parameters is left to the layers: under autocast and FSDP what a
    layer gets is not what it computes with.
    """
    for i, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs[{i}] must be a tensor, got {type(x).__name__}")
        check_dense(f"inputs[{i}]", x)
        if not x.is_floating_point():
            raise TypeError(f"inputs[{i}] has dtype {x.dtype}; it must be a floating one")
        check_device(f"inputs[{i}]", x, "inputs[0]", tensors[0].device)


def check_present(
    present: Tensor, batches: Sequence[torch.Size], device: torch.device | None = None
) -> None:
    """Raise unless ``present`` is a bool tensor that broadcasts to (\\*batch, modalities).

    ``device``: that of the inputs, to share.
    """
    if not isinstance(present, Tensor):
        raise TypeError(f"present must be a bool tensor or None, got {type(present).__name__}")
    if present.dtype != torch.bool:
        raise TypeError(f"present has dtype {present.dtype}; it must be torch.bool, True = present")
    check_dense("present", present)
    if device is not None:
        check_device("present", present, "inputs[0]", device)
    try:
        batch = torch.broadcast_shapes(*batches)
    except RuntimeError:
        listed = ", ".join(str(tuple(shape)) for shape in batches[:8])
        raise ValueError(
            f"the batch shapes of inputs do not broadcast together: {listed}; each must be equal "
            "or 1, from the right"
        ) from None
    wanted = (*batch, len(batches))
    fits = present.dim() <= len(wanted) and all(
        size in (1, full)
        for size, full in zip(reversed(present.shape), reversed(wanted), strict=False)
    )
    if not fits or present.dim() == 0 or present.shape[-1] != len(batches):
        raise ValueError(
            f"present has shape {tuple(present.shape)}; it must be {wanted}, a value per row and "
            "modality, or broadcast to it"
        )


def without_absent(inputs: Sequence[Tensor], present: Tensor | None) -> list[Tensor]:
    """The inputs with zeros where a modality is absent, whatever stood there; gradients too."""
    if present is None:
        return list(inputs)
    return [x.where(present[..., i, None], 0) for i, x in enumerate(inputs)]


def check_size(name: str, size: int, least: int = 0) -> int:
    """``size`` itself, or ValueError unless it is an int of at least ``least`` below 2**63."""
    if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= LARGEST:
        raise ValueError(f"{name} is {size!r}; it must be an int of at least {least}, below 2**63")
    return size


def sizes(in_features: Sizes) -> tuple[int, ...]:
    """The features of each input, checked."""
    if isinstance(in_features, str) or not isinstance(in_features, (Sequence, Mapping)):
        raise ValueError(
            f"in_features is {in_features!r}; it must be a sequence of sizes, or a mapping from "
            "names to sizes"
        )
    found = tuple(in_features.values() if isinstance(in_features, Mapping) else in_features)
    if not found:
        raise ValueError("in_features is empty; it must give the features of at least one input")
    for size in found:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= LARGEST:
            raise ValueError(
                f"in_features holds {size!r}; each must be an int of at least 0, below 2**63"
            )
    return found


def _sorted(names: Iterable[object]) -> list[str]:
    return sorted(map(str, names))
