"""A file or folder -> its columns, and how a recipe names it.

Reads as training will, and says what in the file will stop it: rows of another length than the header, a header that
looks like a row. Called by `writing`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from launcher.data.image_files import files_under, is_image, visible
from launcher.data.image_folders import SPLIT_WORDS, read_folders
from launcher.data.table_files import SUFFIXES, Wanted
from launcher.errors import DataError, UserError
from launcher.first_recipe.columns import Column
from launcher.first_recipe.dialect import DELIMITERS, Dialect, decoded, dialect_of
from launcher.recipe import ImageFolderData
from launcher.visible_text import visible as on_one_line

ROWS_READ = 300_000
FORMATS = {"csv": ".csv .tsv", "json": ".json .jsonl .ndjson", "parquet": ".parquet", "text": ".txt"}
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")


@dataclass(frozen=True)
class Seen:
    """What the data is."""

    source: str
    """``data.source``."""
    files: Path | dict[str, Path]
    """``data.files``: a path or glob, or one for each split."""
    columns: list[Column] = field(default_factory=list)
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Keys of ``data:`` that the file needs -> (value, why)."""
    notes: list[str] = field(default_factory=list)
    """What the user should know."""
    is_whole: bool = True
    """False: only the first rows, or the first file, were read."""
    has_validation: bool = False
    """It brings its own validation rows."""

    @property
    def num_rows(self) -> int:
        return max((len(column.values) for column in self.columns), default=0)

    def column(self, name: str, flag: str) -> Column:
        """The column that a flag names.

        Raises:
            UserError: there is none.
        """
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            raise UserError(f"{flag} {name!r}: no such column; the data has: {self.names}")
        return found

    @property
    def names(self) -> str:
        return ", ".join(repr(on_one_line(column.name, 40)) for column in self.columns)


def look(given: Path) -> Seen:
    """The columns of a table, a text file, a folder of images or of tables.

    Raises:
        UserError, DataError: nothing is there, or nothing that training reads.
    """
    if given.is_dir():
        return _folder(given)
    if not given.is_file():
        hub = " A dataset of the hub: start from `thawline recipes resnet50_cifar10`." if _is_hub_id(given) else ""
        raise UserError(f"{str(given)!r} does not exist; name a file or folder from {Path.cwd()}.{hub}")
    suffix = given.suffix.lower()
    format_ = SUFFIXES.get(suffix)
    if format_ not in FORMATS:
        raise UserError(
            f"{str(given)!r}: init reads {' '.join(FORMATS.values())} files and folders of images; convert it to one"
        )
    return {"csv": _csv, "json": _json, "parquet": _parquet, "text": _text}[format_](given)


def _is_hub_id(path: Path) -> bool:
    return not path.suffix and len(path.parts) == 2


# --- folders ----------------------------------------------------------------------------------------------------------
def _folder(folder: Path) -> Seen:
    if any(is_image(file) for file in files_under(folder)):
        return _images(folder)
    tables = [file for file in visible(folder)[1] if SUFFIXES.get(file.suffix.lower()) in FORMATS]
    suffixes = sorted({file.suffix for file in tables})
    if not tables:
        raise UserError(f"{folder} holds neither images nor tables ({' '.join(FORMATS.values())}); name another")
    if len(suffixes) > 1:
        raise UserError(f"{folder} holds files of several kinds ({' '.join(suffixes)}); name one of them")
    splits: dict[str, list[Path]] = {}
    for file in tables:
        splits.setdefault(SPLIT_WORDS.get(_SHARD.sub("", file.stem).lower(), ""), []).append(file)
    if "train" not in splits:
        first, place = look(tables[0]), folder / f"*{suffixes[0]}"
        return _of_several(first, place, len(tables))
    first = look(splits["train"][0])
    order = ("train", "validation", "test")
    named: dict[str, Path] = {split: _one_or_glob(splits[split]) for split in order if split in splits}
    if others := splits.get(""):
        first.notes.append(f"{others[0].name} is of no split, and is left out")
    return _of_several(first, named, len(splits["train"]))


