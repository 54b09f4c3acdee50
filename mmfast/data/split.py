"""Splits that do not leak: near-duplicates stay together, classes keep their shares.

A random split puts "man running" into training and "woman running" into test, and the accuracy
then measures memory. The order of the draw comes from a hash, not from a random generator, so a
seed means the same split under every version of every library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Method = Literal["random", "stratified", "grouped", "column"]

_SIDES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


class Split(NamedTuple):
    """Row numbers of the three sides, each int64 and ascending."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor


def random_split(count: int, *, fractions: tuple[float, float, float], seed: int) -> Split:
    """Divides ``count`` rows by chance; arguments and errors as for :func:`grouped_split`."""
    return stratified_split(torch.zeros(count).long(), fractions=fractions, seed=seed)


def stratified_split(labels: Tensor, *, fractions: tuple[float, float, float], seed: int) -> Split:
    """Divides rows so that each class has its share on each side, to half a row.

    Arguments and errors as for :func:`grouped_split`.
    """
    return grouped_split(labels, torch.arange(len(labels)), fractions=fractions, seed=seed)


def grouped_split(
    labels: torch.Tensor,
    groups: torch.Tensor,
    *,
    fractions: tuple[float, float, float],
    seed: int,
) -> Split:
    """Divides rows into train, validation and test without dividing a group.

    Groups are drawn in an order that the seed decides, and each goes to the first of test,
    validation, train where at least half of it still fits under the quota of its commonest class.
    The shares are therefore near the asked ones, not equal to them.

    Args:
        labels: int64 (N,), class of each row; all equal where there are no classes.
        groups: int64 (N,), group of each row, such as :func:`group_numbers` gives.
        fractions: shares of train, validation and test, summing to 1.
        seed: any integer; equal seeds give equal splits.

    Raises:
        ValueError: labels and groups differ in length, or fractions are no shares of 1.
    """
    _check_lengths("grouped_split", labels, groups)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"grouped_split: fractions must be three shares that sum to 1, got {fractions}"
        )
    classes, members = labels.tolist(), _members(groups)
    sizes = torch.bincount(labels)
    room = {
        side: (share * sizes).tolist() for side, share in zip(Split._fields, fractions, strict=True)
    }
    sides: dict[str, list[int]] = {side: [] for side in Split._fields}
    for group in sorted(members, key=lambda group: _draw(seed, group)):
        rows = members[group]
        label = _commonest(classes, rows)
        side = _first_with_room(room, label, len(rows))
        room[side][label] -= len(rows)
        sides[side] += rows
    return _split(sides)


def column_split(values: Sequence[Any], where: Callable[[int], str] | None = None) -> Split:
    """The division that a column of the table states.

    Args:
        values: of each row ``train``, ``val`` or ``test``; also ``training``, ``valid``,
            ``validation`` and ``dev``, in any case.
        where: how an error names the row of a value; by default by its place in ``values``.

    Raises:
        ValueError: any other value, with its rows.
    """
    named = where or (lambda row: f"row {row}")
    sides: dict[str, list[int]] = {side: [] for side in Split._fields}
    unknown: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        side = _SIDES.get(str(value).strip().lower())
        (sides[side] if side else unknown.setdefault(value, [])).append(row)
    if unknown:
        told = "; ".join(
            f"{value!r} in {', '.join(map(named, rows[:5]))}{' ...' if len(rows) > 5 else ''}"
            for value, rows in list(unknown.items())[:5]
        )
        raise ValueError(f"the split column must say train, val or test; it says {told}")
    return _split(sides)


