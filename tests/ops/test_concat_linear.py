"""concat_linear against the formula: numbers, shapes, strides, gradients, memory, tracing."""

import gc

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mmfast.functional import ACTIVATIONS, concat_linear
from mmfast.ops import concat_linear as operators
from mmfast.ops.library import host

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Input shapes and out_features. Between them: 1 to 32 inputs, widths 0, 1, odd and large, every
# kind of batch, every broadcast, and each of the ways that the plan can choose.
CASES = {
    "one input": ([(7, 5)], 3),
    "one wide input": ([(300, 1025)], 65),
    "no batch": ([(5,), (7,)], 3),
    "no batch, wide": ([(1500,), (700,)], 96),
    "empty batch": ([(0, 5), (0, 7)], 3),
    "empty batch by broadcast": ([(0, 5), (1, 7)], 3),
    "batch of one": ([(1, 64), (1, 32)], 16),
    "tiny": ([(4, 3), (4, 5), (4, 1)], 9),
    "widths 0 and 1": ([(33, 0), (33, 1), (33, 2)], 5),
    "only width 0": ([(33, 0), (33, 0)], 5),
    "width 0 among wide": ([(64, 300), (64, 0), (64, 200)], 40),
    "no outputs": ([(3, 4), (3, 2)], 0),
    "one output": ([(200, 130), (200, 77)], 1),
    "two wide": ([(257, 512), (257, 300)], 70),
    "three wide": ([(100, 256), (100, 256), (100, 256)], 64),
    "wide and narrow": ([(150, 300), (150, 74), (150, 35), (150, 500)], 48),
    "26 narrow": ([(130, 16)] * 26, 33),
    "32 of one": ([(70, 1)] * 32, 24),
    "wide outputs": ([(40, 50), (40, 60)], 1100),
    "few rows, odd": ([(17, 301), (17, 75), (17, 513)], 71),
    "few rows, many inputs": ([(33, 11)] * 20 + [(33, 20)], 115),
    "as many as are few": ([(64, 600), (64, 2)], 141),
    "few rows, few outputs": ([(30, 700), (30, 3)], 20),
    "few distinct rows": ([(20, 30, 60), (20, 1, 555)], 77),
    "two batch dimensions": ([(3, 50, 150), (3, 50, 133)], 31),
    "vector over tokens": ([(6, 40, 96), (6, 1, 256)], 80),
    "vector over all": ([(90, 130), (150,)], 60),
    "row and column": ([(30, 1, 140), (1, 40, 150)], 50),
    "only repeated": ([(1, 200), (200,)], 300),
    "mixed broadcast": ([(8, 1, 30), (1, 9, 200), (9, 5), (8, 9, 150)], 40),
    "tiny broadcast": ([(3, 1, 4), (1, 5, 2), (3,)], 6),
    "broadcast in the middle": ([(5, 40, 20), (1, 40, 30), (5, 40, 25), (5, 1, 10)], 90),
    "many mixed": ([(20, 1, 9), (20, 30, 11)] * 8, 50),
}


def draw(shapes, cols, dtype, bias=True):
    width = sum(shape[-1] for shape in shapes)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    weight = (torch.randn(cols, width) / max(width, 1) ** 0.5).to(dtype)
    batch = torch.broadcast_shapes(*(shape[:-1] for shape in shapes))
    return inputs, weight, torch.randn(cols).to(dtype) if bias else None, (*batch, cols)


