"""weighted_sum and the like called past the Python functions: refused, never a crash."""

import pytest
import torch

pytestmark = pytest.mark.cpu_only  # the arguments are made when this file is read

X, Y = torch.ones(4, 6), torch.ones(4, 6)
W, Q, P = torch.ones(2), torch.ones(6), torch.ones(4, 2, dtype=torch.bool)
H, K = torch.ones(4, 3, 6), torch.ones(3)  # a factor, the weights of its ranks
OPS = torch.ops.mmfast
CALLS = {
    "weighted_sum": ([X, Y], W, None, "modality", False),
    "attention_pool": ([X, Y], Q, None, 2, 0.5),
    "gated_sum": ([X, Y], [X], None),
    "rank_product": ([H, H], K, None),
}
GRADS = {"weighted_sum": (X,), "attention_pool": (X, torch.ones(4, 2, 2)), "gated_sum": (X,)}
GRADS["rank_product"] = (X,)

# operator, the position of an argument, what to put there, the message
DIRECT = [
    ("weighted_sum", 0, [], "inputs is empty"),
    ("weighted_sum", 0, [X, Y[:3]], r"inputs\[1\] has shape \(3, 6\); it must be \(4, 6\)"),
    ("weighted_sum", 0, [X, Y[None]], r"inputs\[1\] has shape \(1, 4, 6\)"),
    ("weighted_sum", 0, [X, Y.double()], r"inputs\[1\] has dtype Double.*Float"),
    ("weighted_sum", 0, [X.long(), Y.long()], r"inputs\[0\] has dtype Long"),
    ("weighted_sum", 0, [X.sum(), X.sum()], r"inputs\[0\] has shape \(\)"),
    ("weighted_sum", 0, [X, Y.to("meta")], r"inputs\[1\] is on meta"),
    ("weighted_sum", 1, torch.ones(3), r"weights has shape \(3,\); it must be \(2,\)"),
    ("weighted_sum", 1, torch.ones(()), r"weights has shape \(\)"),
    ("weighted_sum", 1, W.half(), "weights has dtype Half"),
    ("weighted_sum", 3, "feature", r"weights has shape \(2,\); it must be \(2, 6\)"),
    ("weighted_sum", 3, "row", r"weights has shape \(2,\); it must be \(4, 2\)"),
    ("weighted_sum", 3, "column", "per is 'column'"),
    ("attention_pool", 0, [], "inputs is empty"),
    ("attention_pool", 0, [X, Y[:3]], r"inputs\[1\] has shape \(3, 6\)"),
    ("attention_pool", 0, [X.sum(), X.sum()], r"inputs\[0\] has shape \(\)"),
    ("attention_pool", 1, torch.ones(5), r"query has shape \(5,\); it must be \(6,\)"),
    ("attention_pool", 1, torch.ones(()), r"query has shape \(\)"),
    ("attention_pool", 1, torch.ones(3, 6), r"query has shape \(3, 6\); it must be \(4, 6\)"),
    ("attention_pool", 1, Q.double(), "query has dtype Double"),
    ("attention_pool", 3, 0, "num_heads is 0"),
    ("attention_pool", 3, -1, "num_heads is -1"),
    ("attention_pool", 3, 4, "num_heads is 4; it must divide .* 6"),
    ("attention_pool", 3, 12, "num_heads is 12"),
    ("gated_sum", 0, [], "values is empty"),
    ("gated_sum", 0, [X, Y[:3]], r"values\[1\] has shape \(3, 6\)"),
    ("gated_sum", 0, [X.sum(), X.sum()], r"values\[0\] has shape \(\)"),
    ("gated_sum", 1, [], "gates holds 0 tensors; .* 2, or one fewer"),
    ("gated_sum", 1, [X, X, X], "gates holds 3 tensors"),
    ("gated_sum", 1, [X[:3]], r"gates\[0\] has shape \(3, 6\)"),
    ("gated_sum", 1, [X.half()], r"gates\[0\] has dtype Half"),
    ("rank_product", 0, [], "factors is empty"),
    ("rank_product", 0, [Q, Q], r"factors\[0\] has shape \(6,\); .* at least 2 dimensions"),
    ("rank_product", 0, [H, H[:, :2]], r"factors\[1\] has shape \(4, 2, 6\)"),
    ("rank_product", 1, torch.ones(4), r"weights has shape \(4,\); it must be \(3,\)"),
    ("rank_product", 1, torch.ones(()), r"weights has shape \(\)"),
    ("rank_product", 1, K.double(), "weights has dtype Double"),
    *(
        (operator, 2, *case)
        for operator in CALLS
        for case in (
            (torch.ones(4, 3).bool(), r"present has shape \(4, 3\); it must be \(4, 2\)"),
            (torch.ones(2).bool(), r"present has shape \(2,\)"),
            (torch.ones(()).bool(), r"present has shape \(\)"),
            (torch.ones(4, 2), "present has dtype Float; it must be bool"),
            (P.to("meta"), "present is on meta"),
        )
    ),
]


