"""Every fusion of the registry: random sizes and options, against its formula row by row."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fuzz.formulas import FORMULAS, TOKENS
from fuzz.judge import Problem
from fuzz.operators import Case, gradients, made, spec
from fuzz.tensors import (
    DTYPES,
    layouts,
    random_index,
    random_mask,
    random_tensor,
    seeds,
    smaller,
    spoil,
)
from mmfast.nn.registry import create_fusion

widths = st.sampled_from((0, 1, 2, 3, 5, 8, 13, 16, 33))
activations = st.sampled_from(("none", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"))
OPTIONS: dict[str, dict[str, st.SearchStrategy]] = {
    "attention": {},
    "attention_pool": {"project": st.sampled_from((None, True))},
    "bottleneck": {"num_bottlenecks": st.integers(1, 3), "num_layers": st.integers(1, 2)},
    "concat": {"activation": activations, "bias": st.booleans()},
    "cross_attention": {"query": st.integers(0, 1)},
    "film": {"condition": st.sampled_from((None, "last"))},
    "gated": {},
    "late": {"weighted": st.booleans()},
    "low_rank": {"rank": st.integers(1, 5)},
    "mfb": {"factors": st.integers(1, 5), "eps": st.sampled_from((0.01, 0.1))},
    "mlb": {"hidden": widths, "activation": activations},
    "mutan": {"rank": st.integers(1, 4), "hidden": widths, "activation": activations},
    "product": {"project": st.sampled_from((None, True))},
    "sequence": {"num_layers": st.integers(1, 2), "pool": st.booleans()},
    "tensor": {"bias": st.booleans()},
    "weighted_sum": {
        "weights": st.sampled_from(("modality", "feature", "softmax")),
        "project": st.sampled_from((None, True)),
    },
}
HEADS = ("attention_pool", *TOKENS)


@st.composite
def fusion(draw: st.DrawFn, name: str) -> Case:
    options: dict[str, Any] = {k: draw(v) for k, v in OPTIONS.get(name, {}).items()}
    least = 2 if name in ("gated", "film", "cross_attention") else 1
    count = draw(st.sampled_from([n for n in (1, 2, 2, 3, 4) if n >= least]))
    sizes = [draw(widths) for _ in range(count)]
    if name == "tensor":
        sizes = [min(k, 8 if count > 2 else 33) for k in sizes]
    out = draw(st.sampled_from((0, 1, 2, 4, 7, 16, 33)))
    if name in HEADS:
        heads = draw(st.sampled_from((1, 2, 3)))
        options["num_heads"], out = heads, heads * draw(st.sampled_from((1, 2, 4, 8)))
        if out <= 2 and name in TOKENS:
            # Of two features a layer norm keeps which is larger, of one nothing, and its gradient
            # is a difference of equal numbers: rounding noise, in plain PyTorch as well.
            out = 4 * heads
    if options.get("condition") == "last":
        options["condition"] = list(range(count - 1))
    batch = draw(st.sampled_from(([], [1], [4], [4], [3, 2], [0], [1, 3, 2], [7])))
    inputs, masks, index = [], [], []
    for size in sizes:
        lead, picks = draw(smaller(batch)), None
        if name in TOKENS:  # all inputs have equally many dimensions there
            lead = draw(smaller(batch or [2], False))
            lead = [*lead, draw(st.sampled_from((0, 1, 2, 3, 6)))]
            shape = [*lead[:-1], lead[-1]]
            masks.append(draw(st.none() | spec(shape, False)))
        elif name == "concat" and draw(st.integers(0, 4)) == 0:
            picks, lead = (
                {"shape": lead, "layout": draw(layouts)},
                [draw(st.sampled_from((1, 2, 7)))],
            )
        inputs.append(draw(spec([*lead, size])))
        index.append(picks)
    shapes = [x["shape"][: -2 if name in TOKENS else -1] for x in inputs]
    shapes = [s if i is None else i["shape"] for s, i in zip(shapes, index, strict=True)]
    shape = torch.broadcast_shapes(*shapes)
    return {
        "fusion": name,
        "out": out,
        "options": options,
        "inputs": inputs,
        "masks": masks,
        "index": index,
        "named": draw(st.booleans()),
        "present": draw(st.none() | spec([*draw(smaller(list(shape), False)), count], False)),
        "spoilt": draw(st.booleans()),
        "parameters_need": draw(st.booleans()),
        "grad": [draw(layouts)],
        "dtype": draw(st.sampled_from((*DTYPES, "float64", "float32"))),
        "values": "normal",
        "seed": draw(seeds),
    }


def randomised(module: nn.Module, case: Case) -> nn.Module:
    """Parameters of a size that keeps results near 1, none where it starts."""
    for i, parameter in enumerate(module.parameters()):
        scale = 1 / math.sqrt(max(parameter.shape[-1], 1)) if parameter.dim() > 1 else 0.5
        drawn = random_tensor(parameter.shape, "plain", torch.float64, case["seed"] + i, "normal")
        parameter.data.copy_(drawn * scale)
    return module


def fusion_problem(case: Case) -> Problem:
    name, count = case["fusion"], len(case["inputs"])
    sizes = [x["shape"][-1] for x in case["inputs"]]
    labels = [f"m{i}" for i in range(count)]
    given = dict(zip(labels, sizes, strict=True)) if case["named"] else sizes
    module = create_fusion(name, given, case["out"], **case["options"])
    module = randomised(module, case).to(DTYPES[case["dtype"]])
    names = [n for n, _ in module.named_parameters()]
    inputs = [made(case, "inputs", i) for i in range(count)]
    index = [
        x and random_index(x["shape"], x["layout"], torch.int64, case["seed"] + i, len(inputs[i]))
        for i, x in enumerate(case["index"])
    ]
    drawn = lambda x, i: x and random_mask(x["shape"], x["layout"], case["seed"] + i)  # noqa: E731
    masks = [drawn(x, 50 + i) for i, x in enumerate(case["masks"])]
    present = drawn(case["present"], 5)
    if case["spoilt"] and present is not None:
        for m, x in enumerate(inputs):
            keep = present[(..., m, *[None] * (2 if name in TOKENS else 1))]
            if index[m] is None and torch.broadcast_shapes(keep.shape, x.shape) == x.shape:
                inputs[m] = spoil(x, keep, case["seed"] + m)

    extra = {"index": index} if any(x is not None for x in index) else {}
    extra |= {"masks": masks} if any(x is not None for x in masks) else {}

    def call(leaves):
        parameters = dict(zip(names, leaves[count:], strict=True))
        tensors = dict(zip(labels, leaves, strict=False)) if case["named"] else leaves[:count]
        return (functional_call(module, parameters, (tensors, present), extra),)

    def formula(leaves):
        rows = [x if i is None else x[i] for x, i in zip(leaves, index, strict=False)]
        parameters = dict(zip(names, leaves[count:], strict=True))
        by_row = by_tokens if name in TOKENS else by_features
        return (by_row(case, parameters, rows, present, masks),)

    return Problem(
        [*inputs, *(p.detach() for p in module.parameters())],
        [*(f"inputs[{i}]" for i in range(count)), *names],
        [*(x["needs"] for x in case["inputs"]), *[case["parameters_need"]] * len(names)],
        call,
        formula,
        formula,
        gradients(case),
        others=[x for x in (*masks, *index, present) if x is not None],
    )


def options_of(case: Case, sizes: list[int], like: Tensor) -> dict[str, Any]:
    return {**case["options"], "widths": sizes, "out": case["out"], "like": like}


def by_features(case: Case, parameters, inputs, present, _masks) -> Tensor:
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    count, like, total = len(inputs), inputs[0].new_zeros(1), math.prod(batch)
    flat = [x.expand(*batch, x.shape[-1]).reshape(total, x.shape[-1]) for x in inputs]
    if present is None:
        present = torch.ones(count, dtype=torch.bool)
    there = present.expand(*batch, count).reshape(total, count)
    options = options_of(case, [x.shape[-1] for x in inputs], like)
    formula = FORMULAS[case["fusion"]]
    rows = [
        formula(parameters, {m: x[r] for m, x in enumerate(flat) if there[r, m]}, options)
        for r in range(len(there))
    ]
    return stacked(rows, (*batch, case["out"]), [*parameters.values(), *inputs])


def stacked(rows: list[Tensor], shape: tuple[int, ...], leaves: list[Tensor]) -> Tensor:
    """The rows as a tensor that depends on all leaves, even where no row does."""
    nothing = sum(torch.where(torch.zeros_like(x).bool(), x, 0).sum() for x in leaves)
    if not rows:
        return leaves[0].new_zeros(shape) + nothing
    return torch.stack(rows).reshape(shape) + nothing


def by_tokens(case: Case, parameters, inputs, present, masks) -> Tensor:
    name, out, count = case["fusion"], case["out"], len(inputs)
    batch = torch.broadcast_shapes(*(x.shape[:-2] for x in inputs))
    everything, count_of_rows = torch.ones((), dtype=torch.bool), math.prod(batch)

    def by_row(x: Tensor | None, *sizes: int) -> Tensor:
        x = everything if x is None else x
        return x.expand(*batch, *sizes).reshape(count_of_rows, *sizes)

    flat = [by_row(x, *x.shape[-2:]) for x in inputs]
    there = by_row(present, count)
    valid = [by_row(mask, x.shape[-2]) for mask, x in zip(masks, inputs, strict=True)]
    options = options_of(case, [x.shape[-1] for x in inputs], inputs[0])
    asking, rows = case["options"].get("query", 0), []
    for r in range(count_of_rows):
        kept = [v[r] & there[r, m] for m, v in enumerate(valid)]
        row = {m: x[r][kept[m]] for m, x in enumerate(flat)}
        if name == "cross_attention":
            row[asking] = torch.where(kept[asking][:, None], flat[asking][r], 0)
        y = FORMULAS[name](parameters, row, options)
        if name == "sequence":
            keep = torch.cat(kept)
            y = y.new_zeros(len(keep), out).index_put((keep,), y)
            y = y.sum(0) / keep.sum().clamp(min=1) if case["options"]["pool"] else y
        rows.append(y)
    total = sum(x.shape[-2] for x in inputs)
    shape = {
        "cross_attention": (*batch, inputs[asking].shape[-2], out),
        "sequence": (*batch, out) if case["options"].get("pool") else (*batch, total, out),
    }.get(name, (*batch, out))
    return stacked(rows, shape, [*parameters.values(), *inputs])
