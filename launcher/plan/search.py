"""The choice behind ``auto``: of sharding, micro size and gradient checkpointing the fastest that fits.

Owns the space that is searched, the order by `costs.step_time`'s estimate, and the words in which the plan says why
this one won and what kept the faster ones from it. Pure, as `fit`, by whose verdict it goes: it takes nothing that does
not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from launcher.cluster import Cluster
from launcher.costs.peak import Activations, MemoryPlan, NotCounted
from launcher.plan import fit, micro_size
from launcher.plan.fit import Count, Verdict
from launcher.plan.parameters import ModelFacts
from launcher.plan.run_plan import RunPlan, StagePlan
from launcher.recipe import Stage

LADDER = (("ddp", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero2", "cpu"), ("zero3", "cpu"))
"""From the simplest to the most involved, first without offload."""
LAST_RESORT = ("zero3", "nvme")
"""After those, where the plan knows of a disk of the node's own (`Cluster.nvme_bytes`)."""
ALIKE = 1.05
"""What takes at most so many times as long as the fastest that fits is taken for as fast, and of it the simplest way is
taken: no estimate is better than that."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a stage."""

    stage: StagePlan
    way: int
    """Number of its sharding and checkpointing in the order of simplicity; ways differ in the micro size besides."""
    seconds: float
    """Of an optimizer step, estimated."""

    @property
    def rank(self) -> tuple[int, int]:
        """Of times that are alike the less is taken: the simpler way, then the larger micro size."""
        return self.way, -self.stage.batch.micro_size

    def __str__(self) -> str:
        sharding, batch = self.stage.settings.sharding, self.stage.batch
        again = " with gradient checkpointing" if self.stage.settings.gradient_checkpointing is True else ""
        return f"{fit.named(sharding.strategy, sharding.offload)}{again} at micro size {batch.micro_size}"

    @property
    def told(self) -> str:
        """With its time."""
        return f"{self} ({self.seconds:.3g} s a step)"


def with_memory(plan: RunPlan, facts: ModelFacts, count: Count) -> RunPlan:
    """The plan with each stage's memory and time, and what the recipe leaves open chosen: the fastest that fits."""
    found = [settled(plan, stage, facts, count) for stage in plan.stages]
    stages = [stage.model_copy(update={"disk": fit.stage_disk(stage, facts)}) for stage in found]
    return plan.model_copy(update={"stages": stages})


def settled(plan: RunPlan, stage: StagePlan, facts: ModelFacts, count: Count) -> StagePlan:
    """One stage of `with_memory`; the others have no part in it."""
    asked = plan.recipe.stages[stage.index]
    first = fit.verdict(stage, plan.cluster, facts, count)
    ways = list(_open_ways(stage, asked, plan.cluster, facts))
    is_open = len(ways) > 1 or (asked.batch.micro_size == "auto" and bool(micro_size.smaller(stage)))
    if first.fits is None or not is_open:  # nothing to choose, or nothing to choose by
        return _with(stage, first, _set_by_recipe(stage, first, asked, plan.cluster, facts, count))
    trials = _Trials(plan.cluster, facts, count, asked)

    def candidates(of: Sequence[tuple[int, StagePlan]]) -> list[Candidate]:
        return list(_candidates(of, asked, plan.cluster, facts, count))

    if taken := _simplest_of_the_fastest(list(enumerate(ways)), candidates, trials.fits):
        found = trials.found[taken]
        chosen = _chosen(taken, asked, trials.refused)
        set_by_recipe = _set_by_recipe(taken.stage, found, asked, plan.cluster, facts, count)
        return _with(taken.stage, found, "; ".join(filter(None, (chosen, set_by_recipe))))
    nearest, at_best = stage, first
    for tried in trials.smallest.values():
        found = fit.verdict(tried, plan.cluster, facts, count)
        if found.fits is False and found.missing < at_best.missing:
            nearest, at_best = tried, found
    return _with(nearest, replace(at_best, why=f"{at_best.why}, and all else that auto may take lacks more"))


