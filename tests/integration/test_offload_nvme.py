"""Optimizer state in files of the node's own disk: the bits of ``offload: cpu``, also when killed and resumed, and as
many bytes as the plan says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import THAWLINE, kill, metrics, proof, recipe, start, thawline, tiny_bert, walks, weights

from launcher import nvme
from launcher.memory_record import read_all
from launcher.run_dir import RunDir

STEPS = 5
STAGES: list[dict[str, Any]] = [
    {"name": "top", "train": ["head", "layers[-1]"], "steps": 2, "sharding": {"strategy": "ddp"}},
    {
        "name": "swapped", "train": ["all"], "steps": STEPS,
        "sharding": {"strategy": "zero3", "offload": "nvme"},
    },
    {
        "name": "cast", "train": ["all"], "steps": STEPS, "optimizer_state": "carry", "precision": "bf16",
        "sharding": {"strategy": "zero3", "offload": "nvme"},
    },
    {"name": "head", "train": ["head"], "steps": 1, "sharding": {"strategy": "ddp"}},
]  # fmt: skip
"""The word embeddings are swapped; what does not decay is too small for it, and stays in memory."""

pytestmark = [
    pytest.mark.skipif(nvme.missing_library() is not None, reason=str(nvme.missing_library())),
    pytest.mark.timeout(2400),
]


def write(folder: Path, disk: Path) -> Path:
    model = {"source": str(tiny_bert(folder / "bert")), "weights": "random"}
    stages = [
        stage | ({"sharding": stage["sharding"] | {"nvme_path": str(disk)}} if "offload" in stage["sharding"] else {})
        for stage in STAGES
    ]
    return recipe(folder, stages, model=model, checkpoint={"every": "2st", "keep": 1}, evaluate={"every": "never"})


def left_on(disk: Path) -> list[str]:
    return [str(file.relative_to(disk)) for file in disk.rglob("*")]


@pytest.fixture(scope="module")
def operator() -> None:
    """DeepSpeed's async_io, compiled once for each cache: minutes, which no run's own time should be taken from."""
    if (Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "async_io" / "async_io.so").exists():
        return
    if "THAWLINE_COMPILE_ASYNC_IO" not in os.environ:
        pytest.skip("DeepSpeed's async_io is not compiled here; `make test-nvme` does it, which can take ten minutes")
    build = "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()"
    subprocess.run([sys.executable, "-c", build], check=True, timeout=1800, capture_output=True)


@pytest.fixture(scope="module")
def runs(operator: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs under ``offload: nvme`` and ``offload: cpu`` by ranks that are started once; and the disk."""
    folder = tmp_path_factory.mktemp("nvme")
    (folder / "disk").mkdir()
    file = write(folder, folder / "disk")
    host = ("offload=cpu", "nvme_path=null")
    on_cpu = [f"stages.{stage['name']}.sharding.{change}" for stage in STAGES[1:3] for change in host]
    walks((file, [], folder / "nvme"), (file, on_cpu, folder / "cpu"))
    return {"nvme": folder / "nvme", "cpu": folder / "cpu", "disk": folder / "disk", "recipe": file}


def different(run: Path, expected: Path) -> list[str]:
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    return [name for name, value in wanted.items() if not torch.equal(value, found[name])]


def test_the_numbers_of_offload_to_the_host(runs: dict[str, Path]) -> None:
    """Losses and gradient norms to the bit; weights but for attention's queries and keys, whose gradients are zero but
    for rounding here, and whose last bits depend on what the process has computed before."""
    found, expected = weights(runs["nvme"]), weights(runs["cpu"])
    for name, value in expected.items():
        is_noise = ".attention.self.query." in name or ".attention.self.key." in name
        assert torch.allclose(found[name], value, rtol=0, atol=1e-8 if is_noise else 0), name
    losses = [[(line["loss"], line["grad_norm"]) for line in metrics(runs[name])] for name in ("nvme", "cpu")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2 + 2 * STEPS + 1


def test_nothing_is_left_on_the_disk(runs: dict[str, Path]) -> None:
    assert left_on(runs["disk"]) == []


def test_as_many_bytes_as_the_plan_says(runs: dict[str, Path]) -> None:
    """Files of a rank when the stage ends, gradients among them; in memory its shards, what is too small to be swapped
    (the gradient of it is as large as its master), and the buffers."""
    measured = {record.stage: record.measured for record in read_all(RunDir(runs["nvme"]))}
    plan = json.loads((runs["nvme"] / "plan.json").read_text())
    for stage in plan["stages"][1:3]:
        engine = proof(runs["nvme"], f"{stage['index']:02d}-{stage['name']}")["engine"]
        assert engine["offload"] == "nvme"
        assert engine["nvme_bytes"] == stage["memory"]["nvme_bytes"] > 2**20
        held = measured[stage["name"]]
        small = 2 * held.masters + held.optimizer
        assert small > 0
        assert stage["memory"]["host_bytes"] == held.parameters + held.gradients + small + engine["buffer_bytes"]


def test_killed_and_resumed_it_ends_with_the_same_bits(runs: dict[str, Path], tmp_path: Path) -> None:
    """Killed in a stage, it leaves its files, which the next start of the same run takes away."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run = tmp_path / "killed"
    process = start([*THAWLINE, "run", str(write(tmp_path, disk)), "--ranks", "2", "--run-dir", str(run)])
    deadline = time.monotonic() + 300
    while len(metrics(run)) < 2 + 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill(process)
    assert len(metrics(run)) < 2 + STEPS, "it was to be killed in the second stage"
    assert any("exp_avg_sq-" in name for name in left_on(disk))
    thawline("resume", run)
    assert not different(run, runs["nvme"])
    assert left_on(disk) == []
