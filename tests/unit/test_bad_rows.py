"""Damaged images, empty cells and texts without a token: found before training, named at once, or left out.

The other side: Pillow itself, which cannot open what is named here and opens all else; and the models of transformers,
which fail on the texts that are refused.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from pydantic import TypeAdapter

from launcher.cache_folder import cache_folder
from launcher.data import Splits, load, media_check
from launcher.data.checking import load_checked
from launcher.errors import DataError
from launcher.plan.data_facts import SkippedRow
from launcher.recipe import ImageClassification, Task, TextClassification
from launcher.recipe.data import Data

IMAGES = ImageClassification(kind="image-classification")
TEXTS = TextClassification(kind="text-classification")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("THAWLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "media.sqlite"


def checked(folder: Path, task: Task = IMAGES, skipped: Any = None, **data: Any) -> Splits:
    given = TypeAdapter(Data).validate_python({"split": {"validation": 0.25}} | data)
    return load_checked(given, task, folder) if skipped is None else load(given, task, folder, skipped)


def paint(folder: Path, count: int, suffix: str = "png") -> list[Path]:
    """So many images of each of two labels."""
    paths = [folder / label / f"{number:02}.{suffix}" for number in range(count) for label in "ab"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 50 + number).convert("RGB").save(path)
    return sorted(paths)


def bomb() -> bytes:
    """A small PNG that says it has 400 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = (20_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([1, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2501 * 20_000))) + chunk(b"IEND", b"")


