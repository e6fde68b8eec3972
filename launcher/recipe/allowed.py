"""What a key of the recipe may hold, in words: read off the types of `recipe`, so that messages never go stale.

Owns the way from a dotted path to the type behind it and from a type to plain English. Called by `recipe.problems`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launcher.recipe import Recipe
from launcher.recipe.types import LARGEST_INT
from launcher.recipe.yaml_tree import Key, Tree, shortened

_SIMPLE = {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}


@dataclass(frozen=True)
class Slot:
    """The type of one place in a recipe."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    discriminator: str | None = None
    examples: tuple[Any, ...] = ()
    title: str | None = None
    """What it takes, where the types cannot say it."""


def slot_of(field: FieldInfo) -> Slot:
    """The slot of a model's field."""
    tag = field.discriminator if isinstance(field.discriminator, str) else None
    return Slot(field.annotation, tuple(field.metadata), tag, tuple(field.examples or ()), field.title)


def _slot_of_annotation(annotation: Any) -> Slot:
    if get_origin(annotation) is not Annotated:
        return Slot(annotation)
    inner, *extras = get_args(annotation)
    metadata: list[Any] = []
    slot = Slot(inner)
    for extra in extras:
        if isinstance(extra, FieldInfo):
            slot = slot_of(extra)
            metadata += extra.metadata
        else:
            metadata.append(extra)
    return replace(slot, annotation=inner, metadata=tuple(metadata))


ROOT = Slot(Recipe)


def members(slot: Slot) -> list[Slot]:
    """The alternatives of a union, nested ones flattened; the slot itself when it is none."""
    if get_origin(slot.annotation) not in (Union, UnionType):
        return [slot]
    return [inner for one in get_args(slot.annotation) for inner in members(_slot_of_annotation(one))]


def models(slot: Slot) -> list[type[BaseModel]]:
    """The maps with fixed keys that a slot takes."""
    types = (member.annotation for member in members(slot))
    return [one for one in types if get_origin(one) is None and isinstance(one, type) and issubclass(one, BaseModel)]


def tags(model: type[BaseModel], discriminator: str) -> tuple[str, ...]:
    """The kinds that a model of a tagged union stands for."""
    return get_args(model.model_fields[discriminator].annotation)


def model_for(slot: Slot, tree: Tree | None) -> type[BaseModel] | None:
    """The model that a map is checked against: in a tagged union, the one its kind names."""
    candidates = models(slot)
    if slot.discriminator is None:
        return candidates[0] if candidates else None
    kind = tree.child(slot.discriminator) if tree else None
    return next((one for one in candidates if kind and kind.value in tags(one, slot.discriminator)), None)


def below(slot: Slot, tree: Tree | None, key: Key) -> Slot | None:
    """The slot of a key inside the map, or of a position in the list, that ``tree`` is."""
    model = model_for(slot, tree)
    if model is not None:
        field = model.model_fields.get(str(key))
        return slot_of(field) if field else None
    for member in members(slot):
        arguments = get_args(member.annotation)
        container = get_origin(member.annotation)
        if container is list and isinstance(key, int):
            return _slot_of_annotation(arguments[0])
        if container is tuple and isinstance(key, int):
            return _slot_of_annotation(arguments[min(key, len(arguments) - 1)])
        if container is dict and isinstance(key, str):
            return _slot_of_annotation(arguments[1])
    return None


def keys_allowed(slot: Slot, tree: Tree | None) -> list[str]:
    """The keys of the map that a slot takes; empty when any key does."""
    model = model_for(slot, tree)
    if model is not None:
        return [*model.model_fields, *(["extends"] if model is Recipe else [])]
    maps = (get_args(member.annotation) for member in members(slot) if get_origin(member.annotation) is dict)
    return [key for arguments in maps if get_origin(arguments[0]) is Literal for key in get_args(arguments[0])]


def choices(slot: Slot) -> list[str]:
    """The fixed words that a slot takes."""
    literals = (get_args(one.annotation) for one in members(slot) if get_origin(one.annotation) is Literal)
    return [str(value) for values in literals for value in values]


# --- words ------------------------------------------------------------------------------------------------------------
def in_words(slot: Slot) -> str:
    """What a slot takes, such as ``a whole number above 0, or auto``."""
    if slot.title:
        return slot.title
    if slot.discriminator:
        kinds = [tag for model in models(slot) for tag in tags(model, slot.discriminator)]
        return f"a map with {slot.discriminator}: {joined(kinds)}"
    if len(members(slot)) == 1 and choices(slot):
        return joined(choices(slot))
    return ", or ".join(joined(choices(one)) if choices(one) else _one_in_words(one) for one in members(slot))


def _one_in_words(slot: Slot) -> str:
    if slot.title:
        return slot.title
    if slot.annotation in _SIMPLE:
        such_as = f" such as {joined([str(one) for one in slot.examples])}" if slot.examples else ""
        return _SIMPLE[slot.annotation] + such_as + _bounds(slot.metadata)
    container, arguments = get_origin(slot.annotation), get_args(slot.annotation)
    if container is list:
        return f"a list{_bounds(slot.metadata)} of: {in_words(_slot_of_annotation(arguments[0]))}"
    if container is tuple:
        return f"a list of {len(arguments)}, each {in_words(_slot_of_annotation(arguments[0]))}"
    if container is dict:
        keys = joined(list(get_args(arguments[0])), "and/or") if get_origin(arguments[0]) is Literal else "text"
        return f"a map of {keys} to {in_words(_slot_of_annotation(arguments[1]))}"
    return f"a map with {joined(list(slot.annotation.model_fields), 'and')}"


def _bounds(metadata: Iterable[Any]) -> str:
    words = {annotated_types.Gt: "above", annotated_types.Ge: "from", annotated_types.Lt: "below"}
    found = []
    for one in metadata:
        if isinstance(one, annotated_types.MinLen):
            found.append("not empty" if one.min_length == 1 else f"at least {one.min_length} long")
        elif isinstance(one, annotated_types.Le):
            if one.le == LARGEST_INT:  # goes without saying until it is passed
                continue
            found.append(f"to {one.le:g}")
        elif type(one) in words:
            found.append(f"{words[type(one)]} {getattr(one, type(one).__name__.lower()):g}")
    return ", ".join(["", *found]) if found and found[0].startswith("not") else "".join(f" {one}" for one in found)


def joined(words: Sequence[str], last: str = "or") -> str:
    """``a, b or c``"""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else "nothing"


def shown(tree: Tree) -> str:
    """A value as a message quotes it, with its type where that is what is likely to be wrong."""
    value = tree.value
    if isinstance(value, dict):
        return f"a map with {joined(list(value), 'and')}" if value else "an empty map"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return f"text {shortened(value)!r}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"number {shortened(repr(value))}" if isinstance(value, int) or math.isfinite(value) else f"{value!r}"


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of the words, when any is similar."""
    lower = {one.lower(): one for one in words}
    found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def elsewhere(key: str) -> list[str]:
    """Dotted paths of the recipe that end in this key."""
    return sorted({path for path in _all_paths(Recipe, "") if path.rsplit(".", 1)[-1] == key}, key=len)


def _all_paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        slot = slot_of(field)
        if name == "stages":
            inner = [_slot_of_annotation(get_args(field.annotation)[0]).annotation]
            yield from (path for one in inner for path in _all_paths(one, "stages.NAME."))
        for one in models(slot):
            yield from _all_paths(one, f"{prefix}{name}.")
