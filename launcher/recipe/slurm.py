"""The recipe's ``slurm:`` section: what `thawline submit` may ask a SLURM cluster for.

Owns the names, the allowed values and the meaning of each option. Every text is of an alphabet that can end neither a
``#SBATCH`` line nor the quotes around it; what needs more freedom (set-up lines, arguments) is one printable line.
Nothing here changes what is trained, so two runs that differ in it alone are the same run. `slurm.script` writes the
options down; the flags of ``thawline submit`` set the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from launcher.recipe.types import PositiveInt, Strict

Word = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]{0,127}$", title="a name of letters, digits and _ . , @ + -")
]
Nodes = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]{0,1023}$", title="host names such as node[1-4,7] or a01,a02"),
]
Time = Annotated[
    str,
    Field(
        pattern=r"^([0-9]{1,4}-[0-9]{1,2}(:[0-9]{1,2}){0,2}|[0-9]{1,6}(:[0-9]{1,2}){1,2})$",
        title="a time such as 4:00:00 (hours:minutes:seconds) or 2-00:00:00 (days first)",
    ),
]
Memory = Annotated[str, Field(pattern=r"^[0-9]{1,9}[KMGT]?$", title="an amount such as 64G or 512M; 0 for all of it")]
Gres = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:,-]{0,255}$", title="generic resources such as gpu:4 or gpu:a100:4")
]
Constraint = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_(\[][A-Za-z0-9_.,:&|*()\[\]-]{0,255}$", title="features such as a100&nvlink")
]
Dependency = Annotated[
    str, Field(pattern=r"^[a-z]+[a-z0-9:,?_+]{0,511}$", title="a dependency such as afterok:123 or singleton")
]
_ENDS_LINES = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Controls, and what Unicode calls a line's or a paragraph's end."""
Comment = Annotated[
    str, Field(pattern=rf'^[^"\\{_ENDS_LINES}]+$', title="one line of text without double quotes and \\")
]
SetupLine = Annotated[str, Field(pattern=rf"^[^{_ENDS_LINES}]+$", title="one line of bash")]
Words = Annotated[
    str,
    Field(
        pattern=rf"^[^\s\"'\\{_ENDS_LINES}]+( [^\s\"'\\{_ENDS_LINES}]+)*$",
        title="words with one blank between, without quotes, such as apptainer exec --nv image.sif",
    ),
]
Program = Annotated[str, Field(pattern=rf"^[^{_ENDS_LINES}]+$", title="a path, or a name on PATH, such as python3")]
SbatchArgument = Annotated[
    str,
    Field(pattern=rf'^--[a-z][a-z-]*(=[^"\\{_ENDS_LINES}]+)?$', title="an argument of the form --name or --name=value"),
]
SrunArgument = Annotated[
    str,
    Field(pattern=rf"^--[a-z][a-z-]*(=[^{_ENDS_LINES}]+)?$", title="an argument of the form --name or --name=value"),
]
MailEvent = Literal["BEGIN", "END", "FAIL", "REQUEUE", "INVALID_DEPEND", "TIME_LIMIT", "TIME_LIMIT_80", "ALL"]


class Slurm(Strict):
    """What `thawline submit` asks SLURM for. It changes nothing in the training, so a run may go on under another."""

    job_name: Word | None = None
    """Name in the queue. None: the recipe's."""
    account: Word | None = None
    """Who pays. None: your default account."""
    partition: Word | None = None
    """Partition, or several with commas. None: the cluster's default."""
    qos: Word | None = None
    """Quality of service."""
    time: Time | None = None
    """Longest time of one attempt; at its end the run saves, and is queued again. None: the partition's default."""
    nodes: PositiveInt = 1
    """Machines."""
    min_nodes: PositiveInt | None = None
    """Machines to go on with, at the least, where no more are left or free: the global batch stays, fewer ranks take
    more micro-batches each. Checkpoints are larger: any number of ranks can take them up. null: always all nodes."""
    gpus_per_node: PositiveInt | None = None
    """GPUs of each node. None: as gres says, or none at all."""
    gres: Gres | None = None
    """The same in the words of older clusters; one of the two."""
    ranks_per_node: PositiveInt | None = None
    """Processes on each node. None: one a GPU; 1 where there is none."""
    cpus_per_task: PositiveInt | None = None
    """CPU cores on each node, which its ranks share: a node runs one SLURM task."""
    memory: Memory | None = None
    """Host memory of each node."""
    constraint: Constraint | None = None
    """Features that the nodes must have."""
    nodelist: Nodes | None = None
    """Nodes that must be among those used."""
    exclude: Nodes | None = None
    """Nodes that must not be."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: Word | None = None
    """A reservation to run in."""
    comment: Comment | None = None
    """A line for the administrators."""
    mail_user: Word | None = None
    """Where mail goes. None: your user."""
    mail_type: list[MailEvent] = []
    """What mail is sent about."""
    dependency: Dependency | None = None
    """Jobs to wait for; one that can never be met ends this job."""
    array: list[str] = []
    """Keys of the recipe with a list of values each, as in seed=[1, 2]: a job, and a run, for every combination."""
    array_limit: PositiveInt | None = None
    """Jobs of the array that may run at once. None: as many as fit."""
    signal_lead: Annotated[int, Field(ge=30, le=65535)] = 300
    """Seconds before the time limit at which the run is asked to save and stop; SLURM may ask up to a minute early."""
    requeue: bool = True
    """Queue the job again when it was stopped by its time limit, preempted, or lost a node."""
    requeue_budget: PositiveInt = 3
    """Attempts in a row that may end without a new checkpoint; then the job gives up with 75."""
    hang_timeout: Annotated[int, Field(ge=10)] | None = 900
    """Seconds without a movement on any rank after which they are killed, the one that hangs is named, and the job is
    queued again; a rank that gives no sign of life hangs after 180 s already. null: nothing watches."""
    launcher: Literal["torchrun", "accelerate"] = "torchrun"
    """What starts the ranks of a node."""
    container: Words | None = None
    """What stands before python on each node, such as apptainer exec --nv /shared/thawline.sif. The run's folder, the
    recipe, model and data must be at the same paths inside. Pyxis: srun_arguments with --container-image instead."""
    container_python: Program | None = None
    """Python that has thawline inside the container. null: the one outside, at the same path."""
    setup: list[SetupLine] = []
    """Lines of bash that run on the first node before anything else, such as module load cuda."""
    sbatch_arguments: list[SbatchArgument] = []
    """More #SBATCH lines."""
    srun_arguments: list[SrunArgument] = []
    """More arguments of srun."""

    @property
    def container_words(self) -> list[str]:
        """``container``, word by word."""
        return self.container.split(" ") if self.container else []

    @property
    def time_s(self) -> int | None:
        """``time`` in seconds, as SLURM reads it; None: not said."""
        if self.time is None:
            return None
        days, has_days, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if has_days:  # days-hours[:minutes[:seconds]]
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:  # minutes:seconds or hours:minutes:seconds
            hours, minutes, seconds = [0, *parts][-3:]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def fewest_nodes(self) -> int:
        """The least that an attempt may have."""
        return self.min_nodes or self.nodes

    @property
    def gpus(self) -> int:
        """GPUs of each node, by either of the two options; 0: the ranks compute on the CPU."""
        return self.gpus_per_node or _gpus_in(self.gres or "")

    @property
    def ranks(self) -> int:
        """Processes on each node."""
        return self.ranks_per_node or self.gpus or 1


