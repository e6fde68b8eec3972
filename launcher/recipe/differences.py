"""Where two recipes differ, in words: a run goes on with the one it began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.recipe import Recipe


def between(before: Recipe, after: Recipe) -> list[str]:
    """``path: old in the run, new in the recipe`` for each value that differs; stages go by name.

    What a stage only takes over from the recipe's top is said once, at the top.
    """
    old, new = (_by_stage_name(recipe) for recipe in (before, after))
    for side in (old, new):
        for part in (side, *side["stages"].values()):
            del part["slurm"]  # where it waits and runs changes nothing in what is trained
    if list(old["stages"]) != list(new["stages"]):
        listed = [", ".join(side["stages"]) for side in (old, new)]
        return [f"stages: {listed[0]} in the run, {listed[1]} in the recipe"]
    stages = old.pop("stages"), new.pop("stages")
    found = dict(_leaves(old, new))
    for name in stages[0]:
        inside = dict(_leaves(stages[0][name], stages[1][name]))
        own = {path: pair for path, pair in inside.items() if found.get(path) != pair}
        found |= {f"stages.{name}.{path}": pair for path, pair in own.items()}
    return [f"{path}: {was!r} in the run, {now!r} in the recipe" for path, (was, now) in found.items()]


def _by_stage_name(recipe: Recipe) -> dict[str, Any]:
    plain = recipe.model_dump(mode="json")
    return plain | {"stages": {stage["name"]: stage for stage in plain["stages"]}}


def _leaves(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _leaves(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}", (was, now)
