"""What the modules share that join sequences of tokens: shapes, masks, and an encoder layer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.functional.multi_source_attention import multi_source_attention
from mmfast.nn.fusion import Fusion, Inputs, Sizes, check_present, check_size
from mmfast.ops.concat_linear import check_dense
from mmfast.ops.fused import check_device

Masks = Sequence[Tensor | None] | Mapping[str, Tensor | None]


class Tokens(NamedTuple):
    r"""The inputs of one call, checked and in order; M of each."""

    inputs: list[Tensor]  # (*batch, T_m, K_m), zeros where there is nothing
    masks: list[Tensor | None]  # bool, broadcasts to (*batch, T_m); True = valid
    present: Tensor | None  # bool, broadcasts to (*batch, M)
    batch: torch.Size
    single: list[bool]  # given as (*batch, K_m), one token each

    def valid(self, m: int) -> Tensor | None:
        """Which tokens of modality m are there: (\\*batch, T_m) or what broadcasts to it."""
        if self.present is None:
            return self.masks[m]
        there, mask = self.present[..., m, None], self.masks[m]
        return there if mask is None else there & mask


class TokenFusion(Fusion):
    r"""Joins sequences of tokens; the parent of the attention modules.

    Args:
        in_features: the features K_m of each modality's tokens, in order; a mapping names them.
        out_features: features N of the result.
        num_heads: attention heads; N must be a multiple.

    Subclasses define ``forward(inputs, present=None, masks=None)``:

    - inputs: per modality its tokens (\*batch, T_m, K_m), or (\*batch, K_m) for a single one. With
      more than one batch dimension, at least one input must have the token dimension.
    - present: bool (\*batch, M), True where a modality is there; see :class:`Fusion`.
    - masks: per modality None or bool (\*batch, T_m), True = valid; a mapping may leave modalities
      out. What an invalid token holds matters as little as what an absent modality holds, and a
      modality without a valid token counts as absent.
    """

    def __init__(self, in_features: Sizes, out_features: int, num_heads: int) -> None:
        super().__init__(in_features, check_size("out_features", out_features, 1))
        self.num_heads = check_size("num_heads", num_heads, 1)
        if self.out_features % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}; it must divide out_features, which is {out_features}"
            )

    def tokens(self, inputs: Inputs, present: Tensor | None, masks: Masks | None) -> Tokens:
        """The arguments of ``forward``, checked, with zeros for what is absent or invalid.

        Raises:
            TypeError: an input is not a tensor, or ``present`` or a mask is not a bool tensor.
            ValueError: number, names or last sizes differ from ``in_features``, or shapes do not
                fit together.
        """
        tensors, _ = self.ordered(inputs)
        # Two dimensions are (batch, features): one token each. See the class.
        dims = max(3, *(x.dim() for x in tensors))
        for i, x in enumerate(tensors):
            if not dims - 1 <= x.dim() <= dims:
                raise ValueError(
                    f"inputs[{i}] has shape {tuple(x.shape)}; beside the other inputs it must have "
                    f"{dims} dimensions, (*batch, tokens, features), or {dims - 1} for one token"
                )
        single = [x.dim() < dims for x in tensors]
        tensors = [x.unsqueeze(-2) if one else x for x, one in zip(tensors, single, strict=True)]
        batch = _batch_shape(tensors)
        if present is not None:
            check_present(present, [batch] * len(tensors), tensors[0].device)
        given = self._ordered_masks(masks, tensors, batch)
        found = Tokens(tensors, given, present, batch, single)
        for m, x in enumerate(tensors):
            valid = found.valid(m)
            if valid is not None:
                tensors[m] = x.where(valid[..., None], 0)
        return found

    def _ordered_masks(
        self, masks: Masks | None, tensors: Sequence[Tensor], batch: torch.Size
    ) -> list[Tensor | None]:
        if masks is None:
            return [None] * len(tensors)
        if isinstance(masks, Mapping):
            unknown = set(masks) - set(self.names or ())
            if unknown:
                raise ValueError(
                    f"masks has the names {sorted(map(str, unknown))}; in_features says "
                    f"{sorted(self.names) if self.names else 'no names'}"
                )
            masks = [masks.get(name) for name in self.names or ()]
        if isinstance(masks, Tensor) or not isinstance(masks, Sequence):
            raise TypeError(
                f"masks must be a sequence or mapping of bool tensors, got {type(masks).__name__}"
            )
        if len(masks) != len(tensors):
            raise ValueError(
                f"masks has {len(masks)} entries but there are {len(tensors)} modalities; give "
                "each a tensor or None"
            )
        for m, (mask, x) in enumerate(zip(masks, tensors, strict=True)):
            if mask is not None:
                _check_mask(m, mask, (*batch, x.shape[-2]))
                check_device(f"masks[{m}]", mask, f"inputs[{m}]", x.device)
        return list(masks)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, num_heads={self.num_heads}"


def _batch_shape(tensors: Sequence[Tensor]) -> torch.Size:
    shapes = [x.shape[:-2] for x in tensors]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"the batch shapes of inputs do not broadcast together: "
            f"{', '.join(str(tuple(shape)) for shape in shapes)}; tokens are (*batch, tokens, "
            "features), a single one may be (*batch, features)"
        ) from None


def _check_mask(m: int, mask: Tensor, wanted: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"masks[{m}] must be a bool tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"masks[{m}] has dtype {mask.dtype}; it must be torch.bool, True = valid")
    check_dense(f"masks[{m}]", mask)
    pairs = zip(reversed(mask.shape), reversed(wanted), strict=False)
    fits = mask.dim() <= len(wanted) and all(size in (1, full) for size, full in pairs)
    if not fits or mask.dim() == 0:
        raise ValueError(
            f"masks[{m}] has shape {tuple(mask.shape)}; it must be {wanted}, a value per token, or "
            "broadcast to it"
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    r"""(\*batch, T, N) as (\*batch, heads, T, N / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def join_heads(x: Tensor) -> Tensor:
    """The opposite of :func:`split_heads`."""
    return x.transpose(-2, -3).flatten(-2)


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    r"""The mean of (\*batch, T, N) over the T that are valid, (\*batch, T); 0 if there is none."""
    if valid is None:
        return x.mean(-2) if x.shape[-2] else x.sum(-2)
    valid = valid.expand(x.shape[:-1])
    total = x.where(valid[..., None], 0).sum(-2)
    return total / valid.sum(-1, keepdim=True).clamp(min=1)


class SelfAttention(nn.Module):
    """Attention of several streams of tokens to all of them at once.

    The parameters are those of ``nn.MultiheadAttention(features, num_heads)``: the streams share
    them. For one stream this is self-attention; the streams are not concatenated for it.
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        options = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * features, features, **options))  # type: ignore[arg-type]
        self.in_proj_bias = nn.Parameter(torch.empty(3 * features, **options))  # type: ignore[arg-type]
        self.out_proj = nn.Linear(features, features, **options)  # type: ignore[arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as ``nn.MultiheadAttention`` draws them."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        streams: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        present: Tensor | None,
        wanted: int,
    ) -> list[Tensor]:
        r"""What the first ``wanted`` streams attended to; streams are (\*batch, T_i, features)."""
        heads = [
            F.linear(x, self.in_proj_weight, self.in_proj_bias)
            .unflatten(-1, (3, self.num_heads, -1))
            .transpose(-2, -4)
            .unbind(-3)
            for x in streams
        ]
        keys, values = [k for _, k, _ in heads], [v for _, _, v in heads]
        key_masks = [None if mask is None else mask[..., None, None, :] for mask in masks]
        return [
            self.out_proj(
                join_heads(multi_source_attention(q, keys, values, key_masks, present=present))
            )
            for q, _, _ in heads[:wanted]
        ]


class EncoderLayer(nn.Module):
    """A transformer layer over several streams of tokens that attend to all of them.

    Pre-norm (Xiong et al. 2020), with GELU and a hidden size of four times the features. The
    parameters are those of ``nn.TransformerEncoderLayer(features, num_heads, 4 * features)``, and
    for a single stream so is the function, with ``norm_first=True``, ``activation="gelu"`` and
    ``dropout=0``.
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(features, num_heads, device, dtype)
        self.linear1 = nn.Linear(features, 4 * features, device=device, dtype=dtype)
        self.linear2 = nn.Linear(4 * features, features, device=device, dtype=dtype)
        self.norm1 = nn.LayerNorm(features, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(features, device=device, dtype=dtype)

    def forward(
        self,
        streams: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        present: Tensor | None = None,
        wanted: int | None = None,
    ) -> list[Tensor]:
        r"""The first ``wanted`` streams (default: all), each (\*batch, T_i, features), after it.

        ``masks`` are None or bool (\*batch, T_i) per stream, ``present`` None or bool
        (\*batch, streams): what is not there is attended to by nobody.
        """
        wanted = len(streams) if wanted is None else wanted
        attended = self.self_attn([self.norm1(x) for x in streams], masks, present, wanted)
        results = []
        for x, y in zip(streams, attended, strict=False):
            x = x + y
            results.append(x + self.linear2(F.gelu(self.linear1(self.norm2(x)))))
        return results
