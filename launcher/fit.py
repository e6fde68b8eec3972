"""Whether each stage fits the memory there is, and if not what would.

Owns the way from a planned stage to `memory`'s numbers, the choice behind ``auto`` of sharding, micro size and gradient
checkpointing, and the words in which the plan says why. Pure: `survey` hands it a function that counts activations.
Refuses no run: an estimate is told, and ``thawline plan`` alone makes an exit code of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launcher import memory, micro_size
from launcher.cluster import Cluster
from launcher.errors import RecipeError
from launcher.memory import ModelStates
from launcher.memory_peak import GIB, Activations, MemoryPlan, NotCounted, plan_memory
from launcher.parameters import ModelFacts, groups
from launcher.plan import GroupPlan, RunPlan, StagePlan
from launcher.recipe import Stage

LADDER = (("ddp", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero2", "cpu"), ("zero3", "cpu"))
"""From the least communication to the most, first without offload."""
MOST_WAYS = 3

Count = Callable[[StagePlan], Activations]
"""Counts the activations of a stage; its groups, micro size, precision and strategy matter."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a stage's memory."""

    memory: MemoryPlan | None
    """None: the model's activations cannot be counted."""
    fits: bool | None
    """None: not known, because what is needed or what there is is not."""
    why: str


def with_memory(plan: RunPlan, facts: ModelFacts, count: Count) -> RunPlan:
    """The plan with each stage's memory, and what the recipe leaves open chosen so that it fits, if anything does."""
    return plan.model_copy(update={"stages": [_settled(plan, stage, facts, count) for stage in plan.stages]})


def shortage(plan: RunPlan, facts: ModelFacts, count: Count) -> str | None:
    """What to tell when a stage does not fit its GPUs: what is missing, and what would fit. None when all do."""
    lines = []
    for stage in plan.stages:
        if stage.fits is False and plan.cluster.gpus_per_node:
            ways = list(_ways(plan, stage, facts, count))[:MOST_WAYS]
            lines.append(f"stage {stage.name}: {stage.why}")
            last = verdict(_sharded(stage, *LADDER[-1]), plan.cluster, facts, count).why
            nothing = f"  nothing that was tried would fit; {_named(*LADDER[-1])} {last}"
            lines += [f"  would fit: {way}" for way in ways] or [nothing]
    return "\n".join(lines) or None


def verdict(stage: StagePlan, cluster: Cluster, facts: ModelFacts, count: Count) -> Verdict:
    """Memory of a stage on a cluster."""
    try:
        found = stage_memory(stage, cluster, facts, count)
    except NotCounted as error:
        return Verdict(None, None, f"not estimated: {error}")
    needed = found.peak_bytes
    host_needed = cluster.ranks_per_node * found.host_bytes
    if cluster.gpus_per_node:
        there, what = cluster.gpu_memory_bytes, "a GPU"
    else:
        share = cluster.host_memory_bytes
        there, what = share and share // cluster.ranks_per_node, "a CPU rank's share of the host"
        needed, host_needed = needed + found.host_bytes, 0
    if there is None:
        unknown = "--gpu-memory" if cluster.gpus_per_node else "--host-memory"
        return Verdict(found, None, f"needs {_gib(needed)}; how much {what} has is not known: say it with {unknown}")
    if needed > there:
        missing = f"{_gib(needed - there)} are missing"
        return Verdict(
            found, False, f"needs {_gib(needed)} in the {found.peak_at} of the {_gib(there)} of {what}: {missing}"
        )
    if host_needed and cluster.host_memory_bytes is not None and host_needed > cluster.host_memory_bytes:
        missing = f"{_gib(host_needed - cluster.host_memory_bytes)} are missing"
        return Verdict(
            found, False,
            f"offload needs {_gib(host_needed)} of the {_gib(cluster.host_memory_bytes)} of a node's host: {missing}",
        )  # fmt: skip
    return Verdict(found, True, f"needs {_gib(needed)} in the {found.peak_at} of the {_gib(there)} of {what}")


