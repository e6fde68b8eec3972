"""Labels mean what their own file says, whatever stores them, and are what rows have."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from launcher.data import Splits, load
from launcher.errors import DataError
from launcher.recipe import TextClassification
from launcher.recipe.data import Data

TEXTS = TextClassification(kind="text-classification")
NEG_POS, POS_NEG = ["neg", "pos"], ["pos", "neg"]


def read(folder: Path, labels: list[str] | None = None, **data: Any) -> Splits:
    task = TextClassification(kind="text-classification", labels=labels)
    return load(TypeAdapter(Data).validate_python({"split": {"validation": 0}, **data}), task, folder)


def said(folder: Path, labels: list[str] | None = None, **data: Any) -> str:
    with pytest.raises(DataError) as refused:
        read(folder, labels, **data)
    return str(refused.value)


def pairs(splits: Splits) -> dict[str, list[tuple[str, str]]]:
    """Split -> (text, the name of its label)."""
    assert splits.labels is not None
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        split: [(row["text"], splits.labels[row["label"]]) for row in rows] for split, rows in parts.items() if rows
    }


# --- each file's own names --------------------------------------------------------------------------------------------
def class_ids(names: list[str] | None, ids: Sequence[int | None]) -> pa.Table:
    """As `datasets` writes it: each row's text is the name that its id stands for."""
    texts = [(names or NEG_POS)[number] if number is not None else "nothing" for number in ids]
    table = pa.table({"text": texts, "label": pa.array(ids, pa.int64())})
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    written = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": written}) if names else table


def write_arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, tuple[str, str, Callable[[pa.Table, Path], None]]] = {
    "parquet": ("parquet", ".parquet", pyarrow.parquet.write_table),
    "feather": ("arrow", ".feather", lambda table, path: pyarrow.feather.write_feather(table, str(path))),
    "arrow stream": ("arrow", ".arrow", write_arrow_stream),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("is_split", [False, True], ids=["files of a split", "files of splits"])
def test_each_file_names_its_own_class_ids(kind: str, is_split: bool, tmp_path: Path) -> None:
    source, suffix, write = WRITERS[kind]
    orders = {"train": NEG_POS, "validation": POS_NEG, "test": ["neutral", "pos", "neg"]}
    for split, names in orders.items():
        write(class_ids(names, [0, 1, 1, 0] if split != "test" else [1, 2]), tmp_path / f"{split}{suffix}")
    files = {split: f"{split}{suffix}" for split in orders}
    found = read(tmp_path, source=source, files=files if is_split else list(files.values()))
    assert found.labels == (NEG_POS if is_split else ["neg", "pos", "neutral"])
    assert sum(len(rows) for rows in pairs(found).values()) == 10
    for rows in pairs(found).values():
        assert all(text == label for text, label in rows), rows


def test_the_files_are_read_as_datasets_reads_each(tmp_path: Path) -> None:
    """`datasets` itself writes them, and reads them one by one."""
    import datasets

    datasets.disable_progress_bars()
    alone = []
    for number, names in enumerate([NEG_POS, POS_NEG]):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"text": [f"{number} {name}" for name in names], "label": [0, 1]}
        written = datasets.Dataset.from_dict(rows, features=features)
        written.to_parquet(str(tmp_path / f"{number}.parquet"))
        alone += [(row["text"], written.features["label"].int2str(row["label"])) for row in written]
    found = read(tmp_path, source="parquet", files="*.parquet")
    assert pairs(found)["train"] == alone == [("0 neg", "neg"), ("0 pos", "pos"), ("1 pos", "pos"), ("1 neg", "neg")]
    (tmp_path / "set").mkdir()
    for number, name in enumerate(["train-00000", "train-00001"]):
        (tmp_path / f"{number}.parquet").rename(tmp_path / "set" / f"{name}.parquet")
    message = said(tmp_path, source="hub", dataset=str(tmp_path / "set"))
    assert "train-00001.parquet numbers the classes of 'label' 0 = pos, 1 = neg, and the dataset 0 = neg" in message
    (tmp_path / "set" / "train-00001.parquet").rename(tmp_path / "set" / "test-00000.parquet")
    assert "test-00000.parquet numbers" in said(tmp_path, source="hub", dataset=str(tmp_path / "set"))
    (tmp_path / "set" / "test-00000.parquet").unlink()
    assert pairs(read(tmp_path, source="hub", dataset=str(tmp_path / "set")))["train"] == alone[:2]


