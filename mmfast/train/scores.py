"""The metrics of a task, for many weightings of the same rows at once: what resampling needs.

The metrics are those of ``Task.measure``, under the same names. A bootstrap resample is a weight
per row, how often the row was drawn, so that a thousand resamples cost one pass of array arithmetic
over a matrix (resamples, rows).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from mmfast.train.predictions import About, Predictions
from mmfast.train.tasks import RECALL_AT, _ranks, log_odds

Array = NDArray[np.float64]
Measure = Callable[[Array], Array]

_CHUNK = 1 << 22  # entries of a weight matrix that are worked on together


class Scores:
    """The metrics of N rows.

    Args:
        about: what the outputs are of.
        outputs: (N, C), or (2, N, D) for retrieval.
        labels: the targets; None for retrieval.

    Attributes:
        measures: by name, a function from weights (B, N) to values (B,). A value is NaN where it
            is not defined, such as the AUROC of a resample without positives. Averages over
            classes are over those for which it is.
        per_row: by name of a metric that is a mean over rows, its terms (N,).
    """

    def __init__(
        self, about: About, outputs: torch.Tensor, labels: torch.Tensor | None = None
    ) -> None:
        self.about = about
        self.per_row: dict[str, Array] = {}
        self.measures: dict[str, Measure] = {}
        self._ranked: tuple[Array, tuple[Array, Array]] | None = None
        if about.kind == "retrieval":
            self._recalls(outputs)
        elif about.kind == "regression":
            assert labels is not None
            self._errors(outputs[:, 0].double().numpy(), labels.double().numpy())
        else:
            assert labels is not None
            self._classes(outputs.double(), labels)
        for name, terms in self.per_row.items():
            self.measures.setdefault(name, partial(_mean, terms))

    @classmethod
    def of(cls, found: Predictions, withheld: str | None = None) -> Scores:
        """Those of predictions, with all modalities or with one withheld."""
        outputs = found.outputs if withheld is None else found.without[withheld]
        return cls(found.about, outputs, found.labels)

    def point(self, name: str) -> float:
        """A metric over all rows, each once."""
        return float(self.over(name, np.ones((1, self.count)))[0])

    def over(self, name: str, weights: Array) -> Array:
        """A metric (B,) under weights (B, N)."""
        step = max(1, _CHUNK // max(1, self.count))
        measure = self.measures[name]
        if step >= len(weights):
            return measure(weights)
        parts = [measure(weights[i : i + step]) for i in range(0, len(weights), step)]
        return np.concatenate(parts)

    def _recalls(self, outputs: torch.Tensor) -> None:
        a, b = torch.nn.functional.normalize(outputs.float(), dim=-1)
        self.ranks = (_ranks(a, b).numpy(), _ranks(b, a).numpy())
        self.count = len(a)
        first, second = self.about.modalities
        for k in RECALL_AT:
            there, back = ((ranks < k).astype(float) for ranks in self.ranks)
            self.per_row[f"recall_at_{k}"] = (there + back) / 2
            self.per_row[f"{first}_to_{second}_recall_at_{k}"] = there
            self.per_row[f"{second}_to_{first}_recall_at_{k}"] = back

    def _errors(self, outputs: Array, labels: Array) -> None:
        self.count = len(labels)
        mean, std = self.about.mean, self.about.std
        self.predicted, self.true = outputs * std + mean, labels * std + mean
        self.per_row["mae"] = np.abs(self.predicted - self.true)
        squared = (self.predicted - self.true) ** 2
        self.measures["mae"] = partial(_mean, self.per_row["mae"])
        self.measures["rmse"] = lambda w: np.sqrt(_mean(squared, w))
        self.measures["correlation"] = partial(_correlation, self.predicted, self.true)
        self.measures["r2"] = partial(_r2, squared, self.true)

    def _classes(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """``scores``, ``true`` and ``chosen`` are (N, C), a column per class that is judged."""
        kind, self.count = self.about.kind, len(labels)
        self.logits = logits.numpy()
        if kind == "multiclass":
            self.scores = logits.softmax(1).numpy()
            hot = torch.nn.functional.one_hot
            self.true = hot(labels, logits.shape[1]).double().numpy()
            self.chosen = hot(logits.argmax(1), logits.shape[1]).double().numpy()
            self.per_row["accuracy"] = (logits.argmax(1) == labels).double().numpy()
        else:
            self.scores = logits.sigmoid().numpy()
            self.true = labels.double().reshape(len(labels), -1).numpy()
            self.chosen = (logits > 0).double().numpy()
            self.per_row["accuracy"] = (self.chosen == self.true).mean(1)
        self.measures["accuracy"] = partial(_mean, self.per_row["accuracy"])
        if kind == "binary":
            self.measures["f1"] = lambda w: self.f1(w)[:, 0]
        else:
            self.measures["f1_macro"] = self._f1_macro
        if kind == "multilabel":
            self.measures["f1_micro"] = self._f1_micro
        self.measures["auroc"] = lambda w: _nanmean(self.areas(w)[0])
        self.measures["average_precision"] = lambda w: _nanmean(self.areas(w)[1])

    def f1(self, weights: Array) -> Array:
        """(B, C); NaN for a class that is neither there nor chosen."""
        hits = weights @ (self.true * self.chosen)
        total = weights @ self.true + weights @ self.chosen
        return _divided(2 * hits, total)

    def _f1_macro(self, weights: Array) -> Array:
        found = self.f1(weights)
        # As in torchmetrics: a label that no row has or gets counts as 0, such a class does not.
        return np.nan_to_num(found).mean(1) if self.about.kind == "multilabel" else _nanmean(found)

    def _f1_micro(self, weights: Array) -> Array:
        hits = weights @ (self.true * self.chosen).sum(1)
        return _divided(2 * hits, weights @ (self.true + self.chosen).sum(1))

    @cached_property
    def _orders(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """By class, the rows from the highest score down, and where each run of equal ones ends."""
        found = []
        # By what the probabilities are made of: they end at 1, which two logits may both come to.
        ranked = self.logits
        if self.about.kind == "multiclass":
            ranked = log_odds(torch.from_numpy(ranked)).numpy()
        for scores in ranked.T:
            order = np.argsort(-scores, kind="stable")
            ends = np.flatnonzero(np.diff(scores[order], append=np.nan))
            found.append((order, ends))
        return found

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """Area under the ROC curve and average precision, each (B, C); NaN where not defined.

        Equal scores are one threshold: the area is that of the trapezoids (Fawcett, "An
        introduction to ROC analysis", 2006), average precision the sum of precision times the step
        in recall.
        """
        if self._ranked is not None and self._ranked[0] is weights:
            return self._ranked[1]
        areas, precisions = [], []
        for (order, ends), true in zip(self._orders, self.true.T, strict=True):
            drawn, yes = weights[:, order], true[order]
            hits = np.cumsum(drawn * yes, 1)[:, ends]
            false = np.cumsum(drawn * (1 - yes), 1)[:, ends]
            steps = np.diff(hits, axis=1, prepend=0)
            before = hits - steps
            area = (np.diff(false, axis=1, prepend=0) * (before + hits) / 2).sum(1)
            positives, negatives = hits[:, -1], false[:, -1]
            both = positives * negatives  # else there is nothing to rank
            areas.append(_divided(area, both))
            precision = _divided(hits, hits + false)
            gained = (steps * np.nan_to_num(precision)).sum(1)
            precisions.append(np.where(both > 0, _divided(gained, positives), np.nan))
        found = np.stack(areas, 1), np.stack(precisions, 1)
        self._ranked = (weights, found)  # two metrics ask for the same
        return found


def losses(scores: Scores) -> Array:
    """How wrong each row is, (N,): what orders the examples of a report.

    Minus the logarithm of the probability of the true class, its mean over the labels for
    multilabel; the absolute error for regression; the mean of both ranks for retrieval.
    """
    kind = scores.about.kind
    if kind == "retrieval":
        return np.mean(scores.ranks, axis=0)
    if kind == "regression":
        return scores.per_row["mae"]
    right = np.where(scores.true == 1, scores.scores, 1 - scores.scores)
    if kind == "multiclass":
        right = (scores.scores * scores.true).sum(1, keepdims=True)
    found: Array = -np.log(np.maximum(right, 1e-300)).mean(1)
    return found


def _mean(terms: Array, weights: Array) -> Array:
    found: Array = weights @ terms / weights.sum(1)
    return found


def _correlation(a: Array, b: Array, weights: Array) -> Array:
    a, b = a - a.mean(), b - b.mean()  # sums of squares of large numbers would lose digits
    mean_a, mean_b = _mean(a, weights), _mean(b, weights)
    covariance = _mean(a * b, weights) - mean_a * mean_b
    spread = (_mean(a * a, weights) - mean_a**2) * (_mean(b * b, weights) - mean_b**2)
    return _divided(covariance, np.sqrt(np.maximum(spread, 0)))


def _r2(squared: Array, true: Array, weights: Array) -> Array:
    true = true - true.mean()
    variance = _mean(true * true, weights) - _mean(true, weights) ** 2
    return 1 - _divided(_mean(squared, weights), variance)


def _divided(a: Array, b: Array) -> Array:
    """The quotient, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _nanmean(values: Array) -> Array:
    """The mean over the second axis of what is defined; NaN where nothing is."""
    there = ~np.isnan(values)
    return _divided(np.where(there, values, 0).sum(1), there.sum(1))
