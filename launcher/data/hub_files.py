"""Files of the hub's datasets that `datasets` reads otherwise than they mean: labels swapped, rows swallowed.

Owns two refusals. It takes the names of class ids from the first file for all, and reads every csv with quoting; where
a file says otherwise, the rows it gives are not those of the file. Called by `sources`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from launcher import hub_access
from launcher.data.class_names import Names, class_names
from launcher.data.csv_files import Dialect, refuse_stray_quotes
from launcher.errors import DataError
from launcher.recipe.yaml_tree import shortened


def check(files: Iterable[str], names: Names, where: str, config: Any = None) -> None:
    """Raise where `datasets` has read a file otherwise than it means itself.

    Args:
        files: paths or addresses.
        names: the dataset's own names for its class ids.
        where: the dataset, for the message.
        config: with what settings the files were read; None where it is not known that they were, and one with other
            names altogether may be another configuration's.

    Raises:
        DataError: with the file, and both orders of its classes or the line in which a quote opens.
    """
    for file in files:
        suffix = PurePath(file).suffix
        if names and suffix in (".parquet", ".arrow"):
            _check_names(file, names, where, are_sure=config is not None)
        elif suffix in (".csv", ".tsv") and Path(file).is_file() and _has_quoting(config):
            _check_quotes(Path(file), config.sep, where)


def on_disk(address: str) -> str:
    """Where the hub's library has put a file that it fetched; the address itself of any other."""
    if not (found := re.fullmatch(r"hf://datasets/(?P<name>.+?)@(?P<commit>[^/]+)/(?P<path>.+)", address)):
        return address
    fetched = hub_access.snapshot("dataset", found["name"], found["commit"]) / found["path"]
    return str(fetched) if fetched.is_file() else address


def _check_names(file: str, names: Names, where: str, *, are_sure: bool) -> None:
    for column, own in class_names(_schema(file), list(names)).items():
        is_meant = are_sure or sorted(own) == sorted(names[column])
        if own != names[column] and is_meant:
            raise DataError(
                f"data.dataset: {where}: {file} numbers the classes of {column!r} {_shown(own)}, and the dataset "
                f"{_shown(names[column])}, so its labels would be mixed up; download the files and name them with "
                "data.source: parquet, which reads each by its own names"
            )


def _has_quoting(config: Any) -> bool:
    """Whether csv files were read by pandas' defaults, but for the delimiter."""
    plain = {"quoting": csv.QUOTE_MINIMAL, "quotechar": '"', "doublequote": True, "escapechar": None}
    return len(getattr(config, "sep", None) or "") == 1 and all(getattr(config, key) == plain[key] for key in plain)


def _check_quotes(file: Path, delimiter: str, where: str) -> None:
    try:
        refuse_stray_quotes(file, file.read_bytes(), Dialect(delimiter, "standard"))
    except DataError as error:
        raise DataError(f"data.dataset: {where}: {error}, with the files downloaded and data.source: csv") from error


def _shown(names: list[str]) -> str:
    return shortened(", ".join(f"{number} = {name}" for number, name in enumerate(names)))


def _schema(file: str) -> pa.Schema:
    import fsspec  # comes with `datasets`, whose files these are

    with fsspec.open(file, "rb") as opened:
        if file.endswith(".parquet"):
            return pyarrow.parquet.read_schema(opened)
        try:
            return pa.ipc.open_stream(opened).schema
        except pa.ArrowInvalid:
            opened.seek(0)
            return pa.ipc.open_file(opened).schema
