"""What the test rows show, by kind of task: classes, values, or pairs that find each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from mmfast.train.report.page import table, tag, text
from mmfast.train.report.svg import diagonal, figure, lines, thinned
from mmfast.train.scores import Array, Scores
from mmfast.train.statistics import LEVEL, Interval, Resampling

MOST_CLASSES = 30
"""Above it, tables show the classes with the most test rows."""
MOST_CURVES = 10
MOST_DOTS = 1500
BINS = 10


def metrics_table(found: Mapping[str, Interval], chosen: str) -> str:
    """Every metric with its interval, the one that chose the checkpoint first."""
    names = [*(n for n in found if n == chosen), *(n for n in found if n != chosen)]
    rows = []
    for name in names:
        value = found[name]
        mark = " (chose the checkpoint)" if name == chosen else ""
        rows.append((text(name) + text(mark), number(value.value), between(value)))
    return table(("metric", "value", f"{100 * LEVEL:.0f} % interval"), rows, (1, 2))


def honest_n(resampling: Resampling, found: Mapping[str, Interval]) -> str:
    """What the intervals are about, in sentences."""
    rows, units = len(resampling.groups), resampling.units
    told = f"{rows} test rows"
    if units < rows:
        told += (
            f" in {units} groups; rows of a group are no independent observations, so whole groups "
            "are resampled"
        )
    told = (
        f"{told}. Percentile bootstrap, {len(resampling.weights)} resamples: how far a figure "
        "would move with other test rows of the same kind. Another seed of training moves it too, "
        "which no interval here shows."
    )
    if units < 30:
        told += f" With {units} to draw from, the intervals themselves are rough."
    if any(math.isnan(value.low) and not math.isnan(value.value) for value in found.values()):
        told += (
            " Where there is no interval all rows are alike, such as all right; then up to "
            f"{min(1.0, 3 / units):.2g} of further rows may still differ (the rule of three)."
        )
    return tag("p", text(told), class_="soft")


def task_figures(scores: Scores) -> str:
    """The tables and figures of a task's kind."""
    kind = scores.about.kind
    if kind == "retrieval":
        return _recall_curves(scores)
    if kind == "regression":
        return tag("div", _predicted(scores), _residuals(scores), class_="grid")
    names = class_names(scores)
    parts = []
    if kind != "multilabel":
        parts += [tag("h3", "Confusion matrix"), confusion(scores)]
    curves = [_roc(scores, names), _precision_recall(scores, names), _calibration(scores)]
    parts.append(tag("div", *(c for c in curves if c), class_="grid"))
    parts += [tag("h3", "By class"), _by_class(scores, names)]
    return "\n".join(parts)


def class_names(scores: Scores) -> list[str]:
    """The names of the columns of ``scores.scores``."""
    classes = scores.about.classes
    return [classes[1]] if scores.about.kind == "binary" else list(classes)


def number(value: float) -> str:
    """A figure of a table."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def between(value: Interval) -> str:
    """An interval of a table."""
    return "none" if math.isnan(value.low) else f"{value.low:.3g} to {value.high:.3g}"


def with_bounds(value: Interval, form: str = ".4g") -> str:
    """A figure of a table with its interval below it."""
    told = "-" if math.isnan(value.value) else f"{value.value:{form}}"
    return f'{told}<br><span class="soft">{between(value)}</span>'


def confusion(scores: Scores) -> str:
    """Rows by true class, columns by the class they were taken for; the commonest if many."""
    classes, true, chosen = scores.about.classes, *_true_and_chosen(scores)
    count = len(classes)
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (true, chosen), 1)
    shown = _largest(matrix.sum(1), MOST_CLASSES)
    note = "Rows are true classes, columns what they were taken for; shade is the share of the row."
    if len(shown) < count:
        note += f" The {len(shown)} classes with the most test rows, of {count}."
    head = tag("tr", tag("th"), *(tag("th", str(c + 1)) for c in shown))
    body = []
    for a in shown:
        cells = [_cell(matrix[a, b], matrix[a].sum(), a == b) for b in shown]
        body.append(tag("tr", tag("th", text(f"{a + 1} {classes[a]}", 40)), *cells))
    grid = tag("table", tag("thead", head), tag("tbody", *body), class_="confusion")
    return (
        tag("p", text(note), class_="soft")
        + tag("div", grid, class_="wide")
        + _mixed_up(matrix, classes)
    )


def _true_and_chosen(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    if scores.about.kind == "binary":
        return scores.true[:, 0].astype(int), scores.chosen[:, 0].astype(int)
    return scores.true.argmax(1), scores.chosen.argmax(1)


def _cell(count: int, total: int, right: bool) -> str:
    if not count:
        return tag("td")
    colour = "--blue" if right else "--red"
    shade = 0.08 + 0.62 * count / total
    return tag("td", str(count), style=f"background:rgba(var({colour}),{shade:.2f})")


def _mixed_up(matrix: np.ndarray, classes: Sequence[str], most: int = 5) -> str:
    """The commonest mistakes in words, for those who cannot see a shade."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    told = [
        f"{classes[a][:40]} taken for {classes[b][:40]} ({wrong[a, b]} of {matrix[a].sum()})"
        for a, b in zip(*np.unravel_index(places, wrong.shape), strict=True)
        if wrong[a, b]
    ]
    return tag("p", text(f"Most often: {'; '.join(told)}."), class_="soft") if told else ""


