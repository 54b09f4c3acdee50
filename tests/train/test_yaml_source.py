"""YAML with lines: the numbers of YAML 1.2, errors that name the place, overrides."""

import pytest

from mmfast.train.yaml_source import ConfigError, apply_overrides, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("012", 12),
        ("0x1f", 31),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("=", "="),
        ("null", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("1_000", "1_000"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = parse_yaml(f"a: {text}", "x").values["a"]
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_item_has_its_line():
    source = parse_yaml("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n", "f.yaml")
    assert source.place(("a", "b")) == "f.yaml:2"
    assert source.place(("a", "c", 0)) == "f.yaml:4"
    assert source.place(("a", "c", 1, "d")) == "f.yaml:5"
    assert source.place(("a", "absent", "more")) == "f.yaml:1"
    assert source.place(("absent",)) == "f.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x:3: no valid YAML: the key 'a' stands here twice"),
        ("- 1", "x:1: the top level must be a mapping"),
        ("a: [1,\nb: ]:", "x:2: no valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "x:1: no valid YAML: tags"),
        ("a: &n [1]\nb: *n", "x:2: no valid YAML: aliases"),
        ("[" * 5000, "nested too deeply"),
        ("? [1]\n: 2", "x:1: no valid YAML: a key must be a plain word"),
        ("a: \x01", "x: no valid YAML"),
    ],
)
def test_bad_files_are_told_with_their_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x")
    assert message in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match=r"is no UTF-8 text \(byte 3\)"):
        read_yaml(tmp_path / "latin.yaml")


def test_an_empty_file_is_an_empty_mapping():
    assert parse_yaml("# nothing\n", "x").values == {}


def test_overrides_set_make_and_replace():
    source = parse_yaml("a: {b: 1}\nc: [1, {d: 2}]\nn: null\n", "x")
    apply_overrides(source, ["a.b=3e-4", "c.1.d=[x, y]", "new.deep=true", "n.m=7", "e=a=b"])
    assert source.values == {
        "a": {"b": 3e-4},
        "c": [1, {"d": ["x", "y"]}],
        "n": {"m": 7},
        "new": {"deep": True},
        "e": "a=b",
    }
    assert source.place(("a", "b")) == "override 'a.b=3e-4'"
    assert source.place(("c", 1, "d")) == "override 'c.1.d=[x, y]'"
    assert source.place(("c", 0)) == "x:2"


def test_overrides_that_fit_nowhere_are_told_together():
    source = parse_yaml("a: 1\nc: [1]\n", "x")
    with pytest.raises(ConfigError) as caught:
        apply_overrides(source, ["a", "=1", "a.b=1", "c.1=2", "c.x=2", "d=[", "a..b=1"])
    said = [str(problem) for problem in caught.value.problems]
    assert len(said) == 7
    assert said[0] == "'a': an override must read key.path=value"
    assert said[2] == "'a.b=1': a.b: a is 1; nothing can stand below it"
    assert said[3] == "'c.1=2': c.1: c is a list of 1; '1' is not one of its places (from 0)"
    assert said[5] == "'d=[': d: '[' is no valid YAML"
