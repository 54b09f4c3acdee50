"""weighted_sum, attention_pool, gated_sum, rank_product: absence, autograd, tracing, transforms."""

import pytest
import torch
from fused_cases import SIZES, VARIANTS, Size, draw_present, run
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = Size((4,), 3, 6)

each_variant = pytest.mark.parametrize("name", VARIANTS)
with_present = pytest.mark.parametrize("some", [False, True], ids=["all present", "some absent"])


def problem(name, size=SMALL, some=True, dtype=torch.float64):
    """The variant, its tensors, what is present, and gradients of its results."""
    variant = VARIANTS[name]
    tensors = [x.to(dtype) for x in variant.draw(size)]
    present = draw_present(size) if some else None
    grads = [torch.randn(y.shape).to(dtype) for y in run(variant.call, tensors, present)]
    return variant, tensors, present, grads


def same_bits(found, expected):
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def close(found, expected, tolerance=1e-10):
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


def total(results):
    """One number that every result changes."""
    return sum((y * y.cos()).sum() for y in results)


# ---------------------------------------------------------------------------------- what is absent


def absent_places(variant, tensors, present):
    """For each tensor where its content must not matter, or None."""
    count = present.shape[-1]
    places = []
    for i, x in enumerate(tensors):
        m = variant.modality(i, count)
        if m is not None:
            mask = ~present[..., m]
            places.append(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())).expand(x.shape))
        elif variant.options.get("per") == "row":
            places.append(~present)
        else:
            places.append(None)
    return places


def filled(tensors, places, value):
    return [
        x if at is None else torch.where(at, value, x)
        for x, at in zip(tensors, places, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["three chunks of rows", "many inputs", "three tiles", "no batch"])
@each_variant
def test_absent_content(isa, name, size, dtype):
    """It changes no bit of results and gradients, whatever it is; its own gradient is zero."""
    variant, tensors, present, grads = problem(name, SIZES[size], dtype=dtype)
    if size == "no batch":
        present = torch.tensor([True, False, True])
    places = absent_places(variant, tensors, present)
    plain = run(variant.call, filled(tensors, places, 0.0), present, grads)
    for value in (torch.nan, torch.inf, -torch.inf, 1e30, 3.0):
        assert same_bits(run(variant.call, filled(tensors, places, value), present, grads), plain)
    for gradient, at in zip(plain[len(grads) :], places, strict=True):
        assert gradient.isfinite().all()
        if at is not None:
            assert (gradient[at] == 0).all()


@each_variant
def test_absent_content_where_the_formula_is_used(name):
    """Double backward, torch.func and vmap take another way: NaN must not come through there."""
    variant, tensors, present, grads = problem(name)
    places = absent_places(variant, tensors, present)
    exact = run(variant.call, filled(tensors, places, 0.0), present, grads)[len(grads) :]
    leaves = [x.requires_grad_() for x in filled(tensors, places, torch.nan)]
    results = variant.call(leaves, present)
    first = torch.autograd.grad(results, leaves, grads, create_graph=True)
    close(first, exact, 1e-12)
    second = torch.autograd.grad(total(first), leaves, materialize_grads=True)
    assert all(x.isfinite().all() for x in second)
    by_func = torch.func.grad(lambda xs: total(variant.call(xs, present)))(leaves)
    assert all(x.isfinite().all() for x in by_func)


@pytest.mark.parametrize("present", ["row by row", "one"])
@each_variant
def test_everything_absent(isa, name, present):
    """Zero, for the product the sum of the weights, and no gradient but theirs."""
    variant, tensors, _, grads = problem(name)
    present = torch.zeros((4, 3) if present == "row by row" else (), dtype=torch.bool)
    nan = [torch.full_like(x, torch.nan) for x in tensors[:3]] + tensors[3:]
    results = run(variant.call, nan, present, grads)
    found, gradients = results[: len(grads)], results[len(grads) :]
    if variant.operator == "rank_product":
        weighted = len(tensors) == 4
        value = tensors[3].sum() if weighted else torch.tensor(2.0).double()
        torch.testing.assert_close(found[0], value.expand(4, 6))
        if weighted:
            torch.testing.assert_close(gradients[3], grads[0].sum().expand(2))
            gradients = gradients[:3]
    else:
        assert all((y == 0).all() for y in found)
    assert all((x == 0).all() for x in gradients)


# ---------------------------------------------------------------------------------------- autograd


class Calls(TorchDispatchMode):
    """Records which gradients the backward operators are asked for."""

    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith("mmfast::") and func.name().endswith("_backward"):
            self.wanted.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needed", [[0], [-1], [1, -1], []], ids=str)
@with_present
@each_variant
def test_only_wanted_gradients(name, some, needed):
    variant, tensors, present, grads = problem(name, SIZES["three dimensions"], some)
    exact = run(variant.call, tensors, present, grads)[len(grads) :]
    needed = sorted({i % len(tensors) for i in needed})
    leaves = [x.clone().requires_grad_(i in needed) for i, x in enumerate(tensors)]
    results = variant.call(leaves, present)
    assert all(y.requires_grad == bool(needed) for y in results)
    if needed:
        with Calls() as calls:
            torch.autograd.backward(results, grads)
        assert calls.wanted == [needed]
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if i in needed:
            torch.testing.assert_close(leaf.grad, exact[i], rtol=1e-12, atol=1e-12)


def test_no_graph_without_gradients():
    for name in VARIANTS:
        variant, tensors, present, _ = problem(name)
        leaves = [x.requires_grad_() for x in tensors]
        with torch.no_grad():
            assert not any(y.requires_grad for y in variant.call(leaves, present))
        with torch.inference_mode():
            assert all(y.is_inference() for y in variant.call(leaves, present))


@pytest.mark.parametrize("used", [[0], [1]], ids=["pooled", "weights"])
@with_present
@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("attention_pool")])
def test_one_of_two_results(name, some, used):
    """The gradient of one result alone, and of the attention weights alone."""
    variant, tensors, present, grads = problem(name, some=some)
    grads = [g if i in used else None for i, g in enumerate(grads)]
    close(run(variant.call, tensors, present, grads), run(variant.exact, tensors, present, grads))


