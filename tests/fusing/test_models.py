"""Models that nobody here wrote: equal before, fused and reverted, in training and evaluation."""

import copy

import pytest
import torch
from fusing_checks import check_same, double, values
from torch import Tensor, nn
from torchvision_stub import import_without_torchvision

import mmfast
from mmfast.fusing.graph import fuse_graph


def both_modes(model: nn.Module, *args, fused: int, **kwargs) -> None:
    for training in (False, True):
        check_same(model.train(training), *args, fused=fused, **kwargs)
        trial = mmfast.fuse(model, example_inputs=args or kwargs)
        assert trial.fused  # the operator runs, and the trial finds the same results
        trial.revert()


def check_deep(model: nn.Module, *args, fused: int, gained: int, **kwargs) -> None:
    """A deep network multiplies rounding, and a ReLU near zero decides by it: float64 tells."""
    model = model.eval()
    report = mmfast.fuse(model, example_inputs=args or kwargs)
    assert len(report.fused) == gained, str(report)
    report.revert()
    expected = model(*args, **kwargs)
    wide, inputs = copy.deepcopy(model).double(), double(args)
    before = values(wide, *inputs, **kwargs)
    report = mmfast.fuse(wide)
    assert len(report.fused) == fused, str(report)
    after = values(wide, *inputs, **kwargs)
    for a, b in zip([*after[0], *after[1]], [*before[0], *before[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * b.abs().max().item())
    assert [x.stride() for x in after[0]] == [x.stride() for x in before[0]]
    assert torch.equal(model(*args, **kwargs), expected)


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def test_torchmultimodal_late_fusion():
    from torchmultimodal.models.late_fusion import LateFusion
    from torchmultimodal.modules.fusions.concat_fusion import ConcatFusionModule

    encoders = nn.ModuleDict({"image": nn.Linear(64, 256), "text": nn.Linear(32, 128)})
    model = LateFusion(encoders, ConcatFusionModule(nn.Linear(384, 128)), nn.Linear(128, 10))
    batch = {"image": torch.randn(64, 64), "text": torch.randn(64, 32)}
    both_modes(model, batch, fused=1)


def test_torchmultimodal_attention_fusion():
    from torchmultimodal.modules.fusions.attention_fusion import AttentionFusionModule

    model = AttentionFusionModule({"a": 256, "b": 128}, 64)
    batch = {"a": torch.randn(1024, 256), "b": torch.randn(1024, 128)}
    both_modes(model, batch, fused=1)


def test_torchmultimodal_flava():
    """It joins tokens, not features: nothing to fuse, and nothing is touched."""
    flava = import_without_torchvision("torchmultimodal.models.flava.model")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes["intermediate_size"] = 64
    parts = ("image", "text", "multimodal")
    options = {f"{part}_{name}": n for part in parts for name, n in sizes.items()}
    model = flava.flava_model(**options, image_size=32, vocab_size=50).eval()
    inputs = {"image": torch.randn(2, 3, 32, 32), "text": torch.randint(1, 50, (2, 7))}
    inputs["skip_unmasked_mm_encoder"] = False
    expected = model(**inputs).multimodal.last_hidden_state
    report = mmfast.fuse(model)
    assert report.fused == []
    assert "FLAVAModel.encode_mm" in {x.where for x in report.skipped}
    assert torch.equal(model(**inputs).multimodal.last_hidden_state, expected)


def graph() -> tuple[Tensor, Tensor]:
    return torch.randn(200, 32), torch.randint(200, (2, 1000))


def test_geometric_edge_convolution():
    import torch_geometric.nn as geometric

    mlp = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    both_modes(geometric.EdgeConv(mlp, aggr="mean"), *graph(), fused=1)


def test_geometric_meta_layer():
    import torch_geometric.nn as geometric

    # As the documentation of MetaLayer writes them.
    class EdgeModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.edge_mlp = nn.Sequential(nn.Linear(88, 64), nn.ReLU(), nn.Linear(64, 16))

        def forward(self, src, dst, edge_attr, u, batch):
            out = torch.cat([src, dst, edge_attr, u[batch]], 1)
            return self.edge_mlp(out)

    class NodeModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.node_mlp_1 = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32))
            self.node_mlp_2 = nn.Sequential(nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 32))

        def forward(self, x, edge_index, edge_attr, u, batch):
            row, col = edge_index
            out = torch.cat([x[row], edge_attr], dim=1)
            out = self.node_mlp_1(out)
            out = torch.zeros_like(x).index_add(0, col, out)
            out = torch.cat([x, out, u[batch]], dim=1)
            return self.node_mlp_2(out)

    model = geometric.MetaLayer(EdgeModel(), NodeModel())
    x, edges = graph()
    batch = torch.randint(4, (200,))
    both_modes(model, x, edges, torch.randn(1000, 16), torch.randn(4, 8), batch, fused=3)


