"""Looks at the data, and at what a recipe gets wrong without a model: before torch is imported or any rank started.

Owns how a mistake in the data becomes a problem of the recipe, with file and line. Data of the hub is left to the
`survey`, since its library takes seconds to import. Called by ``thawline plan`` and by ``thawline run`` for a new run,
which hand on what was found, so that a plan is made without reading the data once more; and by `survey` elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher import plan
from launcher.errors import Problem, RecipeError, UserError
from launcher.plan.data_facts import DataFacts
from launcher.recipe import Recipe
from launcher.recipe.data import HubData
from launcher.recipe.problems import Origins, unique

_KEY = re.compile(r"(?:data|task|model|batch)(?:\.\w+)+")
"""A dotted path at the start of a message."""


def look(recipe: Recipe, recipe_dir: Path, ranks: int, origins: Origins) -> DataFacts | None:
    """What the plan needs to know of the data; None for the hub's.

    Raises:
        RecipeError: the data is not what the recipe says, or a batch does not divide by the ranks; all of it at once.
    """
    if isinstance(recipe.data, HubData):
        return None
    problems: list[Problem] = []
    found = facts(recipe, recipe_dir, problems)
    problems += batch_problems(recipe, ranks)
    if problems:
        raise RecipeError(unique([with_line(problem, origins) for problem in problems]))
    return found


def facts(recipe: Recipe, recipe_dir: Path, problems: list[Problem]) -> DataFacts | None:
    """What the plan needs to know of the data; None, and a problem more, where it is not what the recipe says.

    Raises: EnvironmentProblem when it is the hub's, which cannot be reached.
    """
    import pyarrow  # here, so that a recipe that is wrong by itself is told before this is imported

    from launcher.data.checking import load_checked

    try:
        return load_checked(recipe.data, recipe.task, recipe_dir).facts()
    except UserError as error:
        problems.append(as_problem(error, "data"))
        return None
    finally:
        pyarrow.default_memory_pool().release_unused()  # who waits for ranks needs none of it


def batch_problems(recipe: Recipe, ranks: int) -> list[Problem]:
    """The stages whose batches do not divide."""
    problems: list[Problem] = []
    for stage in recipe.stages:
        try:
            plan.resolve_batch(stage, ranks)
        except RecipeError as error:
            problems += error.problems
    return problems


def as_problem(error: UserError, otherwise: str) -> Problem:
    """The problem of the key that the message begins with, or of the map it can only come from."""
    message = str(error)
    found = _KEY.match(message)
    path = found[0] if found else otherwise
    return Problem(path, message.removeprefix(path).removeprefix(":").strip())


def with_line(problem: Problem, origins: Origins) -> Problem:
    """The problem with the file and line of its key, unless it has them."""
    return problem if problem.file else origins.problem(problem.path, problem.message)
