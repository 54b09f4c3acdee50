"""Several runs on the same test rows: what differs, and what is only noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from mmfast.train.predictions import Predictions, predictions_of
from mmfast.train.prepare import Notify
from mmfast.train.scores import Scores
from mmfast.train.statistics import LEVEL, Interval, PairedTest, Resampling, holm, intervals, paired
from mmfast.train.tasks import DEFAULT_METRIC, SMALLER_IS_BETTER

ALPHA = 1 - LEVEL
NO_DIFFERENCE = "no difference shown"
_FEW_ROWS = 30
_COLUMNS = 4  # metrics that the table on a terminal has room for


@dataclass(frozen=True)
class Pair:
    """Two runs.

    Attributes:
        first, second: their names.
        test: the difference of the second from the first.
        p: adjusted for the number of pairs.
        better: the name of the one shown to be better, None where no difference is shown.
    """

    first: str
    second: str
    test: PairedTest
    p: float
    better: str | None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_runs` found.

    Attributes:
        paths: the folders of the runs by their names.
        metric: by which the pairs are compared.
        metrics: by run and metric, the value with its interval.
        pairs: every two runs.
        rows: test rows that all runs have.
        units: how many of these are independent: the groups, where rows belong together.
        warnings: what a reader must know.
    """

    paths: Mapping[str, Path]
    metric: str
    metrics: Mapping[str, Mapping[str, Interval]]
    pairs: Sequence[Pair]
    rows: int
    units: int
    warnings: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is not defined is null."""
        return {
            "metric": self.metric,
            "rows": self.rows,
            "units": self.units,
            "warnings": list(self.warnings),
            "runs": {
                name: {metric: _told(value) for metric, value in found.items()}
                for name, found in self.metrics.items()
            },
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "difference": _told(pair.test.difference),
                    "test": pair.test.method,
                    "p": _number(pair.test.p),
                    "p_adjusted": _number(pair.p),
                    "better": pair.better,
                }
                for pair in self.pairs
            ],
        }


def compare_runs(
    paths: Sequence[str | Path],
    *,
    metric: str | None = None,
    fresh: bool = False,
    notify: Notify | None = None,
) -> Comparison:
    """Compare runs on the test rows that all of them have.

    Args:
        paths: the folders of at least two runs.
        metric: by which to test pairs; by default that which chose their checkpoints, if it is the
            same and measured on test rows, otherwise the task's own.
        fresh: compute predictions anew.
        notify: is told how far that is.

    Raises:
        CheckpointError: a folder holds no run.
        ValueError: fewer than two runs, different tasks, no common test rows, rows with different
            labels, or an unknown metric.
    """
    named = run_names(paths)
    if len(named) < 2:
        raise ValueError(f"comparing takes two runs or more, got {len(named)}")
    found = {name: predictions_of(path, fresh=fresh, notify=notify) for name, path in named.items()}
    _check_tasks(found)
    common, warnings = _common(found)
    _check_labels(common)
    scores = {name: Scores.of(predictions) for name, predictions in common.items()}
    chosen = _metric(metric, scores)
    groups = [p.groups.numpy() for p in common.values() if p.groups is not None]
    if notify is not None:
        notify("resampling", 0, 1)
    resampling = Resampling.of(next(iter(scores.values())), groups[0] if groups else None)
    pairs = _pairs(scores, chosen, resampling)
    return Comparison(
        named,
        chosen,
        {name: intervals(one, resampling) for name, one in scores.items()},
        pairs,
        len(resampling.groups),
        resampling.units,
        warnings,
    )


def run_names(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The runs by the shortest names that tell them apart: the ends of their paths.

    Raises:
        ValueError: two are the same folder.
    """
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise ValueError(f"the run {twice} is named twice")
    deepest = max((len(path.parts) for path in resolved), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return {name: Path(path) for name, path in zip(names, paths, strict=True)}


def comparison_table(found: Comparison) -> Table:
    """The metrics of each run, with intervals."""
    first = next(iter(found.metrics.values()))
    shown = [found.metric, *(name for name in first if name != found.metric)][:_COLUMNS]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for run, metrics in found.metrics.items():
        table.add_row(escape(run), *(f"{figure(metrics[n])}\n{bounds(metrics[n])}" for n in shown))
    return table


def pairs_table(found: Comparison) -> Table:
    """What is shown of every two runs, in words."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("second minus first", f"difference in {found.metric}", "p", "verdict"):
        table.add_column(name, overflow="fold")
    for pair in found.pairs:
        difference = f"{pair.test.difference.value:+.4g}\n{bounds(pair.test.difference)}"
        names = escape(f"{pair.second} - {pair.first}")
        table.add_row(names, difference, p_value(pair.p), escape(verdict(pair)))
    return table


def explanation(found: Comparison) -> str:
    """How to read it, in sentences."""
    rows = f"{found.rows} test rows"
    if found.units < found.rows:
        rows += f" in {found.units} groups, which are what is resampled"
    methods = {pair.test.method for pair in found.pairs}
    tests = ", ".join(_METHODS[name] for name in _METHODS if name in methods)
    if len(found.pairs) > 1:
        tests += f", adjusted by Holm's method for {len(found.pairs)} pairs of runs"
    return (
        f"Measured on {rows}. Intervals: {100 * LEVEL:.0f} %, by the bootstrap. p: {tests}. "
        "All of it is about which rows were drawn for the test: another seed of training can "
        "change as much, and only training again tells. No difference shown does not mean that "
        "there is none."
    )


_METHODS = {
    "mcnemar": "McNemar's exact test",
    "permutation": "a paired permutation test",
    "bootstrap": "the paired bootstrap",
}


def verdict(pair: Pair) -> str:
    """What a pair shows, in words."""
    return NO_DIFFERENCE if pair.better is None else f"{pair.better} is better"


def figure(value: Interval) -> str:
    """A metric as text."""
    return "-" if math.isnan(value.value) else f"{value.value:.4g}"


def bounds(value: Interval) -> str:
    """The interval of a metric as text."""
    return "[-]" if math.isnan(value.low) else f"[{value.low:.3g}, {value.high:.3g}]"


def p_value(p: float) -> str:
    """A p-value as text."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def larger_is_better(metric: str) -> bool:
    """Whether a metric is to grow."""
    return metric not in SMALLER_IS_BETTER


def _check_tasks(found: Mapping[str, Predictions]) -> None:
    kinds = {name: predictions.about.kind for name, predictions in found.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise ValueError(f"the runs are of different tasks and cannot be compared: {told}")


def _common(found: Mapping[str, Predictions]) -> tuple[dict[str, Predictions], list[str]]:
    """The predictions for the rows that all runs have, in one order."""
    keys = [set(predictions.keys.tolist()) for predictions in found.values()]
    shared = set.intersection(*keys)
    counts = ", ".join(f"{name} {len(predictions)}" for name, predictions in found.items())
    if not shared:
        raise ValueError(
            f"the runs have no test row in common ({counts}), so nothing can be compared: "
            "they are of different tables or of different divisions of one; train them with the "
            "same data.source and data.split"
        )
    warnings = []
    if any(len(one) > len(shared) for one in keys):
        warnings.append(
            f"The runs have different test rows ({counts}); all figures are of the {len(shared)} "
            "that they have in common, and differ from those of mmfast evaluate."
        )
    if len(shared) < _FEW_ROWS:
        warnings.append(f"{len(shared)} test rows are few: hardly any difference can be shown.")
    order = [key for key in next(iter(found.values())).keys.tolist() if key in shared]
    common = {}
    for name, predictions in found.items():
        place = {key: i for i, key in enumerate(predictions.keys.tolist())}
        common[name] = predictions.take(torch.tensor([place[key] for key in order]))
    classes = {predictions.about.classes for predictions in found.values()}
    if len({frozenset(names) for names in classes}) > 1:
        warnings.append(
            "The runs know different classes, so metrics that average over classes mean different "
            "things; accuracy does not."
        )
    return common, warnings


def _check_labels(common: Mapping[str, Predictions]) -> None:
    (first, one), *others = common.items()
    expected = _label_names(one)
    for name, other in others:
        for place, (a, b) in enumerate(zip(expected, _label_names(other), strict=True)):
            if not _same(a, b):
                raise ValueError(
                    f"the runs were given different labels: row {int(one.rows[place])} is {a!r} in "
                    f"{first} and {b!r} in {name}; compare runs of one data.label"
                )


def _label_names(predictions: Predictions) -> list[Any]:
    """The labels in a form that does not depend on how a run numbers its classes."""
    about, labels = predictions.about, predictions.labels
    if labels is None:
        return [None] * len(predictions)
    if about.kind == "regression":
        return (labels.double() * about.std + about.mean).tolist()
    if about.kind == "multilabel":
        return [
            sorted(name for name, yes in zip(about.classes, row, strict=True) if yes)
            for row in labels.tolist()
        ]
    return [about.classes[label] for label in labels.tolist()]


def _same(a: Any, b: Any) -> bool:
    """Numbers went through float32, standardised by what each run found in its training rows."""
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
    return bool(a == b)


def _metric(wanted: str | None, scores: Mapping[str, Scores]) -> str:
    first = next(iter(scores.values()))
    known = [n for n in first.measures if all(n in one.measures for one in scores.values())]
    if wanted is not None:
        if wanted not in known:
            raise ValueError(f"metric is {wanted!r}; what is measured is {', '.join(known)}")
        return wanted
    chosen = {one.about.metric for one in scores.values()}
    if len(chosen) == 1 and (metric := chosen.pop()) in known:
        return metric
    return DEFAULT_METRIC[first.about.kind]


def _pairs(scores: Mapping[str, Scores], metric: str, resampling: Resampling) -> list[Pair]:
    names = list(itertools.combinations(scores, 2))
    tests = [paired(scores[a], scores[b], metric, resampling) for a, b in names]
    pairs = []
    for (a, b), test, p in zip(names, tests, holm([test.p for test in tests]), strict=True):
        better = None
        if p < ALPHA and test.difference.value != 0:
            better = b if (test.difference.value > 0) == larger_is_better(metric) else a
        pairs.append(Pair(a, b, test, p, better))
    return pairs


def _told(value: Interval) -> dict[str, float | None]:
    return {name: _number(number) for name, number in value._asdict().items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
