"""CrossAttentionFusion, SequenceFusion, BottleneckFusion: row by row against plain PyTorch.

The references take one row of the batch at a time, and of it only the tokens that are there, so
that they need neither masks nor presence. Encoder layers are torch.nn.TransformerEncoderLayer's.
"""

import copy
import pickle

import pytest
import torch
from attention_cases import check_close
from torch import Tensor, nn
from torch.func import functional_call

from mmfast.nn.multi_source_attention import (
    BottleneckFusion,
    CrossAttentionFusion,
    SequenceFusion,
)
from mmfast.nn.tokens import EncoderLayer

FEATURES, HEADS = 8, 2
SIZES = {"text": 3, "image": 5, "audio": 4}
TOKENS = (4, 6, 3)
MODULES = {
    "cross": (CrossAttentionFusion, {}),
    "cross, named": (CrossAttentionFusion, {"query": "audio"}),
    "cross, pooled": (CrossAttentionFusion, {"pool": True}),
    "sequence": (SequenceFusion, {}),
    "sequence, two layers, tokens": (SequenceFusion, {"num_layers": 2, "pool": False}),
    "bottleneck": (BottleneckFusion, {}),
    "bottleneck, three layers": (BottleneckFusion, {"num_layers": 3, "num_bottlenecks": 2}),
    "bottleneck, one layer": (BottleneckFusion, {"num_layers": 1}),
}


@pytest.fixture(params=MODULES)
def module(request) -> nn.Module:
    kind, options = MODULES[request.param]
    found = kind(SIZES, FEATURES, HEADS, **options, dtype=torch.float64)
    with torch.no_grad():
        for p in found.parameters():  # nothing may stay 0 or 1, where a mistake could hide
            p.add_(0.3 * torch.randn_like(p))
    return found


def draw(batch: tuple[int, ...] = (5,), tokens: tuple[int, ...] = TOKENS) -> list[Tensor]:
    pairs = zip(tokens, SIZES.values(), strict=True)
    return [torch.randn(*batch, t, k, dtype=torch.float64) for t, k in pairs]


def draw_masks(batch: tuple[int, ...] = (5,)) -> list[Tensor | None]:
    masks: list[Tensor | None] = [torch.rand(*batch, t) > 0.4 for t in TOKENS]
    masks[1] = None
    masks[2][0] = False  # a modality without a valid token
    return masks


PRESENT = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()


# --------------------------------------------------------------------------------------- references


def encoder_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """One row, (tokens, features), through PyTorch's layer with the parameters of ``layer``."""
    oracle = nn.TransformerEncoderLayer(
        FEATURES, HEADS, 4 * FEATURES, 0.0, "gelu", batch_first=True, norm_first=True
    ).double()
    return functional_call(oracle, dict(layer.named_parameters()), x[None])[0]


def cross(module, tokens, asking):
    heads = lambda x: x.view(len(x), HEADS, -1).transpose(0, 1)  # noqa: E731
    query, parts = heads(module.query_proj(asking)), []
    for project, m in zip(module.key_value_proj, module.others, strict=True):
        if m in tokens:
            parts.append(project(tokens[m]))
    if not sum(map(len, parts)):
        return module.out_proj(torch.zeros(len(asking), FEATURES, dtype=torch.float64))
    joined = torch.cat(parts)
    key, value = heads(joined[:, :FEATURES]), heads(joined[:, FEATURES:])
    scores = query @ key.transpose(-1, -2) / (FEATURES / HEADS) ** 0.5
    out = scores.softmax(-1) @ value
    return module.out_proj(out.transpose(0, 1).reshape(len(asking), FEATURES))


def sequence(module, tokens):
    """The encoded tokens, in order."""
    x = torch.cat([module.embed[m](x) + module.modality_embedding[m] for m, x in tokens.items()])
    for layer in module.layers:
        x = encoder_layer(layer, x)
    return module.norm(x)