def check_numbers(shapes, cols, dtype, activation, bias=True):
    """Forward within 2 times PyTorch's error, gradients within 3 times; see ErrorRule."""
    rules = None
    seen = 0
    while rules is None or 0 < seen < 512:
        inputs, weight, bias_values, shape = draw(shapes, cols, dtype, bias)
        grad = torch.randn(shape).to(dtype)
        arguments = (inputs, weight, bias_values, grad)
        found = reference.run(concat_linear, *arguments, activation=activation)
        eager = reference.run(reference.eager_concat_linear, *arguments, activation=activation)
        exact = reference.run(
            reference.concat_linear, *arguments, dtype=torch.float64, activation=activation
        )
        if activation == "relu":
            # The derivative jumps at 0: judge each gradient at the side its own forward found.
            def at(result, arguments=arguments):
                *rest, g = arguments
                masked = g * (result > 0)
                return reference.run(reference.concat_linear, *rest, masked, torch.float64)[1:]

            exact_found, exact_eager = [exact[0], *at(found[0])], [exact[0], *at(eager[0])]
        else:
            exact_found = exact_eager = exact
        assert found[0].dtype == dtype
        rules = rules or [reference.ErrorRule(dtype) for _ in found]
        for rule, *values in zip(rules, found, exact_found, eager, exact_eager, strict=True):
            rule.add(*values)
        seen += found[0].numel()
    names = ["result", *(f"grad of inputs[{i}]" for i in range(len(shapes))), "grad of weight"]
    for i, rule in enumerate(rules):
        name = names[i] if i < len(names) else "grad of bias"
        rule.check(2 if i == 0 else 3, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_numbers(case, dtype):
    check_numbers(*CASES[case], dtype, "none")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_float64(case, activation):
    """There is no wider type to measure PyTorch's own error by: equal to 12 digits."""
    inputs, weight, bias, shape = draw(*CASES[case], torch.float64)
    arguments = (inputs, weight, bias, torch.randn(shape).double())
    found = reference.run(concat_linear, *arguments, activation=activation)
    exact = reference.run(reference.concat_linear, *arguments, activation=activation)
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", ["tiny", "two wide", "mixed broadcast"])
def test_activations(case, activation, dtype):
    check_numbers(*CASES[case], dtype, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "sigmoid"])
@pytest.mark.parametrize(
    "case", ["tiny", "wide and narrow", "mixed broadcast", "wide outputs", "few rows, odd"]
)
def test_instruction_sets(isa, case, activation, dtype):
    assert host.cpu_isa() == isa
    check_numbers(*CASES[case], dtype, activation)


@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16, 26, 40, 64])
def test_bfloat16_error_does_not_grow_with_the_inputs(isa, count, rows):
    """A chain of products rounds a partial sum per input; 26 inputs cost it a digit and more."""
    check_numbers([(rows, 24)] * count, 40, torch.bfloat16, "none")


@pytest.mark.parametrize("case", ["tiny", "two wide", "row and column", "only width 0"])
def test_without_bias(case):
    check_numbers(*CASES[case], torch.float32, "none", bias=False)
    check_numbers(*CASES[case], torch.float32, "gelu", bias=False)


def integers(shape, low, high, dtype):
    return torch.randint(low, high + 1, shape).to(dtype)


