"""What `thawline predict` makes of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    assert text_rows(["a.csv"], pairs, is_pair=True) == [{"text": "x", "text_pair": "y", "id": "a.csv:0"}]
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
        image_rows(["a.png"])
    (working_folder / "photos").mkdir()
    with pytest.raises(UserError, match=r"image 'photos' is a folder"):
        image_rows(["photos"])
    (working_folder / "b.png").touch()
    assert image_rows(["b.png"]) == [{"image": "b.png", "id": "b.png"}]
