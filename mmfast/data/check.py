"""Which rows can be used, found out before training: so its length and order are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfast.data.files import locate
from mmfast.data.read import CellError, ColumnSpec, cell_error, check_columns, is_missing, read_cell
from mmfast.data.table import Progress, Table

Policy = Literal["error", "skip", "missing"]


class DataError(ValueError):
    """Rows that cannot be used, under the policy ``error``; ``problems`` holds all of them."""

    def __init__(self, problems: Sequence[CellError]) -> None:
        self.problems = tuple(problems)
        shown = [f"\n  {problem}" for problem in self.problems[:10]]
        more = f"\n  and {len(self.problems) - 10} more" if len(self.problems) > 10 else ""
        count = len(self.problems)
        super().__init__(
            f"{count} cell{'s' if count > 1 else ''} of the table cannot be used:"
            f"{''.join(shown)}{more}\nMend them, or choose on_error skip or missing"
        )

    def __reduce__(self) -> Any:
        return DataError, (self.problems,)


@dataclass(frozen=True)
class Checked:
    """What :func:`check_rows` found.

    Attributes:
        rows: int64, the rows that can be used, in the order in which they were given.
        missing: rows and names of modalities that count as missing because they are unreadable.
        problems: what was wrong, by row: those of ``missing``, and why rows were left out.
    """

    rows: Tensor
    missing: frozenset[tuple[int, str]]
    problems: tuple[CellError, ...]


def check_rows(
    table: Table,
    specs: Mapping[str, ColumnSpec],
    rows: Tensor | Sequence[int] | None = None,
    *,
    on_error: Policy = "error",
    labels: Sequence[str] = (),
    preprocess: Mapping[str, Callable[[Any], Any]] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Checked:
    """Check rows before they are trained on.

    Args:
        table: the table.
        specs: the modalities by name.
        rows: numbers of the rows; all if None.
        on_error: ``error``: raise, if a row has no modality at all, a label is missing or a file is
            not there; files are not opened. ``skip``: read every cell, leave out rows with an
            unreadable one. ``missing``: read every cell, treat an unreadable one as missing; leave
            out rows of which nothing remains. Rows without label or without any modality are left
            out under both.
        labels: columns whose cells must not be empty.
        preprocess: by name, what is tried on each sample too, where every cell is read; an encoder
            may refuse what can be read, such as a wrong sample rate.
        workers: processes that read.
        progress: called with how many rows are checked and how many there are.

    Raises:
        DataError: under ``error``, all problems together.
        TableError: the table lacks a column.
        ValueError: no row is left.
    """
    check_columns(table, specs)
    for column in labels:
        table.column(column)
    numbers = range(len(table)) if rows is None else torch.as_tensor(rows).tolist()
    trial = _Trial(table, dict(specs), list(numbers), on_error, tuple(labels), preprocess or {})
    loader = DataLoader(
        trial,
        batch_size=64,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # it would draw from the global one
    )
    problems: list[CellError] = []
    left_out: set[int] = set()
    missing: set[tuple[int, str]] = set()
    done = 0
    for results in loader:
        for row, found in results:
            problems += [error for _, error in found]
            unreadable = {name for name, _ in found if name}
            nothing = any(not name for name, _ in found)
            rest = [
                name
                for name in specs
                if name not in unreadable and not is_missing(table, row, specs[name])
            ]
            if nothing or not rest or (unreadable and on_error == "skip"):
                left_out.add(row)
            else:
                missing.update((row, name) for name in unreadable)
        done += len(results)
        if progress:
            progress(done, len(trial))
    if problems and on_error == "error":
        raise DataError(problems)
    kept = torch.tensor([row for row in numbers if row not in left_out], dtype=torch.int64)
    if not len(kept):
        told = f"; the first: {problems[0]}" if problems else ""
        raise ValueError(f"no row of {table.name} can be used, of {len(numbers)}{told}")
    return Checked(kept, frozenset(missing), tuple(problems))


class _Trial(Dataset[Any]):
    """Item i: a row and what is wrong with it, by the modality's name, or "" for the row itself."""

    def __init__(
        self,
        table: Table,
        specs: Mapping[str, ColumnSpec],
        rows: Sequence[int],
        policy: Policy,
        labels: tuple[str, ...],
        preprocess: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self.table, self.specs, self.rows = table, specs, rows
        self.policy, self.labels, self.preprocess = policy, labels, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, list[tuple[str, CellError]]]:
        row = self.rows[index]
        found = list(self._row(row))
        for name, spec in self.specs.items():
            try:
                if self.policy == "error":
                    _look(self.table, row, spec)
                else:
                    self._read(name, row, spec)
            except (ImportError, MemoryError):  # not the cell's fault
                raise
            except Exception as error:  # whatever a plugin's preprocess raises, too
                found.append((name, cell_error(self.table, row, spec, error)))
        return row, found

    def _row(self, row: int) -> Iterable[tuple[str, CellError]]:
        where = self.table.where(row)
        for column in self.labels:
            if self.table.cell(row, column) is None:
                yield "", CellError("the label is missing", row=row, column=column, where=where)
        if all(is_missing(self.table, row, spec) for spec in self.specs.values()):
            columns = ", ".join(name for spec in self.specs.values() for name in spec.sources)
            yield (
                "",
                CellError(
                    "the row has no modality: all its cells are empty",
                    row=row,
                    column=columns,
                    where=where,
                ),
            )

    def _read(self, name: str, row: int, spec: ColumnSpec) -> None:
        raw = read_cell(self.table, row, spec)
        if raw is None:
            return
        if name in self.preprocess:
            self.preprocess[name](raw)
        elif spec.modality == "video":
            for _ in raw:  # its frames are decoded one by one
                pass


def _look(table: Table, row: int, spec: ColumnSpec) -> None:
    """Raise Unreadable unless the file that a cell names is there; it is not opened."""
    if spec.modality not in ("image", "audio", "video", "features"):
        return
    cell = table.cell(row, spec.column)
    if isinstance(cell, str) and not cell.lstrip().startswith("["):
        name = cell.rpartition("#")[0] if spec.modality == "features" and "#" in cell else cell
        locate(
            name, table.base if spec.root is None else spec.root, folder=spec.modality == "video"
        )