@st.composite
def problems(draw_from):
    """Shapes whose small-integer products every dtype holds exactly: sums stay within 256."""
    batch = draw_from(st.lists(st.integers(0, 6), max_size=3))
    shapes = []
    for _ in range(draw_from(st.integers(1, 32))):
        kept = draw_from(st.integers(0, len(batch)))
        tail = [size if draw_from(st.booleans()) else 1 for size in batch[len(batch) - kept :]]
        shapes.append((*tail, draw_from(st.sampled_from([0, 1, 2, 3, 5, 7]))))
    return shapes, draw_from(st.sampled_from([0, 1, 2, 3, 4, 7, 64, 129, 600]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    problem=problems(),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    isa=st.sampled_from(host.cpu_isas()),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "relu"]),
    transposed=st.booleans(),
)
def test_exact(problem, dtype, isa, bias, activation, transposed):
    """Where every sum is exact, the result is the nearest number there is: no tolerance at all."""
    shapes, cols = problem
    inputs = [integers(shape, -1, 1, dtype) for shape in shapes]
    if transposed:
        inputs = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    weight = integers((cols, sum(shape[-1] for shape in shapes)), -1, 1, dtype)
    bias_values = integers((cols,), -8, 8, dtype) if bias else None
    batch = torch.broadcast_shapes(*(shape[:-1] for shape in shapes))
    grad = integers((*batch, cols), -1, 1, dtype)
    if cols == 600:
        grad[..., 200:] = 0  # keeps sums over outputs exact
    arguments = (inputs, weight, bias_values, grad)
    host.force_cpu_isa(isa)
    try:
        found = reference.run(concat_linear, *arguments, activation=activation)
    finally:
        host.force_cpu_isa("")
    exact = reference.run(
        reference.concat_linear, *arguments, dtype=torch.float64, activation=activation
    )
    for f, x in zip(found, exact, strict=True):
        assert torch.equal(f, x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_gradient_over_many_blocks_of_rows(dtype):
    """More rows than one pass holds, an odd number of them: the sums of all are there, exactly."""
    rows, cols = 2501, 48
    inputs = [integers((rows, 64), -1, 1, dtype), integers((rows, 7), -1, 1, dtype)]
    weight, grad = integers((cols, 71), -1, 1, dtype), integers((rows, cols), -1, 1, dtype)
    found = reference.run(concat_linear, inputs, weight, None, grad)[-1]
    assert torch.equal(found.double(), grad.double().T @ torch.cat(inputs, 1).double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_gradient_of_an_odd_last_row(dtype):
    """Rows are multiplied two by two in 16 bits; beside the last one there is nothing."""
    x, weight = torch.ones(129, 64, dtype=dtype), torch.ones(48, 64, dtype=dtype)
    grad = torch.zeros(129, 48, dtype=dtype)
    grad[-1] = torch.inf
    found = reference.run(concat_linear, [x], weight, None, grad)[-1]
    assert (found == torch.inf).all()


CLOSE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.02, torch.float16: 2e-3}


def strided_inputs(m, k, dtype):
    """The ways in which rows can lie in memory."""
    wide = torch.randn(m, 3 * k).to(dtype)
    return [
        torch.randn(k, m).to(dtype).t(),
        wide[:, k : 2 * k],
        wide[:, 2 * k :],  # next to each other in the weight: gathered together where narrow
        torch.randn(m, 2 * k).to(dtype)[:, ::2],
        torch.randn(1, k).to(dtype).expand(m, k),
        torch.randn(m, 1).to(dtype).expand(m, k),
        torch.randn(2 * m + k).to(dtype).unfold(0, k, 2)[:m],  # rows overlap
    ]


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(6, 5, 4), (130, 24, 33), (120, 200, 90)], ids=["tiny", "narrow", "wide"]
)
def test_strides(isa, m, k, n, dtype):
    """Transposed, sliced, overlapping and expanded arguments give what their copies give."""
    inputs = strided_inputs(m, k, dtype)
    weight = (torch.randn(len(inputs) * k, n) / k**0.5).to(dtype).t()
    bias = torch.randn(2 * n).to(dtype)[::2]
    grad = torch.randn(n, m).to(dtype).t()
    for activation in ("none", "silu"):
        found = reference.run(concat_linear, inputs, weight, bias, grad, activation=activation)
        *copies, w, b, g = [x.contiguous() for x in (*inputs, weight, bias, grad)]
        same = reference.run(concat_linear, copies, w, b, g, activation=activation)
        for f, s in zip(found, same, strict=True):
            torch.testing.assert_close(f, s, rtol=CLOSE[dtype], atol=CLOSE[dtype] * k**0.5)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(6, 5, 4), (130, 140, 33), (40, 200, 1)], ids=str)
@pytest.mark.parametrize("rows", ["one", "overlapping"])
def test_weight_rows_that_share_memory(isa, rows, m, k, n, dtype):
    """A weight that is one row expanded, or whose rows overlap, gives what its copy gives."""
    inputs = [torch.randn(m, k).to(dtype), torch.randn(m, 3).to(dtype)]
    width = k + 3
    values = (torch.randn(width + n) / k**0.5).to(dtype)
    weight = values[:width].expand(n, width) if rows == "one" else values.unfold(0, width, 1)[:n]
    assert weight.shape == (n, width)
    grad = torch.randn(m, n).to(dtype)
    found = reference.run(concat_linear, inputs, weight, None, grad)
    same = reference.run(concat_linear, inputs, weight.contiguous(), None, grad)
    for f, s in zip(found, same, strict=True):
        torch.testing.assert_close(f, s, rtol=CLOSE[dtype], atol=CLOSE[dtype] * k**0.5)


