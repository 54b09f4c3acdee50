"""The parts of scripts/build_emoji.py that decide what a family is."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_emoji.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "group", "stem"),
    [
        ("light blue heart", 0, "heart"),
        ("woman: red hair", 1, "person"),
        ("people with bunny ears", 1, "bunny ear"),
        ("family: man, woman, girl", 1, "family"),
        ("two o\u2019clock", 4, "clock face"),
        ("ten-thirty", 4, "clock face"),
        ("Japanese “bargain” button", 7, "japanese button"),
        ("flag: Peru", 8, "flag peru"),
        ("black flag", 8, "flag"),
    ],
)
def test_name_stem(build, name, group, stem):
    assert build.name_stem(name, group) == stem


def test_names_without_a_common_word_can_share_a_stem(build):
    assert len({build.name_stem(n, 1) for n in ("Santa Claus", "Mrs. Claus", "Mx Claus")}) == 1
    assert build.name_stem("princess", 1) == build.name_stem("prince", 1)


def test_code_stem_keeps_the_profession_and_drops_the_gender(build):
    pilots = ["1F468-200D-2708-FE0F", "1F469-200D-2708-FE0F", "1F9D1-200D-2708-FE0F"]
    assert len({build.code_stem(code) for code in pilots}) == 1
    assert build.code_stem(pilots[0]) != build.code_stem("2708-FE0F")
    assert build.code_stem("1F3C3-200D-2640-FE0F-200D-27A1-FE0F") == "1F3C3"


def test_connected_components(build):
    assert build.connected_components(6, [(4, 1), (1, 5), (2, 3)]) == [0, 1, 2, 2, 1, 1]


def test_ink_distance_ignores_the_paper(build):
    tiles = np.full((3, 8, 8, 3), 255, dtype=np.uint8)
    tiles[0, 0, 0] = tiles[1, 0, 0] = tiles[2, 5, 5] = 0
    apart = build.ink_distance(tiles)
    assert apart[0, 1] == 0
    assert apart[0, 2] == 1


def test_a_sheet_keeps_the_order(build):
    tiles = np.zeros((50, 24, 24, 3), dtype=np.uint8)
    tiles[np.arange(50), 3, 7, 0] = np.arange(50) * 5
    sheet = np.asarray(build.make_sheet(tiles).convert("RGB"))
    row, column = divmod(47, build.COLUMNS)
    assert sheet.shape == (48, 44 * 24, 3)
    assert sheet[row * 24 + 3, column * 24 + 7, 0] == 47 * 5
