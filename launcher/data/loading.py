"""From what a recipe says about its data to the rows of each split.

Owns the task's columns, dedupe, limit and split, and the messages about rows that cannot be trained on. `sources` reads
the files before it, `labels` gives the ids, `batches` makes batches after it. Deterministic, on every rank alike;
touches no global random generator. Called by `survey`, `walk` and `inference`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from launcher.data import bad_rows
from launcher.data.labels import label_ids, warn_of_lost
from launcher.data.rows import Rows, is_bytes, is_text
from launcher.data.sampling import sample
from launcher.data.sources import read
from launcher.data.splits import Splits
from launcher.data.table import Table, Wanted
from launcher.errors import DataError
from launcher.plan.data_facts import SkippedRow
from launcher.recipe import Task
from launcher.recipe.data import Data, HubData

Indices = npt.NDArray[np.int64]

TASK_COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text-classification": (("text", "label"), ("text_pair",)),
    "image-classification": (("image", "label"), ()),
    "causal-lm": (("text",), ()),
}
"""Task kind -> (columns it needs, columns it takes where there are any)."""

LIMIT, SPLIT = 1, 2
"""What a random choice is for; part of its seed."""


def load(data: Data, task: Task, recipe_dir: Path, skipped: Sequence[SkippedRow] = ()) -> Splits:
    """Read the data, check every row, and split it; ``skipped`` is what the plan left out of the splits.

    In this order: dedupe, limit, split. Where the data names its own splits, dedupe also drops training rows whose
    value stands in validation or test, the limit holds for each split, and only a missing validation split is cut off
    train.

    Raises:
        DataError: see each check; nothing that a rank would stumble over later passes.
        EnvironmentProblem: the hub cannot be reached.
    """
    tables = {
        split: _with_texts(table, data, task) for split, table in read(data, _wanted(data, task), recipe_dir).items()
    }
    for split, table in tables.items():
        if not table.columns.num_rows:
            raise DataError(f"split {split} has no rows: {table.where}; give it rows, or leave the split out")
    tables, empty = _with_values(tables, data, task)
    names: list[str] | None = None
    ids: dict[str, Indices | None] = dict.fromkeys(tables)
    if task.kind != "causal-lm":
        names, encoded = label_ids(tables, _name(data, task, "label"), task.labels)
        ids |= encoded
    keep = {split: np.arange(table.columns.num_rows) for split, table in tables.items()}
    if data.split.dedupe is not None:
        keep = _dedupe(tables, _name(data, task, data.split.dedupe))
    groups = _strata(tables, data, task)
    keep = {split: _limit(kept, data, groups[split][kept]) for split, kept in keep.items()}
    if "validation" not in keep and data.split.validation > 0:
        keep["train"], keep["validation"] = _split(keep["train"], data, task, tables["train"], groups["train"])
    if names is not None and (train_ids := ids["train"]) is not None:
        warn_of_lost(names, train_ids, keep["train"])
    tables.setdefault("validation", tables["train"])
    ids.setdefault("validation", ids["train"])
    rows = {
        split: Rows(_columns(tables[split], data, task, ids[split], recipe_dir).take(pa.array(kept)))
        for split, kept in keep.items()
    }
    splits = Splits(rows["train"], rows.get("validation"), rows.get("test"), names, tuple(empty))
    there = [row for row in skipped if row.index is not None and _is_there(splits, row)]
    return splits.without(there) if there else splits


def _is_there(splits: Splits, row: SkippedRow) -> bool:
    """Whether the row that was left out is where it was; else the data has changed, and its facts will say so."""
    rows = splits.by_name().get(row.split)
    return rows is not None and row.index is not None and row.index < len(rows) and rows.name(row.index) == row.row


# --- columns ----------------------------------------------------------------------------------------------------------
def _name(data: Data, task: Task, column: str) -> str:
    """The data's own name for a column of the task, or of the data itself."""
    required, optional = TASK_COLUMNS[task.kind]
    return data.columns.get(column, column) if column in (*required, *optional) else column


