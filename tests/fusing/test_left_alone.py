"""What must not be fused: found, left as it is, with a reason; the result is the model's own."""

import pytest
import torch
import torch.nn.functional as F
from fusing_checks import is_fused
from fusing_models import Base, Nested, Sequence
from torch import nn

import mmfast

INPUTS = Base.inputs()


class SecondConsumer(Base):
    reason = "z has another use: BinOp"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        return self.fc(z), z + 1


class LaterConsumer(Base):
    reason = "z has another use: .sum"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        for _ in range(2):
            out = self.fc(z)
        return out, z.sum()


class Returned(Base):
    reason = "z is returned"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        out = self.fc(z)
        if out is not None:
            return out, z
        return z


class Kept(Base):
    reason = "it is kept"

    def forward(self, x, y):
        self.last = torch.cat([x, y], dim=-1)
        return self.fc(self.last)


class InClosure(Base):
    reason = "z is used by a function defined inside"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        return self.fc(z), (lambda: z)


class Mutated(Base):
    reason = "z is changed in place"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        z += 1
        return self.fc(z)


class MutatedByMethod(Base):
    reason = "z has another use: .mul_"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        z.mul_(2)
        return self.fc(z)


class PieceMutatedBefore(Base):
    reason = "u.zero_ is called between the concatenation and the layer"

    def forward(self, x, y):
        u = x * 1
        z = torch.cat([u, y], dim=-1)
        u.zero_()
        return self.fc(z)


class PieceWritten(Base):
    reason = "something is written between the concatenation and the layer"

    def forward(self, x, y):
        u = x * 1
        z = torch.cat([u, y], dim=-1)
        u[0] = 0
        return self.fc(z)


class PieceMutatedAfter(Base):
    reason = "u, a piece of it, is changed in place later"

    def forward(self, x, y):
        u = x * 1
        out = self.fc(torch.cat([u, y], dim=-1))
        return out, F.relu(u, inplace=True)


class OtherCode(Base):
    reason = "self.helper is called between the concatenation and the layer"

    def helper(self, x):
        return x.mul_(3)

    def forward(self, x, y):
        u = x * 1
        z = torch.cat([u, y], dim=-1)
        v = self.helper(u)
        return self.fc(z), v


class LoopCarried(Base):
    reason = "u.add_ is called between the concatenation and the layer"

    def forward(self, x, y):
        u = x * 1
        z = torch.cat([u, y], dim=-1)
        for _ in range(2):
            out = self.fc(z)
            u.add_(1)
        return out


class OtherDimension(Base):
    reason = "it joins along dimension 0, not the last"

    def forward(self, x, y):
        return self.other(torch.cat([self.fc(F.pad(x, (0, 160))), self.fc(F.pad(y, (96, 0)))]))


class GradModeChanges(Base):
    reason = "a `with` block begins or ends before the layer"

    def forward(self, x, y):
        with torch.no_grad():
            z = torch.cat([self.scale * x, y], dim=-1)
        return self.fc(z)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Normalised(Base):
    reason = "it is given to LayerNorm"

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(256)

    def forward(self, x, y):
        return self.fc(self.norm(torch.cat([x, y], dim=-1)))


class NoParameter(Base):
    reason = "F.linear's weight is no parameter"

    def forward(self, x, y):
        return F.linear(torch.cat([x, y], dim=-1), self.fc.weight * 2)


class Unknown(Base):
    reason = "it is given to torch.utils.checkpoint.checkpoint"

    def forward(self, x, y):
        z = torch.cat([x, y], dim=-1)
        return torch.utils.checkpoint.checkpoint(self.fc, z, use_reentrant=False)


class Wide(nn.Module):
    reason = "whose kernel is not 1x1"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(192 + 192, 8, 3)

    def forward(self, x, y):
        return self.conv(
            torch.cat([x[..., None, :96].mT.mT.reshape(1, 192, 96), y[None, :, :96]], 1)
        )


KINDS = [
    SecondConsumer, LaterConsumer, Returned, Kept, InClosure, Mutated, MutatedByMethod,
    PieceMutatedBefore, PieceWritten, PieceMutatedAfter, OtherCode, LoopCarried, OtherDimension,
    GradModeChanges, Normalised, NoParameter, Unknown, Wide,
]  # fmt: skip


def check_left_alone(model, reason, inputs=INPUTS):
    expected = torch.utils._pytree.tree_leaves(model(*inputs))
    attributes = [dict(vars(m)) for m in model.modules()]
    report = mmfast.fuse(model)
    assert report.fused == []
    own = [x for x in report.skipped if x.line.startswith(__file__) or "fusing_models" in x.line]
    assert len(own) == 1
    assert reason in own[0].reason
    assert [vars(m) for m in model.modules()] == attributes
    for a, b in zip(torch.utils._pytree.tree_leaves(model(*inputs)), expected, strict=True):
        assert callable(a) or torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_code(kind):
    check_left_alone(kind(), kind.reason)


# --- what a layer is ------------------------------------------------------------------------------


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
def test_hooks_that_see_the_input(register):
    model = Nested()
    seen = []
    getattr(model.fc, register)(lambda module, args, *_: seen.append(args[0]))
    check_left_alone(model, "hooks that may see its input")
    assert all(isinstance(x, torch.Tensor) for x in seen)


@pytest.mark.parametrize(
    "register",
    ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"],
)
def test_hooks_that_come_later(register):
    model, seen = Nested(), []
    mmfast.fuse(model)
    assert is_fused(model, *INPUTS) == 1
    handle = getattr(model.fc, register)(lambda module, args, *_: seen.append(args[0]))
    model(*INPUTS)[0].sum().backward()
    assert len(seen) == 1
    if register != "register_full_backward_hook":
        assert torch.equal(seen[0], torch.cat(INPUTS, -1))
    assert is_fused(model, *INPUTS) == 0
    handle.remove()
    assert is_fused(model, *INPUTS) == 1


