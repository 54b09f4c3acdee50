"""A fused model in PyTorch's company: modes, parameters, hooks, wrappers, threads, errors."""

import copy
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from fusing_checks import is_fused, values
from fusing_models import Base, Child, Gathered, Nested, Sequence
from torch import nn

import mmfast

INPUTS = Base.inputs()


def pair(kind=Nested):
    plain = kind()
    model = copy.deepcopy(plain)
    assert len(mmfast.fuse(model).fused) == 1
    return model, plain


def same(model, plain, *inputs):
    for a, b in zip(values(model, *inputs), values(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(mode):
    model, plain = pair()
    with mode():
        assert is_fused(model, *INPUTS) == 1
        found, expected = model(*INPUTS), plain(*INPUTS)
    assert found.requires_grad == expected.requires_grad
    assert found.is_inference() == expected.is_inference()
    torch.testing.assert_close(found, expected)


def test_autocast():
    model, plain = pair(Sequence)
    model, plain = model.eval(), plain.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert is_fused(model, *INPUTS) == 1
        found, expected = model(*INPUTS), plain(*INPUTS)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)


def test_frozen_and_thawed():
    model, plain = pair()
    for frozen in (True, False):
        for m in (model, plain):
            m.fc.requires_grad_(not frozen)
        same(model, plain, *INPUTS)
        assert len(values(model, *INPUTS)[1]) == (2 if frozen else 4)


@pytest.mark.parametrize("assign", [False, True])
def test_parameters_replaced_later(assign):
    model, plain = pair()
    state = {name: torch.randn_like(value) / 16 for name, value in plain.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    plain.load_state_dict(state, assign=assign)
    assert is_fused(model, *INPUTS) == 1
    same(model, plain, *INPUTS)


def test_layer_replaced_later():
    model, _ = pair()
    model.fc = nn.Linear(256, 128)
    plain = Nested()
    plain.load_state_dict(model.state_dict())
    assert is_fused(model, *INPUTS) == 0
    same(model, plain, *INPUTS)
    model.fc = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 128))
    assert model(*INPUTS).shape == (192, 8)
    mmfast.fuse(model)
    assert is_fused(model, *INPUTS) == 1


def test_part_of_a_sequence_replaced_later():
    model, plain = pair(Sequence)
    for m in (model.eval(), plain.eval()):
        m.mlp[1][2] = nn.Tanh()
    assert is_fused(model, *INPUTS) == 0
    same(model, plain, *INPUTS)


def test_one_layer_in_two_modules():
    first, second = Nested(), Child()
    second.block.lin = first.fc
    model = nn.ModuleList([first, second]).eval()
    plain = copy.deepcopy(model)
    assert len(mmfast.fuse(model).fused) == 2
    for m, p in zip(model, plain, strict=True):
        assert is_fused(m, *INPUTS) == 1
        same(m, p, *INPUTS)
    x = torch.randn(3, 256)
    assert torch.equal(first.fc(x), plain[0].fc(x))


def test_hooks_elsewhere_run():
    model, _ = pair()
    seen = []
    model.register_forward_hook(lambda m, args, out: seen.append("model"))
    model.other.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    assert is_fused(model, *INPUTS) == 1
    assert seen == [(192, 128), "model"]


def test_exception_leaves_nothing_behind():
    class Failing(Base):
        fail = True

        def forward(self, x, y):
            out = self.fc(torch.cat([x, y], dim=-1))
            if self.fail:
                raise KeyError("mine")
            return out

    model, plain = pair(Failing)
    with pytest.raises(KeyError, match="mine"):
        model(*INPUTS)
    model.fail = plain.fail = False
    same(model, plain, *INPUTS)


def test_traceback_names_the_models_line():
    class Failing(Base):
        def forward(self, x, y):
            out = self.fc(torch.cat([x, y], dim=-1))
            return out / {}["gone"]

    model, plain = pair(Failing)
    lines = []
    for m in (model, plain):
        with pytest.raises(KeyError) as caught:
            m(*INPUTS)
        last = caught.traceback[-1]
        lines.append((str(last.path), last.lineno))
    assert lines[0] == lines[1]


def test_reentrant():
    class Recursive(Base):
        def forward(self, x, y, depth=2):
            out = self.fc(torch.cat([x, y], dim=-1))
            if depth:
                out = out + self(x, y, depth - 1)
            return out

    model, plain = pair(Recursive)
    assert is_fused(model, *INPUTS) == 3
    same(model, plain, *INPUTS)


def test_threads():
    model, plain = pair(Gathered)
    inputs = [
        [*Gathered.inputs()[:2], *(i.roll(k) for i in Gathered.inputs()[2:])] for k in range(4)
    ]
    expected = [plain(*x) for x in inputs]
    found = [None] * 4

    def work(k):
        for _ in range(20):
            found[k] = model(*inputs[k])

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_and_functional_call():
    model, plain = pair()
    checkpointed = torch.utils.checkpoint.checkpoint(model, *INPUTS, use_reentrant=False)
    expected = torch.autograd.grad(plain(*INPUTS).sum(), plain.fc.weight)
    torch.testing.assert_close(torch.autograd.grad(checkpointed.sum(), model.fc.weight), expected)
    state = {name: value.detach() * 2 for name, value in model.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, state, tuple(INPUTS)),
        torch.func.functional_call(plain, state, tuple(INPUTS)),
    )
    torch.testing.assert_close(
        torch.vmap(model)(torch.stack([INPUTS[0]] * 3), torch.stack([INPUTS[1]] * 3)),
        torch.stack([plain(*INPUTS)] * 3),
    )


def test_in_place_changes_by_a_caller_are_an_error_never_a_wrong_gradient():
    model, _ = pair()
    x = INPUTS[0].clone()
    out = model(x, INPUTS[1])
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- two processes --------------------------------------------------------------------------------


def wrapped_model():
    model = Sequence().eval()
    del model.fc, model.other  # never used: DDP would wait for their gradients
    return model


def step(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, y).square().mean().backward()
        optimizer.step()


def worker(rank, kind, first, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(5)
    inner = model = wrapped_model()
    if first == "fuse":
        mmfast.fuse(model)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.mlp[1][1], mesh=mesh)
        fully_shard(model, mesh=mesh)
    if first == "wrap":
        report = mmfast.fuse(model)
        assert len(report.fused) == 1, str(report)
    x, y = (t.chunk(2)[rank].repeat(4, 1) for t in INPUTS)
    step(model, x, y)
    full = {n: p.full_tensor() if kind == "fsdp" else p for n, p in inner.named_parameters()}
    if rank == 0:
        torch.save({n: p.detach() for n, p in full.items()}, path)
    assert is_fused(model, x, y) == 1
    dist.barrier()
    os._exit(0)  # tearing gloo down aborts the process now and then


@pytest.mark.parametrize("first", ["fuse", "wrap"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_wrapped_before_and_after(kind, first, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = str(tmp_path / "parameters.pt")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), kind, first, str(port), path], env=environment
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    torch.manual_seed(5)
    alone = wrapped_model()
    step(alone, *[t.repeat(4, 1) for t in INPUTS])
    found = torch.load(path)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach())


if __name__ == "__main__":
    worker(int(sys.argv[1]), *sys.argv[2:])
