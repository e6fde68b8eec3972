"""What a command decides before any rank starts: is this run new, unfinished, finished, or another one's folder.

Owns the writing of ``recipe.yaml`` and ``plan.json``, once, and the lock that lets one process at a time work on a run.
A run that exists keeps its plan: what was asked now is compared with it, and a difference is an error that says where,
unless nothing that it trained is saved yet: then the run is planned anew.
Called by `cli`, and by the first rank when the user's own launcher started it. Starts no ranks; that is `launch`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from launcher import cluster as clusters
from launcher import hub_access, rank_error, recipe_io, split_stages
from launcher.cluster import Cluster
from launcher.errors import UserError
from launcher.plan import RunPlan
from launcher.recipe import Recipe
from launcher.run_dir import RunDir, parse_checkpoint, write_atomic
from launcher.status import new_status, read_status, write_status

log = logging.getLogger(__name__)
RUNS = Path("runs")
Standing = Literal["new", "unfinished", "finished"]
_held: dict[Path, IO[str]] = {}
"""Locks of this process. The kernel lets go of them when it ends, however it ends."""


@dataclass(frozen=True)
class Session:
    """A run that is ready to go on, or has nothing left to do."""

    path: Path
    plan: RunPlan
    standing: Standing


def open_run(
    recipe_path: Path,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    *,
    ranks: int | None = None,
    from_environment: bool = False,
) -> Session:
    """The run of a recipe: a new one, planned and written; or the one that ``run_dir`` (``runs/NAME``) holds already.

    ``from_environment``: the ranks are those that torchrun or accelerate started; else all of this machine's GPUs, or
    one CPU rank, or ``ranks``.

    Raises:
        UserError: the recipe is wrong, or the folder holds another run; the message has each difference.
        EnvironmentProblem: the machine lacks what was asked for.
    """
    recipe, origins = recipe_io.load_with_origins(recipe_path, overrides)
    run = RunDir(run_dir or RUNS / recipe.name)
    if run.plan.is_file() and not _is_replaceable(run, recipe):
        return _reopened(run, ranks, from_environment)
    hub_access.stay_offline_if_unreachable(recipe)
    from launcher import survey  # imports torch, transformers and datasets

    plan = survey.prepare(recipe, recipe_path.resolve().parent, _cluster(ranks, from_environment), origins)
    run.create()
    lock(run)
    if run.plan.is_file():  # an earlier one, or that of a process that came first while this one planned
        if not _is_replaceable(run, recipe):
            return _reopened(run, ranks, from_environment)
        log.warning("%s held another recipe's plan and nothing trained by it: it is planned anew", run.path)
        _clear(run)
    write_atomic(run.recipe, recipe_io.to_yaml(recipe_io.raw(recipe_path, overrides)))
    write_atomic(run.plan, plan.model_dump_json(indent=1))
    _announce(run, plan, from_environment)
    return Session(run.path, plan, "new")


def reopen_run(run_dir: Path, ranks: int | None = None) -> Session:
    """The run in a folder, to go on with it.

    Raises: UserError when there is none, EnvironmentProblem when the machine is not what it was planned for.
    """
    run = RunDir(run_dir)
    if not run.plan.is_file():
        read_status(run)  # its error says what is wrong with the folder
        raise UserError(f"{run_dir} has no plan.json, so nothing was started there; use `thawline run RECIPE`")
    return _reopened(run, ranks, from_environment=False)


def read_plan(run_dir: Path) -> RunPlan:
    """The plan of the run in a folder.

    Raises: UserError when there is none.
    """
    run = RunDir(run_dir)
    if not run.plan.is_file():
        raise UserError(f"{run_dir} has no plan.json; name the folder of a run")
    return _read_plan(run)


def make_way(run: RunDir, recipe: Recipe, nodes: int, ranks_per_node: int, *, is_split: bool = False) -> None:
    """Let a job that starts later have the run: what another recipe left that trained nothing yet goes.

    ``is_split``: the job trains one stage, and may have other nodes and ranks where the run is between two.

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
    plan = _read_plan(run)
    planned = plan.cluster
    if is_split and split_stages.is_between_stages(run, plan):
        return
    if (planned.nodes, planned.ranks_per_node) != (nodes, ranks_per_node):
        raise UserError(
            f"{run.path} was planned for {planned}, and this job has {nodes} x {ranks_per_node} ranks: a run goes on "
            f"with what it started with; submit it with --nodes {planned.nodes} and {planned.ranks_per_node} ranks on "
            "each, or start anew in another --run-dir"
        )


