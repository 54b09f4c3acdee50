"""Grouped splits on made-up data."""

import pytest
import torch

from mmfast.data import grouped_split

SHARES = (0.7, 0.1, 0.2)


def test_groups_stay_whole_when_they_are_large():
    groups = torch.arange(200) // 10
    split = grouped_split(groups % 2, groups, fractions=SHARES, seed=3)
    for rows in split:
        assert all(int((groups[rows] == group).sum()) in (0, 10) for group in range(20))
    assert [len(rows) for rows in split] == [140, 20, 40]


def test_a_group_with_two_labels_stays_whole():
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    labels = torch.tensor([0, 1] * 4)
    split = grouped_split(labels, groups, fractions=(0.5, 0.25, 0.25), seed=0)
    assert sorted(len(rows) for rows in split) == [2, 2, 4]
    assert all(len(set(groups[rows].tolist())) == len(rows) // 2 for rows in split)


def test_a_split_is_the_same_under_every_version():
    labels = torch.zeros(12, dtype=torch.int64)
    split = grouped_split(labels, torch.arange(12), fractions=(0.5, 0.25, 0.25), seed=7)
    assert split.test.tolist() == [3, 6, 9]
    assert split.val.tolist() == [2, 7, 11]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"labels and groups.*\(3,\) and \(2,\)"):
        grouped_split(torch.zeros(3).long(), torch.zeros(2).long(), fractions=SHARES, seed=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, 0.1), (1.2, -0.1, -0.1)])
def test_fractions_must_be_shares(fractions):
    rows = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="fractions must be three shares"):
        grouped_split(rows, rows, fractions=fractions, seed=0)