def bottleneck(module, tokens):
    streams, b = {m: module.embed[m](x) for m, x in tokens.items()}, module.bottleneck
    for layers in module.layers:
        produced = []
        for m, x in streams.items():
            y = encoder_layer(layers[m], torch.cat([x, b]))
            streams[m] = y[: len(x)]
            produced.append(y[len(x) :])
        b = torch.stack(produced).mean(0)
    return torch.stack([module.norm(x).mean(0) for x in streams.values()]).mean(0)


def reference(module, inputs, present=None, masks=None) -> Tensor:
    batch = inputs[0].shape[0]
    rows = []
    for b in range(batch):
        tokens, kept = {}, []
        for m, x in enumerate(inputs):
            valid = torch.ones(x.shape[1], dtype=torch.bool)
            if masks is not None and masks[m] is not None:
                valid = valid & masks[m][b]
            if present is not None:
                valid = valid & present[b, m]
            kept.append(valid)
            if valid.any():
                tokens[m] = x[b, valid]
        if isinstance(module, CrossAttentionFusion):
            asking = inputs[module.query][b]
            asking = asking.where(kept[module.query][:, None], torch.zeros_like(asking))
            out, valid = cross(module, tokens, asking), kept[module.query]
            # Where no token is there to ask, zeros do.
            rows.append((out[valid] if valid.any() else out).mean(0) if module.pool else out)
        elif isinstance(module, BottleneckFusion):
            nothing = torch.zeros(FEATURES, dtype=torch.float64)
            rows.append(bottleneck(module, tokens) if tokens else nothing)
        else:
            valid = torch.cat(kept)
            out = torch.zeros(len(valid), FEATURES, dtype=torch.float64)
            if tokens:
                out = out.index_put((valid,), sequence(module, tokens))
            rows.append(out.sum(0) / valid.sum().clamp(min=1) if module.pool else out)
    return torch.stack(rows)


def run(function, module, inputs, *rest) -> list[Tensor]:
    """The result and the gradients of all inputs and parameters, for a gradient of one draw."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = function(leaves, *rest)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(9)).double()
    wanted = [*leaves, *module.parameters()]
    found = torch.autograd.grad(result, wanted, grad, materialize_grads=True)
    return [result.detach(), *found]


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("some", ["all", "present", "masks", "both"])
def test_row_by_row(module, some):
    inputs = draw()
    present = PRESENT if some in ("present", "both") else None
    masks = draw_masks() if some in ("masks", "both") else None
    found = run(module, module, inputs, present, masks)
    exact = run(lambda *args: reference(module, *args), module, inputs, present, masks)
    check_close(found, exact)


def test_like_multihead_attention():
    """Between two modalities it is torch.nn.MultiheadAttention."""
    layer = CrossAttentionFusion([FEATURES, 5], FEATURES, HEADS).double()
    oracle = nn.MultiheadAttention(FEATURES, HEADS, kdim=5, vdim=5, batch_first=True).double()
    with torch.no_grad():
        key, value = layer.key_value_proj[0].weight.chunk(2)
        oracle.q_proj_weight.copy_(layer.query_proj.weight)
        oracle.k_proj_weight.copy_(key)
        oracle.v_proj_weight.copy_(value)
        oracle.in_proj_bias.copy_(torch.cat([layer.query_proj.bias, layer.key_value_proj[0].bias]))
    oracle.out_proj.load_state_dict(layer.out_proj.state_dict())
    x, y = torch.randn(3, 4, FEATURES).double(), torch.randn(3, 6, 5).double()
    mask = torch.rand(3, 6) > 0.3
    expected = oracle(x, y, y, key_padding_mask=~mask, need_weights=False)[0]
    check_close([layer([x, y], masks=[None, mask])], [expected])


def test_like_transformer_encoder():
    """The layers of SequenceFusion take the state dict of torch.nn.TransformerEncoder's."""
    layer = SequenceFusion([3, 5], FEATURES, HEADS, num_layers=2, pool=False).double()
    one = nn.TransformerEncoderLayer(
        FEATURES, HEADS, 4 * FEATURES, 0.0, "gelu", batch_first=True, norm_first=True
    )
    oracle = nn.TransformerEncoder(one, 2, nn.LayerNorm(FEATURES), enable_nested_tensor=False)
    oracle = oracle.double()
    layer.layers.load_state_dict(oracle.layers.state_dict())
    layer.norm.load_state_dict(oracle.norm.state_dict())
    inputs = [torch.randn(2, 4, 3).double(), torch.randn(2, 6, 5).double()]
    parts = [f(x) + e for f, x, e in zip(layer.embed, inputs, layer.modality_embedding)]  # noqa: B905
    check_close([layer(inputs)], [oracle(torch.cat(parts, 1))])


