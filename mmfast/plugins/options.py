"""Options of a plugin, checked before it is called: by its pydantic model, or by its signature."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def checked_options(
    what: str, factory: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str] = ()
) -> dict[str, Any]:
    """The keyword arguments to call ``factory`` with.

    Args:
        what: the plugin, as messages name it.
        factory: the class or function. If it has ``Options``, a pydantic model, the options are
            validated by it and its fields are returned; otherwise its signature decides which
            exist.
        options: what the user wrote.
        given: names of arguments that the caller adds; they are no options.

    Raises:
        TypeError: an option that does not exist, or one that is needed and missing.
        ValueError: the model refuses a value.
    """
    model = getattr(factory, "Options", None)
    if hasattr(model, "model_validate"):
        return _by_model(what, model, options)
    _check_signature(what, factory, options, given)
    return dict(options)


def unknown_option(what: str, option: str, known: list[str]) -> TypeError:
    """The error for an option that does not exist."""
    near = difflib.get_close_matches(option, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return TypeError(f"{what} has no option {option!r}{hint}; {_takes(known)}")


def _takes(known: list[str]) -> str:
    return f"it takes {', '.join(known)}" if known else "it takes none"


def _check_signature(
    what: str, factory: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str]
) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a callable written in C may have none
        return
    named = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in given
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    known = list(named)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in options:
            if key not in named:
                raise unknown_option(what, key, known)
    for key, parameter in named.items():
        if key not in options and parameter.default is parameter.empty:
            raise TypeError(f"{what} needs the option {key!r}; {_takes(known)}")


def _by_model(what: str, model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    import pydantic  # here, since only a plugin that uses it needs it

    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    if model.model_config.get("extra") != "allow":
        for key in options:  # by default pydantic ignores what it does not know
            if key not in model.model_fields and key not in aliases:
                raise unknown_option(what, key, list(model.model_fields))
    try:
        checked = model.model_validate(dict(options))
    except pydantic.ValidationError as error:
        wrong = [
            f"the option {'.'.join(map(str, e['loc'])) or '(all)'} is {e['input']!r}: {e['msg']}"
            if e["type"] != "missing"
            else f"the option {'.'.join(map(str, e['loc']))} is needed"
            for e in error.errors(include_url=False)
        ]
        raise ValueError(f"{what}: {'; '.join(wrong)}") from error
    fields = {name: getattr(checked, name) for name in model.model_fields}
    return fields | (checked.model_extra or {})
