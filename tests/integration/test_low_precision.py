"""bf16 through the real command: frozen weights keep every bit of their fp32 values, whatever the engine rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from running import metrics, proof, recipe, thawline, tiny_bert, weights

from launcher.models.weights import read_weights

STAGES: list[dict[str, Any]] = [
    {"name": "head", "train": ["head"], "steps": 2, "sharding": {"strategy": "zero2"}},
    {"name": "top", "train": ["layers[-1]"], "steps": 2, "sharding": {"strategy": "zero3"}},
    {"name": "last", "train": ["head"], "steps": 2, "sharding": {"strategy": "ddp"}},
    {
        "name": "split",
        "train": ["head"],
        "steps": 2,
        "sharding": {"strategy": "ddp"},
        "optimizer_state": "carry",
        "optimizer": {"master": "split16"},
    },
]


def test_frozen_weights_keep_their_fp32_bits_through_bf16_stages(tmp_path: Path) -> None:
    model = {"source": str(tiny_bert(tmp_path / "bert")), "weights": "random", "dropout": 0.0}
    file = recipe(tmp_path, STAGES, model=model, precision="bf16", checkpoint={"keep": 9}, evaluate={"every": "never"})
    run = tmp_path / "run"
    thawline("run", file, "--ranks", "2", "--run-dir", run)
    assert all(proof(run, f"{index:02d}-{stage['name']}")["holds"] for index, stage in enumerate(STAGES))
    assert all(line["loss"] > 0 for line in metrics(run))
    start, end = read_weights(run / "checkpoints" / "00-head-step-00000000" / "model"), weights(run)
    trained = ("classifier.", "bert.encoder.layer.1.")
    for name, value in start.items():
        assert torch.equal(value, end[name]) != name.startswith(trained), name
    rounded = end["classifier.weight"].bfloat16().float()
    assert not torch.equal(rounded, end["classifier.weight"]), "the masters are exported, not their rounding"
