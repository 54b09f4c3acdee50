"""Rows of a table, beyond the contract."""

import json
import math

import numpy as np
import pytest
import torch

from mmfast.encoders import TabularMLP

ROWS = [
    {"age": 20, "city": "Rome", "member": True},
    {"age": 40.0, "city": "Oslo", "member": None},
    {"age": None, "city": "Rome", "member": False},
    None,
]


def encode(encoder, *rows):
    prepared = [None if row is None else encoder.preprocess(row) for row in rows]
    return encoder(encoder.collate(prepared))


def test_fit_options_describes_the_training_rows():
    options = TabularMLP.fit_options(iter(ROWS), out_dim=8)
    assert options == {
        "out_dim": 8,
        "columns": ["age", "city", "member"],
        "categories": {"city": ["Oslo", "Rome"], "member": ["False", "True"]},
        "means": {"age": 30.0},
        "stds": {"age": 10.0},
    }
    TabularMLP(**json.loads(json.dumps(options)))


def test_given_options_decide():
    rows = [{"zip": 100, "x": 1, "y": 2}, {"zip": 200, "x": 1, "y": 4}, {"zip": 100, "x": 1}]
    options = TabularMLP.fit_options(rows, columns=["x", "zip"], categories={"zip": ["100"]})
    assert options["columns"] == ["x", "zip"]
    assert options["categories"] == {"zip": ["100"]}
    assert options["stds"] == {"x": 1.0}  # constant: not divided by 0
    rare = TabularMLP.fit_options([{"c": "a"}, {"c": "a"}, {"c": "b"}], min_count=2)
    assert rare["categories"] == {"c": ["a"]}


def test_options_that_are_complete_stay_as_they_are():
    options = TabularMLP.fit_options(ROWS, means={"age": 25.0}, dropout=0.1)
    assert (options["means"], options["stds"]) == ({"age": 25.0}, {"age": 10.0})
    assert TabularMLP.fit_options(ROWS[:1], **options) == options


def test_numpys_numbers_are_numbers():
    rows = [
        {"a": np.int64(1), "b": np.float32("nan"), "c": np.bool_(True)},
        {"a": 3, "b": 2, "c": 0},
    ]
    options = TabularMLP.fit_options(rows)
    assert (options["means"], options["categories"]) == ({"a": 2, "b": 2}, {"c": ["0", "True"]})
    row = TabularMLP(**options).preprocess(rows[0])
    assert (row.numbers.tolist(), row.missing.tolist()) == ([-1, 0], [0, 1])


def test_preprocess_standardises_and_numbers():
    encoder = TabularMLP(**TabularMLP.fit_options(ROWS))
    row = encoder.preprocess({"age": 50, "city": "Rome", "member": False, "other": 1})
    assert row.numbers.tolist() == [2.0]
    assert row.missing.tolist() == [0.0]
    # city: 0 unknown, 1 missing, 2 Oslo, 3 Rome; member: 4 unknown, 5 missing, 6 False, 7 True.
    assert row.categories.tolist() == [3, 6]
    strange = encoder.preprocess({"age": math.nan, "city": "Lima", "member": None})
    assert strange.numbers.tolist() == [0.0]
    assert strange.missing.tolist() == [1.0]
    assert strange.categories.tolist() == [0, 5]
    assert encoder.preprocess({"city": "Oslo"}).categories.tolist() == [2, 5]


def test_whole_floats_are_the_categories_of_ints():
    encoder = TabularMLP(["code"], categories={"code": ["3"]})
    for code in (3, 3.0, np.float32(3), np.int64(3), "3"):
        assert encoder.preprocess({"code": code}).categories.item() == 2, repr(code)


def test_it_is_its_formula():
    encoder = TabularMLP(**TabularMLP.fit_options(ROWS, hidden=[7, 5], out_dim=4)).eval()
    found = encode(encoder, {"age": 50, "city": "Rome", "member": None}, None)
    table = encoder.table.weight
    x = torch.cat([torch.tensor([2.0, 0.0]), table[3], table[5]])
    x = torch.relu(encoder.joined.weight @ x + encoder.joined.bias)
    for layer in encoder.layers:
        x = torch.relu(layer[1].weight @ x + layer[1].bias)
    torch.testing.assert_close(found.values[0], x)
    assert found.values[1].eq(0).all()
    assert found.mask.tolist() == [True, False]


def test_unknown_and_missing_values_say_nothing_at_first():
    encoder = TabularMLP(**TabularMLP.fit_options(ROWS)).eval()
    unknown, missing = encode(encoder, {"age": 1, "city": "Lima"}, {"age": 1, "city": None}).values
    assert unknown.equal(missing)
    oslo = encode(encoder, {"age": 1, "city": "Oslo"}).values[0]
    assert not oslo.equal(missing)


def test_numbers_alone_and_categories_alone():
    numbers = TabularMLP(["x"], means={"x": 0.0}, stds={"x": 2.0}).eval()
    assert numbers.table is None
    assert encode(numbers, {"x": 3}).values.shape == (1, 64)
    categories = TabularMLP(["c"], categories={"c": ["a"]}).eval()
    assert encode(categories, {"c": "a"}).values.shape == (1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, r"columns is \[\]; it must be a list of one or more different names"),
        ({"columns": ["a", "a"]}, "different names"),
        ({"columns": ["a"]}, r"means names \[\]; it must name the columns of numbers, \['a'\]"),
        ({"columns": ["a"], "categories": {"b": ["x"]}}, r"categories names \['b'\]"),
        ({"columns": ["a"], "categories": {"a": "xy"}}, "must be a list of strings"),
        ({"columns": ["a"], "categories": {"a": ["x", "x"]}}, "holds a value twice"),
        ({"columns": ["a"], "means": {"a": 0}, "stds": {"a": 0}}, "each must be above 0"),
        ({"columns": ["a"], "categories": {"a": ["x"]}, "hidden": []}, "hidden"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TabularMLP(**options)


def test_wrong_rows_are_told():
    encoder = TabularMLP(**TabularMLP.fit_options(ROWS))
    with pytest.raises(TypeError, match="column 'age' is 'old'; it holds numbers"):
        encoder.preprocess({"age": "old"})
    with pytest.raises(ValueError, match="none of"):
        encoder.preprocess({"Age": 3})
    with pytest.raises(TypeError, match="row is a list"):
        encoder.preprocess([3])
    with pytest.raises(ValueError, match="samples holds no row"):
        TabularMLP.fit_options([None])
    with pytest.raises(ValueError, match="column 'x' holds no value"):
        TabularMLP.fit_options([{"x": None}, {"x": math.nan}])
