"""A run whose stages are several jobs, each with its own machines: where one ends, and what the next plans anew.

Owns the two questions of such a job: which stages are its own (`stop.UNTIL`), and whether the run stands
between two stages, where a model is a folder of tensors and any number of ranks may go on. Inside a stage it refuses to
plan anew: the rows of a step and the engine's state are those of its ranks. `session` and `walk` call it in the job,
`slurm_submit` before.
"""

from __future__ import annotations

from pathlib import Path

from launcher import recipe_io
from launcher.cluster import Cluster
from launcher.errors import UserError
from launcher.plan import RunPlan, StagePlan
from launcher.run_dir import RunDir, parse_checkpoint, write_atomic
from launcher.stop import last_stage


def of_this_job(plan: RunPlan) -> list[StagePlan]:
    """The stages up to the last of this job, those that earlier jobs have finished included."""
    names = [stage.name for stage in plan.stages]
    last = last_stage()
    return plan.stages if last is None else plan.stages[: names.index(last) + 1]


def num_done(run: RunDir, plan: RunPlan) -> int:
    """How many stages have saved their end, by the name of the newest checkpoint."""
    name = parse_checkpoint(run.latest.read_text().strip()) if run.latest.is_file() else None
    if name is None:
        return 0
    return name.stage_index + (name.step >= plan.stages[name.stage_index].steps)


def is_between_stages(run: RunDir, plan: RunPlan) -> bool:
    """Whether the newest checkpoint is the end of a stage, or the untrained model, or there is none."""
    name = parse_checkpoint(run.latest.read_text().strip()) if run.latest.is_file() else None
    return name is None or name.step == 0 or name.step >= plan.stages[name.stage_index].steps


def planned_for(run: RunDir, plan: RunPlan, cluster: Cluster) -> RunPlan:
    """The plan for the machines of this job; written anew when they are others and the run is between two stages.

    Raises: UserError when the data has changed since the first stage was planned.
    """
    if last_stage() is None or _is_alike(plan.cluster, cluster) or not is_between_stages(run, plan):
        return plan
    from launcher import survey  # imports torch, transformers and datasets

    _, origins = recipe_io.load_with_origins(run.recipe)
    fresh = survey.prepare(plan.recipe, Path(plan.recipe_dir), cluster, origins)
    if found := fresh.data.differences(plan.data):
        raise UserError(f"the data is not what the first stage was planned for: {'; '.join(found)}; restore it")
    done = num_done(run, plan)
    joined = fresh.model_copy(update={"stages": [*plan.stages[:done], *fresh.stages[done:]]})
    write_atomic(run.plan, joined.model_dump_json(indent=1))
    return joined


def _is_alike(one: Cluster, other: Cluster) -> bool:
    def sizes(cluster: Cluster) -> tuple[int, int, int]:
        return cluster.nodes, cluster.ranks_per_node, cluster.gpus_per_node

    return sizes(one) == sizes(other)
