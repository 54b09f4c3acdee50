"""Losses and metrics of the tasks, against formulas written out."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from mmfast.train.config import LOSSES
from mmfast.train.config import Task as TaskConfig
from mmfast.train.tasks import DEFAULT_METRIC, Task, log_odds


def task(kind, outputs=3, counts=None, **options):
    return Task(
        TaskConfig(type=kind, **options), outputs, counts=counts, modalities=("image", "text")
    )


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_binary_cross_entropy():
    logits, labels = torch.randn(7, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    torch.testing.assert_close(task("binary").loss(logits, labels), expected)


def test_binary_hinge():
    logits, labels = torch.randn(7, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    expected = (1 - (2 * labels - 1) * logits[:, 0]).clamp(min=0).mean()
    torch.testing.assert_close(task("binary", loss="hinge").loss(logits, labels), expected)


def test_multiclass_hinge_sums_over_the_wrong_classes():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    rows = [
        sum(max(0.0, 1 - z[y].item() + z[j].item()) for j in range(3) if j != y)
        for z, y in zip(logits, labels, strict=True)
    ]
    found = task("multiclass", loss="hinge").loss(logits, labels)
    assert found.item() == pytest.approx(sum(rows) / 4)


def test_focal_losses():
    gamma = 1.5
    logits, labels = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    p = torch.where(labels == 1, logits[:, 0].sigmoid(), 1 - logits[:, 0].sigmoid())
    expected = (-((1 - p) ** gamma) * p.log()).mean()
    found = task("binary", loss="focal", focal_gamma=gamma).loss(logits, labels)
    torch.testing.assert_close(found, expected)
    several, targets = torch.randn(4, 3), torch.tensor([[1.0, 0, 1]] * 4)
    p = torch.where(targets == 1, several.sigmoid(), 1 - several.sigmoid())
    found = task("multilabel", loss="focal", focal_gamma=gamma).loss(several, targets)
    torch.testing.assert_close(found, (-((1 - p) ** gamma) * p.log()).mean())


def test_label_smoothing_of_multilabel():
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3)).float()
    expected = F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)
    found = task("multilabel", label_smoothing=0.2).loss(logits, labels)
    torch.testing.assert_close(found, expected)


def test_class_weights_are_inverse_frequencies():
    counts = [6, 2, 0]
    weighted = task("multiclass", counts=counts, balance="weights")
    assert weighted.weight.tolist() == pytest.approx([8 / 12, 8 / 4, 0])
    logits, labels = torch.randn(8, 3), torch.tensor([0] * 6 + [1] * 2)
    rows = F.cross_entropy(logits, labels, reduction="none")
    expected = rows[:6].mean() / 2 + rows[6:].mean() / 2  # each class counts alike
    torch.testing.assert_close(weighted.loss(logits, labels), expected)
    assert task("multiclass", counts=counts).weight is None


def test_regression_is_learned_standardised_and_told_in_units():
    found = Task(TaskConfig(type="regression"), 1, mean=10.0, std=4.0)
    outputs, labels = torch.randn(6, 1), torch.randn(6)
    torch.testing.assert_close(
        found.loss(outputs, labels), (outputs[:, 0] - labels).square().mean()
    )
    torch.testing.assert_close(found.predict(outputs)["value"], outputs[:, 0] * 4 + 10)
    measured = found.measure(outputs, labels)
    error = 4 * (outputs[:, 0] - labels)
    spread = 4 * (labels - labels.mean())
    assert measured["mae"] == pytest.approx(error.abs().mean().item())
    assert measured["rmse"] == pytest.approx(error.square().mean().sqrt().item())
    r2 = 1 - (error**2).sum().item() / (spread**2).sum().item()
    assert measured["r2"] == pytest.approx(r2, rel=1e-5)
    together = torch.corrcoef(torch.stack([outputs[:, 0], labels]))[0, 1].item()
    assert measured["correlation"] == pytest.approx(together, abs=1e-5)
    assert "r2" not in found.measure(outputs[:1], labels[:1])
    assert not found.larger_is_better


def test_multiclass_metrics():
    outputs = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 3, 0], [1, 0, 0]])
    labels = torch.tensor([0, 1, 2, 0])
    measured = task("multiclass").measure(outputs, labels)
    assert measured["accuracy"] == pytest.approx(3 / 4)
    assert measured["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_binary_auroc_counts_pairs_in_order():
    outputs, labels = torch.randn(30, 1), torch.randint(2, (30,))
    pairs = list(itertools.product(outputs[labels == 1, 0], outputs[labels == 0, 0]))
    expected = sum((p > n).item() for p, n in pairs) / len(pairs)
    assert task("binary").measure(outputs, labels)["auroc"] == pytest.approx(expected)


def auroc_by_pairs(scores, positive):
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    return sum((p > n).item() for p, n in pairs) / len(pairs)


def test_rankings_are_means_over_the_classes_that_there_are():
    """Class 2 has no row: a perfect order of the others is perfect."""
    outputs = torch.tensor([[3.0, 0, 0], [0, 2, 0], [2, 1, 0], [1, 2, 0]])
    labels = torch.tensor([0, 1, 0, 1])
    measured = task("multiclass").measure(outputs, labels)
    assert measured["auroc"] == measured["average_precision"] == 1
    outputs, labels = torch.randn(40, 4), torch.randint(3, (40,))
    measured = task("multiclass", 4).measure(outputs, labels)
    scores = outputs.softmax(1)
    each = [auroc_by_pairs(scores[:, c], labels == c) for c in range(3)]
    assert measured["auroc"] == pytest.approx(sum(each) / 3)


def test_rankings_of_multilabel_leave_out_what_all_rows_have():
    outputs = torch.randn(20, 3)
    labels = torch.cat([torch.randint(2, (20, 2)), torch.ones(20, 1)], dim=1)
    measured = task("multilabel", 3).measure(outputs, labels)
    each = [auroc_by_pairs(outputs[:, c], labels[:, c] == 1) for c in range(2)]
    assert measured["auroc"] == pytest.approx(sum(each) / 2)


FAR = torch.tensor([[60.0], [50], [40], [-40], [-50]])  # whose sigmoids are 1, 1, 1, 0, 0


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_rankings_of_large_logits(kind):
    """The probabilities of three are 1 in float32, and of two 0: their order is in the logits."""
    columns = {
        "binary": FAR,
        "multiclass": torch.cat([-FAR / 2, FAR / 2], 1),
        "multilabel": FAR.expand(5, 2),
    }[kind]
    labels = torch.tensor([0, 1, 1, 0, 1])  # of six pairs two are in order
    targets = labels[:, None].expand(5, 2) if kind == "multilabel" else labels
    measured = task(kind, 2).measure(columns, targets)
    assert measured["auroc"] == pytest.approx(2 / 6)
    if kind != "multiclass":
        expected = (1 / 2 + 2 / 3 + 3 / 5) / 3
        assert measured["average_precision"] == pytest.approx(expected)


def test_log_odds_are_in_the_order_of_probabilities_and_beyond():
    logits = torch.randn(50, 4) * 4
    p = logits.double().softmax(1)
    torch.testing.assert_close(log_odds(logits), (p / (1 - p)).log().float())
    far = torch.tensor([[60.0, 0, 0], [50, 0, 0], [0, 60, 50], [0, 50, 60]])
    expected = torch.tensor([60, 50, -60, -60]) - torch.tensor([1.0, 1, 0, 0]) * math.log(2)
    torch.testing.assert_close(log_odds(far)[:, 0], expected)
    assert log_odds(torch.zeros(1, 1)).isposinf(), "no others to be against"


def test_rankings_of_a_single_class_are_not_numbers():
    measured = task("binary").measure(torch.randn(5, 1), torch.ones(5).long())
    assert math.isnan(measured["auroc"])
    assert math.isnan(measured["average_precision"])


def test_average_precision_by_hand():
    """Positives at ranks 1, 3 and 4: the mean of 1/1, 2/3 and 3/4."""
    outputs, labels = torch.tensor([[4.0], [3], [2], [1], [0]]), torch.tensor([1, 0, 1, 1, 0])
    found = task("binary").measure(outputs, labels)["average_precision"]
    assert found == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_multilabel_metrics():
    outputs = torch.tensor([[1.0, -1], [1, 1], [-1, -1]])
    labels = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    measured = task("multilabel", 2).measure(outputs, labels)
    first, second = 2 / (2 + 1 + 1), 2 / (2 + 0 + 1)  # 2 tp / (2 tp + fp + fn)
    assert measured["f1_macro"] == pytest.approx((first + second) / 2)
    assert measured["f1_micro"] == pytest.approx(4 / (4 + 1 + 2))
    assert measured["accuracy"] == pytest.approx(3 / 6)


def test_recall_by_sorting():
    a, b = torch.randn(2, 40, 4)
    b = a + 0.7 * b
    measured = task("retrieval").measure(torch.stack([a, b]), None)
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t()
    for name, matrix in (("image_to_text", similarity), ("text_to_image", similarity.t())):
        for k in (1, 5, 10):
            nearest = matrix.argsort(dim=1, descending=True)[:, :k]
            hits = (nearest == torch.arange(40)[:, None]).any(1).float().mean().item()
            assert measured[f"{name}_recall_at_{k}"] == pytest.approx(hits)
            assert 0 < hits < 1 or k > 1
    both = measured["image_to_text_recall_at_1"] + measured["text_to_image_recall_at_1"]
    assert measured["recall_at_1"] == pytest.approx(both / 2)


def test_embeddings_that_are_all_alike_recall_nothing():
    assert task("retrieval").measure(torch.ones(2, 20, 3), None)["recall_at_1"] == 0


def test_retrieval_learns_its_temperature():
    retrieval = task("retrieval")
    retrieval.loss(torch.randn(2, 8, 3), None).backward()
    (parameter,) = retrieval.parameters()
    assert parameter.grad.abs() > 0


def test_predictions():
    found = task("binary").predict(torch.tensor([[0.0], [2.0], [-1.0]]))
    assert found["label"].tolist() == [0, 1, 0]
    assert found["score"][1].item() == pytest.approx(1 / (1 + math.exp(-2)))
    found = task("multiclass").predict(torch.tensor([[0.0, 2, 1]]))
    assert found["label"].tolist() == [1]
    assert found["score"].sum().item() == pytest.approx(1)
    assert task("multilabel").predict(torch.tensor([[0.1, -2]]))["label"].tolist() == [[1, 0]]
    unit = task("retrieval").predict(torch.randn(2, 5, 3))["embedding"].norm(dim=-1)
    torch.testing.assert_close(unit, torch.ones(2, 5))


@pytest.mark.parametrize("kind", LOSSES)
def test_the_metric_that_chooses_is_measured(kind):
    outputs = {"binary": (6, 1), "regression": (6, 1), "retrieval": (2, 6, 3)}.get(kind, (6, 3))
    labels = {
        "binary": torch.tensor([0, 1] * 3),
        "multiclass": torch.tensor([0, 1, 2] * 2),
        "multilabel": torch.tensor([[0.0, 1, 1], [1, 0, 0]] * 3),
        "regression": torch.randn(6),
        "retrieval": None,
    }[kind]
    found = task(kind).measure(torch.randn(outputs), labels)
    assert DEFAULT_METRIC[kind] in found
    assert all(math.isfinite(value) for value in found.values())
