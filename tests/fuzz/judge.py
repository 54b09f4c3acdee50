"""Whether a result is right.

Integers whose sums no type rounds must come out exactly. Elsewhere a single small case is judged by
what nobody can promise to undercut: the error of plain PyTorch in that case, a unit in the last
place of the largest value, and what moving every argument by roundings of the accumulator would
change (by one of the dtype, where the operator is known to round to it on the way).
Over all cases of a run the promise itself is asked for: the mean error is at most twice (gradients:
three times) that of plain PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuzz.pool import FACTORS, Pool
from fuzz.tensors import same_bits

Results = tuple[Tensor, ...]
Function = Callable[[list[Tensor]], Results]

BENDS = 8  # how many roundings of every argument a single case may be off by
# A rounding of the accumulator; in float64 the reference itself makes some.
UNITS = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 2.0 ** (-24))
UNITS[torch.float64] = 2.0**-50
FLOORS = {torch.float64: 128}  # units in the last place: the reference is no more exact
# Integers up to here are numbers of the type, and so is every sum on the way to one.
WHOLE = {torch.float32: 2**24, torch.float64: 2**53, torch.bfloat16: 2**8, torch.float16: 2**11}


@dataclass
class Problem:
    """A call and what it must give. ``tensors``: all that can have a gradient, flat."""

    tensors: list[Tensor]
    names: list[str]
    needs: list[bool]
    call: Function
    exact: Function  # in float64, from the formula
    eager: Function  # what is usual today, in the dtype of the arguments
    grad: Callable[[int, Tensor], Tensor | None]  # of a result, by its position
    integers: bool = False
    # Not arguments with a gradient, but memory that the call must leave alone too.
    others: list[Tensor] = field(default_factory=list)
    scale: float = 0.0  # of the terms whose differences the results are
    rounds: bool = False  # whether sums are rounded to the dtype on the way


def run(
    function: Function,
    problem: Problem,
    dtype: torch.dtype | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    lay: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of all tensors that need one; ``lay`` moves them in memory."""
    leaves = []
    for x, need in zip(problem.tensors, problem.needs, strict=True):
        x = x.detach() if dtype is None else x.detach().to(dtype)
        leaves.append(lay(x if change is None else change(x)).requires_grad_(need))
    results = function(leaves)
    wanted = [x for x in leaves if x.requires_grad]
    used = [
        (y, abs(g.to(y.dtype)) if change is abs else g.to(y.dtype))
        for y, g in ((y, problem.grad(i, y)) for i, y in enumerate(results) if y.requires_grad)
        if g is not None
    ]
    if not wanted or not used:
        return [y.detach() for y in results], []
    found = torch.autograd.grad(
        [y for y, _ in used], wanted, [lay(g) for _, g in used], materialize_grads=True
    )
    return [y.detach() for y in results], list(found)


def contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def bent(x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """Every number moved by that share of it, up or down."""
    sign = torch.randint(0, 2, tuple(x.shape), generator=generator) * 2 - 1
    return x * (1 + unit * sign)


def storages(problem: Problem) -> list[Tensor]:
    # Rows that lie gigabytes apart are not read for this.
    found = {x.untyped_storage().data_ptr(): x for x in (*problem.tensors, *problem.others)}
    small = [x for x in found.values() if x.untyped_storage().nbytes() < 2**28]
    return [torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()) for x in small]