def _wanted(data: Data, task: Task) -> list[Wanted]:
    required, optional = TASK_COLUMNS[task.kind]
    known = (*required, *optional)
    for column in data.columns:
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"data.columns.{column}: {task.kind} has no column {column!r}; {hint}its columns: {', '.join(known)}"
            )
    wanted = [
        Wanted(_name(data, task, column), f"data.columns.{column}", column in required or column in data.columns)
        for column in known
    ]
    for key in ("stratify", "dedupe"):
        column = getattr(data.split, key)
        if column is not None:
            wanted.append(Wanted(_name(data, task, column), f"data.split.{key}"))
    return wanted


def _columns(table: Table, data: Data, task: Task, ids: Indices | None, recipe_dir: Path) -> pa.Table:
    """The task's columns by the task's names, and ``id``."""
    columns: dict[str, Any] = {}
    for column in (name for names in TASK_COLUMNS[task.kind] for name in names):
        name = _name(data, task, column)
        if column == "label":
            columns[column] = pa.array(ids)
        elif name in table.columns.column_names:
            columns[column] = table.columns[name].combine_chunks()
    image = columns.get("image")
    if image is not None and is_text(image.type) and isinstance(data, HubData):
        columns["image"] = pa.array([str(recipe_dir / path) for path in image.to_pylist()], pa.large_string())
    return pa.table({**columns, "id": pa.array(table.ids, pa.large_string())})


# --- checks -----------------------------------------------------------------------------------------------------------
def _with_texts(table: Table, data: Data, task: Task) -> Table:
    """Texts and labels that a file holds as bytes, for want of a word that they are UTF-8, as the texts they are."""
    columns = table.columns
    for column in ("text", "text_pair", "label"):
        name = _name(data, task, column)
        if name not in columns.column_names or not is_bytes(columns[name].type):
            continue
        try:
            texts = columns[name].cast(pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid as error:
            cells = enumerate(columns[name].to_pylist())
            rows = [row for row, cell in cells if cell is not None and not _is_utf8(cell)]
            raise DataError(
                f"data.columns.{column}: column {name!r} of {table.where} holds bytes that are not UTF-8 in "
                f"{table.named(rows)}; write it as text"
            ) from error
        columns = columns.set_column(columns.column_names.index(name), name, texts)
    return replace(table, columns=columns)


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _with_values(tables: dict[str, Table], data: Data, task: Task) -> tuple[dict[str, Table], list[SkippedRow]]:
    """The tables without the rows that have no value in a column, where the recipe leaves them out; and those rows.

    Raises:
        DataError: there are some, and the recipe leaves out none or fewer.
    """
    found: list[SkippedRow] = []
    left = {}
    for split, table in tables.items():
        empty = _check_values(table, data, task)
        found += [SkippedRow(split=split, index=None, row=table.ids[row], why=why) for row, why in empty.items()]
        left[split] = table.without(list(empty)) if empty else table
    bad_rows.settle(found, sum(map(len, (table.ids for table in tables.values()))), data, "data.columns: empty cells")
    for split, table in left.items():
        if not len(table.ids):
            raise DataError(f"split {split}: all rows of {table.where} are empty or have no label; leave the split out")
    return left, found


def _check_values(table: Table, data: Data, task: Task) -> dict[int, str]:
    """Rows with a null or an empty text in a column, and why; none of them where such a row is an error.

    Raises:
        DataError: there is one, and ``data.on_bad_row`` is error; or texts are none.
    """
    found: dict[int, str] = {}
    for wanted in _wanted(data, task):
        if wanted.name not in table.columns.column_names:
            continue
        column = table.columns[wanted.name]
        has_texts = is_text(column.type)
        if wanted.key.startswith("data.columns.text") and not has_texts and not pa.types.is_null(column.type):
            raise DataError(f"{wanted.key}: column {wanted.name!r} of {table.where} holds {column.type}, no texts")
        missing = pc.is_null(column, nan_is_null=True)
        has_names = wanted.name in table.class_names and pa.types.is_signed_integer(column.type)
        unlabelled = pc.equal(column, -1).fill_null(False) if has_names else None
        if unlabelled is not None:  # as `datasets` marks rows without a label
            missing = pc.or_(missing, unlabelled)
        empty = pc.or_kleene(missing, pc.equal(column, "")) if has_texts else missing
        bad = np.flatnonzero(empty.to_numpy())
        what = "is empty or NaN" if pa.types.is_floating(column.type) else "is empty"
        if unlabelled is not None and pc.any(unlabelled).as_py():
            what = "has the class id -1 (no name, no label)"
            if len(bad) == len(column) and data.on_bad_row == "error":
                key = "data.splits" if isinstance(data, HubData) else "data.files"
                raise DataError(f"{wanted.key}: all rows of {table.where} have -1, no label; leave them out of {key}")
        if len(bad) and data.on_bad_row == "error":
            raise DataError(
                f"{wanted.key}: column {wanted.name!r} of {table.where} {what} in {table.named(bad)}; "
                "fill it in, or leave these rows out with data.on_bad_row: skip"
            )
        found |= {int(row): f"column {wanted.name!r} of {table.where} {what}" for row in bad}
    return dict(sorted(found.items()))


# --- dedupe, limit, split ---------------------------------------------------------------------------------------------
def _codes(tables: dict[str, Table], column: str, key: str) -> dict[str, Indices]:
    """Each split's values of a column as numbers, equal where the values are, over all splits."""
    parts = [tables[split].columns[column] for split in tables]
    parts = [part.cast(pa.large_string()) if is_text(part.type) else part for part in parts]
    if pa.types.is_nested(parts[0].type):
        raise DataError(f"{key}: column {column!r} holds {parts[0].type}; a column of texts or numbers is needed")
    if len({part.type for part in parts}) > 1:
        raise DataError(f"{key}: column {column!r} has other types in other splits: {[str(p.type) for p in parts]}")
    joined = pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)
    encoded = pc.dictionary_encode(joined.combine_chunks())
    codes: Indices = encoded.indices.to_numpy().astype(np.int64)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return dict(zip(tables, np.split(codes, ends), strict=True))


