"""Metrics under weights, against torchmetrics on rows that are repeated as often."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification, regression

from mmfast.train.config import Task as TaskConfig
from mmfast.train.predictions import About
from mmfast.train.scores import Scores, losses
from mmfast.train.tasks import Task

ROWS = 60


def about(kind, classes=(), **more):
    given = {"mean": 0.0, "std": 1.0, **more}
    return About(
        kind=kind,
        loss="",
        metric="",
        modalities=("image", "text"),
        classes=classes,
        source="",
        group=None,
        **given,
    )


def repeated(values, weights):
    counts = torch.as_tensor(weights).long()
    return values.repeat_interleave(counts, dim=-2 if values.dim() > 1 else 0)


def draws():
    generator = np.random.default_rng(0)
    return generator.multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=3).astype(float)


def check(scores, name, expected):
    """``expected`` takes how often each row counts."""
    weights = np.concatenate([np.ones((1, ROWS)), draws()])
    found = scores.over(name, weights)
    for value, counts in zip(found, weights, strict=True):
        assert value == pytest.approx(float(expected(counts)), abs=1e-5), name
    assert scores.point(name) == pytest.approx(found[0])


def logits(columns):
    """With ties, which are one threshold; below 8 in size."""
    return (torch.randn(ROWS, columns) * 4).round() / 4


def share(outputs):
    """Grows with the outputs, exactly: torch's sigmoid gives equal ones unequal ends."""
    return (outputs + 8) / 16


def test_binary():
    outputs, labels = logits(1), torch.arange(ROWS) % 3 // 2
    scores = Scores(about("binary", ("no", "yes")), outputs, labels)
    assert list(scores.measures) == ["accuracy", "f1", "auroc", "average_precision"]
    functions = {
        "accuracy": classification.binary_accuracy,
        "f1": classification.binary_f1_score,
        "auroc": classification.binary_auroc,
        "average_precision": classification.binary_average_precision,
    }
    for name, function in functions.items():
        check(
            scores,
            name,
            lambda w, f=function: f(share(repeated(outputs, w)[:, 0]), repeated(labels, w)),
        )


def test_multiclass():
    outputs, labels = torch.randn(ROWS, 4).double(), torch.arange(ROWS) % 4
    scores = Scores(about("multiclass", tuple("abcd")), outputs, labels)
    functions = {
        "accuracy": lambda p, t: classification.multiclass_accuracy(p, t, 4, average="micro"),
        "f1_macro": lambda p, t: classification.multiclass_f1_score(p, t, 4, average="macro"),
        "auroc": lambda p, t: classification.multiclass_auroc(p, t, 4),
        "average_precision": lambda p, t: classification.multiclass_average_precision(p, t, 4),
    }
    for name, function in functions.items():
        check(
            scores,
            name,
            lambda w, f=function: f(repeated(outputs, w).softmax(1), repeated(labels, w)),
        )


def test_multilabel():
    outputs, labels = logits(3), (torch.rand(ROWS, 3) > 0.6).float()
    scores = Scores(about("multilabel", tuple("abc")), outputs, labels)
    functions = {
        "accuracy": lambda p, t: classification.multilabel_accuracy(p, t, 3),
        "f1_macro": lambda p, t: classification.multilabel_f1_score(p, t, 3, average="macro"),
        "f1_micro": lambda p, t: classification.multilabel_f1_score(p, t, 3, average="micro"),
        "auroc": lambda p, t: classification.multilabel_auroc(p, t, 3),
        "average_precision": lambda p, t: classification.multilabel_average_precision(p, t, 3),
    }
    for name, function in functions.items():
        check(
            scores,
            name,
            lambda w, f=function: f(share(repeated(outputs, w)), repeated(labels, w).long()),
        )


