"""The mean loss of an evaluation over all ranks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from launcher.data.packing import Batch


class HasLoss(Protocol):
    """A task, as far as this measure asks."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor: ...


class MeanLoss:
    """Sum of the loss over the sum of `Batch.size`; torchmetrics adds up the ranks' sums when computed.

    Two sums and not `torchmetrics.MeanMetric`: that one removes NaN, or, told to keep it, forgets the weights (1.9).
    """

    def __init__(self, task: HasLoss, device: torch.device) -> None:
        from torchmetrics import SumMetric

        self._task = task
        # double: a float32 sum over a large split would lose the digits that tell two evaluations apart
        self._sum = SumMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)
        self._size = SumMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Count one batch. Every rank calls this for every batch, those without a counting row too."""
        self._sum.update(self._task.loss(logits, batch))
        self._size.update(batch.size)

    def compute(self) -> float:
        """The mean; NaN where a loss was, or where nothing was counted. All ranks must reach this."""
        return float(self._sum.compute() / self._size.compute())
