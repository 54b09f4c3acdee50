"""multi_source_attention against the formula over the concatenation of its sources."""

from dataclasses import replace

import pytest
import reference
import torch
import torch.nn.functional as F
from attention_cases import CASES, Case, check_close, draw, eager, formula, joined_mask, run
from torch import Tensor
from torch.profiler import profile

from mmfast.functional.multi_source_attention import multi_source_attention
from mmfast.ops import multi_source_attention as op

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def call(tensors: list[Tensor], **options) -> Tensor:
    count = len(tensors) // 2
    return multi_source_attention(
        tensors[0], tensors[1 : count + 1], tensors[count + 1 :], **options
    )


@pytest.fixture(params=["as planned", "joined", "split"])
def way(request, monkeypatch):
    """Sources may be attended to together or one by one; both must be right everywhere."""
    if request.param == "joined":
        monkeypatch.setattr(op, "_SMALL", 10**12)
    if request.param == "split":
        monkeypatch.setattr(op, "_SMALL", 0)
        monkeypatch.setattr(op, "_BLOCK_TOKENS", 0)
    return request.param


def merges(function) -> int:
    """How often ``function`` merges what was attended to separately."""
    with profile() as found:
        function()
    return sum(event.name == "mmfast::merge_attention" for event in found.events())


# ----------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", CASES)
def test_float64(name, way):
    tensors, options = draw(CASES[name])
    exact = formula(tensors, **options)
    grad = torch.randn_like(exact)
    check_close(run(call, tensors, options, grad), run(formula, tensors, options, grad))


def test_ways():
    """The fixture does what it says."""
    tensors, options = draw(CASES["five"])
    assert merges(lambda: call(tensors, **options)) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "_SMALL", 0)
        patch.setattr(op, "_BLOCK_TOKENS", 0)
        assert merges(lambda: call(tensors, **options)) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["two", "wide", "masks", "wide masks", "causal", "present, wide", "grouped heads, wide"]
)
def test_numbers(name, dtype, way):
    """Results within 2 times PyTorch's error, gradients within 3 times; see ErrorRule."""
    case = CASES[name]
    rules = None
    seen = 0
    while rules is None or seen < 2048:
        tensors, options = draw(case, dtype)
        grad = torch.randn(*tensors[0].shape[:-1], tensors[-1].shape[-1]).to(dtype)
        found = run(call, tensors, options, grad)
        expected = run(eager, tensors, options, grad)
        exact = run(formula, tensors, options, grad, torch.float64)
        rules = rules or [reference.ErrorRule(dtype) for _ in found]
        for rule, f, e, x in zip(rules, found, expected, exact, strict=True):
            assert f.dtype == dtype
            assert f.isfinite().all()
            rule.add(f, x, e, x)
        seen += found[0].numel()
    for i, rule in enumerate(rules):
        rule.check(2 if i == 0 else 3, "result" if i == 0 else f"gradient {i - 1}")


def test_like_attention_over_the_concatenation():
    tensors, _ = draw(CASES["two"])
    query, k0, k1, v0, v1 = tensors
    key, value = torch.cat([k0, k1], -2), torch.cat([v0, v1], -2)
    check_close([call(tensors)], [F.scaled_dot_product_attention(query, key, value)])
    check_close(
        [multi_source_attention(query, [key], [value], is_causal=True)],
        [F.scaled_dot_product_attention(query, key, value, is_causal=True)],
    )


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_large_scores(dtype, way):
    """Scores whose exp would overflow, and sources that differ by as much."""
    tensors, options = draw(Case((9, 600, 5), queries=3), dtype)
    tensors[0] = tensors[0] * 100
    tensors[1] = tensors[1] * 0.1
    grad = torch.randn(tensors[0].shape).to(dtype)
    found = run(call, tensors, options, grad)
    assert all(x.isfinite().all() for x in found)
    exact = run(formula, tensors, options, grad, torch.float64)
    close = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.1)
    check_close([found[0].double()], exact[:1], close)


