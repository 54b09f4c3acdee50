"""mmfast.losses against the formulas."""

import math
import pickle

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmfast import losses
from mmfast.bench.memory import kept_bytes, peak_bytes
from mmfast.losses import (
    ContrastiveLoss,
    class_balanced_weights,
    contrastive_loss,
    focal_loss,
    hinge_loss,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


# -------------------------------------------------------------------------------- contrastive


def plain(a, b, scale):
    """The matrix of all pairs, its rows and its columns as classifications."""
    a, b = (x / x.square().sum(-1, keepdim=True).sqrt() for x in (a, b))
    logits = scale * (a @ b.T)
    pairs = logits.diagonal()
    rows = logits.exp().sum(1).log() - pairs
    columns = logits.exp().sum(0).log() - pairs
    return (rows.mean() + columns.mean()) / 2


def leaves(count, features=7, scale=5.0, dtype=torch.float64):
    tensors = torch.randn(count, features), torch.randn(count, features), torch.tensor(scale)
    return [x.to(dtype).requires_grad_() for x in tensors]


def values(function, tensors, **options):
    loss = function(*tensors, **options)
    return [loss.detach(), *torch.autograd.grad(3 * loss, tensors)]


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("chunk_rows", [1, 4, 6, 12, 13, 512])
def test_contrastive(chunk_rows, scale):
    tensors = leaves(13, scale=scale)
    found = values(contrastive_loss, tensors, chunk_rows=chunk_rows)
    for a, b in zip(found, values(plain, tensors), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2], [1, 2]], ids=str)
def test_contrastive_only_needed_gradients(wanted):
    tensors = leaves(5)
    expected = values(plain, tensors)[1:]
    mixed = [x if i in wanted else x.detach() for i, x in enumerate(tensors)]
    chosen = [tensors[i] for i in wanted]
    found = torch.autograd.grad(3 * contrastive_loss(*mixed, chunk_rows=2), chosen)
    for i, a in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, expected[i], **CLOSE)


def test_contrastive_gradcheck():
    function = lambda *x: contrastive_loss(*x, chunk_rows=2)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves(5, 3))


