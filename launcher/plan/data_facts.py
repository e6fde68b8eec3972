"""What the plan and the loop need to know about the data, without the data.

Owns two frozen types. Pure: `data` fills it in, `plan` does its arithmetic with it, and it travels in ``plan.json``.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SkippedRow(BaseModel):
    """A row that cannot be trained on, and is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    """Where it was read; of a row that a cut-off validation split has, that one."""
    index: int | None
    """Its place among the rows of its split, the skipped ones included; None: it was left out before the split."""
    row: str
    """What the row is called: a number in its file, or an image's name."""
    why: str


class DataFacts(BaseModel):
    """Row counts and labels after limit, dedupe and split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_rows: int
    validation_rows: int
    """0: there is no validation split."""
    test_rows: int
    """0: there is no test split."""
    labels: list[str] | None
    """Label names in the order of their ids; None for tasks without labels."""
    majority: float | None
    """Share of the most common label in the validation split, 0 to 1; None without labels or validation split."""
    columns: list[str]
    """Columns of a row, by the task's names; ``id`` among them."""
    digests: list[str] = []
    """`Rows.digest` of the splits there are, in the order train, validation, test: a run goes on with the same rows."""
    skipped: list[SkippedRow] = []
    """Left out by ``data.on_bad_row: skip``; the counts above are without them."""

    def differences(self, planned: DataFacts) -> list[str]:
        """What is otherwise than ``planned``, in words; empty when nothing is."""
        found = [
            f"{name}: {now!r} instead of {was!r}"
            for name in type(self).model_fields
            if name not in ("digests", "skipped") and (now := getattr(self, name)) != (was := getattr(planned, name))
        ]
        return found or (["rows hold other values, or lie in another order"] if self.digests != planned.digests else [])
