"""multi_source_attention, and merge_attention under it."""

import math
from dataclasses import fields

import attention_cases
import torch
from hypothesis import strategies as st
from torch import Tensor

import mmfast
from fuzz.judge import Problem
from fuzz.operators import Case, dtypes, gradients, made, spec
from fuzz.tensors import DTYPES, layouts, random_mask, random_tensor, seeds, small, spoil

MASKS = ("", "", "full", "keys", "heads", "queries", "one", "scalar")
PRESENT = ("", "", "some", "all", "none", "one row")
DRAWN = [f.name for f in fields(attention_cases.Case)]


@st.composite
def multi_source_attention(draw: st.DrawFn) -> Case:
    long = draw(st.integers(0, 7)) == 0  # sources that stand alone
    count = draw(st.sampled_from((1, 2, 2, 3, 4)))
    lengths = (0, 1, 3, 9, 40, 530, 700) if long else (0, 1, 2, 3, 5, 9, 17)
    tokens = [draw(st.sampled_from(lengths)) for _ in range(count)]
    queries = draw(st.sampled_from((0, 1, 2, 7, 33)))
    key_heads, groups = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 1, 2)))
    width = draw(st.sampled_from((1, 2, 8, 13, 64)))
    other = draw(st.sampled_from((None, None, None, 3, 16)))
    batch = draw(st.sampled_from(([], [1], [2], [3], [0], [2, 2], [2, 1, 2])))
    causal = draw(st.booleans() | st.lists(st.booleans(), min_size=count, max_size=count))
    return {
        "tokens": tokens,
        "queries": queries,
        "batch": batch,
        "heads": key_heads * groups,
        "key_heads": key_heads,
        "size": width,
        "value_size": other,
        "masks": [draw(st.sampled_from(MASKS)) for _ in tokens] if draw(st.booleans()) else [],
        "present": draw(st.sampled_from(PRESENT)),
        "causal": causal,
        "scale": draw(st.sampled_from((None, None, 0.3, 0.0, -0.7))),
        "layouts": draw(st.lists(layouts, min_size=2 * count + 1, max_size=2 * count + 1)),
        "needs": draw(st.lists(st.booleans(), min_size=2 * count + 1, max_size=2 * count + 1)),
        "mask_layout": draw(layouts),
        "spoilt": draw(st.booleans()),
        "grad": [draw(layouts)],
        "dtype": draw(dtypes),
        "values": "normal",
        "seed": draw(seeds),
    }


def random_present(kind: str, batch: tuple[int, ...], count: int, seed: int) -> Tensor | None:
    if kind == "":
        return None
    shape = [count] if kind == "one row" else [*batch, count]
    if kind in ("all", "none"):
        return torch.full(shape, kind == "all")
    return random_mask(shape, "inside", seed)


def random_masks(case: Case, problem: attention_cases.Case) -> list[Tensor | None] | None:
    if not case["masks"]:
        return None
    found: list[Tensor | None] = []
    for s, (kind, tokens) in enumerate(zip(case["masks"], case["tokens"], strict=True)):
        lead = {
            "full": [*problem.batch, problem.heads, problem.queries, tokens],
            "keys": [*problem.batch, 1, 1, tokens],
            "heads": [problem.heads, 1, tokens],
            "queries": [problem.queries, tokens],
            "one": [tokens],
            "scalar": [],
        }
        mask = random_mask(lead[kind], case["mask_layout"], case["seed"] + s) if kind else None
        found.append(mask)
    return found


