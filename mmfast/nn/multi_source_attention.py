"""Fusion by attention between the tokens of several modalities."""

import torch
from torch import Tensor, nn

from mmfast.functional.multi_source_attention import multi_source_attention
from mmfast.nn.fusion import Inputs, Sizes, check_size
from mmfast.nn.tokens import (
    EncoderLayer,
    Masks,
    TokenFusion,
    join_heads,
    masked_mean,
    split_heads,
)
from mmfast.ops.fused import check_flag


class CrossAttentionFusion(TokenFusion):
    r"""The tokens of one modality attend to the tokens of all others, in one softmax.

    .. math::
        y = W_o\, \mathrm{softmax}\left(\frac{q\, [k_1; \dots; k_S]^T}{\sqrt{N / H}}\right)
        [v_1; \dots; v_S] + b_o, \quad q = W_q x_q + b_q, \quad
        [k_m; v_m] = W_m x_m + b_m

    for each of H heads by itself, over the S = M - 1 other modalities. Keys and values are not
    concatenated where they are large.

    Args:
        in_features: the features K_m of each modality's tokens, in order; a mapping names them.
        out_features: features N of the result.
        num_heads: heads H; N must be a multiple.
        query: the modality that asks, by position or name.
        pool: whether the result is one vector, the mean over the asking modality's valid tokens, or
            a vector per token.
        device, dtype: of the parameters.

    ``query_proj`` maps the asking modality to N features, ``key_value_proj`` (one per other
    modality, in order) to N features of keys and N of values, ``out_proj`` the result.

    Shape:
        - inputs: per modality (\*batch, T_m, K_m), or (\*batch, K_m) for a single token; see
          :class:`mmfast.nn.tokens.TokenFusion`.
        - present: bool (\*batch, M) or None. A row where no other modality is present gives the
          bias of ``out_proj``. If the asking modality is absent, its tokens count as zeros.
        - masks: per modality None or bool (\*batch, T_m), True = valid.
        - output: (\*batch, T_query, N), or (\*batch, N) with ``pool`` and where the asking modality
          is a single token given as (\*batch, K_m).

    Raises:
        ValueError: fewer than two modalities, a size that is negative or does not divide, an
            unknown ``query``; in ``forward``, what :meth:`TokenFusion.tokens` raises.

    Cross attention is that of Vaswani et al. 2017. Between two modalities it is the crossmodal
    attention of MulT (Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language
    Sequences", 2019), without residual and feed-forward part; ViLBERT calls it co-attention.

    Example:
        >>> layer = CrossAttentionFusion({"text": 768, "image": 1024}, 512, num_heads=8)
        >>> layer({"text": torch.randn(2, 10, 768), "image": torch.randn(2, 196, 1024)}).shape
        torch.Size([2, 10, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        num_heads: int,
        query: int | str = 0,
        pool: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, num_heads)
        count = len(self.in_features)
        if count < 2:
            raise ValueError("in_features has 1 modality; give the asking one and at least another")
        self.query = _position(query, self.names, count)
        check_flag("pool", pool)
        self.pool = pool
        self.others = [m for m in range(count) if m != self.query]
        asking, size = self.in_features[self.query], out_features
        self.query_proj = nn.Linear(asking, size, device=device, dtype=dtype)
        self.key_value_proj = nn.ModuleList(
            nn.Linear(self.in_features[m], 2 * size, device=device, dtype=dtype)
            for m in self.others
        )
        self.out_proj = nn.Linear(size, size, device=device, dtype=dtype)

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        """Let one modality attend to the others; see the class for shapes."""
        found = self.tokens(inputs, present, masks)
        query = split_heads(self.query_proj(found.inputs[self.query]), self.num_heads)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for project, m in zip(self.key_value_proj, self.others, strict=True):
            for x, to in zip(project(found.inputs[m]).chunk(2, -1), (keys, values), strict=True):
                heads = split_heads(x, self.num_heads)
                to.append(heads.expand(*found.batch, *heads.shape[-3:]))
        given = [found.masks[m] for m in self.others]
        out = multi_source_attention(
            query.expand(*found.batch, *query.shape[-3:]),
            keys,
            values,
            [None if mask is None else mask[..., None, None, :] for mask in given],
            present=None if present is None else present[..., self.others],
        )
        result = self.out_proj(join_heads(out))
        if found.single[self.query]:
            return result.squeeze(-2)
        if not self.pool:
            return result
        valid = found.valid(self.query)
        # Zeros can ask too, and hear the others: all of them where no token is there.
        return masked_mean(result, None if valid is None else valid | ~valid.any(-1, keepdim=True))

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        query = self.query if self.names is None else self.names[self.query]
        return f"{super().extra_repr()}, query={query!r}, pool={self.pool}"


class SequenceFusion(TokenFusion):
    r"""The tokens of all modalities as one sequence, through a transformer encoder.

    .. math:: z = \mathrm{LN}(\mathrm{Encoder}([W_1 x_1 + e_1; \dots; W_M x_M + e_M]))

    with an embedding :math:`e_m` per modality, learned with the biases. Without ``pool`` the result
    is z, with it the mean of z over the tokens that are there. Tokens carry no positions here: add
    them to the inputs where order matters.

    Args:
        in_features: the features K_m of each modality's tokens, in order; a mapping names them.
        out_features: features N of the result, and inside.
        num_heads: attention heads; N must be a multiple.
        num_layers: layers of the encoder; see :class:`mmfast.nn.tokens.EncoderLayer`.
        pool: whether the result is one vector or a vector per token.
        device, dtype: of the parameters.

    ``embed`` holds an ``nn.Linear`` per modality, ``modality_embedding`` is (M, N), ``layers`` have
    the parameters of ``nn.TransformerEncoderLayer``, ``norm`` ends the encoder.

    Shape:
        - inputs: per modality (\*batch, T_m, K_m), or (\*batch, K_m) for a single token; see
          :class:`mmfast.nn.tokens.TokenFusion`.
        - present: bool (\*batch, M) or None.
        - masks: per modality None or bool (\*batch, T_m), True = valid.
        - output: (\*batch, N) with ``pool``, else (\*batch, sum of T_m, N). Tokens that are absent
          or invalid give 0, and so does a row without any token.

    Raises:
        ValueError: a size that is negative or does not divide; in ``forward``, what
            :meth:`TokenFusion.tokens` raises.

    Also called early fusion, single-stream or merged attention, as in VisualBERT (Li et al. 2019)
    and UNITER (Chen et al. 2020), whose segment embeddings are the modality's here.

    Example:
        >>> layer = SequenceFusion({"image": 1024, "text": 768}, 512, num_heads=8)
        >>> layer({"image": torch.randn(2, 196, 1024), "text": torch.randn(2, 10, 768)}).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        num_heads: int,
        num_layers: int = 1,
        pool: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, num_heads)
        self.num_layers = check_size("num_layers", num_layers, 1)
        check_flag("pool", pool)
        self.pool = pool
        self.embed = nn.ModuleList(
            nn.Linear(k, out_features, device=device, dtype=dtype) for k in self.in_features
        )
        count = len(self.in_features)
        self.modality_embedding = _embedding(count, out_features, device, dtype)
        self.layers = nn.ModuleList(
            EncoderLayer(out_features, num_heads, device, dtype) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(out_features, device=device, dtype=dtype)

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        """Encode all tokens together; see the class for shapes."""
        found = self.tokens(inputs, present, masks)
        parts = []
        for m, embed in enumerate(self.embed):
            x = embed(found.inputs[m]) + self.modality_embedding[m]
            parts.append(x.expand(*found.batch, *x.shape[-2:]))
        lengths = [x.shape[-2] for x in parts]
        valid = None
        if present is not None or masks is not None:
            device = parts[0].device
            anything = torch.ones((), dtype=torch.bool, device=device)
            known = [found.valid(m) for m in range(len(parts))]
            valid = torch.cat(
                [
                    (anything if v is None else v).expand(*found.batch, length)
                    for v, length in zip(known, lengths, strict=True)
                ],
                -1,
            )
        x = torch.cat(parts, -2)
        for layer in self.layers:
            [x] = layer([x], [valid])
        x = self.norm(x)
        if self.pool:
            return masked_mean(x, valid)
        return x if valid is None else x.where(valid[..., None], 0)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, num_layers={self.num_layers}, pool={self.pool}"


class BottleneckFusion(TokenFusion):
    r"""Modalities that exchange what they know through a few tokens of no modality only.

    In layer l, each modality's tokens :math:`z_m` and the bottleneck tokens b go through a
    transformer layer of that modality; then the bottleneck is averaged:

    .. math::
        [z_m^{l+1}; b_m^{l+1}] = \mathrm{Layer}_m^l([z_m^l; b^l]), \qquad
        b^{l+1} = \mathrm{mean}_m\, b_m^{l+1}

    The result is the mean over the modalities of :math:`\mathrm{LN}(z_m)`, each first averaged over
    its tokens. The cost of attention grows with the tokens of each modality squared, not with
    those of all together. What one modality says reaches another one layer later: with a single
    layer they do not meet before the mean at the end.

    Args:
        in_features: the features K_m of each modality's tokens, in order; a mapping names them.
        out_features: features N of the result, and inside.
        num_heads: attention heads; N must be a multiple.
        num_bottlenecks: bottleneck tokens.
        num_layers: layers; see :class:`mmfast.nn.tokens.EncoderLayer`.
        device, dtype: of the parameters.

    ``embed`` holds an ``nn.Linear`` per modality, ``bottleneck`` is (num_bottlenecks, N),
    ``layers[l][m]`` has the parameters of ``nn.TransformerEncoderLayer``, ``norm`` is for all.

    Shape:
        - inputs: per modality (\*batch, T_m, K_m), or (\*batch, K_m) for a single token; see
          :class:`mmfast.nn.tokens.TokenFusion`.
        - present: bool (\*batch, M) or None. Means are over the modalities present.
        - masks: per modality None or bool (\*batch, T_m), True = valid.
        - output: (\*batch, N); 0 for a row without any token.

    Raises:
        ValueError: a size that is negative or does not divide; in ``forward``, what
            :meth:`TokenFusion.tokens` raises.

    Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (MBT), 2021, with the layers of
    mid fusion; tokens carry no positions here, and the mean stands for class tokens.

    Example:
        >>> layer = BottleneckFusion({"image": 1024, "audio": 128}, 512, num_heads=8)
        >>> layer({"image": torch.randn(2, 196, 1024), "audio": torch.randn(2, 400, 128)}).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        num_heads: int,
        num_bottlenecks: int = 4,
        num_layers: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, num_heads)
        self.num_bottlenecks = check_size("num_bottlenecks", num_bottlenecks, 1)
        self.num_layers = check_size("num_layers", num_layers, 1)
        self.embed = nn.ModuleList(
            nn.Linear(k, out_features, device=device, dtype=dtype) for k in self.in_features
        )
        self.bottleneck = _embedding(num_bottlenecks, out_features, device, dtype)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                EncoderLayer(out_features, num_heads, device, dtype) for _ in self.in_features
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(out_features, device=device, dtype=dtype)

    def forward(
        self, inputs: Inputs, present: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        """Encode the modalities side by side; see the class for shapes."""
        found = self.tokens(inputs, present, masks)
        count = len(found.inputs)
        streams = []
        for m, embed in enumerate(self.embed):
            x = embed(found.inputs[m])
            streams.append(x.expand(*found.batch, *x.shape[-2:]))
        there = [_any_valid(found.valid(m), streams[m]) for m in range(count)]
        bottleneck = self.bottleneck.expand(*found.batch, *self.bottleneck.shape)
        for i, layers in enumerate(self.layers):
            last = i == self.num_layers - 1  # of whose bottleneck nobody hears
            produced: list[Tensor] = []
            for m in range(count):
                sources = None
                if present is not None:
                    sources = torch.stack([present[..., m], torch.ones_like(present[..., m])], -1)
                streams[m], *rest = layers[m](  # type: ignore[index]
                    [streams[m], bottleneck], [found.masks[m], None], sources, 1 if last else 2
                )
                produced += rest
            if not last:
                bottleneck = _mean_of_present(produced, there, found.batch)
        pooled = [masked_mean(self.norm(x), found.valid(m)) for m, x in enumerate(streams)]
        return _mean_of_present(pooled, there, found.batch)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return (
            f"{super().extra_repr()}, num_bottlenecks={self.num_bottlenecks}, "
            f"num_layers={self.num_layers}"
        )


def _position(query: int | str, names: tuple[str, ...] | None, count: int) -> int:
    if isinstance(query, str) and names is not None and query in names:
        return names.index(query)
    if isinstance(query, int) and not isinstance(query, bool) and 0 <= query < count:
        return query
    named = f" or one of {', '.join(names)}" if names else ""
    raise ValueError(f"query is {query!r}; it must be a position 0 .. {count - 1}{named}")


def _embedding(
    count: int,
    features: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Parameter:
    """Learned tokens, drawn as vision transformers draw theirs."""
    return nn.Parameter(
        nn.init.normal_(torch.empty(count, features, device=device, dtype=dtype), std=0.02)
    )


def _any_valid(valid: Tensor | None, stream: Tensor) -> Tensor | None:
    """Whether a modality has a valid token, per row of the batch; None for always."""
    if stream.shape[-2] == 0:
        return torch.zeros((), dtype=torch.bool, device=stream.device)
    return None if valid is None else valid.any(-1)


def _mean_of_present(
    tensors: list[Tensor], there: list[Tensor | None], batch: torch.Size
) -> Tensor:
    r"""The mean over those of (\*batch, ...) that are there, bool (\*batch) or None; 0 if none."""
    if all(x is None for x in there):
        return sum(tensors[1:], tensors[0]) / len(tensors)
    total = torch.zeros_like(tensors[0])
    count = torch.zeros(batch, dtype=total.dtype, device=total.device)
    for x, is_there in zip(tensors, there, strict=True):
        if is_there is None:
            total, count = total + x, count + 1
        else:
            here = is_there.expand(batch)
            here = here.reshape(*batch, *[1] * (x.dim() - len(batch)))
            total, count = total + x.where(here, 0), count + is_there
    return total / count.clamp(min=1).reshape(*batch, *[1] * (total.dim() - len(batch)))