def with_columns(seen: Seen, names: Sequence[str]) -> Seen:
    """The same without splits that lack a column, as a competition's test file lacks the labels; each is noted."""
    if not isinstance(seen.files, dict) or seen.source == "imagefolder":
        return seen
    kept = dict(seen.files)
    for split, path in seen.files.items():
        first = next(iter(sorted(path.parent.glob(path.name))), path)
        there = {} if split == "train" else {column.name: column for column in look(first).columns}
        lacking = [name for name in names if there and not (name in there and there[name].filled)]
        if lacking:
            del kept[split]
            seen.notes.append(f"{first.name} has no {on_one_line(lacking[0], 40)!r}, so it is left out of the splits")
    return replace(seen, files=kept, has_validation="validation" in kept)


def _images(folder: Path) -> Seen:
    """As training reads it: its own messages say what is wrong with the layout."""
    if beside := [file for file in visible(folder)[1] if file.stem.lower() == "metadata"]:
        raise UserError(f"{folder} has a {beside[0].name}, whose columns say what to learn; name it: {beside[0]}")
    data = ImageFolderData(source="imagefolder", files=str(folder))
    wanted = [Wanted("image", "data.columns.image"), Wanted("label", "data.columns.label")]
    splits = read_folders(data, wanted, Path())
    images, labels = (splits["train"].columns[name].to_pylist() for name in ("image", "label"))
    columns = [Column("image", images), Column("label", labels)]
    sizes = ", ".join(f"{table.columns.num_rows:,} {split}" for split, table in splits.items())
    seen = Seen("imagefolder", folder, columns, notes=[f"images: {sizes}"])
    return replace(seen, has_validation="validation" in splits)


def _one_or_glob(files: list[Path]) -> Path:
    if len(files) == 1:
        return files[0]
    return files[0].with_name(f"{_SHARD.sub('', files[0].stem)}*{files[0].suffix}")


def _of_several(first: Seen, files: Path | dict[str, Path], num_files: int) -> Seen:
    has_validation = isinstance(files, dict) and "validation" in files
    return replace(first, files=files, is_whole=first.is_whole and num_files == 1, has_validation=has_validation)


# --- files ------------------------------------------------------------------------------------------------------------
def _csv(path: Path) -> Seen:
    text, encoding = decoded(path)
    suffix = path.suffix.lower()
    dialect = dialect_of(text, suffix)
    try:
        numbered = list(islice(_numbered(dialect, text), ROWS_READ + 2))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not numbered:
        raise DataError(f"{path} is empty; a first line with the names of the columns is needed")
    (_, header), *rows = numbered
    if header[0].lower() == "sep=" or (len(header) == 1 and re.fullmatch("sep=.", header[0], re.IGNORECASE)):
        raise DataError(f"{path}: its first line tells Excel the delimiter, and is no row of names: take it out")
    _check_header(header, [row for _, row in rows[:1000]], path)
    seen = Seen("csv", path, settings=_encoding(encoding) | _dialect_keys(dialect, suffix))
    odd = [line for line, row in rows if len(row) != len(header)]
    if odd:
        lines = ", ".join(map(str, odd[:5])) + (", …" if len(odd) > 5 else "")
        has_other_length = "row has" if len(odd) == 1 else "rows have"
        seen.notes.append(
            f"{len(odd)} {has_other_length} not the header's {len(header)} cells (line {lines}); repair or remove them"
        )
    named = [(at, name) for at, name in enumerate(header) if name and header.count(name) == 1]
    even = [row for _, row in rows[:ROWS_READ] if len(row) == len(header)]  # others' cells are not where they seem
    columns = [Column(name, [row[at] or None for row in even]) for at, name in named]
    return Seen(seen.source, path, columns, seen.settings, seen.notes, len(rows) <= ROWS_READ)


