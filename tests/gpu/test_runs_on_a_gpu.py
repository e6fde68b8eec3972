"""The real command on one real GPU: every sharding and precision in one run, a kill and a resume, the CPU's losses."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, THAWLINE, kill, metrics, proof, recipe, start, thawline, weights

pytestmark = pytest.mark.gpu
TASK = {"kind": "image-classification", "image_size": 32}
MODEL = {"source": "torchvision:resnet18", "weights": "random"}
ONE_GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,797 handwritten digits as a folder of images."""
    spec = importlib.util.spec_from_file_location("write_digits", ROOT / "tests" / "write_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder: Path = tmp_path_factory.mktemp("digits")
    module.write_digits(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_GPU.items():
        monkeypatch.setenv(name, value)


def written(folder: Path, digits: Path, stages: list[dict[str, Any]], **changes: Any) -> Path:
    data = {"source": "imagefolder", "files": str(digits), "split": {"validation": 0.2, "stratify": "label"}}
    optimizer = {"kind": "adamw", "learning_rate": 1.0e-3, "weight_decay": 0.01}
    everything = {"task": TASK, "model": MODEL, "data": data, "optimizer": optimizer, "batch": {"global_size": 64}}
    return recipe(folder, stages, **(everything | changes))


def test_every_sharding_and_precision_trains(tmp_path: Path, digits: Path) -> None:
    kinds = [
        ("ddp", "none", "bf16"), ("ddp", "none", "fp16"), ("zero1", "none", "fp32"), ("zero3", "none", "fp32"),
        ("zero2", "cpu", "fp32"), ("zero3", "cpu", "fp32"),
    ]  # fmt: skip
    stages = []
    for index, (strategy, offload, precision) in enumerate(kinds):
        stage = {"name": f"{strategy}-{offload}-{precision}", "steps": 24, "precision": precision}
        stage |= {"train": ["all"] if index % 2 == 0 else ["head", "layers[-1:]"]}
        stage |= {"sharding": {"strategy": strategy, "offload": offload}, "optimizer": {"implementation": "fused"}}
        stages.append(stage | {"evaluate": {"every": "end", "best": "accuracy"}})
    run = tmp_path / "run"
    thawline("run", written(tmp_path, digits, stages), "--run-dir", run)
    for index, ((strategy, offload, _), stage) in enumerate(zip(kinds, stages, strict=True)):
        found = proof(run, f"{index:02d}-{stage['name']}")
        assert found["holds"], stage["name"]
        engine, zero_stage = found["engine"], 0 if strategy == "ddp" else int(strategy[-1])
        assert (engine["engine"] == "DeepSpeedEngine") == (zero_stage > 0), engine
        assert (engine["zero_stage"], engine["offload"]) == (zero_stage, offload)
    measured = [line["accuracy"] for line in metrics(run) if "accuracy" in line]
    assert measured[-1] > 0.9, measured


def test_killed_and_resumed(tmp_path: Path, digits: Path) -> None:
    stage = {"name": "full", "train": ["all"], "steps": 60, "checkpoint": {"every": "5st"}, "precision": "bf16"}
    run = tmp_path / "run"
    process = start([*THAWLINE, "run", written(tmp_path, digits, [stage]), "--run-dir", run])
    while process.poll() is None and not any(line.get("step", 0) >= 12 for line in metrics(run)):
        time.sleep(0.05)
    kill(process)
    done = thawline("resume", run)
    assert "resumed after step" in done.stdout
    steps = [line["step"] for line in metrics(run) if "learning_rate" in line]
    assert steps == list(range(1, 61))
    assert weights(run)["fc.weight"].isfinite().all()


def test_losses_are_the_cpus(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"name": "full", "train": ["all"], "steps": 4, "precision": "fp32", "evaluate": {"every": "never"}}
    losses = {}
    for where, visible in (("gpu", ONE_GPU["CUDA_VISIBLE_DEVICES"]), ("cpu", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        folder = tmp_path / where
        folder.mkdir()
        thawline("run", written(folder, digits, [stage]), "--run-dir", folder / "run")
        losses[where] = [line["loss"] for line in metrics(folder / "run") if "learning_rate" in line]
    # torch's convolutions in fp32 are TF32 on a GPU, and AdamW's first steps turn on the sign of small gradients.
    assert losses["gpu"][0] == pytest.approx(losses["cpu"][0], rel=1e-3)
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=0.05)
