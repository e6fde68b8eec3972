"""The plan: a recipe with nothing left to decide, and the JSON that every rank reads.

Owns the arithmetic of batches and steps and the choice behind every ``auto``. Pure: it is told what the cluster, the
model and the data are (`cluster`, `parameters`, `data_facts`), reads no file but its own JSON, and imports no torch.
Called by `survey`, read by the launcher, the workers and ``thawline plan``. Nothing is defaulted after this point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from launcher.cluster import Cluster
from launcher.costs.disk import DiskPlan
from launcher.costs.peak import MemoryPlan
from launcher.costs.step_time import StepTime
from launcher.errors import EnvironmentProblem, Problem, RecipeError
from launcher.plan.data_facts import DataFacts
from launcher.plan.parameters import Group, ModelFacts, groups
from launcher.plan.update_size import UpdateRule, warnings
from launcher.recipe import Model, Recipe, Stage
from launcher.recipe.types import interval_steps

LARGEST_AUTO_MICRO_SIZE = 32


class Planned(BaseModel):
    """Frozen, strict about its keys; a RunPlan survives a round trip through JSON unchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupPlan(Planned):
    """Parameters that share a learning rate and a weight decay."""

    pattern: str
    learning_rate: float
    """Peak of the schedule."""
    weight_decay: float
    parameters: int
    """Elements."""
    names: list[str]

    @classmethod
    def of(cls, group: Group) -> GroupPlan:
        """As `parameters.groups` found it."""
        return cls(
            pattern=group.pattern, learning_rate=group.learning_rate, weight_decay=group.weight_decay,
            parameters=group.num_elements, names=list(group.names),
        )  # fmt: skip


class BatchPlan(Planned):
    """global_size = micro_size x accumulation x ranks."""

    global_size: int
    """Samples in one optimizer step."""
    micro_size: int
    accumulation: int
    """Micro-batches a rank takes before one optimizer step."""
    ranks: int


class StagePlan(Planned):
    """One stage, resolved."""

    index: int
    name: str
    settings: Stage
    """The stage as written, with every ``auto`` replaced."""
    groups: list[GroupPlan]
    trainable: int
    """Elements of the parameters that train."""
    frozen: int
    batch: BatchPlan
    norm_rows: int | None = None
    """Training rows, where a BatchNorm may train on them: no micro-batch may then be a single row. None: none does."""
    steps: int
    """Optimizer steps."""
    steps_per_epoch: int
    evaluate_every_steps: int | None
    """None: never inside the stage."""
    evaluate_at_end: bool
    checkpoint_every_steps: int
    memory: MemoryPlan | None = None
    """Estimated bytes per rank; see `fit`. None: not estimated."""
    fits: bool | None = None
    """Whether the peak is within the memory of a rank. None: not known."""
    disk: DiskPlan | None = None
    """Bytes of its checkpoints, of all ranks. None: not estimated."""
    time: StepTime | None = None
    """Estimated seconds of an optimizer step. None: not estimated."""
    why: str = ""
    """What is needed of what there is; what cannot be known."""
    choice: str = ""
    """What ``auto`` chose and why, or what the recipe sets and would be faster otherwise. Empty: nothing to say."""
    warnings: list[str] = []
    """What to say before it trains; see `update_size.warnings`."""

    @property
    def label(self) -> str:
        """``SS-NAME``, as folders are named."""
        return f"{self.index:02d}-{self.name}"

    @property
    def zero_stage(self) -> int:
        """0 for ddp."""
        return {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}[self.settings.sharding.strategy]

    @property
    def master(self) -> str:
        """`recipe.AdamW.master`; ``none`` for other optimizers."""
        return getattr(self.settings.optimizer, "master", "none")

    @property
    def is_cast(self) -> bool:
        """Whether the module itself is in the stage's precision, instead of computing in it under autocast."""
        return self.zero_stage > 0 or self.master != "none"

    @property
    def trained_names(self) -> set[str]:
        """Names of the parameters that train."""
        return {name for group in self.groups for name in group.names}

    def update_rules(self) -> dict[str, UpdateRule]:
        """Parameter -> how the optimizer steps it, for those that train."""
        return {
            name: UpdateRule(self.settings.optimizer, group.learning_rate, group.weight_decay)
            for group in self.groups
            for name in group.names
        }


