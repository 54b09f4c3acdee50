"""torch.compile, torch.export and AOTInductor: of fused models, and by the backend alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fusing_checks import values
from fusing_models import PATTERNS, Attention, Base, Broadcast, Channels, Gathered, Nested
from torch import nn

import mmfast
from mmfast.fusing.graph import fuse_graph

INPUTS = Base.inputs()
COMPILED = [kind for kind in PATTERNS if kind.__name__ != "Branches"]  # which reads a value
assert COMPILED[-1] is Attention  # whose weighted sums Inductor fuses: the backend leaves them


def close(found, expected):
    for a, b in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def graphs_of(model, inputs, count=True, **options):
    """Compile with plain eager code behind Dynamo; the graphs, and how many places were fused."""
    seen = []

    def backend(graph, example):
        number = fuse_graph(graph) if count else 0
        seen.append((number, [str(node.target) for node in graph.graph.nodes]))
        return graph

    torch._dynamo.reset()
    found = values(torch.compile(model, backend=backend, fullgraph=True, **options), *inputs)
    return seen, found


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", COMPILED, ids=lambda kind: kind.__name__)
def test_a_fused_model_compiles_without_a_break(kind, dynamic):
    model = kind().eval()
    expected = values(model, *kind.inputs())
    mmfast.fuse(model)
    seen, found = graphs_of(model, kind.inputs(), count=False, dynamic=dynamic)
    targets = [t for _, targets in seen for t in targets]
    wanted = "weighted_sum" if kind is Attention else "concat_linear"
    assert any(wanted in t for t in targets)
    close(found, expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", COMPILED[:-1], ids=lambda kind: kind.__name__)
def test_the_backend_finds_the_same_places(kind, dynamic):
    model = kind().eval()
    seen, found = graphs_of(model, kind.inputs(), dynamic=dynamic)
    # An image in channels-last memory is Inductor's own to lay out.
    assert sum(number for number, _ in seen) == 1
    assert any("concat_linear" in t or "broadcast_conv" in t for _, ts in seen for t in ts)
    close(found, values(model, *kind.inputs()))


@pytest.mark.parametrize("how", ["fuse", "backend"])
@pytest.mark.parametrize("kind", [Nested, Gathered])
def test_inductor(kind, how):
    model = kind()
    expected = values(model, *kind.inputs())
    torch._dynamo.reset()
    if how == "fuse":
        mmfast.fuse(model)
        compiled = torch.compile(model, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=mmfast.inductor, fullgraph=True)
    close(values(compiled, *kind.inputs()), expected)


def test_backend_takes_mode_and_options():
    torch._dynamo.reset()
    model = Nested()
    compiled = torch.compile(
        model, backend=mmfast.inductor, options={"epilogue_fusion": False}, dynamic=False
    )
    torch.testing.assert_close(compiled(*INPUTS), model(*INPUTS), rtol=1e-4, atol=1e-5)


def test_backend_under_autocast():
    torch._dynamo.reset()
    model = Nested()
    with torch.autocast("cpu", torch.bfloat16):
        expected = values(model, *INPUTS)
        seen, found = graphs_of(model, INPUTS)
    assert seen[0][0] == 1
    assert [x.dtype for x in found[0]] == [x.dtype for x in expected[0]]
    for a, b in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert (a - b).abs().max() <= 3e-2 * b.abs().max()


def test_across_functions_and_modules():
    """A graph does not mind where the concatenation was returned from."""

    class Features(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], dim=-1)

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.features = Features()

        def forward(self, x, y):
            return self.fc(self.features(x, y))

    model = Model()
    assert mmfast.fuse(model).fused == []
    seen, found = graphs_of(model, INPUTS)
    assert seen[0][0] == 1
    close(found, values(model, *INPUTS))


class Second(Base):
    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        return self.fc(z), z


class Between(Base):
    def forward(self, x, y):
        u = x * 1
        z = torch.cat([u, y], dim=-1)
        u.add_(1)
        return self.fc(z)


class Mode(Base):
    def forward(self, x, y):
        u = self.other.weight.sum() * x
        with torch.no_grad():
            z = torch.cat([u, y], dim=-1)
        return self.fc(z)


class Zero(Base):
    def forward(self, x, y):
        return self.fc(torch.cat([x[:, :128], y[:, :128]], dim=0).view(192, 256))


class Mixed(Base):
    def forward(self, x, y):
        return self.fc(torch.cat([x.double(), y], dim=-1).float())


class Twice(Base):
    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        return F.linear(z, z)


@pytest.mark.parametrize("kind", [Second, Between, Mode, Zero, Mixed, Twice])
def test_left_alone(kind):
    model = kind()
    inputs = INPUTS if kind is not Zero else [torch.randn(192, 128), torch.randn(192, 128)]
    seen, found = graphs_of(model, inputs)
    assert sum(number for number, _ in seen) == 0
    close(found, values(model, *inputs))


def test_small_shapes_are_left_alone():
    seen, _ = graphs_of(Nested(), [x[:2] for x in INPUTS])
    assert sum(number for number, _ in seen) == 0


@pytest.mark.parametrize("kind", [Nested, Broadcast, Gathered, Channels, Attention])
def test_export(kind):
    model = kind().eval()
    expected = torch.utils._pytree.tree_leaves(model(*kind.inputs()))
    mmfast.fuse(model)
    program = torch.export.export(model, tuple(kind.inputs()))
    assert "mmfast" in str(program.graph)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(program.module()(*kind.inputs())), expected, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_export_after_revert_has_nothing_of_mmfast():
    model = Nested()
    report = mmfast.fuse(model)
    report.revert()
    assert "mmfast" not in str(torch.export.export(model, tuple(INPUTS)).graph)


def test_aot_inductor(tmp_path):
    model = copy.deepcopy(Nested()).eval()
    expected = model(*INPUTS)
    mmfast.fuse(model)
    with torch.no_grad():
        program = torch.export.export(model, tuple(INPUTS))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        found = torch._inductor.aoti_load_package(path)(*INPUTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
