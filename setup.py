"""Builds mmfast._C: the kernels, against libtorch's stable ABI only, and a pybind11 host module.

One build serves every torch from 2.10 on, since nothing outside the stable ABI is used. Settings
come from the environment:

MMFAST_COMPILE     0: install the Python files alone; the Makefile compiles in place.
MMFAST_CUDA        1: build the CUDA kernels; 0: do not; unset: build them if a toolkit is found.
MMFAST_CUDA_ARCHS  what to build them for, by default "80 90a 80+PTX".
CUDA_HOME          the CUDA toolkit; unset: that of nvcc on PATH, else /usr/local/cuda.
MAX_JOBS           compiler processes at a time.
MMFAST_CXX_FLAGS   further flags of the C++ compiler, behind the others: "-O1" compiles faster.
MMFAST_SANITIZE    address or thread: build for that sanitizer of the compiler, which must be loaded
                   before Python; scripts/sanitize.py does all of it.

The torch that is built with may be one without CUDA, and the machine needs no GPU: the library
looks up libtorch's CUDA functions when a CUDA tensor comes along (csrc/cuda/runtime.cpp).
"""

import glob
import os
import shutil
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

OLDEST_TORCH = "0x020a000000000000"  # 2.10

# No -march: a wheel must run on every machine of its architecture (see csrc/cpu/isa.h). The two
# -fno- flags let loops with comparisons and square roots vectorise; neither changes a result.
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-Wall",
]

# Frame pointers and line numbers for reports; -O0, since the compiler takes six minutes to optimise
# one file of checked code.
SANITIZED_FLAGS = ["-O0", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
SANITIZERS = {
    "": [],
    "address": [*SANITIZED_FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": [*SANITIZED_FLAGS, "-fsanitize=thread"],
}

# Machine code for data-centre Ampere and its consumer relatives, and for Hopper with the
# instructions that it alone has; other GPUs from 8.0 on compile the PTX when they first load it.
CUDA_ARCHS = "80 90a 80+PTX"


def cuda_home() -> Path | None:
    """The toolkit, which torch itself looks for only if it was built with CUDA."""
    nvcc = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"),
        nvcc and Path(nvcc).resolve().parent.parent,
        "/usr/local/cuda",
    ]
    needed = ("bin/nvcc", "include/cuda_runtime_api.h")  # nvcc on PATH may be a script elsewhere
    homes = [Path(home) for home in candidates if home]
    return next((home for home in homes if all((home / n).exists() for n in needed)), None)


def cuda_wanted(home: Path | None) -> bool:
    wish = os.environ.get("MMFAST_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"MMFAST_CUDA is {wish!r}; it must be 0, 1 or unset")
    if wish == "1" and home is None:
        sys.exit("MMFAST_CUDA=1 but no CUDA toolkit was found; put nvcc on PATH or set CUDA_HOME")
    return wish != "0" and home is not None


def cuda_archs() -> str:
    return os.environ.get("MMFAST_CUDA_ARCHS", CUDA_ARCHS)


def sanitizer_flags() -> list[str]:
    wish = os.environ.get("MMFAST_SANITIZE", "")
    if wish not in SANITIZERS:
        sys.exit(f"MMFAST_SANITIZE is {wish!r}; it must be address, thread or unset")
    return SANITIZERS[wish]


def nvcc_flags() -> list[str]:
    flags = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden", "-Xptxas", "-warn-spills"]
    for arch in cuda_archs().split():
        number, _, ptx = arch.partition("+")
        flags.append(f"-gencode=arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}")
    if torch.version.cuda is None:  # else torch asks for this itself
        flags.append("-MD")
    return flags


class Build(BuildExtension):
    """torch's, but CUDA sources are compiled again when a header that they include changes.

    A torch without CUDA does not tell ninja of nvcc's dependencies.
    """

    def build_extensions(self) -> None:
        for depfile in Path(self.build_temp).glob("csrc/cuda/*.d"):
            built = depfile.with_suffix(".o")
            names = depfile.read_text().replace("\\\n", " ").partition(": ")[2].split()
            if built.exists() and any(
                not os.path.exists(name) or os.path.getmtime(name) > built.stat().st_mtime
                for name in names
            ):
                built.unlink()
        super().build_extensions()


def extension() -> Extension:
    sources = ["csrc/library.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
    include_dirs = [*include_paths(), pybind11.get_include()]
    library_dirs = library_paths()
    libraries = ["torch", "torch_cpu"]
    defines: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", OLDEST_TORCH)]
    link_flags = [flag for flag in sanitizer_flags() if flag.startswith("-fsanitize")]
    link_flags += ["-Wl,--as-needed"] if sys.platform == "linux" else []
    home = cuda_home()
    if cuda_wanted(home):
        cpp_extension.CUDA_HOME = str(home)
        sources += sorted(glob.glob("csrc/cuda/*.cpp") + glob.glob("csrc/cuda/*.cu"))
        include_dirs.append(str(home / "include"))
        library_dirs += [str(home / "lib64"), str(home / "lib")]
        # The static runtime, hidden: torch has one of its own, perhaps of another version.
        libraries += ["cudart_static", "dl", "rt", "pthread"]
        link_flags.append("-Wl,--exclude-libs,libcudart_static.a")
        defines += [("MMFAST_CUDA", None), ("USE_CUDA", None)]
    cxx_flags = [*CXX_FLAGS, *sanitizer_flags(), *os.environ.get("MMFAST_CXX_FLAGS", "").split()]
    flags = " ".join(cxx_flags)
    cxx_flags += [f'-DMMFAST_BUILD_FLAGS="{flags}"', f'-DMMFAST_CUDA_ARCHS="{cuda_archs()}"']
    return Extension(
        "mmfast._C",
        sources=sources,
        depends=sorted(glob.glob("csrc/**/*.h", recursive=True)),
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=libraries,
        define_macros=defines,
        extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags()},
        extra_link_args=link_flags,
        language="c++",
    )


extensions = [] if os.environ.get("MMFAST_COMPILE") == "0" else [extension()]
setup(ext_modules=extensions, cmdclass={"build_ext": Build})
