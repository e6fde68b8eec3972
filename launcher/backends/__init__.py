"""Backends: how a stage's model, gradients and optimizer state are spread over the ranks.

`BACKENDS` maps a sharding strategy to the function that builds its engine. The loop sees only `Engine`; nobody outside
this folder names DDP or DeepSpeed. Reading order: engine, data_parallel, zero.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.backends import data_parallel, zero
from launcher.backends.engine import Engine, Parts, StepResult

BACKENDS: dict[str, Callable[[Parts], Engine]] = {
    "ddp": data_parallel.build,
    "zero1": zero.build,
    "zero2": zero.build,
    "zero3": zero.build,
}


def build(parts: Parts) -> Engine:
    """Build the engine that the stage's plan asks for; all ranks must reach this."""
    return BACKENDS[parts.stage.settings.sharding.strategy](parts)


__all__ = ["BACKENDS", "Engine", "Parts", "StepResult", "build"]
