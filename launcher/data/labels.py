"""Label values -> label ids.

Owns which labels there are and in which order, and the messages about a label that is not among them. Called by `data`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from launcher.data.table_files import Table
from launcher.errors import DataError
from launcher.recipe.yaml_tree import shortened

Indices = npt.NDArray[np.int64]
NAMES_SHOWN = 12


def label_ids(tables: dict[str, Table], column: str, given: list[str] | None) -> tuple[list[str], dict[str, Indices]]:
    """Label names in the order of their ids, and the id of each row of each split.

    Args:
        tables: split -> its rows.
        column: the data's own name for the label.
        given: ``task.labels``. None: the classes that the data itself names, else the distinct values of the training
            split, sorted; whole numbers by value.

    Raises:
        DataError: a value that is no label, a label that no row has, or fewer than two labels.
    """
    named = {split: _named_labels(table, column) for split, table in tables.items()}
    if given is not None:
        _check_given(given, {name for values, _ in named.values() for name in values})
        names, wanted = given, "task.labels"
    else:
        found = named["train"][0]
        names = tables["train"].class_names.get(column) or sorted(found, key=_by_value(found))
        wanted = "the training split's labels"
    if len(names) < 2:
        raise DataError(f"data.columns.label: column {column!r} has one label only, {names[0]!r}; two are needed")
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
    return list(names), encoded


def _named_labels(table: Table, column: str) -> tuple[list[str], Indices]:
    """The distinct labels as text, and [rows] which of them each row has."""
    cells = table.columns[column].combine_chunks()
    if pa.types.is_nested(cells.type):
        held = next((cell for cell in cells.to_pylist() if cell is not None), None)
        raise DataError(
            f"data.columns.label: column {column!r} of {table.where} holds {shortened(repr(held))}; a label is "
            "one name or one whole number"
        )
    encoded = pc.dictionary_encode(cells)
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    class_names = table.class_names.get(column)
    return [_label_text(value, class_names, column, table) for value in values], codes


def _label_text(value: object, class_names: list[str] | None, column: str, table: Table) -> str:
    if class_names is not None and isinstance(value, int):
        if 0 <= value < len(class_names):
            return class_names[value]
        raise DataError(
            f"data.columns.label: column {column!r} of {table.where} has the class id {value}, which has no name "
            "(a split without labels has -1); leave that split out with data.splits"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int):
        return str(value)
    raise DataError(
        f"data.columns.label: column {column!r} of {table.where} holds {value!r}; a label is a name or a whole number"
    )


def _by_value(names: list[str]) -> Any:
    """Sort key: whole numbers by value, anything else as text, digits too that are more than an int64 has."""
    return int if all(name.removeprefix("-").isdecimal() and len(name) <= 20 for name in names) else str


def _check_given(names: list[str], there: set[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"task.labels names {twice[0]!r} twice")
    absent = [name for name in names if name not in there]
    if absent:
        raise DataError(
            f"task.labels: {absent[0]!r} is not in the data; {_near(absent[0], sorted(there))}"
            f"the data has: {_list(sorted(there))}"
        )


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMES_SHOWN]))
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
