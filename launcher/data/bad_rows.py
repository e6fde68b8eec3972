"""Rows that cannot be trained on: all named at once, or left out up to a quota.

Owns what ``data.on_bad_row`` and ``data.max_bad_rows`` mean and the words for them. It finds none: `loading` knows
empty cells, `media_check` damaged files, `tasks.text_check` texts without a token. Called by them and by `checking`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from launcher.errors import DataError
from launcher.plan.data_facts import SkippedRow
from launcher.recipe.data import Data

NAMED = 20
"""Rows that a message names before it only counts."""


def allowed(data: Data, num_rows: int) -> int:
    """Rows that may be left out of so many: a share is rounded up."""
    quota = data.max_bad_rows
    return quota if isinstance(quota, int) else math.ceil(quota * num_rows)


def settle(found: Sequence[SkippedRow], num_rows: int, data: Data, what: str) -> None:
    """Return where ``found`` may be left out.

    Args:
        found: all bad rows known of the data so far.
        num_rows: rows that were looked at, the bad ones included.
        what: begins the message: the key, and what is wrong, such as ``data.files: no images``.

    Raises:
        DataError: with the first rows and the count, where the recipe skips none or fewer.
    """
    if not found:
        return
    quota = allowed(data, num_rows) if data.on_bad_row == "skip" else 0
    if len(found) <= quota:
        return
    lines = "\n".join(f"  {named(row)}" for row in found[:NAMED])
    more = f"\n  … and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    if data.on_bad_row == "skip":
        advice = (
            f"data.on_bad_row: skip leaves out {quota:,} at most (data.max_bad_rows: {data.max_bad_rows}); repair or "
            "remove them, or raise data.max_bad_rows"
        )
    else:
        advice = "repair or remove them, or leave them out with data.on_bad_row: skip"
    raise DataError(f"{what} in {len(found):,} of {num_rows:,} rows:\n{lines}{more}\n{advice}")


def broken_since(found: Sequence[SkippedRow], going_on: str) -> str:
    """What to say of images that a run's plan found sound, or had left out."""
    lines = "\n".join(f"  {named(row)}" for row in found[:NAMED])
    more = f"\n  … and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return (
        f"{len(found):,} images cannot be read, and could when the run was planned:\n{lines}{more}\nrestore them under "
        f"the same names, then {going_on}; without these rows it is another run, in another --run-dir"
    )


def named(row: SkippedRow) -> str:
    """One row in a line."""
    return f"{row.split}, row {row.row}: {row.why}"


def as_lines(rows: Sequence[SkippedRow]) -> str:
    """``skipped.jsonl``: an object a row."""
    return "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
