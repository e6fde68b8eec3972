"""Where in a recipe a stage stands, in the dotted paths that problems are told with. Called by the rules."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.recipe import Recipe
from launcher.recipe.stages import Stage


def where_of(recipe: Recipe, index: int) -> str:
    """Dotted path of a stage: by name, by position where the name is not unique. -1 is the last."""
    names = [stage.name for stage in recipe.stages]
    return f"stages.{names[index] if names.count(names[index]) == 1 else range(len(names))[index]}"


def stages(recipe: Recipe) -> Iterator[tuple[str, Stage]]:
    return ((where_of(recipe, index), stage) for index, stage in enumerate(recipe.stages))
