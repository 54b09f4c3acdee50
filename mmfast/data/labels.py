"""From the label cells of a table to the tensor that a loss takes.

What labels there are is learnt from the training split alone, and kept as JSON with the run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmfast.data.table import Table

LabelKind = Literal["binary", "multiclass", "multilabel", "regression"]

_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


class LabelError(ValueError):
    """Labels that do not fit the task, or a label that training has not seen."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a task are. Made by :func:`fit_labels`.

    Attributes:
        kind: the task.
        columns: of the table; several for multilabel with a 0/1 column each.
        classes: names in the order of the outputs; empty for regression. Of a binary task the
            second is the positive one.
        separator: what divides the labels of one multilabel cell.
        mean, std: what regression targets are standardised by.
    """

    kind: LabelKind
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    separator: str = "|"
    mean: float = 0.0
    std: float = 1.0

    def encode(self, table: Table, rows: Tensor | Sequence[int] | None = None) -> Tensor:
        """The targets of rows; of all rows if ``rows`` is None.

        Returns:
            int64 (N,), places in ``classes``, for binary and multiclass; float32 (N, C) of 0 and 1
            for multilabel; float32 (N,), standardised, for regression.

        Raises:
            LabelError: a label is missing or no number, or training has not seen it; it names the
                rows.
        """
        numbers = _rows(table, rows)
        if self.kind == "regression":
            values = [_number(table, row, self.columns[0]) for row in numbers]
            return ((torch.tensor(values, dtype=torch.float64) - self.mean) / self.std).float()
        if self.kind == "multilabel":
            return self._encode_sets(table, numbers)
        places = {name: place for place, name in enumerate(self.classes)}
        found = [_label(table, row, self.columns[0]) for row in numbers]
        self._check_seen(table, numbers, ((label,) for label in found))
        return torch.tensor([places[label] for label in found], dtype=torch.int64)

    def decode(self, targets: Tensor) -> Tensor:
        """Standardised regression targets, or predictions of them, in the units of the table."""
        return targets * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """The labels as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Labels:
        """What :meth:`to_dict` returned, also after JSON has made lists of its tuples."""
        try:
            listed = {name: tuple(state[name]) for name in ("columns", "classes")}
            return cls(**{**state, **listed})
        except (KeyError, TypeError, IndexError) as error:
            raise LabelError(f"no labels of a run: {error!r}") from error

    def _encode_sets(self, table: Table, rows: Sequence[int]) -> Tensor:
        targets = torch.zeros(len(rows), len(self.classes))
        if len(self.columns) > 1:
            for place, column in enumerate(self.columns):
                targets[:, place] = torch.tensor(
                    [_flag(table, row, column) for row in rows]
                ).float()
            return targets
        found = [_label_set(table, row, self.columns[0], self.separator) for row in rows]
        self._check_seen(table, rows, found)
        places = {name: place for place, name in enumerate(self.classes)}
        for target, labels in zip(targets, found, strict=True):
            for label in labels:
                target[places[label]] = 1
        return targets

    def _check_seen(
        self, table: Table, rows: Sequence[int], found: Iterable[Sequence[str]]
    ) -> None:
        known = set(self.classes)
        unseen: dict[str, list[int]] = {}
        for row, labels in zip(rows, found, strict=True):
            for label in labels:
                if label not in known:
                    unseen.setdefault(label, []).append(row)
        if unseen:
            told = "; ".join(_told(table, label, at) for label, at in list(unseen.items())[:5])
            label = next(iter(unseen))
            near = difflib.get_close_matches(label, self.classes, n=1)
            raise LabelError(
                f"{self.columns[0]!r} has labels that are not among the classes: {told}"
                f"{f' (did you mean {near[0]!r}?)' if near else ''}. The classes, those of the "
                f"training split unless they are given, are {_few(self.classes)}; move rows of the "
                "label into training, take them out, or correct them"
            )


