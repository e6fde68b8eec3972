"""Layouts of image folders: the rows, splits and labels that `datasets` and torchvision find, or a refusal.

One walk over the layouts; where `datasets` reads a layout, it is the other side of the comparison.
"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from pydantic import TypeAdapter

from launcher.data import Splits, load
from launcher.data.image_files import image_suffixes
from launcher.errors import DataError
from launcher.recipe import ImageClassification
from launcher.recipe.data import Data

TASK = ImageClassification(kind="image-classification")
Found = dict[str, set[tuple[str, str]]]
"""Split -> (file, label) of each row, files as they lie under the root."""


def paint(root: Path, *names: str) -> None:
    """An image for each name, each of another colour."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name)


def read(folder: Path, files: Any = "data", **more: Any) -> Splits:
    given = {"source": "imagefolder", "files": files, "split": {"validation": 0}} | more
    return load(TypeAdapter(Data).validate_python(given), TASK, folder)


def found(splits: Splits, root: Path) -> Found:
    assert splits.labels is not None
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: {(os.path.relpath(row["image"], root), splits.labels[row["label"]]) for row in rows}
        for name, rows in parts.items()
        if rows is not None
    }


def by_datasets(root: Path, cache: Path) -> Found:
    import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the metadata files open
        loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(cache))
        gc.collect()
    result: Found = {}
    for name, part in loaded.items():
        rows = part.cast_column("image", datasets.Image(decode=False))
        labels = rows.features["label"]
        texts = [labels.int2str(row["label"]) if hasattr(labels, "int2str") else str(row["label"]) for row in rows]
        names = [os.path.relpath(row["image"]["path"], root) for row in rows]
        assert len({*names}) == len(names)
        result[str(name)] = {*zip(names, texts, strict=True)}
    return result


CLASSES = ("a/1.png", "a/2.png", "b/1.png")


def in_splits(*splits: str) -> Callable[[Path], None]:
    return lambda root: paint(root, *(f"{split}/{name}" for split in splits for name in CLASSES))


def nested_images(root: Path) -> None:
    paint(root, "a/1.png", "a/more/2.png", "b/1.png", "b/x/y/z/2.png")


def with_hidden(root: Path) -> None:
    paint(root, *CLASSES, "a/.ipynb_checkpoints/1-checkpoint.png", ".cache/a/1.png", "a/._1.png", "__MACOSX/a/1.png")
    for name in ("Thumbs.db", "a/Thumbs.db", "b/desktop.ini", ".DS_Store", "a/.DS_Store"):
        (root / name).write_bytes(b"\0")


def with_links(root: Path) -> None:
    """A label that is a link, a folder in a label that is one, a link to a file, and circles."""
    paint(root, "a/1.png", "b/1.png")
    paint(root.parent / "elsewhere", "c/1.png", "more/2.png")
    (root / "c").symlink_to(root.parent / "elsewhere" / "c", target_is_directory=True)
    (root / "a" / "more").symlink_to(root.parent / "elsewhere" / "more", target_is_directory=True)
    (root / "b" / "2.png").symlink_to(root / "b" / "1.png")
    (root / "b" / "again").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "up").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "more" / "circle").symlink_to(root / "a" / "more", target_is_directory=True)
    (root / "a" / "data").symlink_to("..", target_is_directory=True)  # whose other labels are not a's
    (root / "all").symlink_to(root, target_is_directory=True)


def with_suffixes(root: Path) -> None:
    paint(root, "b/1.png", "a/0.PNG")
    for number, (suffix, kind) in enumerate({"jfif": "JPEG", "JPG": "JPEG", "jp2": "JPEG2000", "tga": "TGA"}.items()):
        Image.new("RGB", (4, 4)).save(root / "a" / f"{number}.{suffix}", kind)


def metadata(folder: Path, rows: list[dict[str, Any]], kind: str = "csv") -> None:
    file = folder / f"metadata.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)


ROWS = [{"file_name": f"{number}.png", "label": "xy"[number % 2]} for number in range(4)]


