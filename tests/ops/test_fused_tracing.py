"""weighted_sum, attention_pool, gated_sum, rank_product: compilers, transforms, other devices."""

import pytest
import torch
from fused_cases import VARIANTS, Size, draw_present, run
from torch import nn
from torch.autograd import forward_ad

from mmfast import functional

SMALL = Size((4,), 3, 6)
ONE_OF_EACH = {v.operator: name for name, v in reversed(VARIANTS.items())}.values()

each_variant = pytest.mark.parametrize("name", VARIANTS)
each_operator = pytest.mark.parametrize("name", ONE_OF_EACH)
with_present = pytest.mark.parametrize("some", [False, True], ids=["all present", "some absent"])


def problem(name, size=SMALL, some=True, dtype=torch.float32):
    variant = VARIANTS[name]
    tensors = [x.to(dtype) for x in variant.draw(size)]
    return variant, tensors, draw_present(size) if some else None


def total(results):
    return sum((y * y.cos()).sum() for y in results)


def overload(variant, name="default"):
    return getattr(getattr(torch.ops.mmfast, variant.operator), name)


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("size", [SMALL, Size((0,), 2, 3), Size((2, 3), 1, 4)], ids=str)
@with_present
@each_variant
def test_opcheck(name, some, size):
    variant, tensors, present = problem(name, size, some)
    torch.library.opcheck(overload(variant, "no_autograd"), variant.arguments(tensors, present))
    leaves = [transposed(x).requires_grad_() for x in tensors]
    torch.library.opcheck(overload(variant), variant.arguments(leaves, present))


@with_present
@each_variant
def test_opcheck_backward(name, some):
    variant, tensors, present = problem(name, some=some)
    grads = [torch.randn(y.shape) for y in variant.call(tensors, present)]
    backward = getattr(torch.ops.mmfast, f"{variant.operator}_backward").default
    last = len(tensors) - 1
    for wanted in (list(range(last + 1)), [1], [], [last, 0]):
        arguments = (*grads, *variant.arguments([transposed(x) for x in tensors], present), wanted)
        torch.library.opcheck(backward, arguments)


@with_present
@each_variant
def test_operator_has_autograd_of_its_own(name, some):
    """Direct calls and exported programs are differentiable too."""
    variant, tensors, present = problem(name, some=some, dtype=torch.float64)
    grads = [torch.randn(y.shape).double() for y in variant.call(tensors, present)]

    def operator(leaves, there):
        found = overload(variant)(*variant.arguments(leaves, there))
        return found if isinstance(found, tuple) else (found,)

    found = run(operator, tensors, present, grads)
    exact = run(variant.exact, tensors, present, grads)
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x, rtol=1e-10, atol=1e-10)


