"""Splits that do not leak: near-duplicates stay together, classes keep their shares.

A random split puts "man running" into training and "woman running" into test, and the accuracy
then measures memory. The order of the draw comes from a hash, not from a random generator, so a
seed means the same split under every version of every library.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import torch


class Split(NamedTuple):
    """Row numbers of the three sides, each int64 and ascending."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor


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
        labels: int64 (N,), class of each row.
        groups: int64 (N,), group of each row.
        fractions: shares of train, validation and test, summing to 1.
        seed: any integer; equal seeds give equal splits.

    Raises:
        ValueError: labels and groups differ in length, or fractions are no shares of 1.
    """
    if labels.shape != groups.shape or labels.dim() != 1:
        raise ValueError(
            "grouped_split: labels and groups must be 1-d and of one length, got shapes "
            f"{tuple(labels.shape)} and {tuple(groups.shape)}"
        )
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"grouped_split: fractions must be three shares that sum to 1, got {fractions}"
        )
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    sizes = torch.bincount(labels)
    room = {
        side: (share * sizes).tolist() for side, share in zip(Split._fields, fractions, strict=True)
    }
    sides: dict[str, list[int]] = {side: [] for side in Split._fields}
    for group in sorted(members, key=lambda group: _draw(seed, group)):
        rows = members[group]
        label = int(labels[rows].mode().values)
        side = _first_with_room(room, label, len(rows))
        room[side][label] -= len(rows)
        sides[side] += rows
    return Split(*(torch.tensor(sorted(rows), dtype=torch.int64) for rows in sides.values()))


def _first_with_room(room: dict[str, list[float]], label: int, size: int) -> str:
    for side in ("test", "val"):
        if room[side][label] >= size / 2:
            return side
    return "train"


def _draw(seed: int, group: int) -> bytes:
    return blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