def kfold(
    method: Method,
    *,
    folds: int,
    seed: int,
    labels: Tensor | None = None,
    groups: Tensor | None = None,
    count: int | None = None,
    column: Sequence[Any] | None = None,
    val: float = 0.1,
) -> list[Split]:
    """Divides rows so that each is tested exactly once.

    Groups (rows, where there are none) are dealt out in an order that the seed decides, the large
    ones first, each to the fold that has fewest rows of its commonest class.

    Args:
        method: ``random``; ``stratified``, by ``labels``; ``grouped``, the same, and no group on
            two sides of any fold; ``column``, where each value of ``column`` is a fold.
        folds: how many, at least 2; not looked at for ``column``.
        seed: any integer; equal seeds give equal folds.
        labels: int64 (N,), class of each row; needed for ``stratified``.
        groups: int64 (N,), group of each row; needed for ``grouped``.
        count: N, for ``random`` without labels.
        column: N values, needed for ``column``.
        val: share of what is not tested that validates; 0: none.

    Returns:
        One split for each fold, whose test side it is.

    Raises:
        ValueError: an argument that the method needs is missing, or there are more folds than
            groups.
    """
    if not 0 <= val < 1:
        raise ValueError(f"kfold: val must be a share of at least 0 and below 1, got {val}")
    if method == "column":
        if column is None:
            raise ValueError("kfold: the method column needs column")
        if any(value is None or value == "" for value in column):
            raise ValueError("kfold: the column of folds has empty cells; each row needs a fold")
        numbers, count = _numbers(column), len(column)
        chosen = sorted(set(numbers))
        parts = [[row for row in range(count) if numbers[row] == fold] for fold in chosen]
        kinds, units = torch.zeros(count).long(), torch.arange(count)
    else:
        kinds, units = _kinds_and_units(method, labels, groups, count)
        parts = _deal(kinds, units, folds, seed)
    if len(parts) < 2 or not all(parts):
        raise ValueError(
            f"kfold: {len(parts)} folds cannot be made of {len(set(units.tolist()))} "
            f"{'groups' if method == 'grouped' else 'rows'}; there must be at least 2, and no more "
            "than there are rows, or groups, to deal out"
        )
    found = []
    for number, test in enumerate(parts):
        rest = torch.tensor(sorted(set(range(len(kinds))) - set(test)))
        inner = grouped_split(
            kinds[rest], units[rest], fractions=(1 - val, val, 0.0), seed=seed + number + 1
        )
        found.append(Split(rest[inner.train], rest[inner.val], torch.tensor(sorted(test))))
    return found


def group_numbers(values: Iterable[Any]) -> Tensor:
    """Groups of any kind as int64 (N,), equal where the values are equal.

    Integers, and strings of nothing but integers, stay as they are. A missing value, None or
    empty, is a group of its own.
    """
    found = [None if value == "" else value for value in values]
    return torch.tensor(_numbers(found), dtype=torch.int64)


def _numbers(values: Sequence[Any]) -> list[int]:
    try:
        numbers = {value: int(str(value)) for value in set(values) if value is not None}
        if any(abs(number) >= 1 << 62 for number in numbers.values()):
            raise ValueError
    except ValueError:
        known = sorted({str(value) for value in values if value is not None})
        places = {value: number for number, value in enumerate(known)}
        numbers = {value: places[str(value)] for value in set(values) if value is not None}
    fresh = max(numbers.values(), default=-1) + 1
    return [fresh + row if value is None else numbers[value] for row, value in enumerate(values)]


def _kinds_and_units(
    method: str, labels: Tensor | None, groups: Tensor | None, count: int | None
) -> tuple[Tensor, Tensor]:
    """What is balanced, and what is dealt, for a method of :func:`kfold`."""
    given = [len(one) for one in (labels, groups) if one is not None]
    length = given[0] if given else count
    if length is None:
        raise ValueError(f"kfold: the method {method} needs labels, groups or count")
    kinds = torch.zeros(length).long() if labels is None or method == "random" else labels
    units = torch.arange(length)
    if method == "stratified" and labels is None:
        raise ValueError("kfold: the method stratified needs labels")
    if method == "grouped":
        if groups is None:
            raise ValueError("kfold: the method grouped needs groups")
        units = groups
    _check_lengths("kfold", kinds, units)
    return kinds, units


def _deal(labels: Tensor, groups: Tensor, folds: int, seed: int) -> list[list[int]]:
    classes, members = labels.tolist(), _members(groups)
    order = sorted(members, key=lambda group: (-len(members[group]), _draw(seed, group)))
    parts: list[list[int]] = [[] for _ in range(max(folds, 0))]
    held: list[Counter[int]] = [Counter() for _ in parts]
    for group in order if parts else ():
        rows = members[group]
        label = _commonest(classes, rows)
        fold = min(range(folds), key=lambda fold: (held[fold][label], len(parts[fold]), fold))
        held[fold][label] += len(rows)
        parts[fold] += rows
    return parts


def _members(groups: Tensor) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    return members


def _commonest(classes: Sequence[int], rows: Sequence[int]) -> int:
    if len(rows) == 1:
        return classes[rows[0]]
    counts = Counter(classes[row] for row in rows)
    return min(counts, key=lambda label: (-counts[label], label))


def _first_with_room(room: dict[str, list[float]], label: int, size: int) -> str:
    for side in ("test", "val"):
        if room[side][label] >= size / 2:
            return side
    return "train"


def _split(sides: dict[str, list[int]]) -> Split:
    return Split(*(torch.tensor(sorted(rows), dtype=torch.int64) for rows in sides.values()))


def _check_lengths(caller: str, labels: Tensor, groups: Tensor) -> None:
    if labels.shape != groups.shape or labels.dim() != 1:
        raise ValueError(
            f"{caller}: labels and groups must be 1-d and of one length, got shapes "
            f"{tuple(labels.shape)} and {tuple(groups.shape)}"
        )


def _draw(seed: int, group: int) -> bytes:
    return blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