def fit_labels(
    table: Table,
    columns: str | Sequence[str],
    kind: LabelKind,
    rows: Tensor | Sequence[int],
    *,
    classes: Sequence[str] | None = None,
    separator: str = "|",
    standardize: bool = False,
) -> Labels:
    """Learn from the training rows what the labels are.

    Labels are compared as strings: 1, ``"1"`` and 1.0 are one class. By default classes are those
    of the training rows, in the order of numbers if all are numbers, otherwise of the alphabet.

    Args:
        table: the table.
        columns: the label column; for multilabel one whose cells hold labels between separators (or
            are lists; an empty cell means no label), or several columns of 0 and 1.
        kind: the task.
        rows: numbers of the training rows.
        classes: their names in the order of the outputs.
        separator: between the labels of a multilabel cell.
        standardize: of regression targets, to mean 0 and standard deviation 1 in training.

    Raises:
        LabelError: no training rows, a label is missing, the number of classes does not fit the
            kind, a training label is not among ``classes``, or regression targets are no numbers.
        TableError: there is no such column.
    """
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    for name in names:
        table.column(name)
    numbers = _rows(table, rows)
    if not numbers:
        raise LabelError("the training split is empty: there is no row to learn labels from")
    if len(names) > 1 and kind != "multilabel":
        raise LabelError(f"a {kind} task has one label column, got {', '.join(names)}")
    if kind == "regression":
        return _fit_regression(table, names, numbers, standardize)
    if len(names) > 1:
        if classes is not None and len(classes) != len(names):
            raise LabelError(f"{len(names)} label columns need as many classes, got {len(classes)}")
        return Labels(kind, names, tuple(classes or names), separator)
    if classes is None:
        found: set[str] = set()
        for row in numbers:
            if kind == "multilabel":
                found.update(_label_set(table, row, names[0], separator))
            else:
                found.add(_label(table, row, names[0]))
        ordered = tuple(sorted(found, key=_class_order(found)))
    else:
        ordered = tuple(classes)
    _check_count(kind, names[0], ordered)
    labels = Labels(kind, names, ordered, separator)
    labels.encode(table, numbers)
    return labels


def _fit_regression(
    table: Table, names: tuple[str, ...], rows: Sequence[int], standardize: bool
) -> Labels:
    values = torch.tensor([_number(table, row, names[0]) for row in rows], dtype=torch.float64)
    if not standardize:
        return Labels("regression", names)
    std = float(values.std(correction=0))
    if not std > 0:
        raise LabelError(
            f"all training targets in {names[0]!r} are {values[0]:g}; they must differ"
        )
    return Labels("regression", names, mean=float(values.mean()), std=std)


def _check_count(kind: str, column: str, classes: Sequence[str]) -> None:
    if len(set(classes)) != len(classes):
        raise LabelError(f"classes names one twice: {_few(classes)}")
    if len(classes) < 2 or (kind == "binary" and len(classes) > 2):
        need = "exactly 2" if kind == "binary" else "at least 2"
        hint = "; for one label that is there or not, give it a 0/1 column and the type binary"
        raise LabelError(
            f"{column!r} has {len(classes)} classes in the training split ({_few(classes)}); "
            f"a {kind} task needs {need}{hint if kind == 'multilabel' else ''}"
        )


def _class_order(classes: Iterable[str]) -> Any:
    try:
        if all(math.isfinite(float(name)) for name in classes):
            return lambda name: (float(name), name)
    except ValueError:
        pass
    return str


def _rows(table: Table, rows: Tensor | Sequence[int] | None) -> Sequence[int]:
    if rows is None:
        return range(len(table))
    return rows.tolist() if isinstance(rows, Tensor) else list(rows)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # A column of integers with a gap comes as floats from many programs.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _label(table: Table, row: int, column: str) -> str:
    cell = table.cell(row, column)
    label = "" if cell is None else _text(cell)
    if not label:
        raise LabelError(f"{table.where(row)}: the label in column {column!r} is missing")
    return label


def _label_set(table: Table, row: int, column: str, separator: str) -> list[str]:
    cell = table.cell(row, column)
    if cell is None:
        return []
    parts = cell if isinstance(cell, (list, tuple)) else _text(cell).split(separator)
    return [label for label in map(_text, parts) if label]


def _flag(table: Table, row: int, column: str) -> bool:
    text = _label(table, row, column).lower()
    if text not in _TRUE + _FALSE:
        raise LabelError(f"{table.where(row)}: column {column!r} holds {text!r}; it must be 0 or 1")
    return text in _TRUE


def _number(table: Table, row: int, column: str) -> float:
    text = _label(table, row, column)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(
            f"{table.where(row)}: the target in column {column!r} is {text!r}; it must be a number"
        )
    return value


def _told(table: Table, label: str, rows: Sequence[int]) -> str:
    places = ", ".join(table.where(row) for row in rows[:3])
    return f"{label!r} at {places}{f' and {len(rows) - 3} more' if len(rows) > 3 else ''}"


def _few(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(map(repr, names[:most])) + (" ..." if len(names) > most else "")
