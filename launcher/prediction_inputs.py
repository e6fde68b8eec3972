"""What stands after ``thawline predict RUN`` -> rows without labels.

Owns which inputs are texts, which are files of texts or of images' paths, which are images or folders of them, and the
columns of a file that go beside its answers. Refuses files that are not there or not read, and a lone text for a model
of text pairs, before any model is loaded. Called by `inference`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from launcher.data.image_files import files_under, is_image
from launcher.data.json_files import json_rows
from launcher.data.table_files import EVERY, FORMATS, SUFFIXES, Dialect, Table, Wanted
from launcher.errors import DataError, UserError
from launcher.recipe.data import Data, TableData

log = logging.getLogger(__name__)
OWN = "own"
"""Key of a row under which the columns of its file are, by their own names."""


# --- images -----------------------------------------------------------------------------------------------------------
def image_rows(inputs: Sequence[str], data: Data) -> list[dict[str, Any]]:
    """A row for each image: ``image``, ``id`` and `OWN`.

    An input is the path of an image; a folder, whose images are taken at any depth; or a table with the column that
    ``data.columns`` calls image, of paths that start beside the table or in the working folder, or of encoded images.

    Raises:
        UserError: no such file, or a folder without images.
        DataError: a table cannot be read, lacks the column or an image.
    """
    return [row for given in inputs for row in _images_of(given, data)]


def _images_of(given: str, data: Data) -> list[dict[str, Any]]:
    path = Path(given)
    if not given:
        raise UserError("an input is the empty text; name an image, a folder of images or a table")
    if os.path.isdir(path):
        return [{"image": str(file), "id": str(file), OWN: {}} for file in _images_under(path)]
    if not os.path.isfile(path):  # pathlib's own raises where a name is too long
        raise UserError(f"image {given!r} does not exist; paths start from the working folder, {Path.cwd()}")
    if SUFFIXES.get(path.suffix.lower(), "text") == "text":
        return [{"image": given, "id": given, OWN: {}}]
    rows = _rows_of_table(path, data, ("image",))
    return [row | {"image": _beside(row["image"], path)} for row in rows]


def _images_under(folder: Path) -> list[Path]:
    files = files_under(folder)
    images = [path for path in files if is_image(path)]
    if not images:
        raise UserError(f"folder {str(folder)!r} holds no images; name one that does, or the images themselves")
    if passed_over := len(files) - len(images):
        log.warning("%s: %d files that are no images are passed over", folder, passed_over)
    return images


def _beside(image: Any, table: Path) -> Any:
    """A path as it is when it leads to a file; else beside the table, where most tables have their images."""
    if isinstance(image, dict) and image.get("bytes") is None:
        return image | {"path": _beside(image.get("path"), table)}
    if not isinstance(image, str) or Path(image).is_absolute():
        return image
    beside = table.parent / image
    if os.path.isfile(beside) and os.path.isfile(image) and not beside.samefile(image):
        raise DataError(
            f"{table}: {image!r} is two files, {beside} and {Path(image).absolute()}; run from the table's folder, or "
            "write absolute paths"
        )
    return image if os.path.isfile(image) else str(beside)


# --- texts ------------------------------------------------------------------------------------------------------------
def text_rows(inputs: Sequence[str], data: Data, *, is_pair: bool) -> list[dict[str, Any]]:
    """A row for each text, or several for a file of texts: ``text``, perhaps ``text_pair``, ``id`` and `OWN`.

    A file is what is there and ends with one of `SUFFIXES`: .txt holds one text a line, the others have the columns
    that ``data.columns`` names, and ``data.encoding``.

    Raises:
        UserError: something that looks like a file is not there or is no table, or a text has no second one for a
            model of pairs.
        DataError: a file cannot be read, lacks a column or a text.
    """
    return [row for given in inputs for row in _texts_of(given, data, is_pair)]


def _texts_of(given: str, data: Data, is_pair: bool) -> list[dict[str, Any]]:
    if given == "-":
        raise UserError("'-' would be standard input, which is not read; put the texts into a .txt file, one a line")
    path, is_there = Path(given), _is_there(given)
    is_table = path.suffix.lower() in SUFFIXES
    if is_there and path.is_dir():
        raise UserError(f"{given!r} is a folder; name the files of texts in it ({' '.join(SUFFIXES)})")
    if is_there and not is_table:
        raise UserError(
            f"{given!r} is a file, and its suffix tells no format ({' '.join(SUFFIXES)}); rename or convert it. "
            "If it is meant as a text, put it into a .txt file"
        )
    if is_table and not is_there and not any(map(str.isspace, given)):
        raise UserError(
            f"{given!r} does not exist; paths start from the working folder, {Path.cwd()} (a text that ends with "
            f"{path.suffix} goes into a file of texts)"
        )
    if is_there:
        if SUFFIXES[path.suffix.lower()] == "text" and is_pair:
            raise UserError(
                f"{path} holds one text a line, and the model was trained on pairs; give it a csv or JSON lines"
            )
        return _rows_of_table(path, data, ("text", "text_pair") if is_pair else ("text",))
    if is_pair:
        raise UserError(
            f"{given!r} is one text, and the model was trained on pairs; give it a file, csv or JSON lines, with "
            f"{_name(data, 'text')!r} and {_name(data, 'text_pair')!r}"
        )
    return [{"text": given, "id": given, OWN: {}}]


def _is_there(given: str) -> bool:
    try:
        return bool(given) and os.path.exists(given)
    except ValueError:  # a null character
        return False


# --- tables -----------------------------------------------------------------------------------------------------------
def _rows_of_table(path: Path, data: Data, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The task's columns of each row, with what else the file has under `OWN`."""
    format_ = SUFFIXES[path.suffix.lower()]
    names = {column: column if format_ == "text" else _name(data, column) for column in columns}
    encoding = data.encoding if isinstance(data, TableData) else "utf-8"
    wanted = [Wanted(name, f"data.columns.{key}") for key, name in names.items()]
    has_schema = format_ in ("csv", "parquet", "arrow")  # all cells of a column are alike, whether a task looks or not
    table = FORMATS[format_](path, encoding, [*wanted, EVERY] if has_schema else wanted, Dialect.of(data))
    if not table.ids:
        raise UserError(f"{path} has no rows; give it some, or leave it out")
    values = {key: table.columns[name].to_pylist() for key, name in names.items()}
    for key, cells in values.items():
        kind, is_right = ("image", _is_image) if key == "image" else ("text", _is_text)
        wrong = [row for row, cell in enumerate(cells) if not is_right(cell)]
        if wrong:
            raise DataError(
                f"{path}: no {kind} in column {names[key]!r} of {table.named(wrong)}; repair or remove them"
            )
    own = _own_columns(path, format_, encoding, table)
    return [
        {**{key: cells[row] for key, cells in values.items()}, "id": f"{path}:{row_id}", OWN: own[row]}
        for row, row_id in enumerate(table.ids)
    ]


def _own_columns(path: Path, format_: str, encoding: str, table: Table) -> list[dict[str, Any]]:
    """All columns of each row as the file has them, but for encoded images."""
    if format_ == "json":  # whose objects may differ in keys and types where no task looks
        own: list[dict[str, Any]] = json_rows(path, encoding)
    else:
        columns = table.columns
        own = columns.select([field.name for field in columns.schema if not _has_bytes(field.type)]).to_pylist()
    assert len(own) == len(table.ids), f"{path}: {len(own)} and {len(table.ids)} rows"
    return own


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_):
        return any(_has_bytes(type_.field(index).type) for index in range(type_.num_fields))
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_))


def _is_text(cell: object) -> bool:
    return isinstance(cell, str)


def _is_image(cell: object) -> bool:
    return isinstance(cell, (str, bytes, dict)) and bool(cell)


def _name(data: Data, column: str) -> str:
    """The data's own name for a column of the task."""
    return data.columns.get(column, column)
