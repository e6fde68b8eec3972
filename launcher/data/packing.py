"""The batch as the loop sees it, and how rows of different lengths become one tensor.

Owns `Batch` and padding. Knows nothing of tasks, files or ranks. Made by `tasks`, moved by `batches`, read by `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows, ready for the model."""

    model_inputs: dict[str, Tensor]
    """Keyword arguments of the model; the first dimension of each is B."""
    labels: Tensor
    """int64: [B] class ids, -1 where a row has none; or [B, T] token ids, -100 where there is nothing to predict."""
    weights: Tensor
    """float32 [B]: 1 for a row that counts, 0 for one that only keeps the ranks in step."""
    ids: list[str]
    """What to call each row in a message: its number in the data, or its file."""
    size: float
    """What the loss is averaged over: rows, or predicted tokens; of the rows that count."""
    tokens: int
    """Tokens that are not padding, of the rows that count; 0 for images."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device; from pinned memory the copy runs beside the computation."""
        return Batch(
            {name: value.to(device, non_blocking=True) for name, value in self.model_inputs.items()},
            self.labels.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
            self.ids,
            self.size,
            self.tokens,
        )

    def pin_memory(self) -> Batch:
        """The same in page-locked host memory. Needs CUDA."""
        return Batch(
            {name: value.pin_memory() for name, value in self.model_inputs.items()},
            self.labels.pin_memory(),
            self.weights.pin_memory(),
            self.ids,
            self.size,
            self.tokens,
        )


def pad(sequences: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right") -> Tensor:
    """Lay sequences of any lengths into one int64 tensor [len(sequences), longest], filled up with ``value``."""
    longest = max(len(sequence) for sequence in sequences)
    fill = [[value] * (longest - len(sequence)) for sequence in sequences]
    pairs = zip(sequences, fill, strict=True) if side == "right" else zip(fill, sequences, strict=True)
    # numpy reads nested lists several times faster than torch
    return torch.from_numpy(np.array([[*first, *second] for first, second in pairs], np.int64))
