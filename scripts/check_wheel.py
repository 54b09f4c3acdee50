"""Checks a wheel as a user meets it: its libraries, its symbols, its files, a fresh environment.

`make wheel` runs it. What libtorch exports is not copied into the wheel: the user's torch has it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXCLUDED = ("libtorch.so", "libtorch_cpu.so", "libc10.so")
UNSTABLE = re.compile(r"\b(at|c10|torch|caffe2)::")


def run(*command: object, **options: object) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([*map(str, command)], text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def check_files(wheel: Path) -> None:
    """One library, and nothing that belongs to the source tree."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    libraries = [name for name in names if name.endswith(".so")]
    strays = [n for n in names if not re.match(r"mmfast/|mmfast-[^/]*\.dist-info/", n)]
    if len(libraries) != 1 or strays:
        sys.exit(f"{wheel.name} holds the libraries {libraries} and the strays {strays}")


def check_symbols(library: Path) -> int:
    """No C++ of torch: its stable ABI is C. How many of its functions are used."""
    listing = run("nm", "-D", "--undefined-only", "-C", library)
    symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    unstable = [symbol for symbol in symbols if UNSTABLE.search(symbol)]
    stable = [s for s in symbols if re.match(r"aoti_torch_|torch_|aoti_", s)]
    if unstable or not stable:
        sys.exit(f"{library.name} needs {unstable or 'nothing of torch'}")
    return len(stable)


def repaired(wheel: Path, into: Path) -> Path:
    """The wheel with the platform tag that its libraries allow, by auditwheel."""
    excluded = [word for name in EXCLUDED for word in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", "-w", into, *excluded, wheel)
    (found,) = into.glob("*.whl")
    return found


def use(wheel: Path, folder: Path) -> str:
    """What scripts/smoke.py says in an environment with nothing but the wheel and its needs."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "-c", ROOT / "constraints.txt", wheel)
    return run(python, "-I", ROOT / "scripts" / "smoke.py", cwd=folder)


def main() -> None:
    """Check, and put the repaired wheel where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--into", type=Path, default=Path("dist"), help="for the repaired wheel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        check_files(options.wheel)
        (folder / "repaired").mkdir()
        wheel = repaired(options.wheel, folder / "repaired")
        check_files(wheel)
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".so")]
            library = Path(archive.extract(name, folder))
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
        print(f"{check_symbols(library)} functions of torch's stable ABI, none of its C++")
        print(use(wheel, folder).strip())
        options.into.mkdir(exist_ok=True)
        wheel.replace(options.into / wheel.name)


if __name__ == "__main__":
    main()
