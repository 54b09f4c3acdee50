"""What ranks tell one another: that all are well, the sum of something, the rows of all.

A rank that fails ends them all, and each says why: the error is told when the ranks next meet. One
that was killed tells nothing; the others find its connection closed, or wait for ``train.timeout``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import get_int_from_env
from torch import Tensor, nn

from mmfast.train.parts import TrainingError

T = TypeVar("T")

_LAUNCHED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


class World(Protocol):
    """The part of an accelerator that says which rank of how many this is, and on what device."""

    process_index: int
    num_processes: int
    device: torch.device


def launched() -> int:
    """How many ranks torchrun, accelerate launch or mpirun say that they started."""
    return int(get_int_from_env(_LAUNCHED, 1))


def is_first() -> bool:
    """Whether this process is the one that speaks and writes, as its launcher says."""
    return int(get_int_from_env(_RANK, 0)) == 0


def meet(world: World, error: Exception | None = None, *values: float) -> list[float]:
    """Wait for every rank, and add up what they bring.

    Args:
        world: the ranks.
        error: what went wrong here since they last met; it is raised.
        values: numbers, equally many on each rank.

    Returns:
        The sums over the ranks.

    Raises:
        TrainingError: another rank brought an error; it is told with the rank's number.
    """
    if world.num_processes == 1:
        if error is not None:
            raise error
        return list(values)
    brought = torch.tensor([error is not None, *values], dtype=torch.float64, device=world.device)
    dist.all_reduce(brought)
    failed, *sums = brought.tolist()
    if failed:
        told = exchange(world, None if error is None else str(error) or repr(error))
        if error is not None:
            raise error
        rank, reason = next((r, text) for r, text in enumerate(told) if text is not None)
        raise TrainingError(f"rank {rank} failed, and ends this one: {reason}")
    return sums


@contextmanager
def together(world: World) -> Iterator[None]:
    """Work of each rank, after which they meet: an error of one is an error of all.

    The ranks must not meet within it.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    meet(world, failed)


def exchange(world: World, found: T) -> list[T]:
    """What each rank found, in the order of the ranks."""
    if world.num_processes == 1:
        return [found]
    result: list[Any] = [None] * world.num_processes
    dist.all_gather_object(result, found)
    return result


def on_first(world: World, found: Any, work: Callable[[list[Any]], T]) -> T:
    """The result of the first rank's work on what all ranks found; an error of it ends them all.

    All ranks go on with one result, also where machines would round theirs differently.
    """
    if world.num_processes == 1:
        return work([found])
    result: list[Any] = [None]
    parts = [None] * world.num_processes if world.process_index == 0 else None
    dist.gather_object(found, parts)
    with together(world):
        if parts is not None:
            result = [work(parts)]
    dist.broadcast_object_list(result)
    return result[0]


def same_buffers(module: nn.Module, world: World) -> None:
    """Give every rank the first one's buffers, such as the running statistics of batch norms."""
    if world.num_processes > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, of the first rank first, for a loss that every rank has the whole of.

    Backward gives this rank's rows their gradient times the number of ranks, so that the mean of
    the ranks' gradients of any parameter, which data parallel training takes, is the gradient of
    the one loss.

    Args:
        x: (N, D); N may differ from rank to rank.

    Returns:
        (sum of N, D); ``x`` itself where there is one rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _gathered(x)


@torch.compiler.disable
def _gathered(x: Tensor) -> Tensor:
    gathered: Tensor = _GatherRows.apply(x)
    return gathered


class _GatherRows(torch.autograd.Function):
    """:func:`gather_rows`; ranks with fewer rows send padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        count = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(count) for _ in range(ranks)]
        dist.all_gather(counts, count)
        lengths = [int(one) for one in torch.cat(counts).tolist()]
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(found, padded)
        ctx.own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
        ctx.ranks = ranks
        return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[ctx.own] * ctx.ranks


@contextmanager
def contact(world: World) -> Iterator[None]:
    """Turns what torch says when ranks cannot talk any more into what a user can act on.

    Raises:
        TrainingError: another rank was killed, hangs, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if world.num_processes == 1 or not _is_lost_contact(error):
            raise
        raise TrainingError(
            f"rank {world.process_index} of {world.num_processes} lost the others: one of them was "
            "killed, ended with an error of its own, or did not answer within train.timeout. The "
            "last checkpoint is intact: start all ranks again with --resume auto "
            f"(torch.distributed said: {str(error).splitlines()[0][:200]})"
        ) from error


def _is_lost_contact(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in said for sign in ("/gloo/", "pair closure", "NCCL")
    )
