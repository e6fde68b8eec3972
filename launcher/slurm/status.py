"""What ``thawline status`` shows: a run's own files, and what the queue says of its jobs, put together.

Owns the cases: a run that was never submitted, one that is just starting, one whose job waits and has written nothing,
one whose stages are several jobs, an array of runs. Called by `cli`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from launcher import run_lock
from launcher.errors import UserError
from launcher.memory_record import read_all
from launcher.plan import measured_time
from launcher.run_dir import RunDir
from launcher.slurm import array
from launcher.slurm import queue as slurm_queue
from launcher.slurm.queue import QueueState
from launcher.status import ACTIVE, FOLLOW_EVERY_S, as_shown, read_status, render

STARTS_WITHIN_S = 3.0
"""From the moment a launcher has taken a folder until it has written its first status."""
AWAITED_S = 20.0
"""How long `follow` waits for a run whose command was given a moment ago."""
ARRAY_EVERY_S = 10.0
"""Between two looks at an array, or as many seconds as it has tasks: each is asked for by itself."""


def as_json(run: RunDir) -> dict[str, Any]:
    """``status.json``, ``memory`` and ``step_time`` by stage, and ``queue``, the job that the run waits for or runs in;
    of an array, ``tasks``.

    Raises: UserError when the folder is no run's.
    """
    if tasks := list(array.runs(run)):
        return {"tasks": [{"run": str(task.path), "set": given} | as_json(task) for task, given in tasks]}
    queue = slurm_queue.look(run)
    queued = {"queue": queue.model_dump()} if queue else {}
    if queue and not run.status.is_file():
        return queued
    if not _has_begun(run):
        return {"state": "preparing", "message": _starting(run)}
    memory = {one.stage: one.model_dump(exclude={"ranks"}) for one in read_all(run)}
    times = {one.stage: one.model_dump(exclude={"stage"}) for one in measured_time.of_run(run)}
    return as_shown(read_status(run)) | {"memory": memory, "step_time": times} | queued


def as_text(run: RunDir) -> str:
    """The same for people; of an array, a line for each task.

    Raises: UserError when the folder is no run's.
    """
    if tasks := list(array.runs(run)):
        return _of_array(tasks, [slurm_queue.look(task) for task, _ in tasks])
    jobs = [state for job in slurm_queue.jobs_of(run) if (state := slurm_queue.ask(job)) is not None]
    return _together(run, jobs) if jobs or _has_begun(run) else _starting(run)


def follow(run: RunDir) -> Iterator[str]:
    """`as_text` whenever it says something new, until the run has ended: in SLURM's queue, where it was submitted.

    Raises: UserError when the folder is no run's.
    """
    if tasks := list(array.runs(run)):
        yield from _followed_array(tasks)
        return
    if not run.status.is_file() and not slurm_queue.jobs_of(run):
        yield from _awaited(run)
    shown: object = None
    follower = slurm_queue.Follower(run)
    while True:
        is_begun = run.status.is_file() or not slurm_queue.jobs_of(run)
        status = read_status(run) if is_begun else None
        jobs = follower.look(status and status.state)
        if status is None and not jobs:
            if _is_over(run, jobs):
                raise UserError(f"{run.path} never began, and SLURM knows nothing of its job any more; submit it again")
            time.sleep(FOLLOW_EVERY_S)
            continue
        if (status, jobs) != shown:
            shown = status, jobs
            yield _together(run, jobs)
        if _is_over(run, jobs):
            if run.status.is_file() and (read_status(run), jobs) != shown:  # it ended since it was read
                yield _together(run, jobs)
            return
        time.sleep(FOLLOW_EVERY_S)


def _has_begun(run: RunDir) -> bool:
    """Whether there is a status; waits for the first one of a launcher that has just taken the folder. True as well
    where there is no run: `read_status` says so."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not run.status.is_file():
        if run_lock.holder(run) is None:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _starting(run: RunDir) -> str:
    return f"{run.path}: process {run_lock.holder(run)} is starting a run here; it has not said anything yet"


def _awaited(run: RunDir) -> Iterator[str]:
    """Until there is a status, or the wait is over: then `read_status` says what is wrong with the folder."""
    if run.path.exists() and not run.path.is_dir():
        return
    try:
        read_status(run)
    except UserError as error:
        yield f"{error}; waiting {AWAITED_S:.0f} s for one to start"
    deadline = time.monotonic() + AWAITED_S
    while not run.status.is_file():
        if time.monotonic() > deadline and run_lock.holder(run) is None:
            return
        time.sleep(FOLLOW_EVERY_S / 4)


def _followed_array(tasks: Sequence[tuple[RunDir, str]]) -> Iterator[str]:
    shown = ""
    followers = [slurm_queue.Follower(task) for task, _ in tasks]
    while True:
        jobs = [follower.look() for follower in followers]
        text = _of_array(tasks, [found[-1] if found else None for found in jobs])
        if text != shown:
            shown = text
            yield text
        if all(map(_is_over, (task for task, _ in tasks), jobs)):
            return
        time.sleep(max(ARRAY_EVERY_S, float(len(tasks))))


def _is_over(run: RunDir, jobs: Sequence[QueueState]) -> bool:
    """By the queue; by the run's own word where SLURM has forgotten it, or is not here."""
    if jobs:
        return all(job.is_over for job in jobs)
    if not run.status.is_file():  # it never began, or the controller did not answer yet
        return all(map(slurm_queue.is_forgotten, slurm_queue.jobs_of(run)))
    status = read_status(run)
    return status.state not in ACTIVE or status.is_lost()


def _together(run: RunDir, jobs: Sequence[QueueState]) -> str:
    if jobs and not run.status.is_file():  # none has begun
        return "\n".join(map(str, jobs))
    lines = [f"{'queue' if number == 0 else '':<12}{job}" for number, job in enumerate(_shown(jobs))]
    is_queued = any(not job.is_over for job in jobs)
    return "\n".join([render(read_status(run), run, is_queued=is_queued), *lines])


def _shown(jobs: Sequence[QueueState]) -> Sequence[QueueState]:
    """Those that are not over, else the last."""
    return [job for job in jobs if not job.is_over] or jobs[-1:]


def _of_array(tasks: Sequence[tuple[RunDir, str]], queued: Sequence[QueueState | None]) -> str:
    """A line for each task."""
    return "\n".join(
        f"{task.path.name}  {given}: {_line(task, queue)}" for (task, given), queue in zip(tasks, queued, strict=True)
    )


def _line(task: RunDir, queue: QueueState | None) -> str:
    if not task.status.is_file():
        return str(queue) if queue else "not begun"
    status = read_status(task)
    metrics = "".join(f", {name} {value:.4g}" for name, value in status.metrics.items())
    place = f", stage {status.stage} step {status.step} of {status.steps}" if status.stage else ""
    return f"{status.state}{place}{metrics}" + (f"; {queue}" if queue and not queue.is_over else "")
