"""Measuring a model on a split: every row once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from launcher import heartbeat
from launcher.tasks import Batch, BoundTask


def evaluate(
    forward: Callable[[dict[str, torch.Tensor]], Any],
    batches: Iterable[Batch],
    task: BoundTask,
    device: torch.device,
) -> dict[str, float]:
    """Metrics of the task over all ranks' ``batches``, each as many as the others' (ZeRO-3's forward is collective).

    Args:
        forward: model inputs -> logits of shape [batch, …]; the module is in evaluation mode already.
    """
    metrics = task.metrics(device)
    with torch.no_grad():
        for batch in batches:
            on_device = batch.to(device)
            metrics.update(forward(on_device.model_inputs), on_device)
            heartbeat.tick()
    return metrics.compute()
