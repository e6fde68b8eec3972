"""Predicted and measured peak of one GPU over the moments of a step: prints the GPU table of docs/memory.md.

    python -m benchmarks.memory_gpu SMOLLM2_FOLDER LLAMA_FOLDER [--json FILE]

A folder holds a config.json; no weights are needed. Each case is built as a run builds it, takes a step that makes the
optimizer's state, and is then measured over two micro-batches and a step, and an evaluation. "tensors" is the peak of
live tensors, beside the plan without its margin; "process" is that and all that is outside of the allocator (the CUDA
context, libraries), beside the plan. Each case has a process of its own; --cases takes them as JSON, in one process.
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

import torch
from torch.nn import functional

from benchmarks.memory_on_ranks import built
from launcher import distributed, models, plan, survey
from launcher.cluster import Cluster
from launcher.ending import end_now
from launcher.models import activations
from launcher.plan import search
from launcher.plan.data_facts import DataFacts
from launcher.recipe import Recipe
from launcher.tasks.causal_lm import token_losses

GIB = 2**30
SHARDINGS = (("ddp", "none"), ("zero2", "none"), ("zero3", "none"), ("zero3", "cpu"))


def cases(smollm2: str, llama: str) -> list[dict[str, Any]]:
    """Every model under every sharding in bf16; the first also with its top layers alone, and in fp32."""
    lm: dict[str, Any] = {"task": {"kind": "causal-lm"}, "train": ["all"], "precision": "bf16"}
    small = lm | {"model": "SmolLM2-135M", "source": smollm2, "micro_size": 8, "length": 512}
    large = lm | {"model": "Llama 1.1B", "source": llama, "micro_size": 4, "length": 1024}
    images = {"model": "ResNet-50", "source": "torchvision:resnet50", "micro_size": 64, "length": 224, "train": ["all"]}
    images |= {"task": {"kind": "image-classification", "image_size": 224}}
    found = [one | {"strategy": s, "offload": o} for one in (small, large) for s, o in SHARDINGS]
    found += [small | {"train": ["head", "layers[-4:]"], "strategy": s, "offload": "none"} for s in ("ddp", "zero2")]
    found += [small | {"precision": "fp32", "strategy": "ddp", "offload": "none"}]
    return found + [images | {"precision": p, "strategy": "ddp", "offload": "none"} for p in ("fp32", "bf16")]


def planned(case: dict[str, Any], cluster: Cluster) -> plan.RunPlan:
    """The plan of a case, with its memory, as if it had rows."""
    is_lm = case["task"]["kind"] == "causal-lm"
    written = {
        "name": "measured", "task": case["task"], "model": {"source": case["source"], "weights": "random"},
        "data": {"source": "text", "files": "none", "max_length": case["length"]} if is_lm
        else {"source": "imagefolder", "files": "none"},
    }  # fmt: skip
    stage = {
        "name": "one", "train": case["train"], "steps": 2, "precision": case["precision"],
        "batch": {"global_size": 2 * case["micro_size"], "micro_size": case["micro_size"]},
        "sharding": {"strategy": case["strategy"], "offload": case["offload"]}, "evaluate": {"every": "end"},
    }  # fmt: skip
    recipe = Recipe.model_validate_json(json.dumps(written | {"stages": [stage]}))
    labels = None if is_lm else [str(i) for i in range(10)]
    facts = models.facts(recipe.model, recipe.task, None if is_lm else 10, Path())
    data = DataFacts(train_rows=100, validation_rows=100, test_rows=0, labels=labels, majority=None, columns=[])
    resolved = plan.resolve(recipe, ".", cluster, facts, data)
    spec = None if is_lm else models.processor(recipe.model, recipe.task, Path())
    outline = models.outline(recipe.model, recipe.task, labels, Path())
    return search.with_memory(resolved, facts, survey.counter(recipe, outline, cluster, spec))


def measured(run: plan.RunPlan, runtime: distributed.Runtime) -> dict[str, int]:
    """Bytes at the peak of each moment, and of all of them."""
    stage, recipe = run.stages[0], run.recipe
    is_lm, device = recipe.task.kind == "causal-lm", runtime.device
    spec = None if is_lm else models.processor(recipe.model, recipe.task, Path())
    engine = built(run, runtime)

    def loss(micro_size: int) -> torch.Tensor:
        inputs = activations.inputs_of(recipe.task, spec, micro_size, recipe.data.max_length)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        outputs = engine.forward(inputs)
        logits = getattr(outputs, "logits", outputs)
        if is_lm:
            return token_losses(logits, inputs["input_ids"]).sum()
        labels = torch.zeros(len(logits), dtype=torch.long, device=device)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def moment(take: Any) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        take()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def backward() -> None:
        for last in (False, True):
            with engine.accumulate(last=last):
                engine.backward(loss(stage.batch.micro_size) * 1e-6)

    def evaluation() -> None:
        assert stage.settings.evaluate.micro_size
        engine.module.eval()
        with torch.no_grad():
            loss(stage.settings.evaluate.micro_size)

    backward()
    engine.step()
    moments = {"backward": moment(backward), "step": moment(engine.step), "evaluation": moment(evaluation)}
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    held = engine.held()
    engine.close()
    peak = max(moments.values())
    return held | moments | {
        "allocated": peak, "outside": outside, "process": peak + outside, "left": torch.cuda.memory_allocated()
    }  # fmt: skip


def row(one: dict[str, Any]) -> str:
    """A line of the table, in GiB."""
    said, real = one["predicted"], one["measured"]
    tensors = said["peak_bytes"] - said["margin_bytes"]
    sharding = one["strategy"] + (" + cpu" if one["offload"] == "cpu" else "")
    shape = f"{one['micro_size']} x {one['length']}"
    cells = [one["model"], ", ".join(one["train"]), one["precision"], sharding, shape]
    for ours, theirs in ((tensors, real["allocated"]), (said["peak_bytes"], real["process"])):
        cells += [f"{ours / GIB:.2f} / {theirs / GIB:.2f}", f"{ours / theirs - 1:+.1%}"]
    return f"| {' | '.join([*cells, format(real['outside'] / GIB, '.2f')])} |"


COLUMNS = (
    "model", "trains", "precision", "sharding", "micro-batch", "tensors, GiB", "error", "process, GiB", "error",
    "outside, GiB",
)  # fmt: skip


def measure(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases one after the other in this process, each with its plan and its measured bytes."""
    runtime = distributed.start()
    total = torch.cuda.get_device_properties(0).total_memory
    cluster = Cluster(gpus_per_node=1, ranks_per_node=1, gpu_memory_bytes=total, bf16=True)
    report = []
    for case in cases:
        run = planned(case, cluster)
        memory = run.stages[0].memory
        assert memory, run.stages[0].why
        report.append(case | {"predicted": memory.model_dump(), "measured": measured(run, runtime)})
    runtime.close()
    return report


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """As `measure`, of one case, where no other has warmed anything up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks.memory_gpu", "--cases", json.dumps([case]), "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the case {case} failed:\n{done.stderr[-4000:]}")
        measured_cases: list[dict[str, Any]] = json.loads(file.read_text())
        return measured_cases[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folders", nargs="*", help="with the config.json of SmolLM2-135M; and of a Llama of 1 to 3 billion"
    )
    parser.add_argument("--cases", type=json.loads)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.memory_gpu measures a GPU, and there is none")
    if options.cases:
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 29511}
        os.environ |= {name: str(value) for name, value in alone.items()} | {"MASTER_ADDR": "127.0.0.1"}
        report = measure(options.cases)
    elif len(options.folders) == 2:
        print(f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", sep="\n")
        report = []
        for case in cases(*options.folders):
            report.append(in_a_process(case))
            print(row(report[-1]), flush=True)
    else:
        parser.error("two folders are needed")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
    end_now(0)
