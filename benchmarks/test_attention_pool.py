"""attention_pool against what users write today; see test_concat_linear.py."""

import pytest

from mmfast.bench import operator_shapes
from mmfast.bench.operator_peers import PEERS

OPERATOR = "attention_pool"
CASES = [
    case for case in (*operator_shapes.REAL, *operator_shapes.TINY) if case.operator == OPERATOR
]


@pytest.mark.parametrize("peer", [*PEERS[OPERATOR], "compile"])
@pytest.mark.parametrize("mode", ["forward", "backward", "both"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_pool(measure, case, dtype, mode, peer):
    measure(case, dtype, mode, peer)
