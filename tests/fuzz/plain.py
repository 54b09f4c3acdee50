"""The functions in plain PyTorch, for the same arguments: is mmfast more tolerant than that?"""

import attention_cases
import fused_cases
import reference
import torch
from torch import Tensor

from fuzz.composed import losses, outer_linear
from fuzz.formulas import TOKENS

__all__ = ["TOKENS"]


def _all(*lists):
    """Everything broadcast to one shape, as lists of the same lengths."""
    found = iter(torch.broadcast_tensors(*[x for xs in lists for x in xs]))
    return [[next(found) for _ in xs] for xs in lists]


def _present(present: Tensor | None, like: Tensor, count: int, row_dims: int = 1):
    if present is None:
        return None
    if present.dtype != torch.bool:
        raise TypeError("present")
    return present.expand(*like.shape[: like.dim() - row_dims], count)


def _alike(*tensors: Tensor | None) -> None:
    if len({x.dtype for x in tensors if x is not None}) > 1:
        raise TypeError("dtypes")


def concat_linear(inputs, weight, bias=None, *, activation="none", index=None) -> Tensor:
    _alike(*inputs, weight, bias)
    if index is not None:
        if any(i is not None and ((i.numel() and i.min() < 0) or x.dim() != 2)
               for x, i in zip(inputs, index, strict=True)):  # fmt: skip
            raise IndexError
        pairs = zip(inputs, index, strict=True)
        inputs = [x if i is None else x[i.long()] for x, i in pairs]
    inputs = [x.double() for x in inputs]
    bias = None if bias is None else bias.double().reshape(weight.shape[0])
    return reference.eager_concat_linear(inputs, weight.double(), bias, activation)


def weighted_sum(inputs, weights, present=None, *, normalize=False, per=None) -> Tensor:
    _alike(*inputs, weights)
    [inputs] = _all(inputs)
    count, (*batch, cols) = len(inputs), inputs[0].shape
    shapes = {"modality": (count,), "feature": (count, cols), "row": (*batch, count)}
    if per is None:
        per = next((n for n in ("modality", "feature") if shapes[n] == weights.shape), "row")
    weights = weights.expand(shapes["row"]) if per == "row" else weights.reshape(shapes[per])
    present = _present(present, inputs[0], count)
    [y] = fused_cases.eager_weighted_sum(inputs, weights, present, per=per, normalize=normalize)
    return y


def attention_pool(
    inputs, query, present=None, *, num_heads=1, temperature=None, return_weights=False
):
    _alike(*inputs, query)
    [inputs] = _all(inputs)
    if query.dim() != 1 and query.shape != inputs[0].shape:
        raise ValueError("query")
    query = query.expand(inputs[0].shape)
    present = _present(present, inputs[0], len(inputs))
    found = fused_cases.eager_attention_pool(
        inputs, query, present, num_heads=num_heads, temperature=temperature
    )
    return found if return_weights else found[0]


def gated_sum(values, gates, present=None) -> Tensor:
    _alike(*values, *gates)
    [values] = _all(values)
    if len(gates) not in (len(values), len(values) - 1):
        raise ValueError("gates")
    gates = [x.expand(values[0].shape) for x in gates]
    [y] = fused_cases.eager_gated_sum(values, gates, _present(present, values[0], len(values)))
    return y


def rank_product(factors, weights=None, present=None) -> Tensor:
    _alike(*factors, weights)
    [factors] = _all(factors)
    if weights is not None:
        weights = weights.reshape(factors[0].shape[-2])
    present = _present(present, factors[0], len(factors), 2)
    [y] = fused_cases.eager_rank_product(factors, weights, present)
    return y


def tensor_fusion(inputs, weight, bias=None, present=None) -> Tensor:
    _alike(*inputs, weight, bias)
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    if present is not None:
        present = present.expand(*batch, len(inputs))
    bias = None if bias is None else bias.reshape(weight.shape[0])
    return outer_linear(inputs, weight, bias, present)


def multi_source_attention(
    query, keys, values, masks=None, *, present=None, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    _alike(query, *keys, *values)
    return attention_cases.formula(
        [query, *keys, *values], masks, present, is_causal, scale, enable_gqa
    )


def contrastive_loss(a, b, logit_scale, *, chunk_rows=512) -> Tensor:
    if chunk_rows < 1 or a.shape != b.shape:
        raise ValueError("chunk_rows")
    return losses(a.double(), b.double(), torch.as_tensor(logit_scale).double().reshape(()))
