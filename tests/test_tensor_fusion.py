"""mmfast.functional.tensor_fusion against the outer product, built."""

import pytest
import reference
import torch
import torch.nn.functional as F

from mmfast.bench.memory import peak_bytes
from mmfast.functional.tensor_fusion import _split, tensor_fusion
from mmfast.nn.tensor_fusion import TensorFusion

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def plain(inputs, weight, bias=None, present=None):
    """One index per modality, as the formula has them; the weight's first varies slowest."""
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    operands, sizes = [], []
    for m, x in enumerate(inputs):
        x = x.expand(*batch, x.shape[-1])
        if present is not None:
            x = torch.where(present[..., m].unsqueeze(-1), x, torch.zeros_like(x))
        x = torch.cat([x.new_ones(*batch, 1), x], -1)
        operands += [x, [..., m]]
        sizes.append(x.shape[-1])
    n, places = len(inputs), list(range(len(inputs)))
    cube = weight.reshape(weight.shape[0], *sizes)
    y = torch.einsum(*operands, cube, [n, *places], [..., n])
    return y if bias is None else y + bias


def draw(widths, out, batches, dtype=torch.float64):
    inputs = [torch.randn(*batch, width) for batch, width in zip(batches, widths, strict=True)]
    width = torch.tensor([width + 1 for width in widths]).prod().item()
    return [[x.to(dtype) for x in inputs], torch.randn(out, width).to(dtype) / width**0.5]


def gradients(function, inputs, weight, bias, present):
    leaves = [x.detach().clone().requires_grad_() for x in (*inputs, weight, bias)]
    y = function(leaves[: len(inputs)], *leaves[len(inputs) :], present)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("way", ["all", "some absent", "one row"])
