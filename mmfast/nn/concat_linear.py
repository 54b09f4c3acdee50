"""ConcatLinear: the linear layer behind a concatenation, without the concatenation."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmfast import functional
from mmfast.nn.fusion import (
    Fusion,
    Inputs,
    Sizes,
    by_name,
    check_inputs,
    check_present,
    sizes,
    without_absent,
)
from mmfast.ops.concat_linear import check_activation, check_arguments, check_index_range
from mmfast.ops.fused import check_flag

Index = Sequence[Tensor | None] | Mapping[str, Tensor | None]


class ConcatLinear(Fusion):
    r"""``act(Linear(cat(inputs)))`` with the parameters of ``nn.Linear``.

    Args:
        in_features: the features K_i of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        bias: whether to learn an additive bias.
        activation: ``none``, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh`` or ``sigmoid``.
        device, dtype: of the parameters.

    ``weight`` (N, sum of K_i) and ``bias`` (N,) have the names, shapes and initialisation that
    ``nn.Linear(sum(in_features), out_features)`` gives them, so state dicts move both ways.

    Shape:
        - inputs: a sequence of tensors (\*batch_i, K_i), or a mapping from the names given in
          ``in_features``; the batch shapes broadcast together.
        - present: bool (\*broadcast batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An
          absent input counts as zeros; without any, the result is ``act(bias)``.
        - output: (\*broadcast batch, N).

    Raises:
        ValueError: no inputs, a negative size, an unknown activation; in ``forward``, inputs whose
            number, names or last sizes differ from ``in_features``, or ``present`` that does not
            fit them.

    Example:
        >>> layer = ConcatLinear({"image": 2048, "text": 768}, 512, activation="relu")
        >>> layer({"image": torch.randn(8, 2048), "text": torch.randn(8, 768)}).shape
        torch.Size([8, 512])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        bias: bool = True,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_flag("bias", bias)
        check_activation(activation)
        self.activation = activation
        shape = (out_features, sum(self.in_features))
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as ``nn.Linear`` draws them."""
        # nn.Linear's own code, so that the same seed gives the same values in every torch release.
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        in_features: Sizes,
        activation: str = "none",
    ) -> "ConcatLinear":
        """The layer that stands for ``linear`` behind a concatenation, sharing its parameters.

        Args:
            linear: a plain ``nn.Linear``; its weight and bias are shared, not copied.
            in_features: as in the constructor; they must add up to ``linear.in_features``.
            activation: as in the constructor.

        Raises:
            TypeError: ``linear`` is no plain ``nn.Linear`` (a subclass may compute something else).
            ValueError: the sizes do not add up.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        widths = sizes(in_features)
        if sum(widths) != linear.in_features:
            raise ValueError(
                f"in_features {list(widths)} add up to {sum(widths)} but linear.in_features is "
                f"{linear.in_features}; they must be equal"
            )
        layer = cls(
            in_features,
            linear.out_features,
            bias=linear.bias is not None,
            activation=activation,
            device="meta",
            dtype=linear.weight.dtype,
        )
        layer.weight = linear.weight
        layer.bias = linear.bias
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """The ``nn.Linear`` to put behind a concatenation again, sharing the parameters.

        The activation is not part of it.

        Raises:
            TypeError: a parametrization computes the weight or bias; remove it first.
        """
        if hasattr(self, "parametrizations"):
            raise TypeError(
                "this layer has parametrizations, whose results cannot be shared; remove them "
                "first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        linear = nn.Linear(
            sum(self.in_features),
            self.out_features,
            bias=self.bias is not None,
            device="meta",
            dtype=self.weight.dtype,
        )
        linear.weight = self.weight
        linear.bias = self.bias  # type: ignore[assignment]
        return linear.train(self.training)

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, index: Index | None = None
    ) -> Tensor:
        """Join ``inputs``; see the class for shapes, ``mmfast.concat_linear`` for ``index``.

        ``index`` is a sequence or a mapping as ``inputs`` is; a mapping may leave inputs out. With
        ``present``, the batch shape of an input that has an index is that of the index, and what is
        absent is the entry: the row that it would pick is there for other entries.
        """
        tensors = by_name(inputs, self.names)
        if isinstance(index, Mapping):
            index = self._ordered_index(index)
        # Not self.ordered: small layers take microseconds, so only what is wrong is looked into.
        try:
            if isinstance(tensors, Tensor):  # iterating would take its rows for the inputs
                raise TypeError
            widths = tuple([x.shape[-1] if x.dim() else 0 for x in tensors])
        except (AttributeError, RuntimeError, TypeError):
            check_arguments(tensors, self.weight, self.bias, self.activation)
            raise
        if widths != self.in_features:
            raise ValueError(
                f"inputs have last sizes {list(widths)}; in_features says {list(self.in_features)}"
            )
        if present is not None:
            batches = [x.shape[:-1] for x in tensors]
            if index is not None:
                check_arguments(tensors, self.weight, self.bias, self.activation, index)
                batches = [
                    shape if entries is None else entries.shape
                    for shape, entries in zip(batches, index, strict=True)
                ]
            check_inputs(tensors)
            check_present(present, batches, tensors[0].device)
            if index is None:
                tensors = without_absent(tensors, present)
            else:
                tensors, index = _without_absent_entries(tensors, present, index)
        return functional.concat_linear(
            tensors, self.weight, self.bias, activation=self.activation, index=index
        )

    def _ordered_index(self, index: Mapping[str, Tensor | None]) -> list[Tensor | None]:
        names = self.names or ()
        unknown = set(index) - set(names)
        if unknown:
            raise ValueError(
                f"index has the names {sorted(map(str, unknown))}; "
                f"in_features says {sorted(map(str, names))}"
            )
        return [index.get(name) for name in names]

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        text = f"{super().extra_repr()}, bias={self.bias is not None}"
        return text if self.activation == "none" else f"{text}, activation={self.activation!r}"


def _without_absent_entries(
    inputs: Sequence[Tensor], present: Tensor, index: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Inputs and index in which absent entries pick a row of zeros, put behind the others."""
    # What lies beyond the rows of an input stands for nothing where it is absent.
    picked = [
        None if entries is None else torch.broadcast_tensors(entries, present[..., i])
        for i, entries in enumerate(index)
    ]
    if not torch.compiler.is_compiling():
        check_index_range(inputs, [None if x is None else x[0].masked_select(x[1]) for x in picked])
    found: list[Tensor] = []
    found_index: list[Tensor | None] = []
    for i, (x, pick) in enumerate(zip(inputs, picked, strict=True)):
        if pick is None:
            found.append(x.where(present[..., i, None], 0))
            found_index.append(None)
            continue
        (entries, there), rows = pick, x.shape[0]
        # One row too far must not pick the zeros while a compiler traces, but an error.
        entries = entries.where(entries < rows, rows + 1).where(there, rows)
        # A row that no entry picks is multiplied all the same: whatever it holds, NaN included.
        used = there.new_zeros(rows + 2).scatter(0, entries.flatten().long(), True)[:rows]
        found.append(nn.functional.pad(x.where(used[:, None], 0), (0, 0, 0, 1)))
        found_index.append(entries)
    return found, found_index
