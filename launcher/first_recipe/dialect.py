"""The encoding of a text file, and the delimiter and quotes of a csv.

The header decides: a delimiter that it does not hold splits nothing. Each way to read the file is tried, and the one
whose rows have as many cells as the header wins. Of equals the one that makes more rows of the same lines does: quotes
that are none can swallow whole rows, and leave what looks like a table. Then what the file's suffix says. Called by
`looking`.
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.data.csv_files import LINES_OF_A_CELL
from launcher.errors import DataError

SAMPLE_ROWS = 5_000
MOST_ACCENTS = 0.3
"""Share of a Western text's bytes that are not ASCII, at most; a French one has a tenth of it."""
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


@dataclass(frozen=True)
class Dialect:
    """How a csv is read."""

    delimiter: str = ","
    quoting: str = "standard"
    """``standard``, or ``none``: a quote is a character like any other."""
    escape: str | None = None

    def rows(self, text: str, *, is_strict: bool = False) -> Iterator[list[str]]:
        """The rows, blank ones too. Raises csv.Error where the text cannot be read so.

        ``is_strict``: also where something follows a closing quote.
        """
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoting == "standard" else csv.QUOTE_NONE
        return csv.reader(
            io.StringIO(text, newline=""), delimiter=self.delimiter, quoting=quoting,
            escapechar=self.escape, strict=is_strict,
        )  # fmt: skip


def decoded(path: Path) -> tuple[str, str]:
    """(text without byte order mark, encoding): UTF-8 where it can be, UTF-16 with its mark, else a Western one.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        candidates = ["utf-16"]
    elif b"\x00" in raw[:100_000]:
        raise DataError(f"{path} is no text file (byte {raw.index(0)} is 0); convert it to csv, JSON lines or parquet")
    else:
        candidates = ["utf-8", "cp1252", "latin-1"]  # the last reads any bytes
    num_accents = len(raw.translate(None, bytes(range(128))))
    for encoding in candidates:
        try:
            text = raw.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
        if encoding in ("cp1252", "latin-1") and num_accents > MOST_ACCENTS * len(raw):
            raise DataError(f"{path} is neither UTF-8 nor a Western encoding; save it as UTF-8")
        return text, encoding
    raise DataError(f"{path} begins as UTF-16 and is not; save it as UTF-8")


def dialect_of(text: str, suffix: str) -> Dialect:
    """The dialect in which most rows have as many cells as the header."""
    csv.field_size_limit(sys.maxsize)
    usual = Dialect("\t", "none") if suffix == ".tsv" else Dialect()
    header = next((line for line in io.StringIO(text[:1_000_000]) if line.strip()), "")
    if usual.quoting == "none" and header.count('"') >= 2 and header.startswith('"'):
        usual = Dialect(usual.delimiter)
    ways = [
        Dialect(delimiter, quoting, escape)
        for delimiter in [usual.delimiter, *(one for one in DELIMITERS if one != usual.delimiter)]
        if delimiter in header
        for quoting, escape in _ways_to_quote(usual.quoting)
    ]
    return max(ways, key=lambda way: _fit(way, text), default=usual)  # the first of the best


def _ways_to_quote(usual: str) -> list[tuple[str, str | None]]:
    ways: list[tuple[str, str | None]] = [("standard", None), ("none", None)]
    return [*(ways if usual == "standard" else ways[::-1]), ("standard", "\\")]


def _fit(way: Dialect, text: str) -> tuple[float, float]:
    """(share of the rows that have the header's number of cells, rows in a line); (0, 0) for a header of one."""
    try:
        rows, num_lines, penalty = *_sample(way, text, is_strict=True), 1.0
    except csv.Error:
        try:
            rows, num_lines, penalty = *_sample(way, text, is_strict=False), 0.9
        except csv.Error:
            return 0.0, 0.0
    if not rows or len(rows[0]) < 2:
        return 0.0, 0.0
    if any(cell.count("\n") > LINES_OF_A_CELL for row in rows for cell in row):
        return 0.01, 0.0
    if way.quoting == "none" and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in rows[0]):
        penalty = 0.5  # the names are not meant to have quotes
    alike = sum(len(row) == len(rows[0]) for row in rows)
    return penalty * alike / len(rows), len(rows) / num_lines


def _sample(way: Dialect, text: str, *, is_strict: bool) -> tuple[list[list[str]], int]:
    """(the first rows that are not blank, the lines that they take)"""
    reader: Any = way.rows(text, is_strict=is_strict)
    return [row for row in itertools.islice(reader, SAMPLE_ROWS) if row], reader.line_num
