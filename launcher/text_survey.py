"""What the model's tokenizer shows of texts while a run is planned: those it cannot take, and how long the others are.

Called by `survey`, once the data and the processor are known to be right by themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher import data, models, tasks
from launcher.data.checking import without
from launcher.data_survey import as_problem
from launcher.errors import Problem, UserError
from launcher.plan.data_facts import DataFacts
from launcher.recipe import Recipe
from launcher.tasks import text_check
from launcher.typical_length import TypicalLength

ANY_LENGTH = TypicalLength([])
"""Where no rows were looked at."""


def look(
    recipe: Recipe, recipe_dir: Path, facts: DataFacts, processor: Any, task: tasks.BoundTask, problems: list[Problem]
) -> tuple[DataFacts | None, TypicalLength]:
    """The data's facts without the texts that the model cannot take, and how long the others are.

    None, and a problem more, where such texts are refused.
    """
    try:
        splits = data.load(recipe.data, recipe.task, recipe_dir, facts.skipped)
        config = models.configuration(recipe.model, recipe.task, facts.labels, recipe_dir)
        is_classified = recipe.task.kind == "text-classification"
        length = recipe.data.max_length
        found = text_check.bad_texts(splits.by_name(), processor, config, length, is_classified=is_classified)
        if found:
            splits = without(splits, found, recipe.data, "data.columns.text", text_check.WHAT)
            facts = splits.facts()
    except UserError as error:
        problems.append(as_problem(error, "data"))
        return None, ANY_LENGTH
    return facts, _lengths(task, splits, problems) if not problems else ANY_LENGTH


def _lengths(task: tasks.BoundTask, splits: data.Splits, problems: list[Problem]) -> TypicalLength:
    try:
        return TypicalLength.of(task, splits.train)
    except UserError as error:  # a token for which the model has no embedding
        problems.append(as_problem(error, "model.source"))
        return ANY_LENGTH
