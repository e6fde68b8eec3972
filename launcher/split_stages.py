"""A run that goes on with other machines: stages that are jobs of their own, and jobs that lost a node.

Owns the questions of such a job: which stages are its own (`stop.UNTIL`), and whether other ranks may go on from where
the run stands. Between two stages a model is a folder of tensors, and any number may; inside one only where the
checkpoint holds the same (`cluster.RANKS_VARY`): the engine's own files are those of its ranks. What is left is then
planned anew, with the same global batch. `session` and `walk` call it in the job, `slurm.submit` before.
"""

from __future__ import annotations

from pathlib import Path

from launcher.cluster import Cluster, ranks_vary
from launcher.errors import UserError
from launcher.plan import RunPlan, StagePlan, micro_size
from launcher.recipe import reading
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


def is_for_any_ranks(run: RunDir, plan: RunPlan) -> bool:
    """Whether another number of ranks can go on from the newest checkpoint."""
    if is_between_stages(run, plan):
        return True
    newest = run.checkpoints / run.latest.read_text().strip()
    return (newest / "model").is_dir() and (newest / "optimizer").is_dir()


def planned_for(run: RunDir, plan: RunPlan, cluster: Cluster) -> RunPlan:
    """The plan for the machines of this job; written anew when they are others and can go on.

    Raises: UserError when the data has changed since the first stage was planned.
    """
    may_differ = ranks_vary() or last_stage() is not None
    if not may_differ or _is_alike(plan.cluster, cluster) or not is_for_any_ranks(run, plan):
        return plan
    from launcher import data, survey  # imports torch, transformers and datasets

    _, origins = reading.load_with_origins(run.recipe)
    recipe, recipe_dir, skipped = plan.recipe, Path(plan.recipe_dir), plan.data.skipped
    # What was left out stays so, repaired or not: without these rows the run goes on, with them it is another.
    known = data.load(recipe.data, recipe.task, recipe_dir, skipped).facts() if skipped else None
    fresh = survey.prepare(recipe, recipe_dir, cluster, origins, known)
    if found := fresh.data.differences(plan.data):
        raise UserError(f"the data is not what the first stage was planned for: {'; '.join(found)}; restore it")
    done = num_done(run, plan)
    fresh = micro_size.shrunk_as_before(run, fresh)
    joined = fresh.model_copy(update={"stages": [*plan.stages[:done], *fresh.stages[done:]]})
    write_atomic(run.plan, joined.model_dump_json(indent=1))
    at = run.latest.read_text().strip() if run.latest.is_file() else ""
    micro_size.append_event(
        run, {"event": "other_ranks", "before": str(plan.cluster), "after": str(cluster), "checkpoint": at}
    )
    return joined


def _is_alike(one: Cluster, other: Cluster) -> bool:
    def sizes(cluster: Cluster) -> tuple[int, int, int]:
        return cluster.nodes, cluster.ranks_per_node, cluster.gpus_per_node

    return sizes(one) == sizes(other)