@dataclass(eq=False)
class _Trials:
    """What was tried of a stage, and what came of it."""

    cluster: Cluster
    facts: ModelFacts
    count: Count
    asked: Stage
    found: dict[Candidate, Verdict] = field(default_factory=dict)
    refused: dict[int, list[str]] = field(default_factory=dict)
    """Way -> what each of its micro sizes lacked, in words."""
    smallest: dict[int, StagePlan] = field(default_factory=dict)
    """Of each way that was refused, the smallest micro size, which lacks least of it."""
    _hopeless: set[int] = field(default_factory=set)

    def fits(self, candidate: Candidate) -> bool:
        """Of a way that does not fit without its activations nothing more is tried."""
        if candidate in self.found:
            return self.found[candidate].fits is True
        if candidate.way in self._hopeless:
            return False
        tried, told = candidate.stage, candidate.told
        found = fit.judge(tried, self.cluster, self.facts, Activations())
        if found.fits is False:  # whatever the micro size, so nothing need be counted
            self._hopeless.add(candidate.way)
            smaller = micro_size.smaller(tried) if self.asked.batch.micro_size == "auto" else []
            tried = micro_size.resized(tried, smaller[-1], self.asked) if smaller else tried
            self.smallest[candidate.way] = tried
            told = f"{told}, without activations,"
        else:
            found = fit.verdict(tried, self.cluster, self.facts, self.count)
        self.found[candidate] = found
        if not found.fits:
            self.refused.setdefault(candidate.way, []).append(f"{told} {found.why}")
            before = self.smallest.setdefault(candidate.way, tried)
            self.smallest[candidate.way] = min(before, tried, key=lambda one: one.batch.micro_size)
        return found.fits is True


def _simplest_of_the_fastest(
    ways: Sequence[tuple[int, StagePlan]],
    candidates: Callable[[Sequence[tuple[int, StagePlan]]], list[Candidate]],
    fits: Callable[[Candidate], bool],
) -> Candidate | None:
    """Of the candidates that fit and are as fast as the fastest of them, see `ALIKE`, the one of least rank. None: none
    fits.

    Ways that compute again are never faster than the same without, so they are counted only when it is their turn.
    """
    again = [one for one in ways if one[1].settings.gradient_checkpointing is True]
    plain = [one for one in ways if one[1].settings.gradient_checkpointing is not True]
    known = sorted(candidates(plain), key=_by_time)
    if not known or not fits(known[0]):
        known, again = sorted([*known, *candidates(again)], key=_by_time), []
    fastest = next((one for one in known if fits(one)), None)
    if fastest is None:
        return None

    def simpler(of: list[Candidate], than: Candidate) -> Candidate:
        alike = (one for one in of if one.seconds <= ALIKE * fastest.seconds and one.rank < than.rank)
        return next((one for one in sorted(alike, key=lambda one: one.rank) if fits(one)), than)

    taken = simpler(known, fastest)
    return simpler(candidates([(number, way) for number, way in again if number < taken.way]), taken)