def _dedupe(tables: dict[str, Table], column: str) -> dict[str, Indices]:
    """Rows of each split that stay: the first of each value, and none that a split held out has."""
    codes = _codes(tables, column, "data.split.dedupe")
    seen: Indices = np.empty(0, np.int64)
    keep: dict[str, Indices] = {}
    for split in ("test", "validation", "train"):
        if split not in codes:
            continue
        _, first = np.unique(codes[split], return_index=True)
        first = np.sort(first)
        keep[split] = first[~np.isin(codes[split][first], seen)]
        seen = np.concatenate([seen, codes[split][first]])
    for split, kept in keep.items():
        if not len(kept):
            raise DataError(
                f"split {split} has no rows left: data.split.dedupe finds each value of {column!r} in another split too"
            )
    return {split: keep[split] for split in tables}


def _strata(tables: dict[str, Table], data: Data, task: Task) -> dict[str, Indices]:
    if data.split.stratify is None:
        return {split: np.zeros(table.columns.num_rows, np.int64) for split, table in tables.items()}
    return _codes(tables, _name(data, task, data.split.stratify), "data.split.stratify")


def _limit(kept: Indices, data: Data, groups: Indices) -> Indices:
    if data.limit is None or data.limit >= len(kept):
        return kept
    return kept[sample(len(kept), data.limit, (data.split.seed, LIMIT), groups)]


def _split(kept: Indices, data: Data, task: Task, table: Table, groups: Indices) -> tuple[Indices, Indices]:
    """(train, validation)."""
    split = data.split
    count = max(1, round(split.validation * len(kept)))
    if count >= len(kept):
        raise DataError(
            f"data.split.validation {split.validation} of {len(kept)} rows leaves none to train on; "
            "add rows, or set data.split.validation: 0"
        )
    groups = groups[kept]
    values, sizes = np.unique(groups, return_counts=True)
    if split.stratify is not None and sizes.min() < 2:
        row = int(kept[np.flatnonzero(groups == values[sizes.argmin()])[0]])
        value = table.columns[_name(data, task, split.stratify)][row].as_py()
        advice = "raise data.limit" if data.limit is not None else "add rows of it"
        raise DataError(
            f"data.split.stratify: {split.stratify} {value!r} has 1 row (row {table.ids[row]} of {table.where}), "
            f"too few for two splits; {advice}, or set data.split.stratify: null"
        )
    leave = 1 if split.stratify is not None else 0
    validation = sample(len(kept), count, (split.seed, SPLIT), groups, leave)
    return np.delete(kept, validation), kept[validation]
