"""Looks at the model and the data, then plans: the way from a recipe to a `RunPlan`.

The model is built on the meta device from its configuration, so no weights are downloaded; the data is read for its
counts and labels. Called by the command line and, when a run was not started by it, by the first worker.
"""

from __future__ import annotations

from pathlib import Path

from launcher import data, models, plan
from launcher.cluster import Cluster
from launcher.recipe import Recipe


def prepare(recipe: Recipe, recipe_dir: Path, cluster: Cluster) -> plan.RunPlan:
    """Resolve a recipe for a cluster.

    Raises:
        UserError: the data or the model are not what the recipe says; a pattern matches nothing; sizes do not divide.
        EnvironmentProblem: the cluster lacks what the recipe asks for.
    """
    splits = data.load(recipe.data, recipe.task, recipe_dir)
    data_facts = splits.facts()
    num_labels = len(data_facts.labels) if data_facts.labels is not None else None
    model_facts = models.facts(recipe.model, recipe.task, num_labels, recipe_dir)
    return plan.resolve(recipe, str(recipe_dir), cluster, model_facts, data_facts)
