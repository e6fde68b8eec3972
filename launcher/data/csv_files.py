"""csv and its dialects -> columns.

Owns the delimiter, the quotes and the escape character, and the messages about a row that does not keep to them. Arrow
parses; it agrees with Python's `csv` wherever it accepts a file, but both read on where a stray quote swallows rows:
that is looked for first, and refused with the line in which the quote opens. Called by `table_files`.

Dialects are RFC 4180's: a cell in quotes may hold the delimiter, line ends and doubled quotes. A quote inside a cell
that began without one is a character. Lines with nothing in them are no rows; no line is a comment.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from launcher.data.table import Table, Wanted, present, row_numbers
from launcher.data.text_encoding import line_of, num_line_ends, utf8
from launcher.errors import DataError
from launcher.recipe.data import Data, TableData
from launcher.recipe.yaml_tree import shortened

log = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 25
"""Arrow parses as many at once; a row must fit into one block."""
LARGEST_BLOCK = (1 << 31) - 1
LINES_OF_A_CELL = 300
"""A quoted cell with more line ends was not meant to be one: its quote opens a text, and the next quote closes it."""
OTHER_DELIMITERS = {";": "';'", "\t": "tab", "|": "'|'", ",": "','"}
"""What files are often delimited by -> how a recipe writes it."""


@dataclass(frozen=True)
class Dialect:
    """How the cells of a csv are told apart; None: as its suffix says."""

    delimiter: str | None = None
    quoting: Literal["standard", "none"] | None = None
    escape: str | None = None

    @classmethod
    def of(cls, data: Data) -> Dialect:
        """What a recipe says."""
        if not isinstance(data, TableData):
            return cls()
        delimiter = "\t" if data.delimiter in ("tab", "\\t") else data.delimiter
        return cls(delimiter, data.quoting, data.escape)

    def for_file(self, path: Path) -> Dialect:
        """Tabs and no quoting for .tsv, commas and quotes for all others, unless it is said."""
        is_tsv = path.suffix.lower() == ".tsv"
        return Dialect(
            self.delimiter or ("\t" if is_tsv else ","),
            self.quoting or ("none" if is_tsv else "standard"),
            self.escape,
        )

    def reader(self, content: bytes) -> Any:
        """Python's own, of a resolved dialect."""
        assert self.delimiter is not None
        return csv.reader(
            io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL,
            escapechar=self.escape,
        )


AS_SUFFIX = Dialect()
"""Nothing is said."""


def read_csv(path: Path, encoding: str, wanted: list[Wanted], dialect: Dialect = AS_SUFFIX) -> Table:
    """Every cell stays the text it is: "007", "NA" and "true" are no numbers, nulls or truths. Empty is null.

    Raises:
        DataError: with the line of what does not keep to the dialect, or the column that is not there.
    """
    content = utf8(path, encoding)
    used = dialect.for_file(path)
    header = _header(path, content, used)
    there = present(wanted, header, str(path), _dialect_advice(content, header, used, wanted))
    refuse_stray_quotes(path, content, used)
    if dialect.quoting is None and used.quoting == "none":
        _warn_of_quotes(path, content, used)
    indices = {name: str(header.index(name)) for name in there}
    try:
        columns = _parsed(content, used, len(header), list(indices.values()))
    except pa.ArrowInvalid as error:
        raise DataError(_misfit(path, content, used, header) or f"{path}: {error}") from error
    return Table(columns.rename_columns(there), row_numbers(columns.num_rows), str(path))


def _parsed(content: bytes, dialect: Dialect, num_columns: int, wanted: list[str]) -> pa.Table:
    """Columns by their number: names of others, which nobody wants, may be empty or double."""
    has_long_cells = dialect.escape is not None or (dialect.quoting != "none" and b'"' in content)
    # Where \r\n inside a cell lies across two blocks, Arrow loses its second half.
    block = LARGEST_BLOCK if has_long_cells and b"\r\n" in content else BLOCK_BYTES
    return pyarrow.csv.read_csv(
        pa.BufferReader(content),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False,  # a parse error then tells its row
            block_size=min(len(content) + 1, block),
            column_names=[str(index) for index in range(num_columns)],
            skip_rows_after_names=1,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=False if dialect.quoting == "none" else '"',
            escape_char=dialect.escape or False,
            newlines_in_values=has_long_cells,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.large_string()),
            include_columns=wanted,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


