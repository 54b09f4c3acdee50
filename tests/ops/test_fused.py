"""weighted_sum, attention_pool, gated_sum, rank_product: numbers, strides, what is absent."""

import pytest
import reference
import torch
from fused_cases import SIZES, VARIANTS, Size, draw_present, run

from mmfast import functional
from mmfast.ops.library import host

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EACH = {v.operator: v for v in reversed(VARIANTS.values())}  # a variant of each operator

each_variant = pytest.mark.parametrize("name", VARIANTS)
with_present = pytest.mark.parametrize("some", [False, True], ids=["all present", "some absent"])


def problem(name, size, some, dtype=torch.float64):
    """The variant, its tensors, what is present, and gradients of its results."""
    variant = VARIANTS[name]
    tensors = [x.to(dtype) for x in variant.draw(size)]
    present = draw_present(size) if some else None
    grads = [torch.randn(y.shape).to(dtype) for y in run(variant.call, tensors, present)]
    return variant, tensors, present, grads


def same_bits(found, expected):
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
@with_present
@each_variant
def test_float64(name, some, size):
    variant, tensors, present, grads = problem(name, SIZES[size], some)
    found = run(variant.call, tensors, present, grads)
    exact = run(variant.exact, tensors, present, grads)
    for f, x in zip(found, exact, strict=True):
        torch.testing.assert_close(f, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_variant
def test_numbers(isa, name, dtype):
    """Results within 2 times PyTorch's error, gradients within 3 times; see ErrorRule."""
    assert host.cpu_isa() == isa
    for size in SIZES.values():
        if 0 in (*size.batch, size.cols):
            continue
        rules, seen, draws = {}, {}, 0
        while draws < 6 or any(n < (600 if f == 2 else 120) for (f, _), n in seen.items()):
            draws += 1
            variant, tensors, present, grads = problem(name, size, draws % 2 == 0, dtype)
            found = run(variant.call, tensors, present, grads)
            eager = run(variant.eager, tensors, present, grads)
            exact = run(variant.exact, tensors, present, grads, torch.float64)
            kinds = [(2, f"result {i}") for i in range(len(grads))]
            # The inputs' gradients are judged together: few numbers each make an unsure measure.
            kinds += [(3, f"gradient, {tuple(x.shape)}") for x in tensors]
            for kind, f, e, x in zip(kinds, found, eager, exact, strict=True):
                assert f.dtype == dtype
                assert f.isfinite().all()  # a NaN would compare as no error
                rules.setdefault(kind, reference.ErrorRule(dtype)).add(f, x, e, x)
                seen[kind] = seen.get(kind, 0) + f.numel()
        for (factor, what), rule in rules.items():
            rule.check(factor, f"{size}: {what}")


@with_present
@each_variant
def test_instruction_sets_in_float64(isa, name, some):
    for size in ("three chunks of rows", "many inputs", "three tiles"):
        variant, tensors, present, grads = problem(name, SIZES[size], some)
        found = run(variant.call, tensors, present, grads)
        for f, x in zip(found, run(variant.exact, tensors, present, grads), strict=True):
            torch.testing.assert_close(f, x, rtol=1e-10, atol=1e-10)


def test_no_ranks():
    factors = [torch.randn(4, 0, 5, requires_grad=True) for _ in range(2)]
    weights = torch.randn(0, requires_grad=True)
    result = functional.rank_product(factors, weights)
    assert torch.equal(result, torch.zeros(4, 5))
    result.sum().backward()
    assert weights.grad.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_sums_over_rows_are_float32(isa, dtype):
    """Sums that get stuck at the first value if the running total is rounded to 16 bits."""
    rows, stuck = 512, 2 / torch.finfo(dtype).eps
    column = torch.ones(rows, 1).to(dtype)
    column[0] = stuck
    weights = torch.ones(1).to(dtype).requires_grad_()
    total = (torch.tensor(stuck) + rows - 1).to(dtype)
    assert total != stuck
    for result in (
        functional.weighted_sum([column], weights, per="modality"),
        functional.weighted_sum([column], weights[None], per="feature"),
        functional.rank_product([column[:, None]], weights),
    ):
        assert torch.autograd.grad(result.sum(), weights)[0] == total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [1024, 1040, 1001])
