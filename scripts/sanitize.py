"""The operators' suites under the compiler's sanitizers, and a long run that watches memory.

Each sanitizer has a build of its own under build/sanitize; the one in place stays as it is. The
sanitizer is loaded before Python. Python and torch are not compiled for it, mmfast is. What each
part sees and does not see: docs/trust.md.

    make sanitize                 all parts, of the suites what shows most
    make sanitize PART=thread     one of them
    make sanitize FULL=1          the suites whole
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
LIMIT_S = 3600
SUITES = ("tests/ops", "tests/functional", "tests/nn")
# Every operator, dtype, instruction set and kind of argument, each on a few shapes.
QUICK = (
    "tests/ops/test_concat_linear.py",
    "tests/ops/test_concat_linear_index.py",
    "tests/ops/test_fused.py",
    "tests/ops/test_fused_guards.py",
    "tests/ops/test_merge_attention.py",
    "tests/functional/test_fused_arguments.py",
)
# Not about memory: the symbols of the library, and code that Inductor's compiler makes, minutes
# of it in a compiler that runs under the sanitizer too. Nor the bounds of errors in float32:
# without optimisation products are rounded before they are added; nor the memory of a process, of
# which a sanitizer takes several times as much.
LEFT_OUT = (
    "not (test_only_the_stable_abi or test_wide_registers or compile or inductor or export "
    "or test_peak_memory_of_the_process or (test_numbers and float32))"
)

# Whether a leak or a race is mmfast's: its code stands in a stack. Module and function tables of
# pybind11 last as long as the process.
OWN_CODE = re.compile(r"(?:mmfast/|\()_C\.")  # in reports of races libraries have no path
FOR_EVER = re.compile(r"PyInit__C|pybind11")


class PartFailedError(Exception):
    """A report, a test that failed, or what a part needs."""


def run(command: list[str], log: Path, cwd: Path, environment: dict[str, str]) -> None:
    """All output goes to a file, its end to the screen if the command fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        try:
            status = subprocess.run(
                command,
                cwd=cwd,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    if status:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise PartFailedError(f"{last}\nexit status {status}; all of it: {log}")


def build(sanitizer: str) -> Path:
    """Compile what changed for a sanitizer; the folder that holds the package."""
    folder = BUILD / sanitizer
    print(f"[{sanitizer}] compiling, the first time for minutes ...", flush=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder)]
    command += ["--build-lib", str(folder / "lib")]
    settings = {"MMFAST_SANITIZE": sanitizer, "MMFAST_CUDA": "0"}
    run(command, folder / "build.log", ROOT, settings)
    return folder / "lib"


