"""Which files are images, and where they lie under a folder or beside a table.

Owns the suffixes, what an operating system or a tool leaves behind (never data), the walk through folders, which
follows links and not in circles, and the paths that a table names. Opens no image. Called by `image_folders`,
`folder_metadata` and `sources`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from launcher.data.rows import is_text
from launcher.data.table import Table, Wanted
from launcher.errors import DataError

NO_PIXELS = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "PDF", "WMF"})
"""Formats that Pillow knows by name and cannot turn into pixels itself: drawings, containers and films."""
LEFT_BEHIND_FILES = frozenset({"desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"})
LEFT_BEHIND_FOLDERS = frozenset({"$recycle.bin", "@eadir", "__macosx", "__pycache__", "lost+found"})


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that Pillow reads here."""
    from PIL import Image

    Image.init()
    opened = {*Image.OPEN, "MPO"} - NO_PIXELS  # a camera's several-picture JPEG is opened as one
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in opened)


def is_image(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in image_suffixes()


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """(folders, files) in a folder, sorted, without what is hidden or left behind.

    A link is what it leads to, and a file where that is nothing. A link back to the folder itself, or to one that it
    lies in, is left out: what is there was seen on the way.

    Raises:
        DataError: the folder cannot be read, a name is no text, or something is neither file nor folder.
    """
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_folder = _is_folder(entry)
                if entry.name.lower() in (LEFT_BEHIND_FOLDERS if is_folder else LEFT_BEHIND_FILES):
                    continue
                if is_folder and entry.is_symlink() and _leads_back(folder, entry.path):
                    continue
                _check_entry(entry, is_folder)
                (folders if is_folder else files).append(folder / entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; check its permissions") from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of links
        return False


def _leads_back(folder: Path, link: str) -> bool:
    target = os.path.realpath(link)
    here = os.path.realpath(folder)
    return os.path.commonpath([target, here]) == target or any(
        os.path.realpath(above) == target for above in (folder, *folder.parents)
    )


def _check_entry(entry: os.DirEntry[str], is_folder: bool) -> None:
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{os.fsencode(entry.path)!r}: the name is not UTF-8; rename it (`convmv -f latin1 -t utf8` renames many)"
        ) from error
    if not is_folder and not entry.is_symlink() and not entry.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{entry.path} is neither a file nor a folder; move it away")


def files_under(folder: Path) -> list[Path]:
    """All visible files at any depth, sorted by path. Links to folders are followed, each folder is entered once.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        about = here.stat()
        if (about.st_dev, about.st_ino) in entered:  # a link that leads back, or to what was read already
            continue
        entered.add((about.st_dev, about.st_ino))
        folders, files = visible(here)
        found += files
        # Links last, so that a folder's own name wins over a link to it.
        waiting[:0] = [path for path in folders if path.is_symlink()]
        waiting += [path for path in folders if not path.is_symlink()]
    return sorted(found)


class ImagePaths:
    """What a table's image paths lead to: absolute, beside the recipe, or beside the table.

    A folder is listed once, however many of its files are named: a call for each row would be slow on a network's disk.
    """

    def __init__(self, table: Path, recipe_dir: Path) -> None:
        self._table = table
        self._folders = list(dict.fromkeys([recipe_dir.absolute(), table.absolute().parent]))
        self._listed: dict[str, frozenset[str]] = {}

    def resolved(self, texts: Sequence[str | None], ids: Sequence[str]) -> list[str | None]:
        """A path for each text; where there is no such file, that beside the recipe. None and "" stay.

        Raises:
            DataError: a text leads to two different files.
        """
        return [self._resolved(text, row) if text else text for text, row in zip(texts, ids, strict=True)]

    def _resolved(self, text: str, row: str) -> str:
        path = os.path.expanduser(text)
        if os.path.isabs(path):
            return path
        candidates = [os.path.join(folder, path) for folder in self._folders]
        found = [candidate for candidate in candidates if self._exists(candidate)]
        found = found if len(found) < 2 else [candidate for candidate in found if os.path.exists(candidate)]
        if len(found) > 1 and not os.path.samefile(*found):
            raise DataError(
                f"data.columns.image: {text!r} in row {row} of {self._table} is two files, {found[0]} beside the "
                f"recipe and {found[1]} beside the table; remove one, or write absolute paths"
            )
        return (found or candidates)[0]

    def _exists(self, path: str) -> bool:
        folder, name = os.path.split(path)
        names = self._listed.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(folder))
            except OSError:
                names = frozenset()
            self._listed[folder] = names
        return name in names


def with_image_paths(table: Table, file: Path, wanted: Sequence[Wanted], recipe_dir: Path) -> Table:
    """The table with its image column's paths made absolute; a column of encoded images keeps its bytes.

    Args:
        file: where the table was read from.

    Raises:
        DataError: a path leads to two different files.
    """
    name = next((column.name for column in wanted if column.key == "data.columns.image"), None)
    if name is None or name not in table.columns.column_names:
        return table
    column = table.columns[name]
    place = table.columns.column_names.index(name)
    paths = ImagePaths(file, recipe_dir)
    if is_text(column.type):
        changed = pa.array(paths.resolved(column.to_pylist(), table.ids), pa.large_string())
    elif pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        cells = column.combine_chunks()
        inside, texts = cells.field("bytes"), cells.field("path").to_pylist()
        outside = [text if is_path else None for text, is_path in zip(texts, inside.is_null().to_pylist(), strict=True)]
        if not any(outside):
            return table
        found = pa.array(paths.resolved(outside, table.ids), pa.large_string())
        changed = pa.StructArray.from_arrays([inside, found], ["bytes", "path"], mask=cells.is_null())
    else:
        return table
    return replace(table, columns=table.columns.set_column(place, name, changed))