class RunPlan(Planned):
    """All that the ranks need to know."""

    recipe: Recipe
    recipe_dir: str
    """Folder that the recipe's relative paths start from."""
    cluster: Cluster
    labels: list[str] | None
    """Label names in the order of their ids; None for tasks without labels."""
    data: DataFacts
    stages: list[StagePlan]
    lora_targets: list[str] | None = None
    """What ``model.lora.targets`` comes to; see `parameters.ModelFacts`. None: there are no adapters."""
    notes: list[str] = []
    """How rows become what the model sees, where the recipe does not say it; see `tasks.BoundTask.notes`."""
    warnings: list[str] = []
    """What to say before any stage trains."""

    @property
    def model(self) -> Model:
        """The recipe's, with nothing left to choose."""
        model = self.recipe.model
        if model.lora is None:
            return model
        return model.model_copy(update={"lora": model.lora.model_copy(update={"targets": self.lora_targets})})

    def best_metric(self) -> str | None:
        """The metric that chooses what is exported; the last stage that names one decides."""
        named = [stage.settings.evaluate.best for stage in self.stages if stage.settings.evaluate.best]
        return named[-1] if named else None


def resolve(
    recipe: Recipe, recipe_dir: str, cluster: Cluster, model_facts: ModelFacts, data_facts: DataFacts
) -> RunPlan:
    """Turn a recipe into a plan for this cluster, model and data.

    Raises:
        RecipeError: with every stage whose batch does not divide or whose patterns match nothing.
        EnvironmentProblem: a precision that these devices do not have.
    """
    problems: list[Problem] = []
    stages: list[StagePlan] = []
    for index, stage in enumerate(recipe.stages):
        try:
            stages.append(_resolve_stage(index, stage, cluster, model_facts, data_facts))
        except RecipeError as error:
            problems.extend(error.problems)
    adapters = {parameter.name for parameter in model_facts.parameters if parameter.is_adapter}
    if adapters and not problems and not any(stage.trained_names & adapters for stage in stages):
        problems.append(
            Problem("model.lora", "no stage trains the adapters; add lora to a stage's train, or take it out")
        )
    if problems:
        raise RecipeError(problems)
    return RunPlan(
        recipe=recipe,
        recipe_dir=recipe_dir,
        cluster=cluster,
        labels=data_facts.labels,
        data=data_facts,
        stages=stages,
        lora_targets=None if model_facts.lora_targets is None else list(model_facts.lora_targets),
    )


def _resolve_stage(index: int, stage: Stage, cluster: Cluster, model: ModelFacts, data: DataFacts) -> StagePlan:
    problems = list(_refusals(stage, cluster, model, data))
    found: tuple[Group, ...] = ()
    batch = BatchPlan(global_size=1, micro_size=1, accumulation=1, ranks=1)
    try:
        batch = resolve_batch(stage, cluster.ranks)
    except RecipeError as error:
        problems += error.problems
    try:
        found = groups(stage, model)
    except RecipeError as error:
        problems += error.problems
    if problems:
        raise RecipeError(problems)
    planned = [GroupPlan.of(group) for group in found]
    steps_per_epoch = math.ceil(data.train_rows / batch.global_size)
    steps = stage.steps if stage.steps is not None else steps_per_epoch * (stage.epochs or 1)
    trainable = sum(group.parameters for group in planned)
    every, evaluated = stage.evaluate.every, stage.evaluate.micro_size or 2 * batch.micro_size
    checkpoint_every = "1ep" if stage.checkpoint.every == "auto" else stage.checkpoint.every
    strategy = "ddp" if stage.sharding.strategy == "auto" else stage.sharding.strategy  # `search` may take another
    resolved = stage.model_copy(
        update={
            "precision": resolve_precision(stage, cluster),
            "batch": stage.batch.model_copy(update={"micro_size": batch.micro_size}),
            "sharding": stage.sharding.model_copy(update={"strategy": strategy}),
            "gradient_checkpointing": stage.gradient_checkpointing is True,  # auto: `search` may turn it on
            "checkpoint": stage.checkpoint.model_copy(update={"every": checkpoint_every}),
            "evaluate": stage.evaluate.model_copy(update={"micro_size": evaluated}),
        }
    )
    has_validation = data.validation_rows > 0
    return StagePlan(
        index=index,
        name=stage.name,
        settings=resolved,
        groups=planned,
        trainable=trainable,
        frozen=sum(parameter.numel for parameter in model.parameters) - trainable,
        batch=batch,
        norm_rows=data.train_rows if model.has_batch_norm and stage.batch_norm != "frozen" else None,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        evaluate_every_steps=interval_steps(every, steps_per_epoch)
        if has_validation and every not in ("end", "never")
        else None,
        evaluate_at_end=has_validation and every != "never",
        checkpoint_every_steps=interval_steps(checkpoint_every, steps_per_epoch),
        warnings=warnings(stage, found, model),
    )


