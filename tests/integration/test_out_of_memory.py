"""A rank whose memory runs out for real: the kernel refuses it more (RLIMIT_DATA)."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, THAWLINE, metrics, recipe, thawline, tiny_bert

GIB = 2**30
LIMIT = int(3.5 * GIB)
"""A rank takes 2 to 3 GiB of address space before its model; 13 texts add 2.8 GiB to that and one adds 0.3."""
ROWS = 26
"""Twice a prime: 13 samples for each of two ranks, so the sizes are 13 and 1."""


def limited(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, with less memory for each of its processes than 13 long texts take."""
    return subprocess.run(
        [*THAWLINE, *map(str, arguments)], capture_output=True, text=True, timeout=480, check=False, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose attention saves about 0.2 GiB a text, since dropout needs its scores."""
    folder = tmp_path_factory.mktemp("memory")
    model = tiny_bert(folder / "bert")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_size": 96, "num_attention_heads": 48}
    (model / "config.json").write_text(json.dumps(config))
    text = "what a long day " * 150
    rows = [f"{text} {number},{'good' if number % 2 else 'bad'}" for number in range(ROWS)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return recipe(
        folder,
        [{"name": "full", "train": ["all"], "steps": 1}],
        model={"source": str(model), "weights": "random"},
        data={"source": "csv", "files": "rows.csv", "max_length": 512, "split": {"validation": 0}},
        batch={"global_size": ROWS},
        evaluate={"every": "never"},
    )


def test_under_auto_all_ranks_go_on_in_smaller_micro_batches(written: Path, tmp_path: Path) -> None:
    done = limited("run", written, "--ranks", "2", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "ran out of memory at micro size 13; it goes on with 1" in done.stdout
    [event] = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["stage"], event["micro_size"], event["next_micro_size"]) == (
        "out_of_memory", "full", 13, 1,
    )  # fmt: skip
    assert "stage full ran out of memory at micro size 13 of a global batch of 26: " in event["message"]
    assert "DefaultCPUAllocator" in event["message"]
    assert "The plan expects" in event["message"], "a recipe with a number ends with this"
    plan: dict[str, Any] = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["stages"][0]["batch"] == {"global_size": ROWS, "micro_size": 1, "accumulation": 13, "ranks": 2}
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]
    assert "micro size 13 became 1" in thawline("status", tmp_path / "run").stdout
