"""Tables in Arrow's formats: Parquet files, and folders that Hugging Face ``datasets`` saved.

The latter are read without that library: they are Arrow streams beside a JSON file that says what
the columns mean. Their cells stay in the files, which are memory-mapped.

Both formats can hold gigabytes in kilobytes, and Arrow believes what a stream says of the places of
its texts: how much comes of a file is watched while it is read, and where a stream points to, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.data.table import Table, TableError, need

_DECODED = 1 << 30
_RATIO = 100  # a table that decodes to more than this many times its file, and to more than 1 GiB
_ROWS_AT_ONCE = 1 << 14
_WIDTHS = {"BOOLEAN": 0, "INT64": 8, "DOUBLE": 8, "INT96": 8}  # others take 4 bytes or more


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
    """The table of a Parquet file; TableError unless it is one, or if it unfolds without end."""
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    try:
        facts = parquet.read_metadata(path)
        _check_names(path, facts.schema.to_arrow_schema().names)
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
        _check_decoded(path, sum(_WIDTHS.get(c.physical_type, 4) * c.num_values for c in chunks))
        table = _decoded(path, facts)
    except (arrow.ArrowException, OSError) as error:
        raise TableError(f"{path} is no readable Parquet file: {error}") from error
    columns = {name: ArrowColumn(table.column(name), name=name) for name in table.column_names}
    return Table(columns, path.parent, str(path))


def _decoded(path: Path, facts: Any) -> Any:
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    schema = facts.schema.to_arrow_schema()
    # A text that many rows repeat stays one text.
    texts = [field.name for field in schema if arrow.types.is_string(field.type)]
    batches, held = [], 0
    with parquet.ParquetFile(path, metadata=facts, read_dictionary=texts) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            held += batch.nbytes
            _check_decoded(path, held)
            batches.append(batch)
        return arrow.Table.from_batches(batches, file.schema_arrow)


def _check_decoded(path: Path, size: int) -> None:
    limit = max(_DECODED, _RATIO * path.stat().st_size)
    if size > limit:
        raise TableError(
            f"{path} decodes to more than {limit} bytes, {_RATIO} times its own or 1 GiB; divide it"
        )


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
    try:
        files = [str(folder / Path(entry["filename"]).name) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise TableError(f"{folder / 'state.json'} names no data files") from error
    table = _open(files, check=True)
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
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise TableError(f"{path} must hold a JSON object")
    return facts


def _open(files: Sequence[str], check: bool = False) -> Any:
    arrow, ipc = need("pyarrow"), need("pyarrow.ipc")
    tables = []
    for file in files:
        try:
            if check and any(map(_compressed, ipc.MessageReader.open_stream(file))):
                raise TableError(f"{file} is compressed; save it by datasets' save_to_disk")
            table = ipc.open_stream(arrow.memory_map(file)).read_all()
            if check:
                table.validate(full=True)
            tables.append(table)
        except (arrow.ArrowException, OSError) as error:
            raise TableError(f"{file} is no readable Arrow file: {error}") from error
    if not tables:
        raise TableError("the saved dataset is empty: it has no data file")
    return arrow.concat_tables(tables)


def _compressed(message: Any) -> bool:
    """Whether a message of a stream holds compressed columns, which pyarrow does not tell.

    A flatbuffer (Message.fbs of the Arrow format): a table begins with how far before it the list
    of its fields lies, which says where each field is. 3 is the compression of a record batch; a
    dictionary has a record batch for field 1.
    """
    data = message.metadata.to_pybytes()

    def number(place: int, size: int = 4) -> int:
        return int.from_bytes(data[place : place + size], "little")

    def field(table: int, index: int) -> int:
        fields = table - int.from_bytes(data[table : table + 4], "little", signed=True)
        entry = 4 + 2 * index
        offset = number(fields + entry, 2) if entry < number(fields, 2) else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + number(place)

    if message.type not in ("record batch", "dictionary"):
        return False
    header = follow(field(follow(0), 2))
    batch = header if message.type == "record batch" else follow(field(header, 1))
    return bool(field(batch, 3))


def _reopen(files: Sequence[str], name: str, names: Sequence[str] | None) -> ArrowColumn:
    return ArrowColumn(_open(files).column(name), names, files, name)


def _check_names(where: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise TableError(f"{where} has two columns {name!r}; rename one")
