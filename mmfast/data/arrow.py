"""Tables in Arrow's formats: Parquet files, and folders that Hugging Face ``datasets`` saved.

The latter are read without that library: they are Arrow streams beside a JSON file that says what
the columns mean. Their cells stay in the files, which are memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.data.table import Table, TableError, need


class ArrowColumn(Sequence[Any]):
    """One column of an Arrow table; cells become Python values when they are asked for.

    A list of numbers becomes a numpy array.

    Args:
        cells: the column, a ``pyarrow.ChunkedArray``.
        names: of classes, where the column holds their numbers.
        files: the Arrow streams that hold the column, if it is memory-mapped: what goes to another
            process is then their names.
        name: of the column.
    """

    def __init__(
        self,
        cells: Any,
        names: Sequence[str] | None = None,
        files: Sequence[str] = (),
        name: str = "",
    ) -> None:
        kind = cells.type
        types = need("pyarrow").types
        listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        self._numbers = listed and (
            types.is_floating(kind.value_type) or types.is_integer(kind.value_type)
        )
        self._cells = cells
        self._names = names
        self._files = tuple(files)
        self._name = name

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, row: Any) -> Any:
        scalar = self._cells[int(row)]
        if self._numbers:
            return scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
        try:
            value = scalar.as_py()
        except UnicodeDecodeError as error:
            raise TableError(f"column {self._name!r}, row {row}: no UTF-8 text: {error}") from error
        if self._names is None or value is None:
            return value
        return self._names[value] if value >= 0 else None  # -1: a label withheld from a test split

    def __reduce__(self) -> Any:
        if self._files:
            return _reopen, (self._files, self._name, self._names)
        return ArrowColumn, (self._cells, self._names, (), self._name)


def read_parquet(path: Path) -> Table:
    """The table of a Parquet file; TableError unless it is one."""
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        table = parquet.read_table(path, partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        raise TableError(f"{path} is no readable Parquet file: {error}") from error
    _check_names(path, table.column_names)
    columns = {name: ArrowColumn(table.column(name), name=name) for name in table.column_names}
    return Table(columns, path.parent, str(path))


def read_saved(folder: Path) -> Table:
    """The table of a folder written by ``save_to_disk``, of a dataset or of a dict of them."""
    index = folder / "dataset_dict.json"
    if not index.is_file():
        return Table(_saved_columns(folder), folder, str(folder))
    splits = [Path(split).name for split in _facts(index)["splits"]]
    parts = {split: _saved_columns(folder / split) for split in splits}
    names = list(next(iter(parts.values()), {}))
    for split, part in parts.items():
        if list(part) != names:
            raise TableError(
                f"{folder}: the split {split!r} has the columns {', '.join(part)}, and "
                f"{splits[0]!r} has {', '.join(names)}; name the folder of one split"
            )
    columns: dict[str, Sequence[Any]] = {
        name: _Joined([part[name] for part in parts.values()]) for name in names
    }
    sides = [split for split, part in parts.items() for _ in range(len(part[names[0]]))]
    return Table({"split": sides, **columns}, folder, str(folder))


class _Joined(Sequence[Any]):
    """Columns one below the other."""

    def __init__(self, parts: Sequence[ArrowColumn]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, row: Any) -> Any:
        for part in self._parts:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)


def _saved_columns(folder: Path) -> dict[str, ArrowColumn]:
    if not (folder / "state.json").is_file():
        raise TableError(
            f"{folder} is a folder without state.json; it must be one that Hugging Face datasets "
            "wrote by save_to_disk, or name a table file inside it"
        )
    state, info = _facts(folder / "state.json"), _facts(folder / "dataset_info.json")
    if state.get("_indices_data_files"):
        raise TableError(f"{folder} holds rows out of order; save it by a current datasets library")
    files = [str(folder / Path(entry["filename"]).name) for entry in state["_data_files"]]
    table = _open(files)
    _check_names(folder, table.column_names)
    columns = {}
    for name in table.column_names:
        feature = info.get("features", {}).get(name, {})
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        columns[name] = ArrowColumn(table.column(name), names, files, name)
    return columns


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise TableError(f"{path} must hold a JSON object")
    return facts


def _open(files: Sequence[str]) -> Any:
    arrow, ipc = need("pyarrow"), need("pyarrow.ipc")
    tables = []
    for file in files:
        try:
            tables.append(ipc.open_stream(arrow.memory_map(file)).read_all())
        except (arrow.ArrowException, OSError) as error:
            raise TableError(f"{file} is no readable Arrow file: {error}") from error
    if not tables:
        raise TableError("the saved dataset is empty: it has no data file")
    return arrow.concat_tables(tables)


def _reopen(files: Sequence[str], name: str, names: Sequence[str] | None) -> ArrowColumn:
    return ArrowColumn(_open(files).column(name), names, files, name)


def _check_names(where: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise TableError(f"{where} has two columns {name!r}; rename one")
