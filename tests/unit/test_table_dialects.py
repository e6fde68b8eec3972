"""Every dialect of csv, and what ends a line: the rows are those of an independent reader, or the file is refused."""

from __future__ import annotations

import csv
import io
import logging
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import TypeAdapter

from launcher.data import csv_files, load
from launcher.data.csv_files import LINES_OF_A_CELL, Dialect, read_csv
from launcher.data.table import Wanted
from launcher.errors import DataError
from launcher.recipe import CausalLM, TextClassification
from launcher.recipe.data import Data

Rows = list[tuple[str, str]]
TEXTS = TextClassification(kind="text-classification")
PLAIN: Rows = [("a fine film", "pos"), ("a dull one", "neg"), ("so so", "pos"), ("no", "neg")]
QUOTED: Rows = [
    ('"Hello," he said', "pos"),
    ("two\nlines, one cell", "neg"),
    ('ends with "', "pos"),
    ("a\ttab; a | bar", "neg"),
    ('""', "pos"),
    ("# no comment", "neg"),
    (" spaces ", "pos"),
]
GLUE: Rows = [  # as in SST and QNLI: quotes are characters, opened and never closed
    ('"hide new secretions from the parental units', "neg"),
    ('contains no wit , only labored gags"', "neg"),
    ('"that loves its characters"', "pos"),
    ('it \'s a ""great"" film', "pos"),
    ('"', "neg"),
    ("a\\b, c;d", "pos"),
]


