"""The sbatch script of a run, as text: options in, script out; pure but for reading the template.

Owns which option becomes which line, and that no string of the user's becomes code: values of ``#SBATCH`` lines are of
alphabets without quotes and line ends (`recipe.slurm`), everything that bash reads is quoted, and what cannot be
written on one line is refused. The template is ``slurm/job.sbatch.j2``; ``slurm/README.md`` explains it line by line.
`slurm.submit` calls `render`; nothing here contacts SLURM.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from launcher import shipped
from launcher.errors import UserError
from launcher.recipe.slurm import Slurm

_BARE = re.compile(r"[A-Za-z0-9_.,:=/@+-]+")
"""What sbatch reads as it stands; the rest is put in double quotes."""


@dataclass(frozen=True)
class Job:
    """What the script starts."""

    name: str
    """The recipe's."""
    recipe: Path
    """Absolute."""
    run_dir: Path
    """Absolute, on a file system that all nodes share."""
    python: Path
    """The interpreter that has thawline, at the same path on all nodes."""
    overrides: tuple[str, ...] = ()
    """``a.b=c`` of ``--set``."""
    tasks: tuple[tuple[str, ...], ...] = ()
    """More of them for each task of an array, whose runs are folders in ``run_dir``; empty: it is no array."""
    until: str = ""
    """The stage after which the job ends; empty: the last."""
    node_counts: tuple[int, ...] = ()
    """Where nodes may be fewer: how many can share the batch, the most first; empty: the number is fixed."""


def render(options: Slurm, job: Job) -> str:
    """The whole script.

    Raises: UserError when a path or an override cannot stand in it.
    """
    for what, text in [
        ("the recipe's path", str(job.recipe)),
        ("the run's folder", str(job.run_dir)),
        ("python's path", str(job.python)),
        *(("--set", text) for text in job.overrides),
        *(("slurm.array", text) for task in job.tasks for text in task),
    ]:
        if not text.isprintable():
            raise UserError(f"{what} {text!r} has a character that does not print; a script cannot hold it: rename it")
    if bad := sorted(set(str(job.run_dir)) & set('"\\%')):
        raise UserError(
            f"the run's folder {str(job.run_dir)!r} has {' '.join(bad)} in its path, which sbatch reads as more than "
            "a character; choose another --run-dir"
        )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,  # bash, not HTML: each value has its own quotes
    )  # fmt: skip
    environment.filters["quoted"] = lambda value: shlex.quote(str(value))
    template = environment.from_string(shipped.slurm_template().read_text(encoding="utf-8"))
    return template.render(directives=list(directives(options, job)), options=options, job=job)


def directives(options: Slurm, job: Job) -> Iterator[str]:
    """What stands behind ``#SBATCH``, line by line."""
    is_fixed = options.fewest_nodes == options.nodes
    values: list[tuple[str, object]] = [
        ("job-name", (options.job_name or job.name) + (f".{job.until}" if job.until else "")),
        ("array", _array(options, job)),
        ("account", options.account),
        ("partition", options.partition),
        ("qos", options.qos),
        ("time", options.time),
        ("nodes", options.nodes if is_fixed else f"{options.fewest_nodes}-{options.nodes}"),
        # Of a range of nodes it would count the tasks from the fewest, and give no more nodes than tasks.
        ("ntasks-per-node", 1 if is_fixed else None),
        ("gpus-per-node", options.gpus_per_node),
        ("gres", options.gres),
        ("cpus-per-task", options.cpus_per_task),
        ("mem", options.memory),
        ("constraint", options.constraint),
        ("nodelist", options.nodelist),
        ("exclude", options.exclude),
        ("exclusive", True if options.exclusive else None),
        ("reservation", options.reservation),
        ("comment", options.comment),
        ("mail-user", options.mail_user),
        ("mail-type", ",".join(options.mail_type) or None),
        ("dependency", options.dependency),
        ("kill-on-invalid-dep", "yes" if options.dependency else None),
        ("signal", f"B:USR1@{options.signal_lead}"),
        ("requeue" if options.requeue else "no-requeue", True),
        ("open-mode", "append"),
        ("output", f"{job.run_dir}/{'task-%a/slurm/job-%A_%a.log' if job.tasks else 'slurm/job-%j.log'}"),
    ]
    for name, value in values:
        if value is not None:
            yield _directive(f"--{name}" if value is True else f"--{name}={value}")
    for argument in options.sbatch_arguments:
        yield _directive(argument)


def _array(options: Slurm, job: Job) -> str | None:
    limit = f"%{options.array_limit}" if options.array_limit else ""
    return f"0-{len(job.tasks) - 1}{limit}" if job.tasks else None


def _directive(argument: str) -> str:
    if _BARE.fullmatch(re.sub(r"%[jAa]|%[0-9]+$", "", argument)):
        return argument
    name, equals, value = argument.partition("=")
    return f'{name}{equals}"{value}"'
