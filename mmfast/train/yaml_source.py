"""YAML that remembers where each value stood, so that an error can name the line.

PyYAML reads YAML 1.1, where ``3e-4`` is a string and ``no`` is false. The loader here reads numbers
and truth values as YAML 1.2 does, and refuses aliases, tags, keys given twice, and text too long
for a configuration: PyYAML takes hundreds of bytes and some microseconds for each character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        where: file and line, ``emoji.yaml:12``, or the override as it was typed.
        key: path of the key, ``train.lr``; empty for the file as a whole.
        message: what is wrong and what it must be.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key + ': ' if self.key else ''}{self.message}"


class ConfigError(ValueError):
    """A configuration that cannot be used; ``problems`` holds everything wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problems in the configuration" if count > 1 else "in the configuration"
        super().__init__("\n  ".join([head + ":", *map(str, self.problems)]))


@dataclass
class Source:
    """The values of a configuration and where each was written.

    Attributes:
        values: plain dicts, lists and scalars.
        places: by key path, where the key stands.
        name: the file's name, for errors about what is not there.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str]
    name: str

    def place(self, path: KeyPath) -> str:
        """Where the key at ``path`` stands or, for one that is absent, its nearest parent."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def read_yaml(path: str | Path) -> Source:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is absent or unreadable, is no YAML, or its top level is no mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise _one(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _one(str(path), f"is no UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Source:
    """Read YAML from a string; ``name`` stands for the file in errors. Raises as read_yaml does."""
    if len(text) > _LONGEST:
        raise _one(name, f"has more than {_LONGEST} characters; it is no place for data")
    try:
        values, places = _load(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"{name}:{mark.line + 1}" if mark else name
        raise _one(line, f"no valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise _one(name, f"no valid YAML: {error}") from error
    except RecursionError as error:
        raise _one(name, "is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise _one(name, f"no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise _one(f"{name}:1", "the top level must be a mapping, key: value")
    return Source(values, places, name)


def _load(text: str, name: str) -> tuple[Any, dict[KeyPath, str]]:
    loader = _Loader(text)
    places: dict[KeyPath, str] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, places
        values = loader.construct_document(root)
        _locate(root, (), name, places)
        return values, places
    finally:
        loader.dispose()


def apply_overrides(source: Source, overrides: Sequence[str]) -> None:
    """Set ``key.path=value`` in ``source``; the value is read as YAML.

    Raises:
        ConfigError: an override has no ``=``, or its path leads through something not a mapping.
    """
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.split(".")
        if not equals or "" in parts:
            problems.append(Problem(repr(override), "", "an override must read key.path=value"))
            continue
        try:
            path = _assign(source.values, parts, _parse_value(value))
        except LookupError as error:
            problems.append(Problem(repr(override), key, str(error.args[0])))
            continue
        except (yaml.YAMLError, RecursionError, ValueError):
            problems.append(Problem(repr(override), key, f"{value!r} is no valid YAML"))
            continue
        for known in [place for place in source.places if place[: len(path)] == path]:
            del source.places[known]
        for length in range(1, len(path)):  # the parents that it made
            source.places.setdefault(path[:length], f"override {override!r}")
        source.places[path] = f"override {override!r}"
    if problems:
        raise ConfigError(problems)


def _assign(values: Any, parts: Sequence[str], value: Any) -> KeyPath:
    """Set the value below ``values`` that ``parts`` lead to, and return its key path."""
    path: list[str | int] = []
    for number, part in enumerate(parts):
        here = ".".join(map(str, path)) or "the top"
        key: str | int = part
        if isinstance(values, list):
            if not part.isdigit() or int(part) >= len(values):
                raise LookupError(
                    f"{here} is a list of {len(values)}; {part!r} is not one of its places (from 0)"
                )
            key = int(part)
        elif not isinstance(values, dict):
            raise LookupError(f"{here} is {values!r}; nothing can stand below it")
        path.append(key)
        if number == len(parts) - 1:
            values[key] = value
        else:
            if isinstance(values, dict) and values.get(key) is None:
                values[key] = {}
            values = values[key]
    return tuple(path)


def _parse_value(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _one(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, "", message)])


def _locate(node: yaml.Node, path: KeyPath, name: str, places: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            places[inner] = f"{name}:{key.start_mark.line + 1}"
            _locate(value, inner, name, places)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            places[(*path, number)] = f"{name}:{value.start_mark.line + 1}"
            _locate(value, (*path, number), name, places)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and truth values of YAML 1.2."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        problem = ""
        if isinstance(event, yaml.AliasEvent):  # a few of them can unfold to gigabytes
            problem = "aliases (*name) are not allowed; write the value out"
        elif getattr(event, "tag", None) is not None:
            problem = f"tags ({event.tag}) are not allowed; write the value alone"
        if problem:
            raise yaml.composer.ComposerError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key must be a plain word", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        # Keys stay text: a column may be named 2024, or no.
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 10 if node.value.lstrip("+-").isdigit() else 0)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    if text.endswith(".inf"):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text == ".nan" else float(text)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_REPLACED = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (_FLOAT, "-+.0123456789"),
}
_DROPPED = {*_REPLACED, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _REPLACED.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
