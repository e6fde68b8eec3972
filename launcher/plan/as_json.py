"""A plan for programs: what ``thawline plan --json`` prints. `table` is the same for people."""

from __future__ import annotations

from typing import Any

from launcher.plan.run_plan import RunPlan, StagePlan


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """What ``thawline plan --json`` prints: the plan without the parameter names."""
    return {
        "recipe": plan.recipe.name,
        "cluster": plan.cluster.model_dump(mode="json"),
        "data": plan.data.model_dump(mode="json"),
        "lora": plan.model.lora.model_dump() if plan.model.lora else None,
        "notes": plan.notes,
        "warnings": plan.warnings,
        "stages": [_stage_json(stage) for stage in plan.stages],
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "name": stage.name,
        "parameters": {"trainable": stage.trainable, "frozen": stage.frozen},
        "groups": [group.model_dump(exclude={"names"}) for group in stage.groups],
        "sharding": stage.settings.sharding.model_dump(),
        "gradient_checkpointing": stage.settings.gradient_checkpointing,
        "batch": {
            "global": stage.batch.global_size,
            "micro": stage.batch.micro_size,
            "accumulation": stage.batch.accumulation,
            "ranks": stage.batch.ranks,
        },
        "precision": stage.settings.precision,
        "schedule": stage.settings.schedule.model_dump(),
        "steps": stage.steps,
        "steps_per_epoch": stage.steps_per_epoch,
        "epochs": stage.steps / stage.steps_per_epoch if stage.steps_per_epoch else None,
        "memory": stage.memory.model_dump() if stage.memory else None,
        "fits": stage.fits,
        "why": "; ".join(text for text in (stage.why, stage.choice) if text),
        "warnings": stage.warnings,
        "disk": stage.disk.model_dump() if stage.disk else None,
        "step_time": stage.time.model_dump() if stage.time else None,
    }
