"""Grouped splits on made-up data."""

import pytest
import torch

from mmfast.data import (
    column_split,
    group_numbers,
    grouped_split,
    kfold,
    random_split,
    stratified_split,
)

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


def test_a_random_split_has_its_shares():
    split = random_split(1000, fractions=SHARES, seed=1)
    assert [len(rows) for rows in split] == [700, 100, 200]
    assert torch.cat(split).sort().values.equal(torch.arange(1000))
    assert not split.test.equal(random_split(1000, fractions=SHARES, seed=2).test)


def test_a_stratified_split_has_its_shares_in_every_class():
    labels = torch.arange(1000) % 7 // 3  # 3, 3 and 1 of 7
    split = stratified_split(labels, fractions=SHARES, seed=0)
    sizes = torch.bincount(labels)
    for rows, share in zip(split, SHARES, strict=True):
        assert (torch.bincount(labels[rows]) - share * sizes).abs().max() <= 1


def test_a_class_of_one_row_is_trained_on():
    labels = torch.tensor([0] * 20 + [1])
    assert 20 in stratified_split(labels, fractions=SHARES, seed=0).train.tolist()


def test_a_column_says_the_split():
    split = column_split(["train", "TEST", "valid", " dev ", "training", "validation"])
    assert [rows.tolist() for rows in split] == [[0, 4], [2, 3, 5], [1]]


def test_a_column_says_something_else():
    with pytest.raises(ValueError, match="'holdout' in row 1; None in row 2, row 3"):
        column_split(["train", "holdout", None, None])


def test_group_numbers():
    assert group_numbers(["7", 3, "7", " 3"]).tolist() == [7, 3, 7, 3]
    assert group_numbers(["b", "a", "b", None, ""]).tolist() == [1, 0, 1, 5, 6]
    assert len(set(group_numbers([None, None, None]).tolist())) == 3


@pytest.mark.parametrize("method", ["random", "stratified", "grouped"])
@pytest.mark.parametrize("folds", [2, 5])
def test_folds_test_every_row_once(method, folds):
    labels, groups = torch.arange(203) % 7 // 3, torch.arange(203) // 4
    splits = kfold(method, labels=labels, groups=groups, folds=folds, seed=4, val=0.2)
    assert len(splits) == folds
    assert torch.cat([split.test for split in splits]).sort().values.equal(torch.arange(203))
    for split in splits:
        assert torch.cat(split).sort().values.equal(torch.arange(203))
        assert abs(len(split.test) - 203 / folds) <= 4
        assert abs(len(split.val) - 0.2 * 203 * (1 - 1 / folds)) <= 8


def test_stratified_folds():
    labels = torch.arange(203) % 7 // 3
    for split in kfold("stratified", labels=labels, folds=5, seed=0):
        assert (torch.bincount(labels[split.test]) - torch.bincount(labels) / 5).abs().max() < 1


def test_grouped_folds_divide_no_group():
    labels, groups = torch.arange(200) % 2, torch.arange(200) * 7 // 31
    for split in kfold("grouped", labels=labels, groups=groups, folds=4, seed=0, val=0.3):
        sides = [set(groups[rows].tolist()) for rows in split]
        assert all(sides)
        assert len(set.union(*sides)) == sum(map(len, sides))


def test_one_large_group_does_not_unbalance_the_folds():
    groups = torch.cat([torch.zeros(50), torch.arange(1, 51)]).long()
    labels = torch.zeros(100).long()
    sizes = [len(s.test) for s in kfold("grouped", labels=labels, groups=groups, folds=2, seed=1)]
    assert sizes == [50, 50]


def test_folds_depend_on_the_seed_alone():
    one, same, other = (kfold("random", count=50, folds=5, seed=seed) for seed in (1, 1, 2))
    assert all(a.test.equal(b.test) for a, b in zip(one, same, strict=True))
    assert not one[0].test.equal(other[0].test)


def test_folds_of_a_column():
    splits = kfold("column", column=["a", "b", "a", "c"], folds=5, seed=0, val=0)
    assert [split.test.tolist() for split in splits] == [[0, 2], [1], [3]]
    assert splits[0].train.tolist() == [1, 3]
    assert not len(splits[0].val)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "random", "count": 3, "folds": 4}, "4 folds cannot be made of 3 rows"),
        ({"method": "random", "count": 3, "folds": 1}, "1 folds cannot be made"),
        ({"method": "random", "folds": 2}, "random needs labels, groups or count"),
        ({"method": "stratified", "count": 4, "folds": 2}, "stratified needs labels"),
        ({"method": "grouped", "count": 4, "folds": 2}, "grouped needs groups"),
        ({"method": "column", "folds": 2}, "column needs column"),
        ({"method": "column", "column": ["a", None], "folds": 2}, "has empty cells"),
        ({"method": "column", "column": ["a", ""], "folds": 2}, "has empty cells"),
        ({"method": "random", "count": 9, "folds": 2, "val": 1.0}, "val must be a share"),
    ],
)
def test_folds_that_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        kfold(**arguments, seed=0)