# --- the header -------------------------------------------------------------------------------------------------------
def _header(path: Path, content: bytes, dialect: Dialect) -> list[str]:
    try:
        header: list[str] = next(dialect.reader(content), [])
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}; it must hold the names of the columns") from error
    if not header:
        what = f"{path}, line 1 is blank" if content.strip() else f"{path} is empty"
        raise DataError(f"{what}; a first line with the names of the columns is needed")
    return header


def _dialect_advice(content: bytes, header: list[str], dialect: Dialect, wanted: list[Wanted]) -> str:
    """The key that makes a header hold the wanted columns; empty when it does, or no key is known to."""
    names = {column.name for column in wanted if column.is_required}
    if names <= set(header):
        return ""
    first = re.split(rb"[\r\n]", content, maxsplit=1)[0]
    if first.lower().startswith(b"sep="):
        return f"its first line, {header[0]!r}, tells Excel the delimiter: take it out, and set data.delimiter; "
    for delimiter, written in {dialect.delimiter or ",": "", **OTHER_DELIMITERS}.items():
        for quoting in (dialect.quoting, "standard", "none"):
            other = Dialect(delimiter, "none" if quoting == "none" else "standard", dialect.escape)
            if names <= set(_cells(first, other)):
                keys = [f"data.delimiter: {written}"] if delimiter != dialect.delimiter else []
                keys += [f"data.quoting: {quoting}"] if quoting != dialect.quoting else []
                return f"set {' and '.join(keys)}; " if keys else ""
    found = max(OTHER_DELIMITERS, key=header[0].count)
    if len(header) == 1 and found in header[0]:
        written = OTHER_DELIMITERS[found]
        return f"its first line holds {header[0].count(found)} of {written}: set data.delimiter: {written}; "
    if any(re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", name) for name in header):
        return "its first line looks like a row: write a line with the names of the columns above it; "
    return ""


def _cells(line: bytes, dialect: Dialect) -> list[str]:
    try:
        return next(dialect.reader(line), [])
    except csv.Error:
        return []


# --- quotes -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Patterns:
    well_formed: re.Pattern[bytes]
    """All of a file whose quotes are in order, or the part before the first that is not."""
    cell: re.Pattern[bytes]
    """A quoted cell, however long and whatever follows."""


@cache
def _patterns(delimiter: str, quoting: str, escape: str | None) -> _Patterns:
    end = rb"[\r\n%s]" % re.escape(delimiter.encode())
    escaped = re.escape(escape.encode()) if escape else b""
    inside = rb'[^"\r\n%s]*+' % escaped
    pair = rb'(?:""|%s.)' % escaped if escape else rb'""'
    line = rb"%s(?:%s%s)*+" % (inside, pair, inside)
    lines = rb"%s(?:(?:\r\n|\r|\n)%s)" % (line, line)
    quoted = rb'(?:\A|(?<=%s))"%s{0,%d}+"(?=%s|\Z)' % (end, lines, LINES_OF_A_CELL, end)
    parts = [rb'[^"%s]++' % escaped, quoted, rb'(?<!%s)(?!\A)"' % end]
    if quoting == "none":
        parts = [rb"[^%s]++" % escaped]
    if escape:
        parts.append(rb'%s."*+' % escaped)  # a quote after it does not begin a cell
    return _Patterns(
        re.compile(rb"(?:%s)*+" % b"|".join(parts), re.DOTALL), re.compile(rb'"%s*+("?)' % lines, re.DOTALL)
    )


def refuse_stray_quotes(path: Path, content: bytes, dialect: Dialect) -> None:
    """Raise at the first quote that opens a cell and does not close it as it should, or an escape before nothing."""
    has_quotes = dialect.quoting != "none" and b'"' in content
    if not has_quotes and dialect.escape is None:
        return
    patterns = _patterns(dialect.delimiter or ",", dialect.quoting or "standard", dialect.escape)
    found = patterns.well_formed.match(content)
    assert found, "nothing at all is well-formed too"
    at = found.end()
    if at == len(content):
        return
    where = f"{path}, line {line_of(content, at)}"
    cell = patterns.cell.match(content, at)
    if cell is None:
        raise DataError(f"{where}: the file ends with the escape character {dialect.escape!r}; take it out")
    begin = shortened(repr(cell[0][:40].decode("utf-8", "replace")))
    advice = "if quotes are plain characters in this file, set data.quoting: none"
    lines = num_line_ends(content, at, cell.end())
    if not cell[1]:
        raise DataError(f"{where}: the quote that opens {begin} is never closed; {advice}")
    if lines > LINES_OF_A_CELL:
        raise DataError(
            f"{where}: the quote that opens {begin} is closed {lines} lines later, and a cell has at most "
            f"{LINES_OF_A_CELL}; {advice}, and longer texts go into JSON lines or parquet"
        )
    after = content[cell.end() : cell.end() + 20].decode("utf-8", "replace")
    if content[cell.end() - 2 : cell.end() - 1] == b"\\" and dialect.escape is None:
        advice = r"if \" is a quote inside a cell, set data.escape: '\'; " + advice
    closes = f"line {line_of(content, cell.end())}" if lines else "it"
    raise DataError(
        f"{where}: the quote that opens {begin} is closed before {shortened(repr(after))} in {closes}, where a cell "
        f"should end; double the quotes inside the cell, or {advice}"
    )


def _warn_of_quotes(path: Path, content: bytes, dialect: Dialect) -> None:
    """Say that the quotes are kept, where a .tsv looks as if it were written with quoting after all."""
    if b'""' not in content:
        return
    patterns = _patterns(dialect.delimiter or "\t", "standard", dialect.escape)
    found = patterns.well_formed.match(content)
    quoted = re.search(rb'(?:\A|[\t\r\n])"(?:[^"\t\r\n]*+""[^"\t\r\n]*+)++"(?=[\t\r\n]|\Z)', content)
    if quoted and found and found.end() == len(content):
        line = line_of(content, quoted.end())
        log.warning(
            "%s, line %d: a cell looks quoted, and .tsv is read without quoting, its quotes kept; set data.quoting: "
            "standard if they are not part of the text, or none to keep them",
            path, line,
        )  # fmt: skip


# --- rows of another length -------------------------------------------------------------------------------------------
def _misfit(path: Path, content: bytes, dialect: Dialect, header: list[str]) -> str | None:
    """The first row that has not as many cells as the header, in words; None when none is found."""
    try:
        line, row = next(
            (line, row) for line, row in _numbered(dialect.reader(content)) if row and len(row) != len(header)
        )
    except (StopIteration, csv.Error):
        return None
    advice = f"quote a cell that holds {OTHER_DELIMITERS.get(dialect.delimiter or '', repr(dialect.delimiter))}"
    if dialect.quoting == "none":
        advice = "if cells are quoted, set data.quoting: standard"
    named = f"{len(header)} column{'s' if len(header) > 1 else ''}"
    cells = f"{len(row)} cell{'s' if len(row) > 1 else ''}"
    begin = shortened(repr((dialect.delimiter or ",").join(row)))
    return f"{path}, line {line}: {cells} where the header names {named}: {begin}; {advice}"


def _numbered(reader: Any) -> Iterable[tuple[int, list[str]]]:
    """The line in which each row begins, and its cells."""
    line = 1
    for row in reader:
        yield line, row
        line = reader.line_num + 1