def test_contrastive_of_distant_logits():
    """At CLIP's largest scale a fixed shift of the exponents would underflow in float32."""
    a = torch.eye(4).repeat(2, 1)
    tensors = [a, -a, torch.tensor(100.0)]
    exact = [x.double().requires_grad_() for x in tensors]
    found = values(contrastive_loss, [x.requires_grad_() for x in tensors], chunk_rows=3)
    for x, y in zip(found, values(plain, exact), strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


def test_contrastive_one_tensor_twice():
    a, _, scale = leaves(6)
    found = torch.autograd.grad(contrastive_loss(a, a, scale, chunk_rows=4), [a, scale])
    for x, y in zip(found, torch.autograd.grad(plain(a, a, scale), [a, scale]), strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


def test_contrastive_not_contiguous():
    a, b, scale = leaves(8)
    found = contrastive_loss(a.t().contiguous().t(), b[None].expand(2, 8, 7)[1], scale)
    torch.testing.assert_close(found, plain(a, b, scale), **CLOSE)


def test_contrastive_scale_as_a_number():
    a, b, _ = leaves(5)
    torch.testing.assert_close(contrastive_loss(a, b, 14.3), plain(a, b, 14.3), **CLOSE)
    found = contrastive_loss(a, b, torch.tensor([14.3]))  # float32, 1-d
    torch.testing.assert_close(found, plain(a, b, 14.3), rtol=1e-6, atol=1e-6)


def test_contrastive_without_pairs():
    tensors = leaves(0)
    found = values(contrastive_loss, tensors)
    assert found[0] == found[3] == 0
    assert found[1].shape == (0, 7)


def test_contrastive_zero_features_stay_finite():
    a, b, scale = leaves(4)
    with torch.no_grad():
        a[1] = 0
    assert all(x.isfinite().all() for x in values(contrastive_loss, [a, b, scale]))


def test_contrastive_in_half_precision():
    a, b, scale = leaves(9, dtype=torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in (a, b)]
    exact = [x.detach().double().requires_grad_() for x in half]
    found = torch.autograd.grad(contrastive_loss(*half, scale, chunk_rows=4), [*half, scale])
    assert [x.dtype for x in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for x, y in zip(found, values(plain, [*exact, scale])[1:], strict=True):
        torch.testing.assert_close(3 * x.double(), y.double(), rtol=0.01, atol=1e-3)


def test_contrastive_autocast_is_exact():
    a, b, scale = leaves(9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = values(contrastive_loss, [a, b, scale], chunk_rows=4)
    for x, y in zip(found, values(contrastive_loss, [a, b, scale], chunk_rows=4), strict=True):
        assert torch.equal(x, y)


def test_contrastive_refuses_double_backward():
    a, b, scale = leaves(4)
    with pytest.raises(RuntimeError, match="contrastive_loss cannot be differentiated twice"):
        torch.autograd.grad(contrastive_loss(a, b, scale), a, create_graph=True)


def test_contrastive_compile():
    tensors = leaves(6)
    torch._dynamo.reset()
    compiled = torch.compile(contrastive_loss, fullgraph=True, backend="aot_eager")
    found = values(compiled, tensors, chunk_rows=4)
    for a, b in zip(found, values(plain, tensors), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_contrastive_memory_is_linear():
    """Twice the pairs need twice the memory, backward included; the plain form four times."""

    def peak(function, count, **options):
        tensors = leaves(count, 8, dtype=torch.float32)
        return peak_bytes(lambda: values(function, tensors, **options))

    for function, low, high in ((contrastive_loss, 1.8, 2.2), (plain, 3.5, 4.5)):
        options = {"chunk_rows": 16} if function is contrastive_loss else {}
        growth = peak(function, 1024, **options) / peak(function, 512, **options)
        assert low < growth < high, (function, growth)
    tensors = leaves(1024, 8, dtype=torch.float32)
    assert kept_bytes(lambda: contrastive_loss(*tensors), tensors).extra < 1024 * 8 * 4 * 8


A, B = torch.ones(4, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "exception", "message"),
    [
        ((A, [1.0], 1.0), {}, TypeError, "b must be a tensor, got list"),
        ((A.long(), B, 1.0), {}, TypeError, "a has dtype torch.int64"),
        ((A, B[:3], 1.0), {}, ValueError, r"a has shape \(4, 3\) and b \(3, 3\)"),
        ((A[0], B[0], 1.0), {}, ValueError, r"both must be \(pairs, features\)"),
        ((A, B.double(), 1.0), {}, ValueError, "b torch.float64"),
        ((A, B.to("meta"), 1.0), {}, ValueError, "on meta"),
        ((A, B.to_sparse(), 1.0), {}, TypeError, "b has layout torch.sparse_coo"),
        ((A, B, "1"), {}, TypeError, "logit_scale must be a tensor or a number, got str"),
        ((A, B, torch.ones(2)), {}, ValueError, r"logit_scale has shape \(2,\)"),
        ((A, B, torch.ones(1).to_sparse()), {}, TypeError, "logit_scale has layout"),
        ((A, B, torch.ones((), device="meta")), {}, ValueError, "logit_scale is on meta but a is"),
        ((A, B, 1.0), {"chunk_rows": 0}, ValueError, "chunk_rows is 0"),
        ((A, B, 1.0), {"chunk_rows": 2.5}, ValueError, "chunk_rows is 2.5"),
    ],
)
def test_contrastive_refuses(arguments, options, exception, message):
    with pytest.raises(exception, match=message):
        contrastive_loss(*arguments, **options)


def test_contrastive_refuses_freed_memory():
    """PyTorch's own norm of such a tensor ends the process."""
    freed = torch.ones(4, 3)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="b has elements without memory"):
        contrastive_loss(A, freed, 1.0)


def test_contrastive_module():
    a, b, _ = leaves(6)
    loss = ContrastiveLoss(chunk_rows=4).double()
    assert loss.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    found = loss(a, b)
    torch.testing.assert_close(found, plain(a, b, loss.logit_scale.exp()), **CLOSE)
    found.backward()
    expected = torch.autograd.grad(plain(a, b, loss.logit_scale.exp()), loss.logit_scale)[0]
    torch.testing.assert_close(loss.logit_scale.grad, expected, **CLOSE)
    assert list(loss.state_dict()) == ["logit_scale"]
    other = ContrastiveLoss(0.5, chunk_rows=4).double()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(a, b), found)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(a, b), found)
    assert repr(loss) == "ContrastiveLoss(chunk_rows=4)"


def test_contrastive_module_holds_the_scale_at_100():
    a, b, _ = leaves(6)
    loss = ContrastiveLoss().double()
    for value in (math.log(100), 7.0):
        with torch.no_grad():
            loss.logit_scale.fill_(value)
        found = loss(a, b)
        torch.testing.assert_close(found, plain(a, b, 100.0), **CLOSE)
        (grad,) = torch.autograd.grad(found, loss.logit_scale)
        assert grad != 0, "beyond the bound the scale could never come back"
        assert loss.logit_scale.item() == math.log(100)
    with torch.no_grad():
        loss.logit_scale.fill_(7.0)
    torch.testing.assert_close(loss.eval()(a, b), plain(a, b, 100.0), **CLOSE)
    assert loss.logit_scale == 7, "evaluation changes no parameter"


@pytest.mark.parametrize("temperature", [0.0, -1.0, 0.001, float("nan"), math.inf])
def test_contrastive_module_refuses(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*at least 0\.01"):
        ContrastiveLoss(temperature)


def test_contrastive_module_refuses_what_is_no_number():
    for temperature in ("x", None, torch.ones(2)):
        with pytest.raises(TypeError, match="temperature must be a number, got"):
            ContrastiveLoss(temperature)
    with pytest.raises(ValueError, match="chunk_rows is 'x'"):
        ContrastiveLoss(chunk_rows="x")


def test_contrastive_learns():
    """Two linear views of one signal are matched."""
    signal = torch.randn(64, 4)
    views = signal @ torch.randn(4, 16), signal @ torch.randn(4, 12)
    heads, loss = nn.ModuleList([nn.Linear(16, 8), nn.Linear(12, 8)]), ContrastiveLoss()
    optimizer = torch.optim.Adam([*heads.parameters(), *loss.parameters()], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        a, b = (head(x) for head, x in zip(heads, views, strict=True))
        loss(a, b).backward()
        optimizer.step()
    cosines = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    assert (cosines.argmax(1) == torch.arange(64)).float().mean() > 0.9


# -------------------------------------------------------------------------- hinge and focal


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("margin", "p"), [(1.0, 1), (0.5, 2)])
def test_hinge(margin, p, weighted, reduction):
    logits = torch.randn(6, 4).double().requires_grad_()
    target, weight = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(4).double() + 0.5
    rows = []
    for z, y in zip(logits, target.tolist(), strict=True):
        total = sum(max(margin - z[y] + z[j], z[j] * 0) ** p for j in range(4) if j != y) / 4
        rows.append(total * weight[y] if weighted else total)
    rows = torch.stack(rows)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    options = {"weight": weight if weighted else None, "reduction": reduction}
    found = hinge_loss(logits, target, margin=margin, p=p, **options)
    torch.testing.assert_close(found, expected, **CLOSE)
    grads = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, **CLOSE)


def focal(logits, target, gamma, weight, smoothing, reduction, ignore=-100):
    """Row by row; ``logits`` (rows, classes)."""
    rows, counts = [], []
    for z, y in zip(logits, target.tolist(), strict=True):
        p = z.exp() / z.exp().sum()
        w = torch.ones_like(z) if weight is None else weight
        aim = torch.full_like(z, smoothing / len(z))
        aim[y if y != ignore else 0] += 1 - smoothing
        counts.append(w[y] * (y != ignore) if y != ignore else z[0].detach() * 0)
        value = -(aim * w * p.log()).sum() * (1 - p[y if y != ignore else 0]) ** gamma
        rows.append(value if y != ignore else z[0] * 0)
    rows, counts = torch.stack(rows), torch.stack(counts)
    return {"mean": rows.sum() / counts.sum(), "sum": rows.sum(), "none": rows}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0, 0.5, 2.0])
