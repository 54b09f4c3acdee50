"""Builds mmfast._C: the kernels, against libtorch's stable ABI only, and a pybind11 host module.

One build serves every torch from 2.10 on, since nothing outside the stable ABI is used. Settings
come from the environment:

MMFAST_CUDA   1: build the CUDA kernels; 0: do not; unset: build them if a toolkit is found.
MAX_JOBS      compiler processes at a time.
"""

import glob
import os
import sys

import pybind11
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, include_paths, library_paths

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


def cuda_wanted(sources: list[str]) -> bool:
    wish = os.environ.get("MMFAST_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"MMFAST_CUDA is {wish!r}; it must be 0, 1 or unset")
    if wish == "1" and CUDA_HOME is None:
        sys.exit("MMFAST_CUDA=1 but no CUDA toolkit was found; put nvcc on PATH or set CUDA_HOME")
    if wish == "1" and not sources:
        sys.exit("MMFAST_CUDA=1 but this version of mmfast has no CUDA kernels yet; unset it")
    return wish != "0" and CUDA_HOME is not None and bool(sources)


def extension() -> Extension:
    sources = ["csrc/library.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
    cuda_sources = sorted(glob.glob("csrc/cuda/*.cu"))
    defines = [("TORCH_TARGET_VERSION", OLDEST_TORCH)]
    if cuda_wanted(cuda_sources):
        sources += cuda_sources
        defines += [("MMFAST_CUDA", None), ("USE_CUDA", None)]
    flags = " ".join(CXX_FLAGS)
    return Extension(
        "mmfast._C",
        sources=sources,
        depends=sorted(glob.glob("csrc/**/*.h", recursive=True)),
        include_dirs=[*include_paths(), pybind11.get_include()],
        library_dirs=library_paths(),
        libraries=["torch", "torch_cpu"],
        define_macros=defines,
        extra_compile_args={"cxx": [*CXX_FLAGS, f'-DMMFAST_BUILD_FLAGS="{flags}"']},
        extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
        language="c++",
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