def _gpus_in(gres: str) -> int:
    """``gpu`` -> 1, ``gpu:a100:4,nvme:1`` -> 4."""
    counts = [re.fullmatch(r"gpu(?::[A-Za-z][\w.-]*)?(?::([0-9]+))?", one) for one in gres.split(",")]
    return sum(int(match[1] or 1) for match in counts if match)


_KEY_OF = {
    "job-name": "job_name", "account": "account", "partition": "partition", "qos": "qos", "time": "time",
    "nodes": "nodes", "gpus-per-node": "gpus_per_node", "gres": "gres", "cpus-per-task": "cpus_per_task",
    "mem": "memory", "constraint": "constraint", "nodelist": "nodelist", "exclude": "exclude",
    "exclusive": "exclusive", "reservation": "reservation", "comment": "comment", "mail-user": "mail_user",
    "mail-type": "mail_type", "dependency": "dependency", "signal": "signal_lead", "requeue": "requeue",
    "no-requeue": "requeue", "array": "array",
}  # fmt: skip
"""Option of sbatch -> the key that sets it."""
_OURS = (
    "output", "error", "open-mode", "ntasks", "ntasks-per-node", "kill-on-invalid-dep", "wrap", "test-only", "parsable",
    "wait", "hold", "input", "export", "export-file", "clusters", "gpus-per-task", "het-group",
)  # fmt: skip
"""Options that the script relies on, or that change what sbatch does with it."""
_OURS_OF_SRUN = (
    "output", "error", "input", "nodes", "ntasks", "ntasks-per-node", "export", "kill-on-bad-exit", "wait", "label",
    "multi-prog", "jobid", "nodelist", "exclude", "relative", "distribution", "test-only", "pty", "overcommit",
    "het-group",
)  # fmt: skip


def conflicts(options: Slurm) -> Iterator[tuple[str, str]]:
    """(key, message) of each option that contradicts another, or the script."""
    if options.time_s is not None and options.time_s <= options.signal_lead:
        message = f"{options.signal_lead} s before the end of {options.time} is no later than its start: every attempt "
        yield "signal_lead", f"{message}would stop after its first step; set less, or a longer slurm.time"
    if options.fewest_nodes > options.nodes:
        yield "min_nodes", f"{options.min_nodes} is more than slurm.nodes, {options.nodes}, which is the most"
    if options.array_limit and not options.array:
        yield "array_limit", f"{options.array_limit} at once of no array; set array too, or take it out"
    if options.gpus_per_node and options.gres and "gpu" in options.gres:
        yield "gres", f"{options.gres!r} asks for GPUs, and so does gpus_per_node; keep one of the two"
    if options.gpus and options.ranks_per_node and options.ranks_per_node != options.gpus:
        message = f"{options.ranks_per_node} on {options.gpus} GPUs a node, and a rank takes one whole GPU; take it out"
        yield "ranks_per_node", message
    for index, argument in enumerate(options.sbatch_arguments):
        name = argument[2:].partition("=")[0]  # sbatch takes any beginning of a name that only one option has
        key = next((key for long, key in _KEY_OF.items() if long.startswith(name)), None)
        if key:
            yield f"sbatch_arguments.{index}", f"{argument!r} is what slurm.{key} is for; set that"
        elif any(long.startswith(name) for long in _OURS):
            yield (
                f"sbatch_arguments.{index}",
                f"{argument!r}: the script sets it, or relies on it; take it out",
            )
    for index, argument in enumerate(options.srun_arguments):
        name = argument[2:].partition("=")[0]
        if any(long.startswith(name) for long in _OURS_OF_SRUN):
            yield (
                f"srun_arguments.{index}",
                f"{argument!r}: the script sets it, or relies on it; take it out",
            )