def _refusals(stage: Stage, cluster: Cluster, model: ModelFacts, data: DataFacts) -> Iterator[Problem]:
    """What the model and the data do not allow the stage."""
    if stage.evaluate.best is not None and not data.validation_rows:
        message = f"{stage.evaluate.best!r} chooses by the validation split, and there is none; "
        yield Problem(f"stages.{stage.name}.evaluate.best", f"{message}set data.split.validation")
    strategy, master = stage.sharding.strategy, getattr(stage.optimizer, "master", "none")
    is_cast = strategy not in ("auto", "ddp") or master != "none"
    if model.has_batch_norm and is_cast and resolve_precision(stage, cluster) != "fp32":
        under = f"optimizer.master: {master}" if master != "none" else strategy
        message = f"{stage.precision}: under {under} a model with BatchNorm in it cannot be trained in low precision; "
        message += "take fp32, or sharding.strategy: ddp without optimizer.master"
        yield Problem(f"stages.{stage.name}.precision", message)


def resolve_batch(stage: Stage, ranks: int) -> BatchPlan:
    """Split the global batch over ranks and micro-batches.

    Raises:
        RecipeError: the sizes do not divide; the message names the nearest sizes that do.
    """
    size, asked = stage.batch.global_size, stage.batch.micro_size
    path = f"stages.{stage.name}.batch"
    if size % ranks:
        lower, upper = size // ranks * ranks, (size // ranks + 1) * ranks
        near = f"{lower} or {upper}" if lower else str(upper)
        raise RecipeError(
            [Problem(f"{path}.global_size", f"{size} does not divide by {ranks} ranks; nearest that does: {near}")]
        )
    per_rank = size // ranks
    fits = [divisor for divisor in range(1, per_rank + 1) if per_rank % divisor == 0]
    micro = max(divisor for divisor in fits if divisor <= LARGEST_AUTO_MICRO_SIZE) if asked == "auto" else asked
    if micro not in fits:
        raise RecipeError(
            [
                Problem(
                    f"{path}.micro_size",
                    f"{micro} does not divide the {per_rank} samples a rank ({size} over {ranks} ranks); "
                    f"allowed: {', '.join(map(str, fits))}, or auto",
                )
            ]
        )
    return BatchPlan(global_size=size, micro_size=micro, accumulation=per_rank // micro, ranks=ranks)


def resolve_precision(stage: Stage, cluster: Cluster) -> str:
    """``auto`` becomes bf16 on GPUs that have it, else fp32.

    Raises:
        EnvironmentProblem: fp16 on a CPU, or bf16 on a GPU without it.
    """
    on_gpu = cluster.gpus_per_node > 0
    asked = stage.precision
    if asked == "auto":
        return "bf16" if on_gpu and cluster.bf16 else "fp32"
    if asked == "fp16" and not on_gpu:
        raise EnvironmentProblem(
            f"precision fp16 in stage {stage.name}: needs a GPU, and this run is on CPU ranks; use fp32, bf16 or auto"
        )
    if asked == "bf16" and on_gpu and not cluster.bf16:
        raise EnvironmentProblem(
            f"precision bf16 in stage {stage.name}: this GPU ({cluster.gpu_kind}) has no bf16; use fp16 or auto"
        )
    return asked
