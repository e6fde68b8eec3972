"""Other micro-batches of the same global batch: which there are, and a stage in them.

Owns the way from one micro size to a smaller one, in the plan (`fit`) and after a rank ran out of memory in a run: then
the stage goes on in the next smaller one, if the recipe left the size open, and the event is written down. The global
batch, and so what is computed, stays as it was. Imports no torch.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from launcher.plan import RunPlan, StagePlan
from launcher.recipe import Stage
from launcher.run_dir import RunDir, write_atomic


def smaller(stage: StagePlan) -> list[int]:
    """The micro sizes below the stage's that divide its samples a rank, the largest first."""
    batch = stage.batch
    per_rank = batch.micro_size * batch.accumulation
    return [size for size in range(batch.micro_size - 1, 0, -1) if per_rank % size == 0]


def resized(stage: StagePlan, size: int, asked: Stage) -> StagePlan:
    """The stage in micro-batches of another size. ``asked`` is the recipe's stage, before anything was resolved: what
    is evaluated at once follows where it does not say."""
    per_rank = stage.batch.micro_size * stage.batch.accumulation
    batch = stage.batch.model_copy(update={"micro_size": size, "accumulation": per_rank // size})
    changes = {
        "batch": stage.settings.batch.model_copy(update={"micro_size": size}),
        "evaluate": stage.settings.evaluate.model_copy(update={"micro_size": asked.evaluate.micro_size or 2 * size}),
    }
    return stage.model_copy(update={"batch": batch, "settings": stage.settings.model_copy(update=changes)})


def after_out_of_memory(run_dir: RunDir, name: str, rank: int, message: str) -> str | None:
    """Plan the stage of that name, in which the rank ran out of memory, with the next smaller micro size; what to tell.

    None, and nothing is changed: the recipe says the size, it is 1, or the stage is of another plan. All ranks read the
    plan when they start again, so they agree.
    """
    plan = RunPlan.model_validate_json(run_dir.plan.read_bytes())
    stage = next((stage for stage in plan.stages if stage.name == name), None)
    if stage is None:
        return None
    asked = plan.recipe.stages[stage.index]
    sizes = smaller(stage)
    if asked.batch.micro_size != "auto" or not sizes:
        return None
    before, after = stage.batch.micro_size, sizes[0]
    told = f"stage {name}: rank {rank} ran out of memory at micro size {before}; it goes on with {after}"
    # What was predicted was for the other size.
    again = resized(stage, after, asked).model_copy(update={"memory": None, "fits": None, "why": told})
    stages = [again if one is stage else one for one in plan.stages]
    write_atomic(run_dir.plan, plan.model_copy(update={"stages": stages}).model_dump_json(indent=1))
    _append(
        run_dir.events,
        {
            "time": time.time(), "event": "out_of_memory", "stage": name, "rank": rank,
            "micro_size": before, "next_micro_size": after, "message": message,
        },
    )  # fmt: skip
    return told


def events(run_dir: RunDir) -> list[dict[str, Any]]:
    """What is written down, the oldest first."""
    if not run_dir.events.is_file():
        return []
    return [json.loads(line) for line in run_dir.events.read_text(encoding="utf-8").splitlines()]


def _append(path: Path, event: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, ensure_ascii=False) + "\n")
