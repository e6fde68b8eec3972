"""Rules of ``model.lora``: what its keys and the stages must be to one another. `rules` checks them with its own.

Which layers there are to adapt only the model knows: see `models.adapters`.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Problem
from launcher.recipe.places import stages
from launcher.recipe.recipe import Recipe

ALIAS = "lora"
"""What ``train`` and ``learning_rates`` call the parameters of the adapters."""


def adapters_are_there_to_train(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.lora is not None:
        return
    for where, stage in stages(recipe):
        message = "'lora' names the adapters of model.lora, which is not there; set model.lora: {rank: 16}, or drop it"
        if ALIAS in stage.train:
            yield Problem(f"{where}.train.{stage.train.index(ALIAS)}", message)
        if ALIAS in stage.learning_rates:
            yield Problem(f"{where}.learning_rates.{ALIAS}", message)


def adapters_are_for_transformers(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.lora is not None and recipe.model.source.startswith("torchvision:"):
        message = f"adapters are for models of transformers, and model.source is {recipe.model.source!r}; take lora out"
        yield Problem("model.lora", f"{message}, or name a hub id or a folder")


RULES = (adapters_are_there_to_train, adapters_are_for_transformers)
