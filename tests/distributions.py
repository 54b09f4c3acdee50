"""Distributions as pip leaves them: a dist-info folder and a module on a path."""

from pathlib import Path


def write_distribution(
    site: Path,
    name: str,
    entry_points: dict[str, dict[str, str]],
    code: str = "",
    release: str = "1.2.3",
    headers: str = "",
    readme: str = "",
) -> str:
    """Writes distribution ``name`` and its module ``<name>_module`` into ``site``.

    ``entry_points`` is by group: name and value. Returns the name of the module.
    """
    stem = name.replace("-", "_")
    folder = site / f"{stem}-{release}.dist-info"
    folder.mkdir(parents=True)
    header = f"Metadata-Version: 2.4\nName: {name}\nVersion: {release}\n{headers}"
    (folder / "METADATA").write_text(f"{header}\n{readme}")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    (site / f"{stem}_module.py").write_text(code)
    return f"{stem}_module"