def lock(run: RunDir) -> None:
    """Take the run for this process until it ends.

    Raises: UserError when another process has it.
    """
    key = run.path.resolve()
    if key in _held:
        return
    file = run.launcher_lock.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"{run.path} is being worked on by process {holder}; wait for it (`thawline watch {run.quoted}`), stop it, "
            "or choose another --run-dir"
        ) from error
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): nothing keeps a second thawline from it", run.path, error)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held[key] = file


def copy_model(run: RunDir, folder: Path) -> Path:
    """Copy a finished run's model to a new folder.

    Raises: UserError when there is no model yet, or the folder has something in it.
    """
    if not run.model.is_dir():
        state = read_status(run).state
        raise UserError(f"{run.path} has no model yet, it is {state}; `{run.going_on()}` goes on with it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty; name a new folder")
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    return folder


def differences(before: Recipe, after: Recipe) -> list[str]:
    """``path: old in the run, new in the recipe`` for each value that differs; stages go by name.

    What a stage only takes over from the recipe's top is said once, at the top.
    """
    old, new = (_by_stage_name(recipe) for recipe in (before, after))
    for side in (old, new):
        for part in (side, *side["stages"].values()):
            del part["slurm"]  # where it waits and runs changes nothing in what is trained
    if list(old["stages"]) != list(new["stages"]):
        listed = [", ".join(side["stages"]) for side in (old, new)]
        return [f"stages: {listed[0]} in the run, {listed[1]} in the recipe"]
    stages = old.pop("stages"), new.pop("stages")
    found = dict(_leaves(old, new))
    for name in stages[0]:
        inside = dict(_leaves(stages[0][name], stages[1][name]))
        own = {path: pair for path, pair in inside.items() if found.get(path) != pair}
        found |= {f"stages.{name}.{path}": pair for path, pair in own.items()}
    return [f"{path}: {was!r} in the run, {now!r} in the recipe" for path, (was, now) in found.items()]


def _is_replaceable(run: RunDir, recipe: Recipe) -> bool:
    """Whether the run's plan may give way to that of ``recipe``: it is another one's, and nothing was saved under it.

    The run is this process's from then on: no other one plans or trains in it meanwhile.

    Raises: UserError when it is another recipe's and has a checkpoint or is finished, or another process is at it.
    """
    found = differences(_read_plan(run).recipe, recipe)
    if not found:
        return False
    if not _has_saved(run):
        lock(run)
        found = differences(_read_plan(run).recipe, recipe)  # who held the lock may have written until it was ours
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
    for file in (run.plan, run.status, run.metrics, run.wandb_id, run.latest, run.events):
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
    plan = _read_plan(run)
    if run.status.is_file() and read_status(run).state == "finished":
        return Session(run.path, plan, "finished")
    if from_environment:
        plan = split_stages.planned_for(run, plan, _cluster(ranks, from_environment))
    _refuse_other_cluster(run, plan, ranks, from_environment)
    lock(run)
    hub_access.stay_offline_if_unreachable(plan.recipe)
    _announce(run, plan, from_environment)
    return Session(run.path, plan, "unfinished")


def _refuse_other_cluster(run: RunDir, plan: RunPlan, ranks: int | None, from_environment: bool) -> None:
    """A plan holds for the ranks it was made for."""
    planned = plan.cluster
    now = _cluster(ranks or planned.ranks_per_node, from_environment)
    same = (now.nodes, now.ranks_per_node, now.gpus_per_node) == (
        planned.nodes,
        planned.ranks_per_node,
        planned.gpus_per_node,
    )
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


def _announce(run: RunDir, plan: RunPlan, from_environment: bool) -> None:
    run.create()
    launcher_pid = None if from_environment else os.getpid()
    write_status(run, new_status(run, plan.recipe.name, len(plan.stages), plan.cluster.ranks, launcher_pid))


def _read_plan(run: RunDir) -> RunPlan:
    try:
        return RunPlan.model_validate_json(run.plan.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{run.plan} is not a plan of this version of thawline: {where}: {first['msg']}; "
            "go on with the version that wrote it, or start anew in another --run-dir"
        ) from error


def _by_stage_name(recipe: Recipe) -> dict[str, Any]:
    plain = recipe.model_dump(mode="json")
    return plain | {"stages": {stage["name"]: stage for stage in plain["stages"]}}


def _leaves(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _leaves(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}", (was, now)
