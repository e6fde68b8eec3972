"""Folders of images -> one table for each split: which folders are splits, which are labels.

Owns the layouts. Refuses what can be read in two ways, with what was found and what to write: folders that mix splits
and labels, label folders that hold only folders, a label without images. What a metadata file lists is
`folder_metadata`'s. Opens no image. Called by `sources`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pyarrow as pa

from launcher.data import folder_metadata
from launcher.data.image_files import files_under, image_suffixes, is_image, visible
from launcher.data.table import Table, Wanted, present
from launcher.errors import DataError
from launcher.file_locations import existing_path
from launcher.recipe.data import Files, ImageFolderData

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Name of a folder, in lower case -> the split that it holds."""
NAMES_SHOWN = 4


def read_folders(data: ImageFolderData, wanted: list[Wanted], recipe_dir: Path) -> dict[str, Table]:
    """One table for each split: columns ``image`` (a path) and ``label``, or those of the metadata files.

    Raises:
        DataError: a folder is not there, or its layout is none that can be read in one way.
    """
    splits, root = _splits(data.files, recipe_dir)
    beside = folder_metadata.in_folder(visible(root)[1]) if root else []
    tables = {}
    for split, folders in splits.items():
        contents = [_Contents.of(folder) for folder in folders]
        listed = [folder_metadata.in_folder(inside.files()) for inside in contents]
        if not any(listed) and not beside:
            tables[split] = _labelled(contents, wanted, data)
            continue
        if not beside and not all(listed):
            raise DataError(
                f"{folders[listed.index([])]} has no metadata file, and {next(filter(None, listed))[0]} is one; give "
                "each folder one, or none"
            )
        all_folders = [folder for group in splits.values() for folder in group]
        tables[split] = folder_metadata.joined(
            [
                folder_metadata.read([*beside, *own], inside.images(), inside.folder, all_folders, wanted)
                for inside, own in zip(contents, listed, strict=True)
            ]
        )
    return tables


@dataclass(frozen=True)
class _Contents:
    """What lies in a split's folder."""

    folder: Path
    loose: list[Path]
    """Its own files."""
    labels: dict[Path, list[Path]]
    """Each folder in it -> the files below, at any depth."""

    @classmethod
    def of(cls, folder: Path) -> _Contents:
        folders, loose = visible(folder)
        return cls(folder, loose, {inner: files_under(inner) for inner in folders})

    def files(self) -> list[Path]:
        return [*self.loose, *(path for paths in self.labels.values() for path in paths)]

    def images(self) -> list[Path]:
        return [path for path in self.files() if is_image(path)]


# --- splits -----------------------------------------------------------------------------------------------------------
def _splits(files: Files, recipe_dir: Path) -> tuple[dict[str, list[Path]], Path | None]:
    """Split -> its folders; and the folder that holds the splits, if the recipe names that one."""
    if isinstance(files, dict):
        if "train" not in files:
            raise DataError(f"data.files names {', '.join(files) or 'nothing'} but no train; add train: PATH")
        return {
            split: _folders(entries, recipe_dir, f"data.files.{split}") for split, entries in files.items() if entries
        }, None
    roots = _folders(files, recipe_dir, "data.files")
    by_root = {root: _inner_splits(root) for root in roots}
    if not any(by_root.values()):
        return {"train": roots}, None
    if len(roots) > 1:
        root, inner = next((root, inner) for root, inner in by_root.items() if inner)
        raise DataError(
            f"data.files: {root} holds splits ({_listed(path.name for path in inner.values())}), and is one of several "
            f"folders; name each split: files: {{train: [{next(iter(inner.values()))}, …]}}"
        )
    return {split: [path] for split, path in by_root[roots[0]].items()}, roots[0]


def _folders(entries: str | list[str], recipe_dir: Path, key: str) -> list[Path]:
    texts = [entries] if isinstance(entries, str) else entries
    if not texts:
        raise DataError(f"{key} is an empty list; give at least one path")
    found = [existing_path(text, recipe_dir, key) for text in texts]
    for text, path in zip(texts, found, strict=True):
        if not path.is_dir():
            raise DataError(f"{key}: {text!r} is a file; source imagefolder needs a folder with one folder a label")
    return found


def _inner_splits(root: Path) -> dict[str, Path]:
    """Split -> the folder in ``root`` that holds it; empty when its folders are labels."""
    folders, files = visible(root)
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_WORDS.get(folder.name.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"data.files: {found[split].name}/ and {folder.name}/ in {root} both mean the split {split}; "
                f"name what belongs to it: files: {_mapping([*found.values(), folder])}"
            )
        found[split] = folder
    if not found:
        _refuse_likely_splits(root, folders)
    others = [folder for folder in folders if folder.name.lower() not in SPLIT_WORDS]
    if found and others:
        said = ", ".join(f"{path.name}/" for path in found.values())
        raise DataError(
            f"data.files: {root} holds {said}, a split by name, and beside it {_listed(path.name for path in others)}, "
            f"which is none; if these are splits write files: {_mapping([*found.values(), *others])}; if all are "
            f"labels, files: {{train: {root}}}"
        )
    loose = next((path for path in files if is_image(path)), None)
    if found and loose is not None:
        raise DataError(f"data.files: {loose} lies beside the splits and in none of them; move it into one, or away")
    if found and "train" not in found:
        raise DataError(
            f"data.files: {root} holds {_listed(path.name for path in found.values())} and no train/; add it, or if "
            f"these are labels write files: {{train: {root}}}"
        )
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _refuse_likely_splits(root: Path, folders: Sequence[Path]) -> None:
    """Raise where all folders say by a part of their names that they are splits: ``train_images``, ``test_images``."""
    splits = [_likely_split(folder.name) for folder in folders]
    if all(splits) and "train" in splits and len({*splits}) > 1:
        raise DataError(
            f"data.files: {root} holds {_listed(path.name for path in folders)}, splits by their names; if they are "
            f"write files: {_mapping(folders)}, each with one folder a label in it or a metadata.csv; if they are "
            f"labels, files: {{train: {root}}}"
        )