def test_pointnet_segmentation():
    """Every point joined to what is known of its whole cloud."""
    import torch_geometric.nn as geometric

    class Segmentation(nn.Module):
        def __init__(self):
            super().__init__()
            local = nn.Sequential(nn.Linear(3 + 3, 32), nn.ReLU(), nn.Linear(32, 64))
            self.near = geometric.PointNetConv(local, nn.Linear(64, 64), aggr="mean")
            self.head = nn.Sequential(nn.Linear(64 + 64, 64), nn.ReLU(), nn.Linear(64, 5))

        def forward(self, pos, edges, batch):
            points = self.near(pos, pos, edges).relu()
            clouds = geometric.global_mean_pool(points, batch)
            return self.head(torch.cat([points, clouds[batch]], dim=-1))

    model, (_, edges) = Segmentation(), graph()
    both_modes(model, torch.randn(200, 3), edges, torch.arange(200) // 50, fused=1)


def test_stable_baselines_critic():
    import gymnasium as gym
    from stable_baselines3.common import policies
    from stable_baselines3.common import torch_layers as layers

    observations, actions = gym.spaces.Box(-1, 1, (111,)), gym.spaces.Box(-1, 1, (8,))
    extractor = layers.FlattenExtractor(observations)
    model = policies.ContinuousCritic(observations, actions, [256, 256], extractor, 111)
    batch = torch.randn(64, 111), torch.randn(64, 8)
    both_modes(model, *batch, fused=2)
    expected = model.q1_forward(*batch)
    mmfast.fuse(model)
    torch.testing.assert_close(model.q1_forward(*batch), expected)


def test_transformers_fastspeech():
    import transformers

    config = transformers.FastSpeech2ConformerConfig(
        hidden_size=64,
        num_speakers=4,
        speaker_embed_dim=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_concat_after=True,
        decoder_concat_after=True,
    )
    model = transformers.FastSpeech2ConformerModel(config).eval()
    options = {
        "input_ids": torch.randint(1, 30, (4, 40)),
        "speaker_embedding": torch.randn(4, 32),
        "return_dict": True,
    }
    expected = model(**options)
    # The model converts to float32 inside: the trial's comparison stands for that with float64.
    report = mmfast.fuse(model, example_inputs=options)
    assert {x.layers for x in report.fused} == {
        ("projection",),
        ("encoder.conformer_layers.0.concat_linear",),
        ("decoder.conformer_layers.0.concat_linear",),
    }
    found = model(**options)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.spectrogram, expected.spectrogram, rtol=1e-3, atol=1e-4)
    report.revert()
    assert torch.equal(model(**options).spectrogram, expected.spectrogram)


def test_transformers_gate_of_d_fine():
    from transformers.models.d_fine.modeling_d_fine import DFineGate

    both_modes(DFineGate(128), torch.randn(4, 100, 128), torch.randn(4, 100, 128), fused=1)


def test_transformers_speaker_vectors():
    """Mean and deviation of all frames, joined for a layer that gives the speaker's vector."""
    import transformers

    config = transformers.Data2VecAudioConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(32, 32), conv_stride=(5, 4), conv_kernel=(10, 4), num_conv_pos_embeddings=3,
        num_conv_pos_embedding_groups=2, tdnn_dim=(64, 128), tdnn_kernel=(5, 1),
        tdnn_dilation=(1, 1), xvector_output_dim=128,
    )  # fmt: skip
    model = transformers.Data2VecAudioForXVector(config).eval()
    check_same(model, torch.randn(32, 800), fused=1)


def test_transformers_zamba():
    """The joined hidden states and embeddings are normalised first: left alone, with the reason."""
    import transformers

    config = transformers.ZambaConfig(
        vocab_size=50, hidden_size=32, attention_hidden_size=64, intermediate_size=64,
        num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, attention_head_dim=16,
        n_mamba_heads=2, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1,
    )  # fmt: skip
    model = transformers.ZambaModel(config).eval()
    tokens = torch.randint(50, (2, 8))
    expected = model(tokens).last_hidden_state
    report = mmfast.fuse(model)
    assert report.fused == []
    joined = [x for x in report.skipped if x.where.endswith("shared_transf.forward")]
    assert joined
    assert all(x.reason.startswith("hidden_states has another use") for x in joined)
    assert torch.equal(model(tokens).last_hidden_state, expected)


def test_transformers_mobilevit():
    """A whole model with nothing to fuse, whose concatenations feed 3x3 convolutions."""
    import transformers

    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], image_size=64
    )
    model = transformers.MobileViTModel(config).eval()
    pixels = torch.randn(1, 3, 64, 64)
    expected = model(pixels).last_hidden_state
    report = mmfast.fuse(model)
    assert report.fused == []
    assert all("1x1" in x.reason or "dimension 0" in x.reason for x in report.skipped)
    assert torch.equal(model(pixels).last_hidden_state, expected)


@pytest.mark.parametrize(("name", "fused"), [("dla34", 6), ("cs3darknet_focus_s", 4)])
def test_timm(name, fused):
    model = last(import_without_torchvision("timm").create_model(name, num_classes=10))
    check_deep(model, last(torch.randn(1, 3, 96, 96)), fused=fused, gained=fused)


def test_segmentation_models():
    import_without_torchvision("timm")  # which it imports
    smp = import_without_torchvision("segmentation_models_pytorch")
    model = last(smp.DeepLabV3("tu-resnet18", encoder_weights=None, decoder_channels=64))
    # Its pooling branch is not channels-last: the concatenation is built, as before.
    check_deep(model, last(torch.randn(1, 3, 64, 64)), fused=1, gained=0)


def test_dlrm():
    """The interaction is returned and the top network takes it: the backend's case."""

    class DLRM(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(26))
            self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
            self.top = nn.Sequential(nn.Linear(27 * 16, 128), nn.ReLU(), nn.Linear(128, 1))

        def interact(self, x, sparse):
            return torch.cat([x, *sparse], dim=1)

        def forward(self, dense, ids):
            sparse = [table(i[:, None]) for table, i in zip(self.tables, ids, strict=True)]
            return self.top(self.interact(self.bottom(dense), sparse))

    model = DLRM()
    inputs = torch.randn(64, 13), torch.randint(100, (26, 64))
    expected = values(model, *inputs)
    assert "it is returned" in mmfast.fuse(model).skipped[0].reason
    count = []

    def backend(graph, example):
        count.append(fuse_graph(graph))
        return graph

    torch._dynamo.reset()
    found = values(torch.compile(model, backend=backend, fullgraph=True), *inputs)
    assert count == [1]
    for a, b in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b)
