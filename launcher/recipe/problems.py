"""From pydantic's errors to problems in our words, each once, at the line where the value was written.

Owns the dotted paths (stages by name) and the wording. `recipe.reading` calls it; other rooms get an `Origins` from
`reading.load_with_origins` to say where the key is that the model or the data contradicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from launcher.errors import Problem
from launcher.recipe import SCHEDULES_NOT_BUILT_YET, SOURCES_NOT_BUILT_YET, TASKS_NOT_BUILT_YET, foreign_keys
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
from launcher.recipe.value_hints import likely_slip, several_values
from launcher.recipe.yaml_tree import Key, Tree, shortened, walk

NOT_BUILT_YET: dict[tuple[str, str], tuple[str, ...]] = {
    ("task", "kind"): TASKS_NOT_BUILT_YET,
    ("data", "source"): SOURCES_NOT_BUILT_YET,
    ("schedule", "kind"): SCHEDULES_NOT_BUILT_YET,
    ("sharding", "strategy"): SHARDING_NOT_BUILT_YET["strategy"],
}
OTHER_NAMES = {
    "lr": "learning_rate", "wd": "weight_decay", "eps": "epsilon", "max_grad_norm": "clip_grad_norm",
    "batch_size": "global_size", "per_device_train_batch_size": "micro_size", "micro_batch_size": "micro_size",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "max_steps": "steps", "warmup_ratio": "warmup",
    "save_total_limit": "keep", "dataset_name": "dataset", "model_name_or_path": "source", "base_model": "source",
    "max_seq_length": "max_length", "r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "target_modules": "targets",
}  # fmt: skip
"""What other trainers call a key of one and the same map -> what we do; `foreign_keys` has those of other places."""
KEYS_LISTED = 8
"""A message lists as many keys of a map whenever one is unknown; more of them once a report, where nothing is near."""

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
    told: set[str] = set()
    problems = []
    for parts, kind in places.items():
        path = dotted(parts, spread)
        home = origins.problem(path, "").path
        problems.append(origins.problem(path, _message(parts, kind, spread, told, home)))
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


def _message(parts: Parts, kind: str, spread: Tree, told: set[str], home: str) -> str:
    """``told``: the lists of keys that a message has given already; ``home``: the path that is set for this value."""
    if kind == "key":
        return _unknown_key(parts, spread, told)
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
    if slot and not allowed.startswith("a list") and (several := several_values(tree)):
        return (
            f"{shown(tree)} is not allowed: --set gives one value; a run for each is "
            f"thawline submit RECIPE --array '{home}=[{several}]'; it takes {allowed}"
        )
    return f"{shown(tree)} is not allowed{likely_slip(str(parts[-1]) if parts else '', tree, slot)}; it takes {allowed}"


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


def _unknown_key(parts: Parts, spread: Tree, told: set[str]) -> str:
    key = str(parts[-1])
    slot, tree = _slot_at(parts[:-1], spread)
    allowed = keys_allowed(slot, tree) if slot else []
    model = model_for(slot, tree) if slot else None
    kind = tree.child(slot.discriminator) if slot and slot.discriminator and tree else None
    of_kind = f" of {slot.discriminator} {kind.value}" if slot and kind else ""
    start = f"unknown key {key!r}{of_kind}"
    others = [
        tag
        for other in (models(slot) if slot and slot.discriminator else [])
        if other is not model and key in other.model_fields
        for tag in tags(other, slot.discriminator or "" if slot else "")
    ]
    name = OTHER_NAMES.get(key, key)
    places = _elsewhere(name, parts, spread, allowed)
    near = nearest(key, allowed)
    if name in allowed:
        return f"{start}; {_did_you_mean([name], allowed)}"
    if others:
        listed = f"; this one takes {joined(allowed, 'and')}" if len(allowed) <= KEYS_LISTED else ""
        return f"{start}; it is one of {slot.discriminator if slot else ''} {joined(others)}{listed}"
    if foreign := _as_elsewhere(key, parts, spread):
        return f"{start}; {foreign}"
    if key in (place.rpartition(".")[2] for place in places) or (places and not near):
        return f"{start}; {_did_you_mean(places[:3], allowed)}"
    if near:
        return f"{start}; {_did_you_mean([near], allowed)}"
    listed = joined(allowed, "and")
    if len(allowed) > KEYS_LISTED and listed in told:
        return f"{start}; nothing here has a name like it"
    told.add(listed)
    return f"{start}; it takes {listed}"


def _did_you_mean(names: list[str], allowed: list[str]) -> str:
    """A near name; with all there are where those are few."""
    listed = f" It takes {joined(allowed, 'and')}" if len(allowed) <= KEYS_LISTED else ""
    return f"did you mean {joined([repr(name) for name in names])}?{listed}"


def _as_elsewhere(key: str, parts: Parts, spread: Tree) -> str | None:
    """What another trainer's key is here, with the values that stand beside it."""
    beside = _slot_at(parts[:-1], spread)[1]

    def value(name: str) -> Any:
        trees = (tree.child(name) for tree in (beside, spread) if tree is not None)
        return next((tree.plain() for tree in trees if tree is not None), None)

    found = foreign_keys.answer(key, value(key), value)
    in_stage = parts[0] == "stages" and len(parts) > 2
    return found.replace("stages.NAME", dotted(parts[:2], spread)) if found and in_stage else found


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
