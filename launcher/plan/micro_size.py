"""Other micro-batches of the same global batch: which there are, and a stage in them.

Owns the way from one micro size to a smaller one, in the plan (`search`) and after a rank ran out of memory in a run:
then the stage goes on in the next smaller one, if the recipe left the size open, and the event is written down. The
global batch, and so what is computed, stays as it was. Imports no torch.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from typing import Any

from launcher.errors import Shortage
from launcher.plan.run_plan import RunPlan, StagePlan
from launcher.recipe import Stage
from launcher.run_dir import RunDir, write_atomic


def smaller(stage: StagePlan) -> list[int]:
    """The micro sizes below the stage's that divide its samples a rank, the largest first; where a BatchNorm trains,
    those whose smallest micro-batch still has the two rows that it needs."""
    batch = stage.batch
    per_rank = batch.micro_size * batch.accumulation
    divisors = [size for size in range(batch.micro_size - 1, 0, -1) if per_rank % size == 0]
    return [size for size in divisors if _has_rows(stage, size)]


def _has_rows(stage: StagePlan, size: int) -> bool:
    return stage.norm_rows is None or smallest_micro_batch(stage, stage.norm_rows, size) > 1


def smallest_micro_batch(stage: StagePlan, num_rows: int, micro_size: int | None = None) -> int:
    """Rows of the smallest micro-batch that a stage over ``num_rows`` meets, in its own or another micro size."""
    batch, size = stage.batch, micro_size or stage.batch.micro_size
    left_over = num_rows % batch.global_size
    if not left_over or stage.steps < stage.steps_per_epoch:
        return size
    chunks = num_micro_batches(left_over, batch.ranks, size) * batch.ranks
    return min(size, left_over // chunks)


def num_micro_batches(num_rows: int, ranks: int, micro_size: int) -> int:
    """Micro-batches a rank needs for a window of ``num_rows``: fewer in a short one, so that each still has rows."""
    return max(1, math.ceil(num_rows / (ranks * micro_size)))


def resized(stage: StagePlan, size: int, asked: Stage) -> StagePlan:
    """The stage in micro-batches of another size. ``asked`` is the recipe's stage, before anything was resolved: what
    is evaluated at once follows where it does not say."""
    per_rank = stage.batch.micro_size * stage.batch.accumulation
    batch = stage.batch.model_copy(update={"micro_size": size, "accumulation": per_rank // size})
    settings = stage.settings.model_copy(update={"batch": stage.settings.batch.model_copy(update={"micro_size": size})})
    changed = stage.model_copy(update={"batch": batch, "settings": settings})
    return _evaluating(changed, asked.evaluate.micro_size or 2 * size)


def _evaluating(stage: StagePlan, size: int) -> StagePlan:
    evaluate = stage.settings.evaluate.model_copy(update={"micro_size": size})
    return stage.model_copy(update={"settings": stage.settings.model_copy(update={"evaluate": evaluate})})


def after_out_of_memory(run_dir: RunDir, shortage: Shortage, rank: int, message: str) -> str | None:
    """Plan the stage anew in which the rank ran out of memory; what to tell.

    A training step goes on in the next smaller micro size, an evaluation with half the samples at once; all ranks read
    the plan when they start again, so they agree. None, and nothing is changed: the recipe says the size, there is no
    smaller one, memory ran out where no micro-batch matters, or another rank has seen to it.
    """
    plan = RunPlan.model_validate_json(run_dir.plan.read_bytes())
    stage = next((stage for stage in plan.stages if stage.name == shortage.stage), None)
    again = _planned_anew(stage, plan.recipe.stages[stage.index], shortage) if stage else None
    if stage is None or again is None:
        return None
    is_step = shortage.during == "step"
    after = again.batch.micro_size if is_step else again.settings.evaluate.micro_size
    where = "micro size" if is_step else "evaluate.micro_size"
    told = f"stage {stage.name}: rank {rank} ran out of memory at {where} {shortage.size}; it goes on with {after}"
    again = _unpredicted(again, told)
    stages = [again if one is stage else one for one in plan.stages]
    write_atomic(run_dir.plan, plan.model_copy(update={"stages": stages}).model_dump_json(indent=1))
    append_event(
        run_dir,
        {
            "event": "out_of_memory", "stage": stage.name, "rank": rank, "during": shortage.during,
            "micro_size": shortage.size, "next_micro_size": after, "message": message,
        },
    )  # fmt: skip
    return told


def shrunk_as_before(run_dir: RunDir, plan: RunPlan) -> RunPlan:
    """A plan made anew, for other ranks say, with no micro size above those that a shortage of memory led to."""
    stages = {stage.name: stage for stage in plan.stages}
    for event in events(run_dir):
        stage = stages.get(event.get("stage", ""))
        if event["event"] != "out_of_memory" or stage is None:
            continue
        most, evaluated = event["next_micro_size"], stage.settings.evaluate.micro_size or 1
        again = None
        if event["during"] == "evaluation":
            again = _evaluating(stage, most) if evaluated > most else None
        elif stage.batch.micro_size > most and (sizes := [size for size in smaller(stage) if size <= most]):
            again = resized(stage, sizes[0], plan.recipe.stages[stage.index])
        if again is not None:
            stages[stage.name] = _unpredicted(again, f"stage {stage.name} ran out of memory before in a larger size")
    return plan.model_copy(update={"stages": [stages[stage.name] for stage in plan.stages]})


def _unpredicted(stage: StagePlan, why: str) -> StagePlan:
    """What was predicted was for another size."""
    return stage.model_copy(update={"memory": None, "fits": None, "time": None, "why": why})


def _planned_anew(stage: StagePlan, asked: Stage, shortage: Shortage) -> StagePlan | None:
    evaluated = stage.settings.evaluate.micro_size
    if shortage.during == "step" and asked.batch.micro_size == "auto" and stage.batch.micro_size == shortage.size:
        sizes = smaller(stage)
        again = resized(stage, sizes[0], asked) if sizes else None
        # An evaluation that had to become smaller stays so.
        return again and _evaluating(again, min(evaluated or 1, again.settings.evaluate.micro_size or 1))
    if shortage.during == "evaluation" and asked.evaluate.micro_size is None and evaluated == shortage.size > 1:
        return _evaluating(stage, shortage.size // 2)
    return None


def events(run_dir: RunDir) -> list[dict[str, Any]]:
    """What is written down, the oldest first; a line that a crash cut off is left out."""
    if not run_dir.events.is_file():
        return []
    found = []
    for line in run_dir.events.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def append_event(run_dir: RunDir, event: dict[str, Any]) -> None:
    """Write down, with its time, what made a run go on otherwise than it was planned."""
    with run_dir.events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time()} | event, ensure_ascii=False) + "\n")