def _mapping(folders: Sequence[Path]) -> str:
    """How a recipe names these folders as splits; those that say nothing by their name get a split to fill in."""
    lines: dict[str, list[str]] = {}
    for folder in folders:
        lines.setdefault(_likely_split(folder.name) or "SPLIT", []).append(str(folder))
    one_or_list = {split: paths[0] if len(paths) == 1 else f"[{', '.join(paths)}]" for split, paths in lines.items()}
    shown = [f"{split}: {paths}" for split, paths in one_or_list.items()]
    return "{" + ", ".join(shown) + "}"


def _likely_split(name: str) -> str | None:
    """The split that a part of the name says, such as ``seg_train`` or ``testSet``; ``eval`` for validation."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None) or (
        "validation" if {"eval", "evaluation"} & {*words} else None
    )


# --- labels -----------------------------------------------------------------------------------------------------------
def _labelled(contents: Sequence[_Contents], wanted: list[Wanted], data: ImageFolderData) -> Table:
    """``image`` and ``label`` of folders that each hold one folder a label; ids are LABEL/FILE."""
    paths: list[Path] = []
    labels: list[str] = []
    names: set[str] = set()
    for inside in contents:
        if inside.loose:
            raise DataError(_no_label_folder(inside.loose[0]))
        for label_folder, files in inside.labels.items():
            _check_label(label_folder, files, list(inside.labels))
            if not files and data.empty_classes == "error":
                raise DataError(
                    f"{label_folder} holds no images; fill or remove it, or set data.empty_classes: keep to have "
                    f"{label_folder.name!r} as a label without rows"
                )
            names.add(label_folder.name)
            paths += files
            labels += [label_folder.name] * len(files)
    folders = [inside.folder for inside in contents]
    where = str(folders[0]) + (f" and {len(folders) - 1} more" if len(folders) > 1 else "")
    if not paths:
        raise DataError(f"{where} holds no images; one folder a label is needed, with the images in it")
    base = folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))
    values = {"image": [str(path) for path in paths], "label": labels}
    there = present(wanted, ["image", "label"], where)
    columns = pa.table({name: pa.array(values[name], pa.string()) for name in there})
    kept = {"label": _in_order(names)} if data.empty_classes == "keep" and "label" in there else {}
    return Table(columns, [str(path.relative_to(base)) for path in paths], where, kept)


def _in_order(names: set[str]) -> list[str]:
    """As `labels` orders them: numbers by value, anything else as text."""
    try:
        return sorted(names, key=lambda name: (Decimal(name), name))
    except InvalidOperation:
        return sorted(names)


def _no_label_folder(file: Path) -> str:
    advice = f"; or list all images in {file.parent}/metadata.csv, with the columns file_name and label"
    return f"{file}: a file where folders of images are needed, one a label; move it " + (
        f"into its label's folder{advice}" if is_image(file) else "away"
    )


def _check_label(label_folder: Path, found: Sequence[Path], siblings: Sequence[Path]) -> None:
    """Refuse a folder that is no label's, or holds what is no image."""
    folders, files = visible(label_folder)
    if folders and not files:
        raise DataError(_only_folders(label_folder, folders, siblings))
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    if splits:
        raise DataError(
            f"{label_folder} holds images and beside them {_listed(path.name for path in splits)}, a split by name, so "
            f"nothing says which split the images belong to; sort them into "
            f"{label_folder.parent / 'train' / label_folder.name} and so on, or rename that folder"
        )
    others = {path.name for path in siblings} - {label_folder.name}
    mixed = next((path for path in found if others & {*path.relative_to(label_folder).parts[:-1]}), None)
    if mixed is not None and not any(path.is_symlink() for path in mixed.parents):
        raise DataError(
            f"{mixed} lies in folders of two labels, {label_folder.name!r} and "
            f"{next(part for part in mixed.relative_to(label_folder).parts if part in others)!r}; move it, or rename "
            "the inner folder"
        )
    strange = next((path for path in found if not is_image(path)), None)
    if strange is not None:
        raise DataError(f"{strange} is no image; move it away (images: {' '.join(sorted(image_suffixes()))})")


def _only_folders(label_folder: Path, inner: list[Path], siblings: Sequence[Path]) -> str:
    """Why a label's folder that holds folders alone is none, and what the layout may be."""
    found = f"{label_folder} holds only folders ({_listed(path.name for path in inner)}), so it is no label of images"
    root = label_folder.parent
    if any(_likely_split(folder.name) for folder in siblings):
        return f"{found}; if {root} holds splits write files: {_mapping(siblings)}"
    if all(folder.name.lower() in SPLIT_WORDS for folder in inner):
        if len(siblings) == 1:
            return f"{found}; if these are the splits write files: {label_folder}"
        return (
            f"{found}; splits hold the labels, not the other way round: move the images to "
            f"{root / inner[0].name / label_folder.name} and so on"
        )
    shown = (
        str(label_folder)
        if len(siblings) == 1
        else f"[{', '.join(map(str, siblings[:NAMES_SHOWN]))}" + (", …]" if len(siblings) > NAMES_SHOWN else "]")
    )
    return (
        f"{found}; if the inner folders are the labels write files: {shown}; if {label_folder.name!r} is one, move "
        "the images into it"
    )


def _listed(names: Iterable[str]) -> str:
    shown = [f"{name}/" for name in names]
    return ", ".join(shown[:NAMES_SHOWN]) + (", …" if len(shown) > NAMES_SHOWN else "")
