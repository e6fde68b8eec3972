"""The commands for machines other than this one: parse, call, print. `cli` adds them to its own.

No logic here, as there: each command's is in the module that it imports when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from launcher import shipped

Run = Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (submit, cancel, logs, doctor):
        app.command()(command)


def submit(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a YAML file, or a shipped one's name.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a value of the recipe, such as stages.full.epochs=2."),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Default runs/NAME; on a disk that all nodes share.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and ask no SLURM.")] = False,
    job_name: Annotated[str | None, typer.Option(help="Default the recipe's name.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition, or several with commas.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    time: Annotated[str | None, typer.Option(help="Of one attempt, such as 4:00:00.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines.")] = None,
    min_nodes: Annotated[int | None, typer.Option(help="Go on with as few when no more are left.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of each.")] = None,
    gres: Annotated[str | None, typer.Option(help="The same as gpu:a100:4.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Default one a GPU.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores of each node, for all its ranks.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of each node, such as 64G.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features the nodes must have.")] = None,
    nodelist: Annotated[str | None, typer.Option(help="Nodes that must be used.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Nodes that must not be.")] = None,
    exclusive: Annotated[bool | None, typer.Option(help="Share no node.")] = None,
    reservation: Annotated[str | None, typer.Option(help="A reservation to run in.")] = None,
    comment: Annotated[str | None, typer.Option(help="For the administrators.")] = None,
    mail_user: Annotated[str | None, typer.Option(help="Where mail goes.")] = None,
    mail_type: Annotated[list[str] | None, typer.Option(help="BEGIN, END, FAIL, …; may be repeated.")] = None,
    dependency: Annotated[str | None, typer.Option(help="Such as afterok:123.")] = None,
    signal_lead: Annotated[int | None, typer.Option(help="Seconds before the time limit to save and stop.")] = None,
    requeue: Annotated[bool | None, typer.Option(help="Queue again after a stop that was not yours.")] = None,
    requeue_budget: Annotated[int | None, typer.Option(help="Attempts in a row that may save nothing new.")] = None,
    hang_timeout: Annotated[int | None, typer.Option(help="Seconds without a movement, then it hangs.")] = None,
    launcher: Annotated[str | None, typer.Option(help="torchrun or accelerate.")] = None,
    container: Annotated[str | None, typer.Option(help="What stands before python on each node.")] = None,
    container_python: Annotated[str | None, typer.Option(help="Python inside the container.")] = None,
    array: Annotated[list[str] | None, typer.Option(metavar="a.b=[c, d]", help="A run for each value.")] = None,
    array_limit: Annotated[int | None, typer.Option(help="Runs of the array at once.")] = None,
    split_stages: Annotated[
        bool, typer.Option("--split-stages", help="One job a stage, each with its slurm:.")
    ] = False,
    setup: Annotated[list[str] | None, typer.Option(help="A line of bash to run first; may be repeated.")] = None,
    sbatch_argument: Annotated[list[str] | None, typer.Option(help="One more; may be repeated.")] = None,
    srun_argument: Annotated[list[str] | None, typer.Option(help="One more; may be repeated.")] = None,
) -> None:
    """Queue a run on a SLURM cluster.

    Each flag sets the key of that name in the recipe's slurm: section.
    """
    given = dict(locals())  # before any other name: all but the first few are keys of slurm:
    from launcher.slurm import submit as slurm_submit

    ours = ("recipe", "overrides", "run_dir", "dry_run", "split_stages")
    plural = {"sbatch_argument": "sbatch_arguments", "srun_argument": "srun_arguments"}
    flags = {plural.get(name, name): value for name, value in given.items() if name not in ours}
    request = slurm_submit.Request(shipped.located(recipe), overrides or (), run_dir, flags, split_stages)
    if dry_run:
        print("\n".join(slurm_submit.scripts(request)), end="")
        return
    numbers, submitted = slurm_submit.submit(request), request.run
    queued = f"job {numbers[0]} is" if len(numbers) == 1 else f"jobs {', '.join(numbers)} are"
    print(f"{submitted.path}: {queued} queued; the log: thawline logs {submitted.quoted}")
    print(f"follow it with: thawline status {submitted.quoted}   end it with: thawline cancel {submitted.quoted}")
    print(numbers[-1])


def cancel(run: Run) -> None:
    """End a submitted run's job; it saves first if given the time."""
    from launcher.run_dir import RunDir
    from launcher.slurm import queue

    print(f"job {queue.cancel(RunDir(run))} is cancelled; thawline submit goes on with it later")


def run_on_nodes(
    nodes: str, recipe: Path, overrides: Sequence[str], run_dir: Path | None, ranks: int | None, *, ssh: bool
) -> None:
    """``thawline run --nodes``."""
    from launcher import ssh_nodes

    asked = ssh_nodes.asked(nodes, recipe, overrides, run_dir, ranks)
    if ssh:
        ssh_nodes.start(asked, lambda line: print(line, flush=True))
        return
    for host, command in zip(asked.hosts, ssh_nodes.commands(asked), strict=True):
        print(f"# {host}\n{command}")


def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option(min=0, help="What this rank wrote; default how the run went.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run has ended.")] = False,
    is_all: Annotated[bool, typer.Option("--all", help="Every launch of the run, not the newest alone.")] = False,
) -> None:
    """Print what a run's newest launch wrote, or one rank of it."""
    from launcher import run_logs
    from launcher.run_dir import RunDir

    read = run_logs.follow if follow else run_logs.read
    for text in read(RunDir(run), rank, is_all=is_all):
        sys.stdout.write(text)
        sys.stdout.flush()


def doctor(
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes that meet; default one a GPU, or one.")] = None,
) -> None:
    """Check whether this machine can train, and what to do if not.

    In a SLURM allocation, each of its nodes. Ends with code 3 if something is wrong.
    """
    from launcher import doctor as doctors
    from launcher.errors import EnvironmentProblem

    failed = 0
    for finding in doctors.examine(ranks):
        print(finding, flush=True)
        failed += not finding.is_well
    if failed:
        raise EnvironmentProblem(f"{failed} of the checks failed; each line above says what to do")
