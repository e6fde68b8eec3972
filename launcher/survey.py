"""Looks at the model and the data, then plans: the way from a recipe to a `RunPlan`.

The model is built on the meta device from its configuration, so no weights are downloaded; the data is read for its
counts and labels. What either shows to be wrong is told with the line of the recipe that says otherwise, all at once.
Called by the command line and, when a run was not started by it, by the first worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import activations, data, fit, models, plan, stages, tasks
from launcher.cluster import Cluster
from launcher.data_facts import DataFacts
from launcher.errors import Problem, RecipeError, UserError
from launcher.memory import Activations
from launcher.parameters import ModelFacts, groups
from launcher.recipe import Recipe
from launcher.recipe_problems import Origins, unique

_KEY = re.compile(r"(?:data|task|model|batch)(?:\.\w+)+")
"""A dotted path at the start of a message."""


@dataclass(frozen=True)
class Survey:
    """A plan, and what it was made from."""

    plan: plan.RunPlan
    model: ModelFacts
    count: fit.Count

    def shortage(self) -> str | None:
        """What to tell when a stage does not fit its GPUs; see `fit.shortage`."""
        return fit.shortage(self.plan, self.model, self.count)


def prepare(recipe: Recipe, recipe_dir: Path, cluster: Cluster, origins: Origins) -> plan.RunPlan:
    """Resolve a recipe for a cluster; see `look`."""
    return look(recipe, recipe_dir, cluster, origins).plan


def look(recipe: Recipe, recipe_dir: Path, cluster: Cluster, origins: Origins) -> Survey:
    """Resolve a recipe for a cluster.

    Raises:
        RecipeError: the data or the model are not what the recipe says; a pattern matches nothing; sizes do not divide.
        EnvironmentProblem: the cluster lacks what the recipe asks for, or the hub cannot be reached.
    """
    problems: list[Problem] = []
    data_facts = _data_facts(recipe, recipe_dir, problems)
    model_facts = _model_facts(recipe, recipe_dir, data_facts, problems)
    processor = (
        _checked_processor(recipe, recipe_dir, data_facts.labels, problems) if model_facts and data_facts else None
    )
    resolved: plan.RunPlan | None = None
    if model_facts and data_facts:
        try:
            resolved = plan.resolve(recipe, str(recipe_dir), cluster, model_facts, data_facts)
        except RecipeError as error:
            problems += error.problems
    else:
        problems += _stage_problems(recipe, cluster, model_facts)
    if problems or resolved is None:
        raise RecipeError(unique([_with_line(problem, origins) for problem in problems]))
    assert model_facts, "a plan is resolved from them"
    count = counter(recipe, recipe_dir, cluster, resolved.labels, processor)
    return Survey(fit.with_memory(resolved, model_facts, count), model_facts, count)


def counter(recipe: Recipe, recipe_dir: Path, cluster: Cluster, labels: list[str] | None, processor: Any) -> fit.Count:
    """What counts the activations of a stage: a run of the model on fake tensors, remembered for stages that are alike."""
    found: dict[Any, Activations] = {}

    def count(stage: plan.StagePlan) -> Activations:
        settings, micro_size = stage.settings, stage.batch.micro_size
        is_cast = stage.zero_stage > 0
        key = (frozenset(stage.trained_names), micro_size, settings.precision, is_cast, settings.batch_norm)
        if key not in found:
            module = models.skeleton(recipe.model, recipe.task, labels, recipe_dir)
            stages.apply(module, stage)
            stages.set_modes(module, stage)
            found[key] = activations.count(
                module,
                lambda: activations.inputs_of(recipe.task, processor, micro_size, recipe.data.max_length),
                "cuda" if cluster.gpus_per_node else "cpu",
                settings.precision,
                is_cast=is_cast,
            )
        return found[key]

    return count


def _stage_problems(recipe: Recipe, cluster: Cluster, model_facts: ModelFacts | None) -> list[Problem]:
    """What can be said of the stages' batches and patterns while the data or the model is wrong itself."""
    problems: list[Problem] = []
    for stage in recipe.stages:
        try:
            plan.resolve_batch(stage, cluster.ranks)
        except RecipeError as error:
            problems += error.problems
        try:
            if model_facts:
                groups(stage, model_facts)
        except RecipeError as error:
            problems += error.problems
    return problems


def _data_facts(recipe: Recipe, recipe_dir: Path, problems: list[Problem]) -> DataFacts | None:
    try:
        return data.load(recipe.data, recipe.task, recipe_dir).facts()
    except UserError as error:
        problems.append(_as_problem(error, "data"))
        return None


def _model_facts(
    recipe: Recipe, recipe_dir: Path, data_facts: DataFacts | None, problems: list[Problem]
) -> ModelFacts | None:
    labels = data_facts.labels if data_facts else None
    # Without data the number of labels is unknown, and no parameter's name depends on it.
    num_labels = len(labels) if labels is not None else None if recipe.task.kind == "causal-lm" else 2
    try:
        return models.facts(recipe.model, recipe.task, num_labels, recipe_dir)
    except UserError as error:
        problems.append(_as_problem(error, "model.source"))
        return None


def _checked_processor(recipe: Recipe, recipe_dir: Path, labels: list[str] | None, problems: list[Problem]) -> Any:
    """The model's processor, if it and the number of positions fit the task; before any rank stumbles over it."""
    try:
        config = models.configuration(recipe.model, recipe.task, labels, recipe_dir)
        processor = models.processor(recipe.model, recipe.task, recipe_dir)
        tasks.bind(recipe.task, recipe.data, processor, labels, config)
    except UserError as error:
        problems.append(_as_problem(error, "model.source"))
        return None
    return processor


def _as_problem(error: UserError, otherwise: str) -> Problem:
    """The problem of the key that the message begins with, or of the map it can only come from."""
    message = str(error)
    found = _KEY.match(message)
    path = found[0] if found else otherwise
    return Problem(path, message.removeprefix(path).removeprefix(":").strip())


def _with_line(problem: Problem, origins: Origins) -> Problem:
    return problem if problem.file else origins.problem(problem.path, problem.message)
