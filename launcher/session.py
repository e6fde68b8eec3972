"""What is decided before any training: is this run new, unfinished, finished, or another one's folder.

Owns the writing of ``recipe.yaml`` and ``plan.json``, once.
A run that exists keeps its plan: what was asked now is compared with it, and a difference is an error that says where,
unless nothing that it trained is saved yet: then the run is planned anew.

`cli` claims a run for this machine's ranks without importing torch. What is wrong with the data of a new one is told
then, at once. The first rank plans it, whoever started it: it has imported what planning needs, and so only once.
Starts no ranks; that is `launch`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher import cluster as clusters
from launcher import (
    data_survey,
    host_limits,
    hub_access,
    orphans,
    oversubscription,
    phases,
    proof,
    rank_error,
    run_lock,
    split_stages,
)
from launcher.cluster import Cluster
from launcher.errors import UserError
from launcher.plan import RunPlan, free_space
from launcher.plan.data_facts import DataFacts
from launcher.plan.saved import read_plan
from launcher.recipe import Recipe, differences, reading
from launcher.run_dir import RunDir, parse_checkpoint, write_atomic
from launcher.status import new_status, read_status, write_status

log = logging.getLogger(__name__)
RUNS = Path("runs")
Standing = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True)
class Claim:
    """A run that this process holds, to start ranks for it."""

    path: Path
    cluster: Cluster
    standing: Standing
    """New: there is no plan yet, the first rank makes it."""
    arguments: tuple[str, ...]
    """Of ``launcher.worker``."""
    is_folder_new: bool = False


@dataclass(frozen=True)
class Session:
    """A run that is ready to go on, or has nothing left to do."""

    path: Path
    plan: RunPlan
    standing: Standing


def claim_run(
    recipe_path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None, ranks: int | None = None
) -> Claim:
    """Take the run of a recipe for the ranks of this machine: all its GPUs, or one CPU rank, or ``ranks``.

    The run is the one that ``run_dir`` (``runs/NAME``) holds already, or a new one, which is planned when it starts.

    Raises:
        UserError: the recipe is wrong, or the folder holds another run; the message has each difference.
        EnvironmentProblem: the machine lacks what was asked for.
    """
    recipe, origins = reading.load_with_origins(recipe_path, overrides)
    run = RunDir(run_dir or RUNS / recipe.name)
    if _holds(run, recipe):
        return _claimed(run, ranks)
    run.require_possible()
    cluster = _cluster(ranks, from_environment=False)
    oversubscription.require_room(cluster, host_limits.available_bytes(), f"--ranks {ranks}")
    found = data_survey.look(recipe, recipe_path.resolve().parent, cluster.ranks, origins)
    is_folder_new = not run.path.exists()
    run.create()
    run_lock.take(run)
    if _holds(run, recipe):  # a process that came first has planned it meanwhile
        return _claimed(run, ranks)
    # Who looks at it before it has a plan sees that it starts.
    write_status(run, new_status(run, recipe.name, len(recipe.stages), cluster.ranks, os.getpid(), "importing"))
    hub_access.stay_offline_if_unreachable(recipe)  # said here, where the user sees it, and so for all ranks
    changes = (part for change in overrides for part in ("--set", change))
    arguments = [str(recipe_path), "--run-dir", str(run.path), "--unplanned", *changes]
    if found is not None:
        write_atomic(run.data_facts, found.model_dump_json())
        arguments += ["--data-facts", str(run.data_facts)]
    return Claim(run.path, cluster, "new", tuple(arguments), is_folder_new)


def withdraw(claim: Claim) -> None:
    """Leave no trace of a run that was not planned: its ranks' logs say no more than their error did.

    A folder that was there before, or that somebody has put anything else in, stays.
    """
    run = RunDir(claim.path)
    paths = (run.logs, run.checkpoints, run.stages, run.launcher_lock, run.status, run.data_facts)
    ours = {path.name for path in paths}
    if not claim.is_folder_new or not {path.name for path in run.path.iterdir()} <= ours:
        return
    # Out of the way at once: a network's file system keeps what is open, and this process has the lock open.
    doomed = run.path.with_name(f".{run.path.name}.{os.getpid()}")
    with suppress(OSError):
        run.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def reopen_run(run_dir: Path, ranks: int | None = None, accept: str | None = None) -> Claim:
    """Take the run in a folder, to go on with it; ``accept`` is a stage whose proof does not hold.

    Raises: UserError when there is none, EnvironmentProblem when the machine is not what it was planned for.
    """
    run = RunDir(run_dir)
    if not run.plan.is_file():
        read_status(run)  # its error says what is wrong with the folder
        raise UserError(f"{run_dir} has no plan.json, so nothing was started there; use `thawline run RECIPE`")
    if accept is not None:
        proof.accept(run, [stage.name for stage in read_plan(run).stages], accept)
    return _claimed(run, ranks)


def open_run(
    recipe_path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None, data_facts: Path | None = None
) -> Session:
    """For the ranks that were started: the run of a recipe, planned and written now, or the one that is there already.

    ``data_facts`` is where `claim_run` left what it found in the data; None: the data is read now.

    Raises:
        UserError: the recipe is wrong, or the folder holds another run; the message has each difference.
        EnvironmentProblem: the machine lacks what was asked for.
    """
    recipe, origins = reading.load_with_origins(recipe_path, overrides)
    run = RunDir(run_dir or RUNS / recipe.name)
    if _holds(run, recipe):
        return _reopened(run, None, from_environment=True)
    run.require_possible()
    hub_access.stay_offline_if_unreachable(recipe)
    from launcher import survey  # imports torch, transformers and datasets

    cluster = clusters.with_own_disk(_cluster(None, from_environment=True))
    oversubscription.require_room(cluster, cluster.host_memory_bytes, f"LOCAL_WORLD_SIZE={cluster.ranks_per_node}")
    facts = DataFacts.model_validate_json(data_facts.read_text()) if data_facts is not None else None
    plan = survey.prepare(recipe, recipe_path.resolve().parent, cluster, origins, facts)
    oversubscription.require_memory(plan)
    free_space.require(plan, run)
    run.create()
    run_lock.take(run)
    if run.plan.is_file():  # an earlier one, or that of a process that came first while this one planned
        if not _is_replaceable(run, recipe):
            return _reopened(run, None, from_environment=True)
        log.warning("%s held another recipe's plan and nothing trained by it: it is planned anew", run.path)
        _clear(run)
    write_atomic(run.recipe, reading.to_yaml(reading.raw(recipe_path, overrides)))
    if plan.data.skipped:
        from launcher.data import bad_rows

        write_atomic(run.skipped, bad_rows.as_lines(plan.data.skipped))
    write_atomic(run.plan, plan.model_dump_json(indent=1))
    run.data_facts.unlink(missing_ok=True)  # they are in the plan
    _announce(run, plan, orphans.launcher_pid())
    return Session(run.path, plan, "new")


def make_way(
    run: RunDir, recipe: Recipe, nodes: int, ranks_per_node: int, *, is_split: bool = False, varies: bool = False
) -> None:
    """Let a job that starts later have the run: what another recipe left that trained nothing yet goes.

    ``is_split``: the job trains one stage, and may have other nodes and ranks where the run is between two.
    ``varies``: the job may be given fewer nodes than it asks for.

    Raises: UserError when the folder holds a finished run, another recipe's, one that was planned for other nodes or
        ranks, or one that is being worked on.
    """
    if not run.plan.is_file():
        return
    if run.status.is_file() and read_status(run).state == "finished":
        raise UserError(f"{run.path} is finished; `thawline export` copies its model, another --run-dir starts anew")
    if _is_replaceable(run, recipe):
        _clear(run)
        return
    plan = read_plan(run)
    planned = plan.cluster
    if (is_split or varies) and split_stages.is_for_any_ranks(run, plan):
        return
    if varies:
        raise UserError(
            f"{run.path} stands inside a stage, in a checkpoint that only {planned} can go on from, since what wrote "
            f"it had no slurm.min_nodes; submit it without min_nodes, and with --nodes {planned.nodes}"
        )
    if (planned.nodes, planned.ranks_per_node) != (nodes, ranks_per_node):
        raise UserError(
            f"{run.path} was planned for {planned}, and this job has {nodes} x {ranks_per_node} ranks: a run goes on "
            f"with what it started with; submit it with --nodes {planned.nodes} and {planned.ranks_per_node} ranks on "
            "each, or start anew in another --run-dir"
        )


def _holds(run: RunDir, recipe: Recipe) -> bool:
    """Whether the folder holds a run of this recipe, to go on with or finished.

    Raises: UserError as `_is_replaceable`.
    """
    try:
        is_planned = run.plan.is_file()
    except OSError as error:
        raise run.refusal(run.path, error) from error
    return is_planned and not _is_replaceable(run, recipe)


def _is_replaceable(run: RunDir, recipe: Recipe) -> bool:
    """Whether the run's plan may give way to that of ``recipe``: it is another one's, and nothing was saved under it.

    The run is this process's from then on: no other one plans or trains in it meanwhile.

    Raises: UserError when it is another recipe's and has a checkpoint or is finished, or another process is at it.
    """
    found = differences.between(read_plan(run).recipe, recipe)
    if not found:
        return False
    if not _has_saved(run):
        run_lock.take(run)
        # Who held the lock may have written until it was ours.
        found = differences.between(read_plan(run).recipe, recipe)
        if not found or not _has_saved(run):
            return bool(found)
    lines = "\n".join(f"  {line}" for line in found)
    raise UserError(
        f"{run.path} holds a run of another recipe:\n{lines}\n"
        f"Choose another --run-dir, or delete {run.path} to start anew; "
        f"`{run.going_on()}` goes on with it as it was."
    )


def _clear(run: RunDir) -> None:
    """Take out what a recipe left that trained nothing."""
    for file in (run.plan, run.status, run.metrics, run.wandb_id, run.latest, run.events, run.skipped):
        file.unlink(missing_ok=True)
    rank_error.clear(run)
    for folder in (run.checkpoints, run.stages):  # its model, untrained
        shutil.rmtree(folder, ignore_errors=True)
    run.create()


def _has_saved(run: RunDir) -> bool:
    """Whether there is a committed checkpoint of a trained step, or the run is finished."""
    folders = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    names = [name for folder in folders if (name := parse_checkpoint(folder.name))]
    if any((name.stage_index, name.step) != (0, 0) for name in names) or run.model.exists():
        return True
    return run.status.is_file() and read_status(run).state == "finished"


def _reopened(run: RunDir, ranks: int | None, from_environment: bool) -> Session:
    if run.status.is_file() and read_status(run).state == "finished":
        return Session(run.path, read_plan(run), "finished")
    run_lock.take(run)  # what follows may write the plan anew
    plan = read_plan(run)
    if from_environment:
        plan = split_stages.planned_for(run, plan, clusters.with_own_disk(_cluster(ranks, from_environment)))
    _refuse_other_cluster(run, plan, ranks, from_environment)
    hub_access.stay_offline_if_unreachable(plan.recipe)
    _announce(run, plan, orphans.launcher_pid() if from_environment else os.getpid())
    return Session(run.path, plan, "unfinished")


def _claimed(run: RunDir, ranks: int | None) -> Claim:
    found = _reopened(run, ranks, from_environment=False)
    cluster = found.plan.cluster
    if found.standing != "finished":
        oversubscription.require_room(cluster, host_limits.available_bytes(), f"{cluster} of {run.path}")
    return Claim(run.path, cluster, found.standing, (str(run.recipe), "--run-dir", str(run.path)))


def _refuse_other_cluster(run: RunDir, plan: RunPlan, ranks: int | None, from_environment: bool) -> None:
    """A plan holds for the ranks it was made for."""
    planned = plan.cluster
    now = _cluster(ranks or planned.ranks_per_node, from_environment)
    same = all(getattr(now, size) == getattr(planned, size) for size in ("nodes", "ranks_per_node", "gpus_per_node"))
    if not same or (planned.bf16 and not now.bf16):
        raise UserError(
            f"{run.path} was planned for {planned}, and this is {now}: a run goes on with what it started with; "
            f"{_elsewhere(run)}, or start anew in another --run-dir"
        )


def _elsewhere(run: RunDir) -> str:
    """Where the machines are that a run was planned for."""
    return f"go on with it there: {run.going_on()}" if run.command.is_file() else "give it that"


def _cluster(ranks: int | None, from_environment: bool) -> Cluster:
    if not from_environment:
        return clusters.here(ranks)
    return clusters.from_env() or clusters.here(1)  # accelerate starts a single process without RANK


def _announce(run: RunDir, plan: RunPlan, launcher_pid: int | None) -> None:
    run.create()
    phases.knows(run)
    phase = phases.current() or "importing"
    write_status(run, new_status(run, plan.recipe.name, len(plan.stages), plan.cluster.ranks, launcher_pid, phase))
