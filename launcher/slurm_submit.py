"""``thawline submit``: a recipe becomes a job in SLURM's queue.

Owns the order of things: read and check the recipe, render the script (`slurm_script`), make the folders that SLURM
writes to, ask it with ``sbatch --test-only`` whether such a job could ever start, submit. Trains nothing and plans
nothing: the first rank plans when the job runs, on the machine that it runs on. Called by `cli`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import recipe_io, session, slurm_queue
from launcher.errors import EnvironmentProblem, UserError
from launcher.run_dir import RunDir, write_atomic
from launcher.slurm_script import Job, render

ANSWER_TIMEOUT_S = 120
_UNREACHABLE = ("unable to contact slurm controller", "connection refused", "munge", "socket timed out", "slurm.conf")
"""What SLURM's commands say, in lower case, when it is not the job that is wrong."""


def script(
    recipe_path: Path, overrides: Sequence[str], run_dir: Path | None, flags: Mapping[str, object]
) -> tuple[str, RunDir]:
    """The sbatch script of a recipe and the run it is for; touches no disk and no SLURM.

    ``flags`` are keys of the ``slurm:`` section that the command line sets; None leaves the recipe's.

    Raises: UserError for what is wrong with the recipe, an option or a path.
    """
    recipe = recipe_io.load(recipe_path, [*overrides, *as_overrides(flags)])
    run = RunDir((run_dir or session.RUNS / recipe.name).absolute())
    job = Job(
        name=recipe.name,
        recipe=recipe_path.absolute(),
        run_dir=run.path,
        python=Path(sys.executable),
        overrides=tuple(overrides),
    )
    text = render(recipe.slurm, job)
    _refuse_broken_bash(text)
    return text, run


def submit(
    recipe_path: Path, overrides: Sequence[str], run_dir: Path | None, flags: Mapping[str, object]
) -> tuple[str, RunDir]:
    """Queue a run; return the job's number and the run.

    Raises:
        UserError: as `script`; or the folder holds another run, a finished one, or one that has a job already; or no
            such job can ever start here.
        EnvironmentProblem: SLURM is not there, or does not answer.
    """
    text, run = script(recipe_path, overrides, run_dir, flags)
    program = shutil.which("sbatch")
    if program is None:
        raise EnvironmentProblem(
            "sbatch is not on PATH, so this machine submits to no SLURM; run this on the cluster's login node, or look "
            "at the script with --dry-run"
        )
    recipe = recipe_io.load(recipe_path, [*overrides, *as_overrides(flags)])
    session.make_way(run, recipe, recipe.slurm.nodes, recipe.slurm.ranks)
    queued = slurm_queue.look(run)
    if queued and not queued.is_over:
        raise UserError(
            f"{run.path} has a job already: {queued}; wait for it, or end it with thawline cancel {run.quoted}"
        )
    folder = run.path / "slurm"
    folder.mkdir(parents=True, exist_ok=True)  # where it is missing the job fails without a log
    file = folder / "job.sbatch"
    write_atomic(file, text)
    _answer([program, "--test-only", str(file)], file)
    number = _answer([program, "--parsable", str(file)], file).strip().partition(";")[0]
    (folder / number).mkdir(exist_ok=True)
    write_atomic(folder / number / "job.sbatch", text)
    write_atomic(folder / "job_id", f"{number}\n")
    write_atomic(run.command, f"{as_command(recipe_path, overrides, run, flags)}\n")
    return number, run


def as_overrides(flags: Mapping[str, object]) -> list[str]:
    """Flags as ``--set`` writes them, so that they are checked as the recipe's keys are."""
    return [f"slurm.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None and value != []]


def as_command(recipe_path: Path, overrides: Sequence[str], run: RunDir, flags: Mapping[str, object]) -> str:
    """The ``thawline submit`` that asks for the same again, for a shell."""
    words = ["thawline", "submit", str(recipe_path.absolute()), "--run-dir", str(run.path)]
    for override in overrides:
        words += ["--set", override]
    for key, value in flags.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{key.replace('_', '-')}")
        elif isinstance(value, list):
            one = flag.removesuffix("s") if key.endswith("arguments") else flag
            words += [f"{one}={item}" for item in value]
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


def _answer(command: list[str], file: Path) -> str:
    """What sbatch prints.

    Raises: UserError with its words when it refuses the job, EnvironmentProblem when SLURM is not to be reached.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as expired:
        raise EnvironmentProblem(f"sbatch gave no answer in {ANSWER_TIMEOUT_S} s; is slurmctld up?") from expired
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr + done.stdout).strip()
    if any(words in said.lower() for words in _UNREACHABLE):
        raise EnvironmentProblem(f"SLURM cannot be reached: {said}; ask `scontrol ping`")
    raise UserError(f"SLURM refuses the job: {said}\nThe script is {file}; `sinfo` shows what the cluster has")


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