def check(problem: Problem, key: tuple[str, str], pool: Pool) -> None:
    """Raise AssertionError if the call is wrong in any way."""
    memory = [x.clone() for x in storages(problem)]
    found = run(problem.call, problem)
    again = run(problem.call, problem)
    for before, after in zip(memory, storages(problem), strict=True):
        assert torch.equal(before, after), "an argument was written to"
    exact = run(problem.exact, problem, torch.float64)
    dtype = problem.tensors[0].dtype
    bound = run(problem.exact, problem, torch.float64, abs) if problem.integers else None
    names = [x for x, need in zip(problem.names, problem.needs, strict=True) if need]
    near = []  # what is left to be judged by its error
    for kind, part, labels in (
        ("result", 0, [f"result {i}" for i in range(len(found[0]))]),
        ("gradient", 1, [f"gradient of {name}" for name in names]),
    ):
        assert len(found[part]) == len(exact[part]), f"{kind}: some that should be are not there"
        for i, label in enumerate(labels[: len(found[part])]):
            a, b = found[part][i], exact[part][i]
            assert a.shape == b.shape, f"{label}: shape {tuple(a.shape)}, not {tuple(b.shape)}"
            assert a.dtype == dtype, f"{label}: dtype {a.dtype}, not {dtype}"
            assert same_bits(a, again[part][i]), f"{label}: other bits in a second run"
            whole = bound is not None and bound[part][i].numel() > 0
            if whole and bound[part][i].max() <= WHOLE[dtype]:
                check_exact(label, a, b)
                pool.exact += 1
            elif a.numel():
                near.append((kind, part, i, label))
    if near:
        # Plain PyTorch refuses some layouts: gelu's gradient with rows that overlap, on AVX-512.
        eager = run(problem.eager, problem, lay=contiguous)
        for kind, part, i, label in near:
            tensors = [x[part][i] for x in (found, exact, eager)]
            scale = max(largest(tensors[1]), problem.scale)
            if kind == "gradient":  # one may be what is left where all else cancels
                scale = max([1.0, *map(largest, exact[part])])
            check_near(label, *tensors, scale, lambda j=i, p=part: spread(problem, exact, p, j),
                       (*key, kind), pool)  # fmt: skip


def spread(problem: Problem, exact: tuple[list[Tensor], list[Tensor]], part: int, i: int) -> float:
    """How much changes where every argument moves by some roundings of the accumulator.

    By one of the dtype where sums are rounded to it on the way.
    """
    dtype, generator = problem.tensors[0].dtype, torch.Generator().manual_seed(0)
    unit = max(BENDS * UNITS[dtype], torch.finfo(dtype).eps / 2 if problem.rounds else 0)
    move = lambda x: bent(x, unit, generator)  # noqa: E731
    others = [run(problem.exact, problem, torch.float64, move) for _ in range(2)]
    if any(0 in x.stride() for x in problem.tensors):  # equal terms are rounded the same way
        others.append(run(problem.exact, problem, torch.float64, lambda x: x * (1 + unit)))
    return max(worst(x[part][i], exact[part][i]) for x in others)


def worst(a: Tensor, b: Tensor) -> float:
    return (a.double() - b).abs().nan_to_num(0, 0).max().item() if a.numel() else 0.0


def largest(x: Tensor) -> float:
    return x.abs().nan_to_num(0, 0).max().item() if x.numel() else 0.0


def check_exact(label: str, found: Tensor, exact: Tensor) -> None:
    wrong = found.double() != exact
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{label}: {int(wrong.sum())} of {wrong.numel()} integers are wrong, the first at "
            f"{place}: {found[place].item()}, exactly {exact[place].item()}"
        )


def check_near(
    label: str,
    found: Tensor,
    exact: Tensor,
    eager: Tensor,
    scale: float,
    spread: Callable[[], float],
    key: tuple[str, str, str],
    pool: Pool,
) -> None:
    limit, eps = torch.finfo(found.dtype).max, torch.finfo(found.dtype).eps
    within = exact.abs() < limit / 2  # beyond it the type may round to infinity
    assert found.isfinite()[within].all(), f"{label}: not finite where the formula is"
    error, usual = [
        torch.where(within, (x.double() - exact).abs(), 0).nan_to_num(0, 0) for x in (found, eager)
    ]
    # Numbers below the smallest normal one have no full precision in any library.
    floor = max(FLOORS.get(found.dtype, 1) * eps * scale, torch.finfo(found.dtype).tiny)
    allowed = FACTORS[key[-1]] * max(usual.max().item(), floor)
    if error.max().item() > allowed:  # only then: it costs as much as everything else
        allowed = max(allowed, FACTORS[key[-1]] * spread())
    if error.max().item() > allowed:
        place = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{label}: error {error.max().item():.3g} at {place} ({found[place].item():.6g}, by "
            f"the formula {exact[place].item():.6g}); PyTorch's is {usual.max().item():.3g}, "
            f"allowed are {allowed:.3g}"
        )
    if 0 < scale < limit / 2:
        squares = [(x / scale).square().mean().item() for x in (error, usual)]
        pool.add(key, *squares, (eps / 8) ** 2)
