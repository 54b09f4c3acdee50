"""The figures of the report, as SVG: time against size with the ceilings drawn, ratio bars."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mmfast.bench.peers import FLOORS
from mmfast.bench.records import Measurement
from mmfast.bench.timing import Spread

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "mmfast": "#0072B2",
    "eager": "#E69F00",
    "split": "#009E73",
    "by hand": "#009E73",
    "compile": "#CC79A7",
    "max-autotune": "#D55E00",
    "tiled_matmul": "#56B4E9",
    "linear": "#444444",
    "copy": "#888888",
}
CEILINGS = {"linear": "linear alone", "copy": "copy of as many bytes"}
COLUMNS = 4


def series_figure(series: Sequence[Sequence[Measurement]]) -> str:
    """Log-log plots of seconds per call against size, one per series, in one SVG.

    Args:
        series: each one the measurements of one series, dtype and mode.
    """
    columns = min(COLUMNS, len(series))
    rows = -(-len(series) // columns)
    figure = _figure(max(7.0, 3.4 * columns), 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(series) :]:
        axes.set_visible(False)
    handles: dict[str, Artist] = {}
    for axes, points in zip(grid.flat, series, strict=False):
        _draw_series(axes, sorted(points, key=lambda m: m.size))
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=6, frameon=False
    )
    return _svg(figure)


def _draw_series(axes: Axes, points: Sequence[Measurement]) -> None:
    names = list(dict.fromkeys(name for m in points for name in m.peers))
    for name in sorted(names, key=lambda name: name in FLOORS, reverse=True):
        shown = [(m.size, m.peers[name].time) for m in points if name in m.peers]
        sizes, times = [x for x, _ in shown], [time for _, time in shown]
        axes.plot(
            sizes,
            [time.median for time in times],
            label=CEILINGS.get(name, name),
            color=COLOURS.get(name, "#F0E442"),
            linestyle="--" if name in FLOORS else "-",
            linewidth=2.2 if name == "mmfast" else 1.2,
            marker="" if name in FLOORS else "o",
            markersize=3,
        )
        if name not in FLOORS:
            low, high = [time.low for time in times], [time.high for time in times]
            axes.fill_between(sizes, low, high, color=COLOURS.get(name), alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel=points[0].axis, title=points[0].series)
    axes.set_ylabel("seconds per call")
    axes.set_xticks(sorted({m.size for m in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _tidy(axes)


def ratio_figure(measurements: Sequence[Measurement]) -> str:
    """Bars of peer time over mmfast's time on a logarithmic axis, a group of bars per case."""
    order = (*(name for name in COLOURS if name not in ("mmfast", "copy")),)
    present = {name for m in measurements for name in m.peers}
    names = [name for name in order if name in present]
    figure = _figure(9, 0.5 + 0.16 * len(measurements) * (len(names) + 1))
    axes = figure.subplots()
    height = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        ratios = [(y, m.ratio(name, "mmfast")) for y, m in enumerate(measurements)]
        shown = [(y + (place + 0.5) * height - 0.4, r) for y, r in ratios if r is not None]
        for y, found in shown:
            axes.barh(y, found.median - 1, height, left=1, color=COLOURS[name])
            axes.plot([found.low, found.high], [y, y], color="black", linewidth=0.8)
            _annotate(axes, y, found)
        axes.barh(0, 0, color=COLOURS[name], label=CEILINGS.get(name, name))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time over mmfast's: right of 1 mmfast is faster")
    axes.set_yticks(range(len(measurements)), [m.case for m in measurements])
    axes.set_ylim(len(measurements) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.tick_params(axis="x", which="both", labelsize=7)
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    _tidy(axes)
    return _svg(figure)


def _annotate(axes: Axes, y: float, found: Spread) -> None:
    # Beyond the end of the bar, on the side to which it points.
    right = found.median >= 1
    axes.annotate(
        f" {found.median:.2f} ",
        (max(found.high, 1.0) if right else min(found.low, 1.0), y),
        ha="left" if right else "right",
        va="center",
        fontsize=6,
    )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)  # draws without a display
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.title.set_fontsize(9)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "mmfast"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
