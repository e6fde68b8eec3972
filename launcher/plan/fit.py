"""Whether a stage fits the memory there is, and how long its step takes.

Owns the way from a planned stage to `costs.memory`'s and `costs.step_time`'s numbers, and the verdict in words. Pure:
`survey` hands it a function that counts activations. `search` chooses by it what is ``auto``; `ways` what else would
fit. Refuses no run: an estimate is told, and ``thawline plan`` alone makes an exit code of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from launcher.cluster import Cluster, threads_per_rank
from launcher.costs import memory, step_time
from launcher.costs.amounts import bytes_text
from launcher.costs.disk import DiskPlan, disk_plan
from launcher.costs.memory import ModelStates
from launcher.costs.peak import Activations, MemoryPlan, NotCounted, plan_memory
from launcher.costs.step_time import StepTime, Work
from launcher.plan.parameters import ModelFacts
from launcher.plan.run_plan import StagePlan


class Count(Protocol):
    """Counts the activations of a stage; its groups, micro size, precision and strategy matter."""

    def __call__(self, stage: StagePlan, length: int | None = None) -> Activations:
        """``length``: tokens of a text instead of the recipe's. Raises NotCounted."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What is said of a stage's memory and time."""

    memory: MemoryPlan | None
    """None: the model's activations cannot be counted."""
    fits: bool | None
    """None: not known, because what is needed or what there is is not."""
    why: str
    time: StepTime | None = None
    missing: int = 0
    """Bytes, of what does not suffice."""


def verdict(stage: StagePlan, cluster: Cluster, facts: ModelFacts, count: Count, length: int | None = None) -> Verdict:
    """Memory and time of a stage on a cluster; ``length`` as in `Count`."""
    try:
        counted = count(stage, length)
    except NotCounted as error:
        return Verdict(None, None, f"not estimated: {error}")
    return judge(stage, cluster, facts, counted)


def judge(stage: StagePlan, cluster: Cluster, facts: ModelFacts, counted: Activations) -> Verdict:
    """The same, of a micro-batch that has been counted."""
    found, time = stage_memory(stage, cluster, facts, counted), stage_time(stage, cluster, facts, counted.work)
    if stage.settings.sharding.nvme_path is not None:  # another disk than the one that was looked at
        cluster = cluster.model_copy(update={"nvme_bytes": None})
    fits, why, missing = _compared(found, cluster)
    if counted.bound:
        why += f"; the activations, {gib(found.activations_bytes)}, are an upper bound: {counted.bound}"
    elif counted.assumed:
        why += f"; the activations are counted as if {' and '.join(counted.assumed)}"
    return Verdict(found, fits, why, time, missing)


def _compared(found: MemoryPlan, cluster: Cluster) -> tuple[bool | None, str, int]:
    needed = found.peak_bytes
    host_needed = cluster.ranks_per_node * found.host_bytes
    there, what = rank_memory(cluster), "a GPU"
    if not cluster.gpus_per_node:
        what = "a CPU rank's share of the host"
        needed, host_needed = needed + found.host_bytes, 0
    if there is None:
        unknown = "--gpu-memory" if cluster.gpus_per_node else "--host-memory"
        return None, f"needs {gib(needed)}; how much {what} has is not known: say it with {unknown}", 0
    needs = f"needs {gib(needed)} in the {found.peak_at} of the {gib(there)} of {what}"
    if (missing := needed - there) > 0:
        return False, f"{needs}: {gib(missing)} are missing", missing
    there = cluster.host_memory_bytes
    if there is not None and (missing := host_needed - there) > 0:
        why = f"offload needs {gib(host_needed)} of the {gib(there)} of a node's host: {gib(missing)} are missing"
        return False, why, missing
    there, on_disk = cluster.nvme_bytes, cluster.ranks_per_node * found.nvme_bytes
    if there is not None and (missing := on_disk - there) > 0:
        why = f"offload needs {gib(on_disk)} of the {gib(there)} free on a node's own disk: {gib(missing)} are missing"
        return False, why, missing
    return True, needs, 0


def rank_memory(cluster: Cluster) -> int | None:
    """Bytes that a rank has: its GPU's, or its share of the host's. None: not known."""
    if cluster.gpus_per_node:
        return cluster.gpu_memory_bytes
    return cluster.host_memory_bytes and cluster.host_memory_bytes // cluster.ranks_per_node


