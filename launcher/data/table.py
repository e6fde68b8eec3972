"""What every source of rows gives: columns, what to call each row, and the names that the data has for its class ids.

Owns the type, the message about a column that is not there, and the ways in which Arrow can store one and the same
value: a dictionary, a view or a run of equal values reads like the plain column. Called by whoever reads rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from launcher.errors import DataError

ROWS_NAMED = 5
"""Rows that a message names before it only counts."""


@dataclass(frozen=True)
class Wanted:
    """A column to read, by the data's own name for it."""

    name: str
    key: str
    """The recipe's key that asks for it, such as ``data.columns.text``."""
    is_required: bool = True


@dataclass(frozen=True)
class Table:
    """The rows of one split."""

    columns: pa.Table
    """Those of the wanted columns that are there."""
    ids: list[str]
    """What to call each row in a message."""
    where: str
    """The file or files, for messages."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Column of class ids -> the names that the data itself gives them."""

    def without(self, rows: Sequence[int]) -> Table:
        """The table without some of its rows."""
        kept = np.delete(np.arange(len(self.ids)), np.array(rows, np.int64))
        columns = self.columns.take(pa.array(kept))
        return replace(self, columns=columns, ids=[self.ids[row] for row in kept])

    def named(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Rows in words: ``2 rows (counted from 0): 4, 17``."""
        shown = ", ".join(self.ids[row] for row in rows[:ROWS_NAMED])
        more = ", …" if len(rows) > ROWS_NAMED else ""
        plural = "s" if len(rows) > 1 else ""
        counted = " (counted from 0)" if self.ids[rows[0]].rpartition(":")[2].isdigit() else ""
        return f"{len(rows)} row{plural}{counted}: {shown}{more}"


EVERY = Wanted("", "", is_required=False)
"""Wanted beside others: all that have a name, and one that no other has."""


def present(wanted: list[Wanted], there: list[str], where: str, advice: str = "") -> list[str]:
    """Names of the wanted columns that are there.

    Args:
        wanted: what the recipe asks for.
        there: the names of the columns that the data has.
        where: the file or files, for messages.
        advice: what to do about a missing column, where the format knows better than a near name.

    Raises:
        DataError: a required column is missing, or a wanted one is there twice.
    """
    for column in wanted:
        if column.is_required and column.name not in there:
            near = difflib.get_close_matches(column.name, there, n=1, cutoff=0.5)
            hint = advice or (f"did you mean {near[0]!r}? " if near else "")
            raise DataError(
                f"{column.key}: no column {column.name!r} in {where}; {hint}it has: "
                f"{', '.join(repr(name) for name in there if name) or 'no column with a name'}"
            )
        if column is not EVERY and there.count(column.name) > 1:
            raise DataError(f"{column.key}: {where} names {column.name!r} twice; rename one of the two columns")
    others = [name for name in there if name and there.count(name) == 1] if EVERY in wanted else []
    named = [column.name for column in wanted if column is not EVERY and column.name in there]
    return list(dict.fromkeys([*named, *others]))


def row_numbers(num_rows: int) -> list[str]:
    return [str(number) for number in range(num_rows)]


def plain(columns: pa.Table) -> pa.Table:
    """The same values without dictionaries, views, runs and extension types: a category is the text it stands for."""
    for index, name in enumerate(columns.column_names):
        column = columns.column(index)
        decoded = _plain(column)
        if decoded is not column:
            columns = columns.set_column(index, name, decoded)
    return columns


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    if isinstance(type_, pa.BaseExtensionType):
        storage = type_.storage_type
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], type=storage))
    if pa.types.is_dictionary(type_):
        # By hand: a cast knows neither views nor categories that are missing values.
        values = [_plain(pa.chunked_array([chunk.dictionary])) for chunk in column.chunks]
        chunks = [pc.take(each, chunk.indices) for each, chunk in zip(values, column.chunks, strict=True)]
        return pa.chunked_array([part for chunk in chunks for part in chunk.chunks], type=_plain_type(type_.value_type))
    if pa.types.is_run_end_encoded(type_):
        return _plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], type=type_.value_type))
    if pa.types.is_string_view(type_):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(type_):
        return column.cast(pa.large_binary())
    return column


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return _plain(pa.chunked_array([], type=type_)).type
