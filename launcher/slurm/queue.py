"""What SLURM's queue says of a run's job, and how to end that job. Called by `cli`; changes no file of the run.

The newest jobs of a run are in ``RUN/slurm/job_id`` (`slurm.submit` writes it), in the order they run. Asks ``scontrol
show job``, which needs no accounting data base; a job that SLURM has forgotten, minutes after its end, is looked up
with ``sacct`` where there is one, and has no queue state any more elsewhere.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from launcher.errors import EnvironmentProblem, UserError
from launcher.run_dir import RunDir

log = logging.getLogger(__name__)
ANSWER_TIMEOUT_S = 30
ASK_EVERY_S = (2.0, 60.0)
"""How often a `Follower` asks: after a change, and when there has been none for minutes."""
_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
})  # fmt: skip
"""States of a job that has ended for good; in any other it may run yet."""


class QueueState(BaseModel):
    """A job as SLURM has it."""

    model_config = ConfigDict(frozen=True)

    job: str
    """Its number."""
    state: str
    """SLURM's word, such as PENDING, RUNNING or COMPLETED."""
    reason: str
    """Why it waits, or how it ended; None in SLURM's words when there is nothing to say."""
    nodes: str
    """Where it runs or ran, such as node[1-2]; empty before it starts."""
    attempt: int
    """How often it was queued again."""
    exit_code: int

    @property
    def is_over(self) -> bool:
        """Whether it will not run any more."""
        return self.state in _ENDED

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        why = f" ({self.reason})" if self.reason != "None" else ""
        code = f", exit code {self.exit_code}" if self.is_over else ""
        return f"job {self.job} {self.state}{why}{where}, attempt {self.attempt}{code}"


def look(run: RunDir) -> QueueState | None:
    """The job that a run waits for or runs in, else its last; None when no SLURM is here that knows it."""
    found = [state for job in jobs_of(run) if (state := ask(job)) is not None]
    return next((state for state in found if not state.is_over), found[-1] if found else None)


@dataclass
class Follower:
    """The states of a run's jobs over time, asked for less and less often while they stay as they are.

    A controller answers all users of a cluster, and many may follow their runs for days.
    """

    run: RunDir
    _jobs: list[QueueState] = field(default_factory=list)
    _hint: object = None
    _asked: float = float("-inf")
    _pause_s: float = 0.0

    def look(self, hint: object = None) -> list[QueueState]:
        """Those that SLURM knows, in the order they run; asked anew when it is time, or soon after ``hint`` changed."""
        is_new, now = hint != self._hint, time.monotonic()
        if now - self._asked < (min(ASK_EVERY_S[0], self._pause_s) if is_new else self._pause_s):
            return self._jobs
        found = [state for job in jobs_of(self.run) if (state := ask(job)) is not None]
        if not found and any(not state.is_over for state in self._jobs):
            found = self._jobs  # a busy controller did not answer: a job that was there is not gone for that
        is_same = found == self._jobs and not is_new
        self._pause_s = min(ASK_EVERY_S[1], 2 * self._pause_s) if is_same else ASK_EVERY_S[0]
        self._jobs, self._hint, self._asked = found, hint, time.monotonic()
        return found


def ask(job: str) -> QueueState | None:
    """A job; None when no SLURM is here or answers, or SLURM has forgotten it."""
    shown = _answer("scontrol", "--oneliner", "show", "job", job)
    found = parse(job, shown) if shown else None
    return found or _from_accounts(job)


def is_forgotten(job: str) -> bool:
    """Whether SLURM answers and knows no such job, or is not here at all."""
    program = shutil.which("scontrol")
    if program is None:
        return True
    try:
        asked = [program, "show", "job", job]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return "Invalid job id" in done.stderr


def _from_accounts(job: str) -> QueueState | None:
    """A job that the controller has forgotten, from the accounting data base where the cluster keeps one."""
    fields = "--format=State,ExitCode,NodeList"
    lines = (
        _answer("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--duplicates", fields) or ""
    ).splitlines()
    if not lines or lines[-1].count("|") != 2:
        return None
    state, code, nodes = lines[-1].split("|")
    return QueueState(
        job=job, state=state.split()[0], reason="None", nodes="" if nodes == "None assigned" else nodes,
        attempt=len(lines) - 1, exit_code=int(code.partition(":")[0]),
    )  # fmt: skip


def partitions() -> str:
    """What may be asked for, a line for each kind of node of each partition, as a part of a message."""
    form = "%R: %D nodes of %c CPUs, %m MiB, gres %G, features %f, for up to %l"
    lines = (_answer("sinfo", "--noheader", f"--format={form}") or "").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines) or "  what `sinfo` shows"


def _answer(name: str, *arguments: str) -> str | None:
    """What a command of SLURM's prints; None where it is not here, fails, or gives no answer."""
    program = shutil.which(name)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        log.warning("%s gave no answer in %s s: the queue's state is not shown", name, ANSWER_TIMEOUT_S)
        return None
    return done.stdout if done.returncode == 0 else None


def parse(job: str, line: str) -> QueueState | None:
    """A line of ``scontrol --oneliner show job``; None when it holds no job."""
    found = {key: value for key, value in re.findall(r"(\w+)=(\S*)", line)}
    if "JobState" not in found:
        return None
    return QueueState(
        job=job,
        state=found["JobState"],
        reason=found.get("Reason", "None"),
        nodes=found.get("NodeList", "").replace("(null)", ""),
        attempt=int(found.get("Restarts", "0")),
        exit_code=int(found.get("ExitCode", "0:0").partition(":")[0]),
    )


def jobs_of(run: RunDir) -> list[str]:
    """The numbers of a run's newest jobs: one, or one a stage; NUMBER_TASK for a task of an array."""
    file = run.path / "slurm" / "job_id"
    return file.read_text().split() if file.is_file() else []


def job_of(run: RunDir) -> str | None:
    """The number of the job that has begun last, or that begins first."""
    jobs = jobs_of(run)
    begun = [job for job in jobs if (run.path / "slurm" / job / "attempt-0").is_dir()]
    return begun[-1] if begun else jobs[0] if jobs else None


def cancel(run: RunDir) -> str:
    """End a run's jobs for good, with scancel; return their numbers. It saves if SLURM's KillWait gives it the time.

    Raises: UserError when the run was not submitted, EnvironmentProblem when scancel is not here or refuses.
    """
    jobs, program = jobs_of(run), shutil.which("scancel")
    job = ", ".join(jobs)
    if not jobs:
        raise UserError(
            f"{run.path} was not submitted to SLURM: it has no slurm/job_id; end what runs it by its signal"
        )
    if program is None:
        raise EnvironmentProblem(
            f"scancel is not on PATH; run this on the login node that job {job} was submitted from"
        )
    ended = subprocess.run(
        [program, *reversed(jobs)], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
    )
    if ended.returncode:
        raise EnvironmentProblem(f"scancel {job}: {ended.stderr.strip()}")
    return job
