"""Choosing one label of several: loss, metrics and answers, whatever the input.

The two kinds that classify inherit from here. Logits are [B, labels].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from launcher.data.packing import Batch
from launcher.tasks.bound import Features, Metrics, Row
from launcher.tasks.mean_loss import MeanLoss

NO_LABEL = -1
"""Label id of a row without one, and of a row that the metrics pass over."""
SCORES_SHOWN = 5


class Classification:
    """The half of a classification task that does not see the input."""

    best_direction: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "accuracy": "max",
        "f1": "max",
        "precision": "max",
        "recall": "max",
        "loss": "min",
    }

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels

    def notes(self) -> list[str]:
        """Nothing that the recipe does not say."""
        return []

    @property
    def random_loss(self) -> float | None:
        """ln(labels)."""
        return math.log(len(self.labels))

    def encode_rows(self, rows: Sequence[Row], *, augment_seeds: Sequence[int] | None) -> list[Features]:
        """Several rows -> features."""
        raise NotImplementedError

    def encode(self, row: Row, *, augment_seed: int | None) -> Features:
        """One row -> features."""
        return self.encode_rows([row], augment_seeds=None if augment_seed is None else [augment_seed])[0]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy in float32, summed over the rows that count."""
        each = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        return (each * batch.weights).sum()

    def metrics(self, device: torch.device) -> Metrics:
        """Accuracy; precision, recall and F1 as unweighted means over the labels; mean loss."""
        return ClassificationMetrics(self, device)

    def decode(self, logits: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """The best label with its probability, and the probabilities of the best few."""
        probabilities = logits.float().softmax(-1)
        scores, ids = probabilities.topk(min(SCORES_SHOWN, len(self.labels)))
        return [
            {
                "id": row,
                "label": self.labels[best[0]],
                "score": score[0],
                "scores": {self.labels[i]: s for i, s in zip(best, score, strict=True)},
            }
            for row, weight, score, best in zip(batch.ids, batch.weights, scores.tolist(), ids.tolist(), strict=True)
            if weight
        ]


class ClassificationMetrics:
    """torchmetrics' measures; they add up the ranks' counts themselves when computed."""

    def __init__(self, task: Classification, device: torch.device) -> None:
        from torchmetrics import MetricCollection
        from torchmetrics import classification as measures

        settings: dict[str, Any] = {
            "num_classes": len(task.labels),
            "ignore_index": NO_LABEL,
            "validate_args": False,
        }
        self._counts = MetricCollection(
            {
                "accuracy": measures.MulticlassAccuracy(average="micro", **settings),
                "f1": measures.MulticlassF1Score(average="macro", **settings),
                "precision": measures.MulticlassPrecision(average="macro", **settings),
                "recall": measures.MulticlassRecall(average="macro", **settings),
            }
        ).to(device)
        self._loss = MeanLoss(task, device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Count one batch. Every rank calls this for every batch, those without a counting row too."""
        targets = batch.labels.where(batch.weights > 0, NO_LABEL)
        self._counts.update(logits.argmax(-1), targets)
        self._loss.update(logits, batch)

    def compute(self) -> dict[str, float]:
        """Each measure over the batches of all ranks."""
        return {name: float(value) for name, value in self._counts.compute().items()} | {"loss": self._loss.compute()}
