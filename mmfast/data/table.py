"""Tables: what the rows of a data set are, whatever they come from.

A table is read whole, but its cells are names of files, texts and numbers; the images and
recordings themselves are read row by row, by ``mmfast.data.read``.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmfast.plugins import DATASETS

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all, for progress bars."""

# Python's own limit, 128 KiB, is less than a long text.
_LONGEST_CELL = 1 << 24
_LONGEST_LINE = 1 << 25
_SUFFIXES = ".csv, .tsv, .jsonl, .parquet, .tar"


class TableError(ValueError):
    """A table that cannot be read, or lacks what is asked of it."""


class TextColumn(Sequence[str]):
    """Strings in one piece of memory.

    A million Python strings would be copied into every worker, page by page, as reading them
    changes their reference counts (https://github.com/pytorch/pytorch/issues/13246).
    """

    def __init__(self, cells: Iterable[str]) -> None:
        encoded = [cell.encode("utf-8") for cell in cells]
        self._data = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._data[self._ends[row] : self._ends[row + 1]].decode("utf-8")


class SparseColumn(Sequence[Any]):
    """Cells most of which are missing, in memory for those that are there.

    Rows that each have a column of their own would otherwise take the square of what they hold.
    """

    def __init__(self, cells: Mapping[int, Any], count: int) -> None:
        self._cells, self._count = cells, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < self._count:
            raise IndexError(row)
        return self._cells.get(row)


def packed(cells: Mapping[int, Any], count: int) -> Sequence[Any]:
    """A column of ``count`` rows from the cells that are there, by row."""
    if 8 * len(cells) < count:
        return SparseColumn(cells, count)
    return [cells.get(row) for row in range(count)]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of named cells.

    Attributes:
        columns: cells by column; all of one length. Anything with ``len`` and ``[row]`` will do, so
            that cells can stay in a file until they are asked for.
        base: the folder that relative paths in the cells start from; None where there is none.
        name: what errors call the table.
        lines: the line of the file that each row starts on, for errors; None if it has no lines.

    Raises:
        TableError: no columns, no rows, or columns of different lengths.
    """

    columns: Mapping[str, Sequence[Any]]
    base: Path | None = None
    name: str = "table"
    lines: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {column: len(cells) for column, cells in self.columns.items()}
        if not lengths or not max(lengths.values()):
            raise TableError(f"{self.name} is empty: it must have at least one column and one row")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{column!r} {length}" for column, length in lengths.items())
            raise TableError(f"{self.name}: the columns must have equally many rows, not {told}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> Sequence[Any]:
        """The cells of one column, as they are stored; TableError if there is none of that name."""
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(map(repr, self.columns))
            raise TableError(f"{self.name} has no column {name!r}{hint}; its columns are {known}")
        return self.columns[name]

    def cell(self, row: int, column: str) -> Any:
        """One cell; None if it is missing, which an empty string and NaN mean too."""
        value = self.column(column)[row]
        if isinstance(value, str):
            return value or None
        if getattr(value, "ndim", 1) == 0:  # of numpy or torch
            value = value.item()
        return None if isinstance(value, float) and math.isnan(value) else value

    def where(self, row: int) -> str:
        """How an error names a row: ``photos.csv:19`` by its line, or by its number from 0."""
        if self.lines is None:
            return f"{self.name}, row {row}"
        return f"{self.name}:{self.lines[row]}"


def read_table(
    source: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
) -> Table:
    """Read a table from a file, a folder, shards, or a dataset plugin.

    Args:
        source: one of

            - a ``.csv`` or ``.tsv`` file whose first line names the columns;
            - a ``.jsonl`` file, one JSON object a line; a key that a line lacks is a missing cell;
            - a ``.parquet`` file;
            - a folder that Hugging Face ``datasets`` wrote by ``save_to_disk``; where it holds
              several splits, the column ``split`` names that of each row;
            - WebDataset shards, uncompressed ``.tar`` files by braces or wildcards
              (``train-{0000..0007}.tar``, ``train-*.tar``); columns are the endings of file names;
            - the name of a dataset plugin: an entry point of the group ``mmfast.datasets`` that
            names
              a function which returns a :class:`Table`. It goes before a file of that name.
        options: of the dataset plugin; other sources take none.
        progress: called while shards are searched, with how many are done and how many there are.

    Raises:
        TableError: the source is not there, empty, or not what its name says.
        TypeError: options that the plugin does not take, or for a source that takes none.
        PluginLoadError: the plugin cannot be loaded.

    Example:
        >>> read_table("emoji").cell(0, "name")
        'grinning face'
    """
    path, name = Path(source), str(source)
    if name in DATASETS.names():
        return _from_plugin(name, options or {})
    if options:
        raise TypeError(
            f"the table {name} takes no options, got {', '.join(map(repr, options))}; only dataset "
            f"plugins do, and of these there are {', '.join(DATASETS.names()) or 'none'}"
        )
    suffix = path.suffix.lower()
    if suffix == ".tar":
        read_shards = import_module("mmfast.data.shards").read_shards
        shards: Table = read_shards(name, progress)
        return shards
    if path.is_dir():
        saved: Table = import_module("mmfast.data.arrow").read_saved(path)
        return saved
    if suffix == ".parquet" and path.is_file():
        stored: Table = import_module("mmfast.data.arrow").read_parquet(path)
        return stored
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, "," if suffix == ".csv" else "\t")
    if suffix == ".jsonl":
        return _read_jsonl(path)
    raise _unknown(path, name)


def need(module: str) -> ModuleType:
    """Import an optional dependency; ImportError that says what to install."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that it wraps is not there
        raise ImportError(
            f"this needs {module.partition('.')[0]}; install it by pip install 'mmfast[train]' "
            f"({error})"
        ) from error


