"""Fusion modules against formulas that are written for one row and the modalities present in it."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]
Row = Mapping[int, Tensor]  # by position, only the modalities that are present

WAYS = ["all", "some absent", "one row"]


def draw(widths: Sequence[int], batch: Sequence[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*batch, width, generator=generator).double() for width in widths]


def draw_present(batch: Sequence[int], count: int, way: str = "some absent") -> Tensor | None:
    """Random, but for a row without any modality and one with all."""
    if way == "all":
        return None
    if way == "one row":
        return torch.arange(count) != 1
    present = torch.rand(*batch, count, generator=torch.Generator().manual_seed(2)) > 0.4
    rows = present.view(-1, count)
    rows[0], rows[-1] = False, True
    return present


def randomise(module: nn.Module) -> nn.Module:
    """float64, and no parameter where it starts: what starts as zero would hide much."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def projected(parameters: Parameters, m: int, x: Tensor, name: str = "projections") -> Tensor:
    """W x + b, or x itself where nothing projects it."""
    if f"{name}.{m}.weight" not in parameters:
        return x
    return parameters[f"{name}.{m}.weight"] @ x + parameters[f"{name}.{m}.bias"]


def by_rows(
    formula: Callable[[Parameters, Row], Tensor],
    parameters: Parameters,
    inputs: Sequence[Tensor],
    present: Tensor | None,
) -> Tensor:
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    flat = [x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1]) for x in inputs]
    if present is None:
        present = torch.ones(len(inputs), dtype=torch.bool)
    there = present.expand(*batch, len(inputs)).reshape(-1, len(inputs))
    rows = [
        formula(parameters, {m: x[r] for m, x in enumerate(flat) if there[r, m]})
        for r in range(len(there))
    ]
    return torch.stack(rows).reshape(*batch, -1)


def check_formula(
    module: nn.Module,
    formula: Callable[[Parameters, Row], Tensor],
    inputs: Sequence[Tensor],
    present: Tensor | None = None,
) -> None:
    """Result and every gradient agree to 1e-10 in float64."""
    parameters = dict(module.named_parameters())
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    found, expected = module(ours, present), by_rows(formula, parameters, theirs, present)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **close)
    grad = torch.randn_like(expected)
    leaves = list(parameters.values())
    found_grads = torch.autograd.grad(found, [*ours, *leaves], grad)
    expected_grads = torch.autograd.grad(expected, [*theirs, *leaves], grad, materialize_grads=True)
    names = [*(f"inputs[{i}]" for i in range(len(inputs))), *parameters]
    for name, a, b in zip(names, found_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, **close, msg=lambda m, n=name: f"gradient of {n}: {m}")
