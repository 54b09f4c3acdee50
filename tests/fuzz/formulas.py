"""What every registered fusion computes for one row: plain PyTorch, from the formula of its class.

A formula gets the module's parameters by name, the row's modalities that are there (by position),
and the module's options. Tokens, (T, K), are those that are valid. Written for any dtype, so that
the same text gives the reference in float64 and what is usual in the type under test.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import reference
import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Mapping[str, Tensor]
Row = dict[int, Tensor]
Formula = Callable[[Parameters, Row, dict[str, Any]], Tensor]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    """W x + b; x itself where the module has no such layer."""
    if f"{name}.weight" not in p:
        return x
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def joined(row: Row, widths: list[int], like: Tensor) -> Tensor:
    """The concatenation, zeros where a modality is absent."""
    return torch.cat([row.get(m, like.new_zeros(k)) for m, k in enumerate(widths)])


def anything(p: Parameters) -> Tensor:
    return next(iter(p.values()))


def product(factors: list[Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    found = like.new_ones(shape)
    for factor in factors:
        found = found * factor
    return found


def concat(p, row, o):
    act = reference.ACTIVATIONS[o.get("activation", "none")]
    y = F.linear(joined(row, o["widths"], p["weight"]), p["weight"], p.get("bias"))
    return act(y)


def weighted_sum(p, row, o):
    weights, y = p["weight"], anything(p).new_zeros(o["out"])
    if o.get("weights") == "softmax" and row:
        shares = torch.stack([weights[m] for m in row]).softmax(0)
        weights = dict(zip(row, shares, strict=True))
    for m, x in row.items():
        y = y + weights[m] * linear(p, f"projections.{m}", x)
    return y


def plain_product(p, row, o):
    like = next(iter(row.values())) if row else anything({**p, "": o["like"]})
    return product([linear(p, f"projections.{m}", x) for m, x in row.items()], (o["out"],), like)


def gated(p, row, o):
    if not row:
        return anything(p).new_zeros(o["out"])
    count, out = len(o["widths"]), o["out"]
    gates = F.linear(joined(row, o["widths"], anything(p)), p["gates.weight"])
    gates = torch.cat([gates, gates.new_zeros(out)]) if count == 2 else gates
    gates = gates.view(count, out)
    shares = torch.stack([gates[m] for m in row]).softmax(0)
    values = [torch.tanh(linear(p, f"projections.{m}", x)) for m, x in row.items()]
    return (shares * torch.stack(values)).sum(0)


def low_rank(p, row, o):
    y = p["fusion_bias"][0]
    for r, weight in enumerate(p["fusion_weights"][0]):
        factors = [torch.cat([x.new_ones(1), x]) @ p[f"factors.{m}"][r] for m, x in row.items()]
        y = y + weight * product(factors, (o["out"],), y)
    return y


def tensor(p, row, o):
    outer = p["weight"].new_ones(1)
    for m, k in enumerate(o["widths"]):
        x = row.get(m, outer.new_zeros(k))
        outer = (outer[:, None] * torch.cat([outer.new_ones(1), x])).flatten()
    return F.linear(outer, p["weight"], p.get("bias"))


def mutan(p, row, o):
    act = reference.ACTIVATIONS[o.get("activation", "none")]
    hidden, ranks = p["output.weight"].shape[1], o["rank"]
    factors = [
        linear(p, f"merges.{m}", act(linear(p, f"projections.{m}", x))).view(ranks, hidden)
        for m, x in row.items()
    ]
    return linear(p, "output", product(factors, (ranks, hidden), anything(p)).sum(0))


def mlb(p, row, o):
    act = reference.ACTIVATIONS[o.get("activation", "relu")]
    factors = [act(linear(p, f"projections.{m}", x)) for m, x in row.items()]
    hidden = p["output.weight"].shape[1]
    return act(linear(p, "output", product(factors, (hidden,), anything(p))))


def mfb(p, row, o):
    k, eps = o["factors"], o["eps"]
    factors = [linear(p, f"projections.{m}", x).view(k, o["out"]) for m, x in row.items()]
    z = product(factors, (k, o["out"]), anything(p)).sum(0)
    s = z / (z.abs() + eps).sqrt()
    return s / ((s * s).sum() + eps).sqrt()


def attention(p, row, o):
    if not row:
        return anything(p).new_zeros(o["out"])
    scores = linear(p, "attention", joined(row, o["widths"], anything(p)))
    shares = torch.stack([scores[m] for m in row]).softmax(0)
    parts = [
        a * linear(p, f"projections.{m}", x) for a, (m, x) in zip(shares, row.items(), strict=True)
    ]
    return torch.stack(parts).sum(0)


def attention_pool(p, row, o):
    if not row:
        return p["query"].new_zeros(o["out"])
    heads = o.get("num_heads", 1)
    x = torch.stack([linear(p, f"projections.{m}", x) for m, x in row.items()])
    x = x.view(len(row), heads, o["out"] // heads)
    scores = (x * p["query"].view(heads, -1)).sum(-1) / math.sqrt(o["out"] // heads)
    return (scores.softmax(0)[..., None] * x).sum(0).flatten()


def film(p, row, o):
    count, out = len(o["widths"]), o["out"]
    condition = o.get("condition") or list(range(1, count))
    [m] = set(range(count)) - set(condition)
    x = row.get(m, anything(p).new_zeros(o["widths"][m]))
    given = {i: row[c] for i, c in enumerate(condition) if c in row}
    z = linear(p, "film", joined(given, [o["widths"][c] for c in condition], x))
    return (1 + z[:out]) * linear(p, "projection", x) + z[out:]


def late(p, row, o):
    if not row:
        return anything(p).new_zeros(o["out"])
    logits = torch.stack([linear(p, f"heads.{m}", x) for m, x in row.items()])
    if "scores" not in p:
        return logits.mean(0)
    return (torch.stack([p["scores"][m] for m in row]).softmax(0)[:, None] * logits).sum(0)


# ------------------------------------------------------------------------------------- over tokens


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    if not len(key):
        return torch.zeros_like(query)
    split = lambda x: x.view(len(x), heads, x.shape[1] // heads).transpose(0, 1)  # noqa: E731
    q, k, v = map(split, (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def encoder_layer(p: Parameters, name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-norm, GELU, as torch.nn.TransformerEncoderLayer."""
    y = norm(p, f"{name}.norm1", x)
    weight, bias = p[f"{name}.self_attn.in_proj_weight"], p[f"{name}.self_attn.in_proj_bias"]
    q, k, v = F.linear(y, weight, bias).chunk(3, -1)
    x = x + linear(p, f"{name}.self_attn.out_proj", attend(q, k, v, heads))
    y = F.gelu(linear(p, f"{name}.linear1", norm(p, f"{name}.norm2", x)))
    return x + linear(p, f"{name}.linear2", y)


