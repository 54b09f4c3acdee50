"""The operator merge_attention: attention over several sources from attention over each."""

import pytest
import torch
from attention_cases import check_close

from mmfast.ops import multi_source_attention as op

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def draw_merge(count, shape=(2, 3, 5, 8), dtype=torch.float64, inner=False):
    batch, heads, queries, size = shape
    wide = torch.promote_types(dtype, torch.float32)
    if inner:
        outputs = [torch.randn(batch, queries, heads, size).transpose(1, 2) for _ in range(count)]
    else:
        outputs = [torch.randn(shape) for _ in range(count)]
    lses = [3 * torch.randn(batch, queries, heads).transpose(1, 2) for _ in range(count)]
    return [x.to(dtype) for x in outputs], [x.to(wide) for x in lses]


def merge_formula(outputs, lses):
    shares = torch.stack([x.double() for x in lses])
    total = shares.exp().sum(0)
    weights = shares.exp() / total.where(total > 0, torch.ones_like(total))
    return sum(
        w[..., None] * x.double() for w, x in zip(weights, outputs, strict=True)
    ), total.log()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_merge(isa, count, dtype):
    close = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.02, torch.float16: 3e-3}
    for shape in ((2, 3, 5, 8), (1, 1, 1, 1), (2, 3, 40, 1030), (2, 0, 5, 8), (2, 3, 5, 0)):
        for inner in (False, True):
            outputs, lses = draw_merge(count, shape, dtype, inner)
            lses[0][..., ::2] = -torch.inf
            found, lse = op.merge(outputs, lses)
            exact, exact_lse = merge_formula(outputs, lses)
            check_close([found.double(), lse.double()], [exact, exact_lse], close[dtype])
            assert found.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_special_values(isa, dtype):
    outputs, lses = draw_merge(3, dtype=dtype)
    lses[0][0] = lses[1][0] = -torch.inf
    outputs[0][0] = outputs[1][0] = torch.nan  # without weight
    found, lse = op.merge(outputs, lses)
    assert torch.equal(found[0], outputs[2][0])
    assert torch.equal(lse[0], lses[2][0])
    lses[2][0] = -torch.inf
    found, lse = op.merge(outputs, lses)
    assert not found[0].any()
    assert (lse[0] == -torch.inf).all()
    assert found[1].isfinite().all()
    lses[1][1] = torch.nan
    found, lse = op.merge(outputs, lses)
    assert found[1].isnan().all()
    assert lse[1].isnan().all()
    lses[1][1] = 1e4  # beyond exp
    found, lse = op.merge(outputs, lses)
    assert torch.equal(found[1], outputs[1][1])
    assert (lse[1] == 1e4).all()


@pytest.mark.parametrize("inner", [False, True])
def test_merge_opcheck(inner):
    torch.library.opcheck(op.merge, draw_merge(2, inner=inner))
    torch.library.opcheck(op.merge, draw_merge(1, shape=(2, 1, 5, 4), inner=inner))
    outputs, lses = draw_merge(2, inner=inner)
    torch.library.opcheck(
        op.merge, ([x.transpose(-1, -2) for x in [o.mT.contiguous() for o in outputs]], lses)
    )


def test_merge_wrong_arguments():
    (a, b), (x, y) = draw_merge(2)
    for arguments, message in (
        (([], [x]), "outputs is empty"),
        (([a, b], [x]), "lses has 1 tensors but outputs has 2"),
        (([a[0]], [x]), r"outputs\[0\] has shape \(3, 5, 8\); it must be 4-d"),
        (([a, b[:1]], [x, y]), r"outputs\[1\] has shape \(1, 3, 5, 8\); it must be \(2, 3, 5, 8\)"),
        (([a, b.float()], [x, y]), r"outputs\[1\] has dtype Float but outputs\[0\] has Double"),
        (([a, b], [x, y[:1]]), r"lses\[1\] has shape \(1, 3, 5\); it must be \(2, 3, 5\)"),
        (([a, b], [x, y.float()]), r"lses\[1\] has dtype Float; it must be Double"),
        (([a.long()], [x]), r"outputs\[0\] has dtype Long"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op.merge(*arguments)
