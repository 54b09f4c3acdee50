"""Which way ``concat_linear`` takes for given arguments, in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfast.ops.concat_linear import Index, batch_shape
from mmfast.ops.library import host


@dataclass(frozen=True)
class Plan:
    """How a call of ``concat_linear`` is computed, forward.

    Attributes:
        method: ``empty``, ``tiny`` or ``dot`` (own loops), ``kernel`` (own matrix product) or
            ``library`` (MKL or oneDNN; cuBLAS).
        why: the reason, in a sentence.
        groups: positions of inputs that are multiplied together.
        repeated: positions of inputs that are multiplied once per distinct row and added in the
            epilogue, since they broadcast or an index names their rows several times.
        rows: rows of the result. distinct_rows: per input, how many rows are multiplied.
        isa: the instruction set of the kernels; on a GPU its compute capability, ``sm_90``.
    """

    method: str
    why: str
    groups: tuple[tuple[int, ...], ...]
    repeated: tuple[int, ...]
    rows: int
    distinct_rows: tuple[int, ...]
    isa: str

    def __str__(self) -> str:
        lines = [f"{self.method} ({self.isa}): {self.why}"]
        for group in self.groups:
            names = ", ".join(f"inputs[{i}]" for i in group)
            lines.append(f"  {names}: {self.rows} rows, one product")
        for i in self.repeated:
            lines.append(f"  inputs[{i}]: {self.distinct_rows[i]} distinct rows, added to the rest")
        return "\n".join(lines)


def plan(
    inputs: Sequence[Tensor], weight: Tensor, index: Index | None, activation: str = "none"
) -> Plan:
    """The plan for arguments that :func:`~mmfast.ops.concat_linear.check_arguments` lets pass."""
    batch = batch_shape(inputs, index)
    picks = [None] * len(inputs) if index is None else index
    present = [i for i, x in enumerate(inputs) if x.shape[-1] > 0]  # the kernels see no others
    distinct = [_distinct_rows(x, i) for x, i in zip(inputs, picks, strict=True)]
    if weight.device.type == "cuda":
        device = torch.cuda.get_device_properties(weight.device)
        capability, isa = (device.major, device.minor), f"sm_{device.major}{device.minor}"
        found = gpu_plan(
            [(inputs[i], picks[i]) for i in present],
            batch,
            weight,
            activation != "none",
            capability,
            device.multi_processor_count,
        )
        for i, rows in zip(present, found["distinct_rows"], strict=True):
            distinct[i] = rows
    else:
        isa = host.cpu_isa()
        found = host.concat_linear_plan(
            [inputs[i].shape[-1] for i in present],
            [distinct[i] for i in present],
            math.prod(batch),
            weight.shape[0],
            str(weight.dtype).removeprefix("torch."),
        )
    groups = tuple(tuple(present[i] for i in group["inputs"]) for group in found["groups"])
    together = {i for group in groups for i in group}
    added = found["method"] in ("kernel", "library")
    repeated = tuple(i for i in present if added and i not in together)
    return Plan(
        found["method"], found["why"], groups, repeated, math.prod(batch), tuple(distinct), isa
    )


def gpu_plan(
    inputs: Sequence[tuple[Tensor, Tensor | None]],
    batch: Sequence[int],
    weight: Tensor,
    finishing: bool,
    capability: tuple[int, int],
    multiprocessors: int,
) -> dict[str, Any]:
    """The plan of a GPU, which need not be there, for inputs with their index tensors.

    ``finishing``: whether an activation follows. Tensors may be on any device: their shapes,
    strides and alignment count.
    """

    def described(x: Tensor, index: Tensor | None = None) -> tuple[list[int], list[int], int, int]:
        entries = -1 if index is None else index.numel()
        return list(x.shape), list(x.stride()), x.data_ptr(), entries

    return host.concat_linear_cuda_plan(
        [described(x, index) for x, index in inputs],
        list(batch),
        described(weight),
        str(weight.dtype).removeprefix("torch."),
        finishing,
        capability,
        multiprocessors,
    )


def _distinct_rows(x: Tensor, index: Tensor | None) -> int:
    if index is None:
        batch = zip(x.shape[:-1], x.stride()[:-1], strict=True)
        return math.prod(size for size, stride in batch if stride != 0 or size == 0)
    # Picking rows first is no dearer than multiplying all of them and picking then.
    return index.numel() if x.shape[0] > index.numel() // 2 else x.shape[0]
