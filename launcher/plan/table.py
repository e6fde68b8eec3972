"""A plan as tables for people: the stages, and under each the learning rate of every group.

Owns the layout of ``thawline plan``; `plan.plan_json` is the same for programs. Decides nothing.
"""

from __future__ import annotations

from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.plan import memory_table
from launcher.plan.run_plan import GroupPlan, RunPlan, StagePlan
from launcher.plan.stage_table import StageTable

COLUMNS = (
    "stage", "trains", "trainable", "frozen", "steps", "epochs", "batch = micro x accumulation x ranks", "sharding",
    "precision", "schedule",
)  # fmt: skip
LEFT = frozenset({"stage", "trains", *COLUMNS[6:]})
MOST_GROUPS = 10
"""More rows than this, of layers in a row, are shown as their first and last."""


def tables(plan: RunPlan) -> RenderableType:
    """The whole plan, to print with rich."""
    data = plan.data
    rows = f"{data.train_rows:,} training, {data.validation_rows:,} validation, {data.test_rows:,} test rows"
    lines = [f"{plan.recipe.name}: {plan.recipe.model.source} on {plan.cluster}", rows]
    if plan.labels is not None:
        shown = ", ".join(plan.labels[:10]) + (f" and {len(plan.labels) - 10} more" if len(plan.labels) > 10 else "")
        share = f"; the most common is {data.majority:.1%} of the validation rows" if data.majority is not None else ""
        lines.append(f"{len(plan.labels)} labels: {shown}{share}")
    lines += plan.notes
    return Group(Text("\n".join(lines)), _stages(plan), *memory_table.rows(plan), _rates(plan))


def _stages(plan: RunPlan) -> StageTable:
    return StageTable(COLUMNS, [_stage_row(stage) for stage in plan.stages], LEFT)


def _stage_row(stage: StagePlan) -> tuple[str, ...]:
    settings, batch = stage.settings, stage.batch
    offload = f", offload {settings.sharding.offload}" if settings.sharding.offload != "none" else ""
    again = ", checkpointed" if settings.gradient_checkpointing is True else ""
    masters = f", {stage.master} masters" if stage.master != "none" else ""
    warmup = f", warm-up {settings.schedule.warmup:.0%}" if settings.schedule.warmup else ""
    return (
        stage.name,
        ", ".join(settings.train),
        f"{stage.trainable:,}",
        f"{stage.frozen:,}",
        f"{stage.steps:,}",
        f"{stage.steps / stage.steps_per_epoch:.4g}" if stage.steps_per_epoch else "",
        f"{batch.global_size} = {batch.micro_size} x {batch.accumulation} x {batch.ranks}",
        f"{settings.sharding.strategy}{offload}{again}",
        f"{settings.precision}{masters}",
        f"{settings.schedule.kind}{warmup}",
    )


def _rates(plan: RunPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("parameters of", overflow="fold")
    for name in ("learning rate", "weight decay", "elements"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        for number, row in enumerate(group_rows(stage.groups)):
            table.add_row(*(Text(cell) for cell in (stage.name if number == 0 else "", *row)))
    return table


def group_rows(groups: list[GroupPlan]) -> list[tuple[str, str, str, str]]:
    """Pattern, rate, weight decay, elements; biases and norms, which do not decay, share their pattern's row."""
    merged = []
    for (pattern, rate), alike in groupby(groups, key=lambda group: (group.pattern, group.learning_rate)):
        merged.append((pattern, rate, list(alike)))
    rows = [
        (pattern, f"{rate:.4g}", _decays(alike), f"{sum(group.parameters for group in alike):,}")
        for pattern, rate, alike in merged
    ]
    if len(rows) <= MOST_GROUPS:
        return rows
    hidden = rows[3:-3]
    rates = sorted(rate for _, rate, _ in merged[3:-3])
    elements = sum(group.parameters for _, _, alike in merged[3:-3] for group in alike)
    between = (f"… {len(hidden)} more", f"{rates[0]:.4g} to {rates[-1]:.4g}", "", f"{elements:,}")
    return [*rows[:3], between, *rows[-3:]]


def _decays(groups: list[GroupPlan]) -> str:
    return " / ".join(f"{decay:.4g}" for decay in dict.fromkeys(group.weight_decay for group in groups))
