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


def check_option_names(
    what: str, factory: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str] = ()
) -> None:
    """Raise TypeError for an option that neither ``factory`` nor its ``fit_options`` takes.

    Values are not looked at, nor whether all that are needed are there: ``fit_options`` finds some.
    Arguments as for :func:`checked_options`.
    """
    known = _option_names(factory, given)
    if known is None:
        return
    fit = getattr(factory, "fit_options", None)
    if fit is not None:  # its first argument, the samples, is no option
        taken = list(inspect.signature(fit).parameters.values())[1:]
        known += [p.name for p in taken if p.kind is not p.VAR_KEYWORD and p.name not in known]
    for key in options:
        if key not in known:
            raise unknown_option(what, key, known)


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


def _option_names(factory: Callable[..., Any], given: Iterable[str]) -> list[str] | None:
    """The options of a plugin; None where any name will do, or nobody can know."""
    model: Any = getattr(factory, "Options", None)
    if hasattr(model, "model_validate"):
        if model.model_config.get("extra") == "allow":
            return None
        aliases = [field.alias for field in model.model_fields.values() if field.alias]
        return [*model.model_fields, *aliases]
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable written in C may have none
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [
        parameter.name
        for parameter in parameters
        if parameter.name not in given and parameter.kind is not parameter.VAR_POSITIONAL
    ]


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
