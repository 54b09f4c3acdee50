"""Features that something else computed: vectors, and sequences of vectors such as CMU-MOSI's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.encoders.common import LICENCE, groups, one_of, pad, pool, share, stack, valid, whole
from mmfast.encoders.lstm import MaskedLSTM, check_pooling
from mmfast.plugins.contract import Batch, EncoderSpec, Features


class FeatureVector(nn.Module):
    """A vector as it is, standardised, or through a linear layer and ReLU.

    Args:
        in_dim: features K of the input.
        out_dim: features D of the result; None: those of the input, without a layer.
        mean, std: of each feature, subtracted and divided by; :meth:`fit_options` finds them.
            Values that are not finite, as in the COVAREP features of CMU-MOSI, count as the mean.
        dropout: of the input, while training.

    Shape:
        - batch: ``values`` float32 (B, in_dim); ``present`` bool (B,).
        - output: pooled (B, out_dim or in_dim).

    Raises:
        ValueError: an option out of range, or mean or std of another length than ``in_dim``.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        out_dim: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = _Scale(in_dim, mean, std)
        self.dropout = nn.Dropout(share("dropout", dropout))
        self.project = _projection(in_dim, out_dim)
        self.spec = _spec(in_dim if out_dim is None else out_dim, "pooled", None)

    @classmethod
    def fit_options(
        cls, samples: Iterable[Tensor | None], *, standardise: bool = True, **options: Any
    ) -> dict[str, Any]:
        """The options with the size, mean and deviation of the training vectors.

        Args:
            samples: float tensors (in_dim,); None, a missing one, is passed over.
            standardise: whether to find ``mean`` and ``std``.
            options: of the constructor, passed on; those that are given are not looked for.

        Raises:
            ValueError: no sample, or samples of different sizes.
        """
        return _fit(samples, standardise, options)

    def preprocess(self, raw: Tensor) -> Tensor:
        """A float tensor (in_dim,) to float32 (in_dim,), standardised."""
        return self.scale(raw, 1)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed vectors, None where one is missing, to ``values`` and ``present``."""
        values, present = stack(samples, (self.scale.in_dim,))
        return {"values": values, "present": present}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B vectors."""
        return valid(self.project(self.dropout(batch["values"])), batch["present"])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The linear layer, if there is one."""
        return groups([self.project])


class FeatureSequence(nn.Module):
    """A sequence of vectors, through a linear layer or an LSTM if wanted.

    Args:
        in_dim: features K of the input.
        layer: ``none``; ``linear``, with ReLU; or ``lstm``.
        out_dim: features D of the result; for ``none`` it may be None or ``in_dim``, for a
            bidirectional ``lstm`` it is even.
        output: ``pooled`` or ``tokens``.
        pooling: ``mean``, or ``last``, what each direction of the LSTM holds at its end.
        layers: of the LSTM.
        bidirectional: whether the LSTM reads backwards too.
        max_length: vectors to read; what follows is cut off. None: all.
        mean, std: of each feature, subtracted and divided by; :meth:`fit_options` finds them.
            Values that are not finite, as in the COVAREP features of CMU-MOSI, count as the mean.
        dropout: of the input, while training.

    Shape:
        - batch: ``values`` float32 (B, T, in_dim); ``mask`` bool (B, T).
        - output: pooled (B, D) or tokens (B, T, D).

    Raises:
        ValueError: an option out of range, options that do not go together, or mean or std of
            another length than ``in_dim``.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        layer: str = "none",
        out_dim: int | None = None,
        output: str = "pooled",
        pooling: str = "mean",
        layers: int = 1,
        bidirectional: bool = True,
        max_length: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("layer", layer, ("none", "linear", "lstm"))
        if check_pooling(pooling) == "last" and layer != "lstm":
            raise ValueError(
                f"pooling is 'last' but layer is {layer!r}; only 'lstm' has a last state"
            )
        if layer == "none" and out_dim not in (None, in_dim):
            raise ValueError(
                f"out_dim is {out_dim} but layer is 'none'; take layer 'linear' or 'lstm', or "
                "leave out_dim out"
            )
        self.scale = _Scale(in_dim, mean, std)
        self.pooling = pooling
        self.dropout = nn.Dropout(share("dropout", dropout))
        width = in_dim if out_dim is None else whole("out_dim", out_dim)
        if layer == "lstm":
            if bidirectional and width % 2:
                raise ValueError(f"out_dim is {width}; for a bidirectional LSTM it must be even")
            hidden = width // (1 + bidirectional)
            self.lstm = MaskedLSTM(in_dim, hidden, layers=layers, bidirectional=bidirectional)
        else:
            self.project = _projection(in_dim, width if layer == "linear" else None)
        self.layer = layer
        self.spec = _spec(width, output, max_length)

    @classmethod
    def fit_options(
        cls, samples: Iterable[Tensor | None], *, standardise: bool = True, **options: Any
    ) -> dict[str, Any]:
        """The options with the size, mean and deviation of the training sequences.

        Args:
            samples: float tensors (T, in_dim); None, a missing one, is passed over.
            standardise: whether to find ``mean`` and ``std``.
            options: of the constructor, passed on; those that are given are not looked for.

        Raises:
            ValueError: no sample, or samples of different sizes.
        """
        return _fit(samples, standardise, options)

    def preprocess(self, raw: Tensor) -> Tensor:
        """A float tensor (T, in_dim) to float32, standardised; an empty one becomes one mean."""
        values = self.scale(raw, 2)[: self.spec.max_length]
        return values if len(values) else values.new_zeros(1, self.scale.in_dim)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed sequences, None where one is missing, to ``values`` and ``mask``."""
        values, mask = pad(samples, (self.scale.in_dim,))
        return {"values": values, "mask": mask}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B sequences."""
        values, mask = self.dropout(batch["values"]), batch["mask"]
        if self.layer == "lstm":
            return self.lstm.features(values, mask, self.spec.output, self.pooling)
        return pool(self.project(values), mask, self.spec.output)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The linear layer or each LSTM layer, if there are any."""
        return self.lstm.layers() if self.layer == "lstm" else groups([self.project])


class _Scale:
    """Checks a tensor of features and standardises it."""

    def __init__(
        self, in_dim: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        self.in_dim = whole("in_dim", in_dim)
        self.mean = self._fact("mean", mean, 0.0)
        self.std = self._fact("std", std, 1.0)
        if not (self.std > 0).all():
            raise ValueError("std holds a value that is not above 0; use 1 for a constant feature")

    def __call__(self, raw: Tensor, dims: int) -> Tensor:
        shape = f"({self.in_dim},)" if dims == 1 else f"(T, {self.in_dim})"
        if not isinstance(raw, Tensor) or not raw.is_floating_point():
            kind = raw.dtype if isinstance(raw, Tensor) else type(raw).__name__
            raise TypeError(f"features are {kind}; they must be a float tensor {shape}")
        if raw.dim() != dims or raw.shape[-1] != self.in_dim:
            raise ValueError(f"features have shape {tuple(raw.shape)}; it must be {shape}")
        values = (raw.float() - self.mean) / self.std
        return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _fact(self, name: str, given: Sequence[float] | None, default: float) -> Tensor:
        values = [default] * self.in_dim if given is None else list(given)
        if len(values) != self.in_dim:
            raise ValueError(f"{name} has {len(values)} values; in_dim is {self.in_dim}")
        return torch.tensor(values)


def _projection(in_dim: int, out_dim: int | None) -> nn.Module:
    if out_dim is None:
        return nn.Identity()
    return nn.Sequential(nn.Linear(in_dim, whole("out_dim", out_dim)), nn.ReLU())


def _fit(
    samples: Iterable[Tensor | None], standardise: bool, options: dict[str, Any]
) -> dict[str, Any]:
    there = [sample for sample in samples if sample is not None]
    sizes = sorted({sample.shape[-1] for sample in there})
    if len(sizes) != 1:
        raise ValueError(
            f"samples have last sizes {sizes}; fit_options needs samples, all of one size"
        )
    found: dict[str, Any] = {"in_dim": sizes[0]}
    if standardise:
        rows = torch.cat([sample.reshape(-1, sizes[0]) for sample in there]).double()
        rows = rows.masked_fill(~rows.isfinite(), float("nan"))
        mean = rows.nanmean(dim=0)
        std = (rows - mean).square().nanmean(dim=0).sqrt().nan_to_num(nan=1.0)
        found["mean"] = mean.nan_to_num(nan=0.0).tolist()
        found["std"] = std.where(std > 1e-8, 1.0).tolist()
    return {**found, **{name: value for name, value in options.items() if value is not None}}


def _spec(out_dim: int, output: str, max_length: int | None) -> EncoderSpec:
    return EncoderSpec(
        api_version=1,
        modality="features",
        out_dim=out_dim,
        output=one_of("output", output, ("pooled", "tokens")),
        max_length=max_length,
        origin="mmfast",
        licence=LICENCE,
    )
