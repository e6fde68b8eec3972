"""What the plan and the loop need to know about the data, without the data.

Owns one frozen type. Pure: `data` fills it in, `plan` does its arithmetic with it, and it travels in ``plan.json``.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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

    def differences(self, planned: DataFacts) -> list[str]:
        """What is otherwise than ``planned``, in words; empty when nothing is."""
        found = [
            f"{name}: {now!r} instead of {was!r}"
            for name in type(self).model_fields
            if name != "digests" and (now := getattr(self, name)) != (was := getattr(planned, name))
        ]
        return found or (["rows hold other values, or lie in another order"] if self != planned else [])