def compilers(name: str) -> str:
    """The path of a library that belongs to the compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise PartFailedError(f"{compiler} not found; install it, or name another in CXX")
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise PartFailedError(f"{compiler} has no {name}; install its sanitizers")
    return path


def pytest(sanitizer: str, settings: dict[str, str], paths: tuple[str, ...], *options: str) -> None:
    """Tests of the sanitized package; its reports are counted, and none may be there."""
    package = build(sanitizer)
    folder = BUILD / sanitizer
    for old in folder.glob("report.*"):
        old.unlink()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    command += ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    command += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    settings = {**settings, "PYTHONPATH": str(package), "PYTHONMALLOC": "malloc"}
    # From the package's folder, which comes before the source tree then.
    check = "import mmfast, sys; sys.exit(not mmfast.__file__.startswith(sys.argv[1]))"
    run([sys.executable, "-c", check, str(package)], folder / "import.log", package, settings)
    log = folder / "tests.log"
    try:
        run([*command, *(str(ROOT / path) for path in paths)], log, package, settings)
    finally:
        found = reports(folder)
        for report in found[:5]:
            print(report[:4000])
        print(f"[{sanitizer}] reports: {len(found)}", flush=True)
    print(f"[{sanitizer}] {log.read_text(encoding='utf-8').splitlines()[-1]}")
    if found:
        raise PartFailedError(f"{len(found)} reports; all of them: {folder}/report.*")


def reports(folder: Path) -> list[str]:
    """What the sanitizers of all processes wrote, without leaks and races of Python and torch."""
    found = []
    for path in sorted(folder.glob("report.*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "LeakSanitizer" in text:
            leaks = re.split(r"\n(?=(?:Direct|Indirect) leak)", text)[1:]
            found += [leak for leak in leaks if OWN_CODE.search(leak) and not FOR_EVER.search(leak)]
            continue
        text = re.sub(r"^ThreadSanitizer: reported \d+ warnings\n", "", text, flags=re.M)
        for part in filter(str.strip, re.split(r"^={18}\n", text, flags=re.M)):
            stacks = part
            if "data race" in part:  # not where the threads came from: any loop's from mmfast
                stacks = re.split(r"^  (?:Location|Mutex|Thread) ", part, flags=re.M)[0]
            if "WARNING: ThreadSanitizer" not in part or OWN_CODE.search(stacks):
                found.append(part)
    return found


def address(full: bool) -> None:
    """Memory errors, undefined behaviour, leaks."""
    log = f"log_path={BUILD / 'address' / 'report'}"
    settings = {
        # Python loads the C++ library too late for exceptions to be followed.
        "LD_PRELOAD": f"{compilers('libasan.so')} {compilers('libstdc++.so.6')}",
        "ASAN_OPTIONS": f"{log}:detect_leaks=1:exitcode=99",
        "UBSAN_OPTIONS": f"{log}:print_stacktrace=1:halt_on_error=1",
        "LSAN_OPTIONS": f"{log}:exitcode=0",  # what leaks is sorted out above
    }
    trust = ("tests/trust/test_threads.py",)
    pytest("address", settings, (*(SUITES if full else QUICK), *trust), "-k", LEFT_OUT)


def thread(full: bool) -> None:
    """Data races: see tests/trust/parallel_for.cpp."""
    loops = BUILD / "thread" / "parallel_for.so"
    loops.parent.mkdir(parents=True, exist_ok=True)
    compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-g1", "-fsanitize=thread"]
    compiler += ["-shared", "-fPIC", str(ROOT / "tests/trust/parallel_for.cpp"), "-o", str(loops)]
    run(compiler, loops.with_suffix(".log"), ROOT, {})
    settings = {
        "LD_PRELOAD": f"{compilers('libtsan.so')} {loops}",
        "OMP_NUM_THREADS": "1",  # of torch's own loops, whose threads the sanitizer cannot follow
        "TSAN_OPTIONS": f"log_path={BUILD / 'thread' / 'report'}:exitcode=0",
    }
    suites = SUITES if full else QUICK
    # The sanitizer ends a forked child that begins a thread.
    chosen = f"{LEFT_OUT} and not fork"
    pytest("thread", settings, (*suites, "tests/trust/test_threads.py"), "-k", chosen)


def memory(_: bool) -> None:
    """10,000 iterations of every operator, with the ordinary build."""
    log = BUILD / "memory.log"
    command = [sys.executable, str(ROOT / "tests/trust/memory.py")]
    run(command, log, ROOT, {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"})
    print("\n".join(log.read_text(encoding="utf-8").splitlines()[-2:]))


PARTS: dict[str, Callable[[bool], None]] = {
    "address": address,
    "thread": thread,
    "memory": memory,
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="only this")
    parser.add_argument("--full", action="store_true", help="the suites whole")
    options = parser.parse_args()
    failed = []
    for name in options.part or PARTS:
        begin = time.monotonic()
        print(f"[{name}] {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        try:
            PARTS[name](options.full)
        except PartFailedError as error:
            print(error)
            failed.append(name)
        outcome = "FAILED after" if name in failed else "clean,"
        print(f"[{name}] {outcome} {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