def _largest(counts: np.ndarray, most: int) -> list[int]:
    """The places of the largest, in their own order."""
    found: list[int] = sorted(np.argsort(-counts, kind="stable")[:most].tolist())
    return found


def _judged(scores: Scores) -> list[int]:
    """Classes that some test rows are of and some are not: of others there is nothing to rank."""
    positives = scores.true.sum(0)
    able = np.flatnonzero((positives > 0) & (positives < scores.count))
    return [int(able[i]) for i in _largest(positives[able], MOST_CURVES)]


def _roc(scores: Scores, names: Sequence[str]) -> str:
    series = {}
    for c in _judged(scores):
        hits, false = _counts(scores.scores[:, c], scores.true[:, c])
        area = float(np.trapezoid(hits / hits[-1], false / false[-1]))
        series[f"{names[c][:40]} ({area:.2f})"] = (false / false[-1], hits / hits[-1])
    if not series:
        return ""
    return lines(
        series,
        f"ROC curves, each class against the rest{_some(scores, series)}; area in brackets.",
        xlabel="false positive rate",
        ylabel="true positive rate",
        decorate=diagonal,
    )


def _precision_recall(scores: Scores, names: Sequence[str]) -> str:
    series = {}
    for c in _judged(scores):
        hits, false = _counts(scores.scores[:, c], scores.true[:, c])
        hits, false = hits[1:], false[1:]
        steps = np.diff(hits, prepend=0) / hits[-1]
        precision = hits / (hits + false)
        name = f"{names[c][:40]} ({float((steps * precision).sum()):.2f})"
        series[name] = (hits / hits[-1], precision)
    if not series:
        return ""
    return lines(
        series,
        f"Precision and recall{_some(scores, series)}; average precision in brackets.",
        xlabel="recall",
        ylabel="precision",
        decorate=lambda axes: axes.set_ylim(-0.02, 1.02),
    )


def _some(scores: Scores, shown: Mapping[str, object]) -> str:
    count = scores.true.shape[1]
    return "" if len(shown) == count else f" ({len(shown)} of {count} classes)"