def cut(path: Path) -> None:
    """All of the header and half of the pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = os.urandom(64)
    path.write_bytes(content)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": cut,
    "garbled": garbled,
    "empty": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("<html>404</html>"),
    "a bomb": lambda path: path.write_bytes(bomb()),
    "a link that leads nowhere": dangling,
}


# --- images -----------------------------------------------------------------------------------------------------------
def test_all_damages_are_named_at_once(tmp_path: Path) -> None:
    paths = paint(tmp_path / "pets", 10)
    for path, damage in zip(paths, DAMAGES.values(), strict=False):
        damage(path)
    for path in paths[: len(DAMAGES)]:
        with pytest.raises((OSError, SyntaxError, Image.DecompressionBombError)), Image.open(path) as image:
            image.load()
    with pytest.raises(DataError) as caught:
        checked(tmp_path, source="imagefolder", files="pets")
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert "data.files: images that cannot be read in 6 of 20 rows:" in said
    named = [line for line in said.split("\n") if line.startswith("  ")]
    assert len(named) == len(DAMAGES)
    assert all(sum(f"{path}" in line for line in named) == 1 for path in paths[: len(DAMAGES)])
    assert "exceeds limit of" in said
    assert "data.on_bad_row: skip" in said


def test_jpegs_that_break_off_are_decoded_to_their_end(tmp_path: Path) -> None:
    paths = paint(tmp_path / "pets", 3, "jpg")
    cut(paths[0])
    with pytest.raises(DataError, match=r"in 1 of 6 rows:\n  \w+, row a/00\.jpg: cannot be read"):
        checked(tmp_path, source="imagefolder", files="pets")


def test_the_first_twenty_and_the_count(tmp_path: Path) -> None:
    for path in paint(tmp_path / "pets", 15):
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        checked(tmp_path, source="imagefolder", files="pets")
    lines = str(caught.value).split("\n")
    assert "in 30 of 30 rows" in lines[0]
    assert len([line for line in lines if line.startswith("  ") and "row" in line]) == 20
    assert "  … and 10 more" in lines


def damaged_sources(folder: Path) -> dict[str, dict[str, Any]]:
    """One damaged image of eight in each kind of source, the sixth."""
    paths = paint(folder / "pets", 4)
    cut(paths[5])
    rows = [{"image": str(path), "label": path.parent.name} for path in paths]
    (folder / "a.csv").write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    (folder / "a.json").write_text(json.dumps(rows))
    contents = [path.read_bytes() for path in paths]
    labels = pa.array([row["label"] for row in rows])
    for name, images in {
        "bytes": pa.array(contents),
        "struct": pa.array([{"bytes": content, "path": None} for content in contents]),
        "paths": pa.array([{"bytes": None, "path": row["image"]} for row in rows]),
    }.items():
        pyarrow.parquet.write_table(pa.table({"image": images, "label": labels}), folder / f"{name}.parquet")
    (folder / "hub").mkdir()
    pyarrow.parquet.write_table(pa.table({"image": pa.array(contents), "label": labels}), folder / "hub/train.parquet")
    return {
        "csv": {"source": "csv", "files": "a.csv"},
        "json": {"source": "json", "files": "a.json"},
        **{name: {"source": "parquet", "files": f"{name}.parquet"} for name in ("bytes", "struct", "paths")},
        "hub": {"source": "hub", "dataset": str(folder / "hub")},
    }


@pytest.mark.parametrize("kind", ["csv", "json", "bytes", "struct", "paths", "hub"])
def test_images_in_every_source(tmp_path: Path, kind: str) -> None:
    source = damaged_sources(tmp_path)[kind]
    with pytest.raises(DataError, match=r"images that cannot be read in 1 of 8 rows:\n  \w+, row 5: cannot be read"):
        checked(tmp_path, **source)
    splits = checked(tmp_path, **source, on_bad_row="skip")
    assert sorted(row["id"] for rows in splits.by_name().values() for row in rows) == list("0123467")


# --- left out ---------------------------------------------------------------------------------------------------------
def test_what_is_left_out_is_the_same_for_every_rank_and_after_a_repair(tmp_path: Path) -> None:
    paths = paint(tmp_path / "pets", 20)
    whole = checked(tmp_path, source="imagefolder", files="pets")
    assert whole.validation is not None
    before = {path: path.read_bytes() for path in (paths[3], paths[30], paths[31])}
    for path in before:
        cut(path)
    skip = {"source": "imagefolder", "files": "pets", "on_bad_row": "skip"}
    splits = checked(tmp_path, **skip)
    out = {f"{path.parent.name}/{path.name}" for path in before}
    assert {row.row for row in splits.skipped} == out
    assert all("cannot be read" in row.why for row in splits.skipped)
    for name, rows in splits.by_name().items():  # no other row moved
        assert [row["id"] for row in rows] == [row["id"] for row in whole.by_name()[name] if row["id"] not in out]
    facts = splits.facts()
    assert facts.train_rows + facts.validation_rows == 37
    again = checked(tmp_path, skipped=facts.skipped, **skip).facts()
    assert again.differences(facts) == []
    for path, content in before.items():
        path.write_bytes(content)
    assert checked(tmp_path, skipped=facts.skipped, **skip).facts().differences(facts) == []
    assert checked(tmp_path, **skip).facts().train_rows + facts.validation_rows > 37 - 3


def test_rows_that_are_left_out_in_two_rounds_keep_their_places(tmp_path: Path) -> None:
    paint(tmp_path / "pets", 6)
    whole = checked(tmp_path, source="imagefolder", files="pets", split={"validation": 0})
    ids = [row["id"] for row in whole.train]

    def bad(index: int, names: list[str]) -> SkippedRow:
        return SkippedRow(split="train", index=index, row=names[index], why="")

    once = whole.without([bad(2, ids), bad(7, ids)])
    left = [row["id"] for row in once.train]
    twice = once.without([bad(2, left), bad(6, left), bad(9, left)])
    assert [(row.index, row.row) for row in twice.skipped] == [(index, ids[index]) for index in (2, 7, 3, 8, 11)]
    assert whole.without(twice.skipped).facts().digests == twice.facts().digests


@pytest.mark.parametrize(
    ("quota", "num_bad", "is_refused"),
    [(None, 2, False), (None, 3, True), (0.25, 5, False), (0.25, 6, True), (3, 3, False), (3, 4, True), (0.0, 1, True)],
)
def test_the_quota(tmp_path: Path, quota: float | int | None, num_bad: int, is_refused: bool) -> None:
    for path in paint(tmp_path / "pets", 10)[5 : 5 + num_bad]:
        path.write_bytes(b"")
    data = {"source": "imagefolder", "files": "pets", "on_bad_row": "skip"}
    data |= {} if quota is None else {"max_bad_rows": quota}
    if is_refused:
        with pytest.raises(DataError, match=rf"in {num_bad} of 20 rows:(.|\n)*max_bad_rows: {quota or 0}.*raise data"):
            checked(tmp_path, **data)
    else:
        assert len(checked(tmp_path, **data).skipped) == num_bad


def test_a_label_or_a_split_that_loses_all_rows(tmp_path: Path) -> None:
    for path in paint(tmp_path / "pets", 4)[:4]:
        path.write_bytes(b"")
    data = {"source": "imagefolder", "files": "pets", "on_bad_row": "skip", "max_bad_rows": 8}
    with pytest.raises(DataError, match=r"label 'a': all of its \d training rows are bad"):
        checked(tmp_path, **data)
    for path in paint(tmp_path / "test", 1):
        path.write_bytes(b"")
    paint(tmp_path / "train", 3)
    with pytest.raises(DataError, match=r"split test: all of its 2 rows are bad; test, row a/00\.png"):
        checked(tmp_path, **data | {"files": {"train": "train", "test": "test"}})


def test_empty_cells_are_bad_rows_too(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]
    rows[4]["text"] = rows[9]["label"] = ""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    data = {"source": "csv", "files": "a.csv"}
    with pytest.raises(DataError, match=r"is empty in 1 row \(counted from 0\): 4; .* data\.on_bad_row: skip"):
        checked(tmp_path, TEXTS, **data)
    splits = checked(tmp_path, TEXTS, **data, on_bad_row="skip")
    assert [(row.row, row.index) for row in splits.skipped] == [("4", None), ("9", None)]
    assert splits.labels == ["a", "b"]
    facts = splits.facts()
    assert facts.train_rows + facts.validation_rows == 18
    assert checked(tmp_path, TEXTS, facts.skipped, **data, on_bad_row="skip").facts() == facts
    with pytest.raises(DataError, match=r"data\.columns: empty cells in 2 of 20 rows:\n  train, row 4: column 'text'"):
        checked(tmp_path, TEXTS, **data, on_bad_row="skip", max_bad_rows=1)


# --- the cache --------------------------------------------------------------------------------------------------------
@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was decoded."""
    names: list[str] = []
    decode = media_check.decode

    def noting(value: Any, name: str) -> Any:
        names.append(name)
        return decode(value, name)

    monkeypatch.setattr(media_check, "decode", noting)
    return names


