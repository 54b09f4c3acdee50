"""What is learned: the loss, the predictions and the metrics of each kind of task.

Outputs are (B, C): one logit for binary, one per class for multiclass and multilabel, one value
for regression. For retrieval they are (2, B, D), the embeddings of the two modalities.
Labels are int64 (B,) for binary and multiclass, float (B, C) for multilabel and float (B,) for
regression, standardised as `mmfast.data.labels` does it; retrieval has none: row i of one modality
belongs to row i of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection, regression
from torchmetrics import classification as metrics
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from mmfast.losses import ContrastiveLoss, focal_loss, hinge_loss
from mmfast.train.config import LOSSES
from mmfast.train.config import Task as TaskConfig

DEFAULT_METRIC = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "f1_macro",
    "regression": "mae",
    "retrieval": "recall_at_1",
}
SMALLER_IS_BETTER = ("loss", "mae", "rmse")
RECALL_AT = (1, 5, 10)


class Task(nn.Module):
    """The task of a configuration. A module, since it may hold class weights and a temperature.

    Args:
        config: the section ``task``.
        outputs: number of classes; not looked at for binary and regression.
        counts: rows of each class in the training split, for ``balance: weights``.
        modalities: for retrieval, the names of the two, for the names of its metrics.
        mean, std: by which regression targets were standardised; predictions and metrics are in the
            units of the table.
    """

    def __init__(
        self,
        config: TaskConfig,
        outputs: int,
        *,
        counts: Sequence[int] | None = None,
        modalities: Sequence[str] = (),
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.kind = config.type
        self.loss_name = config.loss or LOSSES[config.type][0]
        self.out_features = 1 if config.type in ("binary", "regression") else outputs
        self.smoothing = config.label_smoothing
        self.gamma = config.focal_gamma
        self.modalities = tuple(modalities)
        self.mean, self.std = mean, std
        self.metric = config.metric or DEFAULT_METRIC[config.type]
        self.weight: Tensor | None
        weight = _inverse(counts) if counts and config.balance == "weights" else None
        self.register_buffer("weight", weight, persistent=False)
        self.contrastive = ContrastiveLoss() if config.type == "retrieval" else None

    @property
    def larger_is_better(self) -> bool:
        """Whether the metric that chooses the best checkpoint is to grow."""
        return self.metric not in SMALLER_IS_BETTER

    def loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """The mean loss of a batch, 0-d; see the module for shapes."""
        if self.contrastive is not None:
            a, b = outputs
            return self.contrastive(a, b)
        assert labels is not None
        if self.kind == "regression":
            return F.mse_loss(outputs[:, 0], labels)
        if self.kind == "multilabel":
            return self._multilabel(outputs, labels)
        return self._classes(_two_columns(outputs) if self.kind == "binary" else outputs, labels)

    def _classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss_name == "hinge":
            # The sum over the wrong classes, not the mean over all, so that two columns give the
            # hinge of a binary classifier, max(0, 1 - y z).
            return hinge_loss(logits, labels, weight=self.weight) * logits.shape[1]
        if self.loss_name == "focal":
            return focal_loss(
                logits, labels, self.gamma, self.weight, label_smoothing=self.smoothing
            )
        return F.cross_entropy(logits, labels, self.weight, label_smoothing=self.smoothing)

    def _multilabel(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss_name == "focal":
            return focal_loss(
                _two_columns(logits.reshape(-1, 1)),
                labels.reshape(-1).long(),
                self.gamma,
                label_smoothing=self.smoothing,
            )
        smooth = labels * (1 - self.smoothing) + 0.5 * self.smoothing
        return F.binary_cross_entropy_with_logits(logits, smooth)

    def predict(self, outputs: Tensor) -> dict[str, Tensor]:
        """What to tell of outputs: ``label`` and ``score`` of classes, ``value`` of regression.

        ``score`` is (B,) for binary, the probability of class 1, else (B, C). Those of a hinge loss
        are no calibrated probabilities.
        """
        if self.kind == "binary":
            score = outputs[:, 0].sigmoid()
            return {"label": (outputs[:, 0] > 0).long(), "score": score}
        if self.kind == "multiclass":
            return {"label": outputs.argmax(1), "score": outputs.softmax(1)}
        if self.kind == "multilabel":
            return {"label": (outputs > 0).long(), "score": outputs.sigmoid()}
        if self.kind == "regression":
            return {"value": self._in_units(outputs[:, 0])}
        return {"embedding": F.normalize(outputs, dim=-1)}

    def measure(self, outputs: Tensor, labels: Tensor | None) -> dict[str, float]:
        """The metrics of all rows together."""
        if self.kind == "retrieval":
            return _recalls(outputs[0], outputs[1], self.modalities)
        assert labels is not None
        collection = self._collection(len(labels)).to(outputs.device)
        scores, targets, truth, ranked = outputs, labels, None, outputs
        if self.kind == "binary":
            scores, truth = outputs[:, 0].sigmoid(), labels[:, None]
        elif self.kind == "multiclass":
            scores, truth = outputs.softmax(1), F.one_hot(labels, self.out_features)
            ranked = log_odds(outputs)
        elif self.kind == "multilabel":
            scores, targets = outputs.sigmoid(), labels.long()
            truth = targets
        else:
            scores, targets = self._in_units(outputs[:, 0]), self._in_units(labels)
        found: Mapping[str, Tensor] = collection(scores.float(), targets)
        result = {name: value.item() for name, value in found.items()}
        if "rmse" in result:
            result["rmse"] **= 0.5
        if truth is not None:
            result |= _rankings(ranked, truth)
        return result

    def _in_units(self, values: Tensor) -> Tensor:
        return values * self.std + self.mean

    def _collection(self, rows: int) -> MetricCollection:
        count = self.out_features
        if self.kind == "binary":
            return MetricCollection(
                {
                    "accuracy": metrics.BinaryAccuracy(),
                    "f1": metrics.BinaryF1Score(),
                }
            )
        if self.kind == "multiclass":
            return MetricCollection(
                {
                    "accuracy": metrics.MulticlassAccuracy(count, average="micro"),
                    "f1_macro": metrics.MulticlassF1Score(count, average="macro"),
                }
            )
        if self.kind == "multilabel":
            return MetricCollection(
                {
                    "accuracy": metrics.MultilabelAccuracy(count),
                    "f1_macro": metrics.MultilabelF1Score(count, average="macro"),
                    "f1_micro": metrics.MultilabelF1Score(count, average="micro"),
                },
                compute_groups=False,
            )
        found: dict[str, Metric | MetricCollection] = {
            "mae": regression.MeanAbsoluteError(),
            "rmse": regression.MeanSquaredError(),
        }
        if rows > 1:
            found["correlation"] = regression.PearsonCorrCoef()
            found["r2"] = regression.R2Score()
        return MetricCollection(found)


def _inverse(counts: Sequence[int]) -> Tensor:
    """Weights of classes by inverse frequency, 1 on average over the rows; 0 for an empty class."""
    n = torch.tensor(counts, dtype=torch.float64)
    share = torch.where(n > 0, n.sum() / ((n > 0).sum() * n.clamp(min=1)), 0.0)
    return share.float()


def log_odds(logits: Tensor) -> Tensor:
    """Of each class against all others, (B, C): in the order of its probability, which ends at 1.

    The probability of a logit that is far above the others is 1 after rounding, as that of one
    farther above. Worked out in float64 and rounded to float32, so that equals stay equal.
    """
    logits = logits.double()
    best = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, best, -math.inf).logsumexp(1, keepdim=True)
    share = logits.log_softmax(1)
    odds = share - (-share.expm1()).log()
    return odds.scatter(1, best, logits.gather(1, best) - others).float()


def _rankings(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """AUROC and average precision of scores (B, C) for classes (B, C), 0 or 1: means over classes.

    Over those that some rows are of and some are not: of the others there is nothing to rank, and
    torchmetrics counts their AUROC as 0. NaN if there is no such class.
    """
    there = truth.any(dim=0) & ~truth.all(dim=0)
    columns = there.nonzero()[:, 0].tolist()
    # Places in the order, equals in one, below 1: of anything else torchmetrics takes the sigmoid.
    places = [scores[:, c].unique(return_inverse=True)[1].double() / len(scores) for c in columns]
    return {
        name: sum(rank(p, truth[:, c]).item() for p, c in zip(places, columns, strict=True))
        / len(columns)
        if columns
        else math.nan
        for name, rank in (("auroc", binary_auroc), ("average_precision", binary_average_precision))
    }


def _two_columns(logits: Tensor) -> Tensor:
    """(B, 1) to (B, 2): softmax over [0, z] is the sigmoid of z."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def _recalls(a: Tensor, b: Tensor, modalities: Sequence[str]) -> dict[str, float]:
    """Share of rows whose partner is among the k nearest, both ways, and their mean."""
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    result = {}
    there, back = (_ranks(a, b), _ranks(b, a)) if len(a) else (a.new_zeros(0), a.new_zeros(0))
    first, second = modalities
    for k in RECALL_AT:
        ways = [(ranks < k).float().mean().item() for ranks in (there, back)]
        result[f"recall_at_{k}"] = sum(ways) / 2
        result[f"{first}_to_{second}_recall_at_{k}"] = ways[0]
        result[f"{second}_to_{first}_recall_at_{k}"] = ways[1]
    return result


def _ranks(a: Tensor, b: Tensor, chunk: int = 1024) -> Tensor:
    """How many rows of ``b`` are nearer to each row of ``a`` than its partner; ties count against.

    (N,), without the (N, N) matrix of similarities.
    """
    found = []
    for start in range(0, len(a), chunk):
        rows = torch.arange(start, min(start + chunk, len(a)), device=a.device)
        similarity = a[rows] @ b.t()
        own = similarity[torch.arange(len(rows), device=a.device), rows]
        found.append((similarity >= own[:, None]).sum(1) - 1)
    return torch.cat(found)
