"""The splits of a recipe without the rows that cannot be trained on, looked at before a run begins.

Owns the order: read, open every image, leave out or refuse. Imports no torch. Called by `survey` and by the command
before it starts ranks; the ranks themselves `load` with what the plan says was skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.data import bad_rows, media_check
from launcher.data.loading import load
from launcher.data.splits import Splits
from launcher.plan.data_facts import SkippedRow
from launcher.recipe import Task
from launcher.recipe.data import Data, HubData


def load_checked(data: Data, task: Task, recipe_dir: Path, skipped: Sequence[SkippedRow] = ()) -> Splits:
    """As `load`, with every image opened; ``skipped`` is not looked at again.

    Raises:
        DataError: as `load`; and damaged images, all at once, where there are more than the recipe leaves out.
    """
    splits = load(data, task, recipe_dir, skipped)
    return without(splits, damaged(splits), data, _files_key(data), "images that cannot be read")


def damaged(splits: Splits) -> list[SkippedRow]:
    """The rows whose media file cannot be decoded; see `media_check`."""
    return media_check.damaged(splits.by_name()) if "image" in splits.train.columns else []


def without(splits: Splits, found: Sequence[SkippedRow], data: Data, key: str, what: str) -> Splits:
    """The splits without the rows that were found.

    Args:
        found: ``index`` counts in ``splits`` as they are.
        key: of the recipe, for the message.
        what: is wrong with them, in a few words.

    Raises:
        DataError: they are more than the recipe leaves out, or all that a label or a split has.
    """
    if not found:
        return splits
    num_rows = sum(map(len, splits.by_name().values())) + len(splits.skipped)
    bad_rows.settle([*splits.skipped, *found], num_rows, data, f"{key}: {what}")
    return splits.without(found)


def _files_key(data: Data) -> str:
    return "data.dataset" if isinstance(data, HubData) else "data.files"