def model_states(stage: StagePlan, facts: ModelFacts) -> ModelStates:
    """What a stage holds on each rank whatever the size of its batch."""
    settings = stage.settings
    sizes = {parameter.name: parameter.numel for parameter in facts.parameters}
    trained = stage.trained_names
    return memory.model_states(
        [[sizes[name] for name in group.names] for group in stage.groups],
        [size for name, size in sizes.items() if name not in trained],
        memory.Sharding(stage.zero_stage, stage.batch.ranks, settings.sharding.offload == "cpu", settings.precision),
        memory.optimizer_states(settings.optimizer.kind, getattr(settings.optimizer, "momentum", 0.0)),
        stage.batch.accumulation,
    )


def stage_memory(stage: StagePlan, cluster: Cluster, facts: ModelFacts, count: Count) -> MemoryPlan:
    """Bytes per rank of a stage as it is planned.

    Raises:
        NotCounted: its activations cannot be counted.
    """
    evaluates = stage.evaluate_at_end or stage.evaluate_every_steps is not None
    evaluated = (stage.settings.evaluate.micro_size or 0) / stage.batch.micro_size if evaluates else 0.0
    return plan_memory(model_states(stage, facts), count(stage), evaluated, is_gpu=cluster.gpus_per_node > 0)


def _settled(plan: RunPlan, stage: StagePlan, facts: ModelFacts, count: Count) -> StagePlan:
    """The stage with its verdict; of what the recipe leaves open, the first of `_open_ways` that fits."""
    asked = plan.recipe.stages[stage.index]
    first = verdict(stage, plan.cluster, facts, count)
    if first.fits is not False:
        return _with(stage, first)
    refused: list[str] = []
    for way in _open_ways(stage, asked, on_gpu=plan.cluster.gpus_per_node > 0):
        sizes = [way.batch.micro_size, *(micro_size.smaller(way) if asked.batch.micro_size == "auto" else ())]
        if not _fits_without_activations(way, plan.cluster, facts):
            sizes = sizes[-1:]
        tries = [micro_size.resized(way, size, asked) for size in sizes]
        for tried in tries:
            found = verdict(tried, plan.cluster, facts, count)
            if found.fits:
                why = f"{found.why}; auto took {_described(tried)}: {'; '.join(refused)}"
                return _with(tried, Verdict(found.memory, True, why))
            if tried in (tries[0], tries[-1]):  # what lies between is as one thinks
                refused.append(f"{_described(tried)} {found.why}")
    is_open = asked.sharding.strategy == "auto" and plan.cluster.gpus_per_node > 0
    others = "; and no other strategy fits" if is_open else ""
    return _with(stage, Verdict(first.memory, False, f"{first.why}{others}"))


def _open_ways(stage: StagePlan, asked: Stage, *, on_gpu: bool) -> Iterator[StagePlan]:
    """What the recipe leaves open on GPUs, from the fastest: strategies from the least communication to the most, then
    the same with gradient checkpointing, which computes a third more, then offload, which waits for PCIe."""
    now = (stage.settings.sharding.strategy, stage.settings.sharding.offload)
    rungs = LADDER if on_gpu and asked.sharding.strategy == "auto" else (now,)
    again = (False, True) if on_gpu and asked.gradient_checkpointing == "auto" else (asked.gradient_checkpointing,)
    for offload in ("none", "cpu"):
        for checkpoints in again:
            for rung in rungs:
                if rung[1] == offload:
                    yield _checkpointed(_sharded(stage, *rung), checkpoints is True)


