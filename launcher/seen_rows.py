"""The rows as the model will see them, and the two lines that tell a run's data at its start.

Owns the way back from what a task hands to the model: tokens to text, with its special tokens, pixels to their shape
and range, an id to its label; and how that is shown: whatever stands in the data, each is one line that a terminal
survives. Changes nothing and draws no random number. `walk` says the lines before the first stage.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len

from launcher.data import Splits
from launcher.data.order import row_seeds
from launcher.data.rows import Rows
from launcher.plan import RunPlan
from launcher.tasks import Batch, BoundTask
from launcher.visible_text import both_ends, visible

LINE_CELLS = 160
"""Columns that a line takes at most; on a narrower terminal, as many as it has."""
LABELS_SHOWN = 12
NAME_CELLS = 24
"""Of a label's name, and of what a row is called."""
NO_TARGET = -100


@dataclass(frozen=True)
class SeenRow:
    """One row, read off the batch that the model gets."""

    split: str
    id: str
    label: str | None = None
    """The label's name; None for a task without labels, or a row without one."""
    input_ids: list[int] | None = None
    """The tokens, without padding; None for images."""
    text: str | None = None
    """The tokens as text, special ones too."""
    trained: list[bool] | None = None
    """Of each token, whether the loss counts its prediction; None where a label is predicted."""
    shape: tuple[int, ...] | None = None
    """Of the image: channels, height, width."""
    low: float | None = None
    """The image's least value, scaled and normalised."""
    high: float | None = None


def seen(
    rows: Rows, indices: Sequence[int], split: str, task: BoundTask, processor: Any, *, seeds: Sequence[int] | None
) -> list[SeenRow]:
    """The rows at ``indices``, each through the task alone.

    Args:
        processor: the tokenizer that reads tokens back; not used for images.
        seeds: of the training augmentation, one a row; None: none.
    """
    found = []
    for number, row in enumerate(rows.take(indices)):
        encoded = task.encode_rows([row], augment_seeds=None if seeds is None else [seeds[number]])
        found.append(_read_back(task.collate(encoded, [1.0]), split, task, processor))
    return found


def told(splits: Splits, task: BoundTask, processor: Any, plan: RunPlan) -> list[str]:
    """Two lines: the rows of each split with the labels' shares, and the first training row as in the first epoch."""
    seeds = row_seeds(plan.stages[0].settings.seed, 0, 0, [0])
    [first] = seen(splits.train, [0], "train", task, processor, seeds=seeds)
    cells = max(80, min(LINE_CELLS, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else LINE_CELLS
    return [data_line(splits, cells), row_line(first, plan.recipe.data.max_length, cells)]


def data_line(splits: Splits, cells: int = LINE_CELLS) -> str:
    """``data: 900 train and 100 validation rows; 3 labels: …``"""
    sizes = [(name, rows) for name in ("train", "validation", "test") if (rows := getattr(splits, name)) is not None]
    counted = [f"{len(rows):,} {name}" for name, rows in sizes]
    line = f"data: {', '.join(counted)} rows"
    if splits.labels is None:
        return line
    counts = np.bincount(splits.train.table["label"].to_numpy(), minlength=len(splits.labels))
    shares = sorted(zip(counts / counts.sum(), splits.labels, strict=True), key=lambda share: -share[0])
    line += f"; {len(shares)} labels in train: "
    return line + _shares(
        [f"{visible(name, NAME_CELLS)} {_percent(share)}" for share, name in shares], cells - cell_len(line)
    )


def row_line(row: SeenRow, max_length: int, cells: int = LINE_CELLS) -> str:
    """``first row (train, 0): label neg; 14 tokens: [CLS] …``"""
    line = f"first row ({row.split}, {visible(row.id, NAME_CELLS)}): "
    if row.label is not None:
        line += f"label {visible(row.label, NAME_CELLS)}; "
    if row.input_ids is not None:
        length = len(row.input_ids)
        cut = ", data.max_length" if length == max_length else ""
        predicted = f", {sum(row.trained)} predicted" if row.trained is not None else ""
        line += f"{length} token{'s' if length != 1 else ''}{cut}{predicted}: "
        return line + both_ends(row.text or "", max(30, cells - cell_len(line)))
    if row.shape is not None:
        line += f"image {' x '.join(map(str, row.shape))}, values {row.low:.3g} to {row.high:.3g}"
        if row.low == row.high:
            line += ": all pixels are alike"
    return line


def _read_back(batch: Batch, split: str, task: BoundTask, processor: Any) -> SeenRow:
    labels: list[str] | None = getattr(task, "labels", None)
    label = labels[int(batch.labels[0])] if labels and batch.labels.dim() == 1 and int(batch.labels[0]) >= 0 else None
    inputs, row_id = batch.model_inputs, batch.ids[0]
    if "input_ids" in inputs:
        is_token = inputs["attention_mask"][0].bool() if "attention_mask" in inputs else inputs["input_ids"][0] >= 0
        ids = inputs["input_ids"][0][is_token].tolist()
        text = processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        trained = None
        if batch.labels.dim() == 2:  # a token is predicted from those before it, and none stand before the first
            trained = [False, *(batch.labels[0][is_token] != NO_TARGET).tolist()[1:]]
        return SeenRow(split, row_id, label, ids, text, trained)
    pixels = next(iter(inputs.values()))[0]
    return SeenRow(split, row_id, label, shape=tuple(pixels.shape), low=float(pixels.min()), high=float(pixels.max()))


def _shares(words: list[str], cells: int) -> str:
    """As many as fit the line, the most common first; the rarest is always named."""
    for shown in range(min(len(words), LABELS_SHOWN), 0, -1):
        listed = ", ".join(words[:shown])
        if shown < len(words):
            listed += f", … and {len(words) - shown} more (the rarest: {words[-1]})"
        if cell_len(listed) <= cells:
            break
    return listed


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 or not share else "<0.1%"
