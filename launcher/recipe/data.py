"""The recipe's ``data:`` section: where the rows come from, as frozen types with the unit and meaning of each field.

Owns the sources and their keys, as `recipe` owns the others'. Reads no file: `data.sources` does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.recipe.types import NonNegativeInt, PositiveInt, Probability, Strict

SOURCES_NOT_BUILT_YET = ("audiofolder", "voc")


class Split(Strict):
    """How the validation rows are taken when the data names none."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows; 0 for none."""
    seed: NonNegativeInt = 0
    """Of the choice; another gives other rows."""
    stratify: str | None = None
    """Column whose proportions both splits keep."""
    dedupe: str | None = None
    """Column whose repeated values are dropped (the first stays) before the split, so that none lies on both sides."""


class DataSettings(Strict):
    """What all sources share."""

    columns: dict[str, str] = {}
    """What the task calls a column -> what the data calls it."""
    split: Split = Split()
    limit: PositiveInt | None = None
    """Rows to keep, for a first try; taken at random with the split's seed, before the split."""
    max_length: PositiveInt = 512
    """Tokens a text is cut to."""
    num_workers: NonNegativeInt = 0
    """Processes a rank that prepare batches; 0: the rank itself."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Damaged images, empty cells, texts without a token: named and refused before training, or left out and listed in
    `skipped.jsonl`."""
    max_bad_rows: PositiveInt | Probability = 0.1
    """Rows that ``skip`` leaves out at most: a number, or a share of all, rounded up."""


Character = Annotated[
    str,
    Field(
        pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]$",
        title="one ASCII character other than a letter, a digit or a quote",
    ),
]
Files = str | list[str] | dict[Literal["train", "validation", "test"], str | list[str]]
"""Path, glob or ``package:IMPORT/PATH``; a list of them; or one of either for each split. Relative to the recipe."""


class TableData(DataSettings):
    """Rows from files. ``package``: as the other five, told apart by the files' suffix."""

    source: Literal["csv", "json", "parquet", "arrow", "text", "package"]
    files: Files
    """Path, glob or ``package:IMPORT/PATH``; a list of them; or one of either for each split."""
    encoding: str = "utf-8"
    """Of csv, json and text files, such as ``latin-1``."""
    delimiter: Character | Literal["tab", "\\t"] | None = None
    """Between the cells of a csv; default a tab in .tsv files, a comma in all others."""
    quoting: Literal["standard", "none"] | None = None
    """Of csv. ``standard``: a cell in double quotes may hold the delimiter, line ends and doubled quotes. ``none``: a
    quote is a character like any other. Default none in .tsv files, standard in all others."""
    escape: Character | None = None
    """Of csv: the character before a delimiter or quote that is part of a cell, such as ``\\``; default none."""


class ImageFolderData(DataSettings):
    """``files`` is a folder with one folder a label, or with train/, validation/ and test/ folders of such.

    ``training``, ``val``, ``valid``, ``dev`` and ``testing`` name the splits too, in capitals or not. Where a
    ``metadata.csv`` (.jsonl, .parquet) lies in a folder, its rows are the data, as in `datasets`' imagefolder.
    """

    source: Literal["imagefolder"]
    files: Files
    """A folder, or one for each split."""
    empty_classes: Literal["error", "keep"] = "error"
    """A label's folder without images: refused, or a label that no row has."""


class HubData(DataSettings):
    """A dataset of the Hugging Face hub."""

    source: Literal["hub"]
    dataset: str = Field(min_length=1)
    """``owner/name``"""
    config: str | None = None
    """The dataset's configuration, where it has several."""
    revision: str | None = None
    """Commit, branch or tag of the dataset."""
    splits: dict[Literal["train", "validation", "test"], str] = {}
    """Our split -> the dataset's name for it; default the same names."""


Data = Annotated[TableData | ImageFolderData | HubData, Field(discriminator="source")]