def test_names_beside_texts_and_beside_nothing(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(class_ids(POS_NEG, [0, 1]), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,label\nneg,neg\npos,pos\n")
    found = read(tmp_path, source="package", files=["a.parquet", "b.csv"])
    assert (found.labels, pairs(found)["train"]) == (POS_NEG, [(name, name) for name in ("pos", "neg", "neg", "pos")])
    pyarrow.parquet.write_table(class_ids(None, [0, 1]), tmp_path / "c.parquet")
    message = said(tmp_path, source="parquet", files=["a.parquet", "c.parquet"])
    assert "c.parquet: column 'label' holds int64 without names, and in " in message
    message = said(tmp_path, source="parquet", files={"train": "a.parquet", "validation": "c.parquet"})
    assert "label '0' in split validation, column 'label', is not among the training split's labels: 'pos'" in message


@pytest.mark.parametrize("other", [NEG_POS, POS_NEG])
def test_ids_without_a_name_tell_their_row(other: list[str], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(class_ids(NEG_POS, [0, 1]), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(class_ids(other, [0, -1, 1]), tmp_path / "b.parquet")
    assert "the class id -1" in (message := said(tmp_path, source="parquet", files=["a.parquet", "b.parquet"]))
    assert "no name" in message
    pyarrow.parquet.write_table(class_ids(other, [0, None, 1]), tmp_path / "b.parquet")
    assert "is empty in 1 row (counted from 0): b.parquet:1" in said(tmp_path, source="parquet", files="*.parquet")


# --- what stores a label ----------------------------------------------------------------------------------------------
def categories(values: list[str], names: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([names.index(value) for value in values], pa.int8()), names)


VALUES = ["b", "a", "c", "a"]
STORED: dict[str, pa.Array] = {
    "string": pa.array(VALUES),
    "large string": pa.array(VALUES, pa.large_string()),
    "string view": pa.array(VALUES, pa.string_view()),
    "dictionary with unused values": categories(VALUES, ["z", "c", "b", "a", "y"]),
    "dictionary of large strings": categories(VALUES, ["c", "b", "a"]).cast(
        pa.dictionary(pa.int32(), pa.large_string())
    ),
    "dictionary of views": pa.DictionaryArray.from_arrays(
        pa.array([1, 0, 2, 0]), pa.array(["a", "b", "c", "d"], pa.string_view())
    ),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4], pa.int32()), pa.array(VALUES)),
    "binary": pa.array([value.encode() for value in VALUES], pa.binary()),
    "binary of one length": pa.array([value.encode() for value in VALUES], pa.binary(1)),
    "binary view": pa.array([value.encode() for value in VALUES], pa.binary_view()),
}


@pytest.mark.parametrize("kind", STORED)
def test_texts_and_labels_of_any_storage_read_like_strings(kind: str, tmp_path: Path) -> None:
    column = STORED[kind]
    table = pa.table({"text": column, "label": column})
    write_arrow_stream(table, tmp_path / "a.arrow")
    found = read(tmp_path, source="arrow", files="a.arrow")
    assert (found.labels, pairs(found)["train"]) == (["a", "b", "c"], [(value, value) for value in VALUES])
    assert all(isinstance(row["text"], str) for row in found.train)
    split = {"validation": 0.5, "stratify": "label", "dedupe": "text"}
    with pytest.raises(DataError, match=r"stratify: label '.' has 1 row"):
        read(tmp_path, source="arrow", files="a.arrow", split=split)
    assert len(read(tmp_path, source="arrow", files=["a.arrow"], split={"validation": 0, "dedupe": "text"}).train) == 3
    assert found.facts() == read(tmp_path, source="arrow", files="a.arrow").facts()


def test_categories_of_a_frame_that_no_row_uses_are_no_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": list("abcd"), "label": list("xyxy")})
    frame = frame.astype({"label": pd.CategoricalDtype(["never", "y", "x"]), "text": "category"})
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=2)
    frame.to_feather(tmp_path / "a.feather")
    for source, name in (("parquet", "a.parquet"), ("arrow", "a.feather")):
        found = read(tmp_path, source=source, files=name)
        assert found.labels == sorted(frame["label"].unique())
        assert pairs(found)["train"] == list(zip(frame["text"], frame["label"], strict=True))
    two = pd.DataFrame({"text": ["e"], "label": pd.Categorical(["y"], ["y", "other"])})
    two.to_parquet(tmp_path / "b.parquet")
    assert read(tmp_path, source="parquet", files="*.parquet").labels == ["x", "y"]
    two.to_parquet(tmp_path / "a.parquet")
    assert "has one label only, 'y'" in said(tmp_path, source="parquet", files="a.parquet")


