"""From pydantic's errors to problems in our words, each once, at the line where the value was written.

Owns the dotted paths (stages by name) and the wording. `recipe.reading` calls it; other rooms get an `Origins` from
`reading.load_with_origins` to say where the key is that the model or the data contradicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from launcher.errors import Problem
from launcher.recipe import SCHEDULES_NOT_BUILT_YET, SOURCES_NOT_BUILT_YET, TASKS_NOT_BUILT_YET
from launcher.recipe.allowed import (
    ROOT,
    Slot,
    below,
    elsewhere,
    in_words,
    joined,
    keys_allowed,
    model_for,
    models,
    nearest,
    shown,
    tags,
)
from launcher.recipe.allowed import choices as choices_of
from launcher.recipe.merge import DISCRIMINATORS, stage_names
from launcher.recipe.sharding import SHARDING_NOT_BUILT_YET
from launcher.recipe.types import LARGEST_INT
from launcher.recipe.yaml_tree import Key, Tree, shortened, walk

NOT_BUILT_YET: dict[tuple[str, str], tuple[str, ...]] = {
    ("task", "kind"): TASKS_NOT_BUILT_YET,
    ("data", "source"): SOURCES_NOT_BUILT_YET,
    ("schedule", "kind"): SCHEDULES_NOT_BUILT_YET,
    ("sharding", "strategy"): SHARDING_NOT_BUILT_YET["strategy"],
}
OTHER_NAMES = {
    "lr": "learning_rate", "wd": "weight_decay", "eps": "epsilon", "max_grad_norm": "clip_grad_norm",
    "batch_size": "global_size", "gradient_accumulation_steps": "global_size",
    "per_device_train_batch_size": "micro_size", "num_epochs": "epochs", "num_train_epochs": "epochs",
    "max_steps": "steps", "warmup_ratio": "warmup", "fp16": "precision", "bf16": "precision", "deepspeed": "sharding",
    "save_total_limit": "keep", "dataset_name": "dataset", "model_name_or_path": "source",
}  # fmt: skip
"""What other trainers call a key -> what we do."""

Parts = tuple[Key, ...]


class Origins:
    """Where every key of a recipe was written. Paths are dotted, stages by name."""

    def __init__(self, written: Tree, spread: Tree) -> None:
        self._spread = {dotted(parts, spread): tree for parts, tree in walk(spread)}
        self._written = {id(tree): dotted(parts, written) for parts, tree in walk(written)}
        self._file = written.origin.file

    def problem(self, path: str, message: str) -> Problem:
        """A problem of a key, with file and line; at the key's map when the recipe does not write the key.

        What a stage takes from the settings at the top is reported there, so that it is the same for all stages.
        """
        outer, tail = path, ""
        while outer not in self._spread:
            outer, _, last = outer.rpartition(".")
            tail = f".{last}{tail}"
        tree = self._spread[outer]
        home = self._written.get(id(tree), outer)
        file = self._file if tree.origin.line is None and not outer else tree.origin.file
        return Problem((home + tail).removeprefix("."), message, file, tree.origin.line)


def dotted(parts: Parts, recipe: Tree) -> str:
    """``("stages", 1, "epochs")`` as ``stages.full.epochs``; by position where a name is missing or not unique."""
    words = [str(part) for part in parts]
    if len(parts) > 1 and parts[0] == "stages" and isinstance(parts[1], int):
        names = stage_names(recipe)
        name = names[parts[1]]
        if name and names.count(name) == 1:
            words[1] = name
    return ".".join(words)


def problems_of(error: ValidationError, spread: Tree, origins: Origins) -> tuple[list[Problem], list[Parts]]:
    """One problem for each place that is wrong, and the places."""
    found: dict[Parts, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        parts, kind = _place(one["loc"], one["type"], spread)
        found.setdefault(parts, kind)
    places = {
        parts: kind
        for parts, kind in found.items()
        if kind != "value" or not any(len(other) > len(parts) and other[: len(parts)] == parts for other in found)
    }  # a value that has a problem inside it is of a union, whose other alternatives complain about the whole
    problems = (origins.problem(dotted(parts, spread), _message(parts, kind, spread)) for parts, kind in places.items())
    return unique(problems), list(places)


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once, in the order of the files' lines."""
    once = list(dict.fromkeys(problems))
    files = list(dict.fromkeys(problem.file for problem in once))
    return sorted(once, key=lambda problem: (files.index(problem.file), problem.line or 0))


def _place(loc: tuple[int | str, ...], error_type: str, spread: Tree) -> tuple[Parts, str]:
    """The keys that lead to a wrong value, without the names of alternatives that pydantic puts between them."""
    parts: list[Key] = []
    tree: Tree = spread
    slot: Slot | None = ROOT
    skip_tag = False
    for depth, key in enumerate(loc):
        is_last = depth == len(loc) - 1
        if skip_tag:
            skip_tag = False
            continue
        inner = tree.child(key)
        if inner is not None:
            slot = below(slot, tree, key) if slot else None
            tree = inner
            parts.append(key)
            skip_tag = bool(slot and slot.discriminator)
        elif is_last and error_type == "missing":
            parts.append(key)
    if error_type.startswith("union_tag") and slot and slot.discriminator:
        return (*parts, slot.discriminator), "missing" if error_type.endswith("not_found") else "value"
    if error_type == "missing":
        return tuple(parts), "missing"
    is_key = error_type == "extra_forbidden" or (bool(loc) and loc[-1] == "[key]")
    return tuple(parts), "key" if is_key else "value"