def test_regression():
    outputs = torch.randn(ROWS, 1)
    labels = outputs[:, 0] + 0.5 * torch.randn(ROWS)
    scores = Scores(about("regression", mean=1000.0, std=3.0), outputs, labels)
    functions = {
        "mae": regression.mean_absolute_error,
        "rmse": lambda p, t: regression.mean_squared_error(p, t).sqrt(),
        "correlation": regression.pearson_corrcoef,
        "r2": regression.r2_score,
    }

    def units(values, w):
        return repeated(values, w).double() * 3 + 1000

    for name, function in functions.items():
        check(scores, name, lambda w, f=function: f(units(outputs[:, 0], w), units(labels, w)))


def test_retrieval():
    outputs = torch.randn(2, ROWS, 5)
    outputs[1] += 2 * outputs[0]
    scores = Scores(about("retrieval"), outputs)
    a, b = torch.nn.functional.normalize(outputs, dim=-1)
    near = a @ b.T
    own = near.diagonal()
    there, back = ((way >= own[:, None]).sum(1) - 1 for way in (near, near.T))
    hits = {  # by hand: fewer than k of the others are at least as near
        "image_to_text_recall_at_5": there < 5,
        "text_to_image_recall_at_1": back < 1,
    }
    for name, hit in hits.items():
        check(scores, name, lambda w, h=hit: np.average(h.numpy(), weights=w))
    both = [scores.point(f"{way}_recall_at_10") for way in ("image_to_text", "text_to_image")]
    assert scores.point("recall_at_10") == pytest.approx(np.mean(both))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression", "retrieval"])
def test_they_are_those_that_evaluation_prints(kind):
    columns = {"multiclass": 4, "multilabel": 4}.get(kind, 1)
    outputs = torch.randn(2, ROWS, 5) if kind == "retrieval" else torch.randn(ROWS, columns)
    labels = {
        "binary": torch.arange(ROWS) % 2,
        "multiclass": torch.arange(ROWS) % 4,
        "multilabel": (torch.rand(ROWS, 4) > 0.5).float(),
        "regression": torch.randn(ROWS),
        "retrieval": None,
    }[kind]
    names = ("image", "text")
    task = Task(TaskConfig(type=kind), columns, modalities=names, mean=2.0, std=3.0)
    expected = task.measure(outputs, labels)
    classes = ("no", "yes") if kind == "binary" else tuple("abcd") if columns > 1 else ()
    scores = Scores(about(kind, classes, mean=2.0, std=3.0), outputs, labels)
    assert {n: scores.point(n) for n in scores.measures} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_rankings_of_large_logits(kind):
    """Whose probabilities are 1 in float64 too."""
    outputs, labels = torch.tensor([[60.0], [50], [40], [0]]), torch.tensor([0, 1, 1, 0])
    if kind == "multiclass":
        outputs = torch.cat([-outputs / 2, outputs / 2], 1)
    scores = Scores(about(kind, ("no", "yes")), outputs, labels)
    assert scores.point("auroc") == 2 / 4


def test_a_class_that_no_row_is_of_is_left_out_of_the_averages():
    labels = torch.arange(ROWS) % 2
    outputs = torch.randn(ROWS, 3)
    scores = Scores(about("multiclass", tuple("abc")), outputs, labels)
    found = [
        classification.binary_auroc(outputs.softmax(1)[:, c], (labels == c).long()) for c in (0, 1)
    ]
    assert scores.point("auroc") == pytest.approx(float(sum(found)) / 2, abs=1e-6)
    one = Scores(about("multiclass", tuple("abc")), outputs, torch.zeros(ROWS).long())
    assert math.isnan(one.point("auroc"))


def test_losses_order_rows_by_how_wrong_they_are():
    outputs = torch.tensor([[4.0, 0.0], [0.0, 0.0], [0.0, 4.0]]).double()
    scores = Scores(about("multiclass", ("a", "b")), outputs, torch.zeros(3).long())
    expected = torch.nn.functional.cross_entropy(outputs, torch.zeros(3).long(), reduction="none")
    np.testing.assert_allclose(losses(scores), expected.numpy(), rtol=1e-6)
    certain = Scores(about("binary", ("a", "b")), torch.tensor([[9e3]]), torch.zeros(1).long())
    assert np.isfinite(losses(certain)).all()
