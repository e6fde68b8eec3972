"""The rules for keys that only some formats of tables read. Called by `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from launcher.errors import Problem
from launcher.recipe.data import TableData
from launcher.recipe.recipe import Recipe

BINARY = frozenset({".parquet", ".arrow", ".feather"})
NO_CSV = BINARY | {".json", ".jsonl", ".ndjson", ".text", ".txt"}


def encoding_is_of_text(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if isinstance(data, TableData) and "encoding" in data.model_fields_set and _formats(data) <= BINARY:
        kind = "parquet" if _formats(data) == {".parquet"} else "arrow"
        yield Problem("data.encoding", f"{data.encoding!r} is for text, and {kind} is binary; take it out")


def dialect_is_of_csv(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if not isinstance(data, TableData):
        return
    for key in ("delimiter", "quoting", "escape"):
        value = getattr(data, key)
        if value is not None and _formats(data) <= NO_CSV:
            yield Problem(f"data.{key}", f"{value!r} is for csv files, but data.source is {data.source}; take it out")
    if data.escape is not None and data.escape == data.delimiter:
        yield Problem("data.escape", f"{data.escape!r} is data.delimiter too; name another character, or take it out")


RULES = (encoding_is_of_text, dialect_is_of_csv)


def _formats(data: TableData) -> set[str]:
    """The suffixes of what is read, as far as the recipe tells: of source package those of the files."""
    if data.source != "package":
        return {f".{data.source}"}
    groups = list(data.files.values()) if isinstance(data.files, dict) else [data.files]
    paths = [path for group in groups for path in ([group] if isinstance(group, str) else group)]
    return {PurePosixPath(path).suffix.lower() for path in paths}