@pytest.mark.parametrize("shape", [(60, 1), (1, 70), (60, 70)], ids=str)
def test_expanded_like_broadcast(shape):
    """An input expanded by the caller and one that broadcasts are the same function."""
    x = torch.randn(*shape, 130, dtype=torch.float64)
    other = torch.randn(60, 70, 30, dtype=torch.float64)
    weight = torch.randn(20, 160, dtype=torch.float64)
    expanded = concat_linear([x.expand(60, 70, 130), other], weight)
    torch.testing.assert_close(expanded, concat_linear([x, other], weight))
    torch.testing.assert_close(expanded, reference.concat_linear([x, other], weight, None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("expanded", [(1, 40), (30, 1)], ids=str)
def test_expanded_and_broadcasting(isa, expanded, dtype):
    """One row for the product and the weight's gradient, but a gradient per row of the input."""
    x = torch.randn(1, 1, 140).to(dtype).expand(*expanded, 140)
    other = torch.randn(30, 40, 20).to(dtype)
    weight, grad = torch.randn(24, 160).to(dtype), torch.randn(30, 40, 24).to(dtype)
    found = reference.run(concat_linear, [x, other], weight, None, grad)
    exact = reference.run(reference.concat_linear, [x, other], weight, None, grad, torch.float64)
    assert found[1].shape == (*expanded, 140)
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=CLOSE[dtype], atol=10 * CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_gradients_are_summed_in_float32(isa, dtype):
    """Sums that get stuck at the first value if the running total is rounded to 16 bits."""
    stuck = 2 / torch.finfo(dtype).eps  # adding 1 to it is lost to rounding
    grad = torch.ones(512, 64).to(dtype)
    grad[::16] = stuck
    grad[256:] = 0
    weight = torch.eye(64).to(dtype)
    inputs = [torch.zeros(512, 40).to(dtype), torch.zeros(1, 24).to(dtype)]
    found = reference.run(concat_linear, inputs, weight, torch.zeros(64).to(dtype), grad)
    total = (16 * (stuck + 15) * torch.ones(64)).to(dtype)  # exact in float32, rounded once
    assert total[0] != 16 * stuck
    assert torch.equal(found[4], total)
    assert torch.equal(found[2], total[None, :24])


@pytest.mark.parametrize("case", ["tiny", "two wide", "mixed broadcast"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_stride_0_gradient(case, activation):
    """What ``.sum().backward()`` sends: one number, expanded."""
    inputs, weight, bias, shape = draw(*CASES[case], torch.float64)
    ones = torch.ones((), dtype=torch.float64).expand(shape)
    assert not any(ones.stride())
    found = reference.run(concat_linear, inputs, weight, bias, ones, activation=activation)
    exact = reference.run(
        reference.concat_linear, inputs, weight, bias, ones, None, activation=activation
    )
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x)


class Calls(TorchDispatchMode):
    """Records which gradients the backward operator is asked for."""

    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mmfast.concat_linear_backward.default:
            self.wanted.append(list(args[7]))
        return func(*args, **(kwargs or {}))


@pytest.mark.cpu_only
def test_a_weight_of_no_interest_is_not_read():
    """Without an input's gradient the weight is a shape: of 2^42 elements here, not copied."""
    x, grad = torch.ones(1, 2**20), torch.ones(1, 2**22)
    weight = torch.empty_strided((2**22, 2**20), (0, 0))
    (bias_grad,) = operators.backward(grad, [x], weight, weight, [], [], "none", [2])
    assert torch.equal(bias_grad, grad[0])


@pytest.mark.parametrize("case", ["tiny", "two wide"])
@pytest.mark.parametrize("needed", [(1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 1)])
def test_only_needed_gradients(case, needed):
    shapes, cols = CASES[case]
    inputs, weight, bias, shape = draw(shapes[:2], cols, torch.float64)
    leaves = [
        x.requires_grad_(bool(n)) for x, n in zip((*inputs, weight, bias), needed, strict=True)
    ]
    with Calls() as calls:
        concat_linear(leaves[:2], leaves[2], leaves[3]).backward(torch.ones(shape).double())
    assert calls.wanted == [[i for i, n in enumerate(needed) if n]]
    exact = reference.run(reference.concat_linear, inputs, weight, bias, torch.ones(shape))
    for leaf, x, n in zip(leaves, exact[1:], needed, strict=True):
        if n:
            torch.testing.assert_close(leaf.grad, x)
        else:
            assert leaf.grad is None


def test_no_gradient_needed():
    inputs, weight, bias, _ = draw([(5, 3), (5, 4)], 6, torch.float32)
    assert not concat_linear(inputs, weight, bias).requires_grad
    weight.requires_grad_()
    with torch.no_grad():
        assert not concat_linear(inputs, weight, bias).requires_grad
    with torch.inference_mode():
        assert concat_linear(inputs, weight, bias).is_inference()


def test_same_tensor_twice():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 8, dtype=torch.float64)
    (found,) = torch.autograd.grad(concat_linear([x, x], weight).square().sum(), x)
    (exact,) = torch.autograd.grad((torch.cat([x, x], -1) @ weight.t()).square().sum(), x)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("activation", ["none", "tanh", "gelu"])
@pytest.mark.parametrize("place", ["two inputs", "input and weight"])
def test_same_tensor_twice_double_backward(place, activation):
    """Its two gradients are added, neither counted twice, and so are theirs."""
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    inputs, weight = ([x, x], torch.randn(3, 8).double()) if place == "two inputs" else ([x], x)

    def gradients(function):
        result = function(inputs, weight, None, activation=activation)
        (first,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return first.detach(), second

    found, exact = gradients(concat_linear), gradients(reference.concat_linear)
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "shapes", [[(3, 2), (3, 1)], [(2, 1, 2), (1, 3, 2), (2,)], [(2,), (3,)]], ids=str
)
def test_gradcheck(activation, shapes):
    inputs, weight, bias, _ = draw(shapes, 3, torch.float64)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]

    def function(*tensors):
        *xs, w, b = tensors
        return concat_linear(xs, w, b, activation=activation)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_gradcheck_library_products():
    """The same for a problem beyond the tiny ones, in one random direction."""
    inputs, weight, bias, _ = draw([(20, 1, 130), (1, 9, 64), (20, 9, 40)], 24, torch.float64)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    function = lambda *t: concat_linear(t[:3], t[3], t[4], activation="gelu")  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_deterministic():
    for case in ("26 narrow", "mixed broadcast", "tiny"):
        inputs, weight, bias, shape = draw(*CASES[case], torch.float32)
        grad = torch.randn(shape)
        first = reference.run(concat_linear, inputs, weight, bias, grad, activation="silu")
        again = reference.run(concat_linear, inputs, weight, bias, grad, activation="silu")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "gelu", "silu"])
