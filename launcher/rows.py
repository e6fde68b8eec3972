"""Rows in memory: an Arrow table that hands out rows as plain dictionaries.

Owns one small type. `datasets.Dataset` would do the same, but importing it takes a second on every rank and it writes
cache files that ranks race for; only the hub source needs it. Called by `data` (makes them) and `batches` (takes them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


class Rows:
    """An immutable sequence of rows; a row is a dictionary by the task's column names, and ``id``."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.take([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at ``indices``, in that order. Raises IndexError outside the table."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist()
        return rows

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)
