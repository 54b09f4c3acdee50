"""Trains every fusion on the emoji set, times it, and writes docs/fusion.svg and docs/fusion.json.

The configuration is examples/emoji.yaml; only the layer that joins image and text differs. Accuracy
is that of the test split, mean over seeds; time is that of the fusion alone, forward and backward,
in turns with ``concat`` and as a ratio to it.

    python scripts/compare_fusions.py [--seeds 3] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import nn

from mmfast.bench.timing import interleave
from mmfast.nn import create_fusion, list_fusions
from mmfast.train import Config, Run, fit, load_config
from mmfast.train.demo import variant
from mmfast.train.report.demo import mean_and_deviation

ROOT = Path(__file__).parents[1]
ROWS = 4096
OPTIONS = {
    "low_rank": {"rank": 4},
    "mutan": {"rank": 4},
    "mfb": {"factors": 4},
    "cross_attention": {"num_heads": 4},
    "sequence": {"num_heads": 4},
    "bottleneck": {"num_heads": 4},
}


def options_of(name: str) -> dict[str, object]:
    """What a fusion needs besides its sizes."""
    return {"activation": "relu"} if name == "concat" else dict(OPTIONS.get(name, {}))


def trained(name: str, config: Config, seed: int) -> Run:
    """One fusion, trained with one seed."""
    fusion = config.model.fusion.model_copy(update={"name": name, "options": options_of(name)})
    model = config.model.model_copy(update={"fusion": fusion})
    with TemporaryDirectory() as folder:
        joined = config.model_copy(update={"model": model})
        run = fit(variant(joined, tuple(model.encoders), seed, Path(folder)))
    if run.signal is not None:  # it ended before its time
        raise SystemExit(128 + run.signal)
    return run


def step(fusion: nn.Module, widths: Sequence[int]):
    """A call that runs the fusion forward and backward."""
    inputs = [torch.randn(ROWS, width, requires_grad=True) for width in widths]
    leaves = [*inputs, *fusion.parameters()]
    grad = torch.randn_like(fusion(inputs))
    return lambda: torch.autograd.grad(fusion(inputs), leaves, grad)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="torchmetrics")
    console = Console()
    config = load_config(ROOT / "examples" / "emoji.yaml", options.overrides)
    names = list_fusions()
    results: dict[str, dict[str, object]] = {}
    for name in track(names, description="training", console=console):
        runs = [trained(name, config, seed) for seed in range(options.seeds)]
        mean, deviation = mean_and_deviation([run.evaluate()["accuracy"] for run in runs])
        fusion = runs[0].model.get_submodule("fusion")
        widths = fusion.in_features
        parameters = sum(p.numel() for p in fusion.parameters())
        results[name] = {"accuracy": mean, "deviation": deviation, "parameters": parameters}
    hidden = config.model.fusion.out_features
    baseline = step(create_fusion("concat", widths, hidden, **options_of("concat")), widths)
    for name in names:
        other = step(create_fusion(name, widths, hidden, **options_of(name)), widths)
        ours, reference = interleave(other, baseline, turns=15, turn_s=0.02)
        results[name]["time_to_concat"] = median(
            a / b for a, b in zip(ours, reference, strict=True)
        )
    options.out.mkdir(exist_ok=True)
    (options.out / "fusion.json").write_text(
        json.dumps(
            {
                "seeds": options.seeds,
                "epochs": config.train.epochs,
                "widths": list(widths),
                "out_features": hidden,
                "rows_timed": ROWS,
                "torch": torch.__version__,
                "fusions": results,
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    draw(results, options.out / "fusion.svg")
    for name, row in sorted(results.items(), key=lambda item: -item[1]["accuracy"]):
        console.print(
            f"{name:16} {100 * row['accuracy']:5.1f} +- {100 * row['deviation']:3.1f} %  "
            f"{row['parameters']:8,} parameters  {row['time_to_concat']:6.2f} x concat"
        )
    return 0


def draw(results: dict[str, dict[str, object]], path: Path) -> None:
    """Accuracy against time, a point per fusion."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, row in results.items():
        axes.errorbar(
            row["time_to_concat"],
            100 * row["accuracy"],
            yerr=100 * row["deviation"],
            fmt="o",
            color="#D55E00" if name == "concat" else "#0072B2",
            elinewidth=0.6,
        )
        axes.annotate(
            name,
            (row["time_to_concat"], 100 * row["accuracy"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("time of the fusion, forward and backward, relative to concat")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
