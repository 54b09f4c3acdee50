"""What the attention modules say to wrong arguments: which one, what it was, what it must be."""

import pytest
import torch

from mmfast.nn.multi_source_attention import (
    BottleneckFusion,
    CrossAttentionFusion,
    SequenceFusion,
)

pytestmark = pytest.mark.cpu_only  # the arguments are made when this file is read

SIZES = {"text": 3, "image": 5, "audio": 4}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (SequenceFusion, ([3, 5], 8, 3), "num_heads is 3; it must divide out_features, which is 8"),
        (SequenceFusion, ([3, 5], 0, 1), "out_features is 0; it must be an int of at least 1"),
        (SequenceFusion, ([3, 5], 8, 0), "num_heads is 0; it must be an int of at least 1"),
        (SequenceFusion, ([3, 5], 8, 2, 0), "num_layers is 0"),
        (SequenceFusion, ([], 8, 2), "in_features is empty"),
        (BottleneckFusion, ([3, 5], 8, 2, 0), "num_bottlenecks is 0"),
        (BottleneckFusion, ([3, 5], 8, 2, 4, 0), "num_layers is 0"),
        (CrossAttentionFusion, ([3], 8, 2), "in_features has 1 modality"),
        (CrossAttentionFusion, ([3, 5], 8, 2, 2), r"query is 2; it must be a position 0 \.\. 1"),
        (CrossAttentionFusion, ([3, 5], 8, 2, "text"), "query is 'text'; it must be a position"),
        (CrossAttentionFusion, (SIZES, 8, 2, "x"), "query is 'x'; .* one of text, image, audio"),
        (CrossAttentionFusion, ([3, 5], 8, 2, True), "query is True"),
    ],
)
def test_constructor_refuses(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


X, Y, Z = torch.randn(2, 4, 3), torch.randn(2, 6, 5), torch.randn(2, 3, 4)
MASK = torch.ones(2, 4, dtype=torch.bool)
FREED = MASK.clone()
FREED.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([X, Y],), ValueError, r"last sizes \[3, 5\]; in_features says \[3, 5, 4\]"),
        (([X, Y, 3],), TypeError, r"inputs\[2\] must be a tensor, got int"),
        (([X, Y, Z[0, 0]],), ValueError, r"inputs\[2\] has shape \(4,\); beside .* 3 dimensions"),
        (([X, Y, Z[:, :, None, None]],), ValueError, r"last sizes|has shape"),
        (([X, Y, Z[:1].expand(3, -1, -1)],), ValueError, "batch shapes of inputs do not broadcast"),
        (([X, Y, Z], torch.ones(2, 3)), TypeError, "present has dtype torch.float32"),
        (([X, Y, Z], MASK), ValueError, r"present has shape \(2, 4\); it must be \(2, 3\)"),
        (([X, Y, Z], None, MASK), TypeError, "masks must be a sequence or mapping"),
        (([X, Y, Z], None, [MASK]), ValueError, "masks has 1 entries but there are 3 modalities"),
        (([X, Y, Z], None, [MASK, 1, None]), TypeError, r"masks\[1\] must be a bool tensor or"),
        (([X, Y, Z], None, [MASK + 0.0, None, None]), TypeError, r"masks\[0\] has dtype"),
        (([X, Y, Z], None, [FREED, None, None]), RuntimeError, r"masks\[0\] has elements without"),
        (([X, Y, Z], None, [MASK.to_sparse(), None, None]), TypeError, r"masks\[0\] has layout"),
        (
            ([X, Y, Z], None, [MASK.to("meta"), None, None]),
            ValueError,
            r"masks\[0\] is on meta but",
        ),
        (([X, Y, Z], None, [None, MASK, None]), ValueError, r"masks\[1\] has shape \(2, 4\)"),
        (([X, Y, Z], None, {"video": MASK}), ValueError, r"masks has the names \['video'\]"),
        (({"text": X, "image": Y},), ValueError, r"names \['image', 'text'\]"),
    ],
)
@pytest.mark.parametrize("kind", [CrossAttentionFusion, SequenceFusion, BottleneckFusion])
def test_wrong_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(SIZES, 8, 2)(*arguments)
