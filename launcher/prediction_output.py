"""Where the answers of ``thawline predict`` go, and in which form: JSON lines, JSON, csv or tsv.

Owns the names beside one another: an answer keeps its own (``label``, ``score`` …), and a column of the input that is
called so too goes by ``input_NAME``; but an ``id`` of the input's own is the id. A file appears when it is whole.
Called by `cli`, which hands it what `inference` answers.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from launcher.errors import UserError

FORMATS: Mapping[str, str] = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
}  # fmt: skip
"""Suffix of the output -> its form."""
Answer = dict[str, Any]


def form_of(output: Path | None, form: str | None, inputs: Sequence[str]) -> str:
    """``jsonl``, ``json``, ``csv`` or ``tsv``: the one that was asked for, or the file's.

    Raises:
        UserError: no such form, or a file that cannot be written or is an input; before anything is computed.
    """
    if form is not None and form not in FORMATS.values():
        raise UserError(f"--format {form!r} is not one of {', '.join(dict.fromkeys(FORMATS.values()))}")
    if output is None:
        return form or "jsonl"
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "is a folder" if output.is_dir() else f"cannot be written: {output.parent} is no folder"
        raise UserError(f"--output {str(output)!r} {what}; name a file in a folder that exists")
    if output.exists() and any(os.path.exists(given) and output.samefile(given) for given in inputs):
        raise UserError(f"--output {str(output)!r} is an input too, and would be lost; name another file")
    suffix = output.suffix.lower()
    if form is None and suffix not in FORMATS:
        raise UserError(
            f"--output {str(output)!r}: its suffix tells no format ({' '.join(FORMATS)}); use one of these, or say "
            "--format"
        )
    return form or FORMATS[suffix]


def beside(answer: Answer, own: Mapping[str, Any]) -> Answer:
    """The answer with the input's own columns: ``id``, the columns, the rest of the answer.

    Where the input has an ``id`` itself, what the answer calls the row goes by ``row``.
    """
    rest = {name: value for name, value in answer.items() if name != "id"}
    named = dict(zip(own_names(own, rest), own.values(), strict=True))
    row = "row" if "id" in named else "id"
    while row in named:
        row = f"{row}_"
    return {row: answer["id"], **named, **rest}


def own_names(own: Iterable[str], answer: Iterable[str]) -> list[str]:
    """What the input's columns go by: their own names, and ``input_NAME`` where the answer has the name already."""
    taken, names = set(answer), list(own)
    found = []
    for name in names:
        shown = name
        while shown in taken or (shown != name and shown in names):
            shown = f"input_{shown}"
        found.append(shown)
    return found


def write(answers: Iterable[tuple[Answer, Mapping[str, Any]]], columns: Sequence[str], output: Path | None, form: str,
          ) -> None:  # fmt: skip
    """Write each answer with its input's own columns to the file, or to stdout.

    Args:
        columns: the names of all columns that some input has; a table has them in each row.
    """
    with _opened(output) as file:
        merged = (beside(answer, own) for answer, own in answers)
        if form == "jsonl":
            for answer in merged:
                print(_json(answer), file=file)
        elif form == "json":
            between = "[\n"
            for answer in merged:
                file.write(between + _json(answer))
                between = ",\n"
            file.write("\n]\n" if between == ",\n" else "[]\n")
        else:
            rows = ((answer, {**dict.fromkeys(columns), **own}) for answer, own in answers)
            _write_table((beside(answer, own) for answer, own in rows), file, "\t" if form == "tsv" else ",")


def _write_table(rows: Iterator[Answer], file: TextIO, delimiter: str) -> None:
    writer: Any = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    """A table's cell: texts and numbers as they are, what holds others as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _json(value) if isinstance(value, (dict, list)) else value


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """In JSON's types: numbers that are not finite, dates and decimals as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Stdout, in UTF-8; or a file that takes the place of ``output`` when all is written."""
    if output is None:
        reconfigure = getattr(sys.stdout, "reconfigure", None)  # a stand-in for stdout may have none
        if reconfigure is not None:
            reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        file = temporary.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror}; name another file") from error
    try:
        with file:
            yield file
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
