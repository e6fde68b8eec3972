"""Run on each rank by `benchmarks.memory` and tests/integration/test_memory.py: predicted bytes beside measured ones.

    python -m torch.distributed.run --nproc_per_node 2 -m benchmarks.memory_on_ranks CASES.json REPORT.json

A case is a recipe's model and task, and one stage. Each is built as a run builds it, without weights (values do not
matter here), and takes one optimizer step of two micro-batches.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import backends, distributed, models, optim, plan, stages
from launcher.backends import Parts
from launcher.cluster import Cluster
from launcher.ending import end_now
from launcher.models import activations, recompute
from launcher.models.alike_blocks import SavedTensors
from launcher.plan import fit
from launcher.plan.data_facts import DataFacts
from launcher.plan.parameters import ModelFacts
from launcher.recipe import Recipe

VALUE = 0.01


def planned(case: dict[str, Any], ranks: int) -> tuple[plan.RunPlan, ModelFacts]:
    """The plan of a case for CPU ranks, as if it had rows."""
    micro_size = case["micro_size"]
    written = {
        "name": "measured", "task": case["task"], "model": {"source": case["source"], "weights": "random"},
        "data": {"source": "text" if case["task"]["kind"] == "causal-lm" else "csv", "files": "none",
                 "max_length": case["length"]},
    }  # fmt: skip
    stage = {
        "name": "one", "train": case["train"], "steps": 1, "precision": case["precision"],
        "batch": {"global_size": 2 * micro_size * ranks, "micro_size": micro_size},
        "optimizer": case["optimizer"], "sharding": {"strategy": case["strategy"]},
        "gradient_checkpointing": case.get("gradient_checkpointing", False),
    }  # fmt: skip
    recipe = Recipe.model_validate_json(json.dumps(written | {"stages": [stage]}))
    is_lm = recipe.task.kind == "causal-lm"
    labels = None if is_lm else ["a", "b", "c"]
    facts = models.facts(recipe.model, recipe.task, None if is_lm else 3, Path())
    data = DataFacts(train_rows=100, validation_rows=0, test_rows=0, labels=labels, majority=None, columns=[])
    cluster = Cluster(gpus_per_node=0, ranks_per_node=ranks)
    return plan.resolve(recipe, ".", cluster, facts, data), facts


def filled(run: plan.RunPlan, sharding: AbstractContextManager[Any] | None) -> nn.Module:
    """The model of a case with values that stand for weights; a sharded parameter's are others than a whole one's."""
    recipe, stage = run.recipe, run.stages[0]
    module = models.skeleton(recipe.model, recipe.task, run.labels, Path(), sharding)
    if sharding is None:
        # `to_empty` would empty the buffers too, and positions are looked up with them.
        module._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)
        getattr(module, "tie_weights", lambda: None)()  # what was one parameter has become two
    with torch.no_grad():
        for parameter in module.parameters():
            here = getattr(parameter, "ds_tensor", parameter).data
            here.copy_(torch.arange(here.numel()).sin().mul(0.05).view(here.shape))
    stages.apply(module, stage)
    if stage.settings.gradient_checkpointing:
        recompute.enable(module)
    stages.set_modes(module, stage)
    return module


def predicted(run: plan.RunPlan, facts: ModelFacts, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """What `memory` and `activations` say of the case."""
    recipe, stage = run.recipe, run.stages[0]
    states = fit.model_states(stage, facts)
    shapes = {name: (value.shape, value.dtype) for name, value in inputs.items()}
    module = models.skeleton(recipe.model, recipe.task, run.labels, Path())
    stages.apply(module, stage)
    stages.set_modes(module, stage)
    counted = activations.count(
        module,
        lambda: {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()},
        "cpu",
        stage.settings.precision,
        is_cast=stage.is_cast,
        checkpoints=stage.settings.gradient_checkpointing is True,
    )
    plain, whole = (fit.stage_disk(each, facts) for each in (stage, for_any_ranks(stage)))
    by_name = whole.checkpoint_bytes - plain.checkpoint_bytes - plain.model_bytes
    files = {"checkpoint": plain.checkpoint_bytes, "optimizer_by_name": by_name}
    return dataclasses.asdict(states) | {"activations": counted.saved} | files


def for_any_ranks(stage: plan.StagePlan) -> plan.StagePlan:
    """The stage in a job that may lose a node, whose checkpoints have model and optimizer by name besides."""
    slurm = stage.settings.slurm.model_copy(update={"nodes": 2, "min_nodes": 1})
    return stage.model_copy(update={"settings": stage.settings.model_copy(update={"slurm": slurm})})


def built(run: plan.RunPlan, runtime: distributed.Runtime) -> backends.Engine:
    """The engine of a case, as a run builds it, with the same value everywhere."""
    stage, recipe = run.stages[0], run.recipe
    facts = models.facts(recipe.model, recipe.task, len(run.labels) if run.labels else None, Path())
    shapes = {parameter.name: parameter.shape for parameter in facts.parameters}
    return backends.build(
        Parts(
            stage=stage, runtime=runtime, load_module=lambda sharding: filled(run, sharding),
            make_optimizer=lambda module: optim.build(stage, module, {}), clipped_step=optim.clipped_step,
            start_tensor=lambda name: torch.full(shapes[name], VALUE),
        )
    )  # fmt: skip


def measured(
    run: plan.RunPlan, runtime: distributed.Runtime, inputs: dict[str, torch.Tensor], folder: Path
) -> tuple[dict[str, int], list[str]]:
    """The bytes that this rank really holds: gradients between two micro-batches, the rest after the step; those of the
    optimizer's state by name and of the checkpoint that all write to ``folder``; the digests of what it computed."""
    stage = run.stages[0]
    engine = built(run, runtime)
    gradients = saved_bytes = 0
    computed: list[tuple[str, torch.Tensor]] = []
    distributed.seed_step(0, 0, 0, runtime.rank)  # the dropout of cases that are alike is the same
    for last in (False, True):
        saved = SavedTensors(engine.module)
        with engine.accumulate(last=last):
            with saved:
                outputs = engine.forward(inputs)
                logits = getattr(outputs, "logits", outputs)
            loss = logits.float().pow(2).mean()
            computed.append((f"loss {last}", loss.detach().clone()))
            engine.backward(loss)
        if not last:
            gradients, saved_bytes = engine.held()["gradients"], saved.num_bytes
    engine.step()
    held = engine.held()
    engine.save(folder)
    runtime.barrier()
    held["checkpoint"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    named = engine.optimizer_state(optim.STATE_KEYS[stage.settings.optimizer.kind])
    held["optimizer_by_name"] = sum(tensor.nbytes for _, _, tensors in named for tensor in tensors.values())
    runtime.barrier()
    computed += [(name, value.clone()) for name, value in engine.parameters()]
    computed += [(name, buffer.clone()) for name, buffer in engine.module.named_buffers()]
    engine.close()
    # Under ZeRO-3 autograd saves the gathered weights too, which no parameter holds later: they are counted as live.
    activated = {"activations": saved_bytes} if stage.zero_stage < 3 else {}
    return held | {"gradients": gradients} | activated, list(stages.digests(computed).values())


def main() -> None:
    runtime = distributed.start()
    cases, report = json.loads(Path(sys.argv[1]).read_text()), []
    for case in cases:
        run, facts = planned(case, runtime.ranks)
        spec = None
        if run.recipe.task.kind == "image-classification":
            spec = models.processor(run.recipe.model, run.recipe.task, Path())
        inputs = activations.inputs_of(run.recipe.task, spec, case["micro_size"], case["length"])
        folder = Path(sys.argv[2]).with_name("checkpoint")
        of_all_ranks = runtime.gather(measured(run, runtime, inputs, folder))
        most = {name: max(one[name] for one, _ in of_all_ranks) for name in of_all_ranks[0][0]}
        if runtime.is_first:
            shutil.rmtree(folder)
            computed = [digests for _, digests in of_all_ranks]
            report.append(case | {"predicted": predicted(run, facts, inputs), "measured": most, "computed": computed})
    if runtime.is_first:
        Path(sys.argv[2]).write_text(json.dumps(report))
    runtime.barrier()
    runtime.close()


if __name__ == "__main__":
    main()
    end_now(0)
