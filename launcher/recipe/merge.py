"""Puts the parts of a recipe together, as trees: ``extends``, ``--set``, the settings that stages take from the top.

Owns what merging means: maps merge, everything else replaces, and a map that names another kind than the one below it
replaces it too. Refuses a ``--set`` that leads nowhere; whether the keys exist is for the types to say. Pure functions
over `yaml_tree.Tree`, called by `recipe.reading`.
"""

from __future__ import annotations

from typing import Any

from launcher.errors import Problem
from launcher.recipe import Recipe, StageSettings
from launcher.recipe.yaml_tree import Origin, Tree, parse, shortened

DISCRIMINATORS: dict[str, str] = {
    name: field.discriminator for name, field in Recipe.model_fields.items() if isinstance(field.discriminator, str)
}
"""Key of a recipe whose map comes in several kinds -> the key inside it that says which."""
DEFAULT_KINDS = {"optimizer": "adamw", "schedule": "linear"}
"""What is meant when neither the map nor the one it is merged over names a kind."""
SET = Origin("--set", None)


def merge(base: Tree, over: Tree, key: str = "") -> Tree:
    """``over`` laid over ``base``, which stands under ``key``; neither is changed."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    tag = DISCRIMINATORS.get(key)
    if tag and tag in over.value and _kind(over, key) != _kind(base, key):
        return over
    merged = dict(base.value)
    for name, child in over.value.items():
        merged[name] = merge(merged[name], child, name) if name in merged else child
    return Tree(merged, over.origin)


def _kind(tree: Tree | None, key: str) -> Any:
    named = tree.child(DISCRIMINATORS[key]) if tree else None
    return named.value if named else DEFAULT_KINDS.get(key)


def stage_names(recipe: Tree) -> list[str | None]:
    """The names of the stages in order; None for one without a proper name."""
    stages = recipe.child("stages")
    listed = stages.value if stages and isinstance(stages.value, list) else []
    names = [stage.child("name") for stage in listed]
    return [name.value if name and isinstance(name.value, str) else None for name in names]


def spread(recipe: Tree) -> Tree:
    """The recipe with the kinds that were left out, and with each stage merged over the settings at the top."""
    if not isinstance(recipe.value, dict):
        return recipe
    top = {key: _with_kind(child, key) for key, child in recipe.value.items()}
    stages = top.get("stages")
    if stages and isinstance(stages.value, list):
        settings = {key: top[key] for key in StageSettings.model_fields if key in top}
        spread_stages = [_spread_stage(stage, settings) for stage in stages.value]
        top["stages"] = Tree(spread_stages, stages.origin)
    return Tree(top, recipe.origin)


def _spread_stage(stage: Tree, settings: dict[str, Tree]) -> Tree:
    if not isinstance(stage.value, dict):
        return stage
    merged = merge(Tree(settings, stage.origin), stage)
    assert isinstance(merged.value, dict)
    own_first = [*stage.value, *(key for key in merged.value if key not in stage.value)]
    return Tree({key: _with_kind(merged.value[key], key) for key in own_first}, stage.origin)


def _with_kind(tree: Tree, key: str) -> Tree:
    if key in DEFAULT_KINDS and isinstance(tree.value, dict) and DISCRIMINATORS[key] not in tree.value:
        return Tree({DISCRIMINATORS[key]: Tree(DEFAULT_KINDS[key], tree.origin), **tree.value}, tree.origin)
    return tree


# --- overrides --------------------------------------------------------------------------------------------------------
def override(recipe: Tree, assignment: str) -> list[Problem]:
    """Applies one ``a.b=c`` to the recipe in place; says what is wrong with it.

    Maps on the way are made where there are none. A map replaces a map. Stages go by name or by position from 0.
    """
    path, equals, text = assignment.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        example = "--set optimizer.learning_rate=1e-4"
        return [Problem("", f"--set {assignment!r} is not of the form KEY.KEY=VALUE, as in {example}", SET.file)]
    if path.split(".")[0] == "extends":
        return [Problem("extends", "cannot be set with --set, which comes after it; write it in the file", SET.file)]
    value, problems = parse(text, SET.file, has_lines=False)
    if problems:
        return [Problem(path, f"value {shortened(text)!r}: {problem.message}", SET.file) for problem in problems]
    try:
        _assign(recipe, _keys(recipe, path), value or Tree(None, SET))
    except _LeadsNowhereError as error:
        return [Problem(path, str(error), SET.file)]
    return []


class _LeadsNowhereError(Exception):
    """The path of a ``--set`` cannot be followed; never leaves this module."""


def _keys(recipe: Tree, path: str) -> list[str | int]:
    """The keys of a dotted path; a stage's name or number becomes its position."""
    keys = path.split(".")
    stages = recipe.child("stages")
    if keys[0] != "stages" or len(keys) == 1:
        return list(keys)
    if stages is None or not isinstance(stages.value, list):
        raise _LeadsNowhereError("the recipe has no list of stages to set it in; set stages=[...] whole")
    names = stage_names(recipe)
    for taken in range(len(keys) - 1, 0, -1):  # a stage's name may contain dots: the longest that fits
        name = ".".join(keys[1 : 1 + taken])
        if names.count(name) > 1:
            raise _LeadsNowhereError(f"{names.count(name)} stages are named {name!r}; say which by position, from 0")
        if name in names:
            return ["stages", names.index(name), *keys[1 + taken :]]
    if keys[1] in map(str, range(len(names))):
        return ["stages", int(keys[1]), *keys[2:]]
    known = ", ".join(f"{name} ({index})" for index, name in enumerate(names))
    raise _LeadsNowhereError(f"no stage {keys[1]!r}; the stages are {known}")


def _assign(recipe: Tree, keys: list[str | int], value: Tree) -> None:
    spot = recipe
    for depth, key in enumerate(keys[:-1]):
        below = spot.child(key)
        if (below is None or below.value is None) and isinstance(spot.value, dict) and isinstance(key, str):
            below = spot.value[key] = Tree({}, SET)
        if below is None or not isinstance(below.value, dict | list):
            held = "a list without it" if isinstance(spot.value, list) else f"{below.value!r}" if below else "no map"
            where = ".".join(map(str, keys[: depth + 1]))
            raise _LeadsNowhereError(f"{where} is {held}, so nothing can be set inside it")
        spot = below
    last = keys[-1]
    if isinstance(spot.value, list):
        if not isinstance(last, int):
            raise _LeadsNowhereError(f"{'.'.join(map(str, keys[:-1]))} is a list; set it whole, as in [a, b]")
        spot.value[last] = value
    elif isinstance(spot.value, dict):
        _drop_other_kind(recipe, spot, keys, value)
        spot.value[str(last)] = value


def _drop_other_kind(recipe: Tree, spot: Tree, keys: list[str | int], value: Tree) -> None:
    """Setting another kind replaces the map, except what ``--set`` itself has put there."""
    key = str(keys[-2]) if len(keys) > 1 else ""
    if DISCRIMINATORS.get(key) != keys[-1] or not isinstance(spot.value, dict):
        return
    inherits = keys[0] == "stages" and spot.child(DISCRIMINATORS[key]) is None
    if value.value != _kind(recipe.child(key) if inherits else spot, key):
        spot.value = {name: child for name, child in spot.value.items() if child.origin == SET}