def sharding(stage: StagePlan) -> memory.Sharding:
    """As the formulas take it."""
    offload = stage.settings.sharding.offload
    return memory.Sharding(
        stage.zero_stage, stage.batch.ranks, offload != "none", stage.settings.precision, stage.master,
        nvme=offload == "nvme",
    )  # fmt: skip


def model_states(stage: StagePlan, facts: ModelFacts) -> ModelStates:
    """What a stage holds on each rank whatever the size of its batch."""
    sizes = {parameter.name: parameter.numel for parameter in facts.parameters}
    trained = stage.trained_names
    return memory.model_states(
        [[sizes[name] for name in group.names] for group in stage.groups],
        [size for name, size in sizes.items() if name not in trained],
        sharding(stage),
        _optimizer_states(stage),
        stage.batch.accumulation,
    )


def stage_disk(stage: StagePlan, facts: ModelFacts) -> DiskPlan:
    """What a stage's checkpoints take."""
    sizes = {parameter.name: parameter.numel for parameter in facts.parameters}
    trained = stage.trained_names
    optimizer = stage.settings.optimizer
    return disk_plan(
        [[sizes[name] for name in group.names] for group in stage.groups],
        [size for name, size in sizes.items() if name not in trained],
        sharding(stage), _optimizer_states(stage), keep=stage.settings.checkpoint.keep,
        named_states=memory.optimizer_states(optimizer.kind, getattr(optimizer, "momentum", 0.0)),
        chooses=stage.settings.evaluate.best is not None,
        for_any_ranks=stage.settings.slurm.fewest_nodes < stage.settings.slurm.nodes,
    )  # fmt: skip


def _optimizer_states(stage: StagePlan) -> int:
    optimizer = stage.settings.optimizer
    momentum, dtype = getattr(optimizer, "momentum", 0.0), getattr(optimizer, "state_dtype", "fp32")
    return memory.optimizer_states(optimizer.kind, momentum, dtype)


def stage_memory(stage: StagePlan, cluster: Cluster, facts: ModelFacts, counted: Activations) -> MemoryPlan:
    """Bytes per rank of a stage as it is planned."""
    evaluates = stage.evaluate_at_end or stage.evaluate_every_steps is not None
    evaluated = (stage.settings.evaluate.micro_size or 0) / stage.batch.micro_size if evaluates else 0.0
    return plan_memory(model_states(stage, facts), counted, evaluated, is_gpu=cluster.gpus_per_node > 0)


def stage_time(stage: StagePlan, cluster: Cluster, facts: ModelFacts, work: Work) -> StepTime:
    """Seconds of a stage's optimizer step; ``work`` is a micro-batch's."""
    trained = stage.trained_names
    elements = sum(parameter.numel for parameter in facts.parameters if parameter.name in trained)
    whole = sum(parameter.numel for parameter in facts.parameters)
    load = step_time.Load(elements, whole - elements, len(facts.parameters), _optimizer_states(stage))
    machine = step_time.machine(
        stage.settings.precision, nodes=cluster.nodes, ranks_per_node=cluster.ranks_per_node,
        gpu_kind=cluster.gpu_kind, on_gpu=cluster.gpus_per_node > 0, threads=threads_per_rank(cluster.ranks_per_node),
        cpu_speed=cluster.cpu_speed,
    )  # fmt: skip
    return step_time.step_time(work, sharding(stage), load, stage.batch.accumulation, machine)


def sharded(stage: StagePlan, strategy: str, offload: str) -> StagePlan:
    """The stage under another sharding; ZeRO keeps its masters itself."""
    sharding, optimizer = stage.settings.sharding, stage.settings.optimizer
    if strategy != "ddp" and stage.master != "none":
        optimizer = optimizer.model_copy(update={"master": "none"})
    changed = {
        "sharding": sharding.model_copy(update={"strategy": strategy, "offload": offload}),
        "optimizer": optimizer,
    }
    return stage.model_copy(update={"settings": stage.settings.model_copy(update=changed)})


def checkpointed(stage: StagePlan, checkpoints: bool) -> StagePlan:
    """The stage with gradient checkpointing, or without."""
    settings = stage.settings.model_copy(update={"gradient_checkpointing": checkpoints})
    return stage.model_copy(update={"settings": settings})


def named(strategy: str, offload: str) -> str:
    """A sharding in words."""
    where = {"none": "", "cpu": " with offload to the host", "nvme": " with offload to NVMe"}
    return f"{strategy}{where[offload]}"


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return bytes_text(num_bytes)
