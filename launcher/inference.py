"""Using what a run exported: measure it on a split of its data, or let it answer new inputs.

Owns the two commands ``evaluate`` and ``predict``. They load ``RUN/model`` as any user would, not the checkpoints, so a
figure they print is the exported model's own. One process, on the GPU if there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import data, hub_access, prediction_inputs, tasks
from launcher.data import bad_rows, media_check
from launcher.data.batches import evaluation_batches
from launcher.errors import DataError, UserError
from launcher.evaluation import evaluate as measure
from launcher.export import Export, load_export
from launcher.plan import RunPlan
from launcher.plan.saved import read_plan
from launcher.recipe import ImageClassification
from launcher.recipe.data import Data
from launcher.run_dir import RunDir
from launcher.tasks import BoundTask, text_check

log = logging.getLogger(__name__)
ROWS_AT_ONCE = 32


def evaluate(run_dir: RunDir, split: str = "validation") -> dict[str, float]:
    """Metrics of the exported model on ``train``, ``validation`` or ``test``.

    Raises:
        UserError: no such split, or the run has exported nothing yet.
    """
    plan = read_plan(run_dir)
    module, task, _ = _loaded(run_dir, plan)
    recipe = plan.recipe
    hub_access.stay_offline_if_unreachable(recipe)
    splits = data.load(recipe.data, recipe.task, Path(plan.recipe_dir), plan.data.skipped)
    if found := splits.facts().differences(plan.data):
        raise UserError(
            f"the data is not what the run was planned with: {'; '.join(found)}; restore it to evaluate on it"
        )
    rows = {"train": splits.train, "validation": splits.validation, "test": splits.test}.get(split)
    if rows is None:
        there = [name for name in ("train", "validation", "test") if getattr(splits, name) is not None]
        raise UserError(f"--split {split}: the data of {run_dir.path} has no such split; it has: {', '.join(there)}")
    size = plan.stages[-1].settings.evaluate.micro_size or ROWS_AT_ONCE
    batches = evaluation_batches(rows, task, rank=0, ranks=1, micro_size=size)
    return measure(lambda inputs: _logits(module(**inputs)), batches, task, _device())


@dataclass(frozen=True)
class Predictions:
    """The answers to some inputs, computed as they are asked for."""

    columns: list[str]
    """All columns that the inputs' files have of their own."""
    answers: Iterator[tuple[dict[str, Any], dict[str, Any]]]
    """Each answer, and the columns of its input's file."""


def predict(run_dir: RunDir, inputs: Sequence[str]) -> Predictions:
    """The exported model's answer to each input: a text or each text of a file; an image, each of a folder or a table.

    Raises:
        UserError: the run has exported nothing yet, or an input cannot be read.
    """
    plan = read_plan(run_dir)
    settings, is_image = plan.recipe.data, isinstance(plan.recipe.task, ImageClassification)
    if is_image:
        rows = prediction_inputs.image_rows(inputs, settings)
        bad = media_check.damaged_values([row["image"] for row in rows], [row["id"] for row in rows])
        rows = _without(bad, rows, settings, "images cannot be read")
    else:
        rows = prediction_inputs.text_rows(inputs, settings, is_pair="text_pair" in plan.data.columns)
    columns = list(dict.fromkeys(name for row in rows for name in row[prediction_inputs.OWN]))
    module, task, exported = _loaded(run_dir, plan)
    if not is_image:
        is_classified = plan.recipe.task.kind == "text-classification"
        bad = text_check.bad_values(
            rows, exported.processor, exported.config, settings.max_length, is_classified=is_classified
        )
        rows = _without(bad, rows, settings, "texts cannot be taken by the model")
    return Predictions(columns, _answers(rows, module, task))


def _without(bad: dict[int, str], rows: list[dict[str, Any]], settings: Data, what: str) -> list[dict[str, Any]]:
    """The other rows; all are looked at before the first answer.

    Args:
        bad: place among ``rows`` -> what is wrong.

    Raises:
        DataError: there are some, and the run's recipe does not say ``on_bad_row: skip``.
    """
    if not bad:
        return rows
    lines = [f"{len(bad):,} of {len(rows):,} {what}:"]
    lines += [f"  {rows[place]['id']}: {why}" for place, why in list(bad.items())[: bad_rows.NAMED]]
    lines += [f"  … and {len(bad) - bad_rows.NAMED:,} more"] if len(bad) > bad_rows.NAMED else []
    if settings.on_bad_row == "error" or len(bad) == len(rows):
        raise DataError("\n".join([*lines, "repair them, or leave them out of what you ask for"]))
    log.warning("%s", "\n".join([*lines, "they get no answer: the run's recipe says data.on_bad_row: skip"]))
    return [row for place, row in enumerate(rows) if place not in bad]


def _answers(
    rows: list[dict[str, Any]], module: nn.Module, task: BoundTask
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[begin : begin + ROWS_AT_ONCE]
        batch = task.collate(task.encode_rows(some, augment_seeds=None), [1.0] * len(some)).to(_device())
        with torch.no_grad():
            answers = task.decode(_logits(module(**batch.model_inputs)), batch)
        yield from zip(answers, (row[prediction_inputs.OWN] for row in some), strict=True)


def _loaded(run_dir: RunDir, plan: RunPlan) -> tuple[nn.Module, BoundTask, Export]:
    if not run_dir.model.is_dir():
        raise UserError(
            f"{run_dir.path} has no model/ yet; `thawline status {run_dir.path}` says where it stands, "
            "`thawline resume` finishes it"
        )
    exported = load_export(run_dir.model)
    recipe = plan.recipe
    task = tasks.bind(recipe.task, recipe.data, exported.processor, exported.labels, exported.config)
    return exported.module.to(_device()), task, exported


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _logits(outputs: Any) -> torch.Tensor:
    logits: torch.Tensor = getattr(outputs, "logits", outputs)
    return logits
