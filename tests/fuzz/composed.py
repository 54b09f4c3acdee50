"""tensor_fusion and contrastive_loss, which are composed of other operators."""

import math

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import mmfast
from fuzz.judge import Problem
from fuzz.operators import Case, density_terms, dtypes, gradients, made, small, spec, values
from fuzz.tensors import batches, layouts, random_mask, seeds, smaller, spoil


@st.composite
def tensor_fusion(draw: st.DrawFn) -> Case:
    batch = draw(batches(draw(st.sampled_from((20, 100)))))
    count = draw(st.sampled_from((1, 2, 2, 3, 3, 4)))
    inputs, product = [], 1
    for _ in range(count):
        width = draw(
            st.sampled_from([k for k in (0, 1, 2, 3, 5, 8, 16, 31) if product * (k + 1) <= 1200])
        )
        product *= width + 1
        inputs.append(draw(spec([*draw(smaller(batch)), width])))
    shape = torch.broadcast_shapes(*(x["shape"][:-1] for x in inputs))
    cols = draw(st.sampled_from((0, 1, 2, 3, 8, 17, 33)))
    return {
        "inputs": inputs,
        "weight": draw(spec([cols, product])),
        "bias": draw(st.none() | spec([cols])),
        "present": draw(st.none() | spec([*draw(smaller(list(shape), False)), count], False)),
        "spoilt": draw(st.booleans()),
        "grad": [draw(layouts)],
        "dtype": draw(dtypes),
        "values": draw(values),
        "seed": draw(seeds),
    }


def outer_linear(inputs, weight, bias, present) -> Tensor:
    """The formula: the outer product of all inputs, each with a 1 before it, through a layer."""
    product = None
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    for m, x in enumerate(inputs):
        if present is not None:
            x = torch.where(present[..., m, None], x, torch.zeros_like(x))
        x = torch.cat([x.new_ones(*x.shape[:-1], 1), x], -1)
        x = x.expand(*batch, x.shape[-1])
        product = x if product is None else (product[..., None] * x[..., None, :]).flatten(-2)
    y = product @ weight.transpose(0, 1)
    return y if bias is None else y + bias


def tensor_fusion_problem(case: Case) -> Problem:
    count = len(case["inputs"])
    cols, product = case["weight"]["shape"]
    rows = math.prod(torch.broadcast_shapes(*(x["shape"][:-1] for x in case["inputs"])))
    terms = density_terms(max(rows, product))
    tensors = [made(case, "inputs", i) for i in range(count)]
    if case["values"] == "integers":  # whose products stay small
        tensors = [x.sign() for x in tensors]
    tensors += [made(case, name, 0, terms) for name in ("weight", "bias") if case[name]]
    present = None
    if case["present"]:
        present = random_mask(case["present"]["shape"], case["present"]["layout"], case["seed"] + 5)
        if case["spoilt"]:
            for m, x in enumerate(tensors[:count]):
                keep = present[..., m, None]
                if torch.broadcast_shapes(keep.shape, x.shape) == x.shape:
                    tensors[m] = spoil(x, keep, case["seed"] + m)

    def parts(leaves):
        return leaves[:count], leaves[count], leaves[count + 1] if case["bias"] else None, present

    entries = [*case["inputs"], case["weight"], *([case["bias"]] if case["bias"] else [])]
    formula = lambda leaves: (outer_linear(*parts(leaves)),)  # noqa: E731
    return Problem(
        tensors,
        [*(f"inputs[{i}]" for i in range(count)), "weight", "bias"][: len(tensors)],
        [x["needs"] for x in entries],
        lambda leaves: (mmfast.functional.tensor_fusion(*parts(leaves)),),
        formula,
        formula,
        gradients(case, density_terms(max(rows, cols))),
        case["values"] == "integers",
        [] if present is None else [present],
    )


# ------------------------------------------------------------------------------------ contrastive


@st.composite
def contrastive_loss(draw: st.DrawFn) -> Case:
    shape = [draw(st.sampled_from((0, 1, 2, 3, 8, 17, 64, 130))), draw(small)]
    return {
        "pairs": [draw(spec(shape)), draw(spec(shape))],
        "scale": draw(spec([])),
        "scale_value": draw(st.sampled_from((0.5, 1.0, 14.0, 100.0))),
        "chunk_rows": draw(st.sampled_from((1, 3, 16, 512))),
        "grad": ["plain"],
        "dtype": draw(dtypes),
        "values": "normal",
        "seed": draw(seeds),
    }


def losses(a, b, scale) -> Tensor:
    logits = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(0, 1)
    if not len(a):
        return (a.sum() + b.sum() + scale) * 0
    pairs = logits.diagonal()
    return ((logits.logsumexp(1) + logits.logsumexp(0)) / 2 - pairs).mean()


def contrastive_loss_problem(case: Case) -> Problem:
    tensors = [made(case, "pairs", 0), made(case, "pairs", 1)]
    scale = made(case, "scale").abs().clamp(1, 1) * case["scale_value"]

    def wide(x: Tensor) -> Tensor:  # 16-bit features are computed in float32
        return x.float() if x.dtype.itemsize == 2 else x

    dtype = tensors[0].dtype
    return Problem(
        [*tensors, scale],
        ["a", "b", "logit_scale"],
        [x["needs"] for x in (*case["pairs"], case["scale"])],
        lambda x: (mmfast.losses.contrastive_loss(*x, chunk_rows=case["chunk_rows"]).to(dtype),),
        lambda x: (losses(*x),),
        lambda x: (losses(*map(wide, x)).to(dtype),),
        lambda i, y: torch.ones((), dtype=dtype),
        scale=case["scale_value"],
    )