def test_streams_of_an_encoder_layer_are_one_sequence():
    layer = EncoderLayer(FEATURES, HEADS).double()
    streams = [torch.randn(2, t, FEATURES).double() for t in (3, 5)]
    masks = [torch.rand(2, 3) > 0.5, None]
    [joined] = layer([torch.cat(streams, 1)], [torch.cat([masks[0], torch.ones(2, 5) > 0], 1)])
    check_close([torch.cat(layer(streams, masks), 1)], [joined])
    [first] = layer(streams, masks, wanted=1)
    check_close([first], [joined[:, :3]])


# ------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("content", [0.0, torch.nan, torch.inf], ids=str)
def test_content_of_what_is_not_there_does_not_matter(module, content):
    """Bit for bit, in the result and in every gradient; its own gradient is zero."""
    inputs, masks = draw(), draw_masks()
    valid = [PRESENT[:, m, None] & (True if x is None else x) for m, x in enumerate(masks)]
    expected = run(module, module, inputs, PRESENT, masks)
    spoilt = [x.where(v[..., None], content) for x, v in zip(inputs, valid, strict=True)]
    found = run(module, module, spoilt, PRESENT, masks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(x.isfinite().all() for x in found)
    for own, v in zip(found[1:], valid, strict=False):
        assert not own.where(~v[..., None], 0).any()
        assert own.any()


def test_nothing_present(module):
    inputs = [torch.full_like(x, torch.nan) for x in draw()]
    result, *grads = run(module, module, inputs, torch.tensor([False] * 3))
    assert all(x.isfinite().all() for x in grads)
    assert not any(x.any() for x in grads[:3])
    expected = module.out_proj.bias if isinstance(module, CrossAttentionFusion) else 0.0
    assert torch.equal(result, torch.zeros_like(result) + expected)


def test_all_present_is_like_no_presence(module):
    inputs = draw()
    everything = [torch.ones(t, dtype=torch.bool) for t in TOKENS]
    expected = run(module, module, inputs)
    check_close(run(module, module, inputs, torch.ones(3, dtype=torch.bool)), expected)
    check_close(run(module, module, inputs, None, everything), expected)


def test_modality_without_tokens_is_absent(module):
    inputs = draw()
    without = torch.tensor([True, False, True])
    inputs[1] = inputs[1][:, :0]
    check_close([module(inputs)[:, :4]], [module(draw_like(inputs), without)[:, :4]])


def draw_like(inputs: list[Tensor]) -> list[Tensor]:
    """The same with one token of the modality that has none, which is not to be looked at."""
    return [x if x.shape[1] else torch.full((5, 1, x.shape[2]), torch.nan).double() for x in inputs]


# ------------------------------------------------------------------------------------------- shapes


def test_single_tokens(module):
    """(batch, features) is one token, beside sequences and alone."""
    inputs = draw(tokens=(1, 6, 1))
    squeezed = [inputs[0][:, 0], inputs[1], inputs[2][:, 0]]
    expected = module(inputs, PRESENT)
    if isinstance(module, CrossAttentionFusion) and not module.pool:  # a vector asks, one answers
        expected = expected[:, 0]
    assert torch.equal(module(squeezed, PRESENT), expected)
    inputs[1] = inputs[1][:, :1]
    found = module([x[:, 0] for x in inputs])
    assert torch.equal(found, module(inputs).reshape(found.shape))


def test_batch_shapes(module):
    """Extra dimensions, none at all, empty ones, and inputs that broadcast."""
    inputs, masks = draw((6,)), [None, torch.rand(6, 6) > 0.5, None]
    present = torch.rand(6, 3) > 0.3
    expected = module(inputs, present, masks)
    folded = module(
        [x.view(2, 3, *x.shape[1:]) for x in inputs],
        present.view(2, 3, 3),
        [None, masks[1].view(2, 3, 6), None],
    )
    check_close([folded.flatten(0, 1)], [expected])
    assert module([x[:0] for x in inputs], present[:0]).shape == (0, *expected.shape[1:])
    shared = [inputs[0], inputs[1][:1], inputs[2]]
    check_close([module(shared)], [module([inputs[0], inputs[1][:1].expand(6, -1, -1), inputs[2]])])


def test_non_contiguous_inputs(module):
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw()]
    inputs[0] = inputs[0].repeat_interleave(2, 1)[:, ::2]
    copies = [x.contiguous() for x in inputs]
    check_close(run(module, module, inputs), run(module, module, copies))