@pytest.mark.parametrize("overload", ["default", "no_autograd", "backward"])
@pytest.mark.parametrize(("operator", "at", "value", "message"), DIRECT, ids=str)
def test_operators_guard_themselves(operator, at, value, message, overload):
    """Called past the Python function, forward and backward must refuse too, and never crash."""
    arguments = list(CALLS[operator])
    arguments[at] = value
    if overload == "backward":
        function = getattr(OPS, f"{operator}_backward").default
        arguments = [*GRADS[operator], *arguments, [0]]
    else:
        function = getattr(getattr(OPS, operator), overload)
    with pytest.raises((RuntimeError, ValueError), match=message):
        function(*arguments)


@pytest.mark.parametrize("operator", CALLS)
def test_backward_operators_guard_themselves(operator):
    backward = getattr(OPS, f"{operator}_backward").default
    grads, arguments = GRADS[operator], CALLS[operator]
    count = 3
    for wanted, message in (
        ([count], rf"wanted holds {count}; it must lie in 0 .. {count - 1}"),
        ([-1], "wanted holds -1"),
        ([2**62], "wanted holds"),
        ([1, 1], "wanted holds 1 twice"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*grads, *arguments, wanted)
        meta = [x.to("meta") for x in grads]
        with pytest.raises((RuntimeError, ValueError)):
            backward(*meta, *arguments, wanted)
    for grad, message in (
        (X[:3], r"grad has shape \(3, 6\); it must be \(4, 6\)"),
        (X.sum(), r"grad has shape \(\)"),
        (X.double(), "grad has dtype Double"),
        (X.to("meta"), "gradient of result 0 is .* on meta; it must be .* on cpu"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            backward(grad, *grads[1:], *arguments, [0])


def test_particular_gradients_are_guarded():
    for grad, message in (
        (torch.ones(4, 2, 3), r"grad_weights has shape \(4, 2, 3\); it must be \(4, 2, 2\)"),
        (torch.ones(4, 2, 2).half(), "grad_weights has dtype Half"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.attention_pool_backward(X, grad, *CALLS["attention_pool"], [0])
    with pytest.raises(RuntimeError, match="wanted holds 2, the weights, but weights is None"):
        OPS.rank_product_backward(X, [H, H], None, None, [2])


def test_any_number_of_rows_of_no_features_ends():
    """They cost no memory, and so must cost no time."""
    x, factor, flat = [torch.ones(1, *row, 0).expand(2**40, *row, 0) for row in ((), (2,), (0,))]
    assert OPS.weighted_sum.no_autograd([x, x], W, None, "modality", True).shape == x.shape
    assert OPS.gated_sum.no_autograd([x, x], [x], None).shape == x.shape
    assert OPS.rank_product.no_autograd([factor, factor], W, None).shape == x.shape
    assert OPS.rank_product.no_autograd([flat, flat], None, None).shape == x.shape
    for found in (
        OPS.weighted_sum_backward(x, [x, x], W, None, "modality", True, [0, 2])[1],
        OPS.rank_product_backward(x, [factor, factor], W, None, [0, 2])[1],
    ):
        assert torch.equal(found, torch.zeros(2))
    assert [y.shape for y in OPS.gated_sum_backward(x, [x, x], [x], None, [0, 2])] == [x.shape] * 2
    ranks = torch.ones(1, 0, 3).expand(2**40, 0, 3)
    grad = torch.ones(1, 3).expand(2**40, 3)
    [found] = OPS.rank_product_backward(grad, [ranks, ranks], None, None, [0])
    assert found.shape == ranks.shape


def test_any_number_of_heads_of_no_features_ends():
    x = torch.ones(4, 0)
    arguments = ([x, x], torch.ones(0), None, 2**62, 1.0)
    found = OPS.attention_pool_backward(x, None, *arguments, [0, 2])
    assert [y.shape for y in found] == [(4, 0), (0,)]
    with pytest.raises(RuntimeError):  # there is no memory for so many weights
        OPS.attention_pool.no_autograd(*arguments)
