"""``thawline submit``: a recipe becomes a job in SLURM's queue.

Owns the order of things: read and check the recipe, render the script (`slurm.script`), make the folders that SLURM
writes to, ask it with ``sbatch --test-only`` whether such a job could ever start, submit. Trains nothing and plans
nothing: the first rank plans when the job runs, on the machine that it runs on. Called by `cli`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from launcher import session, split_stages
from launcher.errors import EnvironmentProblem, RecipeError, UserError
from launcher.plan import resolve_batch
from launcher.plan.saved import read_plan
from launcher.recipe import Recipe, reading
from launcher.recipe.slurm import Slurm
from launcher.run_dir import RunDir, write_atomic
from launcher.slurm import array as slurm_array
from launcher.slurm import queue
from launcher.slurm.script import Job, render
from launcher.status import read_status

ANSWER_TIMEOUT_S = 120
_UNREACHABLE = ("unable to contact slurm controller", "connection refused", "munge", "socket timed out", "slurm.conf")
"""What SLURM's commands say, in lower case, when it is not the job that is wrong."""
_ABOUT_RIGHTS = re.compile("account|qos", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    recipe_path: Path
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    """None: ``runs/NAME``."""
    flags: Mapping[str, object] = field(default_factory=dict)
    """Keys of the ``slurm:`` section that flags set; None leaves the recipe's."""
    split_stages: bool = False
    """One job a stage, each after the one before."""

    @cached_property
    def recipe(self) -> Recipe:
        """As it is loaded with the overrides and flags; RecipeError when it is wrong."""
        return reading.load(self.recipe_path, [*self.overrides, *as_overrides(self.flags)])

    @cached_property
    def run(self) -> RunDir:
        return RunDir((self.run_dir or session.RUNS / self.recipe.name).absolute())


def scripts(request: Request) -> list[str]:
    """The sbatch scripts, one, or one a stage; touches no disk and no SLURM.

    Raises: UserError for what is wrong with the recipe, an option or a path.
    """
    stages = [stage.name for stage in request.recipe.stages] if request.split_stages else [""]
    return [
        _script(request, stage, after=f"JOB_OF_{before}" if before else "") for before, stage in pairwise(["", *stages])
    ]


def submit(request: Request) -> list[str]:
    """Queue a run; return the numbers of its jobs: one, the array's, or one a stage.

    Raises:
        UserError: as `scripts`; or the folder holds another run, a finished one, or one that has a job already; or no
            such job can ever start here.
        EnvironmentProblem: SLURM is not there, or does not answer.
    """
    scripts(request)
    program = shutil.which("sbatch")
    if program is None:
        raise EnvironmentProblem(
            "sbatch is not on PATH, so this machine submits to no SLURM; run this on the cluster's login node, or look "
            "at the script with --dry-run"
        )
    run, tasks = request.run, slurm_array.tasks(request.recipe.slurm.array)
    stages = _make_way(request, tasks)
    folder = run.path / "slurm"
    for each in [run, *(slurm_array.task_run(run, number) for number in range(len(tasks)))]:
        each.require_possible()
        (each.path / "slurm").mkdir(parents=True, exist_ok=True)  # where it is missing the job fails without a log
    files = [folder / (f"{stage}.sbatch" if stage else "job.sbatch") for stage in stages]
    for file, stage in zip(files, stages, strict=True):
        write_atomic(file, _script(request, stage, after=""))
        _answer([program, "--test-only", str(file)], file, _options(request, stage))
    numbers: list[str] = []
    for file, stage in zip(files, stages, strict=True):
        write_atomic(file, _script(request, stage, after=numbers[-1] if numbers else ""))
        try:
            answer = _answer([program, "--parsable", str(file)], file, _options(request, stage))
            numbers.append(answer.strip().partition(";")[0])
        except (UserError, EnvironmentProblem) as error:
            raise type(error)(f"{error}{_taken_back(run, numbers)}") from error
        (folder / numbers[-1]).mkdir(exist_ok=True)
        write_atomic(folder / numbers[-1] / "job.sbatch", file.read_text(encoding="utf-8"))
        write_atomic(folder / "job_id", "".join(f"{number}\n" for number in numbers))
    write_atomic(run.command, f"{as_command(request)}\n")
    if tasks:
        slurm_array.write(run, tasks)
    for number in range(len(tasks)):
        task = slurm_array.task_run(run, number)
        write_atomic(task.path / "slurm" / "job_id", f"{numbers[0]}_{number}\n")
        write_atomic(task.command, f"{as_command(request)}\n")
    return numbers


def _taken_back(run: RunDir, numbers: Sequence[str]) -> str:
    """Cancel the jobs of the stages before, which would end amid the run; what came of it, for the message."""
    if not numbers:
        return ""
    try:
        return f"\njob {queue.cancel(run)} of the stages before is cancelled"
    except EnvironmentProblem as problem:
        return f"\nthe stages before are queued and could not be cancelled: {problem}"


def _script(request: Request, stage: str, after: str) -> str:
    """The script of the whole run, or of one stage's job, which waits for job ``after``."""
    recipe = request.recipe
    options, tasks = _options(request, stage), slurm_array.tasks(recipe.slurm.array)
    if after:
        own = [options.dependency] if options.dependency not in (None, recipe.slurm.dependency) else []
        options = options.model_copy(update={"dependency": ",".join([f"afterok:{after}", *own])})
    job = Job(
        name=recipe.name, recipe=request.recipe_path.absolute(), run_dir=request.run.path, python=Path(sys.executable),
        overrides=tuple(request.overrides), tasks=tuple(tasks), until=stage,
        node_counts=_node_counts(request, tasks, options, stage),
    )  # fmt: skip
    text = render(options, job)
    _refuse_broken_bash(text)
    return text


def _options(request: Request, stage: str) -> Slurm:
    """Of the run, or of one stage.

    Raises: UserError when stages want machines of their own and are not split, or are split in an array.
    """
    recipe = request.recipe
    own = [each.name for each in recipe.stages if each.slurm != recipe.slurm]
    if own and not request.split_stages:
        raise UserError(
            f"stages.{own[0]}.slurm is not the recipe's slurm, and one job has one set of machines; "
            "submit with --split-stages, which makes each stage a job"
        )
    if request.split_stages and recipe.slurm.array:
        raise UserError("--split-stages and slurm.array do not go together; submit the runs of the array one by one")
    return next((each.slurm for each in recipe.stages if each.name == stage), recipe.slurm)


def _node_counts(request: Request, tasks: Sequence[tuple[str, ...]], options: Slurm, only: str = "") -> tuple[int, ...]:
    """How many nodes can share every stage's batch, in every run, the most first; none where the number is fixed.

    ``only``: the one stage whose job it is.

    Raises: UserError when the most or the fewest that are asked for cannot.
    """
    runs = [reading.load(request.recipe_path, [*request.overrides, *task]) for task in tasks]
    stages = [stage for recipe in runs or [request.recipe] for stage in recipe.stages if only in ("", stage.name)]
    found, refused = [], {}
    for nodes in range(options.nodes, options.fewest_nodes - 1, -1):
        try:
            for stage in stages:
                resolve_batch(stage, nodes * options.ranks)
            found.append(nodes)
        except RecipeError as error:
            refused[nodes] = str(error)
    for nodes in (options.nodes, options.fewest_nodes):
        if nodes in refused:
            key = "nodes" if nodes == options.nodes else "min_nodes"
            raise UserError(f"slurm.{key}: {nodes} x {options.ranks} ranks cannot train this: {refused[nodes]}")
    return tuple(found) if options.fewest_nodes < options.nodes else ()


def _make_way(request: Request, tasks: Sequence[tuple[str, ...]]) -> list[str]:
    """Let the jobs have their runs; return the stages that are to become jobs, or one empty name for all of them.

    Raises: UserError when a run is another one's, finished, or has a job already.
    """
    run, recipe = request.run, request.recipe
    runs = [(run, recipe)]
    if tasks:
        runs = [
            (slurm_array.task_run(run, number), reading.load(request.recipe_path, [*request.overrides, *task]))
            for number, task in enumerate(tasks)
        ]
    names = [stage.name for stage in recipe.stages] if request.split_stages else [""]
    for each, asked in runs:
        queued = queue.look(each)
        if queued and not queued.is_over:
            raise UserError(
                f"{each.path} has a job already: {queued}; wait for it, or end it with thawline cancel {run.quoted}"
            )
        if tasks and each.status.is_file() and read_status(each).state == "finished":
            continue  # of an array that is submitted again, to finish the rest
        stage = ""
        if request.split_stages and each.plan.is_file():
            done = split_stages.num_done(each, read_plan(each))
            names = names[done:] or names[-1:]
            stage = names[0]
        options = _options(request, stage)
        varies = options.fewest_nodes < options.nodes
        session.make_way(each, asked, options.nodes, options.ranks, is_split=request.split_stages, varies=varies)
    return names


def as_overrides(flags: Mapping[str, object]) -> list[str]:
    """Flags as ``--set`` writes them, so that they are checked as the recipe's keys are."""
    return [f"slurm.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None and value != []]


def as_command(request: Request) -> str:
    """The ``thawline submit`` that asks for the same again, for a shell."""
    words = ["thawline", "submit", str(request.recipe_path.absolute()), "--run-dir", str(request.run.path)]
    for override in request.overrides:
        words += ["--set", override]
    for key, value in request.flags.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag.removesuffix('s') if key.endswith('arguments') else flag}={item}" for item in value]
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join([*words, *(["--split-stages"] if request.split_stages else [])])


def _environment(options: Slurm) -> dict[str, str]:
    """Ours, without what would overrule the script: a variable of sbatch's wins over a line of it.

    Those that say what the recipe leaves open stay.
    """
    said = {
        "SBATCH_ACCOUNT": options.account, "SBATCH_PARTITION": options.partition, "SBATCH_QOS": options.qos,
        "SBATCH_RESERVATION": options.reservation, "SBATCH_CONSTRAINT": options.constraint,
        "SBATCH_TIMELIMIT": options.time,
    }  # fmt: skip
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SBATCH_") or (name in said and said[name] is None)
    }


