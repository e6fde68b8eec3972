"""Metadata files beside images, as `datasets`' imagefolder reads them: metadata.csv, metadata.jsonl, metadata.parquet.

Owns which rows they make: where there is one, a split has the rows that its files list and no others, and no label
comes from a folder's name. ``file_name`` is the column ``image``, ``X_file_name`` the column ``X``; names start from
the metadata file's own folder. Refuses images that no metadata file could list. Called by `image_folders`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from launcher.data.class_names import alike
from launcher.data.table import Table, Wanted
from launcher.data.table_files import FORMATS, SUFFIXES
from launcher.errors import DataError

log = logging.getLogger(__name__)
NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def in_folder(files: Sequence[Path]) -> list[Path]:
    """The metadata files among these.

    Raises:
        DataError: a folder has two.
    """
    found = [path for path in files if path.name in NAMES]
    folders = [path.parent for path in found]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise DataError(
            f"{twice} holds {' and '.join(path.name for path in found if path.parent == twice)}; keep one of them"
        )
    return found


def read(
    metadata: Sequence[Path], images: Sequence[Path], folder: Path, splits: Sequence[Path], wanted: list[Wanted]
) -> Table:
    """The rows of one split's folder.

    Args:
        metadata: the files in ``folder`` at any depth, and beside the splits' folders.
        images: all that lie in ``folder``.
        splits: the folders of all splits; what a file beside them lists must lie in one.

    Raises:
        DataError: an image that no file could list, a file without names of images, a listed image in no split.
    """
    above = {path.parent for path in metadata}
    stray = next((image for image in images if not above & {*image.parents}), None)
    if stray is not None:
        raise DataError(
            f"{stray} has no metadata file in its folder or above, and {metadata[0]} is one; list it there, or remove "
            "the metadata files to learn the names of the folders"
        )
    parts = [_rows_of(path, folder, splits, wanted) for path in metadata]
    table = joined([part for part, _ in parts])
    unlisted = {str(image) for image in images} - {path for _, paths in parts for path in paths}
    if unlisted:
        log.warning("%s: %d of %d images are in no metadata file and not used", folder, len(unlisted), len(images))
    return table


def joined(tables: Sequence[Table]) -> Table:
    """One table of several.

    Raises:
        DataError: they name their classes so that these cannot be told apart, or a column has other types.
    """
    if len(tables) == 1:
        return tables[0]
    numbered, class_names = alike(list(tables))
    try:
        columns = pa.concat_tables([table.columns for table in numbered], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        names = ", ".join(table.where for table in tables)
        raise DataError(f"the metadata files differ in the type of a column: {error}; files: {names}") from error
    ids = [row for table in tables for row in table.ids]
    return Table(columns, ids, f"{tables[0].where} and {len(tables) - 1} more", class_names)


def _rows_of(path: Path, folder: Path, splits: Sequence[Path], wanted: list[Wanted]) -> tuple[Table, list[str]]:
    """The rows of one file that lie in ``folder``, and their images' paths."""
    image = next((column for column in wanted if column.key == "data.columns.image"), None)
    others = [column for column in wanted if column is not image]
    candidates = _names_of(image.name) if image else []
    read_file = FORMATS[SUFFIXES[path.suffix]]
    table = read_file(path, "utf-8", [*others, *(Wanted(name, "data.columns.image", False) for name in candidates)])
    if image is None:
        return table, []
    there = [name for name in candidates if name in table.columns.column_names]
    if not there:
        shown = " or ".join(map(repr, candidates))
        raise DataError(f"data.columns.image: {path} has no column {shown}; it names each row's image file")
    texts = table.columns[there[0]].to_pylist()
    paths = [os.path.normpath(path.parent / text) if isinstance(text, str) and text else None for text in texts]
    kept = [row for row, image_path in enumerate(paths) if _is_in(image_path, path, folder, splits, row)]
    columns = {name: table.columns[name] for name in table.columns.column_names if name not in candidates}
    columns[image.name] = pa.array(paths, pa.string())
    ids = [os.path.relpath(found, folder) if (found := paths[row]) else f"{path.name}:{table.ids[row]}" for row in kept]
    taken = pa.table(columns).take(pa.array(kept, pa.int64()))
    return Table(taken, ids, str(path), table.class_names), [found for row in kept if (found := paths[row])]


def _names_of(column: str) -> list[str]:
    """What may name the images of a column, the likeliest first."""
    return ["file_name", "image_file_name", "image"] if column == "image" else [column, f"{column}_file_name"]


def _is_in(image: str | None, path: Path, folder: Path, splits: Sequence[Path], row: int) -> bool:
    """Whether a row of ``path`` belongs to ``folder``: a file beside the splits' folders has rows of all of them."""
    if folder == path.parent or folder in path.parent.parents or image is None:
        return True
    if not any(split in Path(image).parents for split in splits):
        raise DataError(
            f"{path}, row {row}: {image} lies in none of the splits, {', '.join(split.name for split in splits)}"
        )
    return folder in Path(image).parents
