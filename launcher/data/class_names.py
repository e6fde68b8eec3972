"""The names that data has for its class ids, as `datasets` writes them beside the columns.

Owns their reading, and the one rule: an id means what its own file says. Files of one split that number the same names
otherwise are numbered alike; one that has ids without names, beside others with, is refused. Called by `table_files`,
`hub_files` and `sources`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launcher.data.rows import is_text
from launcher.data.table import Table
from launcher.errors import DataError

Names = dict[str, list[str]]
"""Column -> names in the order of their ids."""


def class_names(schema: pa.Schema, columns: Sequence[str]) -> Names:
    """What a file of Arrow's or parquet says about those of its columns that hold class ids."""
    written = (schema.metadata or {}).get(b"huggingface", b"{}")
    features: dict[str, Any] = json.loads(written).get("info", {}).get("features") or {}
    found = {name: features[name].get("names") for name in columns if isinstance(features.get(name), dict)}
    return {name: [str(one) for one in names] for name, names in found.items() if isinstance(names, list)}


def alike(tables: list[Table]) -> tuple[list[Table], Names]:
    """Tables whose class ids mean the same, and what; names come in the order in which the tables have them.

    Raises:
        DataError: a table has class ids without names, where another has names; or an id beyond its names.
    """
    together: Names = {}
    for column in dict.fromkeys(name for table in tables for name in table.class_names):
        given = [table.class_names.get(column) for table in tables]
        together[column] = list(dict.fromkeys(name for names in given if names for name in names))
        if all(names == given[0] for names in given):
            continue
        texts = [is_text(table.columns[column].type) for table in tables]
        bare = next((at for at, names in enumerate(given) if not names and not texts[at]), None)
        if bare is not None:
            named = next(table.where for table in tables if column in table.class_names)
            raise DataError(
                f"{tables[bare].where}: column {column!r} holds {tables[bare].columns[column].type} without names, and "
                f"in {named} of the same split it holds class ids with names; write the names into both"
            )
        numbers = {name: number for number, name in enumerate(together[column])}
        tables = [
            _meaning(table, column, names if any(texts) else [numbers[name] for name in names])
            if (names := table.class_names.get(column)) and not is_text(table.columns[column].type)
            else table
            for table in tables
        ]
    return tables, together


def _meaning(table: Table, column: str, of_id: Sequence[str] | Sequence[int]) -> Table:
    """The table with what stands at each row's id in ``of_id``.

    -1, which `datasets` writes where there is no label, stays -1, and is empty among texts.
    """
    ids = table.columns[column]
    unlabelled = pc.equal(ids.cast(pa.int64()), -1)
    ids = pc.if_else(unlabelled, pa.scalar(None, ids.type), ids)
    outside = pc.or_(pc.less(ids, 0), pc.greater_equal(ids, len(of_id))).fill_null(False).to_numpy()
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"{table.where}: column {column!r} has the class id {ids[row].as_py()} in row {table.ids[row]}, and the "
            f"file names {len(of_id)} classes, 0 to {len(of_id) - 1}; repair these rows"
        )
    values = pc.take(pa.array(of_id), ids)
    if pa.types.is_integer(values.type):
        values = pc.if_else(unlabelled, -1, values)
    index = table.columns.column_names.index(column)
    return replace(table, columns=table.columns.set_column(index, column, values))
