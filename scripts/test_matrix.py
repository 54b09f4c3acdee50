"""One wheel, unchanged, under several releases of torch; then a wheel for each Python at hand.

`make test-matrix` runs it on the wheel of `make wheel`. Each release has an environment of its own,
.venv-torch-VERSION, which is kept: a second run downloads nothing. The tests run from there, so
that the wheel is what they import. A release of torch with its libraries is some gigabytes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUITES = ("tests/ops", "tests/nn", "tests/functional")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
NEEDED = ("numpy", "pytest", "pytest-xdist", "hypothesis")
TO_BUILD = ("numpy", "ninja", "pybind11", "setuptools", "wheel")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is kept."""
    return subprocess.run([*map(str, command)], text=True, capture_output=True, **options)  # type: ignore[call-overload]


def must(*command: object, **options: object) -> str:
    """What a command prints; it must succeed."""
    done = run(*command, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def releases() -> Iterator[str]:
    """The oldest release that is supported, the one of constraints.txt, the newest of the index."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    oldest = re.search(r'"torch>=([\d.]+)"', project)
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert oldest is not None
    assert pinned is not None
    yield f"{oldest.group(1)}.0"
    yield pinned.group(1)
    if newest(sys.executable) != pinned.group(1):
        yield newest(sys.executable)


def newest(python: str | Path) -> str:
    """The last release of torch that the index has for an interpreter."""
    listing = must(python, "-m", "pip", "index", "versions", "torch")
    found = re.search(r"^torch \(([\d.]+)", listing, re.M)
    assert found, listing
    return found.group(1)


def environment(python: str | Path, torch: str, *packages: str) -> Path:
    """The interpreter of an environment with that torch; made once."""
    tag = "" if Path(python) == Path(sys.executable) else f"-{Path(python).name}"
    folder = ROOT / f".venv-torch-{torch}{tag}"
    if not (folder / ".ready").exists():
        must(python, "-m", "venv", folder)
        must(folder / "bin/python", "-m", "pip", "install", "-q", f"torch=={torch}", *packages)
        (folder / ".ready").touch()
    return folder / "bin" / "python"


def install(python: Path, wheel: Path) -> str:
    """Put the wheel into an environment; what scripts/smoke.py says of it there."""
    must(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    return must(python, "-I", ROOT / "scripts/smoke.py", cwd=python.parent).strip()


def under(torch: str, wheel: Path, suites: list[str]) -> bool:
    """Whether the suites pass under a release of torch; prints how they ended."""
    python = environment(sys.executable, torch, *NEEDED)
    print(install(python, wheel))
    start = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run(*command, *(ROOT / suite for suite in suites), cwd=python.parent, env=settings)
    last = (done.stdout.strip() or done.stderr).splitlines()[-1]
    print(f"torch {torch}: {last} ({time.monotonic() - start:.0f} s)", flush=True)
    if done.returncode:
        print(done.stdout[-6000:])
    return done.returncode == 0


def interpreters() -> Iterator[tuple[str, Path | None]]:
    """The versions to build for, with an interpreter where there is one: on PATH, or of pyenv."""
    for version in PYTHONS:
        found = shutil.which(f"python{version}")
        number = version.rstrip("t")
        free = "t" if version.endswith("t") else ""
        kept = sorted(Path.home().glob(f".pyenv/versions/{number}.*{free}/bin/python{version}"))
        works = [p for p in (found, *kept) if p and run(p, "-c", "import ssl").returncode == 0]
        yield version, Path(works[0]) if works else None


def build(version: str, interpreter: Path) -> bool:
    """Whether the wheel of the CPU kernels builds and works for a Python; prints it."""
    python = environment(interpreter, newest(interpreter), *TO_BUILD)
    into = ROOT / "build" / f"wheel-{version}"
    shutil.rmtree(into, ignore_errors=True)
    wheel = (python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", into)
    made = run("env", "MMFAST_CUDA=0", *wheel, ROOT)
    if made.returncode:
        print(f"Python {version}: no wheel:\n{made.stderr[-3000:]}")
        return False
    (built,) = into.glob("*.whl")
    print(f"Python {version}: {built.name}: {install(python, built)}", flush=True)
    return True


def main() -> int:
    """The exit status: 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="*", help="releases; by default oldest, pinned, newest")
    parser.add_argument("--suites", nargs="*", default=list(SUITES))
    parser.add_argument("--pythons", nargs="*", help="versions to build for; by default all found")
    options = parser.parse_args()
    chosen = list(releases()) if options.torch is None else options.torch
    good = [under(torch, options.wheel.absolute(), options.suites) for torch in chosen]
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version, interpreter in interpreters():
        if version == own or (options.pythons is not None and version not in options.pythons):
            continue
        if interpreter is None:
            print(f"Python {version}: no interpreter at hand; not built")
        else:
            good.append(build(version, interpreter))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