def test_special_values(activation):
    """NaN and infinity come out where the formula has them, and nowhere else."""
    inf = float("inf")
    values = torch.tensor([float("nan"), inf, -inf, 0.0, -0.0, 1e30, -1e30, 80.0, -80.0])
    for dtype in (torch.float32, torch.bfloat16):
        x = values.to(dtype)[:, None]
        found = concat_linear([x], torch.ones(1, 1, dtype=dtype), activation=activation)
        exact = reference.EAGER_ACTIVATIONS[activation](x.double())
        torch.testing.assert_close(found.double(), exact, equal_nan=True, rtol=0.01, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_conversions(isa, dtype):
    """Every 16-bit value comes through the kernels' widening and narrowing with its own bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for values in bits.view(dtype)[:, None].split(64):  # few enough for the own loop
        found = concat_linear([values], torch.ones(1, 1, dtype=dtype), activation="relu")
        exact = torch.relu(values)
        assert torch.equal(found.isnan(), exact.isnan())
        assert torch.equal(found.nan_to_num(7.0), exact.nan_to_num(7.0))


# ------------------------------------------------------------------------------------------ memory


def allocations(function):
    """Bytes of every allocation that torch makes while ``function`` runs."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        function()
    events = profile.profiler.kineto_results.experimental_event_tree()
    found = []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.name == "[memory]" and event.extra_fields.alloc_size > 0:
            found.append(event.extra_fields.alloc_size)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", [(512, 300), (64,) * 16], ids=["wide", "narrow"])
def test_concatenation_is_not_allocated(widths, dtype):
    rows, cols = 4096, 8
    inputs, weight, bias, shape = draw([(rows, k) for k in widths], cols, dtype)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    grad = torch.randn(shape).to(dtype)
    concatenation = rows * sum(widths) * weight.element_size()

    def step(function):
        function(leaves[:-2], *leaves[-2:], activation="gelu").backward(grad)

    for leaf in leaves:  # gradients exist already: what is left are the operators' own
        leaf.grad = torch.zeros_like(leaf)
    assert max(allocations(lambda: step(reference.eager_concat_linear))) >= concatenation
    assert max(allocations(lambda: step(concat_linear))) < 0.7 * concatenation
    # Forward on its own: the result, the value before the activation, the library's own scratch.
    forward = allocations(lambda: concat_linear(leaves[:-2], *leaves[-2:], activation="gelu"))
    assert max(forward) < 0.05 * concatenation


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_kept_for_backward(activation):
    inputs, weight, bias, shape = draw([(50, 30), (50, 20)], 40, torch.float32)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        result = concat_linear(inputs, weight, bias, activation=activation)
    given = {x.data_ptr() for x in leaves}
    own = [x for x in kept if x.data_ptr() not in given]
    assert [x.shape for x in own] == ([] if activation == "none" else [torch.Size(shape)])
    assert {x.data_ptr() for x in (*inputs, weight)} <= {x.data_ptr() for x in kept}
    if activation == "relu":
        assert own[0].data_ptr() == result.data_ptr()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("rows", [4, 300], ids=["tiny", "big"])
def test_nothing_kept_without_grad(rows, mode):
    """Parameters ask for gradients, the mode does not: the result is all that is allocated."""
    inputs, weight, bias, shape = draw([(rows, 30), (rows, 20)], 40, torch.float32)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]
    result_size = 4 * shape[0] * shape[1]
    call = lambda: concat_linear(leaves[:2], *leaves[2:], activation="gelu")  # noqa: E731
    call()  # scratch and library warmed up
    assert allocations(call).count(result_size) == 2  # what the count must see with gradients
    with mode():
        assert allocations(call).count(result_size) == 1


