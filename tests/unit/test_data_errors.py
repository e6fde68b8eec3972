"""What a user reads when the data are not what the recipe says: what, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from launcher.data import load
from launcher.errors import DataError, EnvironmentProblem
from launcher.recipe import CausalLM, ImageClassification, Task, TextClassification
from launcher.recipe.data import Data

TEXTS = TextClassification(kind="text-classification")
IMAGES = ImageClassification(kind="image-classification")
GOOD = b"text,label\n" + b"".join(b"text %d,%s\n" % (n, b"ab"[n % 2 : n % 2 + 1]) for n in range(10))


def message(folder: Path, task: Task = TEXTS, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(TypeAdapter(Data).validate_python(data), task, folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., str]:
    """Write a csv and return the message of reading it."""

    def write_and_read(content: bytes | str, task: Task = TEXTS, **data: Any) -> str:
        (tmp_path / "tweets.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return message(tmp_path, task, **{"source": "csv", "files": "tweets.csv", **data})

    return write_and_read


# --- files ------------------------------------------------------------------------------------------------------------
def test_missing_file_names_those_near_it(tmp_path: Path) -> None:
    for name in ("tweets.csv", "tweets_old.csv", "z.json"):
        (tmp_path / name).write_bytes(GOOD)
    said = message(tmp_path, source="csv", files="twets.csv")
    assert said.startswith("data.files: 'twets.csv' does not exist; looked in ")
    assert "did you mean 'tweets.csv'" in said
    assert "data.files.test: 'w.csv'" in message(tmp_path, source="csv", files={"train": "tweets.csv", "test": "w.csv"})


def test_missing_folder_is_the_part_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "english").mkdir(parents=True)
    said = message(tmp_path, source="csv", files="corpra/english/tweets.csv")
    assert f"looked in {tmp_path}; did you mean 'corpora'?" in said


def test_glob_that_matches_nothing_shows_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_bytes(b"")
    said = message(tmp_path, source="csv", files="data/*.csv")
    assert "'data/*.csv' matches no file; looked in " in said
    assert "it has a.json" in said


def test_folder_where_files_are_needed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "is a folder; name its files, such as 'data/*.csv'" in message(tmp_path, source="csv", files="data")


@pytest.mark.parametrize("name", ["no_such_package/a.csv", "not-a-name/a.csv", "os/a.csv"])
def test_package_that_is_not_installed(tmp_path: Path, name: str) -> None:
    said = message(tmp_path, source="csv", files=f"package:{name}")
    assert f"no package {name.partition('/')[0]!r} is installed" in said


def test_file_missing_in_a_package(tmp_path: Path) -> None:
    said = message(tmp_path, source="csv", files="package:launcher/erors.py")
    assert "did you mean 'errors.py'" in said


def test_files_without_train(tmp_path: Path) -> None:
    assert "no train" in message(tmp_path, source="csv", files={"test": "a.csv"})
    assert "data.files is an empty list" in message(tmp_path, source="csv", files=[])


def test_suffix_that_tells_no_format(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(GOOD)
    said = message(tmp_path, source="package", files="a.dat")
    assert "'.dat' tells no format" in said
    assert ".parquet" in said


# --- contents ---------------------------------------------------------------------------------------------------------
def test_wrong_encoding_tells_byte_and_line(csv: Callable[..., str]) -> None:
    said = csv(b"text,label\nfine,a\nit\x92s,b\n")
    assert "byte 0x92 at position 20 (line 3) is not utf-8" in said
    assert "data.encoding: latin-1" in said
    assert "'uft-8' is unknown" in csv(GOOD, encoding="uft-8")


@pytest.mark.parametrize("encoding", ["punycode", "idna", "undefined", "rot13", "a\0b"])
def test_codecs_that_are_not_for_files(csv: Callable[..., str], encoding: str) -> None:
    assert "data.encoding" in csv(b"text,label\nit\x92s,a-b\n", encoding=encoding)


def test_header_that_is_blank_or_endless(csv: Callable[..., str]) -> None:
    assert "is empty; a first line" in csv("")
    assert "line 1 is blank; a first line" in csv(b"\n" + GOOD)
    assert "line 1: field larger than field limit" in csv("a" * 200_000)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (['"fine"', '"half \\ud83d"'], "row 1: column 'text' holds 'half \\ud83d': half of a surrogate pair"),
        (["1", "2", "36893488147419103232"], "row 2: column 'text' holds 36893488147419103232: "),
        (["[1]", "[2]", '["a"]', "[3]"], "row 2: column 'text' holds ['a']: "),
        (['{"a": 1}', '{"a": []}'], "row 1: column 'text' holds {'a': []}: "),
        (['"a"', "9" * 5000], "line 2 cannot be read: Exceeds the limit"),
        (['"a"', "[" * 100_000], "line 2 cannot be read: maximum recursion"),
    ],
    ids=["surrogate", "beyond 64 bits", "mixed lists", "mixed maps", "too many digits", "too deep"],
)
def test_json_that_no_column_holds(tmp_path: Path, values: list[str], says: str) -> None:
    (tmp_path / "a.json").write_text("".join(f'{{"text": {value}, "label": "a"}}\n' for value in values))
    assert says in message(tmp_path, source="json", files="a.json")


def test_labels_of_thousands_of_digits_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {n},{str(9 - n % 2) * 5000}\n" for n in range(20)))
    data: Data = TypeAdapter(Data).validate_python({"source": "csv", "files": "a.csv"})
    assert load(data, TEXTS, tmp_path).labels == ["8" * 5000, "9" * 5000]


@pytest.mark.parametrize("value", ['["a"]', '{"a": 1}'])
def test_labels_that_are_lists(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"text": "x", "label": {value}}}\n' * 4)
    assert "a label is one name or one number" in message(tmp_path, source="json", files="a.json")


def test_missing_column_tells_the_nearest_and_all(csv: Callable[..., str]) -> None:
    said = csv("txt,label,user\nx,a,1\n")
    assert "data.columns.text: no column 'text' in " in said
    assert "did you mean 'txt'? it has: 'txt', 'label', 'user'" in said
    said = csv(GOOD, columns={"label": "sentiment"})
    assert "data.columns.label: no column 'sentiment'" in said
    assert "data.columns.text_pair: no column 'b'" in csv(GOOD, columns={"text_pair": "b"})


def test_column_that_the_task_does_not_know(csv: Callable[..., str]) -> None:
    said = csv(GOOD, columns={"txt": "text"})
    assert "data.columns.txt: text-classification has no column 'txt'; did you mean 'text'?" in said
    assert "its columns: text, label, text_pair" in said


def test_columns_of_dedupe_and_stratify(csv: Callable[..., str]) -> None:
    assert "data.split.dedupe: no column 'user'" in csv(GOOD, split={"dedupe": "user"})
    assert "data.split.stratify: no column 'lable'" in (said := csv(GOOD, split={"stratify": "lable"}))
    assert "did you mean 'label'?" in said


@pytest.mark.parametrize("column", ["text", "label"])
def test_empty_cells_tell_their_rows(csv: Callable[..., str], column: str) -> None:
    rows = [["x", "a"] if n not in (3, 7) else (["", "a"] if column == "text" else ["x", '""']) for n in range(9)]
    said = csv("text,label\n" + "".join(",".join(row) + "\n" for row in rows))
    assert f"data.columns.{column}: column {column!r} of " in said
    assert "is empty in 2 rows (counted from 0): 3, 7; fill it in" in said
    assert "6 rows (counted from 0): 0, 1, 2, 3, 4, …" in csv("text,label\n" + ",a\n" * 6)


def test_files_with_no_rows(csv: Callable[..., str], tmp_path: Path) -> None:
    assert "split train has no rows" in csv("text,label\n")
    assert "is empty; a first line with the names" in csv("")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "full.csv").write_bytes(GOOD)
    said = message(tmp_path, source="csv", files={"train": "full.csv", "test": "empty.csv"})
    assert "split test has no rows" in said


def test_csv_that_breaks_off_tells_its_row(csv: Callable[..., str]) -> None:
    said = csv("text,label\nx,a\ny,b,c\n")
    assert "tweets.csv, line 3: 3 cells where the header names 2 columns: 'y,b,c'; quote a cell that holds ','" in said
    assert "names 'text' twice; rename one of the two columns" in csv("text,label,text\nx,a,y\n")


def test_json_that_is_none(tmp_path: Path) -> None:
    def said(content: str, **data: Any) -> str:
        (tmp_path / "a.json").write_text(content)
        return message(tmp_path, source="json", files="a.json", **data)

    assert "line 2: not JSON" in said('{"text": "a", "label": 1}\n{"text": }\n')
    assert "line 3: not JSON" in said('[{"text": "a",\n"label": 1},\n{"text": }]')
    assert "row 1: '[1, 2]' is no object" in said('[{"text": "a", "label": 1}, [1, 2]]')
    assert "column 'label' mixes types: int in row 0, str in row 1" in said(
        '{"text": "a", "label": 1}\n{"text": "a", "label": "1"}\n'
    )
    assert "column 'text' of " in (text := said('{"text": 5, "label": 1}\n'))
    assert "holds int64, no texts" in text
    assert "'label' holds inf; a label is a name or a number" in re.sub(
        r" of \S+", "", said('{"text": "a", "label": 1e999}\n')
    )
    assert "is empty in 1 row (counted from 0): 1" in said('{"text": "a", "label": 1}\n{"label": 2}\n')


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(GOOD)
    assert "not a parquet file" in message(tmp_path, source="parquet", files="a.parquet")


def test_files_of_one_split_that_disagree(tmp_path: Path) -> None:
    for name, label in {"a": "x", "b": 1}.items():
        pyarrow.parquet.write_table(pa.table({"text": ["t"], "label": [label]}), tmp_path / f"{name}.parquet")
    assert "differ in the type of a column" in message(tmp_path, source="parquet", files="*.parquet")


# --- labels -----------------------------------------------------------------------------------------------------------
def test_label_that_is_not_in_the_task(csv: Callable[..., str]) -> None:
    task = TextClassification(kind="text-classification", labels=["positive", "negative"])
    said = csv("text,label\nx,positive\ny,negative\nz,postive\n", task)
    assert "label 'postive' in split train, column 'label', is not among task.labels: 'positive', 'negative'" in said
    assert "did you mean 'positive'?" in said
    assert "found in 1 row (counted from 0): 2" in said


def test_label_that_is_named_twice(csv: Callable[..., str]) -> None:
    task = TextClassification(kind="text-classification", labels=["a", "b", "a"])
    assert "task.labels names 'a' twice" in csv(GOOD, task)


def test_label_that_only_the_validation_split_has(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(GOOD)
    (tmp_path / "validation.csv").write_bytes(GOOD + b"x,c\n")
    files = {"train": "train.csv", "validation": "validation.csv"}
    said = message(tmp_path, source="csv", files=files)
    assert "label 'c' in split validation, column 'label', is not among the training split's labels: 'a', 'b'" in said


def test_one_label_is_too_few(csv: Callable[..., str]) -> None:
    assert "has one label only, 'a'" in csv("text,label\nx,a\ny,a\n")


# --- splits -----------------------------------------------------------------------------------------------------------
def test_class_too_small_to_stratify(csv: Callable[..., str]) -> None:
    said = csv(GOOD + b"lonely,c\n", split={"stratify": "label"})
    assert "data.split.stratify: label 'c' has 1 row (row 10 of " in said
    assert "too few for two splits; add rows of it, or set data.split.stratify: null" in said
    assert "raise data.limit" in csv(GOOD, split={"stratify": "label"}, limit=2)


def test_split_that_leaves_nothing(csv: Callable[..., str], tmp_path: Path) -> None:
    assert "0.9 of 2 rows leaves none to train on" in csv("text,label\nx,a\ny,b\n", split={"validation": 0.9})
    (tmp_path / "same.csv").write_bytes(GOOD)
    files = {"train": "same.csv", "test": "same.csv"}
    said = message(tmp_path, source="csv", files=files, split={"dedupe": "text"})
    assert "split train has no rows left" in said


# --- images and the hub -----------------------------------------------------------------------------------------------
def test_folders_that_hold_no_images(tmp_path: Path) -> None:
    def said(files: Any) -> str:
        return message(tmp_path, IMAGES, source="imagefolder", files=files)

    (tmp_path / "empty").mkdir()
    assert "holds no images" in said("empty")
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "a.png").write_bytes(b"")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("")
    assert re.search(r"pets/cat/notes\.txt is no image; move it away", said("pets"))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(b"")
    assert "a file where folders of images are needed" in said("flat")
    assert "is a file; source imagefolder needs a folder" in said("flat/a.png")
    for split in ("train", "holdout"):
        (tmp_path / "splits" / split / "cat").mkdir(parents=True)
    assert "beside it holdout/, which is none" in (strange := said("splits"))
    assert f"train: {tmp_path}/splits/train" in strange


def test_columns_of_an_image_folder(tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "a.png").write_bytes(b"")
    said = message(tmp_path, TEXTS, source="imagefolder", files="pets")
    assert "no column 'text'" in said
    assert "it has: 'image', 'label'" in said


def test_hub_dataset_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert "hub dataset" in message(tmp_path, source="hub", dataset=str(tmp_path / "set"))
    (tmp_path / "set" / "train.csv").write_bytes(GOOD)
    where = str(tmp_path / "set")
    said = message(tmp_path, source="hub", dataset=where, splits={"train": "train", "validation": "dev"})
    assert "data.splits.validation: " in said
    assert "has no split 'dev'; it has: train" in said
    assert "data.config" in message(tmp_path, source="hub", dataset=where, config="nothing")


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    """The tests run without a network: this is the real error."""
    data = TypeAdapter(Data).validate_python({"source": "hub", "dataset": "nobody/nothing"})
    with pytest.raises(EnvironmentProblem, match="nobody/nothing: the hub cannot be reached"):
        load(data, CausalLM(kind="causal-lm"), tmp_path)
