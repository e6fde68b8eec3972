"""One file -> its columns, untouched: csv, json, parquet, arrow and text.

Owns the list of formats, and those that need no module of their own: text, and the two that Arrow reads by itself. Only
the columns that are wanted are read, into memory. Called by `sources` and by `prediction_inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from launcher.data.class_names import class_names
from launcher.data.csv_files import AS_SUFFIX, Dialect, read_csv
from launcher.data.json_files import read_json
from launcher.data.table import EVERY, Table, Wanted, plain, present, row_numbers
from launcher.data.text_encoding import LINE_END, utf8
from launcher.errors import DataError

__all__ = ["EVERY", "FORMATS", "SUFFIXES", "Dialect", "Table", "Wanted", "present", "row_numbers"]


def _read_json(path: Path, encoding: str, wanted: list[Wanted], _dialect: Dialect = AS_SUFFIX) -> Table:
    return read_json(path, encoding, wanted)


def _read_parquet(path: Path, _encoding: str, wanted: list[Wanted], _dialect: Dialect = AS_SUFFIX) -> Table:
    try:
        schema = pyarrow.parquet.read_schema(path)
        there = present(wanted, list(schema.names), str(path))
        columns = pyarrow.parquet.ParquetFile(path).read(columns=there).select(there)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file, or damaged: {error}") from error
    return _named(columns, schema, path)


def _read_arrow(path: Path, _encoding: str, wanted: list[Wanted], _dialect: Dialect = AS_SUFFIX) -> Table:
    """A file or a stream of Arrow's IPC format, as feather and `datasets` write them."""
    try:
        with pa.memory_map(str(path)) as source:
            try:
                columns = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                columns = pyarrow.feather.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an arrow or feather file, or damaged: {error}") from error
    there = present(wanted, list(columns.column_names), str(path))
    return _named(columns.select(there), columns.schema, path)


def _named(columns: pa.Table, schema: pa.Schema, path: Path) -> Table:
    return Table(plain(columns), row_numbers(columns.num_rows), str(path), class_names(schema, columns.column_names))


def _read_text(path: Path, encoding: str, wanted: list[Wanted], _dialect: Dialect = AS_SUFFIX) -> Table:
    """One row a line that is not empty; the column is ``text``."""
    lines = LINE_END.split(utf8(path, encoding).decode("utf-8"))
    rows = [(str(number), line) for number, line in enumerate(lines) if line.strip()]
    there = present(wanted, ["text"], str(path))
    texts = pa.array([line for _, line in rows], pa.large_string())
    return Table(pa.table(dict.fromkeys(there, texts)), [number for number, _ in rows], str(path))


class Reader(Protocol):
    """Reads the wanted columns of a file; ``encoding`` is of csv, json and text, ``dialect`` of csv.

    Raises `DataError` where the file is not what it should be, with its line or row.
    """

    def __call__(self, path: Path, encoding: str, wanted: list[Wanted], dialect: Dialect = AS_SUFFIX, /) -> Table: ...


FORMATS: Mapping[str, Reader] = {
    "csv": read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "text": _read_text,
}
SUFFIXES: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
