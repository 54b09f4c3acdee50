"""Do the tests notice faults? ``make mutants`` puts each of mutants.yaml into a copy and looks.

A copy of the tree is built once; each fault is then put into it alone, what it concerns is compiled
again, and the tests named must fail. If they do not notice one, the command fails: what is wrong is
the test suite. Tests that fail without any fault are told first.

    python scripts/mutants.py --only '*bias*'
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "scripts" / "mutants.yaml"
LIMIT_SECONDS = 900  # a fault that makes the tests hang is noticed
AS_IN_MAKE_TEST = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Mutant:
    """One fault: what stands where, what stands there instead, and which tests must see it."""

    fault: str
    file: str
    find: str
    replace: str
    tests: str
    needs: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether this machine has the instruction set that it needs."""
        from mmfast.ops.library import host

        return not self.needs or self.needs in host.cpu_isas()

    @property
    def compiled(self) -> bool:
        """Whether the extension has to be built again."""
        return self.file.startswith("csrc/")

    def problem(self, root: Path) -> str:
        """Why it cannot be applied to a tree; empty if it can."""
        if not (root / self.file).is_file():
            return f"{self.file} is not there"
        count = (root / self.file).read_text().count(self.find)
        if count != 1:
            return f"what it replaces stands {count} times in {self.file}; it must stand once"
        absent = [name for name in self.tests.split() if not (root / name).exists()]
        return f"{', '.join(absent)} is not there" if absent else ""


def read_mutants() -> list[Mutant]:
    """The list, in its order."""
    return [Mutant(**entry) for entry in yaml.safe_load(LIST.read_text())]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if every fault was noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="faults that match this pattern")
    parser.add_argument("--part", choices=("python", "compiled"), help="only faults in this")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    mutants = [m for m in read_mutants() if fnmatch.fnmatch(m.fault, arguments.only)]
    if arguments.part:
        mutants = [m for m in mutants if m.compiled == (arguments.part == "compiled")]
    beyond = [m for m in mutants if not m.runs_here]
    mutants = [m for m in mutants if m.runs_here]
    mutants.sort(key=lambda m: m.compiled)  # a fault in Python is not to meet a library with one
    problems = [f"{m.fault}: {m.problem(ROOT)}" for m in mutants if m.problem(ROOT)]
    if problems or not mutants:
        console.print("\n".join(problems) or f"no fault matches {arguments.only!r}", markup=False)
        return 2
    with tempfile.TemporaryDirectory(prefix="mmfast-mutants-") as folder:
        copy = Path(folder)
        _copy_tree(copy, compiled=any(m.compiled for m in mutants))
        tests = sorted({name for m in mutants for name in m.tests.split()})
        console.print(f"{len(mutants)} faults; first the tests without any")
        healthy = _run_tests(copy, tests, "-n", "auto", "--dist", "loadfile")
        if healthy.returncode != 0:
            console.print(healthy.stdout[-4000:], markup=False)
            console.print("the tests fail without a fault: nothing can be said")
            return 2
        survivors = [m for m in mutants if not _noticed(copy, m, console)]
    console.print(f"{len(mutants) - len(survivors)} of {len(mutants)} faults noticed")
    for mutant in beyond:
        console.print(f"not tried, needs {mutant.needs}: {mutant.fault}", markup=False)
    for mutant in survivors:
        console.print(f"not noticed: {mutant.fault} ({mutant.file})", markup=False)
    return 1 if survivors else 0


def _copy_tree(copy: Path, compiled: bool) -> None:
    """The files that git knows, and the extension: the tree's own, or one built for the CPU."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    if compiled:
        _build(copy)
    else:
        for library in (ROOT / "mmfast").glob("_C.*.so"):
            shutil.copy2(library, copy / "mmfast")


def _build(copy: Path) -> None:
    """Compile what changed, quickly rather than well; what a fault needs is right, not fast."""
    wishes = {"MMFAST_CUDA": "0", "MMFAST_CXX_FLAGS": "-O1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=copy, env={**os.environ, **wishes}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"the copy does not compile:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")


def _run_tests(copy: Path, tests: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-W", "ignore"]
    command += ["-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *options, *tests],
        cwd=copy,
        env={**os.environ, **AS_IN_MAKE_TEST, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=None if options else LIMIT_SECONDS,
    )


def _noticed(copy: Path, mutant: Mutant, console: Console) -> bool:
    """Put the fault in, run its tests, take it out; whether a test failed."""
    path = copy / mutant.file
    original = path.read_text()
    path.write_text(original.replace(mutant.find, mutant.replace))
    start = time.monotonic()
    try:
        if mutant.compiled:
            _build(copy)
        done = _run_tests(copy, mutant.tests.split())
        # 1: tests failed; below 0: the fault crashed the process. Otherwise none was run at all.
        if done.returncode > 1:
            raise SystemExit(f"{mutant.fault}: the tests did not run\n{done.stdout[-4000:]}")
        noticed = done.returncode != 0
        said = "noticed" if noticed else "NOT NOTICED"
    except subprocess.TimeoutExpired:
        noticed, said = True, "noticed (the tests hang)"
    finally:
        path.write_text(original)  # the next build compiles it again
    seconds = time.monotonic() - start
    console.print(f"{said}: {mutant.fault} ({mutant.file}, {seconds:.0f} s)", markup=False)
    return noticed


if __name__ == "__main__":
    sys.exit(main())
