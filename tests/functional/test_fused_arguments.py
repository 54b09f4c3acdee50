"""weighted_sum, attention_pool, gated_sum, rank_product: what they say about wrong arguments."""

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfast.functional import attention_pool, gated_sum, rank_product, weighted_sum

pytestmark = pytest.mark.cpu_only  # the arguments are made when this file is read

X, Y = torch.ones(4, 6), torch.ones(4, 6)
W, Q, P = torch.ones(2), torch.ones(6), torch.ones(4, 2, dtype=torch.bool)
H, K = torch.ones(4, 3, 6), torch.ones(3)  # a factor, the weights of its ranks
F = {"weighted_sum": weighted_sum, "attention_pool": attention_pool, "gated_sum": gated_sum}
F["rank_product"] = rank_product
GOOD = {
    "weighted_sum": ([X, Y], W),
    "attention_pool": ([X, Y], Q),
    "gated_sum": ([X, Y], [X]),
    "rank_product": ([H, H], K),
}
LIST = {"weighted_sum": "inputs", "attention_pool": "inputs", "gated_sum": "values"}
LIST["rank_product"] = "factors"

# arguments, the exception, and what its message must name: the argument, what it was, what it
# must be. LIST stands for the name of the list.
COMMON = {
    "empty": (lambda x, o: ([], o), ValueError, ["LIST is empty", "at least one"]),
    "tensor as list": (lambda x, o: (x, o), TypeError, ["LIST must be a sequence", "Tensor"]),
    "number as list": (lambda x, o: (3, o), TypeError, ["LIST must be a sequence", "int"]),
    "not a tensor": (lambda x, o: ([x, "t"], o), TypeError, [r"LIST\[1\] must be a tensor", "str"]),
    "None in list": (lambda x, o: ([None, x], o), TypeError, [r"LIST\[0\]", "NoneType"]),
    "mixed dtypes": (
        lambda x, o: ([x, x.double()], o),
        ValueError,
        [r"LIST\[1\] has dtype torch.float64", r"LIST\[0\] has torch.float32", "equal"],
    ),
    "integers": (
        lambda x, o: ([x.long(), x.long()], o),
        TypeError,
        [r"LIST\[0\] has dtype torch.int64", "float32, float64, bfloat16 or float16"],
    ),
    "complex": (lambda x, o: ([x.cfloat()] * 2, o), TypeError, [r"LIST\[0\]", "complex64"]),
    "mixed devices": (
        lambda x, o: ([x, x.to("meta")], o),
        ValueError,
        [r"LIST\[1\] is on meta but LIST\[0\] is on cpu", "share"],
    ),
    "sparse": (lambda x, o: ([x, x.to_sparse()], o), TypeError, [r"LIST\[1\]", "sparse", "dense"]),
    "nested": (
        lambda x, o: ([x, torch.nested.nested_tensor([x[0], x[0]])], o),
        TypeError,
        [r"LIST\[1\] is nested", "dense"],
    ),
    "no dimensions": (
        lambda x, o: ([x.sum()] * 2, o),
        ValueError,
        [r"LIST\[0\]", r"\(\)", "least"],
    ),
    "shapes": (
        lambda x, o: ([x, x[:3]], o),
        ValueError,
        ["shapes of LIST do not broadcast", r"\(4, ", r"\(3, ", "equal or 1"],
    ),
    "present is a list": (
        lambda x, o: ([x, x], o, [True, False]),
        TypeError,
        ["present must be a bool tensor or None, got list"],
    ),
    "present of numbers": (
        lambda x, o: ([x, x], o, torch.ones(4, 2)),
        TypeError,
        ["present has dtype torch.float32; it must be torch.bool"],
    ),
    "present of another batch": (
        lambda x, o: ([x, x], o, torch.ones(3, 2).bool()),
        ValueError,
        [r"present has shape \(3, 2\); it must be \(4, 2\)"],
    ),
    "present of another count": (
        lambda x, o: ([x, x], o, torch.ones(4, 3).bool()),
        ValueError,
        [r"present has shape \(4, 3\); it must be \(4, 2\)"],
    ),
    "present of more dimensions": (
        lambda x, o: ([x, x], o, torch.ones(2, 4, 2).bool()),
        ValueError,
        [r"present has shape \(2, 4, 2\); it must be \(4, 2\)"],
    ),
    "present elsewhere": (
        lambda x, o: ([x, x], o, P.to("meta")),
        ValueError,
        ["present is on meta but the inputs are on cpu", "share"],
    ),
}