def test_large_results_are_those_of_their_parts(isa, dtype, cols):
    """Results of 16 MB and more are written past the caches."""
    rows = (1 << 24) // (cols * dtype.itemsize) + 1
    inputs = [torch.randn(rows, cols).to(dtype) for _ in range(2)]
    weights = torch.randn(2).to(dtype)
    found = functional.weighted_sum(inputs, weights)
    parts = zip(*[x.split(1000) for x in inputs], strict=True)
    expected = torch.cat([functional.weighted_sum(part, weights) for part in parts])
    assert torch.equal(found, expected)


def test_infinite_inputs_spread_to_their_own_weights_only():
    """Without a mean, the gradient of a weight knows no other input."""
    x, y, weights = torch.randn(4, 3), torch.randn(4, 3), torch.ones(2, requires_grad=True)
    x[0, 0] = torch.inf
    functional.weighted_sum([x, y], weights).sum().backward()
    assert weights.grad[0] == torch.inf
    torch.testing.assert_close(weights.grad[1], y.sum())


# ----------------------------------------------------------------------------------------- strides


def strided(x, way):
    """What x holds, lying in memory in another way."""
    if way == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    other = torch.ones_like(x)
    if way == "every second":
        return torch.stack([x, other], -1)[..., 0]
    return torch.cat([other[..., :1], x, other], -1)[..., 1 : 1 + x.shape[-1]]  # "sliced"


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("way", ["transposed", "every second", "sliced"])
@each_variant
def test_strides(isa, name, way, dtype):
    """However arguments lie in memory: the bits of the result and of the gradients are the same."""
    for size in (Size((6,), 2, 5), Size((3, 50), 3, 33)):
        variant, tensors, present, grads = problem(name, size, True, dtype)
        plain = run(variant.call, tensors, present, grads)
        there = strided(present, way)
        moved = [strided(x, way) for x in tensors]
        assert same_bits(run(variant.call, moved, there, [strided(g, way) for g in grads]), plain)


@with_present
@each_variant
def test_stride_0_gradient(name, some):
    """What ``.sum().backward()`` sends: one number, expanded."""
    variant, tensors, present, grads = problem(name, SIZES["three dimensions"], some)
    ones = [torch.ones((), dtype=torch.float64).expand(g.shape) for g in grads]
    assert not any(any(g.stride()) for g in ones)
    found = run(variant.call, tensors, present, ones)
    assert same_bits(found, run(variant.call, tensors, present, [g.clone() for g in ones]))


@pytest.mark.parametrize("batch", [(1, 40), (30, 1), (1, 1)], ids=str)
@each_variant
def test_expanded(isa, name, batch):
    """Expanded inputs are read where they lie, and have a gradient for every row."""
    full = Size((30, 40), 2, 9)
    variant, tensors, _, grads = problem(name, full, False)
    few = variant.draw(full._replace(batch=batch))
    tensors[0] = few[0].expand(tensors[0].shape)
    tensors[-1] = few[-1].expand(tensors[-1].shape)
    present = draw_present(full._replace(batch=batch)).expand(30, 40, 2)
    found = run(variant.call, tensors, present, grads)
    copies = run(variant.call, [x.contiguous() for x in tensors], present.contiguous(), grads)
    assert same_bits(found, copies)


BROADCAST = {
    "inputs": ([(4, 1, 5), (3, 5), (5,)], (4, 3, 3)),
    "present of rows": ([(4, 3, 5)] * 3, (3, 3)),
    "present of modalities": ([(4, 3, 5)] * 3, (3,)),
    "one present": ([(4, 3, 5)] * 3, ()),
    "present of every second dimension": ([(4, 3, 5), (1, 1, 5), (3, 1)], (4, 1, 3)),
}