def test_global_hooks():
    model, seen = Nested(), []
    mmfast.fuse(model)
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.extend(args)
    )
    try:
        model(*INPUTS)
    finally:
        handle.remove()
    assert all(isinstance(x, torch.Tensor) for x in seen)
    assert is_fused(model, *INPUTS) == 1


def test_quantised_layer():
    model = Nested()
    model.fc = torch.ao.nn.quantized.dynamic.Linear(256, 128)
    check_left_alone(model, "it is given to Linear")


def test_dynamically_quantised_later():
    model = Nested().eval()
    expected = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(*INPUTS)
    mmfast.fuse(model)
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(*INPUTS)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("old", [False, True])
def test_weight_norm(old):
    model = Nested()
    utils = torch.nn.utils
    (utils.weight_norm if old else utils.parametrizations.weight_norm)(model.fc)
    check_left_alone(model, "hooks" if old else "parametrization")


@pytest.mark.parametrize("old", [False, True])
def test_weight_norm_later(old):
    model = Nested()
    mmfast.fuse(model)
    utils = torch.nn.utils
    (utils.weight_norm if old else utils.parametrizations.weight_norm)(model.fc)
    twin = Nested()
    (utils.weight_norm if old else utils.parametrizations.weight_norm)(twin.fc)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(*INPUTS), twin(*INPUTS))


def test_lora():
    import peft

    config = peft.LoraConfig(target_modules=["fc"], init_lora_weights=False)
    model = peft.get_peft_model(Nested(), config)
    check_left_alone(model, "it is not handed on as a positional argument")


def test_lora_later():
    import peft

    model = Nested()
    mmfast.fuse(model)
    config = peft.LoraConfig(target_modules=["fc"], init_lora_weights=False)
    with_lora = peft.get_peft_model(model, config)
    assert is_fused(with_lora, *INPUTS) == 0
    layer = with_lora.base_model.model.fc
    z = torch.cat(INPUTS, -1)
    low = layer.lora_B["default"](layer.lora_A["default"](z)) * layer.scaling["default"]
    expected = model.other(layer.base_layer(z) + low)
    torch.testing.assert_close(with_lora(*INPUTS), expected)


def test_tied_weights():
    model = Nested()
    model.twin = nn.Linear(256, 128)
    model.twin.weight = model.fc.weight
    check_left_alone(model, "the layer's weight is tied: fc.weight and twin.weight")


def test_subclass_of_linear():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul(2))

    model = Nested()
    model.fc = Doubled(256, 128)
    check_left_alone(model, "another use: .mul")


def test_replaced_forward():
    model = Nested()
    plain = model.fc.forward
    model.fc.forward = lambda x: plain(x) + 1
    report = mmfast.fuse(model)
    assert "replaced on the instance" in report.skipped[0].reason


def test_scripted():
    scripted = torch.jit.script(Nested())
    assert mmfast.fuse(scripted).fused == []
    model = Nested()
    model.fc = torch.jit.script(model.fc)
    check_left_alone(model, "compiled by torch.jit")


@pytest.mark.parametrize("kind", [Nested, Sequence])
def test_trace_of_a_fused_model(kind):
    model = kind().eval()
    expected = model(*INPUTS)
    mmfast.fuse(model)
    traced = torch.jit.trace(model, tuple(INPUTS))
    assert "mmfast::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*INPUTS), expected)


# --- what only a call shows -----------------------------------------------------------------------


def fused_and_plain():
    plain, model = Nested(), Nested()
    model.load_state_dict(plain.state_dict())
    assert len(mmfast.fuse(model).fused) == 1
    return model, plain


@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_dtypes(autocast):
    model, plain = fused_and_plain()
    x, y = INPUTS[0], INPUTS[1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert is_fused(model, x, y) == 0
        found, expected = model(x, y), plain(x, y)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_wrong_dtype_is_refused_as_before():
    model, plain = fused_and_plain()
    halves = [x.bfloat16() for x in INPUTS]
    with pytest.raises(RuntimeError) as expected:
        plain(*halves)
    with pytest.raises(RuntimeError) as found:
        model(*halves)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "shapes", [((192, 96), (1, 160)), ((192, 96), (192, 161)), ((192, 96), (0,)), ((), (256,))]
)
def test_wrong_shapes_are_refused_as_before(shapes):
    model, plain = fused_and_plain()
    wrong = [torch.ones(shape) for shape in shapes]
    with pytest.raises(Exception) as expected:  # noqa: PT011
        plain(*wrong)
    with pytest.raises(type(expected.value)) as found:
        model(*wrong)
    assert str(found.value) == str(expected.value)


def test_other_dimension_at_a_call():
    class AlongOne(Base):
        def forward(self, x, y):
            return self.fc(torch.cat([x, y], dim=1))

    model = AlongOne()
    assert len(mmfast.fuse(model).fused) == 1
    x = torch.randn(4, 100, 256)
    expected = model.fc(torch.cat([x, x], 1))
    assert is_fused(model, x, x) == 0
    assert torch.equal(model(x, x), expected)


def test_tensor_subclasses():
    class Tagged(torch.Tensor):
        pass

    model, plain = fused_and_plain()
    x = INPUTS[0].as_subclass(Tagged)
    assert is_fused(model, x, INPUTS[1]) == 0
    assert type(model(x, INPUTS[1])) is type(plain(x, INPUTS[1])) is Tagged
