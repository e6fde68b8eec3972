"""Looks at the model and the data, then plans: the way from a recipe to a `RunPlan`.

The model is built on the meta device from its configuration, so no weights are downloaded; the data is read for its
counts and labels, unless `data_survey` has done so a moment ago. What either shows to be wrong is told with the line of
the recipe that says otherwise, all at once. Called by ``thawline plan`` and by the first rank of a new run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from launcher import cpu_measurement, data_survey, models, phases, plan, stages, tasks, text_survey
from launcher.cluster import Cluster
from launcher.costs.peak import Activations, NotCounted
from launcher.data_survey import as_problem, batch_problems, with_line
from launcher.errors import EnvironmentProblem, Problem, RecipeError, UserError
from launcher.models import activation_bound, activations, long_texts, recompute
from launcher.models.flops import FlopMeter
from launcher.plan import assumed, fit, memory_plot, search, ways
from launcher.plan.data_facts import DataFacts
from launcher.plan.parameters import ModelFacts, groups, select
from launcher.recipe import ImageClassification, Lora, Recipe
from launcher.recipe.problems import Origins, unique
from launcher.text_survey import ANY_LENGTH
from launcher.typical_length import TypicalLength


@dataclass(frozen=True)
class Survey:
    """A plan, and what it was made from."""

    plan: plan.RunPlan
    model: ModelFacts
    count: fit.Count
    assumptions: list[str]
    """What was taken for granted because the hub could not be asked; see `plan.assumed`."""
    adapted: ways.Adapted
    """The same model with adapters."""

    def draw(self, path: Path) -> None:
        """Write a picture of the memory of each stage under each strategy; see `memory_plot.draw`."""
        bars = search.at_each_strategy(self.plan, self.model, self.count)
        memory_plot.draw(self.plan, bars, fit.rank_memory(self.plan.cluster), path)

    def shortage(self) -> str | None:
        """What to tell when a stage does not fit its GPUs; see `ways.shortage`."""
        return ways.shortage(self.plan, self.model, self.count, self.adapted)


def prepare(
    recipe: Recipe, recipe_dir: Path, cluster: Cluster, origins: Origins, data_facts: DataFacts | None = None
) -> plan.RunPlan:
    """Resolve a recipe for a cluster.

    Args:
        recipe: what is to be trained.
        recipe_dir: what its paths are relative to.
        cluster: on what.
        origins: where each of its keys was written.
        data_facts: what `data_survey` found a moment ago; None: the data is read now.

    Raises:
        RecipeError: the data or the model are not what the recipe says; a pattern matches nothing; sizes do not divide.
        EnvironmentProblem: the cluster lacks what the recipe asks for, or the hub cannot be reached.
    """
    return _look(recipe, recipe, recipe_dir, cluster, origins, None, data_facts).plan


@contextmanager
def foresee(
    recipe: Recipe,
    recipe_dir: Path,
    cluster: Cluster,
    origins: Origins,
    model_config: Path | None = None,
    data_facts: DataFacts | None = None,
) -> Iterator[Survey]:
    """As `prepare`, for looking alone: where the hub cannot be reached, what `plan.assumed` knows takes its place.

    Args:
        recipe, recipe_dir, cluster, origins, data_facts: see `prepare`.
        model_config: a config.json to take instead of the model's own.

    Raises:
        RecipeError, EnvironmentProblem: see `prepare`.
        UserError: ``model_config`` is none.
    """
    assumptions: list[str] = []
    with TemporaryDirectory() as folder:
        built = recipe
        if model_config or not _has_configuration(recipe, recipe_dir):
            config = assumed.configuration(recipe.model.source, model_config)
            if config is not None:
                (Path(folder) / "config.json").write_text(json.dumps(config))
                model = recipe.model.model_copy(update={"source": folder, "revision": None})
                built = recipe.model_copy(update={"model": model})
                origin = str(model_config) if model_config else "the table of configurations that thawline ships"
                assumptions.append(f"the sizes of {recipe.model.source} are those of {origin}")
        yield _look(recipe, built, recipe_dir, cluster, origins, assumptions, data_facts)


def _has_configuration(recipe: Recipe, recipe_dir: Path) -> bool:
    try:
        models.configuration(recipe.model, recipe.task, None, recipe_dir)
    except EnvironmentProblem:
        return False
    except UserError:  # `_look` tells it, with its line
        return True
    return True


def _look(
    recipe: Recipe,
    built: Recipe,
    recipe_dir: Path,
    cluster: Cluster,
    origins: Origins,
    assumptions: list[str] | None,
    data_facts: DataFacts | None,
) -> Survey:
    """``built`` is the recipe with the model that is looked at; ``assumptions`` is None where none may be made."""
    problems: list[Problem] = []
    if data_facts is None:
        phases.enter("reading data")
        data_facts = _data_facts(recipe, recipe_dir, problems, assumptions)
    phases.enter("planning")
    model_facts = _model_facts(built, recipe_dir, data_facts, problems)
    processor, task, lengths = None, None, ANY_LENGTH
    if model_facts and data_facts and built is recipe:
        processor, task = _checked_processor(recipe, recipe_dir, data_facts.labels, problems)
        if task is not None and "text" in data_facts.columns and data_facts.digests:  # or it was assumed
            data_facts, lengths = text_survey.look(recipe, recipe_dir, data_facts, processor, task, problems)
    cluster = cpu_measurement.measured(cluster)
    resolved: plan.RunPlan | None = None
    if model_facts and data_facts:
        try:
            resolved = plan.resolve(recipe, str(recipe_dir), cluster, model_facts, data_facts)
        except RecipeError as error:
            problems += error.problems
    else:
        problems += _stage_problems(recipe, cluster, model_facts)
    if problems or resolved is None:
        raise RecipeError(unique([with_line(problem, origins) for problem in problems]))
    assert model_facts, "a plan is resolved from them"
    told = {"notes": task.notes() if task else [], "warnings": _untrained_head(resolved, built, model_facts)}
    resolved = resolved.model_copy(update=told)
    module = models.outline(built.model, built.task, resolved.labels, recipe_dir)
    if refused := _checkpointing_problems(recipe, module):
        raise RecipeError([with_line(problem, origins) for problem in refused])
    count = counter(built, module, cluster, processor, lengths)
    labels = resolved.labels

    def adapted(lora: Lora) -> tuple[ModelFacts, fit.Count] | None:
        model = built.model.model_copy(update={"lora": lora})
        try:
            facts = models.facts(model, built.task, len(labels) if labels is not None else None, recipe_dir)
        except UserError:  # its layers have names that peft does not know, or it is torchvision's
            return None
        outline = models.outline(model, built.task, labels, recipe_dir)
        return facts, counter(built, outline, cluster, processor, lengths)

    return Survey(search.with_memory(resolved, model_facts, count), model_facts, count, assumptions or [], adapted)


def counter(
    recipe: Recipe, module: Any, cluster: Cluster, processor: Any, lengths: TypicalLength = ANY_LENGTH
) -> fit.Count:
    """What counts the activations of a stage, by a run of the model on fake tensors; remembers those that are alike.

    ``module`` is the model's outline, which it changes. Memory is that of the longest texts, work that of the usual
    ones, in proportion to ``lengths``.
    """
    found: dict[Any, Activations] = {}
    meter = FlopMeter()
    config = getattr(module, "config", None)
    device: activations.Device = "cuda" if cluster.gpus_per_node else "cpu"

    def count(stage: plan.StagePlan, length: int | None = None) -> Activations:
        settings, micro_size = stage.settings, stage.batch.micro_size
        tokens = length or recipe.data.max_length
        is_cast, checkpoints = stage.is_cast, settings.gradient_checkpointing is True
        key = (
            frozenset(stage.trained_names), micro_size, tokens, settings.precision, is_cast, checkpoints,
            settings.batch_norm,
        )  # fmt: skip
        if key not in found:
            if checkpoints and (refused := recompute.refusal(module)):
                raise NotCounted(refused)
            stages.apply(module, stage)
            stages.set_modes(module, stage)

            def inputs(tokens: int) -> dict[str, Any]:
                return activations.inputs_of(recipe.task, processor, micro_size, tokens, config)

            def of_length(tokens: int) -> Activations:
                return activations.count(
                    module, lambda: inputs(tokens), device, settings.precision, is_cast=is_cast,
                    checkpoints=checkpoints, meter=meter,
                )  # fmt: skip

            try:
                is_text = not isinstance(recipe.task, ImageClassification)
                counted = long_texts.counted(of_length, tokens, meter) if is_text else of_length(tokens)
            except NotCounted as error:
                _refuse_image_size(recipe, error, config)
                reason = str(error).partition(":")[0]  # what follows is from inside the library
                counted = activation_bound.bound(module, inputs(tokens), checkpoints=checkpoints, reason=reason)
            found[key] = replace(counted, work=counted.work.times(lengths.share(micro_size, tokens)))
        return found[key]

    return count


def _refuse_image_size(recipe: Recipe, error: NotCounted, config: Any) -> None:
    """Raise where the model's forward says that it takes images of one size only, and gets others."""
    said = str(error.__cause__)
    if not isinstance(recipe.task, ImageClassification) or not re.search("image size .* doesn't match model", said):
        return
    what, wanted = said.strip().splitlines()[0].rstrip("."), getattr(config, "image_size", None)
    if recipe.task.image_size is not None:
        raise UserError(f"task.image_size: {recipe.task.image_size}: {what}; remove the key, or choose another model")
    advice = f"set task.image_size: {wanted}" if isinstance(wanted, int) else "choose another model"
    raise UserError(f"model.source: {recipe.model.source!r} and its image processor differ: {what}; {advice}")


