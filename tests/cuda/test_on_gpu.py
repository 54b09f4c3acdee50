"""What only a GPU can show: streams, devices, graphs, sizes, and the same bits every time.

The suites of ``tests/ops``, ``tests/functional`` and ``tests/nn`` run on a GPU as well, by the
fixture ``device``.
"""

import copy

import pytest
import torch
from fused_cases import VARIANTS, Size, draw_present, run
from fusing_checks import is_fused, values
from fusing_models import Attention, Broadcast, Channels, Gathered, Nested

import mmfast
from mmfast import functional
from mmfast.ops.library import host

pytestmark = [
    pytest.mark.skipif(not host.build_info()["cuda"], reason="this build has no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no usable GPU"),
]
SIZE = Size((300,), 3, 96, 2)
each_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True)
def on_gpu():
    with torch.device("cuda"):
        yield


def same_bits(found, expected):
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def problem(name, size=SIZE, dtype=torch.bfloat16):
    variant = VARIANTS[name]
    tensors = [x.to(dtype) for x in variant.draw(size)]
    present = draw_present(size)
    grads = [torch.randn(y.shape).to(dtype) for y in run(variant.call, tensors, present)]
    return variant, tensors, present, grads


def linear(tensors, present=None, activation="gelu"):
    *inputs, weight, bias = tensors
    return (functional.concat_linear(inputs, weight, bias, activation=activation),)


def linear_problem(rows=1000, widths=(256, 64, 40), cols=192, dtype=torch.bfloat16):
    inputs = [torch.randn(rows, width).to(dtype) for width in widths]
    weight = (torch.randn(cols, sum(widths)) / sum(widths) ** 0.5).to(dtype)
    return [*inputs, weight, torch.randn(cols).to(dtype)], [torch.randn(rows, cols).to(dtype)]


@each_variant
def test_same_bits_every_time(name):
    variant, tensors, present, grads = problem(name)
    first = run(variant.call, tensors, present, grads)
    for _ in range(100):
        assert same_bits(run(variant.call, tensors, present, grads), first)


@pytest.mark.parametrize("shape", [(1000, (256, 64, 40), 192), (3, (2048, 2048), 256)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_same_bits_of_products(shape, dtype):
    tensors, grads = linear_problem(*shape, dtype)
    first = run(linear, tensors, None, grads)
    for _ in range(100):
        assert same_bits(run(linear, tensors, None, grads), first)


@each_variant
def test_current_stream(name):
    """Arguments that a stream is still busy with are waited for on that stream alone."""
    variant, tensors, present, grads = problem(name)
    expected = run(variant.call, tensors, present, grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [torch.full_like(x, torch.nan) for x in tensors]
        torch.cuda._sleep(50_000_000)
        for to, x in zip(late, tensors, strict=True):
            to.copy_(x)
        found = run(variant.call, late, present, grads)
    stream.synchronize()
    assert same_bits(found, expected)


def test_current_stream_of_products():
    tensors, grads = linear_problem()
    expected = run(linear, tensors, None, grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [torch.full_like(x, torch.nan) for x in tensors]
        torch.cuda._sleep(50_000_000)
        for to, x in zip(late, tensors, strict=True):
            to.copy_(x)
        found = run(linear, late, None, grads)
    stream.synchronize()
    assert same_bits(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
@pytest.mark.parametrize("name", [*VARIANTS, "concat_linear"])
def test_second_device(name):
    """Tensors say where to compute, not the current device."""
    if name == "concat_linear":
        tensors, grads = linear_problem()
        call, present = linear, None
    else:
        variant, tensors, present, grads = problem(name)
        call = variant.call
    expected = run(call, tensors, present, grads)

    def there(x):
        return None if x is None else x.to("cuda:1")

    found = run(call, [there(x) for x in tensors], there(present), [there(x) for x in grads])
    assert all(x.device == torch.device("cuda:1") for x in found)
    assert torch.cuda.current_device() == 0
    assert same_bits([x.to("cuda:0") for x in found], expected)


def captured(call, tensors, present, grads):
    """A graph of forward and backward, and its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(call, tensors, present, grads)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(call, tensors, present, grads)
    return graph, found


@pytest.mark.parametrize("count", [3, 64])
@each_variant
def test_graph(name, count):
    """Also with more inputs than a kernel's arguments hold."""
    variant, tensors, present, grads = problem(name, SIZE._replace(count=count))
    graph, found = captured(variant.call, tensors, present, grads)
    variant, others, there, other_grads = problem(name, SIZE._replace(count=count))
    expected = run(variant.call, others, there, other_grads)
    pairs = zip([*tensors, present, *grads], [*others, there, *other_grads], strict=True)
    for x, other in pairs:
        x.copy_(other)
    graph.replay()
    assert same_bits(found, expected)


def test_graph_of_products():
    tensors, grads = linear_problem()
    graph, found = captured(linear, tensors, None, grads)
    others, other_grads = linear_problem()
    expected = run(linear, others, None, other_grads)
    for x, other in zip([*tensors, *grads], [*others, *other_grads], strict=True):
        x.copy_(other)
    graph.replay()
    assert same_bits(found, expected)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 40 << 30,
    reason="needs 40 GiB of GPU memory",
)
@pytest.mark.parametrize("rows", [2**31 // 96 + 5, 2**31 + 3], ids=["elements", "rows"])
def test_beyond_31_bits(rows):
    """The last rows come out as they do alone."""
    cols = 96 if rows < 2**31 else 1
    inputs = [torch.empty(rows, cols, dtype=torch.bfloat16) for _ in range(2)]
    for x in inputs:
        x[-1000:] = torch.randn(1000, cols)
    tail = [x[-1000:].clone() for x in inputs]
    weights = torch.tensor([0.5, -2.0]).bfloat16()
    query = torch.randn(cols).bfloat16()
    for call in (
        lambda x: functional.weighted_sum(x, weights),
        lambda x: functional.gated_sum(x, x[:1]),
        lambda x: functional.attention_pool(x, query),
        lambda x: functional.rank_product([y[:, None] for y in x]),
    ):
        result = call(inputs)
        assert torch.equal(result[-1000:], call(tail))
        del result


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 40 << 30,
    reason="needs 40 GiB of GPU memory",
)
def test_products_beyond_31_bits():
    rows, cols = 2**31 // 256 + 3, 256
    x = torch.empty(rows, 64, dtype=torch.bfloat16)
    y = torch.empty(rows, 8, dtype=torch.bfloat16)
    x[-1000:], y[-1000:] = torch.randn(1000, 64), torch.randn(1000, 8)
    weight = (torch.randn(cols, 72) / 8).bfloat16()
    result = functional.concat_linear([x, y], weight)
    exact = torch.cat([x[-1000:], y[-1000:]], -1).double() @ weight.double().t()
    torch.testing.assert_close(result[-1000:].double(), exact, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("kind", [Nested, Broadcast, Gathered, Channels, Attention])
@pytest.mark.parametrize("autocast", [False, True])
def test_fuse(kind, autocast):
    plain = kind().eval()
    model = copy.deepcopy(plain)
    assert mmfast.fuse(model).fused
    inputs = [x.cuda() for x in kind.inputs()]
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        # A weighted sum of a stack is left alone under autocast.
        assert is_fused(model, *inputs) == (2 * (not autocast) if kind is Attention else 1)
        found, expected = values(model, *inputs)[0], values(plain, *inputs)[0]
    rtol = 5e-2 if autocast else 1e-3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())
