"""What `make docs` adds to the files of docs/: README and its neighbours, and the API reference.

A hook of mkdocs. Links between files of the repository work there and in the site; of a file that
is no page, the site shows the name alone.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Files beside docs/, by the page that they become.
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
MODULES = (
    "mmfast",
    "mmfast.functional",
    "mmfast.nn",
    "mmfast.losses",
    "mmfast.plugins",
    "mmfast.encoders",
    "mmfast.data",
    "mmfast.train",
    "mmfast.testing",
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The contents: what every page of docs/ is, then the reference."""
    own = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    config.nav = [
        {"Overview": "index.md"},
        {"Guides": own},
        {"Reference": [{name: _page_of(name)} for name in MODULES]},
        {"Project": [name for name in PAGES if name != "index.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for name in MODULES:
        files.append(File.generated(config, _page_of(name), content=_reference(name)))
    return files


def on_page_markdown(text: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links to their pages."""
    here = Path(PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent
    pages = {source: target for target, source in PAGES.items()}

    def turned(found: re.Match[str]) -> str:
        image, said, path, anchor = found.groups(default="")
        named = os.path.normpath(here / path)
        if "://" in path or not (ROOT / named).exists():
            return found.group()
        target = pages.get(named) or (named[5:] if named.startswith("docs/") else None)
        if target is None:
            return said
        return f"{image}[{said}]({target}{anchor})"

    return _LINK.sub(turned, text)


def _page_of(module: str) -> str:
    return f"api/{module.replace('.', '_')}.md"


def _reference(name: str) -> str:
    """A page with every public name of a module, each where it is defined."""
    module = importlib.import_module(name)
    pieces = [f"# {name}", (module.__doc__ or "").strip()]
    for public in module.__all__:
        found = getattr(module, public)
        if inspect.ismodule(found) or public.startswith("__"):
            continue
        target = f"{name}.{public}"
        if inspect.isclass(found) or inspect.isfunction(found):
            target = f"{found.__module__}.{found.__qualname__}"
        pieces.append(f"::: {target}\n    options:\n      heading: {public}\n")
    return "\n\n".join(pieces) + "\n"
