"""Time and memory of models from other packages, before and after ``mmfast.fuse``: README's table.

    python scripts/compare_fuse.py

Needs the extra ``mmfast[models]`` and, installed without their dependencies, those packages that
ask for torchvision (see the Makefile). Times are medians of turns in one process; memory is what
autograd keeps for backward, counted once per storage.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mmfast

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from torchvision_stub import import_without_torchvision

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def late_fusion() -> Case:
    from torchmultimodal.models.late_fusion import LateFusion
    from torchmultimodal.modules.fusions.concat_fusion import ConcatFusionModule

    encoders = nn.ModuleDict(
        {
            "image": nn.Sequential(nn.Linear(256, 2048), nn.ReLU()),
            "text": nn.Sequential(nn.Linear(256, 768), nn.ReLU()),
        }
    )
    fusion = ConcatFusionModule(nn.Linear(2048 + 768, 512))
    model = LateFusion(encoders, fusion, nn.Linear(512, 10))
    return model, ({"image": torch.randn(1024, 256), "text": torch.randn(1024, 256)},), {}


def edge_convolution() -> Case:
    from torch_geometric.nn import EdgeConv

    mlp = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))
    return EdgeConv(mlp), (torch.randn(5000, 64), torch.randint(5000, (2, 50000))), {}


class EdgeModel(nn.Module):
    """The edge model in the documentation of torch_geometric's MetaLayer."""

    def __init__(self) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(128 * 2 + 16 + 32, 128), nn.ReLU())

    def forward(self, src: Tensor, dst: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Any:
        out = torch.cat([src, dst, edge_attr, u[batch]], 1)
        return self.edge_mlp(out)


def meta_layer() -> Case:
    from torch_geometric.nn import MetaLayer

    x, edges = torch.randn(5000, 128), torch.randint(5000, (2, 50000))
    rest = torch.randn(50000, 16), torch.randn(32, 32), torch.randint(32, (5000,))
    return MetaLayer(EdgeModel()), (x, edges, *rest), {}


def critic() -> Case:
    from gymnasium.spaces import Box
    from stable_baselines3.common.policies import ContinuousCritic
    from stable_baselines3.common.torch_layers import FlattenExtractor

    observations = Box(-1, 1, (376,))
    extractor = FlattenExtractor(observations)
    model = ContinuousCritic(observations, Box(-1, 1, (17,)), [256, 256], extractor, 376)
    return model, (torch.randn(256, 376), torch.randn(256, 17)), {}


def fastspeech() -> Case:
    from transformers import FastSpeech2ConformerConfig, FastSpeech2ConformerModel

    config = FastSpeech2ConformerConfig(
        num_speakers=4, speaker_embed_dim=128, encoder_concat_after=True, decoder_concat_after=True
    )
    ids = {"input_ids": torch.randint(1, 50, (2, 100)), "speaker_embedding": torch.randn(2, 128)}
    return FastSpeech2ConformerModel(config), (), ids


def dla() -> Case:
    model = import_without_torchvision("timm").create_model("dla34", num_classes=10)
    last = torch.channels_last
    image = torch.randn(4, 3, 224, 224).to(memory_format=last)
    return model.to(memory_format=last), (image,), {}


CASES: dict[str, tuple[Callable[[], Case], str]] = {
    "torchmultimodal `LateFusion` 2048+768 to 512, batch 1024": (late_fusion, "both"),
    "torch_geometric `EdgeConv` 64, 50,000 edges": (edge_convolution, "both"),
    "torch_geometric `MetaLayer`, edge model, 50,000 edges": (meta_layer, "both"),
    "stable-baselines3 SAC `ContinuousCritic` 376+17, batch 256": (critic, "both"),
    "transformers `FastSpeech2Conformer`, 2 x 100 phonemes": (fastspeech, "forward"),
    "timm `dla34`, 4 x 224 x 224, channels-last": (dla, "both"),
}


def forward(model: nn.Module, case: Case) -> list[Tensor]:
    """Floating results that a loss could be made of."""
    torch.manual_seed(0)
    leaves = pytree.tree_leaves(model(*case[1], **case[2]))
    return [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]


def train(model: nn.Module, case: Case) -> None:
    """Forward and backward."""
    for parameter in model.parameters():
        parameter.grad = None
    torch.stack([x.square().mean() for x in forward(model, case)]).sum().backward()


def kept(model: nn.Module, case: Case) -> int:
    """Bytes that autograd keeps for backward, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        results = forward(model, case)
    assert results
    return sum(found.values())


def ratio(model: nn.Module, run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Medians of the time before and after, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    while len(times[True]) < 5 or time.perf_counter() < end:
        for fused in (False, True):
            report = mmfast.fuse(model, filter_fn=lambda module, name, on=fused: on)
            run()
            start = time.perf_counter()
            run()
            times[fused].append(time.perf_counter() - start)
            report.revert()
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each time (default 5)")
    arguments = parser.parse_args()
    print("| model | fused | forward | forward and backward | kept for backward |")
    print("|---|---|---|---|---|")
    for name, (make, kind) in CASES.items():
        torch.manual_seed(0)
        case = make()
        model = case[0].eval()
        with torch.no_grad():
            before, after = ratio(
                model, lambda m=model, c=case: m(*c[1], **c[2]), arguments.seconds
            )
        cells = [f"{before * 1e3:.1f} ms, {before / after:.2f}x", "-", "-"]
        if kind == "both":
            model.train()
            before, after = ratio(model, lambda m=model, c=case: train(m, c), arguments.seconds)
            cells[1] = f"{before * 1e3:.1f} ms, {before / after:.2f}x"
            plain = kept(model, case)
            report = mmfast.fuse(model)
            less = kept(model, case)
            report.revert()
            cells[2] = f"{plain / 2**20:.1f} to {less / 2**20:.1f} MiB"
        places = len(mmfast.fuse(model).fused)
        print(f"| {name} | {places} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
