"""What would fit where a stage does not: changes to the recipe or the machines, the nearest first.

Owns what ``thawline plan`` suggests, each tried by `fit` before it is told. Pure. Suggests nothing that is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from launcher.cluster import Cluster
from launcher.errors import RecipeError
from launcher.plan import fit, micro_size
from launcher.plan.fit import Count
from launcher.plan.parameters import ModelFacts, groups, select
from launcher.plan.run_plan import GroupPlan, RunPlan, StagePlan, resolve
from launcher.plan.search import LADDER, ladder, refuses_zero, settled
from launcher.recipe import ImageClassification, Lora

MOST_WAYS = 3
SHORTEST = 64
"""Tokens; texts are not cut shorter than this."""
RANK = 16
"""Of the adapters that are suggested."""
Adapted = Callable[[Lora], tuple[ModelFacts, Count] | None]
"""The model with adapters, and what counts its activations; None: nobody knows where they would go."""


@dataclass(frozen=True)
class Way:
    """A change, and the stage and the machines under it."""

    words: str
    """As it would be written in the recipe or on the command line."""
    stage: StagePlan
    cluster: Cluster
    length: int | None = None
    """Tokens of a text, if it changes."""
    adapted: tuple[ModelFacts, Count] | None = None
    """The model, if it changes, and what counts its activations."""


def shortage(plan: RunPlan, facts: ModelFacts, count: Count, adapted: Adapted = lambda lora: None) -> str | None:
    """What to tell when a stage does not fit its GPUs: what is missing, and what would fit. None when all do."""
    lines = []
    for stage in plan.stages:
        if stage.fits is False and plan.cluster.gpus_per_node:
            ways = list(_ways(plan, stage, facts, count, adapted))
            lines.append(f"stage {stage.name}: {stage.why}")
            rung = LADDER[0] if refuses_zero(stage, facts) else ladder(stage, plan.cluster)[-1]
            last = fit.verdict(fit.sharded(stage, *rung), plan.cluster, facts, count).why
            nothing = f"  nothing that was tried would fit; {fit.named(*rung)} {last}"
            lines += [f"  would fit: {way}" for way in ways] or [nothing]
    return "\n".join(lines) or None


def _ways(plan: RunPlan, stage: StagePlan, facts: ModelFacts, count: Count, adapted: Adapted) -> Iterator[str]:
    """At most `MOST_WAYS` changes under which the stage fits, the smallest of each kind, and first those that change
    nothing of what is learned; two at once only where no single one of the recipe does."""
    kinds = (
        _other_strategies, _recomputing, _smaller_micro_sizes, _fewer_layers, _more_nodes, _shorter_texts,
        partial(_adapters, adapted=adapted), _strategies_and_micro_sizes,
    )  # fmt: skip
    num_found = 0
    for kind in kinds:
        if kind is _strategies_and_micro_sizes and num_found:
            return
        for way in kind(plan, stage, facts):
            found = fit.verdict(way.stage, way.cluster, *(way.adapted or (facts, count)), way.length)
            if found.memory and found.fits:
                num_found += 1
                yield f"{way.words} ({fit.gib(found.memory.peak_bytes)})"
                break
        if num_found == MOST_WAYS:
            return


def _other_strategies(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    now = (stage.settings.sharding.strategy, stage.settings.sharding.offload)
    rungs = ladder(stage, plan.cluster)
    after = rungs[rungs.index(now) + 1 :] if now in rungs else (("zero3", "cpu"),)
    besides = ", optimizer.master: none" if stage.master != "none" else ""
    for strategy, offload in () if refuses_zero(stage, facts) else after:
        changed = fit.sharded(stage, strategy, offload)
        yield Way(f"sharding: {{strategy: {strategy}, offload: {offload}}}{besides}", changed, plan.cluster)


def _smaller_micro_sizes(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    for size in micro_size.smaller(stage):
        # What is evaluated at once follows where the recipe does not say; here it does not say any more.
        yield Way(f"batch.micro_size: {size}", micro_size.resized(stage, size, stage.settings), plan.cluster)


def _recomputing(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    if stage.settings.gradient_checkpointing is not True:
        yield Way("gradient_checkpointing: true", fit.checkpointed(stage, True), plan.cluster)


def _strategies_and_micro_sizes(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    for strategy in _other_strategies(plan, stage, facts):
        for size in _smaller_micro_sizes(plan, strategy.stage, facts):
            yield Way(f"{strategy.words} and {size.words}", size.stage, plan.cluster)


def _fewer_layers(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
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
        fewer = stage.model_copy(update={"groups": [GroupPlan.of(group) for group in found]})
        yield Way(f"train: [head, 'layers[-{num_layers}:]']", fewer, plan.cluster)


def _shorter_texts(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    length = plan.recipe.data.max_length
    while not isinstance(plan.recipe.task, ImageClassification) and (length := length // 2) >= SHORTEST:
        yield Way(f"data.max_length: {length}", stage, plan.cluster, length)


def _more_nodes(plan: RunPlan, stage: StagePlan, facts: ModelFacts) -> Iterator[Way]:
    batch, cluster, nodes = stage.batch, plan.cluster, plan.cluster.nodes
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
        yield Way(f"{machines.ranks} GPUs: --nodes {nodes}", stage.model_copy(update={"batch": spread}), machines)


def _adapters(plan: RunPlan, stage: StagePlan, facts: ModelFacts, adapted: Adapted) -> Iterator[Way]:
    """Adapters instead of what the stage trains, with the head if it trains all of that; what the recipe leaves open is
    chosen anew, as the changed recipe's plan will."""
    recipe, asked, lora = plan.recipe, plan.recipe.stages[stage.index], Lora(rank=RANK)
    if recipe.model.lora is not None or (found := adapted(lora)) is None:
        return
    heads = set(select(["head"], facts))
    for train in [["head", "lora"], ["lora"]] if heads <= stage.trained_names else [["lora"]]:
        stages = [*recipe.stages]
        stages[stage.index] = asked.model_copy(update={"train": train, "learning_rates": {}})
        model = recipe.model.model_copy(update={"lora": lora})
        changed = recipe.model_copy(update={"model": model, "stages": stages})
        resolved = resolve(changed, plan.recipe_dir, plan.cluster, found[0], plan.data)
        besides = " and learning_rates: {}" if asked.learning_rates else ""
        words = f"model.lora: {{rank: {RANK}}} and train: [{', '.join(train)}]{besides}"
        yield Way(words, settled(resolved, resolved.stages[stage.index], *found), plan.cluster, adapted=found)
