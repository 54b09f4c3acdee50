"""mmfast.functional: what users meet: errors, autocast, tracing, transforms."""

import os
import subprocess
import sys

import pytest
import reference
import torch

import mmfast
from mmfast.functional import ACTIVATIONS, concat_linear

X, Y = torch.ones(4, 3), torch.ones(4, 5)
W, B = torch.ones(6, 8), torch.ones(6)

# arguments, the exception, and what its message must name: the argument, what it was, what it
# must be.
WRONG = {
    "no inputs": (([], W), ValueError, ["inputs is empty", "at least one"]),
    "tensor as inputs": ((X, W), TypeError, ["inputs", "sequence", "Tensor"]),
    "number as inputs": ((3, W), TypeError, ["inputs", "sequence", "int"]),
    "not a tensor": (([X, "text"], W), TypeError, [r"inputs\[1\]", "tensor", "str"]),
    "None among inputs": (([X, None], W), TypeError, [r"inputs\[1\]", "tensor", "NoneType"]),
    "weight not a tensor": (([X, Y], None), TypeError, ["weight", "tensor", "NoneType"]),
    "bias not a tensor": (([X, Y], W, 0.5), TypeError, ["bias", "tensor", "float"]),
    "mixed dtypes": (
        ([X, Y.double()], W),
        ValueError,
        [r"inputs\[1\]", "float64", "weight", "float32"],
    ),
    "half and full": (
        ([X.half(), Y.half()], W),
        ValueError,
        [r"inputs\[0\]", "float16", "float32"],
    ),
    "bias dtype": (([X, Y], W, B.double()), ValueError, ["bias", "float64", "float32"]),
    "integers": (([X.long(), Y.long()], W), TypeError, [r"inputs\[0\]", "int64", "float32"]),
    "complex": (
        ([X.cfloat(), Y.cfloat()], W.cfloat()),
        TypeError,
        [r"inputs\[0\]", "complex64", "float32"],
    ),
    "mixed devices": (([X, Y.to("meta")], W), ValueError, [r"inputs\[1\]", "meta", "cpu"]),
    "sparse": (([X, Y.to_sparse()], W), TypeError, [r"inputs\[1\]", "sparse", "dense"]),
    "nested": (
        ([X, torch.nested.nested_tensor([Y, Y])], W),
        TypeError,
        [r"inputs\[1\] is nested", "dense"],
    ),
    "0-d input": (([torch.tensor(1.0), Y], W), ValueError, [r"inputs\[0\]", "0-d", "features"]),
    "widths": (([X, X], W), ValueError, ["8 columns", r"3 \+ 3", "6", "equal"]),
    "1-d weight": (([X, Y], W[0]), ValueError, ["weight", r"\(8,\)", "2-d"]),
    "bias shape": (([X, Y], W, B[:5]), ValueError, ["bias", r"\(5,\)", r"\(6,\)"]),
    "bias 2-d": (([X, Y], W, B[None]), ValueError, ["bias", r"\(1, 6\)", r"\(6,\)"]),
    "batches": (([X, Y[:3]], W), ValueError, ["broadcast", r"\(4,\)", r"\(3,\)"]),
    "batches, three": (
        ([X[:, None], Y[:, None], torch.ones(2, 3, 0)], W),
        ValueError,
        ["broadcast", r"\(2, 3\)"],
    ),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.cpu_only
def test_wrong_arguments(name, grad):
    (inputs, weight, *bias), exception, words = WRONG[name]
    if grad and isinstance(weight, torch.Tensor):
        weight = weight.detach().requires_grad_()
    with pytest.raises(exception) as info:
        concat_linear(inputs, weight, *bias)
    for word in words:
        info.match(word)


@pytest.mark.parametrize(
    "name", [n for n in WRONG if n not in ("mixed devices", "sparse", "nested")]
)
@pytest.mark.cpu_only
def test_wrong_arguments_traced(name):
    """The fake kernel refuses what the real one refuses, in the same words."""
    (inputs, weight, *bias), exception, words = WRONG[name]
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
        inputs = [fake(x) for x in inputs] if isinstance(inputs, list) else fake(inputs)
        with pytest.raises(exception) as info:
            concat_linear(inputs, fake(weight), *map(fake, bias))
    for word in words:
        info.match(word)


@pytest.mark.parametrize("activation", ["swish", "ReLU", "", None, 3])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_unknown_activation(activation, grad):
    with pytest.raises(ValueError, match=r"activation is .*must be one of none, relu") as info:
        concat_linear([X, Y], W.detach().requires_grad_(grad), activation=activation)
    info.match(repr(activation))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], W, None, [], [], "none", False), "inputs is empty"),
        (([X, Y], W[0], None, [], [], "none", False), r"weight has shape \(8,\)"),
        (([X, X], W, None, [], [], "none", False), "8 columns .* add up to 6"),
        (
            ([X, Y[:3]], W, None, [], [], "none", False),
            r"inputs\[1\] has batch shape \(3,\).*\(4,\)",
        ),
        (([X, Y.double()], W, None, [], [], "none", False), r"inputs\[1\] has dtype Double.*Float"),
        (([X.long(), Y.long()], W.long(), None, [], [], "none", False), "weight has dtype Long"),
        (([X, torch.tensor(1.0)], W, None, [], [], "none", False), r"inputs\[1\] is 0-d"),
        (([X, Y], W, B[:2], [], [], "none", False), r"bias has shape \(2,\).*\(6,\)"),
        (([X, Y], W, B.half(), [], [], "none", False), "bias has dtype Half"),
        (([X, Y], W, None, [], [], "swish", False), "activation is 'swish'"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
@pytest.mark.cpu_only
def test_operator_guards_itself(arguments, message):
    """Called past the Python function, the kernel must refuse too, and never crash."""
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmfast.concat_linear.default(*arguments)
    if "activation" not in message:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.mmfast.concat_linear_plain.default(*arguments[:3], 0)


@pytest.mark.parametrize("activation", [-1, len(ACTIVATIONS)])
@pytest.mark.cpu_only
def test_plain_operator_guards_its_activation(activation):
    with pytest.raises(RuntimeError, match=f"activation is {activation}; it must be a position"):
        torch.ops.mmfast.concat_linear_plain.default([X, Y], W, B, activation)
    with pytest.raises(ValueError, match=f"activation is {activation}; it must be a position"):
        torch.ops.mmfast.concat_linear_plain.default(
            [X.to("meta"), Y.to("meta")], W.to("meta"), None, activation
        )


@pytest.mark.parametrize(
    ("grad", "saved", "activation", "wanted", "message"),
    [
        (torch.ones(4, 5), W, "none", [0], r"grad has shape \(4, 5\); it must be \(4, 6\)"),
        (torch.ones(4, 6).double(), W, "none", [0], "grad has dtype Double"),
        (torch.ones(4, 6), torch.ones(3, 6), "relu", [0], r"saved has shape \(3, 6\)"),
        (torch.ones(4, 6), W, "none", [4], r"wanted holds 4; it must lie in 0 .. 3"),
        (torch.ones(4, 6), W, "none", [-1], "wanted holds -1"),
        (torch.ones(4, 6), W, "none", [1, 1], "wanted holds 1 twice"),
    ],
    ids=str,
)
@pytest.mark.cpu_only
def test_backward_operator_guards_itself(grad, saved, activation, wanted, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmfast.concat_linear_backward.default(
            grad, [X, Y], W, saved, [], [], activation, wanted
        )


def test_inputs_may_be_a_tuple():
    assert torch.equal(concat_linear((X, Y), W, B), concat_linear([X, Y], W, B))


# ----------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 5).to(dtype)
    weight, bias = torch.randn(6, 8, requires_grad=True), torch.randn(6)
    with torch.autocast("cpu", dtype=dtype):
        found = concat_linear([x, y], weight, bias)
        eager = torch.nn.functional.linear(torch.cat([x, y.float()], -1), weight, bias)
    assert found.dtype == eager.dtype == dtype
    torch.testing.assert_close(found, eager, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)
    found.float().sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32
    (exact,) = torch.autograd.grad(eager.float().sum(), weight)
    torch.testing.assert_close(weight.grad, exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert concat_linear([X.double(), Y.double()], W.double()).dtype == torch.float64


@pytest.mark.parametrize("name", [r"inputs\[0\]", "weight", "bias"])
def test_autocast_leaves_integers_alone(name):
    """They are refused as they are without autocast, not converted."""
    x = X.long() if name.startswith("inputs") else X
    weight = W.long() if name == "weight" else W
    bias = B.long() if name == "bias" else B
    refused = pytest.raises(TypeError, match=f"{name} has dtype torch.int64")
    with torch.autocast("cpu", dtype=torch.bfloat16), refused:
        concat_linear([x, Y], weight, bias)


# ------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_compile(activation, bias):
    """One graph, without breaks, for every batch size, forward and backward."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    torch._dynamo.reset()

    def function(inputs, weight, bias):
        return concat_linear(inputs, weight, bias, activation=activation) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for rows in (11, 13, 31):  # unlike any other size: equal ones would be taken for one
        inputs = [torch.randn(rows, 1, 3), torch.randn(4, 5)]
        arguments = (inputs, torch.randn(6, 8), torch.randn(6) if bias else None)
        grad = torch.randn(rows, 4, 6)
        found = reference.run(compiled, *arguments, grad)
        eager = reference.run(function, *arguments, grad)
        assert all(torch.equal(f, e) for f, e in zip(found, eager, strict=True))
    assert len(graphs) == 1
    targets = [node.target for node in graphs[0].graph.nodes]
    assert torch.ops.mmfast.concat_linear.default in targets


def test_compile_inductor():
    torch._dynamo.reset()
    layer = mmfast.nn.ConcatLinear([40, 24], 32, activation="gelu")
    head = torch.nn.Linear(32, 3)
    function = lambda x, y: head(torch.relu(layer([torch.sin(x), y])))  # noqa: E731
    x, y = torch.randn(10, 40, requires_grad=True), torch.randn(10, 24)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)(x, y)
    eager = function(x, y)
    torch.testing.assert_close(compiled, eager)
    (found,) = torch.autograd.grad(compiled.sum(), x)
    (exact,) = torch.autograd.grad(eager.sum(), x)
    torch.testing.assert_close(found, exact)


def test_compile_autocast():
    torch._dynamo.reset()

    def function(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return concat_linear([x, y], W, B)

    found = torch.compile(function, fullgraph=True, backend="aot_eager")(X, Y)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, function(X, Y))


def test_double_backward_under_compile_is_refused_clearly():
    torch._dynamo.reset()
    weight = W.clone().requires_grad_()
    compiled = torch.compile(
        lambda x, y: concat_linear([x, y], weight), fullgraph=True, backend="aot_eager"
    )
    loss = compiled(X, Y).square().sum()
    with pytest.raises(RuntimeError, match="double backward"):
        sum(torch.autograd.grad(loss, weight, create_graph=True)).sum().backward()


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_export(strict):
    layer = mmfast.nn.ConcatLinear([3, 5], 6, activation="silu")
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(
        layer, ((X, Y),), dynamic_shapes=(({0: rows}, {0: rows}),), strict=strict
    )
    inputs = (torch.randn(9, 3), torch.randn(9, 5))
    assert torch.equal(program.module()(inputs), layer(inputs))
    assert "mmfast.concat_linear" in str(program.graph)
    program.module()(inputs).sum().backward()  # still differentiable
    assert layer.weight.grad.abs().sum() > 0


def test_func_transforms():
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    weight = torch.randn(6, 8)
    rows = torch.func.vmap(lambda a, b: concat_linear([a, b], weight, activation="tanh"))(x, y)
    torch.testing.assert_close(rows, reference.concat_linear([x, y], weight, None, "tanh"))
    found = torch.func.grad(lambda w: concat_linear([x, y], w).square().sum())(weight)
    exact = torch.func.grad(lambda w: (torch.cat([x, y], -1) @ w.t()).square().sum())(weight)
    torch.testing.assert_close(found, exact)


def test_checkpoint():
    layer = mmfast.nn.ConcatLinear([3, 5], 6, activation="gelu").double()
    x, y = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 5).double()
    run = lambda a, b: layer([a, b]).square().sum()  # noqa: E731
    exact = torch.autograd.grad(run(x, y), [x, layer.weight])
    kept = torch.utils.checkpoint.checkpoint(run, x, y, use_reentrant=False)
    for found, expected in zip(torch.autograd.grad(kept, [x, layer.weight]), exact, strict=True):
        assert torch.equal(found, expected)


PEAK_MEMORY = """
import torch, mmfast

def peak():  # of this process alone; getrusage would count its parent's too
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

dtype = torch.{dtype}
inputs = [torch.ones(200_000, 128, dtype=dtype) for _ in range(4)]
weight = torch.ones(8, 512, dtype=dtype)
mmfast.concat_linear([x[:4096] for x in inputs], weight)  # scratch and library warmed up
concatenation = 200_000 * 512 * weight.element_size() / 2**20
before = peak()
mmfast.concat_linear(inputs, weight)
ours = peak() - before
torch.nn.functional.linear(torch.cat(inputs, -1), weight)
assert ours < 0.1 * concatenation, f"{{ours:.0f}} MB of {{concatenation:.0f}}"
assert peak() - before > 0.9 * concatenation, "the measure does not see the concatenation"
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.cpu_only
def test_peak_memory_of_the_process(dtype):
    """Counted outside torch's allocator too: resident memory never holds the concatenation."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY.format(dtype=dtype)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------- transforms and storage


def test_forward_mode():
    """Tangents come through, in torch.func, in dual numbers and inside torch.compile."""
    x, y, weight = torch.randn(4, 3), torch.randn(4, 5), torch.randn(6, 8)
    tangent = torch.randn(6, 8)
    function = lambda w: concat_linear([x, y], w, activation="tanh")  # noqa: E731
    eager = lambda w: reference.eager_concat_linear([x, y], w, None, "tanh")  # noqa: E731
    exact = torch.func.jvp(eager, (weight,), (tangent,))[1]
    jvp = lambda w: torch.func.jvp(function, (w,), (tangent,))[1]  # noqa: E731
    torch.testing.assert_close(jvp(weight), exact)
    torch._dynamo.reset()
    compiled = torch.compile(jvp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), exact)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, tangent)
        found = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
    torch.testing.assert_close(found, exact)


def test_vmap_inside_compile():
    weight = torch.randn(6, 8)
    per_row = torch.func.vmap(lambda a, b: concat_linear([a, b], weight))
    torch._dynamo.reset()
    compiled = torch.compile(per_row, backend="aot_eager")
    torch.testing.assert_close(compiled(X, Y), concat_linear([X, Y], weight))


def test_batched_gradients():
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    result = concat_linear([x], weight, activation="gelu")
    grads = torch.randn(5, 4, 6)
    batched = torch.autograd.grad(
        result, [x, weight], grads, is_grads_batched=True, retain_graph=True
    )
    for i, grad in enumerate(grads):
        single = torch.autograd.grad(result, [x, weight], grad, retain_graph=True)
        for b, s in zip(batched, single, strict=True):
            torch.testing.assert_close(b[i], s)


def test_transforms_check_arguments():
    with pytest.raises(ValueError, match="activation is 'softplus'"):
        torch.func.vmap(lambda x: concat_linear([x], W[:, :3], activation="softplus"))(X)


def test_meta_device():
    layer = mmfast.nn.ConcatLinear([3, 5], 6, device="meta")
    result = layer([X.to("meta"), Y.to("meta")])
    assert result.is_meta
    assert result.shape == (4, 6)


@pytest.mark.parametrize("kept", [0, 1199], ids=["freed", "shrunk"])
@pytest.mark.parametrize("rows", [4, 400])
def test_freed_storage(rows, kept):
    """A tensor whose memory was given back, as sharded training does, is refused: no crash."""
    x, weight = torch.randn(rows, 300), torch.randn(6, 300, requires_grad=True)
    result = concat_linear([x], weight)
    x.untyped_storage().resize_(kept)
    with pytest.raises(RuntimeError, match=r"inputs\[0\] has elements without memory"):
        concat_linear([x], weight)
    with pytest.raises(RuntimeError, match=r"inputs\[0\] has elements without memory"):
        result.sum().backward()


def test_only_what_backward_needs_is_kept():
    x = torch.randn(4, 3, requires_grad=True)
    hidden = x * 2
    result = concat_linear([hidden], torch.randn(2, 3))  # a frozen weight does not need the input
    hidden.zero_()
    result.sum().backward()
    weight = torch.randn(2, 3, requires_grad=True)
    result = concat_linear([torch.randn(4, 3)], weight)  # nor a first layer its weight
    with torch.no_grad():
        weight.sub_(0.1)
    result.sum().backward()


@pytest.mark.parametrize(
    ("changed", "activation"),
    [
        *((changed, activation) for changed in ("input", "weight") for activation in ACTIVATIONS),
        *(("result", activation) for activation in ("relu", "tanh", "sigmoid")),
    ],
)
def test_changed_before_backward(changed, activation):
    """What backward reads and was overwritten since is an error, never a wrong gradient."""
    hidden, weight = torch.randn(4, 3, requires_grad=True) * 2, torch.randn(2, 3).requires_grad_()
    weight = weight * 2  # no leaf: those refuse to be overwritten
    result = concat_linear([hidden], weight, activation=activation)
    loss = result.sum()
    {"input": hidden, "weight": weight, "result": result}[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sparse_gradient():
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    (found,) = torch.autograd.grad(concat_linear([x], weight), weight, torch.eye(4, 2).to_sparse())
    torch.testing.assert_close(found, x[:2])


# ------------------------------------------------------------------------------ 16-bit arithmetic


def test_float16_sums_do_not_overflow():
    """Gradients summed over many rows exceed float16 before they are multiplied by small values."""
    tokens, vector = torch.randn(70_000, 8).half(), (torch.randn(1, 8) * 1e-4).half()
    weight = torch.randn(4, 16).half()
    grad = torch.ones(70_000, 4).half()
    found = reference.run(concat_linear, [tokens, vector], weight, None, grad)
    exact = reference.run(
        reference.concat_linear, [tokens, vector], weight, None, grad, torch.float64
    )
    torch.testing.assert_close(found[3][:, 8:].double(), exact[3][:, 8:], rtol=2e-3, atol=0)


def test_float16_bias_before_rounding():
    """A product beyond float16's range that the bias brings back."""
    x, weight = torch.full((64, 512), 10.0).half(), torch.full((64, 512), 14.0).half()
    bias = torch.full((64,), -20_000.0).half()
    for activation in ("none", "relu"):
        assert concat_linear([x], weight, bias, activation=activation).max().item() == 51_680


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_cancelling_bias(activation, dtype):
    """A bias that takes away most of the product: one rounding, as in PyTorch, not two."""
    inputs = [(torch.rand(256, 300) + 3).to(dtype), (torch.rand(256, 200) + 3).to(dtype)]
    weight = (torch.rand(64, 500) * 0.1 + 0.1).to(dtype)
    bias = torch.full((64,), -262.5).to(dtype)
    rule = reference.ErrorRule(dtype)
    arguments = (inputs, weight, bias, None)
    (found,) = reference.run(concat_linear, *arguments, activation=activation)
    (eager,) = reference.run(reference.eager_concat_linear, *arguments, activation=activation)
    (z,) = reference.run(reference.concat_linear, *arguments, torch.float64)
    exact = torch.tanh(z) if activation == "tanh" else z.clamp_min(0)
    rule.add(found, exact, eager, exact)
    rule.check(2, activation)


def test_create_graph_gives_the_same_gradient():
    inputs = [torch.randn(64, 64).bfloat16() for _ in range(16)]
    weight = (torch.randn(48, 1024) / 32).bfloat16().requires_grad_()
    bias, grad = torch.randn(48).bfloat16(), torch.randn(64, 48).bfloat16()
    result = concat_linear(inputs, weight, bias, activation="gelu")
    (plain,) = torch.autograd.grad(result, weight, grad, retain_graph=True)
    (differentiable,) = torch.autograd.grad(result, weight, grad, create_graph=True)
    torch.testing.assert_close(plain, differentiable, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_create_graph_formula(activation):
    """The formula behind double backward and transforms has the kernels' gradients."""
    x, y = torch.randn(70, 1, 3).double(), torch.randn(4, 5).double()
    weight, bias = torch.randn(6, 8).double(), torch.randn(6).double()
    leaves = [t.requires_grad_() for t in (x, y, weight, bias)]
    result = concat_linear([x, y], weight, bias, activation=activation)
    grad = torch.randn_like(result)
    kernel = torch.autograd.grad(result, leaves, grad, retain_graph=True)
    formula = torch.autograd.grad(result, leaves, grad, create_graph=True)
    assert all(f.requires_grad or activation == "none" for f in formula)
    for k, f in zip(kernel, formula, strict=True):
        torch.testing.assert_close(k, f, rtol=1e-11, atol=1e-11)
