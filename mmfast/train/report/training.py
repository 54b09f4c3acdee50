"""How training went: curves by epoch, and where its time was spent."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mmfast.train.report.page import table, tag, text
from mmfast.train.report.record import Record
from mmfast.train.report.svg import colours, lines

_PARTS = {
    "data": "reading and preprocessing that the training waited for",
    "forward": "the model and the loss",
    "backward": "gradients",
    "step": "clipping, the optimizer, averages",
    "evaluation": "the validation split, after each epoch",
    "checkpoints": "writing weights and state",
}


def learning_curves(record: Record, metric: str) -> str:
    """Loss, metrics and learning rate by epoch; the epochs of all stages one after another."""
    history = record.progress.history
    if not history:
        return ""
    marks = _stage_ends(history)
    best = len(record.best.history)
    note = f"Losses by epoch; the best epoch was {best} of {len(history)}."
    if marks:
        note += " Dotted lines part the stages, whose losses are different ones."
    losses = {"training": "train_loss", "validation": "val_loss"}
    figures = [
        _curves(record, losses, note, "loss", marks),
        _metrics(record, metric, marks),
        _curves(record, {"learning rate": "lr"}, "Learning rate by epoch.", "learning rate", marks),
    ]
    return tag("div", *(figure for figure in figures if figure), class_="grid")


def time_by_part(record: Record) -> str:
    """A bar of the parts of the training time, and a table of them."""
    seconds = {part: s for part, s in record.progress.seconds.items() if s > 0}
    total = sum(seconds.values())
    if not total:
        return ""
    shares = [
        tag("i", style=f"width:{100 * s / total:.2f}%;background:{colour}", title=part)
        for (part, s), colour in zip(seconds.items(), colours(len(seconds)), strict=True)
    ]
    rows = [
        (
            _swatch(colour) + text(part),
            duration(s),
            f"{100 * s / total:.1f} %",
            text(_PARTS.get(part, "")),
        )
        for (part, s), colour in zip(seconds.items(), colours(len(seconds)), strict=True)
    ]
    steps = record.progress.step
    per_step = total / max(1, steps)
    note = (
        f"{duration(total)} in all over {steps} steps, {duration(per_step)} a step, on one rank. "
        "On a GPU, forward is the time to launch what backward then waits for."
    )
    return (
        tag("p", text(note), class_="soft")
        + tag("div", *shares, class_="bar")
        + table(("part", "time", "share", ""), rows, (1, 2))
    )


def duration(seconds: float) -> str:
    """A time as text, in a unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _swatch(colour: str) -> str:
    return tag("i", class_="swatch", style=f"background:{colour}")


def _stage_ends(history: Sequence[Mapping[str, object]]) -> list[float]:
    pairs = itertools.pairwise(history)
    return [place + 0.5 for place, (a, b) in enumerate(pairs, start=1) if a["stage"] != b["stage"]]


def _metrics(record: Record, metric: str, marks: Sequence[float]) -> str:
    """The metric that chooses, and the other shares among the metrics, which fit its axis."""
    known = list(dict.fromkeys(k for epoch in record.progress.history for k in epoch))
    found = [name.removeprefix("val_") for name in known if name.startswith("val_")]
    if metric not in found:
        return ""
    shares = metric not in ("mae", "rmse")
    others = [n for n in found if n not in ("loss", "mae", "rmse", metric) and "_to_" not in n]
    shown = [metric, *(others if shares else [])]
    names = {name: f"val_{name}" for name in shown}
    unit = "metric" if shares else metric
    caption = f"Metrics on the validation split; {metric} chooses the best epoch."
    return _curves(record, names, caption, unit, marks)


def _curves(
    record: Record, names: Mapping[str, str], caption: str, unit: str, marks: Sequence[float]
) -> str:
    series = {}
    for shown, key in names.items():
        points = [
            (epoch, value)
            for epoch, record_ in enumerate(record.progress.history, start=1)
            if isinstance(value := record_.get(key), (int, float)) and value == value
        ]
        if points:
            series[shown] = ([x for x, _ in points], [y for _, y in points])
    if not series:
        return ""
    return lines(series, caption, xlabel="epoch", ylabel=unit, epochs=True, marks=marks)