@pytest.mark.parametrize("case", BROADCAST)
@each_variant
def test_broadcasting(name, case):
    """Shapes broadcast as copies would, and gradients have the shapes of what was given."""
    shapes, present_shape = BROADCAST[case]
    size = Size((4, 3), 3, 5)
    variant, tensors, _, grads = problem(name, size, False)
    present = torch.rand(present_shape) > 0.4
    rank = variant.operator == "rank_product"
    for i, shape in enumerate(shapes):
        shape = (*shape[:-1], 2, shape[-1]) if rank else shape
        tensors[i] = torch.randn(shape).double()
    found = run(variant.call, tensors, present, grads)
    full = [x.expand(4, 3, *[2] * rank, 5) if i < 3 else x for i, x in enumerate(tensors)]
    copied = run(
        lambda leaves, p: variant.exact(_like(leaves, full), p),
        tensors,
        present.expand(4, 3, 3),
        grads,
    )
    for f, x in zip(found, copied, strict=True):
        torch.testing.assert_close(f, x, rtol=1e-10, atol=1e-10)


def _like(leaves, full):
    return [x.expand(like.shape) for x, like in zip(leaves, full, strict=True)]


def test_gates_and_row_weights_broadcast():
    x = [torch.randn(4, 3, 5).double() for _ in range(2)]
    gate = torch.randn(3, 1).double()
    found = functional.gated_sum(x, [gate])
    assert torch.equal(found, functional.gated_sum(x, [gate.expand(4, 3, 5)]))
    weights = torch.randn(4, 1, 2).double()
    found = functional.weighted_sum(x, weights)
    assert torch.equal(found, functional.weighted_sum(x, weights.expand(4, 3, 2)))
    found = functional.weighted_sum(x, weights[0], per="row")
    assert torch.equal(found, functional.weighted_sum(x, weights[:1].expand(4, 3, 2)))


def test_what_has_weights_of_its_own():
    """The shape of the weights says it, ``per`` where it could mean two things."""
    x = [torch.randn(2, 2), torch.randn(2, 2)]
    w = torch.randn(2, 2)
    by_row = w[:, :1] * x[0] + w[:, 1:] * x[1]
    torch.testing.assert_close(functional.weighted_sum(x, w, per="row"), by_row)
    by_feature = w[0] * x[0] + w[1] * x[1]
    torch.testing.assert_close(functional.weighted_sum(x, w, per="feature"), by_feature)
    no_batch = functional.weighted_sum([x[0][0], x[1][0]], w[0])
    torch.testing.assert_close(no_batch, w[0, 0] * x[0][0] + w[0, 1] * x[1][0])


def test_temperature():
    x, query = [torch.randn(4, 6).double() for _ in range(3)], torch.randn(6).double()
    for temperature, heads in ((0.5, 1), (2, 3), (torch.inf, 2)):
        options = {"num_heads": heads, "temperature": temperature, "return_weights": True}
        found = functional.attention_pool(x, query, **options)
        exact = VARIANTS["attention_pool"].with_options(**options).exact([*x, query])
        for f, e in zip(found, exact, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)
    pooled = functional.attention_pool(x, query)
    assert torch.equal(pooled, functional.attention_pool(x, query, temperature=6**0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_large_logits(isa, count, dtype):
    """Exponentials of what is far from 0 neither overflow nor leave nothing to divide by."""
    for logit in (300.0, -300.0, 2000.0):
        values = [torch.randn(5, 4).to(dtype) for _ in range(count)]
        gates = [torch.full((5, 4), logit + 0.5 * m).to(dtype) for m in range(count)]
        for used in (gates, gates[1:]):
            shares = torch.stack([*used, *[torch.zeros(5, 4).to(dtype)] * (count - len(used))])
            exact = (shares.softmax(0) * torch.stack(values).tanh()).sum(0)
            torch.testing.assert_close(functional.gated_sum(values, used), exact)
        inputs = [torch.full((5, 4), 1.0 + m / 100).to(dtype) for m in range(count)]
        query = torch.full((4,), logit / 2).to(dtype)
        scores = torch.stack([(x * query).sum(-1) / 2 for x in inputs], -1)
        options = {"return_weights": True}
        _, weights = functional.attention_pool(inputs, query, **options)
        torch.testing.assert_close(weights[:, 0], scores.softmax(-1), rtol=1e-3, atol=1e-6)
