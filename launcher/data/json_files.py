"""json -> columns: one array of objects, or one object a line.

Owns the messages about what is no row, and about values that cannot stand in one column. Called by `table_files`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from launcher.data.table import Table, Wanted, present, row_numbers
from launcher.data.text_encoding import LINE_END, utf8
from launcher.errors import DataError
from launcher.recipe.yaml_tree import shortened

_NO_COLUMN = (pa.ArrowException, OverflowError, UnicodeEncodeError)


class _TwiceError(ValueError):
    """An object names a key twice; the message is the key."""


def read_json(path: Path, encoding: str, wanted: list[Wanted]) -> Table:
    """One array of objects, or one object a line; lines may be blank.

    Raises:
        DataError: with the line or the row of what is not JSON, no object, or of another type than the rows before.
    """
    rows = json_rows(path, encoding)
    strange = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if strange is not None:
        value = str(rows[strange])[:40]
        raise DataError(f"{path}, row {strange}: {value!r} is no object; each row is {{column: value}}")
    if not rows:
        raise DataError(f"{path} has no rows; give it some, or leave the file out")
    names = list(dict.fromkeys(name for row in rows for name in row))
    there = present(wanted, names, str(path), _nested(rows))
    columns = pa.table({name: _column(name, [row.get(name) for row in rows], path) for name in there})
    return Table(columns, row_numbers(len(rows)), str(path))


def json_rows(path: Path, encoding: str) -> list[Any]:
    """The rows as the file has them, whatever they are.

    Raises:
        DataError: with the line of what is not JSON.
    """
    text = utf8(path, encoding).decode("utf-8")
    found: list[Any] = _array(text, path) if text.lstrip().startswith("[") else _lines(text, path)
    return found


def _array(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except _TwiceError as error:
        raise DataError(f"{path}: an object names {str(error)!r} twice; take one out") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, hundreds of brackets
        raise DataError(f"{path} cannot be read: {error}; repair or remove that row") from error


def _lines(text: str, path: Path) -> list[Any]:
    return [_line(line, number, path) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON: {error.msg}; one object a line is needed, or one array of objects"
        ) from error
    except _TwiceError as error:
        raise DataError(f"{path}, line {number}: the object names {str(error)!r} twice; take one out") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, hundreds of brackets
        raise DataError(f"{path}, line {number} cannot be read: {error}; repair or remove it") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _nested(rows: list[dict[str, Any]]) -> str:
    """Advice where the file is one object around its rows, such as ``{"data": [{…}, …]}``."""
    if len(rows) > 1:
        return ""
    key = next((key for key, value in rows[0].items() if isinstance(value, list) and value), None)
    if key is None or not isinstance(rows[0][key][0], dict):
        return ""
    return f"its rows are inside {key!r}: write that array alone, or one object a line; "


def _column(name: str, values: list[Any], path: Path) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        first = sorted((next(n for n, v in enumerate(values) if type(v) is kind), kind.__name__) for kind in kinds)
        rows = ", ".join(f"{kind} in row {number}" for number, kind in first)
        raise DataError(f"{path}: column {name!r} mixes types: {rows}; make them one")
    try:
        return pa.array(values)
    except _NO_COLUMN as error:
        row = _first_misfit(values)
        why = "half of a surrogate pair, which is no character" if isinstance(error, UnicodeEncodeError) else str(error)
        raise DataError(
            f"{path}, row {row}: column {name!r} holds {shortened(repr(values[row]))}: {why}; repair or remove that row"
        ) from error


def _first_misfit(values: list[Any]) -> int:
    """The first row that cannot stand in one column with those before it, of values among which there is one."""
    fits, fails = 0, len(values)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            pa.array(values[:middle])
            fits = middle
        except _NO_COLUMN:
            fails = middle
    return fails - 1
