"""Label values -> label ids.

Owns which labels there are and in which order, and the messages about a label that is not among them. Called by `data`.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from launcher.data.table import Table
from launcher.errors import DataError
from launcher.recipe.yaml_tree import shortened

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]
NAMES_SHOWN = 12
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
MISSING = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null", "\\n"})
"""How R, pandas, Excel and MySQL write a missing value, in lower case."""
MANY_LABELS = 50
"""Labels from which on they should have two rows each on average."""
LONGEST_NUMBER = 40
"""Characters; labels of more are texts, digits or not."""


def label_ids(tables: dict[str, Table], column: str, given: list[str] | None) -> tuple[list[str], dict[str, Indices]]:
    """Label names in the order of their ids, and the id of each row of each split.

    Args:
        tables: split -> its rows.
        column: the data's own name for the label.
        given: ``task.labels``. None: the classes that the data itself names, else the distinct values of the training
            split's rows, sorted; numbers by value.

    Raises:
        DataError: a value that is no label, or fewer than two labels that training rows have.
    """
    named = {split: _named_labels(table, column) for split, table in tables.items()}
    if given is not None:
        _refuse_double(given)
        names, wanted = given, "task.labels"
    else:
        found = sorted(set(named["train"][0]), key=_by_value(named["train"][0]))
        names = tables["train"].class_names.get(column) or _distinct(found, tables["train"], column)
        for doubt in doubts(names):
            log.warning("data.columns.label: column %r of %s: %s", column, tables["train"].where, doubt)
        if len(names) >= MANY_LABELS and 2 * len(names) > len(named["train"][1]):
            log.warning(
                "data.columns.label: column %r of %s has %d labels in %d rows; name another column if it holds "
                "texts or row numbers", column, tables["train"].where, len(names), len(named["train"][1]),
            )  # fmt: skip
        wanted = "the training split's labels"
    ids = {name: number for number, name in enumerate(names)}
    encoded: dict[str, Indices] = {}
    for split, (values, codes) in named.items():
        for code, value in enumerate(values):
            if value not in ids:
                rows = tables[split].named(np.flatnonzero(codes == code))
                key = "data.columns.label" if given is None else "task.labels"
                raise DataError(
                    f"{key}: label {value!r} in split {split}, column {column!r}, is not among {wanted}: "
                    f"{_list(names)}; {_near(value, names)}found in {rows}"
                )
        encoded[split] = np.array([ids[value] for value in values], np.int64)[codes]
    trained = np.unique(encoded["train"])
    if len(trained) < 2:
        raise DataError(
            f"data.columns.label: column {column!r} has one label only, {names[int(trained[0])]!r}; two are needed"
        )
    absent = [name for number, name in enumerate(names) if number not in trained]
    if absent:
        where = "the data's own list of labels" if given is None else "task.labels"
        log.warning("%s: no training row has %s, so the model cannot learn it", where, _list(absent))
    return list(names), encoded


def warn_of_lost(names: Sequence[str], all_ids: Indices, kept: Indices) -> None:
    """Tell the labels that training rows had, and none of those that are left."""
    lost = np.setdiff1d(all_ids, all_ids[kept])
    if len(lost):
        log.warning(
            "data.split: of %s no training row is left after dedupe, limit and split, so the model cannot learn it; "
            "raise data.limit, or set data.split.stratify: label", _list([names[number] for number in lost]),
        )  # fmt: skip


def _named_labels(table: Table, column: str) -> tuple[list[str], Indices]:
    """The distinct labels that rows have, as text, and [rows] which of them each row has."""
    cells = table.columns[column].combine_chunks()
    if pa.types.is_nested(cells.type):
        held = next((cell for cell in cells.to_pylist() if cell is not None), None)
        raise DataError(
            f"data.columns.label: column {column!r} of {table.where} holds {shortened(repr(held))}; a label is "
            "one name or one number"
        )
    is_short = pa.types.is_float32(cells.type) or pa.types.is_float16(cells.type)
    if pa.types.is_float16(cells.type):
        cells = cells.cast(pa.float32())
    encoded = pc.dictionary_encode(cells)
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if is_short:
        values = [np.float32(value) for value in values]  # 0.1 is 0.1, and not 0.10000000149
    class_names = table.class_names.get(column)
    return [_label_text(value, class_names, column, table) for value in values], codes


def _label_text(value: object, class_names: list[str] | None, column: str, table: Table) -> str:
    if class_names is not None and isinstance(value, int):
        if 0 <= value < len(class_names):
            return class_names[value]
        raise DataError(
            f"data.columns.label: column {column!r} of {table.where} has the class id {value}, and the data names "
            f"{len(class_names)} classes, 0 to {len(class_names) - 1}; repair these rows"
        )
    if isinstance(value, float | np.float32 | Decimal) and math.isfinite(value):
        whole = int(value)
        if value == whole:
            return str(whole)
        return format(value.normalize(), "f") if isinstance(value, Decimal) else str(value)
    if isinstance(value, str | int):
        return str(value)
    raise DataError(
        f"data.columns.label: column {column!r} of {table.where} holds {value!r}; a label is a name or a number"
    )


# --- names ------------------------------------------------------------------------------------------------------------
def _by_value(names: list[str]) -> Any:
    """Sort key: numbers by value, anything else as text, digits too that are more than a number has."""
    return _value if all(_is_number(name) for name in names) else str


def _is_number(name: str) -> bool:
    return len(name) <= LONGEST_NUMBER and _NUMBER.fullmatch(name) is not None


def _value(name: str) -> tuple[Decimal, str]:
    return Decimal(name), name


def _distinct(names: list[str], table: Table, column: str) -> list[str]:
    """The names, unless two of them are one that was written twice: labels that nobody meant to tell apart.

    Raises: DataError, which names both.
    """
    if twice := written_twice(names):
        one, other = map(repr, twice) if all(map(str.isascii, twice)) else map(ascii, twice)
        raise DataError(
            f"data.columns.label: column {column!r} of {table.where} has both {one} and {other}; write "
            "them alike, or name the labels in task.labels to keep both"
        )
    return names


def written_twice(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ in outer spaces or quotes, in how an accent is encoded or how a number is written."""
    alike: dict[object, str] = {}
    for name in names:
        word = unicodedata.normalize("NFC", name).strip()
        word = word[1:-1].strip() if len(word) > 2 and word[0] == word[-1] and word[0] in "\"'" else word
        for meant in (word, *([Decimal(name)] if _is_number(name) else [])):
            other = alike.setdefault(meant, name)
            are_codes = name.isdecimal() and other.isdecimal()  # 007 and 7 may be two
            if other != name and not (isinstance(meant, Decimal) and are_codes):
                return other, name
    return None


def doubts(names: Sequence[str]) -> Iterator[str]:
    """What about the labels may not be meant, in words: two that differ in case, and marks of missing values."""
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.strip().casefold(), name)
        if other != name and len(name) > 1:  # single letters may well be told apart
            yield f"{other!r} and {name!r} are two labels; write them alike if they are one"
    if marks := [name for name in names if name.strip().lower() in MISSING]:
        yield (
            f"{_list(marks)} is a label like the others; if it marks a missing value, empty these cells and set "
            "data.on_bad_row: skip"
        )


def _refuse_double(names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"task.labels names {twice[0]!r} twice")


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMES_SHOWN]))
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
