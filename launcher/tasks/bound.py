"""What the loop, the loaders and the commands may ask of a task.

Called by `data.batches` (encode, collate), `train` and `evaluation` (loss, metrics), `inference` (decode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from launcher.data.packing import Batch

Row = dict[str, Any]
"""A row of the data by the task's column names, and ``id``; ``label`` may be missing when only predicting."""
Features = dict[str, Any]
"""One encoded row; only its task's `collate` reads it."""


class Metrics(Protocol):
    """Measures of one evaluation, over all ranks."""

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Count the rows of one batch whose weight is not 0. Both on the same device."""

    def compute(self) -> dict[str, float]:
        """Each measure over the batches of all ranks, ``loss`` among them. All ranks must reach this."""


class BoundTask(Protocol):
    """A task with its processor and labels."""

    auto_class: ClassVar[str]
    """Name of the transformers class that holds the model and its head."""
    best_direction: ClassVar[Mapping[str, Literal["max", "min"]]]
    """Measure -> which way is better."""

    def notes(self) -> list[str]:
        """What the plan says about how rows become features, a sentence each."""

    @property
    def random_loss(self) -> float | None:
        """Loss of guessing, every answer as likely as the next; None where there is no such thing."""

    def encode(self, row: Row, *, augment_seed: int | None) -> Features:
        """One row -> features. ``augment_seed``: of the training augmentation; None: no augmentation."""

    def encode_rows(self, rows: Sequence[Row], *, augment_seeds: Sequence[int] | None) -> list[Features]:
        """Several at once, which for texts is faster. Draws from no global random generator."""

    def collate(self, rows: list[Features], weights: list[float]) -> Batch:
        """Encoded rows -> a batch; a row of weight 0 is computed and counted nowhere."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The float32 sum of the loss over what `Batch.size` counts; a scalar."""

    def metrics(self, device: torch.device) -> Metrics:
        """A fresh set of measures."""

    def decode(self, logits: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """An answer for each row of weight 1, in JSON's types, with the row's ``id``."""