def _fits_without_activations(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> bool:
    """Whether trying micro sizes makes sense."""
    return verdict(stage, cluster, facts, lambda _: Activations()).fits is not False


def _described(stage: StagePlan) -> str:
    sharding, batch = stage.settings.sharding, stage.batch
    again = " with gradient checkpointing" if stage.settings.gradient_checkpointing is True else ""
    return f"{_named(sharding.strategy, sharding.offload)}{again} at micro size {batch.micro_size}"


def _with(stage: StagePlan, found: Verdict) -> StagePlan:
    return stage.model_copy(update={"memory": found.memory, "fits": found.fits, "why": found.why})


def _ways(plan: RunPlan, stage: StagePlan, facts: ModelFacts, count: Count) -> Iterator[str]:
    """Changes under which the stage fits, the smallest of each kind; two at once only where no single one does."""
    cluster, is_found = plan.cluster, False
    kinds = (
        _other_strategies, _recomputing, _smaller_micro_sizes, _fewer_layers, _strategies_and_micro_sizes, _more_nodes
    )  # fmt: skip
    for kind in kinds:
        if kind is _strategies_and_micro_sizes and is_found:
            continue
        for words, other, machines in kind(stage, cluster, facts):
            found = verdict(other, machines, facts, count)
            if found.memory and found.fits:
                is_found = True
                yield f"{words} ({_gib(found.memory.peak_bytes)})"
                break


Way = tuple[str, StagePlan, Cluster]


def _other_strategies(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    now = (stage.settings.sharding.strategy, stage.settings.sharding.offload)
    after = LADDER[LADDER.index(now) + 1 :] if now in LADDER else (("zero3", "cpu"),)
    for strategy, offload in after:
        yield f"sharding: {{strategy: {strategy}, offload: {offload}}}", _sharded(stage, strategy, offload), cluster


def _smaller_micro_sizes(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    for size in micro_size.smaller(stage):
        # What is evaluated at once follows where the recipe does not say; here it does not say any more.
        yield f"batch.micro_size: {size}", micro_size.resized(stage, size, stage.settings), cluster


def _recomputing(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    if stage.settings.gradient_checkpointing is not True:
        yield "gradient_checkpointing: true", _checkpointed(stage, True), cluster


def _strategies_and_micro_sizes(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    for strategy, sharded, _ in _other_strategies(stage, cluster, facts):
        for size, smaller, _ in _smaller_micro_sizes(sharded, cluster, facts):
            yield f"{strategy} and {size}", smaller, cluster


def _fewer_layers(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    num_layers = len(facts.layers)
    while (num_layers := num_layers // 2) > 0:
        train = ["head", f"layers[-{num_layers}:]"]
        try:
            found = groups(stage.settings.model_copy(update={"train": train, "learning_rates": {}}), facts)
        except RecipeError:
            return
        names = {name for group in found for name in group.names}
        if not names < stage.trained_names:
            continue
        planned = [
            GroupPlan(
                pattern=group.pattern, learning_rate=group.learning_rate, weight_decay=group.weight_decay,
                parameters=group.num_elements, names=list(group.names),
            )
            for group in found
        ]  # fmt: skip
        yield f"train: [head, 'layers[-{num_layers}:]']", stage.model_copy(update={"groups": planned}), cluster


def _more_nodes(stage: StagePlan, cluster: Cluster, facts: ModelFacts) -> Iterator[Way]:
    batch, nodes = stage.batch, cluster.nodes
    for _ in range(6):
        nodes *= 2
        machines = cluster.model_copy(update={"nodes": nodes})
        if batch.global_size % machines.ranks:
            return
        per_rank = batch.global_size // machines.ranks
        micro = max(size for size in range(1, min(batch.micro_size, per_rank) + 1) if per_rank % size == 0)
        spread = batch.model_copy(
            update={"micro_size": micro, "accumulation": per_rank // micro, "ranks": machines.ranks}
        )
        yield f"{machines.ranks} GPUs: --nodes {nodes}", stage.model_copy(update={"batch": spread}), machines


def _sharded(stage: StagePlan, strategy: str, offload: str) -> StagePlan:
    sharding = stage.settings.sharding.model_copy(update={"strategy": strategy, "offload": offload})
    return stage.model_copy(update={"settings": stage.settings.model_copy(update={"sharding": sharding})})


def _checkpointed(stage: StagePlan, checkpoints: bool) -> StagePlan:
    settings = stage.settings.model_copy(update={"gradient_checkpointing": checkpoints})
    return stage.model_copy(update={"settings": settings})


def _named(strategy: str, offload: str) -> str:
    return strategy if offload == "none" else f"{strategy} with offload to the host"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB"