def test_focal(gamma, weighted, smoothing, reduction):
    logits = torch.randn(6, 4).double().requires_grad_()
    target = torch.tensor([0, 1, 2, -100, 0, 3])
    weight = torch.rand(4).double() + 0.5 if weighted else None
    expected = focal(logits, target, gamma, weight, smoothing, reduction)
    found = focal_loss(logits, target, gamma, weight, smoothing, reduction=reduction)
    torch.testing.assert_close(found, expected, **CLOSE)
    grads = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, **CLOSE)
    if gamma == 0:
        options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        torch.testing.assert_close(found, F.cross_entropy(logits, target, **options), **CLOSE)


def test_focal_of_maps_and_ignore_index():
    logits, target = torch.randn(2, 4, 3, 5).double(), torch.randint(0, 4, (2, 3, 5))
    rows = logits.movedim(1, -1).reshape(-1, 4)
    expected = focal(rows, target.flatten(), 2.0, None, 0.0, "mean", ignore=1)
    found = focal_loss(logits, target, ignore_index=1)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_certain_predictions(gamma):
    """Where 1 - p is 0 in float32 there is neither loss nor slope, and no NaN."""
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma)
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert logits.grad[0].tolist() == [0, 0]
    torch.testing.assert_close(logits.grad[1], torch.tensor([-0.5, 0.5]))