def with_metadata(kind: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        paint(root, *(f"{number}.png" for number in range(4)))
        metadata(root, ROWS, kind)

    return make


def metadata_of_folders(root: Path) -> None:
    """Names with folders in them; the folders are no labels."""
    paint(root, "images/p/0.png", "images/q/1.png")
    rows = [{"file_name": "images/p/0.png", "label": "y"}, {"file_name": "images/q/1.png", "label": "x"}]
    metadata(root, rows, "jsonl")


def metadata_of_splits(root: Path) -> None:
    for split in ("train", "test"):
        paint(root / split, *(f"{number}.png" for number in range(4)))
        metadata(root / split, ROWS)


def metadata_in_sub_folders(root: Path) -> None:
    for part in ("p", "q/r"):
        paint(root / "train" / part, *(f"{number}.png" for number in range(4)))
        metadata(root / "train" / part, ROWS)


def expected(*splits: str) -> Found:
    return {split: {(f"{folder}/{name}", name[0]) for name in CLASSES} for split, folder in map(_pair, splits)}


def _pair(text: str) -> tuple[str, str]:
    split, folder = text.split("=")
    return split, folder


PLAIN = {"train": {(name, name[0]) for name in CLASSES}}
LISTED = {"train": {("0.png", "x"), ("1.png", "y"), ("2.png", "x"), ("3.png", "y")}}

LAYOUTS: dict[str, tuple[Callable[[Path], None], Found, bool]] = {
    "one folder a label": (lambda root: paint(root, *CLASSES), PLAIN, True),
    "train, test": (in_splits("train", "test"), expected("train=train", "test=test"), True),
    "training, testing": (in_splits("training", "testing"), expected("train=training", "test=testing"), True),
    "Training, Testing": (in_splits("Training", "Testing"), expected("train=Training", "test=Testing"), False),
    "TRAIN, VAL, TEST": (
        in_splits("TRAIN", "VAL", "TEST"), expected("train=TRAIN", "validation=VAL", "test=TEST"), False,
    ),
    "train, val": (in_splits("train", "val"), expected("train=train", "validation=val"), True),
    "train, valid": (in_splits("train", "valid"), expected("train=train", "validation=valid"), True),
    "train, dev": (in_splits("train", "dev"), expected("train=train", "validation=dev"), True),
    "all three": (
        in_splits("train", "validation", "test"), expected("train=train", "validation=validation", "test=test"), True,
    ),
    "images in folders of a label": (
        nested_images, {"train": {("a/1.png", "a"), ("a/more/2.png", "a"), ("b/1.png", "b"), ("b/x/y/z/2.png", "b")}},
        False,  # `datasets` takes the innermost folder, torchvision the outermost
    ),
    "hidden files and folders": (with_hidden, PLAIN, False),  # Thumbs.db aside
    "links": (
        with_links,
        {"train": {("a/1.png", "a"), ("a/more/2.png", "a"), ("b/1.png", "b"), ("b/2.png", "b"), ("b/up/1.png", "b"),
                   ("b/up/more/2.png", "b"), ("c/1.png", "c")}},
        False,  # fsspec does not follow them
    ),
    "suffixes": (
        with_suffixes,
        {"train": {("b/1.png", "b"), ("a/0.PNG", "a"), ("a/0.jfif", "a"), ("a/1.JPG", "a"), ("a/2.jp2", "a"),
                   ("a/3.tga", "a")}},
        True,
    ),
    "metadata.csv": (with_metadata("csv"), LISTED, True),
    "metadata.jsonl": (with_metadata("jsonl"), LISTED, True),
    "metadata.parquet": (with_metadata("parquet"), LISTED, True),
    "metadata of folders": (
        metadata_of_folders, {"train": {("images/p/0.png", "y"), ("images/q/1.png", "x")}}, True,
    ),
    "metadata of splits": (
        metadata_of_splits,
        {split: {(f"{split}/{name}", label) for name, label in LISTED["train"]} for split in ("train", "test")}, True,
    ),
    "metadata in sub-folders": (
        metadata_in_sub_folders,
        {"train": {(f"train/{part}/{name}", label) for part in ("p", "q/r") for name, label in LISTED["train"]}}, True,
    ),
}  # fmt: skip
"""Name -> how it is made, what is in it, and whether `datasets` finds the same."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    make, rows, is_datasets_alike = LAYOUTS[name]
    root = tmp_path / "data"
    make(root)
    splits = read(tmp_path)
    assert found(splits, root) == rows
    ids = [row["id"] for row in splits.train]
    assert len({*ids}) == len(ids)
    if is_datasets_alike:
        assert by_datasets(root, tmp_path / "cache") == rows


def test_nested_images_and_links_have_the_labels_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    nested_images(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    paint(tmp_path / "outside", "3.png")
    (tmp_path / "data" / "b" / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    theirs = ImageFolder(str(tmp_path / "data"))
    ours = read(tmp_path)
    assert ours.labels == theirs.classes
    assert [(row["image"], row["label"]) for row in ours.train] == sorted(theirs.samples)


# --- refusals ---------------------------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "splits and labels": (
        ("train/a/1.png", "cat/1.png"),
        "holds train/, a split by name, and beside it cat/, which is none; if these are splits write files: "
        "{train: DATA/train, SPLIT: DATA/cat}; if all are labels, files: {train: DATA}",
    ),
    "a label that is called test": (("test/1.png", "cat/1.png", "dog/1.png"), "if all are labels, files: {train: DATA"),
    "splits without train": (("val/a/1.png", "test/a/1.png"), "holds test/, val/ and no train/; add it"),
    "a split twice": (("train/a/1.png", "val/a/1.png", "Valid/a/1.png"), "both mean the split validation"),
    "evaluation": (("train/a/1.png", "eval/a/1.png"), "files: {train: DATA/train, validation: DATA/eval}"),
    "splits by other names": (
        ("seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/a/1.png"),
        "seg_pred holds only folders (a/), so it is no label of images; if DATA holds splits write files: "
        "{SPLIT: DATA/seg_pred, test: DATA/seg_test, train: DATA/seg_train}",
    ),
    "images of splits by other names": (
        ("train_images/1.png", "testImages/2.png"),
        "holds testImages/, train_images/, splits by their names; if they are write files: {test: DATA/testImages, "
        "train: DATA/train_images}, each with one folder a label in it or a metadata.csv; if they are labels, files: "
        "{train: DATA}",
    ),
    "a label in another": (("a/1.png", "a/x/b/2.png", "b/1.png"), "a/x/b/2.png lies in folders of two labels, 'a' and"),
    "a folder too many": (
        ("archive/a/1.png", "archive/b/1.png"), "if the inner folders are the labels write files: DATA/archive",
    ),
    "a folder too many, of splits": (
        ("archive/train/a/1.png", "archive/test/a/1.png"), "if these are the splits write files: DATA/archive",
    ),
    "labels above splits": (
        ("a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png"),
        "splits hold the labels, not the other way round: move the images to DATA/test/a and so on",
    ),
    "labels of labels": (
        ("animals/cat/1.png", "plants/rose/1.png"),
        "if the inner folders are the labels write files: [DATA/animals, DATA/plants]; if 'animals' is one, move",
    ),
    "one label of labels": (("cat/1.png", "more/dog/1.png"), "more holds only folders (dog/)"),
    "labels of labels in a split": (("train/animals/cat/1.png", "test/pets/cat/1.png"), "animals holds only folders"),
    "a split in a label": (("a/1.png", "a/test/2.png", "b/1.png"), "nothing says which split the images belong to"),
    "an image beside the splits": (("train/a/1.png", "1.png"), "1.png lies beside the splits and in none of them"),
    "an image beside the labels": (("a/1.png", "b/1.png", "1.png"), "move it into its label's folder; or list all"),
    "an image without metadata": (("p/1.png", "q/1.png", "p/metadata.csv"), "q/1.png has no metadata file"),
    "two metadata files": (("1.png", "metadata.csv", "metadata.jsonl"), "metadata.csv and metadata.jsonl; keep one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_can_be_read_in_two_ways(tmp_path: Path, name: str) -> None:
    names, says = REFUSED[name]
    root = tmp_path / "data"
    paint(root, *(name for name in names if name.endswith(".png")))
    for file in names:
        if not file.endswith(".png"):
            (root / file).write_text("file_name,label\n1.png,x\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert says.replace("DATA", str(root)) in str(caught.value)


def test_what_the_refusals_advise(tmp_path: Path) -> None:
    root = tmp_path / "data"
    paint(root, "animals/cat/1.png", "plants/rose/1.png", "plants/fern/2.png")
    nested = read(tmp_path, ["data/animals", "data/plants"])
    assert nested.labels == ["cat", "fern", "rose"]
    assert sorted(row["id"] for row in nested.train) == ["animals/cat/1.png", "plants/fern/2.png", "plants/rose/1.png"]
    paint(tmp_path / "words", "test/1.png", "cat/1.png", "train/1.png")
    assert read(tmp_path, {"train": "words"}).labels == ["cat", "test", "train"]
    paint(tmp_path / "archive", "train/a/1.png", "test/a/1.png")
    with pytest.raises(DataError, match=r"archive holds splits \(train/, test/\), and is one of several"):
        read(tmp_path, ["archive", "data/animals"])


@pytest.mark.parametrize("filler", [None, ".DS_Store", "Thumbs.db", ".ipynb_checkpoints/1.png"])
def test_a_label_without_images_is_refused_or_kept(tmp_path: Path, filler: str | None) -> None:
    root = tmp_path / "data"
    paint(root, "10/1.png", "9/1.png")
    (root / "11").mkdir()
    if filler:
        (root / "11" / filler).parent.mkdir(exist_ok=True)
        (root / "11" / filler).write_bytes(b"")
    with pytest.raises(DataError, match=r"data/11 holds no images; .* or set data\.empty_classes: keep"):
        read(tmp_path)
    kept = read(tmp_path, empty_classes="keep")
    assert kept.labels == ["9", "10", "11"]
    assert [row["label"] for row in kept.train] == [1, 0]


def test_a_link_that_leads_nowhere_is_a_row_to_be_refused_by_name(tmp_path: Path) -> None:
    paint(tmp_path / "data", *CLASSES)
    (tmp_path / "data" / "a" / "3.png").symlink_to(tmp_path / "gone.png")
    assert "a/3.png" in [row["id"] for row in read(tmp_path).train]


def test_names_and_things_that_are_no_files(tmp_path: Path) -> None:
    root = tmp_path / "data"
    paint(root, *CLASSES)
    (root / "a" / "circle.png").symlink_to("circle.png")
    assert "a/circle.png" in [row["id"] for row in read(tmp_path).train]  # refused by name when it is opened
    os.mkfifo(root / "b" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is neither a file nor a folder"):
        read(tmp_path)
    (root / "b" / "pipe.png").unlink()
    os.rename(os.fsencode(root / "b"), os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"caf\\xe9': the name is not UTF-8; rename it"):
        read(tmp_path)


def test_labels_that_look_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tmp_path / "data", "caf\u00e9/1.png", "Tea/1.png", "tea/1.png")
    assert read(tmp_path).labels == ["Tea", "caf\u00e9", "tea"]
    assert "'Tea' and 'tea' are two labels" in caplog.text
    paint(tmp_path / "data", "cafe\u0301/1.png")
    with pytest.raises(DataError, match=r"has both 'cafe\\u0301' and 'caf\\xe9'; write them alike"):
        read(tmp_path)


def test_metadata_beside_the_splits(tmp_path: Path) -> None:
    root = tmp_path / "data"
    names = ["train/1.png", "Test/1.png", "train/2.png"]
    paint(root, *names, "Test/unlisted.png")
    rows = [{"file_name": name, "label": "xyy"[n]} for n, name in enumerate(names)]
    metadata(root, rows)
    assert found(read(tmp_path), root) == {
        "train": {("train/1.png", "x"), ("train/2.png", "y")}, "test": {("Test/1.png", "y")},
    }  # fmt: skip
    metadata(root, [*rows, {"file_name": "elsewhere/1.png", "label": "x"}])
    with pytest.raises(DataError, match=r"metadata\.csv, row 3: .*elsewhere/1\.png lies in none of the splits"):
        read(tmp_path)


def test_columns_of_metadata(tmp_path: Path) -> None:
    root = tmp_path / "data"
    paint(root, "1.png", "2.png")
    metadata(root, [{"photo_file_name": f"{n}.png", "kind": "xy"[n % 2], "file_name": "2.png"} for n in (1, 2)])
    columns = {"image": "photo", "label": "kind"}
    assert found(read(tmp_path, columns=columns), root) == {"train": {("1.png", "y"), ("2.png", "x")}}
    with pytest.raises(DataError, match=r"no column 'label' in .*metadata\.csv; .*it has: 'photo_file_name', 'kind'"):
        read(tmp_path)
    metadata(root, [{"name": "1.png", "label": "x"}])
    with pytest.raises(DataError, match=r"has no column 'file_name' or 'image_file_name' or 'image'"):
        read(tmp_path)


# --- suffixes, and the paths of tables --------------------------------------------------------------------------------
def test_suffixes_are_those_of_pillow_without_what_has_no_pixels() -> None:
    suffixes = image_suffixes()
    assert suffixes >= {
        ".jfif",
        ".jpe",
        ".jp2",
        ".mpo",
        ".pbm",
        ".tga",
        ".webp",
        ".png",
        ".gif",
        ".tif",
        ".ico",
        ".bmp",
    }
    assert not suffixes & {".pdf", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".h5", ".svg", ".txt"}


def table_of(folder: Path, kind: str, paths: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [{"image": path, "label": "xy"[number % 2]} for number, path in enumerate(paths)]
    file = folder / f"rows.{kind}"
    if kind == "csv":
        file.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_paths_in_a_table_are_absolute_or_beside_recipe_or_table(tmp_path: Path, kind: str) -> None:
    paint(tmp_path, "recipes/own/1.png", "tables/pictures/2.png", "far/3.png", "tables/4.png")
    table_of(tmp_path / "tables", kind, ["own/1.png", "pictures/2.png", str(tmp_path / "far/3.png"), "4.png", "no.png"])
    splits = read(tmp_path / "recipes", f"../tables/rows.{kind}", source=kind)
    assert [os.path.relpath(row["image"], tmp_path) for row in splits.train] == [
        "recipes/own/1.png", "tables/pictures/2.png", "far/3.png", "tables/4.png", "recipes/no.png",
    ]  # fmt: skip


def test_paths_in_a_table_that_lead_to_two_files(tmp_path: Path) -> None:
    paint(tmp_path, "recipes/1.png", "tables/1.png", "recipes/2.png")
    table_of(tmp_path / "tables", "csv", ["1.png", "2.png"])
    with pytest.raises(DataError, match=r"'1\.png' in row 0 of .*rows\.csv is two files, .*recipes/1\.png beside"):
        read(tmp_path / "recipes", "../tables/rows.csv", source="csv")
    (tmp_path / "tables" / "1.png").unlink()
    (tmp_path / "tables" / "2.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "tables" / "1.png").symlink_to(tmp_path / "recipes" / "1.png")
    assert len(read(tmp_path / "recipes", "../tables/rows.csv", source="csv").train) == 2


def test_paths_beside_bytes_in_a_column_of_datasets(tmp_path: Path) -> None:
    paint(tmp_path, "tables/1.png")
    content = (tmp_path / "tables" / "1.png").read_bytes()
    cells = [{"bytes": content, "path": "gone.png"}, {"bytes": None, "path": "1.png"}]
    table_of(tmp_path / "tables", "parquet", cells)
    rows = [row["image"] for row in read(tmp_path, "tables/rows.parquet", source="parquet").train]
    assert rows == [{"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "tables" / "1.png")}]