def multi_source_attention_problem(case: Case) -> Problem:
    given = {name: case[name] for name in DRAWN}
    for name in ("tokens", "batch", "masks"):
        given[name] = tuple(given[name])
    problem = attention_cases.Case(**given)
    shapes = [list(x.shape) for x in attention_cases.draw(problem)[0]]
    dtype = DTYPES[case["dtype"]]
    tensors = [
        random_tensor(shape, layout, dtype, case["seed"] + i, "normal")
        for i, (shape, layout) in enumerate(zip(shapes, case["layouts"], strict=True))
    ]
    count = len(case["tokens"])
    options: dict = {"is_causal": case["causal"], "scale": case["scale"]}
    masks = random_masks(case, problem)
    present = random_present(case["present"], problem.batch, count, case["seed"])
    options["masks"], options["present"] = masks, present
    if present is not None and case["spoilt"]:
        for s in range(count):
            keep = present[..., s, None, None, None]
            for i in (1 + s, 1 + count + s):
                tensors[i] = spoil(tensors[i], keep, case["seed"] + i)
    if problem.heads != problem.key_heads:
        options["enable_gqa"] = True

    def silent(leaves):
        """Zeros in what is absent, whatever stood there, for formulas that do not know of it."""
        if present is None:
            return leaves
        keep = [present[..., s, None, None, None] for s in range(count)]
        rest = [torch.where(k, x, 0) for k, x in zip([*keep, *keep], leaves[1:], strict=True)]
        return [leaves[0], *rest]

    def call(leaves):
        query, *rest = leaves
        return (
            mmfast.functional.multi_source_attention(query, rest[:count], rest[count:], **options),
        )

    keys = [f"keys[{s}]" for s in range(count)]
    return Problem(
        tensors,
        ["query", *keys, *(f"values[{s}]" for s in range(count))],
        case["needs"],
        call,
        lambda leaves: (attention_cases.formula(silent(leaves), **options),),
        lambda leaves: (usual(silent(leaves), options, sum(case["tokens"])),),
        gradients(case),
        others=[x for x in (*(masks or []), present) if x is not None],
    )


def usual(leaves: list[Tensor], options: dict, tokens: int) -> Tensor:
    """PyTorch's attention over the concatenation; of nothing, it may say NaN, which is no peer."""
    if not tokens:
        return attention_cases.formula(leaves, **options)
    found = attention_cases.eager(leaves, **options)
    return torch.where(found.isnan(), 0, found)


# ---------------------------------------------------------------------------------- merge_attention


@st.composite
def merge_attention(draw: st.DrawFn) -> Case:
    shape = [draw(st.sampled_from((0, 1, 2, 3))), draw(st.sampled_from((1, 2, 3))),
             draw(st.sampled_from((0, 1, 3, 17))), draw(small)]  # fmt: skip
    count = draw(st.sampled_from((1, 2, 3, 5)))
    return {
        "outputs": [draw(spec(shape, False)) for _ in range(count)],
        "lses": [draw(spec(shape[:3], False)) for _ in range(count)],
        "nothing": draw(st.booleans()),
        "grad": ["plain"],
        "dtype": draw(dtypes),
        "values": draw(st.sampled_from(("normal", "large"))),
        "seed": draw(seeds),
    }


def merged(outputs: list[Tensor], lses: list[Tensor]) -> Tensor:
    stack = torch.stack([x.double() for x in lses])
    top = stack.amax(0).clamp(min=-1e300)
    shares = (stack - top).exp()
    total = shares.sum(0)
    shares = torch.where(total > 0, shares / total, 0)
    parts = [torch.where(s[..., None] > 0, s[..., None] * y.double(), 0)
             for s, y in zip(shares, outputs, strict=True)]  # fmt: skip
    return sum(parts[1:], parts[0])


def merge_attention_problem(case: Case) -> Problem:
    count = len(case["outputs"])
    outputs = [made(case, "outputs", i) for i in range(count)]
    wide = "float64" if case["dtype"] == "float64" else "float32"
    lses = [made({**case, "dtype": wide}, "lses", i) for i in range(count)]
    if case["nothing"]:  # of some, nothing was attended: what stands there does not matter
        for i, x in enumerate(lses):
            there = random_mask(list(x.shape), "plain", case["seed"] + i)
            lses[i] = torch.where(there, x, -math.inf)
            outputs[i] = spoil(outputs[i], there[..., None], case["seed"] + i)
    dtype = DTYPES[case["dtype"]]
    merge = torch.ops.mmfast.merge_attention.default
    return Problem(
        outputs,
        [f"outputs[{i}]" for i in range(count)],
        [False] * count,
        lambda x: (merge(x, lses)[0],),
        lambda x: (merged(x, lses),),
        lambda x: (merged(x, lses).to(dtype),),
        lambda i, y: None,
        others=lses,
    )