def _numbered(dialect: Dialect, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its last line."""
    reader: Any = dialect.rows(text)
    return ((reader.line_num, row) for row in reader if row)


def _check_header(header: list[str], rows: list[list[str]], path: Path) -> None:
    """Refuse a first row that is data: its names would be columns, and one row would be lost."""
    are_positions = header == [str(at) for at in range(len(header))]  # as pandas names columns without names
    numbers = [name for name in header if re.fullmatch(r"[-+]?\d+([.,]\d+)?", name.strip()) and not are_positions]
    again = [
        name for at, name in enumerate(header)
        if name and len(rows) > 3 and sum(len(row) > at and row[at] == name for row in rows) > 1
    ]  # fmt: skip
    long = [name for name in header if len(name) > 100]
    if found := next(iter([*numbers, *again, *long]), None):
        raise DataError(
            f"{path}: the first line has {on_one_line(found, 40)!r} where the name of a column is needed; "
            "add a first line with the names, such as text,label"
        )


def _json(path: Path) -> Seen:
    text, encoding = decoded(path)
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            lines = (line for line in text.split("\n") if line.strip())
            rows = [json.loads(line) for line in islice(lines, ROWS_READ + 1)]
    except ValueError as error:
        raise DataError(f"{path} is neither an array of objects nor one object a line: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: each row must be an object, {{column: value}}, and at least one is needed")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [Column(name, [row.get(name) for row in rows[:ROWS_READ]]) for name in names]
    return Seen("json", path, columns, _encoding(encoding), [], len(rows) <= ROWS_READ)


def _parquet(path: Path) -> Seen:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        table = pa.Table.from_batches(islice(file.iter_batches(65_536), 5), file.schema_arrow).slice(0, ROWS_READ)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no parquet file: {error}") from error
    metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    columns = []
    for name in dict.fromkeys(table.column_names):
        values = table.column(name).to_pylist()
        feature = features.get(name)
        names = feature.get("names") if isinstance(feature, dict) else None
        columns.append(Column(name, [None if value == -1 else value for value in values] if names else values, names))
    return Seen("parquet", path, columns, is_whole=table.num_rows == file.metadata.num_rows)


def _text(path: Path) -> Seen:
    text, encoding = decoded(path)
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if len(lines) > 1 and (num_tabs := lines[0].count("\t")) and all(line.count("\t") == num_tabs for line in lines):
        return _csv(path)  # as Excel saves "Unicode text"
    if not lines:
        raise DataError(f"{path} is empty; it needs a text on each line")
    return Seen("text", path, [Column("text", lines[:ROWS_READ])], _encoding(encoding), [], len(lines) <= ROWS_READ)


def _encoding(encoding: str) -> dict[str, tuple[str, str]]:
    if encoding == "utf-8":
        return {}
    why = "its first bytes say so" if encoding == "utf-16" else "the file is not UTF-8; look at its accents in the plan"
    return {"encoding": (encoding, why)}


def _dialect_keys(dialect: Dialect, suffix: str) -> dict[str, tuple[str, str]]:
    usual = Dialect("\t", "none") if suffix == ".tsv" else Dialect()
    keys = {}
    if dialect.delimiter != usual.delimiter:
        value = "tab" if dialect.delimiter == "\t" else dialect.delimiter
        keys["delimiter"] = (value, f"{DELIMITERS[dialect.delimiter]} is what stands between the names in the header")
    if dialect.quoting != usual.quoting:
        whys = {
            "none": "a quote is a character like any other: read as quotes, rows would be lost",
            "standard": "cells stand in quotes",
        }
        keys["quoting"] = (dialect.quoting, whys[dialect.quoting])
    if dialect.escape:
        keys["escape"] = (dialect.escape, "it stands before quotes that are part of a cell")
    return keys
