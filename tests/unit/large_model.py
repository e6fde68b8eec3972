"""A model too large for most GPUs, whose activations are easy to reckon, and plans of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.cluster import Cluster
from launcher.costs.peak import GIB, Activations
from launcher.costs.step_time import Work
from launcher.plan import RunPlan, StagePlan, search
from launcher.plan.parameters import ModelFacts, ParameterFacts

MakePlan = Callable[..., RunPlan]
BLOCKS = 12
SIDE = 8192
"""Blocks of 268 million elements: 3.8 billion in all."""


def facts() -> ModelFacts:
    """The model of `make_plan`, large."""
    names = [f"encoder.{number}.{kind}" for number in range(BLOCKS) for kind in ("weight", "bias")]
    parameters = tuple(
        ParameterFacts(name, (SIDE,) if name.endswith("bias") else (SIDE, 4 * SIDE), "float32", True)
        for name in ("embed.weight", *names, "head.weight")
    )
    return ModelFacts(parameters, tuple((f"encoder.{number}.",) for number in range(BLOCKS)), ("head.",))


def count(stage: StagePlan, length: int | None = None) -> Activations:
    """A GiB for each row of the micro-batch, less where fewer parameters train or texts are shorter than 128."""
    rows, size = stage.batch.micro_size * (length or 128) / 128, 3.8e9
    share = len(stage.trained_names) / (2 * BLOCKS + 2)
    tokens = 1000 * rows
    again = 2 * size * tokens if stage.settings.gradient_checkpointing is True else 0.0
    work = Work(2 * size * tokens, 4 * size * tokens * share, again, 1000)
    return Activations(saved=int(GIB * rows * share), largest=1000, logits=16, logits_forward=64, work=work)


def gpus(gib: float | None, *, nodes: int = 1, host_gib: float | None = None) -> Cluster:
    return Cluster(
        nodes=nodes, gpus_per_node=4, ranks_per_node=4, gpu_memory_bytes=int(gib * GIB) if gib else None, bf16=True,
        host_memory_bytes=int(host_gib * GIB) if host_gib else None,
    )  # fmt: skip


def planned(make_plan: MakePlan, cluster: Cluster, **changes: Any) -> RunPlan:
    return search.with_memory(make_plan(cluster=cluster, **changes), facts(), count)