WRONG = {
    ("weighted_sum", "weights not a tensor"): (
        ([X, Y], 0.5),
        {},
        TypeError,
        ["weights must be a tensor, got float"],
    ),
    ("weighted_sum", "weights are a list"): (
        ([X, Y], [0.5, 0.5]),
        {},
        TypeError,
        ["weights must be a tensor, got list"],
    ),
    ("weighted_sum", "count"): (
        ([X, Y], torch.ones(3)),
        {},
        ValueError,
        [r"weights has shape \(3,\), which fits nothing", r"\(2,\), \(2, 6\) or \(4, 2\)"],
    ),
    ("weighted_sum", "two meanings"): (
        ([torch.ones(2, 2)] * 2, torch.ones(2, 2)),
        {},
        ValueError,
        [r"weights has shape \(2, 2\), .* per feature or per row", "per must say which"],
    ),
    ("weighted_sum", "two meanings, two modalities in one row"): (
        ([torch.ones(1, 1)], torch.ones(1, 1)),
        {},
        ValueError,
        ["per feature or per row"],
    ),
    ("weighted_sum", "not what per says"): (
        ([X, Y], W),
        {"per": "feature"},
        ValueError,
        [r"weights has shape \(2,\); with per='feature' it must be \(2, 6\)"],
    ),
    ("weighted_sum", "not per row"): (
        ([X, Y], torch.ones(3, 2)),
        {"per": "row"},
        ValueError,
        [r"weights has shape \(3, 2\); with per='row' it must be \(4, 2\)"],
    ),
    ("weighted_sum", "sparse present"): (
        ([X, Y], W, torch.ones(4, 2).bool().to_sparse()),
        {},
        TypeError,
        ["present has layout torch.sparse_coo; it must be dense"],
    ),
    ("attention_pool", "temperature is a word"): (
        ([X, Y], Q),
        {"temperature": "warm"},
        TypeError,
        ["temperature must be a number or None, got str"],
    ),
    ("weighted_sum", "unknown per"): (
        ([X, Y], W),
        {"per": "column"},
        ValueError,
        ["per is 'column'; it must be one of modality, feature, row"],
    ),
    ("weighted_sum", "per is a number"): (([X, Y], W), {"per": 1}, ValueError, ["per is 1"]),
    ("weighted_sum", "per is an array"): (
        ([X, Y], W),
        {"per": numpy.ones(2)},
        ValueError,
        [r"per is array\(.*; it must be one of modality, feature, row"],
    ),
    **{
        (operator, f"{option} is a {type(value).__name__}"): (
            GOOD[operator],
            {option: value},
            TypeError,
            [f"{option} must be a bool, got {type(value).__name__}"],
        )
        for operator, option in (
            ("weighted_sum", "normalize"),
            ("attention_pool", "return_weights"),
        )
        for value in (W, "yes", [True])
    },
    ("weighted_sum", "dtype"): (
        ([X, Y], W.double()),
        {},
        ValueError,
        [r"weights has dtype torch.float64 but inputs\[0\] has torch.float32"],
    ),
    ("attention_pool", "query not a tensor"): (
        ([X, Y], "query"),
        {},
        TypeError,
        ["query must be a tensor, got str"],
    ),
    ("attention_pool", "query shape"): (
        ([X, Y], torch.ones(5)),
        {},
        ValueError,
        [r"query has shape \(5,\); it must be \(6,\), .* or \(4, 6\)"],
    ),
    ("attention_pool", "query of another batch"): (
        ([X, Y], torch.ones(3, 6)),
        {},
        ValueError,
        [r"query has shape \(3, 6\)"],
    ),
    ("attention_pool", "query dtype"): (([X, Y], Q.half()), {}, ValueError, ["query", "float16"]),
    ("attention_pool", "query of integers"): (
        ([X, Y], Q.long()),
        {},
        TypeError,
        ["query", "int64"],
    ),
    ("attention_pool", "heads"): (
        ([X, Y], Q),
        {"num_heads": 4},
        ValueError,
        ["num_heads is 4; it must divide the features of the inputs, 6"],
    ),
    **{
        ("attention_pool", f"{heads!r} heads"): (
            ([X, Y], Q),
            {"num_heads": heads},
            ValueError,
            [f"num_heads is {heads!r}; it must be an int of at least 1"],
        )
        for heads in (0, -2, 2.0, "2", True, None)
    },
    **{
        ("attention_pool", f"temperature {value}"): (
            ([X, Y], Q),
            {"temperature": value},
            ValueError,
            [f"temperature is {value}; it must be positive, or None"],
        )
        for value in (0, 0.0, -1.0, float("nan"))
    },
    ("attention_pool", "temperature is a tensor"): (
        ([X, Y], Q),
        {"temperature": torch.ones((), requires_grad=True)},
        TypeError,
        ["temperature must be a number or None, got a tensor"],
    ),
    ("gated_sum", "gates are a tensor"): (
        ([X, Y], X),
        {},
        TypeError,
        ["gates must be a sequence of tensors, got (Fake)?Tensor"],
    ),
    ("gated_sum", "gate not a tensor"): (
        ([X, Y], [X, 0.5]),
        {},
        TypeError,
        [r"gates\[1\] must be a tensor, got float"],
    ),
    ("gated_sum", "too few gates"): (
        ([X, Y, X], [X]),
        {},
        ValueError,
        ["gates holds 1 tensors; it must hold as many as values, 3, or one fewer"],
    ),
    ("gated_sum", "too many gates"): (([X], [X, X]), {}, ValueError, ["gates holds 2 tensors"]),
    ("gated_sum", "gate shape"): (
        ([X, Y], [X[:3]]),
        {},
        ValueError,
        [r"gates\[0\] has shape \(3, 6\) but values\[0\] has \(4, 6\)"],
    ),
    ("gated_sum", "gate of more dimensions"): (
        ([X, Y], [X[None]]),
        {},
        ValueError,
        [r"gates\[0\] has shape \(1, 4, 6\)"],
    ),
    ("gated_sum", "gate dtype"): (([X, Y], [X.double()]), {}, ValueError, [r"gates\[0\]", "64"]),
    ("rank_product", "weights not a tensor"): (
        ([H, H], 0.5),
        {},
        TypeError,
        ["weights must be a tensor or None, got float"],
    ),
    ("rank_product", "weights shape"): (
        ([H, H], torch.ones(4)),
        {},
        ValueError,
        [r"weights has shape \(4,\); it must be \(3,\), one per rank"],
    ),
    ("rank_product", "weights dtype"): (([H, H], K.half()), {}, ValueError, ["weights", "float16"]),
    ("rank_product", "one dimension"): (
        ([Q, Q], None),
        {},
        ValueError,
        [r"factors\[0\] has shape \(6,\); it must have at least 2 dimensions"],
    ),
}
for operator, (first, other) in GOOD.items():
    for name, (arguments, exception, words) in COMMON.items():
        words = [word.replace("LIST", LIST[operator]) for word in words]
        WRONG[operator, name] = (arguments(first[0], other), {}, exception, words)

