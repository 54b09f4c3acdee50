"""What each modality does: the run without it, with less and less of it, and its weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from mmfast.train.compare import larger_is_better
from mmfast.train.predictions import Predictions
from mmfast.train.report.page import table, tag, text
from mmfast.train.report.svg import colours, figure, legend
from mmfast.train.report.tasks import MOST_CLASSES, class_names, with_bounds
from mmfast.train.scores import Array, Scores
from mmfast.train.statistics import LEVEL, Resampling, interval

SHARES = np.linspace(0, 1, 11)
DRAWS = 20


def ablation(found: Predictions, metric: str, resampling: Resampling) -> str:
    """The metric with each modality withheld, and the difference that it makes."""
    if not found.without:
        return ""
    whole = Scores.of(found)
    drawn = whole.over(metric, resampling.weights)
    value = interval(whole.point(metric), drawn)
    rows = [("with all", with_bounds(value), "", str(len(found)))]
    for place, name in enumerate(found.about.modalities):  # the columns of present, in order
        less = Scores.of(found, name)
        draws = less.over(metric, resampling.weights)
        value = interval(less.point(metric), draws)
        change = interval(value.value - whole.point(metric), draws - drawn)
        there = int(found.present[:, place].sum())
        cells = (with_bounds(value), with_bounds(change, "+.3g"), f"{there} of {len(found)}")
        rows.append((text(f"without {name}"), *cells))
    heads = ("", text(metric), "difference", "rows that had it")
    return table(heads, rows, (1, 2, 3)) + tag("p", text(_note(found)), class_="soft")


def _note(found: Predictions) -> str:
    alone = int((found.present.sum(1) <= 1).sum())
    told = (
        "The trained model with a modality withheld from every test row, as if its cells were "
        "empty: what the model leans on, not what could be learnt without it. "
        f"Below each figure its {100 * LEVEL:.0f} % interval; that of a difference is "
        "of the paired bootstrap."
    )
    if found.present.shape[1] == 1:
        told += " It is the only one: without it the model says the same of every row."
    elif alone:
        told += f" {alone} rows have but one modality; without it they have nothing."
    return told


def robustness(found: Predictions, metric: str) -> str:
    """A figure of the metric as a growing share of the rows lacks each modality."""
    if not found.without:
        return ""
    curves = {name: missing_curve(found, name, metric) for name in found.about.modalities}

    def draw(axes: Axes) -> None:
        for (name, values), colour in zip(curves.items(), colours(len(curves)), strict=True):
            low, high = np.nanquantile(values, [0.05, 0.95], axis=1)
            axes.plot(SHARES, np.nanmean(values, 1), color=colour, label=f" {name}"[:60])
            axes.fill_between(SHARES, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="share of test rows that lack it", ylabel=metric)
        legend(axes)

    worse = "lower" if larger_is_better(metric) else "higher"
    return figure(
        draw,
        f"{metric} as ever more rows lack a modality ({worse} is worse): mean and 5 to 95 % "
        f"band of {DRAWS} draws of which rows.",
    )


def missing_curve(found: Predictions, modality: str, metric: str, seed: int = 0) -> Array:
    """The metric by share of rows that lack a modality and by draw, (shares, draws).

    A row that lacks it at one share lacks it at every larger one. What the model says of a row
    depends on that row alone, so the outputs without the modality, which are known for every row,
    take the place of the others.
    """
    generator = np.random.default_rng(seed)
    values = np.empty((len(SHARES), DRAWS))
    for draw in range(DRAWS):
        rank = torch.from_numpy(generator.permutation(len(found)))
        for place, share in enumerate(SHARES):
            lacks = rank < round(share * len(found))
            outputs = torch.where(lacks[:, None], found.without[modality], found.outputs)
            values[place, draw] = Scores(found.about, outputs, found.labels).point(metric)
    return values


def fusion_weights(found: Predictions, scores: Scores) -> str:
    """How the fusion weighs the modalities, over all rows and by true class."""
    if found.weights is None:
        return ""
    weights, names = found.weights.double().numpy(), found.about.modalities
    note = (
        "What the fusion multiplies each modality's features by, averaged over heads or features; "
        "0 for rows that lack it. A large weight on small features still contributes little: the "
        "table of withheld modalities says what is used."
    )
    parts = [tag("p", text(note), class_="soft")]
    whole = weights[found.present.all(1).numpy()]
    if not len(whole) or (np.ptp(whole, axis=0) > 1e-6).any():
        parts.append(
            tag("div", _distribution(weights, names), _by_class(weights, scores), class_="grid")
        )
    else:
        told = "; ".join(f"{n} {w:.3g}" for n, w in zip(names, whole[0], strict=True))
        parts.append(tag("p", text(f"The same for every row that has all modalities: {told}.")))
    return "\n".join(parts)


def _distribution(weights: Array, names: Sequence[str]) -> str:
    bins = np.histogram_bin_edges(weights, 30)

    def draw(axes: Axes) -> None:
        for column, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
            mean = weights[:, column].mean()
            axes.hist(
                weights[:, column],
                list(bins),
                histtype="stepfilled",
                alpha=0.45,
                color=colour,
                label=f" {name}, mean {mean:.2f}"[:60],
            )
        axes.set(xlabel="weight", ylabel="rows")
        legend(axes)

    return figure(draw, "How the weights are spread over the test rows.")


def _by_class(weights: Array, scores: Scores) -> str:
    if scores.about.kind not in ("binary", "multiclass"):
        return ""
    if scores.about.kind == "binary":
        labels, classes = scores.true[:, 0].astype(int), scores.about.classes
    else:
        labels, classes = scores.true.argmax(1), tuple(class_names(scores))
    counts = np.bincount(labels, minlength=len(classes))
    shown = sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist())
    rows = [
        (text(classes[c], 40), *(f"{w:.2f}" for w in weights[labels == c].mean(0)))
        for c in shown
        if counts[c]
    ]
    heads = ("mean weight by true class", *(text(name) for name in scores.about.modalities))
    return tag("div", table(heads, rows, range(1, len(heads))))
