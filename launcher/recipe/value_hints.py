"""The likely slip behind a value of the wrong type, for the message about it. Called by `recipe.problems`."""

from __future__ import annotations

from launcher.recipe import foreign_keys
from launcher.recipe.allowed import Slot, in_words, models
from launcher.recipe.merge import SET
from launcher.recipe.types import LARGEST_INT
from launcher.recipe.yaml_tree import Tree, shortened


def likely_slip(key: str, tree: Tree, slot: Slot | None) -> str:
    """The likely slip behind a value of the wrong type."""
    if slot is None:
        return ""
    allowed = in_words(slot)
    if isinstance(tree.value, int) and tree.value > LARGEST_INT and "whole number" in allowed:
        return f": it is above {LARGEST_INT}"
    if isinstance(tree.value, str) and "number" in allowed:
        try:
            float(tree.value)
        except ValueError:
            return ""
        return ": take the quotes off"
    if isinstance(tree.value, str) and tree.value.lower() in ("yes", "no", "on", "off") and "true or" in allowed:
        return f": write {'true' if tree.value.lower() in ('yes', 'on') else 'false'}"
    if isinstance(tree.value, str) and slot.discriminator and tree.value in allowed:
        return f": write {{{slot.discriminator}: {tree.value}}}"
    if isinstance(tree.value, str) and (models(slot) and (other := foreign_keys.as_map(key, tree.value))):
        return f": {other}"
    if isinstance(tree.value, str) and allowed.startswith("a list"):
        return f": write [{tree.value}]"
    if isinstance(tree.value, dict) and allowed.startswith("a list"):
        return ": begin each entry with a dash"
    if isinstance(tree.value, int | float) and allowed.startswith("text"):
        return ": put it in quotes"
    return ""


def several_values(tree: Tree) -> str | None:
    """The values of a ``--set`` that gives several where one is meant, as ``--array`` takes them."""
    if tree.origin.file != SET.file:
        return None
    parts = tree.value.split(",") if isinstance(tree.value, str) else tree.plain()
    if not isinstance(parts, list) or len(parts) < 2 or not all(isinstance(one, str | int | float) for one in parts):
        return None
    if isinstance(tree.value, str) and not all(_is_number(part) for part in parts):
        return None
    return shortened(", ".join(str(part).strip() for part in parts))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
