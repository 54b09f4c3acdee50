"""Rows of a table: numbers standardised, categories embedded, through a small network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmfast.encoders.common import LICENCE, groups, share, stack, valid, whole, wholes
from mmfast.nn import ConcatLinear
from mmfast.plugins.contract import Batch, EncoderSpec, Features

UNKNOWN, MISSING, FIRST = 0, 1, 2


class Row(NamedTuple):
    """A preprocessed row: standardised numbers and which are missing, and rows of the table."""

    numbers: Tensor
    missing: Tensor
    categories: Tensor


class TabularMLP(nn.Module):
    """A multilayer perceptron over columns of numbers and of categories.

    A number is standardised; one that is missing counts as the mean, and an indicator tells that it
    was missing. Each value of a category has an embedding; so have, for each column, a value that
    is not in its list and a missing one, which begin as zeros and so say nothing until training has
    shown some. The network is that of Gorishniy et al. (2021), "Revisiting Deep Learning Models for
    Tabular Data": linear layers, ReLU, dropout.

    Args:
        columns: names of the columns in use; :meth:`fit_options` finds them.
        categories: by column, the values it may take, as strings; the other columns hold numbers.
        means, stds: by column of numbers.
        hidden: width of each hidden layer.
        out_dim: features D of the result.
        embedding_dim: width of an embedding.
        dropout: after each hidden layer, while training.

    Shape:
        - batch: ``numbers`` float32 (B, N) and ``missing`` float32 (B, N), 1 where a number is
          missing; ``categories`` int64 (B, C); ``present`` bool (B,).
        - output: pooled (B, out_dim).

    Raises:
        ValueError: an option out of range, or columns that do not fit the other options.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        categories: Mapping[str, Sequence[str]] | None = None,
        means: Mapping[str, float] | None = None,
        stds: Mapping[str, float] | None = None,
        hidden: Sequence[int] = (128,),
        out_dim: int = 64,
        embedding_dim: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        known = dict(categories or {})
        self.columns = _check_columns(columns, known)
        self.numbers = [name for name in self.columns if name not in known]
        self.means = _facts("means", means, self.numbers)
        self.stds = _facts("stds", stds, self.numbers)
        if any(not std > 0 for std in self.stds.values()):
            raise ValueError(f"stds is {stds}; each must be above 0")
        # One table for all columns: (first row, row of each value), the two special rows first.
        self.rows: dict[str, tuple[int, dict[str, int]]] = {}
        count = 0
        for name in self.columns:
            if name in known:
                ids = {value: count + i for i, value in enumerate(known[name], FIRST)}
                self.rows[name] = count, ids
                count += FIRST + len(ids)
        self.table = nn.Embedding(count, whole("embedding_dim", embedding_dim)) if count else None
        hidden = wholes("hidden", hidden)
        share("dropout", dropout)
        widths = [len(self.numbers)] * 2 + [len(self.rows) * embedding_dim]
        self.joined = ConcatLinear(
            [width for width in widths if width], hidden[0], activation="relu"
        )
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU())
            for before, after in zip(hidden, (*hidden[1:], whole("out_dim", out_dim)), strict=True)
        )
        self.spec = EncoderSpec(
            api_version=1, modality="tabular", out_dim=out_dim, origin="mmfast", licence=LICENCE
        )
        self._silence_special_rows()

    @classmethod
    def fit_options(
        cls,
        samples: Iterable[Mapping[str, Any] | None],
        *,
        columns: Sequence[str] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        min_count: int = 1,
        **options: Any,
    ) -> dict[str, Any]:
        """The options with columns, categories, means and deviations of the training rows.

        A column whose values are all numbers holds numbers, any other categories.

        Args:
            samples: rows; None, a missing one, is passed over.
            columns: which to use; by default all.
            categories: by column, its values; for a column given here they are not looked for, so
                that numbers that are codes can be made categories.
            min_count: how often a value must occur to be listed; rarer ones train the embedding of
                unknown values.
            options: of the constructor, passed on; means and deviations that are given stay.

        Raises:
            ValueError: no rows, or a column without any value.
        """
        whole("min_count", min_count)
        rows = [row for row in samples if row is not None]
        if not rows:
            raise ValueError("samples holds no row; fit_options needs those of the training split")
        names = list(columns or dict.fromkeys(name for row in rows for name in row))
        found = {name: list(values) for name, values in (categories or {}).items()}
        means, stds = dict(options.pop("means", None) or {}), dict(options.pop("stds", None) or {})
        for name in names:
            values = [row[name] for row in rows if not _is_missing(row.get(name))]
            if name in found or (name in means and name in stds):
                continue
            if not values:
                raise ValueError(
                    f"column {name!r} holds no value in the training rows; leave it out of columns"
                )
            if all(_is_number(value) for value in values):
                numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
                means.setdefault(name, numbers.mean().item())
                stds.setdefault(name, numbers.std(correction=0).item() or 1.0)
            else:
                counts = Counter(map(_text, values))
                found[name] = sorted(value for value, n in counts.items() if n >= min_count)
        return {**options, "columns": names, "categories": found, "means": means, "stds": stds}

    def preprocess(self, raw: Mapping[str, Any]) -> Row:
        """A mapping from column to number, str or None; a column that is not there is missing."""
        if not isinstance(raw, Mapping):
            raise TypeError(
                f"row is a {type(raw).__name__}; it must be a mapping from column names"
            )
        if not any(name in raw for name in self.columns):
            raise ValueError(
                f"row has the columns {sorted(map(str, raw))}, none of {self.columns}; give it at "
                "least one of those, or None for a missing row"
            )
        numbers, missing = [], []
        for name in self.numbers:
            value = raw.get(name)
            missing.append(float(_is_missing(value)))
            numbers.append(0.0 if missing[-1] else self._standardised(name, value))
        categories = []
        for name, (start, ids) in self.rows.items():
            value = raw.get(name)
            special = start + (MISSING if _is_missing(value) else UNKNOWN)
            categories.append(ids.get(_text(value), special))
        return Row(
            torch.tensor(numbers, dtype=torch.float32),
            torch.tensor(missing, dtype=torch.float32),
            torch.tensor(categories, dtype=torch.int64),
        )

    def collate(self, samples: Sequence[Row | None]) -> Batch:
        """B preprocessed rows, None where one is missing, to the tensors of the class."""
        columns = list(zip(*(sample or (None,) * 3 for sample in samples), strict=True)) or [()] * 3
        numbers, present = stack(columns[0], (len(self.numbers),))
        missing, _ = stack(columns[1], (len(self.numbers),))
        categories, _ = stack(columns[2], (len(self.rows),), torch.int64)
        return {
            "numbers": numbers,
            "missing": missing,
            "categories": categories,
            "present": present,
        }

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes B rows as (B, out_dim)."""
        inputs = [batch["numbers"], batch["missing"]] if self.numbers else []
        if self.table is not None:
            inputs.append(self.table(batch["categories"]).flatten(1))
        x = self.joined(inputs)
        for layer in self.layers:
            x = layer(x)
        return valid(x, batch["present"])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embeddings, then each linear layer."""
        first = [] if self.table is None else [self.table]
        return groups([*first, self.joined, *self.layers])

    def _standardised(self, name: str, value: object) -> float:
        if not _is_number(value):
            raise TypeError(
                f"column {name!r} is {value!r}; it holds numbers, so it must be a number or None"
            )
        assert isinstance(value, Real)
        return (float(value) - self.means[name]) / self.stds[name]

    def _silence_special_rows(self) -> None:
        if self.table is not None:
            with torch.no_grad():
                for start, _ in self.rows.values():
                    self.table.weight[start : start + FIRST] = 0


