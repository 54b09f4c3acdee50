"""What the demo leaves behind: a picture of learning curves and a table of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table

from mmfast.train.timing import Timing

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


History = Sequence[Mapping[str, float]]
"""A record per epoch, with ``train_loss`` and ``val_accuracy``, as ``Progress`` has them."""


def save_learning_curves(histories: Mapping[str, Sequence[History]], path: Path) -> None:
    """Draws training loss and validation accuracy by epoch into a PNG.

    Args:
        histories: by model name, one history per seed, all of one length. The line is the mean
            over seeds, the band one standard deviation to either side.
        path: file to write; its directory is made if it is missing.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    loss, accuracy = figure.subplots(1, 2)
    for (name, runs), colour in zip(histories.items(), _cycle(len(histories)), strict=True):
        _band(loss, [[epoch["train_loss"] for epoch in run] for run in runs], name, colour)
        shares = [[100 * epoch["val_accuracy"] for epoch in run] for run in runs]
        _band(accuracy, shares, name, colour)
    loss.set(xlabel="epoch", ylabel="training loss (nats)", title="Training loss")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", title="Validation accuracy")
    for axes in (loss, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def results_table(accuracies: Mapping[str, Sequence[float]], timings: Sequence[Timing]) -> Table:
    """One table of test accuracies and of the fusion layer's times.

    Args:
        accuracies: by model name, test accuracy in 0..1 of each seed; the last model is the
            fused one and is compared with the best of the others.
        timings: the fusion layer against eager cat + Linear.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("measured", "against", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    *singles, fused = accuracies
    best = max(singles, key=lambda name: fmean(accuracies[name]))
    for name in singles:
        table.add_row(f"test accuracy, {name}", _percent(accuracies[name]), "", "")
    gain = 100 * (fmean(accuracies[fused]) - fmean(accuracies[best]))
    table.add_row(
        f"test accuracy, {fused}",
        _percent(accuracies[fused]),
        f"{best} {100 * fmean(accuracies[best]):.1f} %",
        f"{gain:+.1f} points",
        style="bold",
        end_section=True,
    )
    for timing in timings:
        table.add_row(
            _shape(timing),
            _duration(timing.fused_s),
            f"eager {_duration(timing.eager_s)}",
            f"{timing.ratio:.2f} x",
        )
    table.caption = (
        f"Accuracy: mean ± standard deviation over {len(accuracies[fused])} seed(s). Times: the "
        "fusion layer at batch x (widths) > result on 1T = one thread, ... against eager cat + "
        "Linear, medians of CPU runs in turns; gain is eager time over fused time."
    )
    return table


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is 0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _band(axes: Axes, runs: Sequence[Sequence[float]], name: str, colour: str) -> None:
    epochs = range(1, len(runs[0]) + 1)
    points = [mean_and_deviation(epoch) for epoch in zip(*runs, strict=True)]
    low = [mean - deviation for mean, deviation in points]
    high = [mean + deviation for mean, deviation in points]
    axes.plot(epochs, [mean for mean, _ in points], label=name, color=colour)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _percent(shares: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(shares)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def _shape(timing: Timing) -> str:
    work = "fwd+bwd" if timing.backward else "forward"
    widths = "+".join(map(str, timing.widths))
    return f"{work} {timing.batch}x({widths})>{timing.out_features} {timing.threads}T"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
