"""fuse: every pattern is found, computes the same, and comes out again."""

import copy
import linecache
import pickle

import pytest
import torch
from fusing_checks import check_same, is_fused
from fusing_models import PATTERNS, Base, Broadcast, Channels, Child, Nested, Sequence, Several
from torch import nn

import mmfast


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", PATTERNS, ids=lambda kind: kind.__name__)
def test_same_function(kind, training):
    model = kind().train(training)
    inputs = kind.inputs()
    report = check_same(model, *inputs, fused=PATTERNS[kind])
    assert report.skipped == []


@pytest.mark.parametrize("kind", PATTERNS, ids=lambda kind: kind.__name__)
def test_operator_runs(kind):
    model, inputs = kind().eval(), kind.inputs()
    if kind is Channels:  # one of the two is a split product, not the operator
        wanted = 1
    elif kind is Several:
        wanted = 2
    else:
        wanted = PATTERNS[kind]
    assert is_fused(model, *inputs) == 0
    mmfast.fuse(model)
    assert is_fused(model, *inputs) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Nested, Sequence, Broadcast])
def test_dtypes(kind, dtype):
    check_same(kind().to(dtype).eval(), *[x.to(dtype) for x in kind.inputs()], fused=1)


def test_dropout_at_work_builds_the_concatenation():
    model = Child().train()
    mmfast.fuse(model)
    assert is_fused(model, *Child.inputs()) == 0
    assert is_fused(model.eval(), *Child.inputs()) == 1


def test_backward_keeps_no_concatenation():
    model, (x, y) = Nested(), Nested.inputs()
    x.requires_grad_()

    def widths() -> set[int]:
        kept = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.add(tuple(t.shape)), t)[1], lambda t: t
        ):
            model(x, y)
        return kept

    joined = (x.shape[0], x.shape[1] + y.shape[1])
    assert joined in widths()
    mmfast.fuse(model)
    assert joined not in widths()


def test_report_tells_where_and_why():
    class Both(Base):
        def forward(self, x, y):
            z = torch.cat([x, y], dim=-1)
            kept = torch.cat([x, x], dim=0)
            return torch.relu(self.fc(z)), kept

    model = nn.ModuleDict({"part": Both()})
    report = mmfast.fuse(model)
    (fused,), (skipped,) = report.fused, report.skipped
    assert fused.where == skipped.where == "part.forward"
    assert fused.layers == ("part.fc",)
    assert fused.activation == "relu"
    number = int(fused.line.split(":")[1])
    assert fused.line.startswith(__file__)
    assert "torch.cat([x, y], dim=-1)" in linecache.getline(__file__, number)
    assert "dimension 0" in skipped.reason
    assert "1 fused, 1 left alone" in str(report)
    assert "part.fc + relu" in str(report)


def test_example_inputs_give_shapes_bytes_and_times():
    model, inputs = Nested().train(), Nested.inputs()
    state, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = mmfast.fuse(model, example_inputs=tuple(inputs))
    shapes = tuple(tuple(x.shape) for x in inputs)
    assert report.fused[0].shapes == (shapes,)
    assert report.bytes_saved == sum(x.numel() for x in inputs) * 4
    assert report.measured.kind == "forward and backward"
    assert report.measured.before > 0
    assert report.measured.after > 0
    assert "MiB" in str(report)
    assert is_fused(model, *inputs) == 1
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), seed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("form", [dict, list])
def test_example_inputs_by_name_or_place(form):
    x, y = Nested.inputs()
    example = {"x": x, "y": y} if form is dict else [x, y]
    assert mmfast.fuse(Nested(), example_inputs=example).measured is not None


def test_what_the_example_does_not_gain_from_is_left_alone():
    model = Nested()
    report = mmfast.fuse(model, example_inputs=tuple(x[:1] for x in Nested.inputs()))
    assert report.fused == []
    assert "too small" in report.skipped[0].reason
    assert "forward" not in vars(model)


def test_buffers_are_put_back():
    class Normed(Base):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(128)

        def forward(self, x, y):
            return self.norm(self.fc(torch.cat([x, y], -1)))

    model = Normed().train()
    report = mmfast.fuse(model, example_inputs=tuple(Base.inputs()))
    assert len(report.fused) == 1
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(128))


def test_filter():
    model = nn.ModuleDict({"a": Nested(), "b": Nested()})
    asked = []

    def only_b(module, name):
        asked.append((module, name))
        return name == "b"

    report = mmfast.fuse(model, filter_fn=only_b)
    assert asked == [(model["a"], "a"), (model["b"], "b")]
    assert [x.where for x in report.fused] == ["b.forward"]
    assert [x.reason for x in report.skipped] == ["filter_fn says no"]


def test_strict():
    mmfast.fuse(Nested(), strict=True)
    with pytest.raises(ValueError, match=r"nothing in Linear could be fused"):
        mmfast.fuse(nn.Linear(2, 2), strict=True)


def test_wrong_argument():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        mmfast.fuse(lambda x: x)


def test_a_second_call_starts_anew():
    model = Nested()
    first = mmfast.fuse(model)
    second = mmfast.fuse(model)
    assert [x.where for x in first.fused] == [x.where for x in second.fused]
    assert is_fused(model, *Nested.inputs()) == 1
    mmfast.fuse(model, filter_fn=lambda module, name: False)
    assert is_fused(model, *Nested.inputs()) == 0
    second.revert()
    assert "forward" not in vars(model)


def test_nothing_to_fuse_changes_nothing():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4), 2)
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    report = mmfast.fuse(model)
    assert report.fused == []
    assert {name: vars(m) for name, m in model.named_modules()} == before


def test_no_class_and_no_global_is_touched():
    code = {cls: cls.forward for cls in (nn.Linear, nn.Sequential, nn.ReLU, Sequence)}
    functions = torch.cat, torch.nn.functional.linear
    model = Sequence()
    mmfast.fuse(model)
    assert {cls: cls.forward for cls in code} == code
    assert (torch.cat, torch.nn.functional.linear) == functions
    assert type(model) is Sequence
    assert type(model.mlp[1][1]) is nn.Linear
    assert is_fused(Sequence().eval(), *Sequence.inputs()) == 0


def test_deep_copy_is_fused_and_independent():
    model = Child().eval()
    report = mmfast.fuse(model)
    copied = copy.deepcopy(model)
    assert is_fused(copied, *Child.inputs()) == 1
    report.revert()
    assert is_fused(model, *Child.inputs()) == 0
    with torch.no_grad():
        model.block.lin.weight.zero_()
    assert copied(*Child.inputs()).abs().max() > 0
    mmfast.fuse(copied).revert()
    assert not any("forward" in vars(m) for m in copied.modules())


def test_pickle_gives_the_original_model():
    model, inputs = Child().eval(), Child.inputs()
    expected = model(*inputs)
    mmfast.fuse(model)
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(*inputs), expected)
    assert is_fused(loaded, *inputs) == 0
    assert len(mmfast.fuse(loaded).fused) == 1
    assert is_fused(loaded, *inputs) == 1
