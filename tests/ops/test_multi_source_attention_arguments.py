"""What multi_source_attention says to wrong arguments: which one, what it was, what it must be."""

import pytest
import torch

from mmfast.functional.multi_source_attention import multi_source_attention

pytestmark = pytest.mark.cpu_only  # the arguments are made when this file is read

Q, K, V = torch.ones(2, 4, 5, 8), torch.ones(2, 4, 6, 8), torch.ones(2, 4, 6, 8)
MASK, PRESENT = torch.ones(2, 4, 5, 6, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
FREED = torch.ones(2, 4, 6, 8)
FREED.untyped_storage().resize_(1000)
LOST = MASK.clone()
LOST.untyped_storage().resize_(0)
WRONG = {
    "freed keys": ((Q, [FREED], [V]), {}, RuntimeError, r"keys\[0\] has elements without memory"),
    "freed values": ((Q, [K], [FREED]), {}, RuntimeError, r"values\[0\] has elements without memo"),
    "freed query": ((FREED, [K], [V]), {}, RuntimeError, "query has elements without memory"),
    "freed mask": ((Q, [K], [V], [LOST]), {}, RuntimeError, r"masks\[0\] has elements without"),
    "query": ((None, [K], [V]), {}, TypeError, "query must be a tensor, got NoneType"),
    "tensor as keys": ((Q, K, V), {}, TypeError, "keys must be a sequence of tensors, got Tensor"),
    "values": ((Q, [K], [3]), {}, TypeError, r"values\[0\] must be a tensor, got int"),
    "no sources": ((Q, [], []), {}, ValueError, "keys is empty"),
    "fewer values": ((Q, [K, K], [V]), {}, ValueError, "values has 1 entries but keys has 2"),
    "integers": ((Q.long(), [K], [V]), {}, TypeError, "query has dtype torch.int64"),
    "sparse": ((Q.to_sparse(), [K], [V]), {}, TypeError, "query has layout torch.sparse_coo"),
    "csr": ((Q, [K], [V.to_sparse_csr()]), {}, TypeError, r"values\[0\] has layout .*sparse_csr"),
    "nested": (
        (torch.nested.nested_tensor([Q[0], Q[1]]), [K], [V]),
        {},
        TypeError,
        "query is nested; it must be dense",
    ),
    "dtypes": ((Q, [K], [V.half()]), {}, ValueError, r"values\[0\] has dtype torch.float16 but"),
    "devices": ((Q, [K.to("meta")], [V]), {}, ValueError, r"keys\[0\] is on meta but query is on"),
    "2-d query": ((Q[0, 0], [K], [V]), {}, ValueError, r"query has shape \(5, 8\); it must be"),
    "1-d keys": ((Q, [K[0, 0, 0]], [V]), {}, ValueError, r"keys\[0\] has shape \(8,\)"),
    "batch": ((Q, [K[:1]], [V[:1]]), {}, ValueError, r"keys\[0\] has shape \(1, 4, 6, 8\)"),
    "width": ((Q, [K[..., :5]], [V]), {}, ValueError, r"keys\[0\] .* must be \(2, 4, 6, 8\)"),
    "tokens": ((Q, [K], [V[:, :, :5]]), {}, ValueError, r"values\[0\] has shape \(2, 4, 5, 8\)"),
    "widths": ((Q, [K, K], [V, V[..., :5]]), {}, ValueError, r"values\[1\] has shape"),
    "heads": ((Q, [K[:, :2]], [V[:, :2]]), {}, ValueError, "4 heads but keys have 2; .*enable_gqa"),
    "groups": (
        (Q, [K[:, :3]], [V[:, :3]]),
        {"enable_gqa": True},
        ValueError,
        "4 heads but keys have 3; with enable_gqa",
    ),
    "tensor as masks": ((Q, [K], [V], MASK), {}, TypeError, "masks must be None or a sequence"),
    "fewer masks": ((Q, [K], [V], []), {}, ValueError, "masks has 0 entries but keys has 1"),
    "mask": ((Q, [K], [V], [1]), {}, TypeError, r"masks\[0\] must be a bool tensor or None, got"),
    "float mask": ((Q, [K], [V], [MASK.float()]), {}, TypeError, r"masks\[0\] has dtype .*float32"),
    "mask shape": (
        (Q, [K], [V], [MASK[..., :5]]),
        {},
        ValueError,
        r"masks\[0\] has shape \(2, 4, 5, 5\); it must be \(2, 4, 5, 6\)",
    ),
    "mask dims": ((Q, [K], [V], [MASK[None]]), {}, ValueError, r"masks\[0\] has shape \(1, 2,"),
    "present": ((Q, [K], [V]), {"present": True}, TypeError, "present must be a bool tensor"),
    "float present": ((Q, [K], [V]), {"present": PRESENT + 0.0}, TypeError, "present has dtype"),
    "present shape": (
        (Q, [K], [V]),
        {"present": PRESENT.T},
        ValueError,
        r"present has shape \(1, 2\); it must be \(2, 1\)",
    ),
    "causal": ((Q, [K], [V]), {"is_causal": 1}, TypeError, "is_causal is 1; it must be a bool"),
    "causal list": ((Q, [K], [V]), {"is_causal": [1]}, TypeError, r"is_causal is \[1\]"),
    "causal each": ((Q, [K], [V]), {"is_causal": [True, True]}, ValueError, "is_causal has 2"),
    "gqa": ((Q, [K], [V]), {"enable_gqa": 1}, TypeError, "enable_gqa must be a bool, got int"),
    "scale": ((Q, [K], [V]), {"scale": "1"}, TypeError, "scale must be a number or None, got str"),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name, autocast):
    arguments, options, error, message = WRONG[name]
    if name == "dtypes" and autocast:
        pytest.skip("autocast converts them")
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        pytest.raises(error, match=message),
    ):
        multi_source_attention(*arguments, **options)