@with_present
@each_variant
def test_gradcheck(name, some):
    variant, tensors, present, _ = problem(name, Size((2,), 2, 3), some)
    leaves = [x.requires_grad_() for x in tensors]
    function = lambda *xs: variant.call(xs, present)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@with_present
@each_variant
def test_create_graph_gives_the_same_gradients(name, some):
    """The formula behind double backward and transforms has the kernels' values and gradients."""
    variant, tensors, present, grads = problem(name, SIZES["three dimensions"], some)
    leaves = [x.requires_grad_() for x in tensors]
    results = variant.call(leaves, present)
    kernel = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    formula = torch.autograd.grad(results, leaves, grads, create_graph=True)
    close(kernel, formula, 1e-11)
    by_func, _ = torch.func.vjp(lambda *xs: variant.call(xs, present), *leaves)
    close(results, by_func, 1e-11)


@each_variant
def test_gradients_of_16_bit_formulas(name):
    variant, tensors, present, grads = problem(name, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in tensors]
    results = variant.call(leaves, present)
    kernel = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    formula = torch.autograd.grad(results, leaves, grads, create_graph=True)
    close(kernel, formula, 0.02)


@each_variant
def test_batched_gradients(name):
    variant, tensors, present, _ = problem(name)
    leaves = [x.requires_grad_() for x in tensors]
    results = variant.call(leaves, present)
    grads = [torch.randn(5, *y.shape).double() for y in results]
    batched = torch.autograd.grad(results, leaves, grads, is_grads_batched=True, retain_graph=True)
    for i in range(5):
        single = torch.autograd.grad(results, leaves, [g[i] for g in grads], retain_graph=True)
        close([b[i] for b in batched], single)


@each_variant
def test_same_tensor_twice(name):
    """Its two gradients are added, neither counted twice, and so are theirs."""
    variant, tensors, present, _ = problem(name)
    x = tensors[0].clone().requires_grad_()

    def gradients(function):
        results = function([x, x, *tensors[2:]], present)
        (first,) = torch.autograd.grad(total(results), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return first.detach(), second

    close(gradients(variant.call), gradients(variant.exact))


@each_variant
def test_sparse_gradient(name):
    variant, tensors, present, grads = problem(name)
    exact = run(variant.call, tensors, present, grads)[len(grads) :]
    leaves = [x.requires_grad_() for x in tensors]
    for create_graph in (False, True):
        results = variant.call(leaves, present)
        sparse = [grads[0].to_sparse(), *grads[1:]]
        close(torch.autograd.grad(results, leaves, sparse, create_graph=create_graph), exact)


@each_variant
def test_checkpoint(name):
    variant, tensors, present, _ = problem(name)
    leaves = [x.requires_grad_() for x in tensors]
    function = lambda *xs: total(variant.call(xs, present))  # noqa: E731
    kept = torch.utils.checkpoint.checkpoint(function, *leaves, use_reentrant=False)
    exact = torch.autograd.grad(function(*leaves), leaves)
    assert same_bits(torch.autograd.grad(kept, leaves), exact)


@pytest.mark.parametrize("changed", [0, 1, -1])
@each_variant
def test_changed_before_backward(name, changed):
    """What backward reads and was overwritten since is an error, never a wrong gradient."""
    variant, tensors, present, _ = problem(name)
    moved = [x.requires_grad_() * 2 for x in tensors]  # no leaves: those refuse to be overwritten
    loss = total(variant.call(moved, present))
    moved[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("share", [0, 0.5], ids=["freed", "shrunk"])
@each_variant
def test_freed_storage(name, share):
    """A tensor whose memory was given back, as sharded training does, is refused: no crash."""
    variant, tensors, present, _ = problem(name)
    leaves = [x.requires_grad_(i != 1) for i, x in enumerate(tensors)]
    loss = total(variant.call(leaves, present))
    storage = tensors[1].untyped_storage()
    storage.resize_(int(share * storage.nbytes()))
    refused = r"s\[1\] has elements without memory"
    with pytest.raises(RuntimeError, match=refused):
        variant.call(leaves, present)
    with pytest.raises(RuntimeError, match=refused):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_variant
def test_deterministic(name, dtype):
    """The same bits again, and with any number of threads."""
    variant, tensors, present, grads = problem(name, Size((1000,), 3, 65), dtype=dtype)
    first = run(variant.call, tensors, present, grads)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same_bits(run(variant.call, tensors, present, grads), first)
    finally:
        torch.set_num_threads(threads)