def _by_time(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.seconds, *candidate.rank


def _open_ways(stage: StagePlan, asked: Stage, cluster: Cluster, facts: ModelFacts) -> Iterator[StagePlan]:
    """What the recipe leaves open of sharding and checkpointing, the simpler first. On CPU ranks it is nothing."""
    on_gpu = cluster.gpus_per_node > 0
    now = (stage.settings.sharding.strategy, stage.settings.sharding.offload)
    is_open = on_gpu and asked.sharding.strategy == "auto"  # with offload it never is: see `recipe.rules`
    rungs = [rung for rung in ladder(stage, cluster) if rung[0] == "ddp" or not refuses_zero(stage, facts)]
    again = (False, True) if on_gpu and asked.gradient_checkpointing == "auto" else (asked.gradient_checkpointing,)
    for rung in rungs if is_open else [now]:
        for checkpoints in again:
            yield fit.checkpointed(fit.sharded(stage, *rung), checkpoints is True)


def ladder(stage: StagePlan, cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """The rungs that a stage may take on a cluster."""
    swaps = cluster.nvme_bytes is not None and getattr(stage.settings.optimizer, "state_dtype", "fp32") == "fp32"
    return (*LADDER, LAST_RESORT) if swaps else LADDER


def refuses_zero(stage: StagePlan, facts: ModelFacts) -> bool:
    """DeepSpeed's ZeRO cannot train a BatchNorm in low precision; see `backends.zero`."""
    return facts.has_batch_norm and stage.settings.precision != "fp32"


def _candidates(
    ways: Sequence[tuple[int, StagePlan]], asked: Stage, cluster: Cluster, facts: ModelFacts, count: Count
) -> Iterator[Candidate]:
    for number, way in ways:
        try:
            work = count(way).work
        except NotCounted:  # this model cannot compute its blocks again
            return
        sizes = [way.batch.micro_size, *(micro_size.smaller(way) if asked.batch.micro_size == "auto" else ())]
        for size in sizes:
            stage = micro_size.resized(way, size, asked)
            time = fit.stage_time(stage, cluster, facts, work.times(size / way.batch.micro_size))
            yield Candidate(stage, number, time.seconds)


def at_each_strategy(plan: RunPlan, facts: ModelFacts, count: Count) -> dict[str, dict[str, MemoryPlan]]:
    """Stage -> strategy -> its memory there, for the stage's micro size, with the plan's own choice marked."""
    found: dict[str, dict[str, MemoryPlan]] = {}
    for stage in plan.stages:
        now = (stage.settings.sharding.strategy, stage.settings.sharding.offload)
        of_stage = found.setdefault(stage.name, {})
        for rung in dict.fromkeys([*ladder(stage, plan.cluster), now]) if plan.cluster.gpus_per_node else [now]:
            memory = fit.verdict(fit.sharded(stage, *rung), plan.cluster, facts, count).memory
            if memory:
                of_stage[fit.named(*rung) + (" (the plan)" if rung == now else "")] = memory
    return {name: memories for name, memories in found.items() if memories}


def _chosen(taken: Candidate, asked: Stage, refused: dict[int, list[str]]) -> str:
    """Why it won: what was faster or simpler, and what kept each from it; of each way the largest and the smallest.

    Names what was open alone: what the recipe sets is not ``auto``'s choice.
    """
    sharding, size = taken.stage.settings.sharding, taken.stage.batch.micro_size
    parts = [fit.named(sharding.strategy, sharding.offload)] if asked.sharding.strategy == "auto" else []
    parts += [f"micro size {size}"] if asked.batch.micro_size == "auto" else []
    if asked.gradient_checkpointing == "auto" and taken.stage.settings.gradient_checkpointing is True:
        parts.append("gradient checkpointing")
    if not parts:  # that no block is computed again goes without saying
        return ""
    told = [text for texts in refused.values() for text in dict.fromkeys((texts[0], texts[-1]))]
    other = "no other" if asked.sharding.strategy != "auto" else "nothing"
    reason = f"the fastest that fits: {'; '.join(told)}" if told else f"{other} is faster by more than 5%"
    return f"auto chose {', '.join(parts)} ({taken.seconds:.3g} s a step), {reason}"


def _set_by_recipe(
    stage: StagePlan, found: Verdict, asked: Stage, cluster: Cluster, facts: ModelFacts, count: Count
) -> str:
    """Where the recipe sets the sharding on GPUs: that it does, and the fastest other one that fits if it is faster."""
    on_gpu = cluster.gpus_per_node > 0
    if not (on_gpu and found.fits and found.time) or asked.sharding.strategy == "auto" or refuses_zero(stage, facts):
        return ""
    sharding = stage.settings.sharding
    now = (sharding.strategy, sharding.offload)
    faster: list[tuple[float, int, str]] = []
    for place, rung in enumerate(ladder(stage, cluster)):
        if rung == now:
            continue
        other = fit.verdict(fit.sharded(stage, *rung), cluster, facts, count)
        if other.fits and other.time and ALIKE * other.time.seconds < found.time.seconds:
            faster.append((other.time.seconds, place, fit.named(*rung)))
    told = f"{fit.named(*now)} is set by the recipe"
    if not faster:
        return told
    least = min(seconds for seconds, _, _ in faster)
    seconds, _, name = min((one for one in faster if one[0] <= ALIKE * least), key=lambda one: one[1])
    return f"{told}; {name} would fit too, {1 - seconds / found.time.seconds:.0%} faster"


def _with(stage: StagePlan, found: Verdict, choice: str = "") -> StagePlan:
    changes = {"memory": found.memory, "fits": found.fits, "why": found.why, "time": found.time, "choice": choice}
    return stage.model_copy(update=changes)
