"""ConcatLinear under DDP and FSDP2, in two real processes."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmfast.nn import ConcatLinear

pytestmark = pytest.mark.cpu_only  # processes that talk by gloo

ROWS = 8


def make_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.ModuleList([ConcatLinear([6, 10], 12, activation="gelu"), nn.Linear(12, 4)])


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(ROWS, 6, generator=generator), torch.randn(ROWS, 10, generator=generator)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = make_model()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.parts[1](self.parts[0]([x, y]))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, y).square().mean().backward()
        optimizer.step()


def worker(rank: int, kind: str, port: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = Model()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.parts[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    x, y = (t.chunk(2)[rank] for t in data())
    train(model, x, y)
    values = {
        name: p.full_tensor() if kind == "fsdp" else p for name, p in model.named_parameters()
    }
    if rank == 0:
        torch.save({name.removeprefix("module."): p.detach() for name, p in values.items()}, path)
    dist.barrier()
    os._exit(0)  # tearing gloo down aborts the process now and then, with plain torch models too


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_equals_one_process(kind, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = str(tmp_path / "parameters.pt")
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), kind, str(port), path])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    alone = Model()
    train(alone, *data())
    found = torch.load(path)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach())


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
