"""The report of several runs: what differs between them, and what that changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mmfast.train.compare import Comparison, explanation, p_value, verdict
from mmfast.train.report import svg
from mmfast.train.report.page import page, section, table, tag, text, write_page
from mmfast.train.report.record import Record, read_record
from mmfast.train.report.tasks import between, with_bounds
from mmfast.train.statistics import LEVEL


def write_comparison(found: Comparison, output: str | Path) -> Path:
    """Write the page of a comparison.

    Args:
        found: from :func:`mmfast.train.compare.compare_runs`.
        output: the file.

    Returns:
        The file written.

    Raises:
        CheckpointError: a folder holds no run any more.
        OSError: the file cannot be written.
    """
    records = {name: read_record(path) for name, path in found.paths.items()}
    write_page(_page(found, records), Path(output))
    return Path(output)


def _page(found: Comparison, records: Mapping[str, Record]) -> str:
    title = f"{len(records)} runs compared"
    warnings = "".join(tag("p", text(told), class_="warning") for told in found.warnings)
    shown = sum(pair.better is not None for pair in found.pairs)
    told = (
        f"{shown} of {len(found.pairs)} pairs of runs differ in {found.metric} by more than the "
        f"choice of {found.rows} test rows explains."
    )
    sections = [
        section(
            "Metrics",
            tag("div", _forest(found), class_="grid"),
            _metrics(found),
            tag("p", text(explanation(found)), class_="soft"),
        ),
        section("Every two runs", _pairs(found)),
        section("Learning", _curves(found, records)),
        section("What differs in the configurations", _differences(records)),
    ]
    return page(title, warnings + tag("p", text(told)), sections)


def _metrics(found: Comparison) -> str:
    first = next(iter(found.metrics.values()))
    names = [found.metric, *(name for name in first if name != found.metric)]
    rows = [
        (
            text(run, 80),
            *(with_bounds(metrics[n]) if n in metrics else "" for n in names),
        )
        for run, metrics in found.metrics.items()
    ]
    return table(("run", *map(text, names)), rows, range(1, len(names) + 1))


def _forest(found: Comparison) -> str:
    """The chosen metric of each run with its interval, one below the other."""
    names = list(found.metrics)
    values = [found.metrics[name][found.metric] for name in names]

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for place, value in zip(places, values, strict=True):
            axes.plot([value.low, value.high], [place, place], color=svg.COLOURS[0], linewidth=2)
            axes.plot(value.value, place, marker="o", color=svg.COLOURS[0])
        axes.set_yticks(places, [name[-28:] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(xlabel=found.metric)
        axes.grid(False, axis="y")

    caption = (
        f"{found.metric} with {100 * LEVEL:.0f} % intervals. Runs whose intervals overlap may "
        "differ all the same, since they were measured on the same rows: the pairs below decide."
    )
    return svg.figure(draw, caption, height=max(1.6, 0.7 + 0.32 * len(names)))


def _pairs(found: Comparison) -> str:
    rows = []
    for pair in found.pairs:
        told = text(verdict(pair), 120)
        rows.append(
            (
                text(f"{pair.second} minus {pair.first}", 160),
                tag("span", told, class_="good") if pair.better else told,
                f"{pair.test.difference.value:+.4g}",
                between(pair.test.difference),
                text(p_value(pair.p)),
            )
        )
    # The verdict comes first: it is to be seen on a phone too.
    heads = ("", "verdict", f"difference in {text(found.metric)}", "95 %", "p, adjusted")
    return table(heads, rows, (2, 3, 4))


def _curves(found: Comparison, records: Mapping[str, Record]) -> str:
    figures = [
        _overlaid(records, "train_loss", "training loss"),
        _overlaid(records, f"val_{found.metric}", f"{found.metric} on validation rows"),
    ]
    return tag("div", *figures, class_="grid")


def _overlaid(records: Mapping[str, Record], key: str, what: str) -> str:
    series = {}
    for name, record in records.items():
        points = [
            (epoch, one[key])
            for epoch, one in enumerate(record.progress.history, start=1)
            if key in one and one[key] == one[key]
        ]
        if points:
            series[name[-40:]] = ([x for x, _ in points], [y for _, y in points])
    if not series:
        return ""
    caption = f"The {what} of each run by epoch."
    return svg.lines(series, caption, xlabel="epoch", ylabel=what, epochs=True)


def _differences(records: Mapping[str, Record]) -> str:
    flat = {name: _flat(record.config.model_dump(mode="json")) for name, record in records.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differing = [
        key
        for key in keys
        if not key.startswith("run.")
        and len({str(values.get(key)) for values in flat.values()}) > 1
    ]
    if not differing:
        return tag("p", "Nothing but their folders.")
    rows = [
        (text(key), *(text(values.get(key, "-"), 80) for values in flat.values()))
        for key in differing
    ]
    return table(("key", *(text(name, 40) for name in records)), rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
