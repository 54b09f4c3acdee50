"""Labels: learnt from the training rows, encoded, and refused where they do not fit."""

import json

import pytest
import torch

from mmfast.data import LabelError, Labels, Table, TableError, fit_labels


def table(**columns):
    return Table(columns, name="t.csv")


def test_multiclass():
    cells = table(label=["cow", "cat", "cow", "dog"])
    labels = fit_labels(cells, "label", "multiclass", [0, 1, 3])
    assert labels.classes == ("cat", "cow", "dog")
    assert labels.encode(cells).tolist() == [1, 0, 1, 2]
    assert labels.encode(cells, torch.tensor([3, 1])).tolist() == [2, 0]
    assert labels.encode(cells).dtype == torch.int64


def test_numbers_are_classes_in_their_order_whatever_their_type():
    cells = table(label=["10", 9, 9.0, " 10 ", "1"])
    labels = fit_labels(cells, "label", "multiclass", range(5))
    assert labels.classes == ("1", "9", "10")
    assert labels.encode(cells).tolist() == [2, 1, 1, 2, 0]


def test_binary():
    cells = table(label=[True, False, "true"])
    labels = fit_labels(cells, "label", "binary", range(3))
    assert labels.classes == ("false", "true")
    assert labels.encode(cells).tolist() == [1, 0, 1]


def test_the_order_of_classes_can_be_given():
    cells = table(label=["no", "yes"])
    labels = fit_labels(cells, "label", "binary", [0, 1], classes=["yes", "no"])
    assert labels.encode(cells).tolist() == [1, 0]


def test_multilabel_in_one_column():
    cells = table(tags=["red|round", "", " round ", ["blue", "red"]])
    labels = fit_labels(cells, "tags", "multilabel", range(4))
    assert labels.classes == ("blue", "red", "round")
    assert labels.encode(cells).tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert labels.encode(cells).dtype == torch.float32


def test_multilabel_with_another_separator():
    cells = table(tags=["a, b", "b"])
    labels = fit_labels(cells, "tags", "multilabel", [0, 1], separator=",")
    assert labels.encode(cells).tolist() == [[1, 1], [0, 1]]


def test_multilabel_in_columns():
    cells = table(red=["1", "0", True], round=[0.0, "yes", "false"])
    labels = fit_labels(cells, ["red", "round"], "multilabel", [0])
    assert labels.classes == ("red", "round")
    assert labels.encode(cells).tolist() == [[1, 0], [0, 1], [1, 0]]


def test_regression():
    cells = table(price=["1", 3, 5.0, "100"])
    labels = fit_labels(cells, "price", "regression", [0, 1, 2])
    assert labels.encode(cells).tolist() == [1, 3, 5, 100]
    assert labels.encode(cells).dtype == torch.float32


def test_targets_are_standardised_by_the_training_rows():
    cells = table(price=["1", 3, 5.0, "100"])
    labels = fit_labels(cells, "price", "regression", [0, 1, 2], standardize=True)
    assert labels.mean == 3
    assert labels.std == pytest.approx((8 / 3) ** 0.5)
    training = labels.encode(cells, [0, 1, 2])
    torch.testing.assert_close(training.mean(), torch.tensor(0.0))
    torch.testing.assert_close(labels.decode(training), torch.tensor([1.0, 3.0, 5.0]))


def test_large_targets_keep_their_digits():
    cells = table(time=[1_700_000_000 + second for second in range(4)])
    labels = fit_labels(cells, "time", "regression", range(4), standardize=True)
    assert labels.encode(cells).diff().min() > 0.8


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
def test_labels_are_kept_as_json(kind):
    cells = table(label=["1", "2"])
    labels = fit_labels(cells, "label", kind, [0, 1], standardize=True)
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_a_label_that_training_has_not_seen():
    cells = table(label=["cat", "cow", "cats", "cats", "cats", "cats", "yak"])
    labels = fit_labels(cells, "label", "multiclass", [0, 1])
    message = (
        r"'label' has labels .*'cats' at t\.csv, row 2, t\.csv, row 3, t\.csv, row 4 and 1 more; "
        r"'yak' at t\.csv, row 6 \(did you mean 'cat'\?\)\. The classes.* are 'cat', 'cow'"
    )
    with pytest.raises(LabelError, match=message):
        labels.encode(cells)
    assert labels.encode(cells, [1]).tolist() == [1]


def test_a_multilabel_label_that_training_has_not_seen():
    cells = table(tags=["a|b", "a|c"])
    labels = fit_labels(cells, "tags", "multilabel", [0])
    with pytest.raises(LabelError, match=r"'c' at t.csv, row 1"):
        labels.encode(cells)


@pytest.mark.parametrize(
    ("cells", "kind", "options", "message"),
    [
        (["a", None], "multiclass", {}, r"t\.csv, row 1: the label in column 'label' is missing"),
        (["a", " "], "multiclass", {}, "the label in column 'label' is missing"),
        (["a", "a"], "multiclass", {}, r"has 1 classes in the training split \('a'\)"),
        (["a", "b", "c"], "binary", {}, "has 3 classes .* a binary task needs exactly 2"),
        (["a", "b"], "multiclass", {"classes": ["a", "c"]}, "not among the classes: 'b'"),
        (["a", "b"], "multiclass", {"classes": ["a", "b", "a"]}, "names one twice"),
        (["1", "x"], "regression", {}, "the target in column 'label' is 'x'; it must be a number"),
        (["1", "inf"], "regression", {}, "the target in column 'label' is 'inf'"),
        (["2", "2"], "regression", {"standardize": True}, "all training targets .* are 2"),
        (["", ""], "multilabel", {}, "has 0 classes in the training split"),
        (
            ["sea", ""],
            "multilabel",
            {},
            "1 classes .* at least 2; for one label .* the type binary",
        ),
    ],
)
def test_labels_that_do_not_fit(cells, kind, options, message):
    with pytest.raises(LabelError, match=message):
        fit_labels(table(label=cells), "label", kind, range(len(cells)), **options)


def test_a_flag_that_is_none():
    cells = table(a=["1"], b=["maybe"])
    labels = fit_labels(cells, ["a", "b"], "multilabel", [0])
    with pytest.raises(LabelError, match="column 'b' holds 'maybe'; it must be 0 or 1"):
        labels.encode(cells)


def test_no_training_rows():
    with pytest.raises(LabelError, match="the training split is empty"):
        fit_labels(table(label=["a"]), "label", "multiclass", [])


def test_no_such_column():
    with pytest.raises(TableError, match=r"no column 'lable' \(did you mean 'label'\?\)"):
        fit_labels(table(label=["a"]), "lable", "multiclass", [0])


def test_several_columns_are_for_multilabel():
    with pytest.raises(LabelError, match="a binary task has one label column, got a, b"):
        fit_labels(table(a=[1], b=[0]), ["a", "b"], "binary", [0])