def cross_attention(p, row, o):
    """``row`` holds the asking modality in any case, zeros where it is not there."""
    asking = o.get("query", 0)
    others = [m for m in range(len(o["widths"])) if m != asking]
    query = linear(p, "query_proj", row[asking])
    parts = [
        linear(p, f"key_value_proj.{i}", row[m]) for i, m in enumerate(others) if m in row
    ] or [query.new_zeros(0, 2 * o["out"])]
    key, value = torch.cat(parts).chunk(2, -1)
    return linear(p, "out_proj", attend(query, key, value, o["num_heads"]))


def sequence(p, row, o):
    """The encoded tokens in order; the caller puts them in their places, or takes the mean."""
    x = torch.cat([linear(p, f"embed.{m}", x) + p["modality_embedding"][m] for m, x in row.items()])
    for i in range(o.get("num_layers", 1)):
        x = encoder_layer(p, f"layers.{i}", x, o["num_heads"])
    return norm(p, "norm", x)


def bottleneck(p, row, o):
    row = {m: x for m, x in row.items() if len(x)}
    if not row:
        return p["bottleneck"].new_zeros(o["out"])
    streams, shared = {m: linear(p, f"embed.{m}", x) for m, x in row.items()}, p["bottleneck"]
    for i in range(o.get("num_layers", 2)):
        produced = []
        for m, x in streams.items():
            y = encoder_layer(p, f"layers.{i}.{m}", torch.cat([x, shared]), o["num_heads"])
            streams[m] = y[: len(x)]
            produced.append(y[len(x) :])
        shared = torch.stack(produced).mean(0)
    return torch.stack([norm(p, "norm", x).mean(0) for x in streams.values()]).mean(0)


FORMULAS: dict[str, Formula] = {
    "attention": attention,
    "attention_pool": attention_pool,
    "bottleneck": bottleneck,
    "concat": concat,
    "cross_attention": cross_attention,
    "film": film,
    "gated": gated,
    "late": late,
    "low_rank": low_rank,
    "mfb": mfb,
    "mlb": mlb,
    "mutan": mutan,
    "product": plain_product,
    "sequence": sequence,
    "tensor": tensor,
    "weighted_sum": weighted_sum,
}
TOKENS = ("bottleneck", "cross_attention", "sequence")
