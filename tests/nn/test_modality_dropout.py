"""mmfast.nn.ModalityDropout: what it drops, how often, and what it never drops."""

import pickle

import pytest
import torch

from mmfast.nn.late import LateFusion
from mmfast.nn.modality_dropout import ModalityDropout

ROWS = 40_000


def inputs(*batch, count=3):
    return [torch.randn(*batch, m + 1) for m in range(count)]


def close(found, expected):
    """Of a frequency over ROWS draws: five standard deviations."""
    return abs(found - expected) < 5 * (0.25 / ROWS) ** 0.5


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_frequency(p):
    kept = ModalityDropout(p, at_least_one=False)(inputs(ROWS))
    assert kept.shape == (ROWS, 3)
    assert kept.dtype == torch.bool
    for m in range(3):
        assert close(kept[:, m].float().mean().item(), 1 - p)
    assert close(kept.all(1).float().mean().item(), (1 - p) ** 3)  # independent of each other
    assert close((~kept).all(1).float().mean().item(), p**3)
    assert p != 0 or kept.all()
    assert p != 1 or not kept.any()


@pytest.mark.parametrize("p", [0.3, 0.9, 1.0])
def test_at_least_one(p):
    """Rows that keep some are drawn as before; the others keep each modality equally often."""
    kept = ModalityDropout(p)(inputs(ROWS))
    assert kept.any(1).all()
    for m in range(3):
        assert close(kept[:, m].float().mean().item(), 1 - p + p**3 / 3)
    assert close(kept.all(1).float().mean().item(), (1 - p) ** 3)


@pytest.mark.parametrize("at_least_one", [False, True])
def test_absent_stays_absent(at_least_one):
    present = torch.rand(1000, 3) > 0.5
    kept = ModalityDropout(0.6, at_least_one)(inputs(1000), present)
    assert not (kept & ~present).any()
    assert (present & ~kept).any()
    if at_least_one:
        assert torch.equal(kept.any(1), present.any(1))


def test_the_last_one_left_stays():
    present = torch.eye(3).bool()
    for _ in range(20):
        assert torch.equal(ModalityDropout(1.0)(inputs(3), present), present)


def test_evaluation():
    dropout, present = ModalityDropout(0.9).eval(), torch.rand(5, 3) > 0.5
    assert dropout(inputs(5), present) is present
    assert dropout(inputs(5)).shape == (5, 3)
    assert dropout(inputs(5)).all()


def test_present_is_not_changed():
    present = torch.ones(50, 3).bool()
    ModalityDropout(0.9)(inputs(50), present)
    assert present.all()


def test_seed():
    dropout = ModalityDropout(0.5)
    tensors = inputs(50)
    torch.manual_seed(3)
    first, second = dropout(tensors), dropout(tensors)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(tensors), first)


@pytest.mark.parametrize(
    ("batches", "shape"),
    [
        ([(4,), (4,)], (4, 2)),
        ([(2, 3), (2, 3)], (2, 3, 2)),
        ([(2, 3), (2, 1)], (2, 3, 2)),
        ([(0,), (0,)], (0, 2)),
        ([(), ()], (2,)),
    ],
)
def test_shape(batches, shape):
    tensors = [torch.randn(*batch, 5) for batch in batches]
    assert ModalityDropout(0.5)(tensors).shape == shape
    assert ModalityDropout(0.5)(dict(zip("ab", tensors, strict=True))).shape == shape
    assert ModalityDropout(0.5).eval()(tensors).shape == shape


def test_tokens_are_dropped_together():
    tokens = [torch.randn(8, 5, 3), torch.randn(8, 7, 3)]  # no common length
    kept = ModalityDropout(0.5)(tokens, torch.ones(8, 2).bool())
    assert kept.shape == (8, 2)
    assert not kept.all()


def test_with_a_fusion():
    """A dropped modality has no part in the result, and its gradient is zero."""
    fusion, dropout = LateFusion([3, 3], 2), ModalityDropout(0.5)
    tensors = [torch.randn(50, 3, requires_grad=True) for _ in range(2)]
    kept = dropout(tensors)
    fusion(tensors, kept).sum().backward()
    for m, x in enumerate(tensors):
        assert torch.equal(x.grad.any(1), kept[:, m])


def test_compile():
    dropout, tensors = ModalityDropout(0.5), inputs(50)
    torch._dynamo.reset()
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    kept = compiled(tensors)
    assert kept.any(1).all()
    assert not kept.all()
    assert not torch.equal(compiled(tensors), kept)


def test_nothing_to_save():
    dropout = ModalityDropout(0.25, at_least_one=False)
    assert not dropout.state_dict()
    assert (
        repr(pickle.loads(pickle.dumps(dropout))) == "ModalityDropout(p=0.25, at_least_one=False)"
    )


@pytest.mark.parametrize("p", [-0.1, 1.5, True, "0.5", None, float("nan")])
def test_constructor_refuses(p):
    with pytest.raises(ValueError, match=r"p is .*; it must be a probability"):
        ModalityDropout(p)


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ((X,), TypeError, "inputs must be a sequence or mapping of tensors"),
        ((None,), TypeError, "inputs must be a sequence or mapping of tensors, got NoneType"),
        (([X, 3],), TypeError, r"inputs\[1\] must be a tensor, got int"),
        (([],), ValueError, "inputs is empty"),
        (([X, X[:3]],), ValueError, "batch shapes of inputs do not broadcast"),
        (([X, X], [True, True]), TypeError, "present must be a bool tensor.*got list"),
        (([X, X], torch.ones(4, 2)), TypeError, r"got torch\.float32"),
        (([X, X], torch.ones(4, 3).bool()), ValueError, r"shape \(4, 3\).*\(\*batch, 2\)"),
        (([X], torch.tensor(True)), ValueError, r"present has shape \(\)"),
    ],
)
@pytest.mark.cpu_only
def test_forward_refuses(arguments, exception, message):
    with pytest.raises(exception, match=message):
        ModalityDropout()(*arguments)
