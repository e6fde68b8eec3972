"""MiniLM trained with the AdamW step in torch (the reference) and with the C++ step: are all bits the same?

One run of four stages, under ddp and ZeRO 1, 2 and 3, on two ranks, is made with each implementation. Compared are the
loss and gradient norm of every step, as they stand in metrics.jsonl, and every tensor of the exported model. The
reference is slow: with all 22.7M parameters, allow a second or two a step.

    python -m benchmarks.adamw_bits --steps 300
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.trainer_vs_thawline import RECIPE, run

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
IMPLEMENTATIONS = ("torch", "fused")
RANKS = 2


def write_recipe(folder: Path, steps: int, trained: list[str]) -> Path:
    """The quickstart's model and rows, in small batches, with one stage a strategy."""
    stages = [
        {"name": strategy, "train": trained, "steps": steps, "sharding": {"strategy": strategy}}
        for strategy in STRATEGIES
    ]
    recipe = {
        "extends": str(RECIPE),
        "name": "adamw-bits",
        "batch": {"global_size": 2 * RANKS},
        "data": {"limit": 4000, "max_length": 24},
        "precision": "fp32",
        "optimizer": {"kind": "adamw", "learning_rate": 1e-4},
        "evaluate": {"every": "never", "best": None},
        "stages": stages,
        "tracking": {"log_every": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def steps_of(run_dir: Path) -> list[tuple[Any, ...]]:
    """(stage, step, loss, gradient norm) of every optimizer step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]


def num_differing_bits(run_dirs: list[Path]) -> tuple[int, int]:
    """Elements of the exported models whose bits differ, and all elements."""
    ours, theirs = (load_file(run_dir / "model" / "model.safetensors") for run_dir in run_dirs)
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"the models have other tensors: {sorted(ours.keys() ^ theirs.keys())}")
    differing = sum(int((ours[name].view(torch.uint8) != theirs[name].view(torch.uint8)).sum()) for name in ours)
    return differing, sum(tensor.numel() for tensor in ours.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adamw_bits", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of each stage")
    parser.add_argument("--train", nargs="+", default=["all"], help="what trains, as in a recipe's stage")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, run_dirs = write_recipe(folder, asked.steps, asked.train), [folder / each for each in IMPLEMENTATIONS]
        for implementation, run_dir in zip(IMPLEMENTATIONS, run_dirs, strict=True):
            started = time.monotonic()
            command = [sys.executable, "-m", "launcher", "run", str(recipe), "--run-dir", str(run_dir)]
            run([*command, "--ranks", str(RANKS), "--set", f"optimizer.implementation={implementation}"], RANKS)
            print(f"{implementation}: {time.monotonic() - started:.0f} s", flush=True)
        theirs, ours = map(steps_of, run_dirs)
        if len(ours) != asked.steps * len(STRATEGIES):
            raise RuntimeError(f"{len(ours)} steps were logged, not {asked.steps} for each of {', '.join(STRATEGIES)}")
        other_steps = sum(a != b for a, b in zip(ours, theirs, strict=True))
        differing, total = num_differing_bits(run_dirs)
    print(f"{len(ours)} steps, {other_steps} with another loss or gradient norm")
    print(f"{total} parameters, {differing} bytes that differ")
    sys.exit(1 if other_steps or differing else 0)


if __name__ == "__main__":
    main()
