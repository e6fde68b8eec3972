"""The rows of a recipe's splits, and what the plan needs to know of them.

Owns what it means to leave rows out of splits that were made: places count as if none were left out, and neither a
split nor a label may lose all its rows. Made by `loading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launcher.data import bad_rows
from launcher.data.rows import Rows
from launcher.errors import DataError
from launcher.plan.data_facts import DataFacts, SkippedRow


@dataclass(frozen=True)
class Splits:
    """The rows of each split, by the task's column names; ``label`` holds int64 ids, ``id`` what to call a row."""

    train: Rows
    validation: Rows | None
    test: Rows | None
    labels: list[str] | None
    """Label names in the order of their ids; None for tasks without labels."""
    skipped: tuple[SkippedRow, ...] = ()
    """What ``data.on_bad_row: skip`` left out; an ``index`` counts as if none were."""

    def by_name(self) -> dict[str, Rows]:
        """The splits there are, train first."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in splits.items() if rows is not None}

    def without(self, rows: Sequence[SkippedRow]) -> Splits:
        """These splits without some more rows; ``index`` counts in them as they are.

        Raises:
            DataError: a split, or a label of the training split, has no other rows.
        """
        left, skipped = {}, list(self.skipped)
        for name, split in self.by_name().items():
            out = {row.index: row for row in rows if row.split == name and row.index is not None}
            # What is out already counts too, so that a list of rows means the same whenever it is applied.
            before = [row.index for row in self.skipped if row.split == name and row.index is not None]
            places = np.delete(np.arange(len(split) + len(before)), np.array(before, np.int64))
            skipped += [row.model_copy(update={"index": int(places[index])}) for index, row in out.items()]
            left[name] = split.without(list(out))
            if not len(left[name]):
                first = bad_rows.named(next(iter(out.values())))
                raise DataError(f"split {name}: all of its {len(split)} rows are bad; {first}")
        self._check_labels_left(left["train"])
        return Splits(left["train"], left.get("validation"), left.get("test"), self.labels, tuple(skipped))

    def _check_labels_left(self, train: Rows) -> None:
        if self.labels is None:
            return
        before, after = (
            np.bincount(rows.table["label"].to_numpy(), minlength=len(self.labels)) for rows in (self.train, train)
        )
        gone = np.flatnonzero((before > 0) & (after == 0))
        if len(gone):
            number = int(gone[0])
            raise DataError(
                f"label {self.labels[number]!r}: all of its {before[number]} training rows are bad; repair some of them"
            )

    def facts(self) -> DataFacts:
        """What the plan needs to know."""
        return DataFacts(
            train_rows=len(self.train),
            validation_rows=len(self.validation or ()),
            test_rows=len(self.test or ()),
            labels=self.labels,
            majority=self._majority(),
            columns=self.train.columns,
            digests=[split.digest() for split in self.by_name().values()],
            skipped=list(self.skipped),
        )

    def _majority(self) -> float | None:
        if self.labels is None or self.validation is None:
            return None
        counts = np.bincount(self.validation.table["label"].to_numpy())
        return float(counts.max() / counts.sum())