NUMBERS: dict[str, tuple[pa.Array, list[str], list[str]]] = {
    # kind -> (column, its labels in the order of their ids, what each row has)
    "decimals": (pa.array([10.0, 2.5, 1.0, 2.5]), ["1", "2.5", "10"], ["10", "2.5", "1", "2.5"]),
    "short decimals": (pa.array([0.1, 2.5, 0.1], pa.float32()), ["0.1", "2.5"], ["0.1", "2.5", "0.1"]),
    "half decimals": (pa.array(np.array([0.5, -2], np.float16)), ["-2", "0.5"], ["0.5", "-2"]),
    "exact decimals": (
        pa.array([Decimal("1.50"), Decimal("10.00"), Decimal("9.00")]), ["1.5", "9", "10"], ["1.5", "10", "9"],
    ),
    "zeros": (pa.array([0.0, -0.0, 1.0]), ["0", "1"], ["0", "0", "1"]),
    "truths": (pa.array([True, False, True]), ["False", "True"], ["True", "False", "True"]),
    "whole numbers": (pa.array([10, 9, -1], pa.int8()), ["-1", "9", "10"], ["10", "9", "-1"]),
    "large whole numbers": (pa.array([2**63 + 1, 5], pa.uint64()), ["5", str(2**63 + 1)], [str(2**63 + 1), "5"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_are_labels_in_the_order_of_their_values(kind: str, tmp_path: Path) -> None:
    column, labels, expected = NUMBERS[kind]
    pyarrow.parquet.write_table(pa.table({"text": ["t"] * len(column), "label": column}), tmp_path / "a.parquet")
    found = read(tmp_path, source="parquet", files="a.parquet")
    assert (found.labels, [label for _, label in pairs(found)["train"]]) == (labels, expected)


def test_decimals_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,10.5\nb,9.5\nc,1\n")
    assert read(tmp_path, source="csv", files="a.csv").labels == ["1", "9.5", "10.5"]
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 10.5}\n{"text": "b", "label": 1}\n')
    assert read(tmp_path, source="json", files="a.jsonl").labels == ["1", "10.5"]
    (tmp_path / "a.csv").write_text("text,label\na,1.0\nb,1\nc,2\n")
    assert "has both '1' and '1.0'; write them alike" in said(tmp_path, source="csv", files="a.csv")
    assert read(tmp_path, ["1", "1.0", "2"], source="csv", files="a.csv").labels == ["1", "1.0", "2"]
    (tmp_path / "a.csv").write_text("text,label\na,007\nb,7\n")
    assert read(tmp_path, source="csv", files="a.csv").labels == ["007", "7"]


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_label_that_is_no_number_tells_its_row(kind: str, tmp_path: Path) -> None:
    def write(*labels: float) -> None:
        if kind == "parquet":
            pyarrow.parquet.write_table(pa.table({"text": ["t"] * len(labels), "label": labels}), tmp_path / "a")
        else:
            (tmp_path / "a").write_text("".join(json.dumps({"text": "t", "label": one}) + "\n" for one in labels))

    write(1.0, float("nan"), 2.0, float("nan"))
    assert "column 'label' of " in (message := said(tmp_path, source=kind, files="a"))
    assert "is empty or NaN in 2 rows (counted from 0): 1, 3" in message
    write(1.0, float("inf"))
    assert "holds inf; a label is a name or a number" in said(tmp_path, source=kind, files="a")


def test_what_is_no_label_is_refused(tmp_path: Path) -> None:
    def message(column: pa.Array) -> str:
        pyarrow.parquet.write_table(pa.table({"text": ["a", "b"], "label": column}), tmp_path / "a.parquet")
        return said(tmp_path, source="parquet", files="a.parquet")

    assert "a label is a name or a number" in message(pa.array([1, 2], pa.timestamp("s")))
    assert "a label is a name or a number" in message(pa.array([1, 2], pa.date32()))
    assert "a label is one name or one number" in message(pa.array([["a"], ["b"]]))
    assert "holds bytes that are not UTF-8 in 1 row (counted from 0): 1" in message(pa.array([b"a", b"\xff"]))
    assert "is empty in 2 rows" in message(pa.array([None, None]))


def test_a_label_without_rows_is_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, ["x", "never", "y"], source="csv", files="a.csv")
        assert "task.labels: no training row has 'never', so the model cannot learn it" in caplog.text
        assert (found.labels, [row["label"] for row in found.train]) == (["x", "never", "y"], [0, 2])
        caplog.clear()
        pyarrow.parquet.write_table(class_ids(["neg", "neutral", "pos"], [0, 2]), tmp_path / "a.parquet")
        assert read(tmp_path, source="parquet", files="a.parquet").labels == ["neg", "neutral", "pos"]
        assert "no training row has 'neutral'" in caplog.text
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,x\n")
    assert "has one label only, 'x'" in said(tmp_path, ["x", "never"], source="csv", files="a.csv")


# --- json -------------------------------------------------------------------------------------------------------------
JSON: dict[str, tuple[str, str | None]] = {
    # case -> (file, a part of the message; None: it is read)
    "printed array": ('[\n {"text": "a",\n  "label": "x"},\n\n {"text": "b", "label": "y"}\n]\n', None),
    "array in one line": ('[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]', None),
    "blank lines": ('\n{"text": "a", "label": "x"}\n\n \n{"text": "b", "label": "y"}\n\n', None),
    "CR": ('{"text": "a", "label": "x"}\r{"text": "b", "label": "y"}\r', None),
    "CRLF": ('{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n', None),
    "mark": ('\ufeff{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}', None),
    "other keys": ('{"text": "a", "label": "x", "n": {"m": [1]}}\n{"m": 1, "text": "b", "label": "y"}', None),
    "around the rows": (
        '{"data": [{"text": "a", "label": "x"}]}',
        "rows are inside 'data': write that array alone",
    ),
    "printed objects": ('{\n "text": "a", "label": "x"\n}\n{"text": "b", "label": "y"}', "line 1: not JSON"),
    "trailing comma": ('[{"text": "a", "label": "x"},\n {"text": "b", "label": "y"},\n]', "line 3: not JSON"),
    "one key twice": (
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "y", "label": "x"}',
        "line 2: the object n",
    ),
    "one key twice in an array": ('[{"text": "a", "label": "x", "text": "b"}]', "an object names 'text' twice"),
    "no rows": ("[]", "has no rows"),
    "nothing": ("\n", "has no rows"),
    "mixed labels": ('{"text": "a", "label": "1"}\n{"text": "b", "label": 1}', "str in row 0, int in row 1"),
    "truth and number": ('{"text": "a", "label": true}\n{"text": "b", "label": 1}', "bool in row 0, int in row 1"),
    "a list": ('{"text": ["a"], "label": "x"}\n{"text": ["b"], "label": "y"}', "no texts"),
    "a missing key": ('{"text": "a", "label": "x"}\n{"text": "b"}', "is empty in 1 row (counted from 0): 1"),
    "two on a line": ('{"text": "a", "label": "x"} {"text": "b", "label": "y"}', "line 1: not JSON"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_is_read_whole_or_refused(case: str, tmp_path: Path) -> None:
    content, expected = JSON[case]
    (tmp_path / "a.json").write_bytes(content.encode())
    if expected is None:
        assert pairs(read(tmp_path, source="json", files="a.json"))["train"] == [("a", "x"), ("b", "y")]
    else:
        assert expected in said(tmp_path, source="json", files="a.json")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(class_ids(NEG_POS, [0, 1]), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-40], whole[:20], b"", b"PAR1"):
        (tmp_path / "a.parquet").write_bytes(content)
        assert "not a parquet file, or damaged" in said(tmp_path, source="parquet", files="a.parquet")
        (tmp_path / "a.arrow").write_bytes(content)
        assert "not an arrow or feather file, or damaged" in said(tmp_path, source="arrow", files="a.arrow")
    pyarrow.parquet.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["text", "label", "text"]),
        tmp_path / "a.parquet",
    )
    assert "names 'text' twice" in said(tmp_path, source="parquet", files="a.parquet")