def _from_plugin(name: str, options: Mapping[str, Any]) -> Table:
    plugin = DATASETS.find(name)
    table = DATASETS.create(plugin, options)
    if not isinstance(table, Table):
        raise TableError(
            f"the dataset {name!r} of {plugin.source} returned a {type(table).__name__}; it must "
            "return a mmfast.data.Table"
        )
    return table


def _unknown(path: Path, name: str) -> TableError:
    if path.exists():
        return TableError(
            f"{name} is no table that mmfast reads: it must end in {_SUFFIXES}, or be a folder "
            "saved by Hugging Face datasets"
        )
    if path.suffix or len(path.parts) > 1:
        return TableError(f"there is no file {name} (looked from {Path.cwd()})")
    near = difflib.get_close_matches(name, DATASETS.names(), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join(DATASETS.names()) or "none"
    return TableError(
        f"{name!r} is neither a file, nor a folder, nor a dataset{hint}; the datasets are {known}, "
        f"and a file must end in {_SUFFIXES}"
    )


@contextmanager
def _text(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is no UTF-8 text: {error.reason}; save it as UTF-8") from error
    except FileNotFoundError:
        raise TableError(f"there is no file {path} (looked from {Path.cwd()})") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error


def _lines(file: Any, path: Path) -> Iterator[str]:
    """The lines of a text file; one that has no end is not read to the end of the memory."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and line[-1] not in "\r\n":
            raise TableError(f"{path}:{number}: the line is longer than {_LONGEST_LINE} characters")
        yield line


def _read_csv(path: Path, delimiter: str) -> Table:
    limit = csv.field_size_limit(_LONGEST_CELL)
    lines: list[int] = []
    with _text(path) as file:
        reader = csv.reader(_lines(file, path), delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            _check_header(path, names)
            columns: list[list[str]] = [[] for _ in names]
            before = reader.line_num
            for cells in reader:
                start, before = before + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise TableError(
                        f"{path}:{start}: the row has {len(cells)} cells, the header {len(names)}; "
                        f"a cell that contains {delimiter!r} must stand in double quotes"
                    )
                lines.append(start)
                for column, cell in zip(columns, cells, strict=True):
                    column.append(cell)
        except csv.Error as error:
            raise TableError(f"{path}:{reader.line_num}: {error}") from error
        finally:
            csv.field_size_limit(limit)
    if not lines:
        raise TableError(f"{path} is empty: it has a header, and no row")
    return _table(path, dict(zip(names, map(TextColumn, columns), strict=True)), lines)


def _check_header(path: Path, names: Sequence[str]) -> None:
    if not any(names):
        raise TableError(f"{path} is empty: its first line must name the columns")
    for name, times in Counter(names).items():
        if times > 1:
            raise TableError(f"{path}:1: the header names the column {name!r} twice")


def _read_jsonl(path: Path) -> Table:
    columns: dict[str, dict[int, Any]] = {}
    lines: list[int] = []
    with _text(path) as file:
        for line, text in enumerate(_lines(file, path), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_without_twins)
            except (ValueError, RecursionError) as error:
                raise TableError(f"{path}:{line}: no valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise TableError(
                    f"{path}:{line}: the line is a {type(row).__name__}; it must be an object, "
                    '{"column": value, ...}'
                )
            for name, value in row.items():
                columns.setdefault(name, {})[len(lines)] = value
            lines.append(line)
    if not columns:
        raise TableError(f"{path} is empty: it must hold at least one JSON object with a key")
    return _table(path, {name: packed(found, len(lines)) for name, found in columns.items()}, lines)


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands there twice")
        found[name] = value
    return found


def _table(path: Path, columns: Mapping[str, Sequence[Any]], lines: Sequence[int]) -> Table:
    return Table(columns, path.parent, str(path), np.asarray(lines, dtype=np.int64))
