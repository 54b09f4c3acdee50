"""A run as one HTML page that needs nothing beside it: figures are embedded, there is no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from mmfast.bench.goals import geometric_means, goals
from mmfast.bench.plots import ratio_figure, series_figure
from mmfast.bench.records import Measurement, Run
from mmfast.bench.terminal import duration, others, refusals, size

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0 }
th, td { padding: 0.2rem 0.6rem; text-align: left; border-bottom: 1px solid #ddd }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bad { color: #b00020; font-weight: 600 } .good { color: #00703c }
figure { margin: 1rem 0 } img { max-width: 100% } .wide { overflow-x: auto }
"""
NOTES = """Peers took turns in one process, so that figures are ratios within a run: a time over
mmfast's is the median over rounds, above 1 where mmfast is faster. <b>linear alone</b> is the
library's linear layer on an input that is already concatenated, <b>copy</b> a copy of as many bytes
as must be moved: mmfast's fraction of these ceilings is their time over its own. ± is half the
distance of the quartiles. Peak memory counts what goes through torch's allocators, the result
included; kept is what forward keeps for backward, in brackets without inputs and parameters."""


def page(run: Run) -> str:
    """The whole page."""
    title = f"mmfast {run.versions['mmfast']} benchmark"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(run),
        f"<p>{NOTES}</p>",
        _section("Goals", _goals(run.measurements)),
        _section("Geometric means of time over mmfast's", _means(run.measurements)),
        _section("Ratios", *_bars(run.measurements)),
        _section("Time against size", *_series(run.measurements)),
        _section("All measurements", f'<div class="wide">{_details(run.measurements)}</div>'),
        _section("Not measured", _reasons({**run.skipped, **refusals(run)})),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style></head><body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _facts(run: Run) -> str:
    facts = {**run.machine, **run.versions, "date": run.date, "command": run.command}
    cells = [(escape(name), escape(str(value))) for name, value in facts.items()]
    return _table((), [*cells, ("took", f"{run.elapsed_s:.0f} s")])


def _goals(measurements: Sequence[Measurement]) -> str:
    rows = []
    for goal in goals(measurements):
        bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
        met = '<span class="good">yes</span>' if goal.met else '<span class="bad">no</span>'
        figure = f"{goal.value:.3g} {goal.unit}"
        rows.append((escape(goal.name), figure, bound, met, escape(goal.where)))
    return _table(("goal", "figure", "bound", "met", "where"), rows)


def _means(measurements: Sequence[Measurement]) -> str:
    columns = ("operator", "group", "kind", "dtype", "mode", "count", *others(measurements))
    rows = []
    for row in geometric_means(measurements):
        cells = (row.get(column, "") for column in columns)
        rows.append([f"{x:.2f}" if isinstance(x, float) else escape(str(x)) for x in cells])
    return _table(columns, rows)


def _bars(measurements: Sequence[Measurement]) -> list[str]:
    figures = []
    shown = [m for m in measurements if m.group in ("real", "tiny") and "mmfast" in m.peers]
    for about, chosen in _by(shown, "operator", "dtype", "mode"):
        figures.append(_image(ratio_figure(chosen), ", ".join(about)))
    return figures


def _series(measurements: Sequence[Measurement]) -> list[str]:
    figures = []
    shown = [m for m in measurements if m.series]
    for (operator, group, dtype, mode), chosen in _by(shown, "operator", "group", "dtype", "mode"):
        series = [points for _, points in _by(chosen, "series")]
        figures.append(_image(series_figure(series), f"{operator}, {group}: {dtype}, {mode}"))
    return figures


def _details(measurements: Sequence[Measurement]) -> str:
    heads = (
        "operator",
        "case",
        "shape",
        "dtype",
        "mode",
        "threads",
        "peer",
        "time",
        "±",
        "over mmfast",
    )
    rows = []
    for m in measurements:
        for name, result in m.peers.items():
            over = m.ratio(name, "mmfast")
            about = (m.operator, m.case, m.shape, m.dtype, m.mode, str(m.threads), name)
            kept = "" if result.kept_bytes is None else size(result.kept_bytes)
            if result.kept_extra_bytes is not None:
                kept += f" ({size(result.kept_extra_bytes)})"
            rows.append(
                (
                    *map(escape, about),
                    duration(result.time.median),
                    f"{100 * result.time.relative:.0f} %",
                    f"{over.median:.2f}" if over else "",
                    f"{m.moved_bytes / result.time.median / 1e9:.3g}",
                    "" if name == "copy" else f"{m.flops / result.time.median / 1e9:.3g}",
                    "" if result.peak_bytes is None else size(result.peak_bytes),
                    kept,
                )
            )
    return _table((*heads, "GB/s", "GFLOP/s", "peak", "kept"), rows)


def _reasons(reasons: dict[str, str]) -> str:
    return _table((), [(escape(what), escape(why)) for what, why in reasons.items()])


def _section(title: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = f"<tr>{''.join(f'<th>{escape(x)}</th>' for x in heads)}</tr>" if heads else ""
    return f"<table>{head}{''.join(map(_row, rows))}</table>"


def _row(cells: Sequence[str]) -> str:
    numeric = ('<td class="n">' if cell[:1].isdigit() else "<td>" for cell in cells)
    return f"<tr>{''.join(f'{open}{cell}</td>' for open, cell in zip(numeric, cells))}</tr>\n"  # noqa: B905


def _image(svg: str, caption: str) -> str:
    data = b64encode(svg.encode()).decode()
    text = escape(caption)
    return (
        f"<figure><figcaption>{text}</figcaption>"
        f'<img alt="{text}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _by(
    measurements: Iterable[Measurement], *names: str
) -> list[tuple[tuple[str, ...], list[Measurement]]]:
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(tuple(getattr(m, name) for name in names), []).append(m)
    return list(groups.items())
