"""Writes the tables of docs/recipes.md from the recipe's types; `make docs` runs it, a test checks that it was run.

What a field means is the docstring under it, what it may be is its annotation: nothing about a key is said twice.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launcher import recipe
from launcher.recipe.allowed import Slot, in_words, joined, members, models, slot_of

PAGE = Path(__file__).with_name("recipes.md")
BEGIN = "<!-- keys: written by `make docs` from launcher/recipe/ -->"
END = "<!-- end of keys -->"


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, the bases' fields included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = (
                    inspect.cleandoc(ast.literal_eval(below.value)).replace("``", "`").replace("None:", "null:")
                )
    return found


def anchor(model: type[BaseModel]) -> str:
    return f"[{model.__name__}](#{model.__name__.lower()})"


def words(slot: Slot) -> str:
    """What a value may be; the models it may be are links to their sections."""
    if get_origin(slot.annotation) is list and models(Slot(get_args(slot.annotation)[0])):
        return f"a list of {words(Slot(get_args(slot.annotation)[0]))}"
    linked = [anchor(model) for model in models(slot)]
    others = [in_words(one) for one in members(slot) if not models(one)]
    return ", or ".join([joined(linked), *others]) if linked else in_words(slot)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`kind: {kind}`" if kind else ""
    return "" if value in ({}, []) else f"`{json.dumps(value).strip(chr(34))}`"


def shared(model: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose keys this one has too, such as `StageSettings` of `Stage`."""
    base = model.__bases__[0]
    return base if issubclass(base, BaseModel) and base.model_fields else None


def row(name: str, field: FieldInfo, meaning: str) -> str:
    """A line of a table; a key that is a map of its own says what that map is for."""
    if not meaning and len(models(slot_of(field))) == 1:
        meaning = inspect.cleandoc(models(slot_of(field))[0].__doc__ or "")
    cells = [f"`{field.alias or name}`", words(slot_of(field)), default(field), meaning]
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def section(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """The table of one model, then those of the models it names, each once."""
    if model in seen:
        return
    seen.add(model)
    base, described = shared(model), meanings(model)
    fields = {name: field for name, field in model.model_fields.items() if not base or name not in base.model_fields}
    yield f"### {model.__name__}\n\n{inspect.cleandoc(model.__doc__ or '').replace('``', '`')}\n"
    yield "| key | what it may be | default | meaning |\n|---|---|---|---|"
    yield from (row(name, field, described.get(name, "")) for name, field in fields.items())
    yield f"\nAnd every key of {anchor(base)}.\n" if base else ""
    for field in fields.values():
        inner = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        for named in models(Slot(inner)):
            yield from section(named, seen)
    if base:
        yield from section(base, seen)


def page(current: str) -> str:
    """The page with its tables written anew; the prose around them stays."""
    before, _, rest = current.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE.name} lacks its two marks"
    return f"{before}{BEGIN}\n" + "\n".join(section(recipe.Recipe, set())) + f"\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
