"""Every operator forward and backward on fixed tensors: what scenarios.py runs in many ways.

A call returns the results and all gradients, and leaves its tensors as they were: any number of
threads may run it at once. ``CALLS`` are large enough for loops over several threads, ``SMALL`` are
not, ``OWN`` names those without a product of the library, whose bits may depend on its threads.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from fused_cases import VARIANTS, Size
from torch import Tensor

from mmfast import functional
from mmfast.ops import multi_source_attention as attention_op

Call = Callable[[], list[Tensor]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def gradients_too(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> Call:
    """A call of ``function(tensors)`` and of backward, with gradients that are drawn now."""
    leaves = [x.requires_grad_(x.is_floating_point()) for x in tensors]
    drawn = [torch.randn_like(y) for y in function(leaves)]

    def call() -> list[Tensor]:
        results = function(leaves)
        wanted = [x for x in leaves if x.requires_grad]
        return [*(y.detach() for y in results), *torch.autograd.grad(results, wanted, drawn)]

    return call


def concat_linear(
    *batches: tuple[int, ...],
    widths: Sequence[int],
    cols: int,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
    picked: int | None = None,
) -> Call:
    """Inputs of these batch shapes and widths; ``picked``: a first one, picked by an index."""
    tensors = [torch.randn(*b, k, dtype=dtype) for b, k in zip(batches, widths, strict=True)]
    index = None
    if picked is not None:
        index = [torch.randint(len(tensors[0]), (picked,)), *[None] * (len(tensors) - 1)]
    weight = torch.randn(cols, sum(widths), dtype=dtype)

    def function(leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        *inputs, w, b = leaves
        return [functional.concat_linear(inputs, w, b, activation=activation, index=index)]

    return gradients_too(function, [*tensors, weight, torch.randn(cols, dtype=dtype)])


def fused(variant: str, size: Size, dtype: torch.dtype, missing: bool) -> Call:
    """An operator over rows; ``missing``: of some inputs."""
    tensors = [x.to(dtype) for x in VARIANTS[variant].draw(size)]
    present = torch.rand(*size.batch, size.count) > 0.3 if missing else None
    return gradients_too(lambda leaves: VARIANTS[variant].call(leaves, present), tensors)


def merge_attention(shape: tuple[int, ...], count: int) -> Call:
    outputs = [torch.randn(shape) for _ in range(count)]
    lses = [torch.randn(shape[:-1]) for _ in range(count)]
    return lambda: list(attention_op.merge(outputs, lses))


def multi_source_attention(rows: int, size: int) -> Call:
    tensors = [torch.randn(2, 2, n, size) for n in (rows, rows, 7, rows, 7)]

    def function(leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        query, *others = leaves
        return [functional.multi_source_attention(query, others[:2], others[2:])]

    return gradients_too(function, tensors)


def tensor_fusion(rows: int) -> Call:
    tensors = [torch.randn(rows, k) for k in (4, 6)] + [torch.randn(8, 35), torch.randn(8)]
    return gradients_too(
        lambda leaves: [functional.tensor_fusion(leaves[:2], leaves[2], leaves[3])], tensors
    )


def _large() -> dict[str, Call]:
    linear = partial(concat_linear, widths=[96, 64], cols=96)
    calls = {
        "concat_linear": linear((300,), (300,), activation="gelu"),
        "concat_linear bfloat16": linear((300,), (300,), dtype=torch.bfloat16, activation="relu"),
        "concat_linear repeated": linear((8, 40), (8, 1), activation="tanh"),
        "concat_linear picked": linear((20,), (400,), picked=400),
        "concat_linear narrow": concat_linear(*[(400,)] * 26, widths=[16] * 26, cols=40),
        "merge_attention": merge_attention((4, 4, 60, 48), 3),
        "multi_source_attention": multi_source_attention(120, 32),
        "tensor_fusion": tensor_fusion(900),
    }
    for variant in VARIANTS:
        for dtype in ("float32", "bfloat16"):
            calls[f"{variant} {dtype}"] = fused(
                variant, Size((700,), 3, 48, 3), DTYPES[dtype], missing=dtype == "float32"
            )
    return calls


def _small() -> dict[str, Call]:
    calls = {
        "concat_linear tiny": concat_linear((4,), (4,), widths=[3, 5], cols=6, activation="silu"),
        "concat_linear few rows": concat_linear((3,), (3,), widths=[512, 300], cols=64),
        "concat_linear half": concat_linear(
            (70,), (70,), widths=[30, 33], cols=40, dtype=torch.float16, activation="sigmoid"
        ),
        "merge_attention small": merge_attention((1, 2, 5, 8), 2),
        "multi_source_attention small": multi_source_attention(5, 8),
        "tensor_fusion small": tensor_fusion(6),
    }
    for number, variant in enumerate(VARIANTS):
        dtype = list(DTYPES)[number % len(DTYPES)]
        calls[f"{variant} small"] = fused(
            variant, Size((9,), 3, 20), DTYPES[dtype], missing=number % 2 == 0
        )
    return calls


torch.manual_seed(0)
LARGE = _large()
SMALL = _small()
CALLS = {**LARGE, **SMALL}
OWN = [
    name
    for name in CALLS
    if name.rsplit(" ", 1)[0] in VARIANTS or name.startswith("merge_attention")
]
