"""The operators over rows: what to draw for a call, and the call made from it.

Formulas and what is usual come from reference.py and fused_cases.py, which do not use mmfast.
"""

import math
from typing import Any

import fused_cases
import reference
import torch
from hypothesis import strategies as st
from torch import Tensor

import mmfast
from fuzz.judge import Problem
from fuzz.tensors import (
    DTYPES,
    batches,
    layouts,
    random_index,
    random_mask,
    random_tensor,
    seeds,
    small,
    smaller,
    spoil,
)

Case = dict[str, Any]

SMOOTH = ("none", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
values = st.sampled_from(("integers", "integers", "normal", "large"))
dtypes = st.sampled_from((*DTYPES, "float32", "bfloat16"))
widths = st.one_of(small, st.sampled_from((0, 1, 127, 128, 129, 255, 257, 300, 513)))
heights = st.one_of(small, st.sampled_from((0, 1, 127, 128, 160, 257, 513)))


@st.composite
def spec(draw: st.DrawFn, shape: list[int], need: bool = True) -> Case:
    """A tensor of that shape: its layout, and whether it needs a gradient."""
    return {"shape": shape, "layout": draw(layouts), "needs": need and draw(st.booleans())}


def made(case: Case, name: str, i: int = 0, terms: int = 1) -> Tensor:
    entry = case[name][i] if isinstance(case[name], list) else case[name]
    seed = case["seed"] + 1000 * i + sum(map(ord, name))
    arguments = (entry["shape"], entry["layout"], DTYPES[case["dtype"]], seed)
    return random_tensor(*arguments, case["values"], terms)


def gradients(case: Case, terms: int = 1):
    """Of results: of any layout, like a call's own arguments."""

    def make(i: int, y: Tensor) -> Tensor:
        layout = case["grad"][min(i, len(case["grad"]) - 1)]
        arguments = (list(y.shape), layout, DTYPES[case["dtype"]], case["seed"] + 7777 + i)
        return random_tensor(*arguments, case["values"], terms)

    return make


def density_terms(terms: int) -> int:
    """What leaves about 80 products that are not 0 in a sum of ``terms`` of them."""
    return max(1, int(40 * math.sqrt(terms / 80)))


# ----------------------------------------------------------------------------------- concat_linear


@st.composite
def concat_linear(draw: st.DrawFn, most: int = 2**21) -> Case:
    dtype, kind = draw(dtypes), draw(values)
    # relu jumps where float64 and the type may be on different sides, but not for integers.
    names = ("none", "relu") if kind == "integers" else SMOOTH
    batch = draw(batches(draw(st.sampled_from((40, 300, 300, 2500)))))
    count = draw(st.sampled_from((1, 1, 2, 2, 2, 3, 3, 4, 6, 30)))
    inputs, index = [], []
    for _ in range(count):
        width = draw(small if count == 30 else widths)
        picks = None
        own = draw(smaller(batch))
        if draw(st.integers(0, 3)) == 0:
            rows = draw(small)
            kind_of_index = draw(st.sampled_from(("int64", "int64", "int32")))
            picks = {"shape": own, "layout": draw(layouts), "dtype": kind_of_index}
            own = [rows]
        inputs.append(draw(spec([*own, width])))
        index.append(picks)
    together = sum(x["shape"][-1] for x in inputs)
    rows = math.prod(batch)
    cols = draw(heights)
    while rows * cols * together > most:
        cols //= 2
    return {
        "inputs": inputs,
        "index": index,
        "weight": draw(spec([cols, together])),
        "bias": draw(st.none() | spec([cols])),
        "activation": draw(st.sampled_from(names)),
        "grad": [draw(layouts)],
        "dtype": dtype,
        "values": kind,
        "seed": draw(seeds),
    }


def concat_linear_arguments(case: Case) -> tuple[list[Tensor], list[Tensor | None]]:
    """Inputs, weight and bias if there is one; and the index."""
    count = len(case["inputs"])
    shapes = [
        x["shape"][:-1] if i is None else i["shape"]
        for x, i in zip(case["inputs"], case["index"], strict=True)
    ]
    rows = math.prod(torch.broadcast_shapes(*shapes))
    cols, width = case["weight"]["shape"]
    terms = density_terms(max(width, rows, cols * rows // min(rows or 1, 8)))
    names = [("inputs", i) for i in range(count)] + [("weight", 0)]
    names += [("bias", 0)] if case["bias"] else []
    tensors = [made(case, name, i, terms) for name, i in names]
    index = [
        None
        if x is None
        else random_index(
            x["shape"], x["layout"], getattr(torch, x["dtype"]), case["seed"] + i,
            case["inputs"][i]["shape"][0],
        )
        for i, x in enumerate(case["index"])
    ]  # fmt: skip
    return tensors, index


def concat_linear_problem(case: Case) -> Problem:
    count = len(case["inputs"])
    tensors, index = concat_linear_arguments(case)
    picked = any(x is not None for x in index)

    def parts(leaves: list[Tensor]) -> tuple:
        return leaves[:count], leaves[count], leaves[count + 1] if case["bias"] else None

    def call(leaves):
        given = {"index": index} if picked else {}
        return (mmfast.concat_linear(*parts(leaves), activation=case["activation"], **given),)

    def rows(leaves):
        inputs, weight, bias = parts(leaves)
        pairs = zip(inputs, index, strict=True)
        return [x if i is None else x[i.long()] for x, i in pairs], weight, bias

    entries = [*case["inputs"], case["weight"], *([case["bias"]] if case["bias"] else [])]
    rows_in_all = math.prod(rows(tensors)[0][0].shape[:-1]) if count else 0
    return Problem(
        tensors,
        [*(f"inputs[{i}]" for i in range(count)), "weight", "bias"][: len(tensors)],
        [x["needs"] for x in entries],
        call,
        lambda leaves: (reference.concat_linear(*rows(leaves), case["activation"]),),
        lambda leaves: (reference.eager_concat_linear(*rows(leaves), case["activation"]),),
        gradients(case, density_terms(max(rows_in_all, case["weight"]["shape"][0]))),
        case["values"] == "integers",
        [x for x in index if x is not None],
        rounds=rounded_between(case),
    )


def rounded_between(case: Case) -> bool:
    """Whether the library rounds its product before those of inputs that repeat are added.

    So it does in 16 bits (README, limits), which shows where they cancel.
    """
    own = case["dtype"] == "bfloat16" and case["isa"] == "avx512_bf16"
    if own or case["dtype"] not in ("bfloat16", "float16"):
        return False
    shapes = {tuple(x["shape"][:-1]) for x in case["inputs"]}
    return len(shapes) > 1 or any(case["index"]) or "repeated" in str(case["inputs"])


# ---------------------------------------------------------------------------------- combining rows


@st.composite
def over_rows(draw: st.DrawFn, operator: str) -> Case:
    name = draw(
        st.sampled_from([n for n, v in fused_cases.VARIANTS.items() if v.operator == operator])
    )
    kind = draw(values)
    if operator in ("attention_pool", "gated_sum") or name.endswith("mean"):
        kind = draw(st.sampled_from(("normal", "large")))
    batch = draw(batches(draw(st.sampled_from((20, 100, 700)))))
    count = draw(st.sampled_from((1, 2, 2, 2, 3, 3, 4, 5, 17)))
    if operator == "rank_product" and kind == "integers":
        count = min(count, 5)
    cols = draw(widths if math.prod(batch) < 200 else small)
    size = fused_cases.Size(tuple(batch), count, cols, draw(st.sampled_from((1, 1, 2, 3, 8))))
    shapes = [list(x.shape) for x in fused_cases.VARIANTS[name].draw(size)]
    # What may broadcast: all but the weights and the query, whose shapes mean something.
    row_dims = 2 if operator == "rank_product" else 1
    fixed = 0 if operator == "gated_sum" else len(shapes) - count
    for i in range(len(shapes) - fixed):
        if draw(st.integers(0, 3)) == 0 and i > 0:
            lead = draw(smaller(batch))
            # rows keep their width, but for one that broadcasts along it too
            shapes[i] = [*lead, *shapes[i][len(shapes[i]) - row_dims :]]
    return {
        "variant": name,
        "tensors": [draw(spec(shape)) for shape in shapes],
        "present": draw(st.none() | spec([*draw(smaller(batch, False)), count], False)),
        "spoilt": draw(st.booleans()),
        "temperature": draw(st.sampled_from((None, None, 0.5, 3.0))),
        "grad": [draw(layouts), draw(layouts)],
        "dtype": draw(dtypes),
        "values": kind,
        "seed": draw(seeds),
    }


def full_shapes(case: Case) -> list[tuple[int, ...]]:
    """Every tensor's shape after broadcasting, which formulas want to have happened."""
    variant = fused_cases.VARIANTS[case["variant"]]
    shapes = [tuple(x["shape"]) for x in case["tensors"]]
    if variant.operator == "gated_sum":
        return [torch.broadcast_shapes(*shapes)] * len(shapes)
    rest = 1 if variant.split([0, 1])[-1] == 1 else 0
    inputs = shapes[: len(shapes) - rest]
    return [torch.broadcast_shapes(*inputs)] * len(inputs) + shapes[len(inputs) :]


def over_rows_problem(case: Case) -> Problem:
    variant = fused_cases.VARIANTS[case["variant"]]
    if variant.operator == "attention_pool" and case["temperature"]:
        variant = variant.with_options(temperature=case["temperature"])
    shapes = full_shapes(case)
    row_dims = 2 if variant.operator == "rank_product" else 1
    batch = shapes[0][:-row_dims]
    tensors = [made(case, "tensors", i) for i in range(len(shapes))]
    if case["values"] == "integers" and variant.operator == "rank_product":
        tensors = [x.sign() if i % 2 else x for i, x in enumerate(tensors)]
    if case["variant"].endswith("mean"):  # weights of both signs can divide by next to nothing
        tensors[-1] = tensors[-1].abs() + 0.2
    present = None
    count = len(variant.split(tensors)[0])
    if case["present"]:
        entry = case["present"]
        present = random_mask(entry["shape"], entry["layout"], case["seed"] + 5)
    wide = None if present is None else present.expand(*batch, count)
    if present is not None and case["spoilt"]:
        for i in range(len(tensors)):
            m = variant.modality(i, count)
            if m is not None and tuple(tensors[i].shape) == shapes[i]:
                keep = fused_cases.there(wide, m, row_dims)
                tensors[i] = spoil(tensors[i], keep, case["seed"] + i)

    def expanded(leaves):
        return [x.expand(shape) for x, shape in zip(leaves, shapes, strict=True)]

    def grads(i, y):
        # The weights of attention are not always asked for.
        return None if i == 1 and case["seed"] % 3 == 0 else gradients(case)(i, y)

    return Problem(
        tensors,
        [f"tensor {i}" for i in range(len(tensors))],
        [x["needs"] for x in case["tensors"]],
        lambda leaves: variant.call(leaves, present),
        lambda leaves: variant.exact(expanded(leaves), wide),
        lambda leaves: variant.eager(expanded(leaves), wide),
        grads,
        case["values"] == "integers",
        [] if present is None else [present],
    )