Z, Y = torch.ones(2, 3), torch.tensor([0, 2])
ANY = [  # of hinge_loss and focal_loss
    ({"logits": None}, TypeError, "logits must be a tensor, got NoneType"),
    ({"logits": [[1.0] * 3] * 2}, TypeError, "logits must be a tensor, got list"),
    ({"logits": numpy.ones((2, 3))}, TypeError, "logits must be a tensor, got ndarray"),
    ({"logits": Z.long()}, TypeError, r"logits has dtype torch\.int64; it must be float32"),
    ({"logits": Z.to_sparse()}, TypeError, r"logits has layout torch\.sparse_coo"),
    ({"logits": Z.to("meta")}, ValueError, "target is on cpu but logits is on meta"),
    ({"logits": Z[0]}, ValueError, r"logits has shape \(3,\)"),
    ({"target": [0, 2]}, TypeError, "target must be a tensor, got list"),
    ({"target": Y.float()}, TypeError, r"target has dtype torch\.float32; it must hold classes"),
    ({"target": Y.int()}, TypeError, r"target has dtype torch\.int32; it must hold classes"),
    ({"target": Y[:1]}, ValueError, r"target has shape \(1,\); .* must be \(2,\)"),
    ({"target": Y.to_sparse()}, TypeError, r"target has layout torch\.sparse_coo"),
    ({"target": Y + 1}, ValueError, r"target holds 3; it must hold classes, 0 \.\. 2"),
    ({"target": Y - 1}, ValueError, r"target holds -1; it must hold classes, 0 \.\. 2"),
    ({"weight": [1.0] * 3}, TypeError, "weight must be a tensor, got list"),
    ({"weight": torch.ones(2)}, ValueError, r"weight has shape \(2,\); it must be \(3,\)"),
    ({"weight": torch.ones(3).double()}, ValueError, "weight has dtype torch.float64 but logits"),
    ({"weight": torch.ones(3, device="meta")}, ValueError, "weight is on meta but logits"),
    ({"reduction": "median"}, ValueError, "reduction is 'median'; it must be 'mean'"),
    ({"reduction": numpy.ones(2)}, ValueError, "reduction is array"),
]
HINGE = [
    ({"logits": Z[:, :0]}, ValueError, r"logits has shape \(2, 0\); it must be \(rows, classes\)"),
    ({"logits": Z.half()}, TypeError, "logits has dtype torch.float16, for which there is no"),
    ({"margin": "1"}, TypeError, "margin must be a number, got str"),
    ({"margin": torch.ones(2)}, TypeError, "margin must be a number, got Tensor"),
    ({"margin": math.nan}, ValueError, "margin is nan; it must be finite"),
    ({"p": 3}, ValueError, "p is 3; it must be 1 or 2"),
    ({"p": None}, ValueError, "p is None; it must be 1 or 2"),
]
FOCAL = [
    ({"gamma": "2"}, TypeError, "gamma must be a number, got str"),
    ({"gamma": torch.ones(2)}, TypeError, "gamma must be a number, got Tensor"),
    ({"gamma": -1}, ValueError, "gamma is -1; it must be at least 0"),
    ({"gamma": math.nan}, ValueError, "gamma is nan; it must be at least 0"),
    ({"label_smoothing": None}, TypeError, "label_smoothing must be a number, got NoneType"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; it must be 0 to 1"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int, got float"),
]


@pytest.mark.parametrize(
    ("function", "options", "exception", "message"),
    [
        *((hinge_loss, *case) for case in ANY + HINGE),
        *((focal_loss, *case) for case in ANY + FOCAL),
    ],
)
def test_hinge_and_focal_refuse(function, options, exception, message):
    given = {"logits": Z, "target": Y, **options}
    with pytest.raises(exception, match=message):
        function(**given)


