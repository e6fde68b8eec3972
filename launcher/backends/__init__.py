"""Backends: how a stage's model, gradients and optimizer state are spread over the ranks.

`BACKENDS` maps a sharding strategy to the module that builds its engine, imported when a stage needs it: a run without
ZeRO does not pay for DeepSpeed. The loop sees only `Engine`; nobody outside this folder names DDP or DeepSpeed.
Reading order: engine, data_parallel, zero, swap_files, zero_nvme.
"""

from __future__ import annotations

import importlib

from launcher.backends.engine import Engine, Parts, StepResult

BACKENDS = {
    "ddp": "launcher.backends.data_parallel",
    "zero1": "launcher.backends.zero",
    "zero2": "launcher.backends.zero",
    "zero3": "launcher.backends.zero",
}
OFFLOADED = {("zero3", "nvme"): "launcher.backends.zero_nvme"}
"""Those that are another module's because of where they offload to."""


def build(parts: Parts) -> Engine:
    """Build the engine that the stage's plan asks for; all ranks must reach this."""
    sharding = parts.stage.settings.sharding
    name = OFFLOADED.get((sharding.strategy, sharding.offload), BACKENDS[sharding.strategy])
    module = importlib.import_module(name)
    engine: Engine = module.build(parts)
    return engine


__all__ = ["BACKENDS", "Engine", "Parts", "StepResult", "build"]
