"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from launcher.data.packing import Batch
from launcher.recipe import TextClassification
from launcher.recipe.data import Data
from launcher.tasks.bound import Features, Row
from launcher.tasks.classification import NO_LABEL, Classification
from launcher.tasks.tokens import Tokens, as_weights, num_tokens


class BoundTextClassification(Classification):
    """Rows have ``text``, perhaps ``text_pair``, and ``label``."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def __init__(self, task: TextClassification, data: Data, processor: Any, labels: list[str], config: Any) -> None:
        super().__init__(labels)
        self._tokens = Tokens(task.kind, processor, data.max_length, config)

    def encode_rows(self, rows: Sequence[Row], *, augment_seeds: Sequence[int] | None) -> list[Features]:
        """Token ids; texts have no augmentation."""
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        encoded = self._tokens.encode([row["text"] for row in rows], pairs)
        return [
            {**features, "label": row.get("label", NO_LABEL), "id": row["id"]}
            for features, row in zip(encoded, rows, strict=True)
        ]

    def collate(self, rows: list[Features], weights: list[float]) -> Batch:
        """Pad to the longest."""
        inputs = self._tokens.inputs(rows)
        counted = as_weights(weights)
        labels = torch.tensor([row["label"] for row in rows])
        return Batch(inputs, labels, counted, [row["id"] for row in rows], sum(weights), num_tokens(inputs, counted))
