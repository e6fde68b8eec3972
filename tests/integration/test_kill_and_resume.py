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
KILLS = 2
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def stages(strategy: str) -> list[dict[str, Any]]:
    sharding = {"strategy": strategy}
    return [
        {"name": "top", "train": ["head", "layers[-1]"], "steps": STEPS, "sharding": sharding},
        {
            "name": "full", "train": ["all"], "steps": STEPS, "sharding": sharding, "optimizer_state": "carry",
            "schedule": {"kind": "cosine", "warmup": 0.25},
        },
    ]  # fmt: skip


def write(folder: Path, strategy: str) -> Path:
    folder.mkdir(exist_ok=True)
    model = {"source": str(tiny_bert(folder / "bert")), "weights": "random"}  # with the dropout of its configuration
    return recipe(
        folder, stages(strategy), model=model, checkpoint={"every": "2st", "keep": 2},
        evaluate={"every": "3st", "best": "accuracy"},
    )  # fmt: skip


def train_steps(run: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in metrics(run) if line["split"] == "train"]


def wait_for_step(run: Path, process: Any, count: int, timeout_s: float = 120) -> None:
    """Until ``count`` training steps stand in the metrics, or the run has ended."""
    deadline = time.monotonic() + timeout_s
    while len(train_steps(run)) < count and process.poll() is None:
        assert time.monotonic() < deadline, f"no step {count} in {timeout_s} s; {run}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Strategy -> a run that nothing interrupted."""
    folders = {strategy: tmp_path_factory.mktemp(strategy) for strategy in STRATEGIES}
    walks(*((write(folder, strategy), [], folder / "whole") for strategy, folder in folders.items()))
    return {strategy: folder / "whole" for strategy, folder in folders.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_and_resumed_run_ends_with_the_same_bits(whole: dict[str, Path], tmp_path: Path, strategy: str) -> None:
    file = write(tmp_path, strategy)
    run = tmp_path / "killed"
    chosen = sorted(random.Random(strategy).sample(range(1, 2 * STEPS), KILLS))
    for number, step in enumerate(chosen):
        command = ["run", str(file), "--ranks", "2", "--run-dir", str(run)] if number == 0 else ["resume", str(run)]
        process = start([*THAWLINE, *command])
        wait_for_step(run, process, step)
        kill(process)
    thawline("resume", run)
    expected, found = weights(whole[strategy]), weights(run)
    assert expected.keys() == found.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not different, f"killed at {chosen}"
    timeless = [
        [{k: v for k, v in line.items() if not k.endswith(("_second", "_bytes", "time"))} for line in metrics(path)]
        for path in (whole[strategy], run)
    ]
    assert timeless[0] == timeless[1]


def test_stop_signal_saves_and_exits_75_and_a_damaged_checkpoint_is_passed_over(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    file = write(tmp_path, "zero2")
    run = tmp_path / "stopped"
    process = start([*THAWLINE, "run", str(file), "--ranks", "2", "--run-dir", str(run)])
    wait_for_step(run, process, 3)
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
    expected = weights(whole["zero2"])
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


def test_a_run_directory_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    file = write(tmp_path, "ddp")
    run = tmp_path / "run"
    thawline("run", file, "--run-dir", run, "--set", "stages.top.steps=1", "--set", "stages.full.steps=1")
    again = thawline("run", file, "--run-dir", run, "--set", "stages.top.steps=2", "--set", "stages.full.steps=1",
                     check=False)  # fmt: skip
    assert again.returncode == 2
    assert "stages.top.steps" in again.stderr
    assert "Traceback" not in again.stderr