@with_present
@each_variant
def test_compile(name, some):
    """One graph, without breaks, for every batch size, forward and backward: the same bits."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    torch._dynamo.reset()
    variant = VARIANTS[name]
    compiled = torch.compile(variant.call, fullgraph=True, dynamic=True, backend=backend)
    for rows in (11, 13, 31):  # unlike any other size: equal ones would be taken for one
        variant, tensors, present = problem(name, Size((rows,), 3, 6, 5), some)
        grads = [torch.randn(y.shape) for y in variant.call(tensors, present)]
        found = run(compiled, tensors, present, grads)
        eager = run(variant.call, tensors, present, grads)
        assert all(torch.equal(f, e) for f, e in zip(found, eager, strict=True))
    assert len(graphs) == 1
    assert overload(variant) in [node.target for node in graphs[0].graph.nodes]


def test_compile_inductor():
    """All four in one graph, over inputs that do not lie row by row."""
    torch._dynamo.reset()
    problems = [problem(name, Size((5,), 2, 6)) for name in ONE_OF_EACH]

    def function(moved):
        found = []
        for (variant, _, present), tensors in zip(problems, moved, strict=True):
            found.extend(variant.call([x.sin() for x in tensors], present))
        return total(y.tanh() for y in found)

    moved = [[transposed(x).requires_grad_() for x in tensors] for _, tensors, _ in problems]
    leaves = [x for tensors in moved for x in tensors]
    compiled = torch.compile(function, fullgraph=True)(moved)
    eager = function(moved)
    torch.testing.assert_close(compiled, eager)
    found, exact = torch.autograd.grad(compiled, leaves), torch.autograd.grad(eager, leaves)
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x, rtol=1e-4, atol=1e-4)


class Wrapped(nn.Module):
    def __init__(self, variant):
        super().__init__()
        self.variant = variant

    def forward(self, tensors, present):
        return self.variant.call(tensors, present)


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
@each_variant
def test_export(name, strict):
    variant, tensors, present = problem(name, Size((5,), 3, 6))
    rows = torch.export.Dim("rows", min=2, max=4096)
    by_row = [{0: rows} if x.shape[0] == 5 else None for x in tensors]
    program = torch.export.export(
        Wrapped(variant), (tensors, present), dynamic_shapes=(by_row, {0: rows}), strict=strict
    )
    assert f"mmfast.{variant.operator}" in str(program.graph)
    variant, tensors, present = problem(name, Size((9,), 3, 6))
    leaves = [x.requires_grad_() for x in tensors]
    found, exact = program.module()(leaves, present), variant.call(leaves, present)
    assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))
    gradients = [torch.autograd.grad(total(y), leaves) for y in (found, exact)]
    assert all(torch.equal(f, e) for f, e in zip(*gradients, strict=True))


@each_operator
def test_export_ties_the_batch_to_nothing(name):
    """What broadcasts over the rows says nothing about how many there are."""
    variant, tensors, _ = problem(name, Size((5,), 3, 6))
    tensors[1] = tensors[1][0]
    present = torch.tensor([True, False, True])
    rows = torch.export.Dim("rows", min=2, max=4096)
    by_row = [{0: rows} if i != 1 and x.shape[0] == 5 else None for i, x in enumerate(tensors)]
    program = torch.export.export(
        Wrapped(variant), (tensors, present), dynamic_shapes=(by_row, None)
    )
    for count in (2, 3, 6, 18):
        _, others, _ = problem(name, Size((count,), 3, 6))
        others[1] = tensors[1]
        assert torch.equal(program.module()(others, present)[0], variant.call(others, present)[0])


def test_export_of_weights_per_row_needs_no_per():
    class Mean(nn.Module):
        def forward(self, x, y, weights):
            return functional.weighted_sum([x, y], weights)

    x, y, weights = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5, 2)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(Mean(), (x, y, weights), dynamic_shapes=({0: rows},) * 3)
    assert torch.equal(program.module()(x[:2], y[:2], weights[:2]), Mean()(x, y, weights)[:2])


# --------------------------------------------------------------------------------------- transforms


@with_present
@each_variant
def test_func(name, some):
    """grad, jvp, dual numbers and vmap, in eager mode and while compiling."""
    variant, tensors, present = problem(name, some=some, dtype=torch.float64)
    tangents = [torch.randn_like(x) for x in tensors]

    def gradients(function):
        return torch.func.grad(lambda xs: total(function(xs, present)))(tensors)

    def tangent(function):
        return torch.func.jvp(lambda *xs: function(xs, present), tuple(tensors), tuple(tangents))[1]

    def each_row(function):
        by_row = [0 if x.shape[0] == 4 and x.dim() > 1 else None for x in tensors]
        dims = (by_row, None if present is None else 0)
        return torch.func.vmap(function, in_dims=dims)(tensors, present)

    for transform in (gradients, tangent, each_row):
        exact = transform(variant.exact)
        torch._dynamo.reset()
        compiled = torch.compile(transform, backend="aot_eager")
        for found in (transform(variant.call), compiled(variant.call)):
            for f, x in zip(found, exact, strict=True):
                torch.testing.assert_close(f, x, rtol=1e-10, atol=1e-10)
    exact = tangent(variant.exact)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(tensors, tangents, strict=True)]
        results = variant.call(duals, present)
        for y, x in zip(results, exact, strict=True):
            torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, x, rtol=1e-10, atol=1e-10)


@each_operator
def test_transforms_check_arguments(name):
    variant, tensors, _ = problem(name)
    present = torch.ones(4, 3)
    with pytest.raises(TypeError, match=r"present has dtype torch.float32"):
        torch.func.grad(lambda xs: total(variant.call(xs, present)))(tensors)


# ----------------------------------------------------------------------------- autocast and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_variant
def test_autocast(name, dtype):
    """As if everything were converted first; gradients arrive in the dtype of what they are of."""
    variant, tensors, present = problem(name)
    mixed = [x.to(dtype) if i == 1 else x for i, x in enumerate(tensors)]
    leaves = [x.requires_grad_() for x in mixed]
    with torch.autocast("cpu", dtype=dtype):
        found = variant.call(leaves, present)
    converted = [x.to(dtype) for x in leaves]
    exact = variant.call(converted, present)
    assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))
    assert all(y.dtype == dtype for y in found)
    gradients = torch.autograd.grad(total(found), leaves)
    assert [x.dtype for x in gradients] == [x.dtype for x in mixed]


@each_variant
def test_autocast_leaves_float64_alone(name):
    variant, tensors, present = problem(name, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(y.dtype == torch.float64 for y in variant.call(tensors, present))


@each_operator
def test_compile_autocast(name):
    torch._dynamo.reset()
    variant, tensors, present = problem(name)

    def function(xs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return variant.call(xs, present)

    found = torch.compile(function, fullgraph=True, backend="aot_eager")(tensors)
    assert all(torch.equal(f, e) for f, e in zip(found, function(tensors), strict=True))


@with_present
@each_variant
def test_meta_device(name, some):
    variant, tensors, present = problem(name, some=some)
    real = variant.call(tensors, present)
    leaves = [x.to("meta").requires_grad_() for x in tensors]
    results = variant.call(leaves, None if present is None else present.to("meta"))
    for y, x in zip(results, real, strict=True):
        assert y.is_meta
        assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    gradients = torch.autograd.grad(total(results), leaves)
    assert all(g.is_meta and g.shape == x.shape for g, x in zip(gradients, leaves, strict=True))


@each_variant
def test_lazily_negated_inputs(name):
    """A view that PyTorch has yet to negate is read as what it means."""
    variant, tensors, present = problem(name)
    negated = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in tensors]
    assert all(x.is_neg() for x in negated)
    found, exact = variant.call(negated, present), variant.call(tensors, present)
    assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))
