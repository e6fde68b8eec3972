"""The recipe as JSON Schema, for editors that complete and check YAML: ``thawline schema``.

Owns what the types alone do not say: the docstrings of their fields, and what is looser in a file than in a
merged recipe (``extends`` may bring the required keys, a map that names no kind takes the inherited one).
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any

from launcher.recipe import Recipe, data, optimizers, recipe, sharding, slurm, stages, task
from launcher.recipe.merge import DISCRIMINATORS

SECTIONS = (task, data, optimizers, sharding, slurm, stages, recipe)
"""The modules that hold the recipe's types."""


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file."""
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    for name, definition in [*definitions.items(), ("Recipe", whole)]:
        for key, words in field_docstrings(name).items():
            if key in definition.get("properties", {}):
                definition["properties"][key]["description"] = words
    for holder in (whole, definitions["Stage"]):
        for key in DISCRIMINATORS.keys() & holder["properties"].keys():
            spot = holder["properties"][key]
            spot.pop("discriminator", None)
            spot["anyOf"] = spot.pop("oneOf")
            for reference in spot["anyOf"]:
                definitions[reference["$ref"].rpartition("/")[2]].pop("required", None)
    definitions["Model"].pop("required")
    words = "Path of a recipe, relative to this file, that this one is laid over: maps merge, lists replace."
    whole["properties"] = {"extends": {"type": "string", "description": words}, **whole["properties"]}
    whole["anyOf"] = [{"required": whole.pop("required")}, {"required": ["extends"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring that stands under it."""
    found: dict[str, dict[str, str]] = {}
    nodes = [node for module in SECTIONS for node in ast.parse(inspect.getsource(module)).body]
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                words = inspect.cleandoc(str(below.value.value))
                found.setdefault(node.name, {})[field.target.id] = words
    return found


def field_docstrings(model: str) -> dict[str, str]:
    """Field -> its docstring, of a model of a recipe and those it builds on."""
    [kind] = {getattr(section, model) for section in SECTIONS if hasattr(section, model)}
    bases = [base.__name__ for base in kind.__mro__ if base.__name__ in _docstrings()]
    return {key: words for base in reversed(bases) for key, words in _docstrings()[base].items()}
