"""Calls with one or two wrong arguments: a named error, or the result that plain PyTorch gives.

They run in a process of their own (runner.py), with the memory that they may take limited, so that
one that crashes, hangs or asks for everything is found and told like any other.
"""

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import mmfast
from fuzz import plain
from fuzz.pool import Pool
from fuzz.tensors import seeds
from fuzz.wrong import CHANGES, Unfit
from mmfast import functional
from mmfast.nn.registry import create_fusion, list_fusions
from mmfast.ops.library import host

Case = dict[str, Any]
Arguments = dict[str, Any]
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError)
# What torch says, not of an argument: that it has no memory, or no gradient of such a tensor.
TORCH_SAYS = r"can't allocate memory|[Ss]torage size calculation overflowed|Inference tensors"
# The layers of torch within a fusion: an input of another dtype than theirs, or a sparse one.
LAYERS_SAY = r"|same dtype|Could not run|not implemented for"
# What it says before an operator of torch.ops sees its arguments.
OPERATORS_SAY = (
    r"|Could not run|API call failed|not implemented for|UTF-8|surrogates|overflow|"
    r"Overloaded torch operator|Not yet supported ScalarType|expected at most|"
    r"Cannot access data pointer|^mmfast\.|jagged|NestedTensor|^the gradient of result"
)
NEEDED: dict[str, Arguments] = {  # options without which a fusion cannot be made
    "low_rank": {"rank": 2},
    "mutan": {"rank": 2},
    "cross_attention": {"num_heads": 2},
    "sequence": {"num_heads": 2},
    "bottleneck": {"num_heads": 2},
}
RIGHT: Arguments = {  # a right value of every option that some fusion takes
    "activation": "relu",
    "bias": True,
    "condition": [1],
    "device": "cpu",
    "dtype": torch.float32,
    "eps": 0.1,
    "factors": 2,
    "hidden": 3,
    "num_bottlenecks": 2,
    "num_heads": 2,
    "num_layers": 1,
    "pool": True,
    "project": None,
    "query": 0,
    "rank": 2,
    "weighted": True,
    "weights": "softmax",
}


class Call(NamedTuple):
    """A function and right arguments for it. ``plain``: the same in plain PyTorch, if there is."""

    function: Callable[..., Any]
    arguments: Callable[[Callable[..., Tensor]], Arguments]
    plain: Callable[..., Any] | None = None


def _mask(*shape: int) -> Tensor:
    return torch.arange(int(torch.tensor(shape).prod())).reshape(shape) % 3 > 0


FUNCTIONS: dict[str, Call] = {
    "concat_linear": Call(
        mmfast.concat_linear,
        lambda t: {"inputs": [t(4, 3), t(4, 2)], "weight": t(6, 5), "bias": t(6),
                   "activation": "relu"},
        plain.concat_linear,
    ),
    "concat_linear, index": Call(
        mmfast.concat_linear,
        lambda t: {"inputs": [t(4, 3), t(7, 2)], "weight": t(6, 5), "bias": None,
                   "index": [torch.tensor([0, 3, 1, 2, 3]), None]},
        plain.concat_linear,
    ),
    "explain_concat_linear": Call(
        functional.explain_concat_linear,
        lambda t: {"inputs": [t(4, 3), t(4, 2)], "weight": t(6, 5), "bias": t(6),
                   "index": [None, torch.tensor([0, 3, 1, 2])]},
    ),
    "weighted_sum": Call(
        functional.weighted_sum,
        lambda t: {"inputs": [t(4, 3), t(4, 3)], "weights": t(2), "present": _mask(4, 2),
                   "normalize": False, "per": "modality"},
        plain.weighted_sum,
    ),
    "weighted_sum, row": Call(
        functional.weighted_sum,
        lambda t: {"inputs": [t(4, 3), t(4, 3)], "weights": t(4, 2), "normalize": True},
        plain.weighted_sum,
    ),
    "attention_pool": Call(
        functional.attention_pool,
        lambda t: {"inputs": [t(4, 6), t(4, 6)], "query": t(6), "present": _mask(4, 2),
                   "num_heads": 2, "temperature": 0.5, "return_weights": True},
        plain.attention_pool,
    ),
    "gated_sum": Call(
        functional.gated_sum,
        lambda t: {"values": [t(4, 3), t(4, 3)], "gates": [t(4, 3)], "present": _mask(4, 2)},
        plain.gated_sum,
    ),
    "rank_product": Call(
        functional.rank_product,
        lambda t: {"factors": [t(4, 2, 3), t(4, 2, 3)], "weights": t(2), "present": _mask(4, 2)},
        plain.rank_product,
    ),
    "tensor_fusion": Call(
        functional.tensor_fusion,
        lambda t: {"inputs": [t(4, 3), t(4, 2)], "weight": t(5, 12), "bias": t(5),
                   "present": _mask(4, 2)},
        plain.tensor_fusion,
    ),
    "multi_source_attention": Call(
        functional.multi_source_attention,
        lambda t: {"query": t(2, 2, 3, 4), "keys": [t(2, 2, 5, 4), t(2, 2, 3, 4)],
                   "values": [t(2, 2, 5, 4), t(2, 2, 3, 4)], "masks": [_mask(2, 1, 1, 5), None],
                   "present": _mask(2, 2), "is_causal": False, "scale": 0.5, "enable_gqa": False},
        plain.multi_source_attention,
    ),
    "contrastive_loss": Call(
        mmfast.losses.contrastive_loss,
        lambda t: {"a": t(4, 3), "b": t(4, 3), "logit_scale": 2.0, "chunk_rows": 2},
        plain.contrastive_loss,
    ),
}  # fmt: skip

