"""What stands after ``thawline predict RUN`` -> rows without labels.

Owns which inputs are texts, which are files of texts and which are images. Refuses files that are not there or not
read, and a lone text for a model of text pairs, before any model is loaded. Called by `inference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.data.table_files import FORMATS, SUFFIXES, Dialect, Wanted
from launcher.errors import DataError, UserError
from launcher.recipe.data import Data, TableData


def image_rows(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each path of an image, ``image`` and ``id``.

    Raises:
        UserError: no such file.
    """
    for given in inputs:
        if not Path(given).is_file():
            what = "is a folder; name its images" if Path(given).is_dir() else "does not exist"
            raise UserError(f"image {given!r} {what}; paths start from the working folder, {Path.cwd()}")
    return [{"image": given, "id": given} for given in inputs]


def text_rows(inputs: Sequence[str], data: Data, *, is_pair: bool) -> list[dict[str, Any]]:
    """A row for each text, or several for a file of texts: ``text``, perhaps ``text_pair``, and ``id``.

    A file is what is there and ends with one of `SUFFIXES`: .txt holds one text a line, the others have the columns
    that ``data.columns`` names, and ``data.encoding``.

    Raises:
        UserError: something that looks like a file is not there, or a text has no second one for a model of pairs.
        DataError: a file cannot be read, lacks a column or a text.
    """
    return [row for given in inputs for row in _rows_of(given, data, is_pair)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name may be
        return False


def _rows_of(given: str, data: Data, is_pair: bool) -> list[dict[str, Any]]:
    path = Path(given)
    is_file = _is_file(path)
    if path.suffix.lower() in SUFFIXES and not any(map(str.isspace, given)) and not is_file:
        raise UserError(
            f"{given!r} does not exist; paths start from the working folder, {Path.cwd()} (a text that ends with "
            f"{path.suffix} goes into a file of texts)"
        )
    if path.suffix.lower() in SUFFIXES and is_file:
        return _rows_of_file(path, data, is_pair)
    if is_pair:
        raise UserError(
            f"{given!r} is one text, and the model was trained on pairs; give it a file, csv or JSON lines, with "
            f"{_name(data, 'text')!r} and {_name(data, 'text_pair')!r}"
        )
    return [{"text": given, "id": given}]


def _rows_of_file(path: Path, data: Data, is_pair: bool) -> list[dict[str, Any]]:
    format_ = SUFFIXES[path.suffix.lower()]
    if format_ == "text" and is_pair:
        raise UserError(
            f"{path} holds one text a line, and the model was trained on pairs; give it a csv or JSON lines"
        )
    names = {column: _name(data, column) for column in (("text", "text_pair") if is_pair else ("text",))}
    if format_ == "text":
        names = {"text": "text"}
    encoding = data.encoding if isinstance(data, TableData) else "utf-8"
    wanted = [Wanted(name, f"data.columns.{key}") for key, name in names.items()]
    table = FORMATS[format_](path, encoding, wanted, Dialect.of(data))
    columns = {key: table.columns[name].to_pylist() for key, name in names.items()}
    for key, values in columns.items():
        wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
        if wrong:
            raise DataError(f"{path}: no text in column {names[key]!r} of {table.named(wrong)}; repair or remove them")
    return [
        {**{key: columns[key][row] for key in columns}, "id": f"{path}:{row_id}"}
        for row, row_id in enumerate(table.ids)
    ]


def _name(data: Data, column: str) -> str:
    """The data's own name for a column of the task."""
    return data.columns.get(column, column)
