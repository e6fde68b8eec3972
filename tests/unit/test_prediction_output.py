"""What `thawline predict` writes, read back by csv, json and pandas' rules."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import DataError, UserError
from launcher.prediction_output import beside, form_of, own_names, write

ANSWER = {"id": "a.csv:0", "label": "gut", "score": 0.75, "scores": {"gut": 0.75, "böse": 0.25}}
OWN: dict[str, Any] = {"id": "007", "text": 'He said "x,\ny"', "label": "böse", "day": datetime.date(2026, 11, 30)}


def written(folder: Path, form: str, *pairs: Any, columns: list[str] | None = None) -> str:
    file = folder / f"out.{form}"
    write(iter(pairs), columns or [], file, form)
    return file.read_text(encoding="utf-8")


def test_json_lines_have_the_inputs_columns_beside_the_answer(tmp_path: Path) -> None:
    """A label in the input is never taken for the answer, nor the other way round."""
    text = written(tmp_path, "jsonl", (ANSWER, OWN), (ANSWER, {}))
    first, second = map(json.loads, text.splitlines())
    assert first == ANSWER | {
        "row": "a.csv:0", "id": "007", "text": OWN["text"], "input_label": "böse", "day": "2026-11-30",
    }  # fmt: skip
    assert second == ANSWER
    assert json.loads(written(tmp_path, "json", (ANSWER, OWN), (ANSWER, {}))) == [first, second]
    assert json.loads(written(tmp_path, "json")) == []


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_table_has_the_columns_of_all_inputs(form: str, delimiter: str, tmp_path: Path) -> None:
    pairs = [(ANSWER, OWN), (ANSWER | {"label": "böse"}, {"other": True, "text": None})]
    written(tmp_path, form, *pairs, columns=["id", "text", "label", "day", "other"])
    with (tmp_path / f"out.{form}").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file, delimiter=delimiter)
    assert list(first) == ["row", "id", "text", "input_label", "day", "other", "label", "score", "scores"]
    assert (first["input_label"], first["label"], second["label"]) == ("böse", "gut", "böse")
    assert (first["text"], float(first["score"])) == (OWN["text"], 0.75)
    assert (first["other"], second["other"], second["text"]) == ("", "true", "")
    assert json.loads(first["scores"]) == ANSWER["scores"]


def test_names_never_clash() -> None:
    assert own_names(["label", "input_label", "x"], ANSWER) == ["input_input_label", "input_label", "x"]
    assert list(beside({"id": "0", "loss": 1.0}, {"row": 1, "id": 2})) == ["row_", "row", "id", "loss"]


def test_what_is_not_finite_is_text(tmp_path: Path) -> None:
    text = written(tmp_path, "jsonl", ({"id": "0", "loss": float("inf"), "perplexity": float("nan")}, {}))
    assert json.loads(text, parse_constant=pytest.fail) == {
        "id": "0", "loss": "inf", "perplexity": "nan",
    }  # fmt: skip


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    def broken() -> Any:
        yield ANSWER, {}
        raise DataError("image of row 1 cannot be read")

    (tmp_path / "out.csv").write_text("before")
    with pytest.raises(DataError):
        write(broken(), [], tmp_path / "out.csv", "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "before"


def test_the_form_is_known_before_anything_is_computed(tmp_path: Path) -> None:
    there = tmp_path / "a.csv"
    there.write_text("text\nx\n")
    assert [form_of(tmp_path / f"o.{end}", None, []) for end in ("csv", "TSV", "jsonl", "json")] == [
        "csv", "tsv", "jsonl", "json",
    ]  # fmt: skip
    assert (form_of(None, None, []), form_of(None, "csv", []), form_of(tmp_path / "o.txt", "csv", [])) == (
        "jsonl", "csv", "csv",
    )  # fmt: skip
    for output, form, says in (
        (there, None, "is an input too"),
        (tmp_path / "o.xlsx", None, "tells no format"),
        (tmp_path / "no" / "o.csv", None, "no is no folder"),
        (tmp_path, None, "is a folder"),
        (None, "xml", "'xml' is not one of csv, tsv, jsonl, json"),
    ):
        with pytest.raises(UserError, match=says):
            form_of(output, form, [str(there), "a text"])