def test_deterministic(way):
    for name in ("wide", "present, wide", "wide masks"):
        tensors, options = draw(CASES[name], torch.float32)
        grad = torch.randn_like(tensors[0])
        first, again = [run(call, tensors, options, grad) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# -------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("content", [0.0, torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].present])
def test_absent_content_does_not_matter(name, content, way):
    case = CASES[name]
    tensors, options = draw(case)
    grad = torch.randn(*tensors[0].shape[:-1], tensors[-1].shape[-1], dtype=torch.float64)
    expected = run(call, tensors, options, grad)
    there = options["present"].expand(*case.batch, len(case.tokens))
    there = [there[..., s, None, None, None] for s in range(len(case.tokens))] * 2
    spoilt = [x.where(p, content) for x, p in zip(tensors[1:], there, strict=True)]
    found = run(call, [tensors[0], *spoilt], options, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for own, p in zip(found[2:], there, strict=True):
        assert not own.where(~p, 0).any()


def test_nothing_to_attend(way):
    """Zero and zero gradients, bit for bit, whatever withholds it; no other row is touched."""
    for name in ("nothing present", "no tokens at all", "one row has nothing", "masks"):
        tensors, options = draw(replace(CASES[name], queries=5))
        mask = joined_mask(tensors, options.get("masks"), options.get("present"))
        nothing = ~mask.any(-1, keepdim=True)
        if name != "masks":
            assert nothing.any()
        grad = torch.randn_like(tensors[0])
        result, query_grad, *rest = run(call, tensors, options, grad)
        assert not result.where(nothing, 0).any()
        assert not query_grad.where(nothing, 0).any()
        without = run(call, tensors, options, grad.where(~nothing, 0))
        assert all(torch.equal(a, b) for a, b in zip(rest, without[2:], strict=True))
        assert all(x.isfinite().all() for x in (result, query_grad, *rest))


def test_absent_sources_are_not_computed(way):
    """Rows without a source are passed over, and get a gradient all the same."""
    tensors, _ = draw(Case((600, 700, 800, 5), batch=(3,)))
    leaves = [x.requires_grad_() for x in tensors]
    present = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]]).bool()
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        flash = op._flash
        patch.setattr(op, "_flash", lambda *a, **k: calls.append(a[1].shape) or flash(*a, **k))
        result = call(leaves, present=present)
    if way != "joined":
        assert sorted((rows, tokens) for rows, _, tokens, _ in calls) == [(2, 800), (3, 600)]
    result.sum().backward()
    assert all(x.grad is not None for x in leaves)
    assert not leaves[2].grad.any()
    assert not leaves[4].grad.any()


# ------------------------------------------------------------------------------- strides, gradients


def test_strides(way):
    """Transposed, sliced, expanded and overlapping arguments give what their copies give."""
    batch, heads, queries, size = 3, 4, 20, 8

    def projected(tokens):  # as projections leave heads
        return torch.randn(batch, tokens, heads, size, dtype=torch.float64).transpose(1, 2)

    wide = torch.randn(batch, heads, 9, 3 * size, dtype=torch.float64)
    keys = [
        projected(9),
        wide[..., size : 2 * size],
        torch.randn(batch, heads, size, 6, dtype=torch.float64).transpose(-1, -2),
        torch.randn(1, 1, 1, size, dtype=torch.float64).expand(batch, heads, 7, size),
        torch.randn(batch, heads, 7, 2 * size, dtype=torch.float64)[..., ::2],
        torch.randn(batch, heads, 3 * size, dtype=torch.float64).unfold(-1, size, 2)[:, :, :7],
    ]
    values = [x.flip(-2) if x.stride(-2) > size else x for x in keys]
    masks = [
        torch.rand(batch, 9, queries).transpose(-1, -2)[:, None] > 0.5,
        torch.rand(1, 1, 1, 9).expand(batch, heads, queries, 9) > 0.5,
        (torch.rand(batch, heads, queries, 12) > 0.5)[..., ::2],
        None,
        None,
        torch.rand(7) > 0.5,
    ]
    grad = torch.randn(heads, batch, size, queries).double().permute(1, 0, 3, 2)
    for query in (projected(queries), projected(queries).transpose(-1, -2).contiguous().mT):
        tensors = [query, *keys, *values]
        copies = [x.contiguous() for x in tensors]
        copied = [None if x is None else x.contiguous() for x in masks]
        found = run(call, tensors, {"masks": masks}, grad)
        check_close(found, run(call, copies, {"masks": copied}, grad.contiguous()), 1e-12)
        check_close(found, run(formula, tensors, {"masks": masks}, grad))


def test_result_lies_as_the_query_does(way):
    """Heads of a query that lie side by side do so in the result: joining them copies nothing."""
    query = torch.randn(2, 5, 3, 8).transpose(1, 2)
    keys = [torch.randn(2, 3, t, 8) for t in (600, 4)]
    out = multi_source_attention(query, keys, keys)
    assert out.transpose(1, 2).is_contiguous()


def test_stride_0_gradient(way):
    tensors, options = draw(CASES["masks"])
    ones = torch.ones((), dtype=torch.float64).expand(tensors[0].shape)
    check_close(run(call, tensors, options, ones), run(formula, tensors, options, ones))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3, 4), (0, 2), (1, 4)], ids=str)
def test_only_needed_gradients(needed, way):
    tensors, options = draw(Case((9, 5), masks=("keys", ""), present="some"))
    exact = run(formula, tensors, options, torch.ones_like(tensors[0]))
    leaves = [x.requires_grad_(i in needed) for i, x in enumerate(tensors)]
    call(leaves, **options).sum().backward()
    for i, (leaf, x) in enumerate(zip(leaves, exact[1:], strict=True)):
        if i in needed:
            check_close([leaf.grad], [x])
        else:
            assert leaf.grad is None


def test_no_gradient_needed():
    tensors, _ = draw(CASES["two"])
    assert not call(tensors).requires_grad
    tensors[1].requires_grad_()
    with torch.no_grad():
        assert not call(tensors).requires_grad
    with torch.inference_mode():
        assert call(tensors).is_inference()


