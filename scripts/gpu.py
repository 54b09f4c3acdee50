"""Everything that needs a GPU, in parts of less than ten minutes each.

For a machine with a GPU whose python3 already holds a torch with CUDA, and which may have no
network: nothing is installed, the library is built in place, and the parts that need a package
which is missing say which. A part that went through is not done again (its mark lies in the output
folder) unless it is named or something was compiled since; the summary comes last.

    make gpu                     all parts
    make gpu PART=tests          one of them
    make gpu OUT=results/h200    where results go (benchmarks/results)
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PART_LIMIT_S = 600
# Races and out-of-bounds accesses show at small sizes; under the sanitizer larger ones take hours.
SANITIZED = "test_float64 and (small or four) or test_expanded or test_merge and not special"


class PartFailedError(Exception):
    """What a part needs, or what went wrong."""


@dataclass(frozen=True)
class Part:
    """A step: what it is for, what it runs, and packages without which it cannot."""

    about: str
    run: Callable[[Path], None]
    packages: tuple[str, ...] = ()


def build(out: Path) -> None:
    """Compile for this machine's Python and torch, in place."""
    environment = {**os.environ, "MMFAST_CUDA": "1"}
    run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], out / "build.log", environment
    )


def tests(*paths: str) -> Callable[[Path], None]:
    """A part that runs tests, of those that run on every device only the GPU's."""

    def run_tests(out: Path) -> None:
        log = out / f"{Path(paths[-1]).stem}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
        run([*command, "-k", "cuda or test_on_gpu"], log)
        outcome = log.read_text(encoding="utf-8").splitlines()[-1]
        if " passed" not in outcome:
            raise PartFailedError(f"no test ran: {outcome}; all of it: {log}")
        print(outcome)

    return run_tests


def sanitizer(out: Path) -> None:
    """Memcheck and racecheck over small shapes."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        raise PartFailedError("compute-sanitizer not found; it comes with the CUDA toolkit")
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for check in ("memcheck", "racecheck"):
        suites = ["tests/ops/test_fused.py", "tests/ops/test_merge_attention.py"]
        if check == "memcheck":
            suites.append("tests/ops/test_concat_linear_index.py")
        command = [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *suites]
        command += ["-k", f"cuda and ({SANITIZED})"]
        run(command, out / f"{check}.log", environment)


def bench(name: str, *options: str) -> Callable[[Path], None]:
    """A part that measures."""

    def measure(out: Path) -> None:
        folder = out / name
        command = [sys.executable, "-m", "mmfast.bench", "--device", "cuda", "--out", str(folder)]
        run([*command, *options], folder.with_suffix(".log"))

    return measure


KEY = ("operator", "mode", "case", "dtype")  # of what is measured, in a table
OPERATORS = "weighted_sum,attention_pool,gated_sum,rank_product"
TEST = ("pytest", "hypothesis")
BENCH = ("rich", "matplotlib")
PARTS = {
    "build": Part("compile in place", build),
    "tests": Part(
        "the operators' suites, and what only a GPU can show",
        tests("tests/cuda/test_on_gpu.py", "tests/ops"),
        TEST,
    ),
    "tests-nn": Part("functions and modules", tests("tests/functional", "tests/nn"), TEST),
    "sanitizer": Part("memcheck and racecheck", sanitizer, TEST),
    "bench": Part(
        "concat_linear, real shapes and tiny ones",
        bench("bench", "--gpu", "--operator=concat_linear", "--only=^(?!grid)", "--no-compile"),
        BENCH,
    ),
    "bench-grid": Part(
        "concat_linear, 1k to 64k rows, 64 to 4096 outputs",
        bench(
            "bench-grid", "--gpu", "--operator=concat_linear", "--only=^grid", "--dtype=bfloat16"
        ),
        BENCH,
    ),
    "bench-compile": Part(
        "against torch.compile with max-autotune",
        bench(
            "bench-compile",
            "--compile",
            "--operator=concat_linear",
            "--only=^grid 3x768.*batch 16384",
            "--gpu",
            "--dtype=bfloat16",
        ),
        BENCH,
    ),
    "bench-rows": Part(
        "the operators over rows",
        bench("bench-rows", "--gpu", f"--operator={OPERATORS}", "--no-compile"),
        BENCH,
    ),
}


def run(command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    """Run one command of a part; its output goes to a file, its end to the screen if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PART_LIMIT_S,
            )
            status = f"exit status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            status = f"not done after {PART_LIMIT_S} s"
    if status:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise PartFailedError(f"{last}\n{status}; all of it: {log}")


def check_machine(parts: list[str]) -> None:
    """Say what is missing before anything runs."""
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"gpu: {sys.executable} has no torch; run it with the python that has")
    import torch

    if torch.version.cuda is None:
        sys.exit(f"gpu: this torch, {torch.__version__}, was built without CUDA; use one with it")
    if not torch.cuda.is_available():
        sys.exit(f"gpu: torch {torch.__version__} finds no usable GPU (see nvidia-smi)")
    missing = {
        package: part
        for part in parts
        for package in PARTS[part].packages
        if importlib.util.find_spec(package) is None
    }
    for package, part in missing.items():
        print(f"gpu: {package} is not installed; part {part} needs it and will fail")
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)


def is_done(mark: Path) -> bool:
    """Whether a part went through since anything was compiled."""
    objects = [x.stat().st_mtime for x in ROOT.glob("build/temp*/**/*.o")]
    return mark.exists() and mark.stat().st_mtime > max(objects, default=0)


def summary(out: Path) -> str:
    """Of every measured table: mmfast's time against each peer, as geometric means."""
    lines = []
    for table in sorted(out.glob("*/*.csv")):
        ratios: dict[tuple[str, str, str], list[float]] = {}
        times: dict[tuple[str, ...], dict[str, float]] = {}
        with table.open(encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                times.setdefault(tuple(row[name] for name in KEY), {})[row["peer"]] = float(
                    row["median_s"]
                )
        for (operator, mode, *_), seconds in times.items():
            own = seconds.pop("mmfast", None)
            for peer, other in seconds.items() if own else ():
                ratios.setdefault((operator, mode, peer), []).append(own / other)
        lines.append(f"{table.parent.name}:")
        for (operator, mode, peer), found in sorted(ratios.items()):
            mean = exp(sum(map(log, found)) / len(found))
            figures = f"{mean:6.2f}  best {min(found):5.2f}  worst {max(found):5.2f}"
            lines.append(f"  {operator:16}{mode:10}time / {peer:14}{figures}  {len(found)} cases")
    return "\n".join(lines) or "nothing was measured"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="only this, done or not")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    options = parser.parse_args()
    out = options.out.resolve()
    chosen = options.part or list(PARTS)
    check_machine(chosen)
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in chosen:
        mark = out / f".{name}.done"
        if not options.part and name != "build" and is_done(mark):
            print(f"[{name}] done before; `make gpu PART={name}` does it again")
            continue
        begin = time.monotonic()
        print(f"[{name}] {PARTS[name].about} ...", flush=True)
        try:
            PARTS[name].run(out)
        except PartFailedError as error:
            print(f"{error}\n[{name}] FAILED after {time.monotonic() - begin:.0f} s", flush=True)
            mark.unlink(missing_ok=True)
            failed.append(name)
            if name == "build":
                break
        else:
            mark.touch()
            print(f"[{name}] {time.monotonic() - begin:.0f} s", flush=True)
    print(summary(out))
    print(f"gpu: {'failed: ' + ', '.join(failed) if failed else 'every part went through'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