def test_mappings(module):
    inputs, masks = draw(), draw_masks()
    expected = module(inputs, PRESENT, masks)
    named = dict(reversed(list(zip(SIZES, inputs, strict=True))))
    given = {"audio": masks[2], "text": masks[0]}
    assert torch.equal(module(named, PRESENT, given), expected)


def test_gradcheck():
    for kind, options in MODULES.values():
        layer = kind([2, 3], 2, 1, **{**options, "query": 1} if "query" in options else options)
        layer = layer.double()
        inputs = [torch.randn(2, t, k).double().requires_grad_() for t, k in ((2, 2), (3, 3))]
        present = torch.tensor([[True, True], [False, True]])
        function = lambda *xs, f=layer, p=present: f(list(xs[:2]), p)  # noqa: E731
        leaves = (*inputs, *layer.parameters())
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-4)


# ------------------------------------------------------------------------------------- as a module


def test_every_parameter_learns(module):
    loss = module(draw()).square().sum()
    loss.backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.any(), name  # noqa: PT018


def test_state_dict_and_copies(module):
    inputs = draw()
    expected = module(inputs)
    kind, options = type(module), {"num_heads": HEADS, "dtype": torch.float64}
    for name in ("num_layers", "pool", "num_bottlenecks", "query"):
        if hasattr(module, name):
            options[name] = getattr(module, name)
    fresh = kind(SIZES, FEATURES, **options)
    fresh.load_state_dict(module.state_dict())
    for other in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(inputs), expected)


def test_meta_device():
    for kind, options in MODULES.values():
        layer = kind(SIZES, FEATURES, HEADS, **options, device="meta")
        assert all(p.is_meta for p in layer.parameters())
        inputs = [x.float().to("meta") for x in draw()]
        assert layer(inputs).shape[-1] == FEATURES


def test_autocast(module):
    module = module.float()
    inputs = [x.float() for x in draw()]
    exact = module(inputs, PRESENT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(inputs, PRESENT)
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.15)
    found.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_compile(module):
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs, masks = draw(), draw_masks()
    check_close(
        run(compiled, module, inputs, PRESENT, masks), run(module, module, inputs, PRESENT, masks)
    )


def test_repr():
    start = "in_features={'text': 3, 'image': 5, 'audio': 4}, out_features=8, num_heads=2"
    for (kind, options), end in zip(
        MODULES.values(),
        (
            "query='text', pool=False",
            "query='audio', pool=False",
            "query='text', pool=True",
            "num_layers=1, pool=True",
        ),
        strict=False,
    ):
        assert f"{start}, {end}" in repr(kind(SIZES, FEATURES, HEADS, **options))