@pytest.mark.parametrize("function", [hinge_loss, focal_loss])
def test_hinge_and_focal_refuse_freed_memory(function):
    freed = torch.ones(2, 3)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="logits has elements without memory"):
        function(freed, Y)


@pytest.mark.parametrize("function", [hinge_loss, focal_loss])
def test_hinge_and_focal_without_rows(function):
    rows = Z[:0], Y[:0]
    assert function(*rows).isnan(), "as any mean of nothing"
    assert function(*rows, reduction="sum") == 0
    assert function(*rows, reduction="none").shape == (0,)


@pytest.mark.parametrize("name", ["hinge_loss", "focal_loss"])
def test_autocast_and_compile(name):
    logits = torch.randn(6, 4, requires_grad=True)
    target, function = torch.tensor([0, 1, 2, 3, 0, 1]), getattr(losses, name)
    exact = function(logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(function(logits, target), exact)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target), exact)


# ------------------------------------------------------------------------------ class weights


def test_class_balanced_weights():
    counts, beta = [1000, 100, 10, 1], 0.99
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = torch.tensor([4 * w / sum(raw) for w in raw])
    torch.testing.assert_close(class_balanced_weights(counts, beta), expected)
    found = class_balanced_weights(torch.tensor(counts), beta, torch.float64)
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)
    equal = class_balanced_weights(counts, 0.0)
    assert equal.tolist() == [1, 1, 1, 1]


def test_class_balanced_weights_towards_inverse_frequency():
    found = class_balanced_weights([400, 100], 1 - 1e-12, torch.float64)
    torch.testing.assert_close(found, torch.tensor([0.4, 1.6]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_classes_without_examples(beta):
    assert class_balanced_weights([5, 0, 5], beta).tolist() == [1, 0, 1]
    assert class_balanced_weights([0, 0], beta).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"counts": [3, -1]}, ValueError, "counts is .*at least 0"),
        ({"counts": [3, math.nan]}, ValueError, "counts is .*at least 0"),
        ({"counts": [3, math.inf]}, ValueError, "counts is .*at least 0"),
        ({"counts": torch.ones(2, 2)}, ValueError, "one number per class, at least 0"),
        ({"counts": 3}, ValueError, "counts is 3; it must hold one number per class"),
        ({"counts": None}, TypeError, "counts is None; it must hold numbers"),
        ({"counts": "3"}, TypeError, "counts is '3'; it must hold numbers"),
        ({"counts": [3, "x"]}, TypeError, "counts is .*it must hold numbers"),
        ({"counts": [[3], [1, 2]]}, TypeError, "counts is .*it must hold numbers"),
        ({"counts": torch.ones(2).cfloat()}, TypeError, "counts is torch.complex64"),
        ({"counts": torch.ones(2, device="meta")}, TypeError, "counts is on meta"),
        ({"counts": torch.ones(2).to_sparse()}, TypeError, "counts has layout"),
        ({"beta": 1.0}, ValueError, r"beta is 1\.0"),
        ({"beta": math.nan}, ValueError, "beta is nan"),
        ({"beta": "x"}, TypeError, "beta must be a number, got str"),
        ({"dtype": torch.int64}, TypeError, "dtype is torch.int64; it must be a floating"),
        ({"dtype": "float32"}, TypeError, "dtype is 'float32'; it must be a floating"),
    ],
)
def test_class_balanced_weights_refuse(options, exception, message):
    with pytest.raises(exception, match=message):
        class_balanced_weights(**{"counts": [3, 1], **options})


def test_contrastive_loss_used_twice_before_backward():
    """Three modalities make three pairs of one temperature."""
    a, b, c = (torch.randn(6, 4, requires_grad=True) for _ in range(3))
    loss = ContrastiveLoss()
    total = loss(a, b) + loss(a, c)
    total.backward()
    scale = loss.logit_scale.detach().exp()
    expected = torch.zeros(())
    for other in (b, c):
        x, y = (nn.functional.normalize(v.detach(), dim=1) for v in (a, other))
        logits = scale * x @ y.t()
        rows = torch.arange(6)
        way = nn.functional.cross_entropy
        expected = expected + (way(logits, rows) + way(logits.t(), rows)) / 2
    torch.testing.assert_close(total.detach(), expected)
    assert loss.logit_scale.grad is not None
