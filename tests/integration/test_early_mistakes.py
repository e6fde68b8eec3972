"""What is wrong with the data is told by `run` and `plan` at its line, before torch is imported or a rank starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml
from running import ROOT

GOOD = "text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(20))
FILES = {
    "good.csv": GOOD,
    "empty_cell.csv": GOOD + ",a\n",
    "no_rows.csv": "text,label\n",
    "one_class.csv": GOOD.replace(",b\n", ",a\n"),
    "semicolon.csv": GOOD.replace(",", ";"),
    "quote.csv": GOOD + '"open,a\n',
    "numbers.jsonl": '{"text": 1, "label": "a"}\n{"text": 2, "label": "b"}\n',
    "bytes.csv": GOOD.encode() + b"caf\xe9,a\n",
    "images/a/notes.txt": "",
}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # mistake -> (keys of `data`, key of the message, a part of it)
    "missing file": ({"files": "god.csv"}, "data.files", "'god.csv' does not exist"),
    "missing column": ({"columns": {"label": "labl"}}, "data.columns.label", "no column 'labl' in"),
    "wrong type": ({"source": "json", "files": "numbers.jsonl"}, "data.columns.text", "holds int64, no texts"),
    "empty cell": ({"files": "empty_cell.csv"}, "data.columns.text", "is empty in 1 row (counted from 0): 20"),
    "no rows": ({"files": "no_rows.csv"}, "data", "split train has no rows"),
    "one class": ({"files": "one_class.csv"}, "data.columns.label", "has one label only, 'a'"),
    "bad split column": ({"split": {"stratify": "user"}}, "data.split.stratify", "no column 'user' in"),
    "bad dedupe column": ({"split": {"dedupe": "user"}}, "data.split.dedupe", "no column 'user' in"),
    "split of nothing": ({"limit": 1}, "data.split.validation", "leaves none to train on"),
    "delimiter": ({"files": "semicolon.csv"}, "data.columns.text", "set data.delimiter: ';'"),
    "quote": ({"files": "quote.csv"}, "data", "quote.csv, line 22: the quote that opens"),
    "encoding": ({"files": "bytes.csv"}, "data", "is not utf-8; data.encoding: latin-1"),
    "damaged": ({"source": "parquet", "files": "damaged.parquet"}, "data", "not a parquet file, or damaged"),
    "unknown label": ({}, "task.labels", "label 'b' in split train"),
}
COMMANDS = """
import contextlib, io, json, sys
from launcher import cli
from launcher import launch
launch.run_ranks = lambda *_: print("RANKS")
ended = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["thawline", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "datasets", "accelerate", "deepspeed") if name in sys.modules]
    ended.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(ended))
"""


def test_every_mistake_is_told_at_its_line_before_torch(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pyarrow.parquet.write_table(pa.table({"text": ["a"] * 9}), tmp_path / "whole.parquet")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    for case, (data, _, _) in CASES.items():
        plain = {
            "name": "early",
            "model": {"source": "./no-model"},
            "task": {"kind": "text-classification"} | ({"labels": ["a", "c"]} if case == "unknown label" else {}),
            "data": {"source": "csv", "files": "good.csv", **data},
            "stages": [{"name": "head", "train": ["head"], "epochs": 1}],
        }
        (tmp_path / f"{case}.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    commands = [[command, f"{case}.yaml"] for case in CASES for command in ("run", "plan")]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (command, file), (code, out, err, heavy) in zip(commands, json.loads(done.stdout), strict=True):
        _, key, part = CASES[file.removesuffix(".yaml")]
        assert (code, out, heavy) == (2, "", []), (command, file, err)
        [line] = err.splitlines()
        written = (tmp_path / file).read_text().splitlines()
        number = int(line.split(":")[2])
        assert line.startswith(f"thawline: {file}:{number}: {key}: "), line
        assert part in line, line
        assert written[number - 1].partition(":")[0].strip() in key.split("."), line
    assert not (tmp_path / "runs").exists()