def _answer(command: list[str], file: Path, options: Slurm) -> str:
    """What sbatch prints.

    Raises: UserError with its words when it refuses the job, EnvironmentProblem when SLURM is not to be reached.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False, env=_environment(options)
        )
    except subprocess.TimeoutExpired as expired:
        raise EnvironmentProblem(f"sbatch gave no answer in {ANSWER_TIMEOUT_S} s; is slurmctld up?") from expired
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr + done.stdout).strip()
    if any(words in said.lower() for words in _UNREACHABLE):
        raise EnvironmentProblem(f"SLURM cannot be reached: {said}; ask `scontrol ping`")
    rights = "; `sacctmgr show associations user=$USER` shows your accounts and qos"
    where = f"The script is {file}{rights if _ABOUT_RIGHTS.search(said) else ''}"
    raise UserError(f"SLURM refuses the job: {said}\n{where}; the cluster has\n{queue.partitions()}")


def _refuse_broken_bash(text: str) -> None:
    """Set-up lines are the one part that is a user's own bash; one of them may leave a quote or an `if` open.

    Raises: UserError with bash's words.
    """
    bash = shutil.which("bash")
    if bash is None:
        return  # then no sbatch is here either
    parsed = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
    if parsed.returncode or parsed.stderr:
        raise UserError(f"slurm.setup is not bash: {parsed.stderr.strip()}; look at the script with --dry-run")
