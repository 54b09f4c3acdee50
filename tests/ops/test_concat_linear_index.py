"""concat_linear with inputs whose rows an index picks, as on the edges of a graph."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.functional import ACTIVATIONS, concat_linear
from mmfast.nn import ConcatLinear
from mmfast.ops.library import host

# Per input: (rows, features), and the shape of its index or None for a plain input.
CASES = {
    "tiny edges": ([((5, 3), (12,)), ((5, 3), (12,)), ((12, 2), None)], 4),
    "edges": ([((80, 100), (900,)), ((80, 100), (900,)), ((900, 16), None)], 64),
    "more rows than entries": ([((5000, 40), (300,)), ((300, 30), None)], 70),
    "a few more rows": ([((250, 40), (300,)), ((300, 30), None)], 70),
    "index broadcasts": ([((50, 90), (1, 40)), ((30, 40, 60), None)], 48),
    "index of two dimensions": ([((20, 33), (15, 40)), ((40, 21), None)], 90),
    "one row": ([((1, 200), (400,)), ((400, 100), None)], 32),
    "all indexed": ([((30, 120), (200,)), ((40, 80), (200,))], 60),
    "0-d index": ([((7, 5), ()), ((9, 3), (4,))], 6),
    "no entries": ([((7, 5), (0,)), ((1, 3), None)], 6),
}


def draw(specs, cols, dtype):
    inputs = [torch.randn(shape).to(dtype) for shape, _ in specs]
    index = [
        None if entries is None else torch.randint(0, shape[0], entries) for shape, entries in specs
    ]
    width = sum(shape[-1] for shape, _ in specs)
    weight = (torch.randn(cols, width) / width**0.5).to(dtype)
    return inputs, index, weight, torch.randn(cols).to(dtype)


def picking(function, index):
    """The reference: pick first, then compute."""

    def picked(inputs, weight, bias, **options):
        inputs = [x if i is None else x[i] for x, i in zip(inputs, index, strict=True)]
        return function(inputs, weight, bias, **options)

    return picked


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_numbers(isa, case, dtype, activation):
    specs, cols = CASES[case]
    rules, seen = None, 0
    while rules is None or 0 < seen < 512:
        inputs, index, weight, bias = draw(specs, cols, dtype)
        found = concat_linear(inputs, weight, bias, index=index, activation=activation)
        arguments = (inputs, weight, bias, torch.randn(found.shape).to(dtype))
        options = {"activation": activation}
        found = reference.run(
            lambda *a, i=index, **o: concat_linear(*a, index=i, **o), *arguments, **options
        )
        eager = picking(reference.eager_concat_linear, index)
        exact = picking(reference.concat_linear, index)
        eager = reference.run(eager, *arguments, **options)
        exact = reference.run(exact, *arguments, dtype=torch.float64, **options)
        rules = rules or [reference.ErrorRule(dtype) for _ in found]
        for rule, f, e, x in zip(rules, found, eager, exact, strict=True):
            rule.add(f, x, e, x)
        seen += found[0].numel()
    for i, rule in enumerate(rules):
        rule.check(2 if i == 0 else 3, f"result {i}")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    entries=st.integers(0, 50),
    indexed=st.lists(st.booleans(), min_size=5, max_size=5),
    width=st.integers(0, 9),
    cols=st.sampled_from([1, 7, 33, 200]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    isa=st.sampled_from(host.cpu_isas()),
    seed=st.integers(0, 1000),
)
def test_exact(rows, entries, indexed, width, cols, dtype, isa, seed):
    """Small integers: every sum is exact, so must the results be."""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape):
        return torch.randint(-1, 2, shape, generator=generator).to(dtype)

    index = [
        torch.randint(0, r, (entries,), generator=generator) if use else None
        for r, use in zip(rows, indexed[: len(rows)], strict=True)
    ]
    inputs = [
        integers(entries if i is None else r, width) for r, i in zip(rows, index, strict=True)
    ]
    grad = integers(entries, cols)
    grad[:, 100:] = 0
    arguments = (inputs, integers(cols, width * len(rows)), integers(cols), grad)
    host.force_cpu_isa(isa)
    try:
        found = reference.run(lambda *a: concat_linear(*a, index=index), *arguments)
    finally:
        host.force_cpu_isa("")
    exact = picking(reference.concat_linear, index)
    for f, x in zip(found, reference.run(exact, *arguments, dtype=torch.float64), strict=True):
        assert torch.equal(f.double(), x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    inputs, index, weight, bias = draw(*CASES["tiny edges"], torch.float64)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]

    def function(*tensors):
        *xs, w, b = tensors
        return concat_linear(xs, w, b, index=index, activation=activation)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_deterministic():
    inputs, index, weight, bias = draw(*CASES["edges"], torch.float32)
    grad = torch.randn(900, 64)
    runs = [
        reference.run(lambda *a: concat_linear(*a, index=index), inputs, weight, bias, grad)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_opcheck_and_compile():
    inputs, index, weight, bias = draw(*CASES["tiny edges"], torch.float32)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    arguments = (leaves[:3], *leaves[3:], index[:2], [0, 1], "gelu", True)
    torch.library.opcheck(torch.ops.mmfast.concat_linear.default, arguments)
    torch._dynamo.reset()
    function = lambda xs, i: concat_linear(xs, weight, bias, index=i)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(inputs, index), function(inputs, index))
    compiled(inputs, index).sum().backward()
    found, inputs[0].grad = inputs[0].grad, None
    function(inputs, index).sum().backward()
    assert torch.equal(inputs[0].grad, found)


def test_int32_and_strided_index():
    inputs, index, weight, bias = draw(*CASES["edges"], torch.float32)
    plain = concat_linear(inputs, weight, bias, index=index)
    index = [index[0].int(), torch.stack([index[1], index[1]], 1)[:, 1], None]
    assert torch.equal(concat_linear(inputs, weight, bias, index=index), plain)


def test_module():
    layer = ConcatLinear({"source": 3, "target": 3, "edge": 2}, 4)
    inputs, index, *_ = draw(*CASES["tiny edges"], torch.float32)
    plain = layer(inputs, index=index)
    names = ("source", "target", "edge")
    by_name = {"target": index[1], "source": index[0]}
    named = layer(dict(zip(names, inputs, strict=True)), index=by_name)
    assert torch.equal(plain, named)
    with pytest.raises(ValueError, match=r"index has the names \['nodes'\]"):
        layer(dict(zip(names, inputs, strict=True)), index={"nodes": index[0]})


X, E, W = torch.ones(5, 3), torch.ones(4, 2), torch.ones(6, 5)
WRONG = {
    "negative": (
        [torch.tensor([0, -1, 2, 3]), None],
        IndexError,
        r"index\[0\] holds -1; .* 0 .. 4",
    ),
    "beyond": ([torch.tensor([0, 1, 2, 5]), None], IndexError, r"index\[0\] holds 5; .* 0 .. 4"),
    "floating": ([torch.ones(4), None], TypeError, r"index\[0\] has dtype torch.float32; .*int64"),
    "bool": ([torch.ones(4).bool(), None], TypeError, r"index\[0\] has dtype torch.bool"),
    "list": ([[0, 1, 2, 3], None], TypeError, r"index\[0\] must be a tensor or None, got list"),
    "tensor": (torch.zeros(4).long(), TypeError, "index must be a sequence .* got Tensor"),
    "count": ([torch.zeros(4).long()], ValueError, "index has 1 entries but there are 2 inputs"),
    "shape": (
        [torch.zeros(3).long(), None],
        ValueError,
        r"do not broadcast together: \(3,\), \(4,\)",
    ),
    "device": ([torch.zeros(4, device="meta").long(), None], ValueError, r"index\[0\] is on meta"),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.cpu_only
def test_wrong_index(name, grad):
    index, exception, message = WRONG[name]
    with pytest.raises(exception, match=message):
        concat_linear([X, E], W.clone().requires_grad_(grad), index=index)


def test_indexed_input_must_be_2d():
    with pytest.raises(ValueError, match=r"inputs\[0\] has shape \(2, 5, 3\).*must be 2-d"):
        concat_linear([torch.ones(2, 5, 3), E], W, index=[torch.zeros(4).long(), None])
