"""Files, folders and hub datasets -> one table for each split, untouched.

Owns what a source is made of: lists of files (read by `table_files`), folders of images (by `image_folders`),
datasets of the hub. It does
not know what a label is: renaming, ids and splitting are `data`'s. Tables are in memory; a hub dataset is mapped from
its cache. Called by `data`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from launcher import hub_access
from launcher.data import hub_files
from launcher.data.class_names import alike
from launcher.data.image_files import with_image_paths
from launcher.data.image_folders import read_folders
from launcher.data.table import Table, Wanted, plain, present, row_numbers
from launcher.data.table_files import FORMATS, SUFFIXES, Dialect
from launcher.errors import DataError, EnvironmentProblem
from launcher.file_locations import matching_files
from launcher.recipe.data import Files, HubData, ImageFolderData, TableData

log = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


def read(data: TableData | ImageFolderData | HubData, wanted: list[Wanted], recipe_dir: Path) -> dict[str, Table]:
    """One table for each split that the data names; ``train`` alone when it names none.

    Raises:
        DataError: a file, folder, encoding, column or format is not what the recipe says.
        EnvironmentProblem: the hub cannot be reached.
    """
    if isinstance(data, HubData):
        return _read_hub(data, wanted)
    if isinstance(data, ImageFolderData):
        return read_folders(data, wanted, recipe_dir)
    files = {split: _files(entries, key, recipe_dir) for split, (entries, key) in _by_split(data.files).items()}
    for split, paths in files.items():
        if split != "train" and (shared := set(paths) & set(files["train"])):
            log.warning("data.files.%s: %s is in train too, so what it measures has been learned", split, min(shared))
    return {split: _read_files(paths, data, wanted, recipe_dir) for split, paths in files.items()}


def _by_split(files: Files) -> dict[str, tuple[list[str], str]]:
    """Split -> (what the recipe writes, under which key)."""
    if not isinstance(files, dict):
        return {"train": (_as_list(files), "data.files")}
    if "train" not in files:
        raise DataError(f"data.files names {', '.join(files) or 'nothing'} but no train; add train: PATH")
    return {split: (_as_list(entries), f"data.files.{split}") for split, entries in files.items()}


def _as_list(entries: str | list[str]) -> list[str]:
    return [entries] if isinstance(entries, str) else entries


def _files(entries: list[str], key: str, recipe_dir: Path) -> list[Path]:
    if not entries:
        raise DataError(f"{key} is an empty list; give at least one path")
    found = [path for entry in entries for path in matching_files(entry, recipe_dir, key)]
    return list(dict.fromkeys(found))


# --- files ------------------------------------------------------------------------------------------------------------
def _read_files(paths: list[Path], data: TableData, wanted: list[Wanted], recipe_dir: Path) -> Table:
    dialect = Dialect.of(data)
    tables = [FORMATS[_format(data.source, path)](path, data.encoding, wanted, dialect) for path in paths]
    tables = [with_image_paths(table, path, wanted, recipe_dir) for table, path in zip(tables, paths, strict=True)]
    if len(tables) == 1:
        return tables[0]
    tables, class_names = alike(tables)
    try:
        columns = pa.concat_tables([table.columns for table in tables], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        names = ", ".join(str(path) for path in paths)
        raise DataError(f"the files of one split differ in the type of a column: {error}; files: {names}") from error
    ids = [f"{path.name}:{number}" for path, table in zip(paths, tables, strict=True) for number in table.ids]
    return Table(columns, ids, f"{paths[0]} and {len(paths) - 1} more", class_names)


def _format(source: str, path: Path) -> str:
    if source != "package":
        return source
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise DataError(
            f"data.files: {path}: the suffix {path.suffix!r} tells no format; data.source package knows "
            f"{', '.join(SUFFIXES)}; name the format as data.source instead"
        ) from None


# --- the hub ----------------------------------------------------------------------------------------------------------
def _read_hub(data: HubData, wanted: list[Wanted]) -> dict[str, Table]:
    where = f"hub dataset {data.dataset}" + (f" ({data.config})" if data.config else "")
    is_cached = hub_access.is_offline() and not Path(data.dataset).is_dir()  # a folder is `datasets`' too
    if is_cached and hub_access.cached_commit("dataset", data.dataset, data.revision) is None:
        raise _not_cached(data, where)  # before the import, which takes a second
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    found = _cached_hub(data, wanted, where) if is_cached else _asked_hub(data, wanted, where)
    named: dict[str, str] = dict(data.splits.items()) or {split: split for split in SPLITS if split in found}
    asked = {"train": "train", **named}
    for ours, theirs in asked.items():
        if theirs not in found:
            raise DataError(f"data.splits.{ours}: {where} has no split {theirs!r}; it has: {', '.join(found)}")
    return {split: _hub_split(found[theirs], wanted, where) for split, theirs in asked.items()}


def _asked_hub(data: HubData, wanted: list[Wanted], where: str) -> Any:
    import datasets

    try:
        builder = datasets.load_dataset_builder(data.dataset, data.config, revision=data.revision)
        if builder.name == "cache":  # the library gave the hub up, and would take what it prepared last
            return _cached_hub(data, wanted, where)
        builder.download_and_prepare()
        found = builder.as_dataset()
        read = [file for split in (builder.config.data_files or {}).values() for file in split]
        hub_files.check(map(hub_files.on_disk, read), _named_classes(found, wanted), where, builder.config)
        return found
    except Exception as error:
        if refused := hub_access.refusal(error, "data.dataset", data.dataset, data.revision):
            raise refused from error
        if hub_access.is_unreachable(error):
            raise EnvironmentProblem(
                f"data.dataset: {where}: the hub cannot be reached and its cache has no copy; go online once to fill "
                f"it ({str(error).splitlines()[0]})"
            ) from error
        if isinstance(error, (FileNotFoundError, datasets.exceptions.DatasetsError)):
            raise DataError(f"data.dataset: {where}: {error}") from error
        if isinstance(error, ValueError):  # an unknown configuration
            raise DataError(f"data.config: {where}: {error}") from error
        raise


def _cached_hub(data: HubData, wanted: list[Wanted], where: str) -> Any:
    """What an earlier run prepared of this very revision; without the hub `datasets` itself takes any, the newest."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, name = data.dataset.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])
    commit = hub_access.cached_commit("dataset", data.dataset, data.revision)
    prepared = sorted(root.glob(f"{data.config or '*'}/*/{commit}")) if commit else []
    if not prepared:
        raise _not_cached(data, where)
    config, version, _ = prepared[0].parts[-3:]
    if len(prepared) > 1:
        raise DataError(
            f"data.config: {where}: its cache holds {', '.join(path.parts[-3] for path in prepared)}; name one"
        )
    cache = Cache(repo_id=data.dataset, dataset_name=name, config_name=config, version=version, hash=commit)
    found = cache.as_dataset()
    fetched = map(str, hub_access.snapshot("dataset", data.dataset, str(commit)).rglob("*"))
    hub_files.check(fetched, _named_classes(found, wanted), where)
    return found


def _named_classes(dataset: Any, wanted: list[Wanted]) -> dict[str, list[str]]:
    """Of those of the wanted columns that hold class ids; all splits have the same columns."""
    import datasets

    features = next(iter(dataset.values())).features
    there = {one.name: features[one.name] for one in wanted if one.name in features}
    return {name: feature.names for name, feature in there.items() if isinstance(feature, datasets.ClassLabel)}


def _not_cached(data: HubData, where: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"data.dataset: {where}: the hub cannot be reached and its cache has no copy of revision "
        f"{data.revision or 'main'}; go online once to fill it"
    )


def _hub_split(dataset: Any, wanted: list[Wanted], where: str) -> Table:
    import datasets

    there = present(wanted, dataset.column_names, where)
    dataset = dataset.select_columns(there)
    features = dataset.features
    for name in there:
        if isinstance(features[name], datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))  # the task decodes, in its own thread
    names = {name: features[name].names for name in there if isinstance(features[name], datasets.ClassLabel)}
    return Table(plain(dataset.data.table), row_numbers(len(dataset)), where, names)
