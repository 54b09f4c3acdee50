"""Whom the operators beside concat_linear are measured against, a table per operator.

``eager`` is what is mostly written, ``by hand`` the best form in PyTorch that we know of,
``compile`` torch.compile of ``eager``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast import losses
from mmfast.bench.operator_cases import OperatorCase
from mmfast.functional.attention_pool import attention_pool
from mmfast.functional.gated_sum import gated_sum
from mmfast.functional.multi_source_attention import multi_source_attention
from mmfast.functional.rank_product import rank_product
from mmfast.functional.tensor_fusion import tensor_fusion
from mmfast.functional.weighted_sum import weighted_sum

# The tensors of a case in their order -> result.
Call = Callable[..., Tensor]
Make = Callable[[OperatorCase], Call]

LOGIT_SCALE = 1 / 0.07  # CLIP's at the start


def _of(call: Call) -> Make:
    """A peer that needs to know nothing of the case."""
    return lambda case: call


def weighted_sum_mmfast(case: OperatorCase) -> Call:
    """``mmfast.functional.weighted_sum``."""
    per = case.option["per"]

    def run(*tensors: Tensor) -> Tensor:
        return weighted_sum(tensors[:-1], tensors[-1], per=per)

    return run


def _parts(weights: Tensor, per: str) -> tuple[Tensor, ...]:
    return weights.split(1, -1) if per == "row" else weights.unbind(0)


def weighted_sum_eager(case: OperatorCase) -> Call:
    """A sum of products."""
    per = case.option["per"]

    def run(*inputs_and_weights: Tensor) -> Tensor:
        *inputs, weights = inputs_and_weights
        parts = zip(_parts(weights, per), inputs, strict=True)
        return sum((w * x for w, x in parts), start=torch.zeros_like(inputs[0]))

    return run


def weighted_sum_by_hand(case: OperatorCase) -> Call:
    """A product, and the others added in place."""
    per = case.option["per"]

    def run(*inputs_and_weights: Tensor) -> Tensor:
        *inputs, weights = inputs_and_weights
        parts = _parts(weights, per)
        result = inputs[0] * parts[0]
        for x, w in zip(inputs[1:], parts[1:], strict=True):
            result.addcmul_(x, w)
        return result

    return run


def attention_pool_mmfast(*tensors: Tensor) -> Tensor:
    """``mmfast.functional.attention_pool``."""
    pooled = attention_pool(tensors[:-1], tensors[-1])
    assert isinstance(pooled, Tensor)
    return pooled


def attention_pool_eager(*inputs_and_query: Tensor) -> Tensor:
    """Modalities stacked, scores, softmax, weighted sum."""
    *inputs, query = inputs_and_query
    x = torch.stack(inputs, dim=1)
    shares = torch.softmax(x @ query / sqrt(query.shape[-1]), dim=1)
    return (shares[..., None] * x).sum(1)


def attention_pool_by_hand(*inputs_and_query: Tensor) -> Tensor:
    """Nothing is stacked but the scores: matrix-vector products, then products added in place."""
    *inputs, query = inputs_and_query
    scaled = query / sqrt(query.shape[-1])
    shares = torch.stack([x @ scaled for x in inputs], -1).softmax(-1).split(1, -1)
    result = inputs[0] * shares[0]
    for x, share in zip(inputs[1:], shares[1:], strict=True):
        result.addcmul_(x, share)
    return result


def gated_sum_mmfast(first: Tensor, second: Tensor, gate: Tensor) -> Tensor:
    """``mmfast.functional.gated_sum``."""
    return gated_sum((first, second), (gate,))


def gated_sum_eager(first: Tensor, second: Tensor, gate: Tensor) -> Tensor:
    """The formula of the paper."""
    z = torch.sigmoid(gate)
    return z * torch.tanh(first) + (1 - z) * torch.tanh(second)


def gated_sum_by_hand(first: Tensor, second: Tensor, gate: Tensor) -> Tensor:
    """The mixture as one operation."""
    return torch.lerp(torch.tanh(second), torch.tanh(first), torch.sigmoid(gate))


def rank_product_mmfast(case: OperatorCase) -> Call:
    """``mmfast.functional.rank_product``."""
    count = case.option["count"]

    def run(*tensors: Tensor) -> Tensor:
        return rank_product(tensors[:count], *tensors[count:])

    return run


def rank_product_eager(case: OperatorCase) -> Call:
    """All products, then the sum over ranks."""
    count = case.option["count"]

    def run(*factors_and_weights: Tensor) -> Tensor:
        product = factors_and_weights[0]
        for factor in factors_and_weights[1:count]:
            product = product * factor
        if len(factors_and_weights) > count:
            product = factors_and_weights[count][:, None] * product
        return product.sum(1)

    return run


def rank_product_by_hand(case: OperatorCase) -> Call:
    """Rank by rank, added in place: no tensor of all ranks is built."""
    count = case.option["count"]

    def run(*factors_and_weights: Tensor) -> Tensor:
        factors = [factor.unbind(1) for factor in factors_and_weights[:count]]
        weights = factors_and_weights[count].unbind() if len(factors_and_weights) > count else None
        result = None
        for r, (*others, last) in enumerate(zip(*factors, strict=True)):
            product = others[0]
            for factor in others[1:]:
                product = product * factor
            if weights is not None:
                product = product * weights[r]
            result = product * last if result is None else result.addcmul_(product, last)
        assert result is not None
        return result

    return run


def attention_mmfast(case: OperatorCase) -> Call:
    """``mmfast.functional.multi_source_attention``."""
    count = case.option["sources"]

    def run(query: Tensor, *sources: Tensor) -> Tensor:
        return multi_source_attention(query, sources[:count], sources[count:])

    return run


def attention_eager(case: OperatorCase) -> Call:
    """Keys and values concatenated."""
    count = case.option["sources"]

    def run(query: Tensor, *sources: Tensor) -> Tensor:
        keys, values = torch.cat(sources[:count], dim=-2), torch.cat(sources[count:], dim=-2)
        return F.scaled_dot_product_attention(query, keys, values)

    return run


def tensor_fusion_mmfast(*tensors: Tensor) -> Tensor:
    """``mmfast.functional.tensor_fusion``."""
    return tensor_fusion(tensors[:-2], *tensors[-2:])


def _with_one(x: Tensor) -> Tensor:
    return torch.cat((x.new_ones(len(x), 1), x), dim=1)


def tensor_fusion_eager(*tensors: Tensor) -> Tensor:
    """The outer product, then the linear layer."""
    *inputs, weight, bias = tensors
    fused = _with_one(inputs[0])
    for x in inputs[1:]:
        fused = (fused.unsqueeze(2) * _with_one(x).unsqueeze(1)).flatten(1)
    return F.linear(fused, weight, bias)


def tensor_fusion_by_hand(*tensors: Tensor) -> Tensor:
    """The first modality contracted last, with what the outer product of the others gave."""
    first, *others, weight, bias = tensors
    lead, trail = _with_one(first), _with_one(others[0])
    for x in others[1:]:
        trail = (trail.unsqueeze(2) * _with_one(x).unsqueeze(1)).flatten(1)
    out, width = len(weight), lead.shape[1]
    parts = (weight.view(out * width, -1) @ trail.t()).view(out, width, -1)
    return (parts * lead.t()).sum(1).t() + bias


def contrastive_mmfast(a: Tensor, b: Tensor) -> Tensor:
    """``mmfast.losses.contrastive_loss``."""
    return losses.contrastive_loss(a, b, LOGIT_SCALE).to(a.dtype)


def contrastive_eager(a: Tensor, b: Tensor) -> Tensor:
    """Two cross entropies, as in CLIP."""
    left, right = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    logits = LOGIT_SCALE * left @ right.t()
    target = torch.arange(len(a), device=a.device)
    return ((F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2).to(a.dtype)


def contrastive_by_hand(a: Tensor, b: Tensor) -> Tensor:
    """The sums of rows and columns without the cross entropies' tables."""
    left, right = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    logits = LOGIT_SCALE * left @ right.t()
    sums = logits.logsumexp(1) + logits.logsumexp(0)
    return (sums.mean() / 2 - logits.diagonal().mean()).to(a.dtype)