OPS = torch.ops.mmfast
OPERATORS: dict[str, tuple[Callable[[Callable[..., Tensor]], list], Callable[..., list]]] = {
    "concat_linear": (
        lambda t: [[t(4, 3), t(7, 2)], t(6, 5), t(6), [torch.tensor([0, 3, 1, 2, 3, 0, 1])], [0],
                   "gelu", True],
        lambda t, a: [t(7, 6), a[0], a[1], t(7, 6), *a[3:6], [0, 1, 2, 3]],
    ),
    "weighted_sum": (
        lambda t: [[t(4, 3), t(4, 3)], t(4, 2), _mask(4, 2), "row", True],
        lambda t, a: [t(4, 3), *a, [0, 1, 2]],
    ),
    "attention_pool": (
        lambda t: [[t(4, 6), t(4, 6)], t(6), _mask(4, 2), 2, 0.5],
        lambda t, a: [t(4, 6), t(4, 2, 2), *a, [0, 1, 2]],
    ),
    "gated_sum": (
        lambda t: [[t(4, 3), t(4, 3)], [t(4, 3)], _mask(4, 2)],
        lambda t, a: [t(4, 3), *a, [0, 1, 2]],
    ),
    "rank_product": (
        lambda t: [[t(4, 2, 3), t(4, 2, 3)], t(2), _mask(4, 2)],
        lambda t, a: [t(4, 3), *a, [0, 1, 2]],
    ),
}  # fmt: skip


def _operator(name: str, overload: str) -> Call:
    """An operator of torch.ops.mmfast itself, its arguments by the names of its schema."""
    make, backward = OPERATORS[name]
    packet = OPS.merge_attention if name == "merge_attention" else getattr(OPS, name)
    function = (
        getattr(OPS, f"{name}_backward").default
        if overload == "backward"
        else getattr(packet, overload)
    )
    names = [x.name for x in function._schema.arguments]

    def arguments(t: Callable[..., Tensor]) -> Arguments:
        given = backward(t, make(t)) if overload == "backward" else make(t)
        return dict(zip(names, given, strict=True))

    return Call(lambda **a: function(*a.values()), arguments)


def _fusion(name: str) -> Call:
    tokens = name in plain.TOKENS
    module = create_fusion(name, [3, 2], 4, **NEEDED.get(name, {}))

    def arguments(t: Callable[..., Tensor]) -> Arguments:
        shape = (4, 2) if tokens else (4,)
        given: Arguments = {"inputs": [t(*shape, 3), t(*shape, 2)], "present": _mask(4, 2)}
        if tokens:
            given["masks"] = [_mask(4, 2), None]
        if name == "concat":
            given["index"] = [None, torch.tensor([0, 3, 1, 2])]
        return given

    return Call(module, arguments)


def _constructor(name: str) -> Call:
    kind = type(create_fusion(name, [3, 2], 4, **NEEDED.get(name, {})))
    taken = inspect.signature(kind).parameters
    options = {option: value for option, value in RIGHT.items() if option in taken}
    return Call(
        lambda **given: create_fusion(name, **given),
        lambda t: {"in_features": [3, 2], "out_features": 4, **options},
    )