def _check_columns(columns: Sequence[str], categories: Mapping[str, Sequence[str]]) -> list[str]:
    names = list(columns)
    if isinstance(columns, str) or not names or len(set(names)) < len(names):
        raise ValueError(
            f"columns is {columns!r}; it must be a list of one or more different names"
        )
    stray = sorted(set(categories) - set(names))
    if stray:
        raise ValueError(f"categories names {stray}; each must be one of columns, {names}")
    for name, values in categories.items():
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or not all(isinstance(value, str) for value in values):
            raise ValueError(f"categories[{name!r}] is {values!r}; it must be a list of strings")
        if len(set(values)) < len(values):
            raise ValueError(f"categories[{name!r}] holds a value twice: {values!r}")
    return names


def _facts(
    option: str, given: Mapping[str, float] | None, columns: Sequence[str]
) -> dict[str, float]:
    if set(given or {}) != set(columns):
        raise ValueError(
            f"{option} names {sorted(given or {})}; it must name the columns of numbers, "
            f"{sorted(columns)} (fit_options finds them in the training rows)"
        )
    return dict(given or {})


def _is_missing(value: object) -> bool:
    """None, NaN and infinities count as missing."""
    return value is None or (isinstance(value, Real) and not math.isfinite(value))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: object) -> str:
    """A category as a string; 3.0 is 3, which readers of tables turn into it beside a gap."""
    if isinstance(value, Real) and not isinstance(value, Integral) and value % 1 == 0:
        return f"{value:.0f}"
    return str(value)
