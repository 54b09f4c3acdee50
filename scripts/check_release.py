"""Whether a tag can be released, and what is new in it: `python3 scripts/check_release.py v1.2.3`.

The version stands in pyproject.toml and nowhere else; the tag must be it, and CHANGELOG.md must
have a section of it, which is printed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def version() -> str:
    """The version of this tree."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^\[project\]\n(?:.+\n)*?version = "([^"]+)"$', project, re.MULTILINE)
    if found is None:
        sys.exit("pyproject.toml has no version")
    return found.group(1)


def notes(of: str) -> str:
    """The section of a version in CHANGELOG.md."""
    log = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## \[{re.escape(of)}\].*\n((?:(?!## ).*\n?)*)", log, re.MULTILINE)
    if found is None or not found.group(1).strip():
        sys.exit(f"CHANGELOG.md has no section [{of}] with anything in it")
    return found.group(1).strip()


def main() -> None:
    """Print the notes; exit with a sentence if the tag is not to be released."""
    (tag,) = sys.argv[1:] or [f"v{version()}"]
    if tag != f"v{version()}":
        sys.exit(f"the tag is {tag}; pyproject.toml says {version()}")
    print(notes(version()))


if __name__ == "__main__":
    main()