PEERS: Mapping[str, Mapping[str, Make]] = {
    "weighted_sum": {
        "mmfast": weighted_sum_mmfast,
        "eager": weighted_sum_eager,
        "by hand": weighted_sum_by_hand,
    },
    "attention_pool": {
        "mmfast": _of(attention_pool_mmfast),
        "eager": _of(attention_pool_eager),
        "by hand": _of(attention_pool_by_hand),
    },
    "gated_sum": {
        "mmfast": _of(gated_sum_mmfast),
        "eager": _of(gated_sum_eager),
        "by hand": _of(gated_sum_by_hand),
    },
    "rank_product": {
        "mmfast": rank_product_mmfast,
        "eager": rank_product_eager,
        "by hand": rank_product_by_hand,
    },
    "multi_source_attention": {"mmfast": attention_mmfast, "eager": attention_eager},
    "tensor_fusion": {
        "mmfast": _of(tensor_fusion_mmfast),
        "eager": _of(tensor_fusion_eager),
        "by hand": _of(tensor_fusion_by_hand),
    },
    "contrastive_loss": {
        "mmfast": _of(contrastive_mmfast),
        "eager": _of(contrastive_eager),
        "by hand": _of(contrastive_by_hand),
    },
}


def make(name: str, case: OperatorCase) -> Call:
    """A peer of the case's operator; ``compile`` is made of its eager form."""
    table = PEERS[case.operator]
    compiled: dict[str, Callable[[Call], Any]] = {
        "compile": torch.compile,
        "max-autotune": partial(torch.compile, mode="max-autotune"),
    }
    return compiled[name](table["eager"](case)) if name in compiled else table[name](case)