@pytest.mark.parametrize("batch", [(), (6,), (2, 3), (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("out", [0, 1, 5, 300])
@pytest.mark.parametrize(
    "widths", [[3], [3, 4], [4, 3, 2], [2, 0, 3], [0, 0], [1, 2, 1, 3]], ids=str
)
def test_formula(widths, out, batch, way):
    inputs, weight = draw(widths, out, [batch] * len(widths))
    bias = torch.randn(out).double()
    present = {
        "all": None,
        "some absent": torch.rand(*batch, len(widths)) > 0.4,
        "one row": torch.arange(len(widths)) != 1,
    }[way]
    found = gradients(tensor_fusion, inputs, weight, bias, present)
    full = None if present is None else present.expand(*batch, len(widths))
    expected = gradients(plain, inputs, weight, bias, full)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_batches_broadcast():
    inputs, weight = draw([3, 4, 2], 5, [(2, 1), (1, 3), (3,)])
    bias, present = torch.randn(5).double(), torch.rand(2, 1, 3) > 0.4
    found = gradients(tensor_fusion, inputs, weight, bias, present)
    expected = gradients(plain, inputs, weight, bias, present.expand(2, 3, 3))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_no_bias():
    inputs, weight = draw([3, 4], 5, [(6,)] * 2)
    torch.testing.assert_close(tensor_fusion(inputs, weight), plain(inputs, weight), **CLOSE)


@pytest.mark.parametrize("out", [2, 300])
def test_absent_content_never_matters(out):
    inputs, weight = draw([3, 4, 2], out, [(8,)] * 3)
    bias, present = torch.randn(out).double(), torch.rand(8, 3) > 0.5
    present[0] = False
    broken = [x.where(present[:, m, None], torch.nan) for m, x in enumerate(inputs)]
    found = gradients(tensor_fusion, broken, weight, bias, present)
    expected = gradients(tensor_fusion, inputs, weight, bias, present)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    for m, grad in enumerate(found[1:4]):
        assert grad[~present[:, m]].count_nonzero() == 0
        assert grad[present[:, m]].count_nonzero() > 0
    torch.testing.assert_close(found[0][0], weight[:, 0] + bias, **CLOSE)


def test_not_contiguous():
    inputs, weight = draw([3, 4, 2], 5, [(6,)] * 3)
    strided = [x.t().contiguous().t() for x in inputs]
    strided[1] = torch.stack([inputs[1]] * 2, -1)[..., 0]
    bias = torch.randn(10).double()[::2]
    turned = weight.t().contiguous().t()
    expected = tensor_fusion(inputs, weight, bias.contiguous())
    torch.testing.assert_close(tensor_fusion(strided, turned, bias), expected, **CLOSE)
    row = inputs[0][:1].expand(6, 3)
    found = tensor_fusion([row, *inputs[1:]], weight)
    torch.testing.assert_close(found, plain([row, *inputs[1:]], weight), **CLOSE)


@pytest.mark.parametrize("out", [2, 50])
def test_second_derivatives(out):
    inputs, weight = draw([2, 3, 1], out, [(3,)] * 3)
    leaves = [x.requires_grad_() for x in (*inputs, weight)]

    def function(*leaves):
        return tensor_fusion(leaves[:3], leaves[3]).tanh()

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_transforms():
    inputs, weight = draw([2, 3], 2, [(4,)] * 2)
    per_row = torch.func.vmap(lambda x, y: tensor_fusion([x, y], weight))
    torch.testing.assert_close(per_row(*inputs), plain(inputs, weight), **CLOSE)
    found = torch.func.jacrev(lambda w: tensor_fusion(inputs, w))(weight)
    expected = torch.func.jacrev(lambda w: plain(inputs, w))(weight)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_that_of_plain_pytorch(dtype):
    rules = [reference.ErrorRule(dtype) for _ in range(6)]
    for out in (4, 16):
        inputs, weight = draw([12, 10, 8], out, [(40,)] * 3, dtype)
        arguments = (inputs, weight, torch.randn(out).to(dtype), None)
        wide = [[x.double() for x in inputs], *(x.double() for x in arguments[1:3]), None]
        exact = gradients(plain, *wide)
        eager = gradients(plain, *arguments)
        for rule, *values in zip(
            rules, gradients(tensor_fusion, *arguments), exact, eager, exact, strict=True
        ):
            rule.add(*values)
    for i, rule in enumerate(rules):
        rule.check(3 if i else 2, ["result", "x0", "x1", "x2", "weight", "bias"][i])


@pytest.mark.parametrize("out", [2, 300])
def test_autocast(out):
    inputs, weight = draw([5, 6, 7], out, [(9,)] * 3, torch.float32)
    weight, bias = weight.requires_grad_(), torch.randn(out)
    mixed = [inputs[0].bfloat16(), *inputs[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        found = tensor_fusion(mixed, weight, bias)
        found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    expected = plain(inputs, weight, bias)
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    inputs, weight = draw([3, 4, 2], 5, [(6,)] * 3)
    bias, present = torch.randn(5).double(), torch.rand(6, 3) > 0.4
    torch._dynamo.reset()
    compiled = torch.compile(tensor_fusion, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    found = gradients(compiled, inputs, weight, bias, present)
    for a, b in zip(found, gradients(tensor_fusion, inputs, weight, bias, present), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_memory():
    """A tenth of what the outer product needs, forward and backward, beyond the gradients."""
    inputs, weight = draw([32, 32, 32], 32, [(64,)] * 3, torch.float32)
    leaves = [x.requires_grad_() for x in (*inputs, weight)]

    def outer(inputs, weight):
        product = F.pad(inputs[0], (1, 0), value=1.0)
        for x in inputs[1:]:
            product = product.unsqueeze(-1) * F.pad(x, (1, 0), value=1.0).unsqueeze(-2)
            product = product.flatten(-2)
        return F.linear(product, weight)

    peaks = [
        peak_bytes(lambda f=f: torch.autograd.grad(f(inputs, weight).sum(), leaves)) - weight.nbytes
        for f in (tensor_fusion, outer)
    ]
    assert peaks[1] > 64 * 33**3 * 4, "the measure does not see the outer product"
    assert peaks[0] < peaks[1] / 10


X, Y = torch.ones(4, 2), torch.ones(4, 3)
W, B, P = torch.ones(5, 12), torch.ones(5), torch.ones(4, 2).bool()

WRONG = {
    "no inputs": (([], W), ValueError, "inputs is empty"),
    "tensor as inputs": ((X, W), TypeError, "inputs must be a sequence of tensors, got Tensor"),
    "not a tensor": (([X, 3], W), TypeError, r"inputs\[1\] must be a tensor, got int"),
    "integers": (([X, Y.long()], W), TypeError, r"inputs\[1\] has dtype torch\.int64"),
    "0-d": (([X, torch.tensor(1.0)], W), ValueError, r"inputs\[1\] is 0-d"),
    "dtypes": (([X, Y.double()], W), ValueError, r"inputs\[1\] .*float64.*weight .*float32"),
    "devices": (([X, Y.to("meta")], W), ValueError, r"inputs\[1\] is on meta"),
    "weight": (([X, Y], None), TypeError, "weight must be a tensor, got NoneType"),
    "weight width": (([X, X], W), ValueError, r"\(5, 12\).*9 = \(2 \+ 1\) \* \(2 \+ 1\)"),
    "weight 1-d": (([X, Y], W[0]), ValueError, r"weight has shape \(12,\)"),
    "bias": (([X, Y], W, B[:4]), ValueError, r"bias has shape \(4,\); it must be \(5,\)"),
    "batches": (([X, Y[:3]], W), ValueError, "batch shapes of inputs do not broadcast"),
    "present": (([X, Y], W, B, P[:3]), ValueError, r"present has shape \(3, 2\).*\(4, 2\)"),
    "present, one": (([X, Y], W, B, P[:, :1]), ValueError, r"present has shape \(4, 1\)"),
    "present, 0-d": (([X, Y], W, B, P[0, 0]), ValueError, r"present has shape \(\)"),
    "present floats": (([X, Y], W, B, P.float()), TypeError, "present has dtype torch.float32"),
    "present a list": (([X, Y], W, B, [True]), TypeError, "present must be a bool tensor"),
}


def test_meta():
    x, y, weight = (torch.ones(shape, device="meta") for shape in ((4, 3), (4, 2), (5, 12)))
    assert tensor_fusion([x, y], weight).shape == (4, 5)
    assert TensorFusion([3, 2], 5, device="meta")([x, y]).shape == (4, 5)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    arguments, exception, message = WRONG[case]
    with pytest.raises(exception, match=message):
        tensor_fusion(*arguments)


@pytest.mark.parametrize(
    ("sizes", "out", "lead"), [([33] * 3, 32, 1), ([3] * 4, 1, 2), ([65, 65], 1000, 0), ([9], 1, 0)]
)
def test_how_many_lead(sizes, out, lead):
    """The whole product where the result is so wide that a factor of it would be wider."""
    assert _split(sizes, out) == lead
