"""Plugins by name: found in the metadata, chosen, loaded, and called with checked options."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from mmfast.plugins.discovery import ALLOWED, Factory, Plugin, installed, normalized
from mmfast.plugins.options import checked_options


class PluginLoadError(RuntimeError):
    """A plugin is installed but cannot be used; what it raised itself is chained as the cause.

    Attributes:
        plugin: its public name.
        distribution: what ships it.
        version: of that distribution.
        target: ``module:attribute``.
    """

    def __init__(self, message: str, plugin: Plugin | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin.name if plugin else ""
        self.distribution = plugin.distribution if plugin else ""
        self.version = plugin.version if plugin else ""
        self.target = plugin.target if plugin else ""


class Registry:
    """The plugins of one kind.

    Args:
        group: the entry-point group in which distributions announce them.
        kind: what they are, in one word, for messages.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind
        self.registered: dict[str, Plugin] = {}

    def names(self, modality: str | None = None) -> list[str]:
        """All names that are allowed, sorted; imports nothing."""
        plugins = [*self.registered.values(), *self._allowed()]
        return sorted(
            {plugin.name for plugin in plugins if modality is None or modality in plugin.modalities}
        )

    def plugins(self) -> list[Plugin]:
        """Everything that is registered or installed, what is not allowed included; by name."""
        found = [*self.registered.values(), *installed(self.group)]
        return sorted(found, key=lambda plugin: (plugin.name, plugin.source))

    def register(self, name: str, factory: Factory, modalities: Iterable[str] = ()) -> None:
        """Make a class or function known in this process.

        Registering the same class again, as a notebook's cell does when it is run again, replaces
        it.

        Raises:
            TypeError: the name is no string, or the factory cannot be called.
            ValueError: the name has a colon, or is taken.
        """
        self.check_name(name)
        if not callable(factory):
            raise TypeError(
                f"the {self.kind} {name!r} is {factory!r}; it must be a class or a function"
            )
        made_by = factory if hasattr(factory, "__qualname__") else type(factory)
        target = f"{made_by.__module__}:{made_by.__qualname__}"
        taken = self.registered.get(name)
        if taken and taken.target != target:
            raise ValueError(f"the {self.kind} name {name!r} is taken by {taken.target}")
        for plugin in self._allowed():
            if plugin.name == name and plugin.target != target:
                raise ValueError(
                    f"the {self.kind} name {name!r} is taken by {plugin.source}; choose another"
                )
        self.registered[name] = Plugin(name, target, tuple(modalities), factory)

    def check_name(self, name: object) -> None:
        """Raise TypeError or ValueError for what cannot be the name of a plugin."""
        if not isinstance(name, str):  # the decorator without its parentheses
            raise TypeError(
                f"name must be a str, got {name!r}; write @register_{self.kind}('my_{self.kind}')"
            )
        if not name or ":" in name:
            raise ValueError(
                f"the {self.kind} name {name!r} must not be empty or have a colon "
                "(distribution:name is how one of two plugins is chosen)"
            )

    def find(self, name: str) -> Plugin:
        """The one plugin of that name; ``distribution:name`` chooses where two claim it.

        Raises:
            ValueError: there is none, or several.
        """
        plugins = list(installed(self.group))
        claims = [plugin for plugin in plugins if _is_called(plugin, name)]
        allowed = [plugin for plugin in claims if plugin.allowed]
        own = self.registered.get(name) if isinstance(name, str) else None
        if own and all(plugin.target == own.target for plugin in allowed):
            return own  # a plugin may register itself too
        if own:
            allowed.append(own)
        if len(allowed) > 1:
            choices = [f"{p.distribution}:{p.name}" for p in allowed if p.factory is None]
            raise ValueError(
                f"the {self.kind} name {name!r} is claimed by "
                f"{' and '.join(sorted(plugin.source for plugin in allowed))}; write "
                f"{' or '.join(map(repr, sorted(choices)))}, or uninstall one of them"
            )
        if allowed:
            return allowed[0]
        if claims:
            raise ValueError(
                f"the {self.kind} {name!r} is of {claims[0].source}, which {ALLOWED} does not "
                f"allow; add {claims[0].distribution} to that list of distributions"
            )
        known = self.names()
        near = difflib.get_close_matches(str(name), known)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        raise ValueError(
            f"no {self.kind} is named {name!r}{hint}; the names are {', '.join(known) or 'none'}"
        )

    def load(self, plugin: Plugin) -> Factory:
        """The class or function itself.

        What the import prints to standard output goes to standard error, so that it does not get
        into the output of a command.

        Raises:
            PluginLoadError: whatever happens while it is imported, or if it is nothing to call.
        """
        if plugin.factory is not None:
            return plugin.factory
        what = f"the {self.kind} {plugin.name!r} of {plugin.source} ({plugin.target})"
        module, _, attribute = plugin.target.partition(":")
        if not attribute:
            raise PluginLoadError(f"{what} names no attribute; it must be module:attribute", plugin)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                loaded = importlib.import_module(module)
            factory: Any = functools.reduce(getattr, attribute.split("."), loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit at import, the panic of a compiled extension
            said = f"{type(error).__name__}: {error}"
            raise PluginLoadError(f"{what} could not be loaded: {said}", plugin) from error
        if not callable(factory):
            raise PluginLoadError(
                f"{what} is a {type(factory).__name__}; it must be a class, or a function that "
                "returns a module",
                plugin,
            )
        return factory

    def create(
        self, plugin: Plugin, options: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> Any:
        """What the plugin makes of its options, and of arguments ``given`` that are not options.

        Raises:
            PluginLoadError: it cannot be loaded.
            TypeError, ValueError: see :func:`mmfast.plugins.options.checked_options`.
        """
        factory = self.load(plugin)
        given = given or {}
        what = f"the {self.kind} {plugin.name!r}"
        return factory(**given, **checked_options(what, factory, options, given))

    def _allowed(self) -> list[Plugin]:
        return [plugin for plugin in installed(self.group) if plugin.allowed]


def _is_called(plugin: Plugin, name: object) -> bool:
    if plugin.name == name:
        return True
    distribution, colon, rest = str(name).partition(":")
    return (
        bool(colon)
        and plugin.name == rest
        and (normalized(plugin.distribution) == normalized(distribution))
    )
