"""Which plugins are installed: read from the metadata of distributions, without importing any.

One distribution whose metadata cannot be read does not hide the others, which is why this is not
``importlib.metadata.entry_points``. Nothing is cached: what pip installs while a notebook runs is
found.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from typing import Any

ALLOWED = "MMFAST_PLUGINS"
OWN = "mmfast"

Factory = Callable[..., Any]


@dataclass(frozen=True)
class Plugin:
    """One name, what it stands for, and where it comes from; known without importing it.

    Attributes:
        name: the public name.
        target: ``module:attribute``.
        modalities: those in the brackets behind the target; empty where it does not say.
        factory: the class or function itself if it was registered in this process, otherwise None.
        dist: the installed distribution, None for what was registered in this process.
    """

    name: str
    target: str
    modalities: tuple[str, ...] = ()
    factory: Factory | None = None
    dist: Distribution | None = None

    @property
    def distribution(self) -> str:
        """Name of the distribution that ships it."""
        return _header(self.dist, "Name") or "an unknown distribution"

    @property
    def version(self) -> str:
        """Version of that distribution; empty if unknown."""
        return _header(self.dist, "Version")

    @property
    def licence(self) -> str:
        """Licence that the distribution states; empty if it states none in one line."""
        return _header(self.dist, "License-Expression") or _header(self.dist, "License")

    @property
    def source(self) -> str:
        """Distribution and version, or that it was registered in this process."""
        if self.factory is not None:
            return f"{self.target}, registered in this process"
        return f"{self.distribution} {self.version}".rstrip()

    @property
    def allowed(self) -> bool:
        """Whether ``MMFAST_PLUGINS`` lets it be used.

        What mmfast ships and what was registered in this process always may.
        """
        listed = allow_list()
        if listed is None or self.factory is not None:
            return True
        return normalized(self.distribution) in {OWN, *listed}


def installed(group: str) -> Iterator[Plugin]:
    """The plugins of one entry-point group, those that are not allowed among them."""
    seen: set[str | int] = set()
    for dist in distributions():
        try:
            text = dist.read_text("entry_points.txt") or ""
            if group not in text:
                continue
            entries = [entry for entry in dist.entry_points if entry.group == group]
            name = normalized(_header(dist, "Name"))
        except Exception as error:  # whatever is wrong with this one, the others are usable
            warnings.warn(
                f"mmfast: {dist} is ignored: {type(error).__name__}: {error}", stacklevel=2
            )
            continue
        # One distribution may be found twice, in its source tree and as installed; the first of
        # the path is the one that would be imported.
        if not entries or name in seen:
            continue
        seen.add(name or id(dist))
        for entry in entries:
            target, _, brackets = entry.value.partition("[")
            modalities = tuple(re.findall(r"\w+", brackets))
            yield Plugin(entry.name, target.strip(), modalities, dist=dist)


def allow_list() -> set[str] | None:
    """The distributions that ``MMFAST_PLUGINS`` names, None if it is unset and all are allowed."""
    text = os.environ.get(ALLOWED)
    if text is None:
        return None
    return {normalized(name.strip()) for name in text.split(",") if name.strip()}


def normalized(name: str) -> str:
    """The name of a distribution in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _header(dist: Distribution | None, field: str) -> str:
    # Not dist.metadata: parsing the whole of it, README included, takes a millisecond.
    text = "" if dist is None else dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
    found = re.search(rf"^{field}:[ \t]*(\S.*)$", text.partition("\n\n")[0], re.MULTILINE)
    return found.group(1).strip() if found else ""
