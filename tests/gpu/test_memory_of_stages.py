"""A stage gives the GPU back: what one engine took is there for the next, whatever its sharding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT
from transformers import LlamaConfig

pytestmark = pytest.mark.gpu


def test_nothing_is_left_of_a_stage(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    base = {"model": "Llama", "task": {"kind": "causal-lm"}, "source": str(tmp_path), "train": ["all"]}
    base |= {"precision": "bf16", "micro_size": 2, "length": 64}
    kinds = [("zero3", "none"), ("ddp", "none"), ("zero2", "none"), ("zero3", "cpu"), ("zero3", "none")]
    cases = [base | {"strategy": strategy, "offload": offload} for strategy, offload in kinds]
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.memory_gpu", "--cases", json.dumps(cases), "--json", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"})
    report = json.loads(file.read_text())
    states = 8 * 54_543_360  # bytes of bf16 weights, fp32 masters and two moments, which one engine holds at least
    for one in report:
        # cuBLAS keeps its workspaces, 64 MiB here, for as long as the process lives
        assert one["measured"]["left"] < states / 4, (one["strategy"], one["offload"], one["measured"])
