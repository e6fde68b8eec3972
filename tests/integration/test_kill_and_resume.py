"""Killed at any step and resumed, a run ends with the bits of one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import THAWLINE, kill, metrics, recipe, start, thawline, tiny_bert, walks, weights

STEPS = 8
"""Of each stage."""
STRATEGIES = ("ddp", "zero1", "zero3", "zero2")
"""One stage each; a kill at a step of each. After ZeRO-3, since what it changes in a process must not outlive it."""


def write(folder: Path) -> Path:
    """A recipe whose stages take all shardings, each with the optimizer's state of the one before."""
    stages: list[dict[str, Any]] = [
        {"name": strategy, "train": ["all"], "steps": STEPS, "sharding": {"strategy": strategy}}
        | ({"optimizer_state": "carry", "schedule": {"kind": "cosine", "warmup": 0.25}} if index else {})
        for index, strategy in enumerate(STRATEGIES)
    ]
    stages[0]["train"] = ["head", "layers[-1]", "lora"]
    stages[3]["train"] = ["head", "lora"]
    # The next one takes over moments from bf16, and the full values of weights whose module was in bf16.
    stages[0] |= {"precision": "bf16", "optimizer": {"master": "split16", "state_dtype": "bf16"}}
    model = {  # with the dropout of its configuration
        "source": str(tiny_bert(folder / "bert")), "weights": "random", "lora": {"rank": 2, "dropout": 0.1},
    }  # fmt: skip
    return recipe(
        folder, stages, model=model, checkpoint={"every": "2st", "keep": 2},
        evaluate={"every": "3st", "best": "accuracy"},
    )  # fmt: skip


def train_steps(run: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in metrics(run) if line["split"] == "train"]


def wait_for_step(run: Path, process: Any, count: int, timeout_s: float = 300) -> None:
    """Until ``count`` training steps stand in the metrics, or the run has ended."""
    deadline = time.monotonic() + timeout_s
    while len(train_steps(run)) < count and process.poll() is None:
        assert time.monotonic() < deadline, f"no step {count} in {timeout_s} s; {run}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    walks((write(folder), [], folder / "run"))
    return folder / "run"


def different(run: Path, expected: Path) -> list[str]:
    """Names of the exported tensors whose bits are not the same."""
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    return [name for name, value in wanted.items() if not torch.equal(value, found[name])]


def test_killed_in_every_stage_and_resumed_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    file = write(tmp_path)
    run = tmp_path / "killed"
    chosen = [index * STEPS + random.randrange(1, STEPS) for index in range(len(STRATEGIES))]
    print(f"killed at {chosen}")  # pytest shows it if anything fails
    for number, step in enumerate(chosen):
        command = ["run", str(file), "--ranks", "2", "--run-dir", str(run)] if number == 0 else ["resume", str(run)]
        process = start([*THAWLINE, *command])
        wait_for_step(run, process, step)
        kill(process)
        assert len(train_steps(run)) <= (number + 1) * STEPS, "it was to be killed in this stage"
    thawline("resume", run)
    assert not different(run, whole), f"killed at {chosen}"
    timeless = [
        [{k: v for k, v in line.items() if not k.endswith(("_second", "_bytes", "time"))} for line in metrics(path)]
        for path in (whole, run)
    ]
    assert timeless[0] == timeless[1]


def test_stop_signal_saves_and_exits_75_and_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path) -> None:
    file = write(tmp_path)
    run = tmp_path / "stopped"
    process = start([*THAWLINE, "run", str(file), "--ranks", "2", "--run-dir", str(run)])
    wait_for_step(run, process, STRATEGIES.index("zero2") * STEPS + 3)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "thawline resume" in output
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    newest = run / "checkpoints" / (run / "LATEST").read_text().strip()
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    resumed = thawline("resume", run)
    logs = "".join(path.read_text() for path in (run / "logs").glob("rank-0.log*"))
    assert f"{newest.name} is damaged" in logs + resumed.stdout + resumed.stderr
    assert not different(run, whole)


def test_a_run_directory_of_another_recipe_is_refused_with_the_difference(whole: Path) -> None:
    again = thawline(
        "run", whole.parent / "recipe.yaml", "--run-dir", whole, "--set", "stages.zero1.steps=2", check=False
    )
    assert again.returncode == 2
    assert "stages.zero1.steps: 8 in the run, 2 in the recipe" in again.stderr
    assert "Traceback" not in again.stderr
