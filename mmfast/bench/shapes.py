"""The shapes that are measured: real models' with their origin, tiny ones, a grid, sweeps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmfast.bench import operator_shapes
from mmfast.bench.cases import Case, Input, scaled
from mmfast.bench.operator_cases import OperatorCase, grown_operator, scaled_operator
from mmfast.bench.operator_peers import PEERS

SUITES = ("default", "quick", "grid", "gpu")
OPERATORS = ("concat_linear", *PEERS)


def _equal(batch: int | tuple[int, ...], *widths: int) -> tuple[Input, ...]:
    shape = batch if isinstance(batch, tuple) else (batch,)
    return tuple(Input((*shape, width)) for width in widths)


def graph(nodes: int, edges: int, node: int, edge: int) -> tuple[Input, ...]:
    """h[src], h[dst], e of a graph network: (nodes, node) twice the same, (edges, edge)."""
    return (
        Input((nodes, node), index=(edges,)),
        Input((nodes, node), index=(edges,), same_as=0),
        Input((edges, edge)),
    )


REAL = (
    Case(
        "late fusion 2048+768",
        _equal(1024, 2048, 768),
        512,
        origin="ResNet-50 and BERT-base features joined by a classifier's first layer",
    ),
    *(
        Case(
            f"frozen encoders 2048+768, batch {batch}",
            _equal(batch, 2048, 768),
            512,
            frozen=True,
            series="frozen encoders 2048+768 -> 512",
            size=batch,
            axis="batch",
            origin="features of frozen ResNet-50 and BERT-base: gradients of weight, bias alone",
        )
        for batch in (16, 256)
    ),
    Case(
        "three modalities 3x768",
        _equal(8192, 768, 768, 768),
        768,
        origin="image, text and audio encoders of base size, tokens aligned (32 x 256)",
    ),
    Case(
        "CMU-MOSI 300+74+35",
        _equal((64, 50), 300, 74, 35),
        128,
        activation="relu",
        origin="GloVe, COVAREP and Facet features of CMU-MOSI, 64 clips of 50 steps",
    ),
    Case(
        "DLRM 26x64+64",
        _equal(2048, *[64] * 27),
        512,
        activation="relu",
        origin="DLRM on Criteo: 26 categorical embeddings and the dense features, top MLP",
    ),
    Case(
        "token + image vector",
        (Input((32, 128, 768)), Input((32, 1, 2048))),
        768,
        origin="one image vector joined to every token, as in captioning and VQA models",
    ),
    Case(
        "PointNet segmentation",
        (Input((8, 4096, 64)), Input((8, 1, 1024))),
        512,
        activation="relu",
        origin="PointNet: per-point features and the global feature, first segmentation layer",
    ),
    Case(
        "graph edges",
        graph(10_000, 100_000, 128, 16),
        128,
        activation="relu",
        origin="edge update of a graph network: h[src], h[dst], e; 100k edges over 10k nodes",
    ),
    *(
        Case(
            f"MTP head 2x2048, batch {batch}",
            _equal(batch, 2048, 2048),
            2048,
            series="MTP head 2x2048 -> 2048",
            size=batch,
            axis="batch",
            origin="multi-token prediction and EAGLE: hidden state and next token's embedding",
        )
        for batch in (1, 8, 64)
    ),
    Case(
        "critic 376+17",
        _equal(256, 376, 17),
        256,
        activation="relu",
        origin="Q(s, a) of SAC and TD3 on Humanoid, replay batch 256",
    ),
    Case(
        "U-Net skip 128+128",
        _equal((8, 64, 64), 128, 128),
        128,
        origin="1 x 1 convolution after a skip connection, 64 x 64 pixels, channels last",
    ),
    *(
        Case(
            f"narrow head 512+512 -> {classes}",
            _equal(8192, 512, 512),
            classes,
            origin="two encoders joined straight to a small number of classes",
        )
        for classes in (10, 64)
    ),
)

TINY = tuple(
    Case(name, inputs, out, group="tiny", origin="call overhead: next to no arithmetic")
    for name, inputs, out in (
        ("tiny 8+8", _equal(1, 8, 8), 8),
        ("tiny 3x32, batch 4", _equal(4, 32, 32, 32), 32),
        ("tiny 26x16, batch 8", _equal(8, *[16] * 26), 16),
    )
)

GRID_ROWS = (1, 32, 1024, 8192, 32768)
GRID_WIDTHS = {"2x768": [768] * 2, "3x256": [256] * 3, "26x64": [64] * 26, "2048+512": [2048, 512]}
GRID_OUT = (10, 64, 256, 768)

# What fills a large GPU.
GPU_ROWS = (1024, 4096, 16384, 65536)
GPU_WIDTHS = {"2x512": [512] * 2, "3x768": [768] * 3, "4x1024": [1024] * 4}
GPU_OUT = (64, 256, 512, 1024, 4096)
GPU_OPERATOR_ROWS = 65536
ROW_OPERATORS = ("weighted_sum", "attention_pool", "gated_sum", "rank_product")


def _grid(
    batches: Sequence[int], widths: dict[str, list[int]], outs: Sequence[int]
) -> tuple[Case, ...]:
    return tuple(
        Case(
            f"grid {name} -> {out}, batch {rows}",
            _equal(rows, *widths[name]),
            out,
            group="grid",
            series=f"{name} -> {out}",
            size=rows,
            axis="batch",
        )
        for name in widths
        for out in outs
        for rows in batches
    )


GRID = _grid(GRID_ROWS, GRID_WIDTHS, GRID_OUT)
GPU_GRID = _grid(GPU_ROWS, GPU_WIDTHS, GPU_OUT)


def _sweep(
    series: str, axis: str, sizes: Sequence[int], widths: dict[int, list[int]], rows: int, out: int
) -> list[Case]:
    return [
        Case(
            f"sweep {axis} {size}",
            _equal(size if axis == "batch" else rows, *widths.get(size, widths[min(widths)])),
            out,
            group="sweep",
            series=series,
            size=size,
            axis=axis,
            threads=size if axis == "threads" else None,
        )
        for size in sizes
    ]


def sweeps(threads: int) -> tuple[Case, ...]:
    """Series in which one thing grows: batch, width, number of inputs, threads."""
    pair = {0: [512, 512]}
    widths = {width: [width, width] for width in (16, 64, 256, 1024, 2048)}
    counts = {count: [64] * count for count in (2, 4, 8, 16, 32, 64)}
    powers = [2**i for i in range(threads.bit_length()) if 2**i < threads]
    return (
        *_sweep("512+512 -> 256", "batch", (1, 8, 64, 512, 4096, 16384), pair, 0, 256),
        *_sweep("batch 2048, 2 inputs -> 256", "width", list(widths), widths, 2048, 256),
        *_sweep("batch 2048, inputs of 64 -> 256", "inputs", list(counts), counts, 2048, 256),
        *_sweep("batch 4096, 512+512 -> 256", "threads", [*powers, threads], pair, 4096, 256),
    )


QUICK_ROWS = 8192
QUICK_OPERATOR_ROWS = 1024
QUICK_OPERATORS = "modality|GMU|LMF|attention 128|TFN 3x32|CLIP loss 1024|tiny sum .* 1$"
QUICK = "late fusion|DLRM|token|graph|critic|narrow head .* 10$|tiny 8|sweep batch (1|64|512|4096)$"


def suite(
    name: str, *, threads: int = 1, only: str = "", operators: Sequence[str] = OPERATORS
) -> list[Case | OperatorCase]:
    """Cases of a suite whose name contains a match of the pattern ``only``.

    ``default`` is the real and tiny shapes of all operators and the sweeps of concat_linear,
    ``quick`` some of them at smaller batch, ``grid`` the real and tiny shapes and the grid of
    concat_linear, ``gpu`` the real and tiny shapes of all operators and a grid of larger ones.
    """
    if name not in SUITES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(SUITES)}")
    cases: list[Case | OperatorCase] = [*_concat_linear(name, threads)]
    if name != "grid":
        cases += _others(name)
    return [x for x in cases if x.operator in operators and re.search(only, x.name)]


def _concat_linear(name: str, threads: int) -> list[Case]:
    grids = {"grid": GRID, "gpu": GPU_GRID}
    cases = [*REAL, *TINY, *(grids[name] if name in grids else sweeps(threads))]
    if name == "quick":
        return [scaled(case, QUICK_ROWS) for case in cases if re.match(QUICK, case.name)]
    return cases


def _others(name: str) -> list[OperatorCase]:
    cases = [*operator_shapes.REAL, *operator_shapes.TINY]
    if name == "gpu":
        cases += [
            grown_operator(case, GPU_OPERATOR_ROWS)
            for case in operator_shapes.REAL
            if case.operator in ROW_OPERATORS
        ]
    if name == "quick":
        chosen = (case for case in cases if re.match(QUICK_OPERATORS, case.name))
        return [scaled_operator(case, QUICK_OPERATOR_ROWS) for case in chosen]
    return cases