def _message(parts: Parts, kind: str, spread: Tree) -> str:
    if kind == "key":
        return _unknown_key(parts, spread)
    outer, outer_tree = _slot_at(parts[:-1], spread)
    slot = below(outer, outer_tree, parts[-1]) if outer and parts else ROOT
    if outer and outer.discriminator == (parts[-1] if parts else None):
        return _wrong_kind(parts, outer, outer_tree)
    allowed = in_words(slot) if slot else "nothing"
    if kind == "missing":
        return f"is missing; it takes {allowed}"
    tree = outer_tree.child(parts[-1]) if outer_tree and parts else spread
    assert tree is not None
    if slot and isinstance(tree.value, str) and choices_of(slot):
        return _wrong_word(parts, tree.value, choices_of(slot), allowed)
    return f"{shown(tree)} is not allowed{_hint(tree, slot)}; it takes {allowed}"


def _hint(tree: Tree, slot: Slot | None) -> str:
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
    if isinstance(tree.value, str) and allowed.startswith("a list"):
        return f": write [{tree.value}]"
    if isinstance(tree.value, dict) and allowed.startswith("a list"):
        return ": begin each entry with a dash"
    if isinstance(tree.value, int | float) and allowed.startswith("text"):
        return ": put it in quotes"
    return ""


def _wrong_word(parts: Parts, word: str, words: list[str], allowed: str) -> str:
    later = NOT_BUILT_YET.get((str(parts[-2]), str(parts[-1])) if len(parts) > 1 else ("", ""), ())
    if word in later:
        return f"{word!r} is not built yet; built: {joined(words, 'and')}"
    near = nearest(word, words)
    return f"{shortened(word)!r} is not allowed; {f'did you mean {near!r}? It' if near else 'it'} takes {allowed}"


def _wrong_kind(parts: Parts, outer: Slot, tree: Tree | None) -> str:
    assert outer.discriminator is not None
    kinds = [tag for model in models(outer) for tag in tags(model, outer.discriminator)]
    kind = tree.child(outer.discriminator) if tree else None
    if kind is None:
        return f"is missing; it takes {joined(kinds)}"
    if isinstance(kind.value, str):
        return _wrong_word(parts, kind.value, kinds, joined(kinds))
    return f"{shown(kind)} is not allowed; it takes {joined(kinds)}"


def _unknown_key(parts: Parts, spread: Tree) -> str:
    key = str(parts[-1])
    slot, tree = _slot_at(parts[:-1], spread)
    allowed = keys_allowed(slot, tree) if slot else []
    model = model_for(slot, tree) if slot else None
    kind = tree.child(slot.discriminator) if slot and slot.discriminator and tree else None
    of_kind = f" of {slot.discriminator} {kind.value}" if slot and kind else ""
    others = [
        tag
        for other in (models(slot) if slot and slot.discriminator else [])
        if other is not model and key in other.model_fields
        for tag in tags(other, slot.discriminator or "" if slot else "")
    ]
    name = OTHER_NAMES.get(key, key)
    places = _elsewhere(name, parts, spread, allowed)
    near = nearest(key, allowed)
    hint = f"did you mean {near!r}? It" if near else "it"
    if name in allowed:
        hint = f"did you mean {name!r}? It"
    elif others:
        hint = f"it is one of {slot.discriminator if slot else ''} {joined(others)}; this one"
    elif places:
        hint = f"did you mean {joined([repr(place) for place in places[:3]])}? It"
    return f"unknown key {key!r}{of_kind}; {hint} takes {joined(allowed, 'and')}"


def _elsewhere(name: str, parts: Parts, spread: Tree, allowed: list[str]) -> list[str]:
    """Where else a key of this name would be right; in a stage, inside that stage."""
    places = [place for place in elsewhere(name) if place not in allowed]
    at_top = [place for place in places if not place.startswith("stages.")]
    if parts[0] != "stages" or len(parts) < 3:
        return at_top or places
    stage = dotted(parts[:2], spread)
    inside = [place.replace("stages.NAME", stage) for place in places if place.startswith("stages.")]
    return [place for place in inside if place != dotted(parts, spread)] or at_top


def _slot_at(parts: Parts, spread: Tree) -> tuple[Slot | None, Tree | None]:
    slot: Slot | None = ROOT
    tree: Tree | None = spread
    for key in parts:
        slot = below(slot, tree, key) if slot else None
        tree = tree.child(key) if tree else None
    return slot, tree


def pruned(spread: Tree, places: Iterable[Parts]) -> Any:
    """The recipe as plain Python without its wrong values, so that the rules can look at the others."""
    plain = spread.plain()
    for parts in places:
        keep = 2 if parts[:1] == ("stages",) else 0
        cut = next((at for at, part in enumerate(parts) if at >= keep and isinstance(part, int)), len(parts))
        if len(parts) > 1 and DISCRIMINATORS.get(str(parts[-2])) == parts[-1]:
            cut = len(parts) - 1  # a map of a wrong kind goes whole
        spot: Any = plain
        for key in parts[: cut - 1]:
            spot = spot[int(key)] if isinstance(spot, list) else spot.get(key, {})
        if isinstance(spot, dict) and cut:
            spot.pop(parts[cut - 1], None)
    return plain
