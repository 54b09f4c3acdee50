"""The CUDA operators compiled for the host; see ``cuda/on_host/on_host.h``.

``load`` gives ``torch.ops.mmfast_on_host``: the entries and kernels of ``csrc/cuda`` as they are,
with the schemas of ``torch.ops.mmfast``, for tensors on the CPU.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from mmfast.ops import library  # noqa: F401  registers torch.ops.mmfast

HERE = Path(__file__).parent / "cuda" / "on_host"
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "on_host"
OPERATORS = ("weighted_sum", "attention_pool", "gated_sum", "rank_product", "merge_attention")
CUDA = ROOT / "csrc" / "cuda"
OLDEST_TORCH = "0x020a000000000000"


def schemas() -> dict[str, Any]:
    """The schemas of the operators over rows, by name and overload."""
    found = {}
    for name in (*OPERATORS, "concat_linear"):
        for operator in (name, f"{name}_backward", f"{name}_plain"):
            packet = getattr(torch.ops.mmfast, operator, None)
            for overload in packet.overloads() if packet else ():
                found[f"{operator}.{overload}"] = getattr(packet, overload)._schema
    return found


@functools.cache
def load() -> Any:
    """Compile what changed, and load it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [HERE / "runtime_on_host.cpp", HERE / "index_functions.cpp"]
    for kernels in sorted(CUDA.glob("*.cu")):
        sources.append(_wrapper(f"{kernels.stem}_host", ["on_host.h", f"csrc/cuda/{kernels.name}"]))
    for entry in sorted(CUDA.glob("*.cpp")):
        headers = ["cuda_runtime_api.h", "register_on_host.h", f"csrc/cuda/{entry.name}"]
        if entry.name != "runtime.cpp":
            sources.append(_wrapper(f"{entry.stem}_entry", headers))
    definitions = torch.library.Library("mmfast_on_host", "DEF")
    load.definitions = definitions  # type: ignore[attr-defined]  # they last as long as it
    for schema in schemas().values():
        definitions.define(str(schema).removeprefix("mmfast::"))
    load.library = cpp_extension.load(  # type: ignore[attr-defined]
        "mmfast_on_host",
        [str(source) for source in sources],
        extra_cflags=[
            "-O1",
            "-g0",
            "-std=c++20",
            f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}",
            "-DUSE_CUDA",
            "-Wno-unknown-pragmas",
        ],
        extra_include_paths=[str(HERE), str(ROOT)],
        build_directory=str(BUILD),
        is_python_module=False,
    )
    return torch.ops.mmfast_on_host


@functools.cache
def index_functions() -> ctypes.CDLL:
    """The functions of ``index_functions.cpp``."""
    load()
    found = ctypes.CDLL(str(BUILD / "mmfast_on_host.so"))
    for name in ("mmfast_row_at", "mmfast_offset_of"):
        getattr(found, name).restype = ctypes.c_int64
    return found


def _wrapper(name: str, headers: list[str]) -> Path:
    path = BUILD / f"{name}.cpp"
    text = "".join(f'#include "{header}"\n' for header in headers)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path
