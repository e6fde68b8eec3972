"""One file -> its columns, untouched: csv, json, parquet and text.

Owns the formats and the messages about what cannot be read: encoding, header, row, type, column. Only the columns that
are wanted are read, into memory. Called by `sources`.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from launcher.errors import DataError
from launcher.recipe.yaml_tree import shortened

CSV_BLOCK_BYTES = 1 << 25
"""A row of a csv must fit into one block."""
ROWS_NAMED = 5
"""Rows that a message names before it only counts."""
_OTHER_ENCODING = "data.encoding: latin-1 (or cp1252) reads most Western files that are not UTF-8"


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


def present(wanted: list[Wanted], there: list[str], where: str) -> list[str]:
    """Names of the wanted columns that are there."""
    for column in wanted:
        if column.is_required and column.name not in there:
            near = difflib.get_close_matches(column.name, there, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"{column.key}: no column {column.name!r} in {where}; {hint}it has: {', '.join(map(repr, there))}"
            )
    return list(dict.fromkeys(column.name for column in wanted if column.name in there))


def row_numbers(num_rows: int) -> list[str]:
    return [str(number) for number in range(num_rows)]


def utf8(path: Path, encoding: str) -> bytes:
    """The file's text as UTF-8, without byte order mark.

    Raises:
        DataError: with the first byte that ``encoding`` cannot read and its line.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode(encoding).removeprefix("\ufeff").encode("utf-8")
    except LookupError:
        raise DataError(f"data.encoding: {encoding!r} is unknown; such as utf-8, latin-1, cp1252, utf-16") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: byte 0x{raw[error.start]:02x} at position {error.start} (line {line}) is not {encoding}; "
            f"{_OTHER_ENCODING}"
        ) from error
    except ValueError as error:  # of those codecs that are not for files, such as punycode
        raise DataError(f"{path} is not {encoding} (data.encoding): {error}; {_OTHER_ENCODING}") from error
    return text


def _read_csv(path: Path, encoding: str, wanted: list[Wanted]) -> Table:
    """Every cell stays the text it is: "007", "NA" and "true" are no numbers, nulls or truths. Empty is null."""
    content = utf8(path, encoding)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""), delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}; it must hold the names of the columns") from error
    if not header:
        what = f"{path}, line 1 is blank" if content.strip() else f"{path} is empty"
        raise DataError(f"{what}; a first line with the names of the columns is needed")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} twice; rename one of them")
    there = present(wanted, header, str(path))
    try:
        columns = pyarrow.csv.read_csv(
            pa.BufferReader(content),
            # one thread: a parse error then tells its row
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(content) + 1, CSV_BLOCK_BYTES)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(there, pa.large_string()),
                include_columns=there,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}; check the quotes and delimiters of that row") from error
    return Table(columns, row_numbers(columns.num_rows), str(path))


def _read_json(path: Path, encoding: str, wanted: list[Wanted]) -> Table:
    """One array of objects, or one object a line."""
    text = utf8(path, encoding).decode("utf-8")
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [_json_line(line, number, path) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, hundreds of brackets
        raise DataError(f"{path} cannot be read: {error}; repair or remove that row") from error
    strange = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if strange is not None:
        value = str(rows[strange])[:40]
        raise DataError(f"{path}, row {strange}: {value!r} is no object; each row is {{column: value}}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    there = present(wanted, names, str(path))
    columns = pa.table({name: _json_column(name, [row.get(name) for row in rows], path) for name in there})
    return Table(columns, row_numbers(len(rows)), str(path))


def _json_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON: {error.msg}; one object a line is needed, or one array of objects"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, hundreds of brackets
        raise DataError(f"{path}, line {number} cannot be read: {error}; repair or remove it") from error


def _json_column(name: str, values: list[Any], path: Path) -> pa.Array:
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


_NO_COLUMN = (pa.ArrowException, OverflowError, UnicodeEncodeError)


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


def _read_parquet(path: Path, _encoding: str, wanted: list[Wanted]) -> Table:
    try:
        schema = pyarrow.parquet.read_schema(path)
        there = present(wanted, list(schema.names), str(path))
        columns = pyarrow.parquet.read_table(path, columns=there)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from error
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    class_names = {name: features[name]["names"] for name in there if "names" in features.get(name, {})}
    return Table(columns, row_numbers(columns.num_rows), str(path), class_names)


def _read_text(path: Path, encoding: str, wanted: list[Wanted]) -> Table:
    """One row a line that is not empty; the column is ``text``."""
    lines = [line.rstrip("\r") for line in utf8(path, encoding).decode("utf-8").split("\n")]
    rows = [(str(number), line) for number, line in enumerate(lines) if line.strip()]
    there = present(wanted, ["text"], str(path))
    texts = pa.array([line for _, line in rows], pa.large_string())
    return Table(pa.table(dict.fromkeys(there, texts)), [number for number, _ in rows], str(path))


FORMATS: Mapping[str, Callable[[Path, str, list[Wanted]], Table]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
    "text": _read_text,
}
SUFFIXES: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
