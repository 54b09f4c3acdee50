"""FSDP2: each rank keeps its share of every parameter, of its gradient and optimizer state.

PyTorch's ``fully_shard``, which works on gloo and NCCL alike; accelerate's plugin for it wants a
GPU. Parameters without a dimension (a temperature) cannot be sharded: every rank has them whole.
What is saved is whole, so that a run goes on under any strategy on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmfast.train.ranks import World


def shard(objective: nn.Module, world: World) -> None:
    """Shard an objective in place, over all ranks.

    The units that are gathered together are the blocks that models of Hugging Face name
    (``_no_split_modules``), each encoder, and the rest.
    """
    mesh = init_device_mesh(world.device.type, (world.num_processes,))
    ignored = {p for p in objective.parameters() if p.dim() == 0}
    for unit in [*_units(objective), objective]:
        fully_shard(unit, mesh=mesh, ignored_params=ignored)


def _units(objective: nn.Module) -> Iterator[nn.Module]:
    """Modules that are always called as such, the inner ones first."""
    owner: Any = getattr(objective, "model", objective)
    for encoder in getattr(owner, "encoders", ()) and owner.encoders.values():
        names = {
            name
            for module in encoder.modules()
            for name in getattr(module, "_no_split_modules", None) or ()
        }
        modules = reversed(list(encoder.modules()))
        yield from (block for block in modules if type(block).__name__ in names)
        if any(True for _ in encoder.parameters()):
            yield encoder


def reshard(objective: nn.Module) -> None:
    """Drop the parameters that a forward without backward has left gathered."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(values: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, with the shards of all ranks joined; empty without ``keep``.

    Every rank takes part.
    """
    found = {}
    for name, value in values.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full.detach().cpu()
    return found


def optimizer_shards(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An optimizer's saved state, ``"3.exp_avg"`` and whole, as its parameters are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = dict(tensors)
    for name, value in tensors.items():
        index = int(name.split(".", 1)[0])
        like = parameters[index] if index < len(parameters) else None
        if isinstance(like, DTensor) and value.shape == like.shape:
            found[name] = distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
    return found


def average_whole(objective: nn.Module) -> None:
    """Average over the ranks the gradients of the parameters that are not sharded."""
    for parameter in objective.parameters():
        if not isinstance(parameter, DTensor) and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def clip_shards(objective: nn.Module, limit: float) -> None:
    """``torch.nn.utils.clip_grad_norm_`` of shards and whole gradients together."""
    shards: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in objective.parameters():
        if parameter.grad is not None:
            kind = shards if isinstance(parameter.grad, DTensor) else others
            kind.append(_local(parameter.grad))
    square = _sum_of_squares(shards)
    dist.all_reduce(square)
    norm = (square + _sum_of_squares(others)).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1)
    for grad in [*shards, *others]:
        grad *= factor


def moving_average(decay: float) -> Any:
    """``get_ema_multi_avg_fn`` for parameters of which some are sharded."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Any) -> None:
        average([_local(t) for t in averaged], [_local(t) for t in current], count)

    return update


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(grad) for grad in gradients]
    return torch.stack(norms).square().sum() if norms else torch.zeros(())
