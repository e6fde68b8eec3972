"""From one stage to the next: how a stage's engine is opened from a checkpoint, and what its end hands on.

Between stages a model is a folder of fp32 tensors by parameter name, and so is optimizer state: no sharding, no
wrapper, nothing of the backend that wrote it. So any stage can follow any other, and a run that resumes at a stage's
start does what an uninterrupted one does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import backends, models, optim, stages
from launcher.backends import Engine, Parts
from launcher.checkpoint import Saved
from launcher.models import recompute
from launcher.models.parameter_names import named_parameters
from launcher.models.weights import WeightsReader, load_weights, named_state, write_weights
from launcher.plan import StagePlan
from launcher.run import Run

STEPS = "steps.json"


def open_stage(run: Run, stage: StagePlan, start: Saved, *, carry: bool = False) -> Engine:
    """Build the stage's engine with the weights, and if it carries them the optimizer state, of ``start``.

    ``carry``: whatever the stage says, since ``start`` stands inside of it and was written by other ranks.
    """
    recipe = run.plan.recipe
    carried = _carried_steps(stage, start) if carry or stage.settings.optimizer_state == "carry" else {}

    def load_module(sharding: AbstractContextManager[Any] | None) -> nn.Module:
        module = models.skeleton(run.plan.model, recipe.task, run.plan.labels, run.recipe_dir, sharding)
        load_weights(module, start.model, sharded=sharding is not None)
        stages.apply(module, stage)
        if stage.settings.gradient_checkpointing is True:  # auto, in a plan of before there was the key: no
            recompute.enable(module)
        return module

    def start_tensor(name: str) -> torch.Tensor:
        with WeightsReader(start.model) as reader:
            return reader.tensor(name)

    engine = backends.build(
        Parts(
            stage=stage,
            runtime=run.runtime,
            load_module=load_module,
            make_optimizer=lambda module: optim.build(stage, module, carried),
            clipped_step=optim.clipped_step,
            start_tensor=start_tensor,
            run_dir=run.run_dir.path,
        )
    )
    if carried:
        _restore_optimizer(engine, start.optimizer, carried)
    return engine


def write_model(run: Run, stage: StagePlan, engine: Engine, start: Saved, folder: Path) -> None:
    """Write the whole model; every rank takes part in gathering it, the first one writes.

    A frozen parameter that the engine holds in low precision is written as it was at the stage's start: it did not
    change (the proof says so in the engine's own bits), and its rounding is the engine's affair.
    """
    trained = stage.trained_names

    def state() -> Iterator[tuple[str, torch.Tensor]]:
        with WeightsReader(start.model) as reader:
            for name, tensor in engine.parameters():
                keeps_bits = name in trained or tensor.dtype == torch.float32
                yield name, tensor.float() if keeps_bits else reader.tensor(name)
            parameters = {name for name, _ in named_parameters(engine.module)}
            for name, tensor in named_state(engine.module):
                if name not in parameters:
                    yield name, tensor.float() if tensor.is_floating_point() else tensor

    if run.runtime.is_first:
        write_weights(state(), folder)
    else:
        for _ in state():
            pass


def write_optimizer(run: Run, stage: StagePlan, engine: Engine, folder: Path) -> None:
    """Write the optimizer state by parameter name, for a next stage that carries it on."""
    keys = optim.STATE_KEYS[stage.settings.optimizer.kind]
    steps: dict[str, int] = {}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, seen, state in engine.optimizer_state(keys):
            steps[name] = seen
            yield from ((f"{name}/{key}", value) for key, value in state.items())

    if not run.runtime.is_first:
        for _ in tensors():
            pass
    else:
        write_weights(tensors(), folder)
        (folder / STEPS).write_text(json.dumps({"kind": stage.settings.optimizer.kind, "steps": steps}, indent=1))


def _carried_steps(stage: StagePlan, start: Saved) -> dict[str, int]:
    """Parameter -> optimizer steps seen, for those that train here and have state."""
    saved = json.loads((start.optimizer / STEPS).read_text())
    if saved["kind"] != stage.settings.optimizer.kind:
        raise AssertionError("rules refuse to carry state from one kind of optimizer to another")
    return {name: steps for name, steps in saved["steps"].items() if name in stage.trained_names}


def _restore_optimizer(engine: Engine, folder: Path, carried: dict[str, int]) -> None:
    with WeightsReader(folder) as reader:
        keys: dict[str, list[str]] = {name: [] for name in carried}
        for path in sorted(reader.names):
            name, _, key = path.rpartition("/")
            if name in keys:
                keys[name].append(key)
        for name, steps in carried.items():
            engine.set_optimizer_state(name, steps, {key: reader.tensor(f"{name}/{key}") for key in keys[name]})
