"""Compiles the CUDA kernels on a machine without a GPU and checks what can be checked there.

It links the whole library in a folder of its own, loads it, asks whether every operator that has
a CPU kernel has a CUDA kernel, and reads the machine code: which GPUs it is for, that no kernel
spills registers to memory, that matrix products use tensor cores and that rows are loaded 128 bits
at a time. ``make cuda-check`` runs it; exit status 1 says that something is missing, and what.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda_check"

# GPU, kernels whose name matches, instruction that each of them must contain.
REQUIRED = (
    ("sm_90a", r"gemm_sm90", r"\bHGMMA\b"),
    ("sm_90a", r"gemm_sm90", r"\bUTMALDG\b"),
    ("sm_80", r"gemm_sm80", r"\bHMMA\b"),
    ("sm_80", r"Whole<", r"\bLDG\.E\.128\b"),
    ("sm_90a", r"Whole<", r"\bLDG\.E\.128\b"),
)
GPUS = ("sm_80", "sm_90a")
PTX = "compute_80"

# Runs in a process of its own: what the library needs to load must be found without any help.
LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("mmfast._C", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
has = torch._C._dispatch_has_kernel_for_dispatch_key
for name in sorted(torch._C._dispatch_get_all_op_names()):
    if name.startswith("mmfast::"):
        print(name, int(has(name, "CPU")), int(has(name, "CUDA")))
"""


class CommandError(Exception):
    """A program that reads the library did not."""


@dataclass
class Kernel:
    """One function in the machine code of one GPU."""

    gpu: str
    name: str
    stack: int = 0
    code: list[str] = field(default_factory=list)


def build(folder: Path) -> Path:
    """Compile and link; the library."""
    environment = {**os.environ, "MMFAST_CUDA": "1"}
    # Objects are shared with the build in place: only what changed is compiled.
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\ncuda-check: the library does not compile")
    return folder / "mmfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def check_operators(library: Path) -> Iterator[str]:
    """What is wrong with loading it, and operators that have a CPU kernel but no CUDA kernel."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(library)], text=True, capture_output=True
    )
    if done.returncode:
        yield f"the library does not load without a GPU:\n{done.stderr.strip()}"
        return
    operators = [line.split() for line in done.stdout.splitlines()]
    missing = [name for name, cpu, cuda in operators if cpu == "1" and cuda == "0"]
    if not operators:
        yield "the library registers no operator"
    if missing:
        yield f"operators without a CUDA kernel: {', '.join(missing)}"
    print(f"loads without a GPU; {len(operators)} operators, {len(missing)} without CUDA kernel")


def check_libraries(library: Path) -> Iterator[str]:
    """Libraries that it would need at load: none of CUDA's, which a CPU torch does not have."""
    listing = _run("readelf", "-d", str(library))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listing)
    wrong = [name for name in needed if re.search(r"cuda|cublas|torch_cuda", name)]
    if wrong:
        yield f"it needs {', '.join(wrong)} at load; these are to be looked up when they are used"


def check_machine_code(library: Path, cuobjdump: str) -> Iterator[str]:
    """GPUs that are left out, kernels that spill, instructions that should be there and are not."""
    try:
        elves = _run(cuobjdump, "--list-elf", str(library))
    except CommandError as error:
        yield f"there is no machine code to read: {error}"
        return
    texts = _run(cuobjdump, "--list-ptx", str(library))
    for gpu in GPUS:
        if f".{gpu}." not in elves:
            yield f"there is no machine code for {gpu}"
    if f".{PTX.replace('compute', 'sm')}." not in texts:
        yield f"there is no PTX of {PTX}, which newer GPUs compile"
    kernels = list(read_kernels(library, cuobjdump))
    print(f"{len(kernels)} kernels for {', '.join(GPUS)}")
    for kernel in kernels:
        if kernel.stack:
            yield f"{kernel.gpu}: {kernel.name} keeps {kernel.stack} bytes of a thread in memory"
    for gpu, pattern, instruction in REQUIRED:
        found = [k for k in kernels if k.gpu == gpu and k.code and re.search(pattern, k.name)]
        if not found:
            yield f"{gpu}: there is no kernel {pattern}"
        lacking = [k for k in found if not any(re.search(instruction, line) for line in k.code)]
        for kernel in lacking:
            yield f"{gpu}: {kernel.name} has no instruction {instruction}"
        print(f"{gpu}: {len(found) - len(lacking)} of {len(found)} {pattern} have {instruction}")


def read_kernels(library: Path, cuobjdump: str) -> Iterator[Kernel]:
    """The kernels of a library, with their instructions."""
    stacks: dict[tuple[str, str], int] = {}
    gpu = function = ""
    for line in _run(cuobjdump, "-res-usage", str(library)).splitlines():
        if found := re.search(r"arch = (\S+)", line):
            gpu = found[1]
        elif found := re.search(r"Function (\S+):", line):
            function = found[1]
        elif found := re.search(r"STACK:(\d+).*LOCAL:(\d+)", line):
            stacks[gpu, function] = int(found[1]) + int(found[2])
    kernel = None
    listing = _run(cuobjdump, "-sass", str(library)).splitlines()
    names = _demangled({found[1] for x in listing if (found := re.search(r"Function : (\S+)", x))})
    for line in listing:
        if found := re.search(r"arch = (\S+)", line):
            gpu = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            if kernel:
                yield kernel
            kernel = Kernel(gpu, names[found[1]], stacks.get((gpu, found[1]), 0))
        elif kernel and (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line)):
            kernel.code.append(found[1])
    if kernel:
        yield kernel


def find_cuobjdump() -> str:
    """The toolkit's, or that of the package nvidia-cuda-cuobjdump."""
    for place in sys.path:
        for found in sorted(Path(place or ".").glob("nvidia/*/bin/cuobjdump")):
            os.environ["PATH"] = f"{found.parent}:{os.environ['PATH']}"  # for nvdisasm
    os.environ["PATH"] += ":/usr/local/cuda/bin"
    tools = {name: shutil.which(name) for name in ("cuobjdump", "nvdisasm")}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        packages = " ".join(f"nvidia-cuda-{name}" for name in missing)
        sys.exit(f"cuda-check: {' and '.join(missing)} not found; pip install {packages}")
    return str(tools["cuobjdump"])


def _demangled(names: set[str]) -> dict[str, str]:
    if shutil.which("c++filt") is None:
        sys.exit("cuda-check: c++filt not found; install binutils")
    ordered = sorted(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(ordered), text=True, capture_output=True, check=True
    )
    short = [
        re.sub(r"\(anonymous namespace\)::|mmfast::(cuda::)?|^void |\(.*", "", x)
        for x in (y.replace("(anonymous namespace)::", "") for y in done.stdout.splitlines())
    ]
    return dict(zip(ordered, short, strict=True))


def _run(*command: str) -> str:
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise CommandError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--library", type=Path, help="check this one and compile nothing")
    options = parser.parse_args()
    begin = time.monotonic()
    cuobjdump = find_cuobjdump()
    library = options.library or build(BUILD)
    print(f"compiled: {library} ({time.monotonic() - begin:.0f} s)", flush=True)
    wrong = [
        *check_operators(library),
        *check_libraries(library),
        *check_machine_code(library, cuobjdump),
    ]
    for line in wrong:
        print(f"WRONG: {line}")
    outcome = f"wrong: {len(wrong)}" if wrong else "all as it should be"
    print(f"cuda-check: {outcome} ({time.monotonic() - begin:.0f} s)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