def _counts(scores: Array, true: Array) -> tuple[Array, Array]:
    """Hits and false alarms from the highest threshold down, from 0 and 0 on."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan))
    hits = np.concatenate([[0.0], np.cumsum(true[order])[ends]])
    false = np.concatenate([[0.0], np.cumsum(1 - true[order])[ends]])
    return hits, false


def calibration(scores: Scores) -> tuple[Array, Array, Array]:
    """Mean probability, share that came true, and rows, of equally wide bins of probability.

    Of the class that was chosen for multiclass, otherwise of each label. Guo et al., "On
    Calibration of Modern Neural Networks", 2017.
    """
    if scores.about.kind == "multiclass":
        said, came = scores.scores.max(1), scores.per_row["accuracy"]
    else:
        said, came = scores.scores.reshape(-1), scores.true.reshape(-1)
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    rows = np.bincount(place, minlength=BINS).astype(float)
    means = [
        np.bincount(place, weights=values, minlength=BINS) / np.maximum(rows, 1)
        for values in (said, came)
    ]
    return means[0], means[1], rows


def _calibration(scores: Scores) -> str:
    said, came, rows = calibration(scores)
    error = float((rows * np.abs(said - came)).sum() / rows.sum())
    there = rows > 0
    what = "the class chosen" if scores.about.kind == "multiclass" else "a positive"
    caption = (
        f"Calibration: how often {what} was right, by the probability given it; on the dotted line "
        f"they agree. Mean distance (ECE, {BINS} bins) {error:.3f}."
    )
    if scores.about.loss == "hinge":
        caption += " A hinge loss gives scores, no probabilities."

    def draw(axes: Axes) -> None:
        diagonal(axes)
        axes.plot(said[there], came[there], marker="o", markersize=4)
        shares = axes.twinx()
        shares.bar(
            (np.arange(BINS) + 0.5) / BINS, rows / rows.sum(), 0.09, color="#888888", alpha=0.35
        )
        shares.set(ylim=(0, 1))
        shares.axis("off")
        axes.set(
            xlabel="probability given", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1.02)
        )

    return figure(draw, f"{caption} Bars: share of the rows.")


def _by_class(scores: Scores, names: Sequence[str]) -> str:
    ones = np.ones((1, scores.count))
    areas, precisions = (values[0] for values in scores.areas(ones))
    hits = (scores.true * scores.chosen).sum(0)
    there, said = scores.true.sum(0), scores.chosen.sum(0)
    f1 = scores.f1(ones)[0]
    shown = _largest(there, MOST_CLASSES)
    rows = [
        (
            text(names[c], 60),
            f"{there[c]:.0f}",
            number(hits[c] / said[c] if said[c] else math.nan),
            number(hits[c] / there[c] if there[c] else math.nan),
            number(f1[c]),
            number(areas[c]),
            number(precisions[c]),
        )
        for c in shown
    ]
    heads = ("class", "rows", "precision", "recall", "F1", "AUROC", "average precision")
    note = (
        "" if len(shown) == len(names) else f"The {len(shown)} commonest of {len(names)} classes."
    )
    return table(heads, rows, range(1, 7)) + (tag("p", text(note), class_="soft") if note else "")


def _dots(scores: Scores) -> np.ndarray:
    """The rows that are drawn: all, or as many as a page has room for."""
    if scores.count <= MOST_DOTS:
        return np.arange(scores.count)
    return np.sort(np.random.default_rng(0).choice(scores.count, MOST_DOTS, replace=False))


def _predicted(scores: Scores) -> str:
    shown = _dots(scores)
    some = "" if len(shown) == scores.count else f" {len(shown)} of {scores.count} rows."

    def draw(axes: Axes) -> None:
        true, said = scores.true[shown], scores.predicted[shown]
        axes.scatter(true, said, s=8, alpha=0.6, linewidths=0)
        diagonal(axes, min(true.min(), said.min()), max(true.max(), said.max()))
        axes.set(xlabel="true value", ylabel="predicted value")

    return figure(draw, f"Predicted against true values; on the dotted line they are equal.{some}")


def _residuals(scores: Scores) -> str:
    shown = _dots(scores)
    residual = scores.predicted - scores.true

    def draw(axes: Axes) -> None:
        axes.scatter(scores.predicted[shown], residual[shown], s=8, alpha=0.6, linewidths=0)
        axes.axhline(0, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(xlabel="predicted value", ylabel="predicted - true")

    mean, deviation = float(residual.mean()), float(residual.std())
    return figure(
        draw,
        f"Residuals: mean {mean:+.3g}, standard deviation {deviation:.3g}, in the table's units.",
    )


def _recall_curves(scores: Scores) -> str:
    first, second = scores.about.modalities
    most = min(scores.count, 100)
    places = np.arange(1, most + 1)
    series = {}
    for name, ranks in zip(
        (f"{first} to {second}", f"{second} to {first}"), scores.ranks, strict=True
    ):
        series[name] = thinned(places, [(ranks < k).mean() for k in places])
    series["by chance"] = thinned(places, places / scores.count)
    medians = " and ".join(f"{np.median(ranks) + 1:g}" for ranks in scores.ranks)
    caption = f"Recall among the k nearest of {scores.count}; median rank of the partner {medians}."
    return tag("div", lines(series, caption, xlabel="k", ylabel="recall@k"), class_="grid")
