"""Figures as SVG that stands in a page and takes its colours, light or dark."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mmfast.train.report.demo import COLOURS
from mmfast.train.report.page import tag, text

Points = Sequence[float] | NDArray[Any]

POINTS = 200
"""Most points of a curve: more would not be seen, and would make the page large."""

# Stand for the colours of the page while matplotlib draws.
_INK, _LINE = "#010203", "#040506"
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mmfast",
    "text.parse_math": False,  # a class may be called $x$
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(linestyle=["-", "--"]) * cycler(color=COLOURS),
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def figure(draw: Callable[[Axes], None], caption: str, *, height: float = 3.1) -> str:
    """One drawing with its caption.

    Args:
        draw: fills the axes.
        caption: what it shows, in a sentence.
        height: in inches, at a width of 4.4.
    """
    # Fonts of the browser draw the text; those here only measure it, and lack many characters.
    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        made = Figure(figsize=(4.4, height), layout="constrained")
        FigureCanvasSVG(made)
        draw(made.subplots())
        file = io.StringIO()
        made.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return tag("figure", _inline(file.getvalue(), caption), tag("figcaption", text(caption)))


def lines(
    series: Mapping[str, tuple[Points, Points]],
    caption: str,
    *,
    xlabel: str,
    ylabel: str,
    epochs: bool = False,
    marks: Sequence[float] = (),
    decorate: Callable[[Axes], object] | None = None,
) -> str:
    """A figure of lines by name.

    Args:
        series: by name, the coordinates x and y.
        caption: what it shows.
        xlabel: what x is.
        ylabel: what y is.
        epochs: whether x counts epochs.
        marks: places of vertical lines.
        decorate: what else to draw.
    """

    def draw(axes: Axes) -> None:
        for name, (x, y) in series.items():
            x, y = thinned(x, y)
            # A leading underscore would hide it from the legend.
            axes.plot(x, y, label=_shown(name), marker="o" if len(x) < 4 else "", markersize=3)
        for place in marks:
            axes.axvline(place, color=_INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if epochs:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if decorate is not None:
            decorate(axes)
        legend(axes)

    height = 3.1 + 0.16 * max(0, len(series) - 4)
    return figure(draw, caption, height=height)


def legend(axes: Axes) -> None:
    """The names of the lines above the drawing, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = 1 if max(map(len, labels)) > 28 else 2
    figure = axes.figure
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def thinned(x: Points, y: Points) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` of a curve's points, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
    return np.asarray(x, float)[kept], np.asarray(y, float)[kept]


def diagonal(axes: Axes, low: float = 0.0, high: float = 1.0) -> None:
    """A dotted line from corner to corner."""
    axes.plot([low, high], [low, high], color=_INK, linewidth=0.8, linestyle=":")


def colours(count: int) -> Iterator[str]:
    """The first colours of the palette, again from the start where it ends."""
    return itertools.islice(itertools.cycle(COLOURS), count)


def _shown(name: Any) -> str:
    told = str(name)[:60]
    return f" {told}" if told.startswith("_") else told


def _inline(svg: str, caption: str) -> str:
    """The ``svg`` element alone, its names unlike those of any other figure of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    prefix = f"f{blake2b(svg.encode(), digest_size=4).hexdigest()}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    label = text(caption, 300)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
