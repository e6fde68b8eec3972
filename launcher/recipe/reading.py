"""Reads a recipe: file, what it extends and ``--set`` in; a checked `Recipe`, or all its problems at once, out.

Owns the order of things: read (`yaml_tree`), merge (`recipe.merge`), check the types (`recipe`, reported by
`recipe.problems`), check the rules (`rules`). Called by the commands and the worker.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launcher.errors import Problem, RecipeError
from launcher.recipe import Recipe, StageSettings
from launcher.recipe.merge import merge, override, spread
from launcher.recipe.problems import Origins, Parts, dotted, problems_of, pruned, unique
from launcher.recipe.rules import check
from launcher.recipe.schema import schema
from launcher.recipe.yaml_tree import Tree, parse, to_yaml

__all__ = ["dump", "load", "load_with_origins", "raw", "schema", "to_yaml"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with ``a.b=c`` overrides applied.

    Raises:
        RecipeError: with every problem of the file, of what it extends and of the overrides.
    """
    return load_with_origins(path, overrides)[0]


def load_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Origins]:
    """`load`, and where each key was written, for problems that only the model or the data shows.

    Raises:
        RecipeError: as `load`.
    """
    written, problems = _merged(path, overrides)
    if written is None:
        raise RecipeError(unique(problems))
    whole = spread(written)
    origins = Origins(written, whole)
    recipe, found = _checked(whole, origins)
    unread = {problem.path for problem in problems}  # what could not be read has no value to be wrong
    problems = unique([*problems, *(problem for problem in found if problem.path not in unread)])
    if problems or recipe is None:
        raise RecipeError(problems)
    return recipe, origins


def raw(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe as one map, without ``extends`` and with the overrides, its stages as they were written.

    Loading `to_yaml` of it gives the same recipe. Relative paths in it stay as they are.

    Raises:
        RecipeError: as `load`.
    """
    load(path, overrides)
    written, _ = _merged(path, overrides)
    assert written is not None
    plain = written.plain()
    assert isinstance(plain, dict)
    return plain


def dump(recipe: Recipe) -> str:
    """The recipe as YAML: what was set at the top, and every setting of every stage. Loading it gives an equal one."""
    plain = recipe.model_dump(mode="json", exclude_unset=True)
    plain["stages"] = [
        {
            **stage.model_dump(mode="json", exclude_unset=True),
            **stage.model_dump(mode="json", include=set(StageSettings.model_fields)),
        }
        for stage in recipe.stages
    ]
    return to_yaml(plain)


def _merged(path: str | Path, overrides: Sequence[str]) -> tuple[Tree | None, list[Problem]]:
    """The file over what it extends, under the overrides; None when one of the files cannot be read."""
    problems: list[Problem] = []
    tree = _read(Path(path), [], problems)
    if tree is None:
        return None, problems
    for assignment in overrides:
        problems += override(tree, assignment)
    return tree, problems


def _checked(whole: Tree, origins: Origins) -> tuple[Recipe | None, list[Problem]]:
    """The recipe and its problems. The rules look at a recipe of wrong types too, at what is right in it."""
    problems: list[Problem] = []
    places: list[Parts] = []
    plain = whole.plain()
    for _ in range(3):  # taking wrong values out can bring others to light, such as an alternative of a union
        try:
            recipe = Recipe.model_validate(plain)
        except ValidationError as error:
            found, here = problems_of(error, whole, origins)
            if not places:
                problems = found
            places += here
            plain = pruned(whole, places)
        else:
            break
    else:
        return None, problems
    by_rule = [problem for problem in check(recipe) if not _depends_on(problem.path, places, whole)]
    problems += [origins.problem(problem.path, problem.message) for problem in by_rule]
    return recipe, problems


def _depends_on(path: str, places: Sequence[Parts], whole: Tree) -> bool:
    """Whether a rule's problem may come of a wrong value having been taken out, in or beside the key it is about."""
    outer = path.rpartition(".")[0]
    taken = [dotted(place, whole) for place in places]
    return any(place.startswith(path + ".") or place.rpartition(".")[0] == outer for place in taken)


# --- files ------------------------------------------------------------------------------------------------------------
def _read(path: Path, chain: list[Path], problems: list[Problem], asker: Problem | None = None) -> Tree | None:
    """The tree of a file, over the one it extends. ``chain``: the files that lead here; ``asker``: where they do."""
    shown = str(path)
    if path.resolve() in [one.resolve() for one in chain]:
        assert asker is not None
        circle = " -> ".join(one.name for one in [*chain, path])
        problems.append(Problem(asker.path, f"goes in a circle: {circle}; take one out", asker.file, asker.line))
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(Problem("", f"byte {error.start} is not UTF-8; save the file as UTF-8", shown, line))
        return None
    except OSError as error:
        problems.append(_unreadable(path, error, asker))
        return None
    tree, found = parse(text, shown)
    problems += found
    if tree is None or not isinstance(tree.value, dict):
        if not found:
            what = "is empty" if tree is None else "is not a map of keys to values"
            needs = "it needs at least name, task, model, data and stages"
            problems.append(Problem("", f"the recipe {what}; {needs}", shown, tree.origin.line if tree else 1))
        return None
    base = tree.value.pop("extends", None)
    if base is None or base.value is None:
        return tree
    if not isinstance(base.value, str) or not base.value:
        message = f"{base.plain()!r} is not allowed; it takes one path, relative to this file"
        problems.append(Problem("extends", message, shown, base.origin.line))
        return None
    here = Problem("extends", "", shown, base.origin.line)
    below = _read(Path(os.path.normpath(path.parent / base.value)), [*chain, path], problems, here)
    return merge(below, tree) if below else None


def _unreadable(path: Path, error: OSError, asker: Problem | None) -> Problem:
    folder = path.parent
    names = sorted(one.name for one in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {str(folder / near[0])!r}?" if near else f"; {folder} has {', '.join(names) or 'no recipe'}"
    what = "is a folder, not a file" if path.is_dir() else (error.strerror or str(error)).lower()
    message = f"recipe {str(path)!r} cannot be read: {what}{'' if path.is_dir() else hint}"
    return Problem(asker.path, message, asker.file, asker.line) if asker else Problem("", message)
