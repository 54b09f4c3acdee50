"""The compiled host module; importing it registers torch.ops.mmfast.*."""

from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def force_cpu_isa(name: str) -> None: ...
def concat_linear_plan(
    widths: list[int],
    distinct_rows: list[int],
    rows: int,
    cols: int,
    dtype: str,
) -> dict[str, Any]: ...
def concat_linear_cuda_plan(
    inputs: list[tuple[list[int], list[int], int, int]],
    batch: list[int],
    weight: tuple[list[int], list[int], int, int],
    dtype: str,
    finishing: bool,
    capability: tuple[int, int],
    multiprocessors: int,
) -> dict[str, Any]: ...
