"""Errors of pydantic, told as a person who wrote the YAML would want them."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mmfast.train.yaml_source import KeyPath, Problem, Source


def problems_of(error: ValidationError, source: Source, model: type[BaseModel]) -> list[Problem]:
    """One problem for each place that ``error`` complains of, in the order of the file."""
    by_key: dict[KeyPath, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        by_key.setdefault(_key_path(item["loc"], source), []).append(dict(item))
    problems = [
        Problem(source.place(key), ".".join(map(str, key)), _message(key, items, model))
        for key, items in by_key.items()
    ]
    return sorted(problems, key=lambda problem: _line(problem.where))


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _key_path(loc: tuple[str | int, ...], source: Source) -> KeyPath:
    """The keys in ``loc``: pydantic adds the names of a union's members, which nobody wrote."""
    path: KeyPath = ()
    for number, part in enumerate(loc):
        if (*path, part) in source.places or (number == len(loc) - 1 and not _alternative(part)):
            path = (*path, part)
    return path


def _alternative(part: str | int) -> bool:
    """Whether ``part`` names a member of a union, such as str, tuple[str, ...] or literal['a']."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool", "none", "constrained-int") or "[" in part
    )


def _message(key: KeyPath, items: list[dict[str, Any]], model: type[BaseModel]) -> str:
    kinds = {item["type"] for item in items}
    got = items[0].get("input")
    if kinds == {"extra_forbidden"}:
        known = sorted(_fields(model, key[:-1]))
        return f"there is no such key{_hint(key[-1], known)}; here can stand {', '.join(known)}"
    if kinds == {"missing"}:
        return "is missing and has no default"
    if "value_error" in kinds:
        return str(items[0]["ctx"]["error"])
    expected = [_expected(item) for item in items]
    choices = [word for text in expected for word in re.findall(r"'(.*?)'", text)]
    hint = _hint(got, choices) if isinstance(got, str) else ""
    return f"is {got!r}; it must be {' or '.join(dict.fromkeys(expected))}{hint}"


def _expected(item: dict[str, Any]) -> str:
    context = item.get("ctx", {})
    if item["type"] == "literal_error":
        return str(context["expected"])
    known = {
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "dict_type": "a mapping, key: value",
        "model_type": "a mapping, key: value",
        "tuple_type": "a list",
        "finite_number": "a finite number",
        "too_short": "at least {min_length} long",
    }
    if item["type"] in known:
        return known[item["type"]].format(**context)
    said: str = item["msg"]
    return said.removeprefix("Input should be ").removeprefix("Value should be ")


def _hint(got: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(got), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _fields(model: type[BaseModel], path: KeyPath) -> Iterator[str]:
    """The keys that may stand at ``path`` of ``model``."""
    found: type[BaseModel] | None = model
    inside: Any = model
    for part in path:
        field = found.model_fields.get(str(part)) if found else None
        inside = field.annotation if field else next(_members(inside, skip_models=True), None)
        found = next((m for m in _members(inside) if _is_model(m)), None)
    yield from found.model_fields if found else ()


def _members(annotation: Any, skip_models: bool = False) -> Iterator[Any]:
    """The types inside ``annotation``: of a union each member, of a container its values."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member, skip_models)
    elif origin is dict:
        yield from [get_args(annotation)[1]]
    elif origin in (tuple, list):
        yield from [get_args(annotation)[0]]
    elif hasattr(annotation, "__metadata__"):
        yield from _members(get_args(annotation)[0], skip_models)
    elif not (skip_models and _is_model(annotation)):
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
