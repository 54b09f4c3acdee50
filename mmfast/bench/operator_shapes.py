"""The shapes at which the operators beside concat_linear are measured, with their origin."""

from __future__ import annotations

from math import prod
from typing import Any

from mmfast.bench.operator_cases import OperatorCase, Spec


def weighted_sum(name: str, batch: int, count: int, width: int, per: str, **more: Any) -> Any:
    """Sum of ``count`` inputs, with a weight per modality, feature or row."""
    weights = {
        "modality": Spec((count,), False),
        "feature": Spec((count, width), False),
        "row": Spec((batch, count)),
    }[per]
    return OperatorCase(
        name,
        "weighted_sum",
        (*[Spec((batch, width))] * count, weights),
        (batch, width),
        work=2 * batch * width * count,
        options=(("per", per),),
        **more,
    )


def attention_pool(name: str, batch: int, count: int, width: int, **more: Any) -> OperatorCase:
    """``count`` modalities pooled by one query for all rows."""
    return OperatorCase(
        name,
        "attention_pool",
        (*[Spec((batch, width))] * count, Spec((width,), False)),
        (batch, width),
        work=4 * batch * width * count,
        workspace=batch * width * count,
        **more,
    )


def gated_sum(name: str, batch: int, width: int, **more: Any) -> OperatorCase:
    """A gated multimodal unit of two values and one gate."""
    row = Spec((batch, width))
    # A tanh and a sigmoid count as one operation each.
    work = 6 * batch * width
    return OperatorCase(name, "gated_sum", (row, row, row), (batch, width), work=work, **more)


def rank_product(
    name: str, batch: int, count: int, ranks: int, width: int, weighted: bool, **more: Any
) -> OperatorCase:
    """Products of ``count`` factors, summed over ranks."""
    factor = Spec((batch, ranks, width))
    return OperatorCase(
        name,
        "rank_product",
        (*[factor] * count, *[Spec((ranks,), False)] * weighted),
        (batch, width),
        work=batch * ranks * width * (count + weighted),
        workspace=2 * batch * ranks * width,
        options=(("count", count),),
        **more,
    )


def attention(
    name: str, batch: int, heads: int, queries: int, tokens: tuple[int, ...], **more: Any
) -> OperatorCase:
    """One query sequence that attends to several sources, heads 64 wide."""
    width = 64
    sources = [Spec((batch, heads, count, width)) for count in tokens]
    return OperatorCase(
        name,
        "multi_source_attention",
        (Spec((batch, heads, queries, width)), *sources, *sources),
        (batch, heads, queries, width),
        work=4 * batch * heads * queries * sum(tokens) * width,
        workspace=2 * batch * heads * sum(tokens) * width,
        options=(("sources", len(tokens)),),
        **more,
    )


def tensor_fusion(
    name: str, batch: int, widths: tuple[int, ...], out: int, **more: Any
) -> OperatorCase:
    """The outer product of all modalities, with a 1 before each, mapped to ``out`` features."""
    product = prod(width + 1 for width in widths)
    return OperatorCase(
        name,
        "tensor_fusion",
        (
            *[Spec((batch, width)) for width in widths],
            Spec((out, product), False, product**-0.5),
            Spec((out,), False),
        ),
        (batch, out),
        work=2 * batch * product * out,
        workspace=batch * product,
        **more,
    )


def contrastive(pairs: int, width: int, **more: Any) -> OperatorCase:
    """The loss of ``pairs`` pairs at CLIP's first temperature."""
    row = Spec((pairs, width))
    return OperatorCase(
        f"CLIP loss {pairs} x {width}",
        "contrastive_loss",
        (row, row),
        (),
        work=2 * pairs * pairs * width,
        workspace=2 * pairs * pairs,
        series=f"CLIP loss, {width} wide",
        size=pairs,
        axis="pairs",
        **more,
    )


REAL: tuple[OperatorCase, ...] = (
    weighted_sum(
        "weighted sum 3x768",
        8192, 3, 768, "modality",
        origin="learned weights over image, text and audio features of base size, 32 x 256 tokens",
    ),
    weighted_sum(
        "weighted sum 4x1024",
        4096, 4, 1024, "modality",
        origin="the last four layers of a large encoder mixed, as ELMo does (Peters et al. 2018)",
    ),
    weighted_sum(
        "weighted sum 3x768 by row",
        8192, 3, 768, "row",
        origin="a gate network's weight per example and modality, as in mixtures of experts",
    ),
    attention_pool(
        "modality attention 3x768",
        8192, 3, 768,
        origin="image, text and audio features of base size pooled by one learned query",
    ),
    gated_sum(
        "GMU 2x512",
        8192, 512,
        origin="gated multimodal unit of MM-IMDb (Arevalo et al. 2017), hidden size 512",
    ),
    rank_product(
        "LMF 3 factors, rank 4 x 128",
        8192, 3, 4, 128, True,
        origin="low-rank fusion of audio, video and text (Liu et al. 2018), 128 wide outputs",
    ),
    rank_product(
        "MUTAN rank 10 x 512",
        8192, 2, 10, 512, False,
        origin="question and image of VQA (Ben-Younes et al. 2017), rank 10",
    ),
    attention(
        "attention 128 to 196 + 128",
        8, 12, 128, (196, 128),
        origin="text that attends to the patches of an image of base size and to itself",
    ),
    attention(
        "attention 64 to 1568 + 512",
        2, 12, 64, (1568, 512),
        origin="queries that read 8 frames of video and half a minute of sound",
    ),
    *(
        tensor_fusion(
            f"TFN 3x{width}",
            256, (width,) * 3, 64,
            origin="tensor fusion network (Zadeh et al. 2017), three modalities, batch 256",
        )
        for width in (32, 64)
    ),
    *(
        contrastive(
            pairs, 512,
            origin="contrastive pre-training on one machine (Radford et al. 2021), 512 wide",
        )
        for pairs in (1024, 2048, 4096)
    ),
)  # fmt: skip

_OVERHEAD = "call overhead: next to no arithmetic"
TINY: tuple[OperatorCase, ...] = (
    weighted_sum("tiny sum 3x64, batch 1", 1, 3, 64, "modality", group="tiny", origin=_OVERHEAD),
    weighted_sum("tiny sum 3x128, batch 32", 32, 3, 128, "row", group="tiny", origin=_OVERHEAD),
    attention_pool("tiny attention 3x64, batch 1", 1, 3, 64, group="tiny", origin=_OVERHEAD),
    attention_pool("tiny attention 3x128, batch 32", 32, 3, 128, group="tiny", origin=_OVERHEAD),
    gated_sum("tiny GMU 2x64, batch 1", 1, 64, group="tiny", origin=_OVERHEAD),
    gated_sum("tiny GMU 2x128, batch 32", 32, 128, group="tiny", origin=_OVERHEAD),
    rank_product("tiny LMF 4x32, batch 1", 1, 3, 4, 32, True, group="tiny", origin=_OVERHEAD),
    rank_product("tiny LMF 4x32, batch 32", 32, 3, 4, 32, True, group="tiny", origin=_OVERHEAD),
)