def written(rows: Rows, delimiter: str, line_end: str = "\n", header: tuple[str, ...] = ("text", "label")) -> str:
    """As Python's own writer does it."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=line_end).writerows([header, *rows])
    return file.getvalue()


def joined(rows: Rows, delimiter: str, line_end: str = "\n") -> str:
    return line_end.join(delimiter.join(row) for row in [("text", "label"), *rows]) + line_end


def escaped(rows: Rows) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=",", quoting=csv.QUOTE_NONE, escapechar="\\", quotechar=None)
    writer.writerows([("text", "label"), *rows])
    return file.getvalue()


MANY_LINES: Rows = [("line\n" * LINES_OF_A_CELL, "x"), ("b", "y")]
MYSQL = 'text,label\n"he said \\"hi\\", and left",pos\n"c:\\\\temp",neg\n'
EXCEL = 'text,label,,\r\na,pos,,\r\n"b, c",neg,,\r\n\r\n\r\n'
READ: dict[str, tuple[str, str | bytes, dict[str, Any], Rows]] = {
    # name of the case: (file, content, keys of `data`, rows)
    "comma": ("a.csv", written(QUOTED, ","), {}, QUOTED),
    "quoted lines end with CRLF": ("a.csv", written(QUOTED, ",", "\r\n"), {}, QUOTED),
    "CRLF inside a cell": (
        "a.csv", 'text,label\n"a\r\nb",x\n"c\rd",y\n', {}, [("a\r\nb", "x"), ("c\rd", "y")],
    ),
    "CR alone": ("a.csv", joined(PLAIN, ",", "\r"), {}, PLAIN),
    "CR alone in a tsv": ("a.tsv", joined(GLUE, "\t", "\r"), {}, GLUE),
    "no end of the last line": ("a.csv", joined(PLAIN, ",").rstrip("\n"), {}, PLAIN),
    "blank lines": ("a.csv", joined(PLAIN, ",").replace("a dull", "\n\na dull") + "\n\n", {}, PLAIN),
    "blank lines with CRLF": ("a.csv", joined(PLAIN, ",", "\r\n") + "\r\n\r\n", {}, PLAIN),
    "semicolon": ("a.csv", written(QUOTED, ";"), {"delimiter": ";"}, QUOTED),
    "pipe": ("a.csv", written(QUOTED, "|"), {"delimiter": "|"}, QUOTED),
    "tab in a csv": ("a.csv", written(QUOTED, "\t"), {"delimiter": "tab"}, QUOTED),
    "tab in backslashes": ("a.csv", written(QUOTED, "\t"), {"delimiter": "\\t"}, QUOTED),
    "space": ("a.csv", written(QUOTED, " "), {"delimiter": " "}, QUOTED),
    "control character": ("a.csv", joined(GLUE, "\x01"), {"delimiter": "\x01", "quoting": "none"}, GLUE),
    "GLUE": ("a.tsv", joined(GLUE, "\t"), {}, GLUE),
    "GLUE with CRLF": ("a.tsv", joined(GLUE, "\t", "\r\n"), {}, GLUE),
    "GLUE that is called csv": ("a.csv", joined(GLUE, "\t"), {"delimiter": "\t", "quoting": "none"}, GLUE),
    "tsv with quoting": ("a.tsv", written(QUOTED, "\t"), {"quoting": "standard"}, QUOTED),
    "comma in a tsv": ("a.tsv", written(QUOTED, ","), {"delimiter": ",", "quoting": "standard"}, QUOTED),
    "escaped quotes": (
        "a.csv", MYSQL, {"escape": "\\"}, [('he said "hi", and left', "pos"), ("c:\\temp", "neg")],
    ),
    "escaped delimiters": (
        "a.csv", escaped([("a, b", "x"), ('"c', "y")]), {"quoting": "none", "escape": "\\"},
        [("a, b", "x"), ('"c', "y")],
    ),
    "signs of patterns": (
        "a.csv", "text^label\n\"say %\"hi%\"\"^x\nb]%^^y\n", {"delimiter": "^", "escape": "%"},
        [('say "hi"', "x"), ("b]^", "y")],
    ),
    "utf-16": ("a.csv", written(QUOTED, ",", "\r\n").encode("utf-16"), {"encoding": "utf-16"}, QUOTED),
    "byte order mark": ("a.csv", b"\xef\xbb\xbf" + written(QUOTED, ",").encode(), {}, QUOTED),
    "latin-1": ("a.csv", "text;label\nné;a\nça;b\n".encode("latin-1"), {"delimiter": ";", "encoding": "latin-1"},
                [("né", "a"), ("ça", "b")]),
    "Excel": ("a.csv", EXCEL, {}, [("a", "pos"), ("b, c", "neg")]),
    "other columns of one name": ("a.csv", "x,text,x,label\n1,a,2,b\n3,c,4,d\n", {}, [("a", "b"), ("c", "d")]),
    "quote in the middle": ("a.csv", 'text,label\n5" disk,a\nsay "x",b\n', {}, [('5" disk', "a"), ('say "x"', "b")]),
    "space before a quote": ("a.csv", 'text,label\n "x",a\nb, c\n', {}, [(' "x"', "a"), ("b", " c")]),
    "U+0000": ("a.csv", "text,label\na\0b,x\nc,y\n", {}, [("a\0b", "x"), ("c", "y")]),
    "line ends of others": (
        "a.csv", "text,label\na\x0bb\x0cc,x\nd\x85e\u2028f,y\n", {}, [("a\x0bb\x0cc", "x"), ("d\x85e\u2028f", "y")],
    ),
    "a cell of many lines": ("a.csv", written(MANY_LINES, ","), {}, MANY_LINES),
    "header over two lines": ("a.csv", '"a\nb",text,label\n1,c,x\n2,d,y\n', {}, [("c", "x"), ("d", "y")]),
}  # fmt: skip


def rows_of(folder: Path, name: str, content: str | bytes, **data: Any) -> Rows:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    keys = {"source": "csv", "files": name, "split": {"validation": 0}, **data}
    splits = load(TypeAdapter(Data).validate_python(keys), TEXTS, folder)
    assert splits.labels is not None
    return [(row["text"], splits.labels[row["label"]]) for row in splits.train]


@pytest.mark.parametrize("case", READ)
def test_rows_are_those_of_independent_readers(case: str, tmp_path: Path) -> None:
    name, content, data, expected = READ[case]
    assert rows_of(tmp_path, name, content, **data) == expected
    delimiter = {"tab": "\t", "\\t": "\t"}.get(data.get("delimiter", ""), data.get("delimiter"))
    settings: dict[str, Any] = {
        "delimiter": delimiter or ("\t" if name.endswith("tsv") else ","),
        "quoting": {"none": csv.QUOTE_NONE, "standard": csv.QUOTE_MINIMAL}[
            data.get("quoting", "none" if name.endswith("tsv") else "standard")
        ],
        "escapechar": data.get("escape"),
    }
    encoding = data.get("encoding", "utf-8-sig")
    with (tmp_path / name).open(encoding=encoding, newline="") as file:
        header, *rows = [row for row in csv.reader(file, **settings) if row]
    text, label = header.index("text"), header.index("label")
    assert [(row[text], row[label]) for row in rows] == expected
    if case == "U+0000":  # at which pandas ends the cell
        return
    frame = pd.read_csv(tmp_path / name, encoding=encoding, dtype=str, keep_default_na=False, **settings)
    assert list(zip(frame["text"], frame["label"], strict=True)) == expected


LONG = "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(2 * LINES_OF_A_CELL))
REFUSED: dict[str, tuple[str, str | bytes, dict[str, Any], tuple[str, ...]]] = {
    # name of the case: (file, content, keys of `data`, parts of the message)
    "semicolon": ("a.csv", written(PLAIN, ";"), {}, ("no column 'text' in", "set data.delimiter: ';';")),
    "semicolon with another column": (
        "a.csv", "body;label\na;x\n", {}, ("its first line holds 1 of ';': set data.delimiter: ';'",)
    ),
    "pipe": ("a.csv", written(PLAIN, "|"), {}, ("set data.delimiter: '|';",)),
    "tab": ("a.csv", written(PLAIN, "\t"), {}, ("set data.delimiter: tab;",)),
    "comma in a tsv": ("a.tsv", written(PLAIN, ","), {}, ("set data.delimiter: ',';",)),
    "quoted header of a tsv": ("a.tsv", '"text"\t"label"\n"a"\t"x"\n', {}, ("set data.quoting: standard;",)),
    "quotes that nobody closes": (
        "a.csv", joined([("a", "x"), ('"b', "y"), ("c", "x")], ","), {},
        ("a.csv, line 3: the quote that opens '\"b,y\\nc,x\\n' is never closed", "set data.quoting: none"),
    ),
    "quotes that another text closes": (
        "a.csv", 'text,label\na,x\n"b,y\n"c,x\nd,y\n', {},
        ("a.csv, line 3: the quote that opens '\"b,y\\n\"' is closed before 'c,x\\nd,y\\n' in line 4", "quoting: none"),
    ),
    "GLUE read as csv": ("a.csv", joined(GLUE, "\t"), {"delimiter": "tab"}, ("a.csv, line 6: the quote that opens",)),
    "a quote that is closed hundreds of lines later": (
        "a.csv", 'text,label\nfirst,a\n"second,a\n' + LONG + 'last",b\n', {},
        ("a.csv, line 3: the quote that opens '\"second,a\\ntext 0,a\\n", f" {2 * LINES_OF_A_CELL + 1} lines later"),
    ),
    "backslashes": ("a.csv", MYSQL, {}, ("a.csv, line 2:", r"set data.escape: '\'")),
    "an escape before nothing": (
        "a.csv", "text,label\na,x\nb,y\\", {"escape": "\\"}, ("a.csv, line 3: the file ends with the escape character",)
    ),
    "too many cells": (
        "a.csv", 'text,label\n"a\nb",x\n\nc, d,y\n', {},
        ("a.csv, line 5: 3 cells where the header names 2 columns: 'c, d,y'; quote a cell that holds ','",),
    ),
    "too few cells": ("a.csv", "text,label\r\na,x\r\nb\r\n", {}, ("a.csv, line 3: 1 cell where the header names 2",)),
    "a trailing delimiter": ("a.csv", "text,label\na,x,\nb,y,\n", {}, ("a.csv, line 2: 3 cells where",)),
    "a quoted cell of a tsv": (
        "a.tsv", 'text\tlabel\na\tx\n"b\nc"\ty\n', {}, ("a.tsv, line 3: 1 cell", "set data.quoting: standard")
    ),
    "a comment": ("a.csv", "# made by hand\ntext,label\na,x\n", {}, ("no column 'text'", "it has: '# made by hand'")),
    "a wanted name twice": ("a.csv", "text,label,text\na,x,b\n", {}, ("data.columns.text:", "names 'text' twice")),
    "an empty row of Excel": ("a.csv", "text,label,,\na,x,,\n,,,\nb,y,,\n", {}, ("is empty in 1 row", ": 1; fill")),
    "Excel's own line": ("a.csv", "sep=;\ntext;label\na;x\n", {}, ("'sep=;', tells Excel the delimiter: take it out",)),
    "utf-16 that is not said": ("a.csv", written(PLAIN, ",").encode("utf-16"), {}, ("set data.encoding: utf-16",)),
    "utf-16 without a mark": ("a.csv", written(PLAIN, ",").encode("utf-16-le"), {}, ("data.encoding: utf-16-le",)),
    "a compressed file": ("a.csv", b"\x1f\x8b\x08\x00\xff", {}, ("compressed (gzip): unpack it",)),
    "labels that differ in spaces": (
        "a.csv", "text,label\na,x\nb, x\nc,y\n", {}, ("has both ' x' and 'x'; write them alike",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_lose_rows_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    name, content, data, parts = REFUSED[case]
    with pytest.raises(DataError) as refused:
        rows_of(tmp_path, name, content, **data)
    for part in parts:
        assert part in str(refused.value)


def test_every_file_is_read_as_python_reads_it_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random files of what is special to a dialect, in blocks so small that cells lie across them."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 48)
    draw = random.Random(0)
    pieces = ["a", "b", '"', '""', ",", "\t", "\n", "\r", "\r\n", " ", "\\", '\\"', "\u2028", "\0", "é"]
    num_read, file = 0, tmp_path / "a.csv"
    for _ in range(1500):
        quoting = draw.choice(["standard", "none"])
        delimiter, escape = draw.choice(",\t"), draw.choice([None, None, "\\"])
        cells = [
            ["".join(draw.choices(pieces, k=draw.randrange(5))) for _ in "ab"] for _ in range(draw.randrange(1, 5))
        ]
        if draw.random() < 0.7:
            cells = [[_fitting(cell, quoting) for cell in row] for row in cells]
        content = "\n".join(delimiter.join(row) for row in [["1", "2"], *cells])
        file.write_bytes(content.encode())
        try:
            table = read_csv(file, "utf-8", [Wanted("1", ""), Wanted("2", "")], Dialect(delimiter, quoting, escape))
        except DataError:
            continue
        rows = list(
            csv.reader(
                io.StringIO(content, newline=""), delimiter=delimiter, escapechar=escape,
                quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
            )
        )[1:]  # fmt: skip
        assert [[cell or "" for cell in row.values()] for row in table.columns.to_pylist()] == [r for r in rows if r]
        num_read += 1
    assert num_read > 500


def _fitting(cell: str, quoting: str) -> str:
    if quoting == "standard":
        return '"' + cell.replace('"', '""') + '"'
    return "".join(sign for sign in cell if sign not in "\r\n,\t\\")


def test_a_tsv_that_looks_quoted_is_read_as_it_is_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("plain", "x"), ('say "hi"', "y")]
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path, "a.tsv", written(rows, "\t"))[1] == ('"say ""hi"""', "y")
        assert "a.tsv, line 3: a cell looks quoted" in caplog.text
        caplog.clear()
        rows_of(tmp_path, "a.tsv", written(rows, "\t"), quoting="none")
        rows_of(tmp_path, "a.tsv", joined(GLUE, "\t"))
        assert not caplog.text


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_text_file_has_the_lines_that_python_counts(line_end: str, last: str, tmp_path: Path) -> None:
    lines = ["one", "", "  two\u2028and", " ", "a\x0bb\x0cc\x85d", '"', "last"]
    (tmp_path / "a.txt").write_bytes((line_end.join(lines) + last).encode())
    data = TypeAdapter(Data).validate_python({"source": "text", "files": "a.txt", "split": {"validation": 0}})
    splits = load(data, CausalLM(kind="causal-lm"), tmp_path)
    with (tmp_path / "a.txt").open(encoding="utf-8") as file:
        expected = [(str(number), line.rstrip("\n")) for number, line in enumerate(file) if line.strip()]
    assert [(row["id"], row["text"]) for row in splits.train] == expected


def test_a_file_without_a_header_is_told_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "in_domain_train.tsv").write_text("gj04\t1\t\tOur friends.\ngj04\t0\t*\tOur friend.\n")  # as CoLA's
    with pytest.raises(DataError, match="its first line looks like a row: write a line with the names"):
        read_csv(tmp_path / "in_domain_train.tsv", "utf-8", [Wanted("text", "data.columns.text")])