def test_nothing_leaks():
    inputs, weight, bias, _ = draw([(64, 3, 30), (64, 1, 20)], 40, torch.float32)
    leaves = [x.requires_grad_() for x in (*inputs, weight, bias)]

    def tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    def step():
        concat_linear(inputs, weight, bias, activation="gelu").sum().backward()
        for leaf in leaves:
            leaf.grad = None

    step()
    before = tensors()
    for _ in range(20):
        step()
    assert tensors() == before


# ----------------------------------------------------------------------------------------- tracing

OPCHECK = [
    (shapes, activation, dtype)
    for shapes in (
        [(4, 3), (4, 5)],
        [(2, 1, 3), (1, 4, 2), (2, 4, 1)],
        [(0, 3), (0, 2)],
        [(90, 200), (90, 60)],
    )
    for activation in ("none", "relu", "gelu")
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("shapes", "activation", "dtype"), OPCHECK, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_opcheck(shapes, activation, dtype, grad):
    inputs, weight, bias, _ = draw(shapes, 6, dtype)
    leaves = [x.requires_grad_(grad) for x in (*inputs, weight, bias)]
    torch.library.opcheck(
        torch.ops.mmfast.concat_linear.default,
        (leaves[:-2], *leaves[-2:], [], [], activation, grad),
    )
    torch.library.opcheck(
        torch.ops.mmfast.concat_linear.no_autograd,
        ([x.detach() for x in inputs], weight.detach(), None, [], [], activation, grad),
    )


@pytest.mark.parametrize("code", range(len(ACTIVATIONS)), ids=ACTIVATIONS)
def test_plain_operator(code):
    """The operator of few arguments is the other one, and knows activations by their place."""
    inputs, weight, bias, _ = draw([(2, 1, 3), (1, 4, 2)], 6, torch.float32)
    arguments = (inputs, weight, bias)
    torch.library.opcheck(torch.ops.mmfast.concat_linear_plain.default, (*arguments, code))
    expected, _ = torch.ops.mmfast.concat_linear.default(
        *arguments, [], [], ACTIVATIONS[code], False
    )
    found = torch.ops.mmfast.concat_linear_plain.default(*arguments, code)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_opcheck_backward(activation):
    inputs, weight, _, shape = draw([(2, 1, 3), (1, 4, 2), (2, 4, 1)], 6, torch.float32)
    grad, saved = torch.randn(shape), torch.randn(shape)
    for wanted in ([0, 1, 2, 3, 4], [1], [], [4, 0]):
        torch.library.opcheck(
            torch.ops.mmfast.concat_linear_backward.default,
            (grad, inputs, weight, saved, [], [], activation, wanted),
        )


def test_operator_has_autograd_of_its_own():
    """Direct calls and exported programs are differentiable too."""
    inputs, weight, bias, shape = draw([(4, 3), (4, 5)], 6, torch.float64)
    grad = torch.randn(shape, dtype=torch.float64)

    def operator(xs, w, b):
        return torch.ops.mmfast.concat_linear.default(xs, w, b, [], [], "gelu", True)[0]

    found = reference.run(operator, inputs, weight, bias, grad)
    exact = reference.run(reference.concat_linear, inputs, weight, bias, grad, activation="gelu")
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x)
    weight.requires_grad_()
    outputs = torch.ops.mmfast.concat_linear.default(inputs, weight, bias, [], [], "gelu", True)
    assert [x.shape for x in outputs] == [shape, shape]
    assert [x.requires_grad for x in outputs] == [True, False]  # the second is for backward alone
    with pytest.raises(Exception, match="training must be True"):
        torch.ops.mmfast.concat_linear.default(inputs, weight, bias, [], [], "gelu", False)