def _stage_problems(recipe: Recipe, cluster: Cluster, model_facts: ModelFacts | None) -> list[Problem]:
    """What can be said of the stages' batches and patterns while the data or the model is wrong itself."""
    problems = batch_problems(recipe, cluster.ranks)
    for stage in recipe.stages:
        try:
            if model_facts:
                groups(stage, model_facts)
        except RecipeError as error:
            problems += error.problems
    return problems


def _checkpointing_problems(recipe: Recipe, module: Any) -> list[Problem]:
    refused = recompute.refusal(module)
    asked = [stage.name for stage in recipe.stages if stage.gradient_checkpointing is True]
    return [Problem(f"stages.{name}.gradient_checkpointing", refused) for name in asked] if refused else []


def _data_facts(
    recipe: Recipe, recipe_dir: Path, problems: list[Problem], assumptions: list[str] | None
) -> DataFacts | None:
    try:
        return data_survey.facts(recipe, recipe_dir, problems)
    except EnvironmentProblem:
        facts = assumed.data_facts(recipe) if assumptions is not None else None
        if facts is None or assumptions is None:
            raise
        assumptions.append(f"the data has the {recipe.data.limit:,} rows of data.limit")
        return facts


def _model_facts(
    recipe: Recipe, recipe_dir: Path, data_facts: DataFacts | None, problems: list[Problem]
) -> ModelFacts | None:
    labels = data_facts.labels if data_facts else None
    # Without data the number of labels is unknown, and no parameter's name depends on it.
    num_labels = len(labels) if labels is not None else None if recipe.task.kind == "causal-lm" else 2
    try:
        return models.facts(recipe.model, recipe.task, num_labels, recipe_dir)
    except UserError as error:
        problems.append(as_problem(error, "model.source"))
        return None


def _checked_processor(
    recipe: Recipe, recipe_dir: Path, labels: list[str] | None, problems: list[Problem]
) -> tuple[Any, tasks.BoundTask | None]:
    """The model's processor and the task with it, if it and the number of positions fit; before any rank stumbles."""
    try:
        config = models.configuration(recipe.model, recipe.task, labels, recipe_dir)
        processor = models.processor(recipe.model, recipe.task, recipe_dir)
        return processor, tasks.bind(recipe.task, recipe.data, processor, labels, config)
    except UserError as error:
        problems.append(as_problem(error, "model.source"))
        return None, None


def _untrained_head(resolved: plan.RunPlan, built: Recipe, model_facts: ModelFacts) -> list[str]:
    """A warning of a head that starts at random and stays so."""
    head = select(["head"], model_facts)
    if any(stage.trained_names.intersection(head) for stage in resolved.stages):
        return []
    model, recipe_dir = built.model, Path(resolved.recipe_dir)
    if not models.is_head_new(model, built.task, resolved.labels, recipe_dir, model_facts.architecture):
        return []
    return [
        f"the head ({', '.join(model_facts.head)}) is new and no stage trains it, so the model's answers stay random "
        "ones; add head to a stage's train"
    ]
