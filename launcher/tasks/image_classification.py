"""One label for an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from launcher.data.packing import Batch
from launcher.models.image_spec import ImageSpec
from launcher.models.own_processor import OwnProcessor
from launcher.recipe import ImageClassification
from launcher.recipe.data import Data
from launcher.tasks.bound import Features, Row
from launcher.tasks.classification import NO_LABEL, Classification
from launcher.tasks.images import images_for
from launcher.tasks.tokens import as_weights


class BoundImageClassification(Classification):
    """Rows have ``image`` (path, encoded bytes, or the hub's form of them) and ``label``."""

    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    def __init__(
        self, task: ImageClassification, data: Data, processor: ImageSpec | OwnProcessor, labels: list[str], config: Any
    ) -> None:
        super().__init__(labels)
        self._images = images_for(processor, task.augment)

    def encode_rows(self, rows: Sequence[Row], *, augment_seeds: Sequence[int] | None) -> list[Features]:
        """The model's inputs of each image; augmented where seeds are given and the recipe says so."""
        seeds = [None] * len(rows) if augment_seeds is None else augment_seeds
        return [
            {
                "pixels": self._images.encode(row["image"], row["id"], seed),
                "label": row.get("label", NO_LABEL),
                "id": row["id"],
            }
            for row, seed in zip(rows, seeds, strict=True)
        ]

    def collate(self, rows: list[Features], weights: list[float]) -> Batch:
        """The inputs of all as one batch."""
        inputs = self._images.inputs([row["pixels"] for row in rows])
        labels = torch.tensor([row["label"] for row in rows])
        return Batch(inputs, labels, as_weights(weights), [row["id"] for row in rows], sum(weights), 0)