def test_a_hub_dataset_whose_quotes_swallow_rows_is_refused(tmp_path: Path) -> None:
    """`datasets` reads a .tsv with quoting, as pandas does."""
    (tmp_path / "train.tsv").write_text('text\tlabel\n"a film\tpos\nb\tneg\nc" d" \tpos\ne\tneg\n')
    message = said(tmp_path, source="hub", dataset=str(tmp_path))
    assert "train.tsv, line 2: the quote that opens '\"a film" in message
    assert message.endswith("set data.quoting: none, with the files downloaded and data.source: csv")
    (tmp_path / "train.tsv").write_text('text\tlabel\na "film"\tpos\nb\tneg\n')
    (tmp_path / "test.tsv").write_text('text\tlabel\n"a ""fine"" film"\tpos\n')
    assert pairs(read(tmp_path, source="hub", dataset=str(tmp_path)))["train"] == [('a "film"', "pos"), ("b", "neg")]


# --- what is no label, or may not be meant ----------------------------------------------------------------------------
def test_rows_that_datasets_marks_as_unlabelled_are_left_out_or_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(class_ids(NEG_POS, [0, 1]), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(class_ids(POS_NEG, [0, -1, 1]), tmp_path / "b.parquet")
    pyarrow.parquet.write_table(class_ids(NEG_POS, [-1, -1]), tmp_path / "test.parquet")
    for files in (["a.parquet", "b.parquet"], {"train": "a.parquet", "validation": "b.parquet"}):
        found = pairs(read(tmp_path, source="parquet", files=files, on_bad_row="skip", max_bad_rows=1))
        every = [pair for rows in found.values() for pair in rows]
        assert every == [("neg", "neg"), ("pos", "pos"), ("pos", "pos"), ("neg", "neg")]
    files = {"train": "a.parquet", "test": "test.parquet"}
    assert "leave them out of data.files" in said(tmp_path, source="parquet", files=files)
    assert "data.splits" not in said(tmp_path, source="parquet", files=files)


@pytest.mark.parametrize(
    ("one", "other"), [("pos", '"pos"'), ("pos", " 'pos'"), ("caf\u00e9", "cafe\u0301"), ("1", "1.0")]
)
def test_a_label_that_is_written_in_two_ways_is_refused(one: str, other: str, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate([one, other, "neg"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = said(tmp_path, source="json", files="a.jsonl")
    assert "write them alike" in message
    assert ascii(one)[1:-1] in message
    assert read(tmp_path, labels=[one, other, "neg"], source="json", files="a.jsonl").labels == [one, other, "neg"]


@pytest.mark.parametrize("mark", ["NA", "nan", "NULL", "\\N", "<NA>", "#N/A"])
def test_labels_that_may_not_be_meant_are_told(mark: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["pos", mark, "Pos", "a", "A"]  # letters are labels of their own
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text,{label}\n" for label in labels))
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, source="csv", files="a.csv").labels == sorted(labels)
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert len(told) == 2, told
    assert "'Pos' and 'pos' are two labels" in "\n".join(told)
    assert f"{mark!r} is a label like the others" in "\n".join(told)


def test_a_utf8_file_that_is_read_as_latin_1_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\ncaf\u00e9,pos\nth\u00e9,neg\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,label\ncaf\u00e9,pos\nth\u00e9,neg\n", encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        read(tmp_path, source="csv", files="b.csv", encoding="latin-1")
        assert not caplog.records
        read(tmp_path, source="csv", files="a.csv", encoding="latin-1")
    assert "looks like UTF-8 and is read as latin-1" in caplog.text


def test_what_a_split_cannot_learn_or_has_learned_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"text {number},{'pos' if number % 2 else 'neg'}" for number in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows, "one,rare"]))
    (tmp_path / "b.csv").write_text("\n".join(["text,label", *(f"text,row {number}" for number in range(60))]))
    with caplog.at_level(logging.WARNING):
        read(tmp_path, source="csv", files="a.csv")
        assert not caplog.records
        read(tmp_path, source="csv", files="a.csv", limit=4)
        read(tmp_path, source="csv", files={"train": "a.csv", "validation": "a.csv"})
        read(tmp_path, source="csv", files="b.csv")
    lost, learned, rowwise = (record.getMessage() for record in caplog.records)
    assert "of 'rare' no training row is left" in lost
    assert "a.csv is in train too" in learned
    assert "60 labels in 60 rows" in rowwise