@pytest.mark.parametrize("kind", ["folder", "bytes"])
def test_what_was_sound_is_not_decoded_again(tmp_path: Path, decoded: list[str], kind: str) -> None:
    sources = damaged_sources(tmp_path) | {"folder": {"source": "imagefolder", "files": "pets"}}
    data = sources[kind] | {"on_bad_row": "skip"}
    checked(tmp_path, **data)
    bad = "b/01.png" if kind == "folder" else "5"
    assert len(decoded) == 8
    decoded.clear()
    checked(tmp_path, **data)
    assert decoded == [bad], "what is damaged may have been repaired by means that a file's time does not show"


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    paths = paint(tmp_path / "pets", 4)
    data = {"source": "imagefolder", "files": "pets"}
    checked(tmp_path, **data)
    decoded.clear()
    about = paths[2].stat()
    cut(paths[1])
    garbled(paths[2])  # of the same size
    os.utime(paths[2], ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    os.utime(paths[3])
    with pytest.raises(DataError, match="in 2 of 8 rows"):
        checked(tmp_path, **data)
    assert sorted(decoded) == ["a/01.png", "a/02.png", "a/03.png"]


def test_a_cache_that_cannot_be_used_costs_time_alone(
    tmp_path: Path, cache: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    paint(tmp_path / "pets", 4)
    cache.parent.mkdir()
    cache.write_bytes(b"no database" * 1000)
    for _ in range(2):
        checked(tmp_path, source="imagefolder", files="pets")
    assert len(decoded) == 16
    assert "media files are checked at every start: file is not a database" in caplog.text


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder().name == "cache"
    monkeypatch.delenv("THAWLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/thawline")