def test_same_tensor_everywhere(way):
    """Its gradients are added up, and so are theirs."""
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    tensors = [x, x, x, x, x]

    def gradients(function):
        (first,) = torch.autograd.grad(function(tensors).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return first.detach(), second

    check_close(gradients(call), gradients(formula))


@pytest.mark.parametrize(
    "name", ["one source", "two", "masks", "present, masks, causal", "grouped heads, everything"]
)
def test_gradcheck(name, way):
    case = replace(CASES[name], batch=(2,), queries=3, heads=2, size=2)
    case = replace(case, key_heads=1 if "grouped" in name else 2)
    tensors, options = draw(case)
    leaves = [x.requires_grad_() for x in tensors]
    function = lambda *leaves: call(list(leaves), **options)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["two", "present", "present, masks, causal", "wide masks"])
def test_second_derivatives(name, way):
    tensors, options = draw(CASES[name])
    if "present" in options:
        options["present"] = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 1, 0]]).bool()
    grad = torch.randn_like(tensors[0])
    leaves = [x.requires_grad_() for x in tensors]

    def gradients(function):
        first = torch.autograd.grad(function(leaves, **options), leaves, grad, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
        return [x.detach() for x in (*first, *second)]

    check_close(gradients(call), gradients(formula))


def test_backward_of_many_gradients(way):
    tensors, options = draw(CASES["masks"])
    leaves = [x.requires_grad_() for x in tensors]
    grads = torch.randn(4, *tensors[0].shape, dtype=torch.float64)
    batched = torch.autograd.grad(call(leaves, **options), leaves, grads, is_grads_batched=True)
    for i, grad in enumerate(grads):
        check_close([x[i] for x in batched], run(formula, tensors, options, grad)[1:])


@pytest.mark.parametrize("name", ["two", "present, masks, causal", "grouped heads"])
def test_transforms(name):
    """torch.func and forward mode."""
    tensors, options = draw(CASES[name])
    tangents = [torch.randn_like(x) for x in tensors]

    def found(*xs):
        return call(list(xs), **options)

    def exact(*xs):
        return formula(list(xs), **options)

    primals = tuple(tensors)
    check_close(
        torch.func.jvp(found, primals, tuple(tangents)),
        torch.func.jvp(exact, primals, tuple(tangents)),
    )
    loss = [lambda *xs, f=f: f(*xs).square().sum() for f in (found, exact)]
    check_close([torch.func.grad(loss[0])(*primals)], [torch.func.grad(loss[1])(*primals)])
    stacked = [torch.stack([x, 2 * x]) for x in tensors]
    check_close([torch.func.vmap(found)(*stacked)], [torch.func.vmap(exact)(*stacked)])


# ---------------------------------------------------------------------------------- memory, tracing


def allocations(function) -> list[int]:
    """Bytes of every allocation that torch makes while ``function`` runs."""
    with profile(profile_memory=True, acc_events=True) as found:
        function()
    events = found.profiler.kineto_results.experimental_event_tree()
    sizes = []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.name == "[memory]" and event.extra_fields.alloc_size > 0:
            sizes.append(event.extra_fields.alloc_size)
    return sizes


def test_keys_are_not_concatenated():
    tensors, _ = draw(Case((600, 800, 700), queries=16, size=32), torch.float32)
    concatenation = tensors[1].numel() // 600 * 2100 * 4
    assert max(allocations(lambda: eager(tensors))) >= concatenation
    assert max(allocations(lambda: call(tensors))) < 0.4 * concatenation
    leaves = [x.requires_grad_() for x in tensors]
    result = call(leaves)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    assert max(allocations(lambda: result.sum().backward())) < 0.4 * concatenation


@pytest.mark.parametrize("name", ["two", "masks", "present, masks, causal", "grouped heads"])
def test_compile(name):
    """One graph for every number of tokens, forward and backward."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for queries in (11, 13):
        tensors, options = draw(replace(CASES[name], queries=queries))
        grad = torch.randn_like(tensors[0])
        check_close(run(compiled, tensors, options, grad), run(formula, tensors, options, grad))
    assert len(graphs) == 1


def test_compile_inductor():
    torch._dynamo.reset()
    tensors, options = draw(CASES["present"], torch.float32)
    compiled = torch.compile(call, fullgraph=True)
    found = run(compiled, tensors, options, torch.ones_like(tensors[0]))
    exact = run(formula, tensors, options, torch.ones_like(tensors[0]), torch.float64)
    check_close([x.double() for x in found], exact, 1e-5)


def test_autocast(way):
    tensors, options = draw(CASES["masks"], torch.float32)
    leaves = [x.requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(leaves, **options)
    assert found.dtype == torch.bfloat16
    low = [x.detach().bfloat16() for x in tensors]
    assert torch.equal(found, call(low, **options))
    found.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call([x.detach().double() for x in tensors]).dtype == torch.float64
