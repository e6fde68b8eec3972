"""What `thawline predict` makes of its inputs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from launcher.errors import DataError, UserError
from launcher.prediction_inputs import image_rows, text_rows
from launcher.recipe.data import Data


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(**settings: Any) -> Data:
    plain = {"source": "csv", "files": "train.csv", **settings}
    found: Data = TypeAdapter(Data).validate_python(plain)
    return found


def texts(*inputs: str, is_pair: bool = False, **settings: Any) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in text_rows(inputs, data(**settings), is_pair=is_pair)]


def test_a_text_is_itself_and_a_file_its_lines(working_folder: Path) -> None:
    (working_folder / "some.txt").write_text("one\n\ntwo\n")
    assert texts("it is fine.", "some.txt") == [
        ("it is fine.", "it is fine."), ("some.txt:0", "one"), ("some.txt:2", "two"),
    ]  # fmt: skip
    assert texts("see my notes in a.txt") == [("see my notes in a.txt",) * 2]


def test_tables_have_the_columns_and_encoding_of_the_data(working_folder: Path) -> None:
    (working_folder / "a.csv").write_bytes("id,tweet\n7,caf\u00e9\n".encode("latin-1"))
    (working_folder / "b.jsonl").write_text('{"tweet": "x"}\n{"tweet": "y"}\n')
    (working_folder / "c.txt").write_text("z\n")
    found = texts("a.csv", "b.jsonl", "c.txt", columns={"text": "tweet"}, encoding="latin-1")
    assert found == [("a.csv:0", "caf\u00e9"), ("b.jsonl:0", "x"), ("b.jsonl:1", "y"), ("c.txt:0", "z")]
    with pytest.raises(DataError, match=r"data.columns.text: no column 'text' in a.csv"):
        texts("a.csv", encoding="latin-1")


def test_pairs_come_from_tables_alone(working_folder: Path) -> None:
    (working_folder / "a.csv").write_text("text,second\nx,y\n")
    (working_folder / "a.txt").write_text("x\n")
    pairs = data(columns={"text_pair": "second"})
    [row] = text_rows(["a.csv"], pairs, is_pair=True)
    assert row == {"text": "x", "text_pair": "y", "id": "a.csv:0", "own": {"text": "x", "second": "y"}}
    for given in ("x", "a.txt"):
        with pytest.raises(UserError, match=r"on pairs; give it a"):
            text_rows([given], pairs, is_pair=True)


def test_rows_without_a_text(working_folder: Path) -> None:
    (working_folder / "a.csv").write_text("text,b\nx,1\n,2\n")
    with pytest.raises(DataError, match=r"a.csv: no text in column 'text' of 1 row \(counted from 0\): 1"):
        texts("a.csv")


def test_files_that_are_not_there(working_folder: Path) -> None:
    with pytest.raises(UserError, match=r"'some.txt' does not exist; paths start from the working folder"):
        texts("some.txt")
    with pytest.raises(UserError, match=r"image 'a.png' does not exist; paths start from the working folder"):
        image_rows(["a.png"], data())
    (working_folder / "b.png").touch()
    assert image_rows(["b.png"], data()) == [{"image": "b.png", "id": "b.png", "own": {}}]


def test_a_file_or_folder_is_never_taken_for_a_text(working_folder: Path) -> None:
    (working_folder / "reviews.xlsx").touch()
    (working_folder / "README").touch()
    (working_folder / "folder").mkdir()
    for name in ("reviews.xlsx", "README"):
        with pytest.raises(UserError, match=f"'{name}' is a file, and its suffix tells no format"):
            texts(name)
    with pytest.raises(UserError, match="'folder' is a folder; name the files of texts in it"):
        texts("folder")
    for odd in ("", "a\0b", "x" * 5000, "--", "a/b"):
        assert texts(odd) == [(odd, odd)]


OWN = {
    "a.csv": ('id,tweet,empty,\n007,"x, y",,2\n', {"id": "007", "tweet": "x, y", "empty": None}),
    "a.tsv": ("tweet\tstars\nfine\t5\n", {"tweet": "fine", "stars": "5"}),
    "a.jsonl": (
        '{"tweet": "x", "n": 1, "more": {"a": [1]}}\n\n{"n": "two", "tweet": "y"}\n',
        {"tweet": "x", "n": 1, "more": {"a": [1]}},
    ),
    "a.json": ('[{"tweet": "x", "n": null}, {"tweet": "y", "n": [2]}]', {"tweet": "x", "n": None}),
}


@pytest.mark.parametrize("name", OWN)
def test_a_files_own_columns_stand_beside_its_rows(name: str, working_folder: Path) -> None:
    """As text, ``007`` too. What no task reads may be of any type; a column without a name is passed over."""
    content, expected = OWN[name]
    (working_folder / name).write_text(content)
    settings = data(columns={"text": "tweet"})
    rows = text_rows([name], settings, is_pair=False)
    assert rows[0]["own"] == expected
    assert all(row["own"]["tweet"] == row["text"] for row in rows)


def test_the_columns_of_parquet_and_lines_of_a_text_file(working_folder: Path) -> None:
    when = datetime.date(2026, 11, 30)
    pyarrow.parquet.write_table(pa.table({"text": ["x"], "day": [when], "image": [b"1"]}), "a.parquet")
    (working_folder / "a.txt").write_text("one\n\ntwo\n")
    found = [row["own"] for row in text_rows(["a.parquet", "a.txt"], data(), is_pair=False)]
    assert found == [{"text": "x", "day": when}, {"text": "one"}, {"text": "two"}]


def test_a_folder_of_images_is_walked(working_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.PNG", "cats/1.jpg", "cats/deep/2.webp", "notes.md", ".hidden/3.png", "cats/.4.png"):
        file = working_folder / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = [row["image"] for row in image_rows(["photos", "photos/b.PNG"], data())]
    assert found == ["photos/b.PNG", "photos/cats/1.jpg", "photos/cats/deep/2.webp", "photos/b.PNG"]
    assert "photos: 1 files that are no images" in caplog.text
    (working_folder / "empty").mkdir()
    with pytest.raises(UserError, match="folder 'empty' holds no images"):
        image_rows(["empty"], data())


def test_a_table_of_images(working_folder: Path) -> None:
    folder = working_folder / "set"
    folder.mkdir()
    (folder / "a.png").touch()
    (working_folder / "b.png").touch()
    (folder / "list.csv").write_text("file,label\na.png,cat\nb.png,dog\nnone.png,dog\n")
    rows = image_rows(["set/list.csv"], data(columns={"image": "file"}))
    assert [row["image"] for row in rows] == ["set/a.png", "b.png", "set/none.png"]
    assert [row["own"]["label"] for row in rows] == ["cat", "dog", "dog"]
    (working_folder / "a.png").touch()
    with pytest.raises(DataError, match=r"'a\.png' is two files"):
        image_rows(["set/list.csv"], data(columns={"image": "file"}))
    image = pa.array([{"bytes": b"1", "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pyarrow.parquet.write_table(pa.table({"image": image, "n": [3]}), "images.parquet")
    [row] = image_rows(["images.parquet"], data())
    assert (row["image"], row["own"]) == ({"bytes": b"1", "path": None}, {"n": 3})
    paths = pa.array([{"bytes": None, "path": "c.png"}], image.type)
    pyarrow.parquet.write_table(pa.table({"image": paths}), "set/paths.parquet")
    assert image_rows(["set/paths.parquet"], data())[0]["image"] == {"bytes": None, "path": "set/c.png"}


@pytest.mark.parametrize(("given", "says"), [("", "an input is the empty text"), ("x" * 300, "does not exist")])
def test_what_can_be_no_image(working_folder: Path, given: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        image_rows([given], data())


def test_standard_input_and_files_without_rows_are_refused(working_folder: Path) -> None:
    with pytest.raises(UserError, match="standard input, which is not read"):
        texts("-")
    (working_folder / "none.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"none\.csv has no rows"):
        texts("none.csv")