CALLS: dict[str, Call] = {
    **{f"bad {name}": call for name, call in FUNCTIONS.items()},
    **{
        f"bad ops.{name}.{overload}": _operator(name, overload)
        for name in OPERATORS
        for overload in ("default", "no_autograd", "backward")
    },
    "bad ops.concat_linear_plain": Call(
        OPS.concat_linear_plain.default,
        lambda t: {
            "inputs": [t(7, 3), t(7, 2)],
            "weight": t(6, 5),
            "bias": t(6),
            "activation": 2,
        },
    ),
    "bad ops.merge_attention": Call(
        OPS.merge_attention.default,
        lambda t: {"outputs": [t(2, 2, 3, 4), t(2, 2, 3, 4)], "lses": [t(2, 2, 3), t(2, 2, 3)]},
    ),
    **{f"bad nn.{name}": _fusion(name) for name in list_fusions()},
    **{f"bad create_fusion.{name}": _constructor(name) for name in list_fusions()},
}
NAMES = list(CALLS)


def cases(name: str) -> st.SearchStrategy[Case]:
    right = CALLS[name].arguments(torch.ones)
    places = [[k] for k in right]
    places += [[k, i] for k, v in right.items() if isinstance(v, list) for i in range(len(v))]
    change = st.tuples(st.sampled_from(places), st.sampled_from(list(CHANGES)))
    return st.fixed_dictionaries(
        {
            "target": st.just(name),
            "changes": st.lists(change, min_size=1, max_size=2),
            "training": st.booleans(),
            "isa": st.sampled_from(host.cpu_isas()[::-1]),
            "seed": seeds,
        }
    )


def changed(arguments: Arguments, case: Case) -> Arguments:
    """The arguments with what the case makes wrong; Unfit if none of it applies."""
    applied = 0
    for place, change in case["changes"]:
        holder: Any = arguments
        *path, last = place
        for step in path:
            holder = holder[step]
        if not isinstance(holder, (dict, list)) or (isinstance(last, int) and last >= len(holder)):
            continue
        if isinstance(holder, dict) and last not in holder:
            continue
        try:
            holder[last] = CHANGES[change](holder[last])
            applied += 1
        except Unfit:
            continue
    if not applied:
        raise Unfit
    return arguments


def run(case: Case, pool: Pool) -> None:
    """Run a case; AssertionError says what is wrong with what came of it."""
    generator = torch.Generator().manual_seed(case["seed"])
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    call = CALLS[case["target"]]
    right = call.arguments(make)
    if case["training"]:
        _require_gradients(right)
    try:
        arguments = changed(right, case)
    except Unfit:
        return
    pool.exact += 1  # tried
    host.force_cpu_isa(case["isa"] if case["isa"] in host.cpu_isas() else "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge(case["target"], call, arguments, list(right))
    finally:
        host.force_cpu_isa("")


def _require_gradients(arguments: Arguments) -> None:
    for value in arguments.values():
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, Tensor) and x.is_floating_point():
                x.requires_grad_()


def judge(name: str, call: Call, arguments: Arguments, names: list[str]) -> None:
    refusal = None
    try:
        result = call.function(**arguments)
    except Exception as error:
        refusal = error
    if refusal is not None:
        others = {"bad ops": OPERATORS_SAY, "bad nn": LAYERS_SAY}.get(name.split(".")[0], "")
        check_refusal(refusal, names, TORCH_SAYS + others)
        return
    results = result if isinstance(result, tuple) else (result,)
    found = [y for y in results if isinstance(y, Tensor)]
    for y in found:
        if y.requires_grad and y.dtype.is_floating_point and y.layout is torch.strided:
            y.sum().backward(retain_graph=True)
    if call.plain is None or not found or found[0].is_meta:
        return
    try:
        expected = call.plain(**arguments)
    except Exception as error:
        raise AssertionError(
            f"accepted, {tuple(found[0].shape)}, where plain PyTorch says {error!r}"
        ) from error
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(found, expected, strict=False):
        assert a.shape == b.shape, (
            f"accepted: shape {tuple(a.shape)}, in plain PyTorch {tuple(b.shape)}"
        )
        close = torch.isclose(a.double(), b.double(), rtol=2e-2, atol=2e-2, equal_nan=True)
        assert close.all(), "accepted, but not with the numbers of plain PyTorch"


def check_refusal(error: Exception, names: list[str], others: str) -> None:
    """That an error is of a kind that users expect, and names an argument."""
    assert isinstance(error, REFUSALS), f"not an error for users: {error!r}"
    text = str(error)
    named = any(re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in names)
    said = re.search(others, text)
    assert named or said, f"an error that names no argument: {error!r}"