IDS = [", ".join(key) for key in WRONG]


def asking(arguments):
    """The same, with gradients asked of whatever can have one."""

    def ask(x):
        if isinstance(x, list):
            return [ask(item) for item in x]
        floating = isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())
        return x.clone().requires_grad_() if floating else x

    return [ask(x) for x in arguments]


@pytest.mark.parametrize("how", ["plain", "grad", "autocast"])
@pytest.mark.parametrize("key", WRONG, ids=IDS)
def test_wrong_arguments(key, how):
    arguments, options, exception, words = WRONG[key]
    if how == "autocast" and ("dtype" in key[1] or "devices" in key[1]):
        pytest.skip("autocast converts")
    arguments = asking(arguments) if how == "grad" else arguments
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast")
    with autocast, pytest.raises(exception) as info:
        F[key[0]](*arguments, **options)
    for word in words:
        info.match(word)


@pytest.mark.parametrize("key", WRONG, ids=IDS)
def test_wrong_arguments_traced(key):
    """The fake kernel refuses what the real one refuses, in the same words."""
    arguments, options, exception, words = WRONG[key]
    if key[1] in ("mixed devices", "sparse", "nested", "sparse present", "present elsewhere"):
        pytest.skip("not to be had under FakeTensorMode")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(x):
            if isinstance(x, list):
                return [fake(item) for item in x]
            return mode.from_tensor(x) if isinstance(x, torch.Tensor) else x

        with pytest.raises(exception) as info:
            F[key[0]](*map(fake, arguments), **options)
    for word in words:
        info.match(word)


@pytest.mark.parametrize("operator", GOOD)
def test_lists_may_be_tuples(operator):
    first, other = GOOD[operator]
    plain = F[operator](first, other)
    other = tuple(other) if isinstance(other, list) else other
    assert torch.equal(F[operator](tuple(first), other), plain)
