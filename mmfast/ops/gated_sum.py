"""``gated_sum`` as PyTorch sees it; see :mod:`mmfast.ops.fused`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfast.ops import fused
from mmfast.ops.fused import Options


def _check(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> None:
    (count,) = options
    values, gates = tensors[:count], tensors[count:]
    fused.check_tensors("values", values)
    if len(gates) not in (count, count - 1):
        raise ValueError(
            f"gates holds {len(gates)} tensors; it must hold as many as values, {count}, or one "
            "fewer (the last logit is then 0)"
        )
    for i, gate in enumerate(gates):
        fused.check_floating(f"gates[{i}]", gate)
        fused.check_like(f"gates[{i}]", gate, "values[0]", values[0])
        if gate.shape != values[0].shape:
            raise ValueError(
                f"gates[{i}] has shape {tuple(gate.shape)} but values[0] has "
                f"{tuple(values[0].shape)}; they must be equal"
            )
    fused.check_present(present, values[0].shape[:-1], count, values[0].device)


def _arguments(
    tensors: Sequence[Tensor], present: Tensor | None, options: Options
) -> tuple[Any, ...]:
    (count,) = options
    return list(tensors[:count]), list(tensors[count:]), present


def _parts(
    values: Sequence[Tensor], gates: Sequence[Tensor], present: Tensor | None
) -> tuple[list[Tensor], Tensor | None, Options]:
    return [*values, *gates], present, (len(values),)


def _formula(tensors: Sequence[Tensor], present: Tensor | None, options: Options) -> Tensor:
    (count,) = options
    dtype = tensors[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    values = [x.to(wide) for x in tensors[:count]]
    gates = [x.to(wide) for x in tensors[count:]]
    if len(gates) < count:
        gates.append(torch.zeros_like(values[0]))
    masks = [fused.there(present, m) for m in range(count)]
    if present is None:
        shares = torch.stack(gates).softmax(0)
    else:
        # Where nothing is present every gate is 0, so that the softmax is finite.
        nothing = ~present.any(-1, keepdim=True)
        logits = [
            fused.silenced(gate, mask).where(mask | nothing, -torch.inf)  # type: ignore[operator]
            for gate, mask in zip(gates, masks, strict=True)
        ]
        shares = torch.stack(logits).softmax(0)
    total = None
    for share, value, mask in zip(shares, values, masks, strict=True):
        part = fused.silenced(share, mask) * fused.silenced(value, mask).tanh()
        total = part if total is None else total + part
    assert total is not None
    return total.to(dtype)


operator = fused.Fused("gated_sum", _check, _arguments, _parts, _formula)
