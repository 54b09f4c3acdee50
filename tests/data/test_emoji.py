"""The emoji set: complete, aligned, and split without leaks."""

from collections import Counter

import pytest
import torch

from mmfast.data import (
    ColumnSpec,
    emoji_splits,
    fit_labels,
    group_numbers,
    grouped_split,
    load_emoji,
    read_cell,
    read_table,
)


@pytest.fixture(scope="module")
def data():
    return load_emoji()


def index(data, name):
    return data.names.index(name)


def ink_colour(data, name):
    """Mean colour (R, G, B) of what is drawn, the paper left out."""
    pixels = data.images[index(data, name)].reshape(3, -1).float()
    drawn = pixels.min(dim=0).values < 235
    return pixels[:, drawn].mean(dim=1)


def test_shapes_and_types(data):
    count = len(data)
    assert count == 1906
    assert data.images.shape == (count, 3, 24, 24)
    assert data.images.dtype == torch.uint8
    assert data.labels.shape == data.families.shape == (count,)
    assert data.labels.dtype == data.families.dtype == torch.int64
    assert len(data.texts) == len(data.names) == len(data.codes) == count
    assert len(data.classes) == 9


def test_every_class_is_well_filled(data):
    sizes = torch.bincount(data.labels, minlength=9)
    assert len(sizes) == 9
    assert sizes.min() >= 80


def test_no_emoji_twice(data):
    assert max(Counter(data.codes).values()) == 1
    assert max(Counter(data.names).values()) == 1


def test_no_image_is_blank(data):
    drawn = (data.images.amin(dim=1) < 235).flatten(1).sum(dim=1)
    assert drawn.min() >= 20, data.names[int(drawn.argmin())]


@pytest.mark.parametrize(
    ("name", "strong", "weak"),
    [
        ("red apple", 0, 1),
        ("green apple", 1, 0),
        ("blue heart", 2, 0),
        ("red heart", 0, 2),
        ("green heart", 1, 2),
        ("blue circle", 2, 0),
        ("flag: China", 0, 2),
        ("frog", 1, 2),
    ],
)
def test_names_fit_the_drawings(data, name, strong, weak):
    colour = ink_colour(data, name)
    assert colour[strong] > colour[weak] + 30


def test_the_french_flag_is_blue_then_red(data):
    flag = data.images[index(data, "flag: France")].float()
    left, right = flag[:, 9:15, 3:6].mean((1, 2)), flag[:, 9:15, 18:21].mean((1, 2))
    assert left[2] > left[0] + 50
    assert right[0] > right[2] + 50


@pytest.mark.parametrize(
    ("name", "code", "group"),
    [
        ("grinning face", "1F600", "Smileys & Emotion"),
        ("man running", "1F3C3-200D-2642-FE0F", "People & Body"),
        ("red apple", "1F34E", "Food & Drink"),
        ("otter", "1F9A6", "Animals & Nature"),
        ("flag: Wales", "1F3F4-E0067-E0062-E0077-E006C-E0073-E007F", "Flags"),
    ],
)
def test_rows_are_aligned(data, name, code, group):
    row = index(data, name)
    assert data.codes[row] == code
    assert data.classes[data.labels[row]] == group
    assert data.texts[row].startswith(name + ", ")


def test_tags_do_not_state_the_label(data):
    for name, text in zip(data.names, data.texts, strict=True):
        tags = text[len(name) :].lower().split(", ")
        assert not {"animal", "food", "drink", "flag", "symbol", "object"} & set(tags), text


def test_loading_twice_shares_nothing(data):
    other = load_emoji()
    other.images.zero_()
    assert data.images.any()


@pytest.mark.parametrize(
    "names",
    [
        ["man running", "woman running", "person running", "woman running: facing right"],
        ["red heart", "blue heart", "white heart"],
        ["flag: Norway", "flag: Svalbard & Jan Mayen", "flag: Bouvet Island"],
        ["flag: Cayman Islands", "flag: Montserrat"],
        ["one o\u2019clock", "twelve-thirty"],
        ["keycap: 1", "keycap: 9"],
        ["Santa Claus", "Mrs. Claus"],
        ["man: beard", "woman: red hair", "boy"],
    ],
)
def test_near_duplicates_are_one_family(data, names):
    assert len({int(data.families[index(data, name)]) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("red apple", "pear"), ("flag: France", "flag: Peru"), ("pilot", "airplane"), ("cat", "dog")],
)
def test_different_things_are_different_families(data, one, other):
    assert data.families[index(data, one)] != data.families[index(data, other)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_family_on_two_sides(data, seed):
    split = emoji_splits(data, seed)
    sides = [set(data.families[rows].tolist()) for rows in split]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_is_complete_and_stratified(data, seed):
    split = emoji_splits(data, seed)
    assert torch.cat(split).sort().values.equal(torch.arange(len(data)))
    whole = torch.bincount(data.labels).float()
    for rows, share in zip(split, (0.7, 0.1, 0.2), strict=True):
        shares = torch.bincount(data.labels[rows], minlength=9) / whole
        assert (shares - share).abs().max() < 0.05


def test_splits_depend_on_the_seed_alone(data):
    again = emoji_splits(load_emoji(), 0)
    assert all(a.equal(b) for a, b in zip(emoji_splits(data, 0), again, strict=True))
    assert not emoji_splits(data, 0).test.equal(emoji_splits(data, 1).test)


def test_as_a_table(data):
    table = read_table("emoji")
    assert len(table) == len(data)
    row = index(data, "red apple")
    assert table.cell(row, "label") == "Food & Drink"
    assert table.cell(row, "text") == data.texts[row]
    assert read_cell(table, row, ColumnSpec("image", "image")).equal(data.images[row])


def test_the_table_is_split_as_the_set_is(data):
    table = read_table("emoji")
    labels = fit_labels(table, "label", "multiclass", range(len(table)), classes=data.classes)
    families = group_numbers(table.column("family"))
    split = grouped_split(labels.encode(table), families, fractions=(0.7, 0.1, 0.2), seed=1)
    assert all(a.equal(b) for a, b in zip(split, emoji_splits(data, 1), strict=True))
