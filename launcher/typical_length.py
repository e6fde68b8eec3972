"""How long a padded micro-batch of texts really is, beside the longest that the recipe allows.

Memory is planned for ``data.max_length``, since one batch of long texts suffices to run out of it; a step's time is
that of the usual batch, which is padded to its own longest text. Called by `survey`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.data.rows import Rows
from launcher.tasks import BoundTask

SAMPLE = 256
"""Training rows that are looked at, spread evenly over the data; their order says nothing then."""


class TypicalLength:
    """Lengths of some rows, in tokens, as the task makes them."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = np.sort(np.asarray(lengths, dtype=np.float64))

    @classmethod
    def of(cls, task: BoundTask, rows: Rows) -> TypicalLength:
        """Encodes a sample of the rows. Rows that have no text have no length.

        Raises:
            UserError: see `tasks.BoundTask.encode_rows`.
        """
        if "text" not in rows.columns:
            return cls([])
        taken = np.unique(np.linspace(0, len(rows) - 1, num=min(SAMPLE, len(rows)), dtype=np.int64))
        encoded = task.encode_rows(rows.take(taken.tolist()), augment_seeds=None)
        return cls([len(features["input_ids"]) for features in encoded])

    def share(self, micro_size: int, max_length: int) -> float:
        """Expected length of the longest of ``micro_size`` rows drawn at random, over ``max_length``; 1 without any."""
        num_rows = len(self._lengths)
        if not num_rows:
            return 1.0
        below = (np.arange(num_rows + 1) / num_rows) ** micro_size  # that all drawn are among the shortest
        return min(1.0, float(np.diff(below) @ self._lengths) / max_length)
