"""What a run's newest launch wrote, or all of them: which files, and their text as it grows.

Owns the way from a run and a rank to its log, under ``thawline run`` and in a SLURM job alike. On one machine all
launches write to one file, each after a line of its own; in a SLURM job each has a folder. Reads files alone; whether a
submitted run is over it asks `slurm.queue` too, since a job that waits in the queue writes nothing.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import UserError
from launcher.run_dir import RunDir
from launcher.slurm import array, queue
from launcher.status import ACTIVE, read_status

FOLLOW_EVERY_S = 0.5
LAUNCH = re.compile(rb"^== \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} rank \d+ of \d+; ", re.MULTILINE)
"""How `rank_process` begins each launch in a rank's log."""


def read(run: RunDir, rank: int | None = None, *, is_all: bool = False) -> Iterator[str]:
    """The text that there is now, each file under its name where there are several.

    Args:
        is_all: of every launch, in their order, and not of the newest alone.

    Raises: UserError when there is no log yet, or none of that rank.
    """
    found = [file for file in (_all_files(run, rank) if is_all else files(run, rank)) if file.is_file()]
    if not found:
        raise UserError(_absent(run, rank))
    for file in found:
        text = _from(file, 0 if is_all else _newest_launch(file))
        yield _title(file, len(found) > 1) + text.decode(errors="replace")


def follow(run: RunDir, rank: int | None = None, *, is_all: bool = False) -> Iterator[str]:
    """The text that there is and what comes, of later attempts too, until the run has ended.

    Args:
        is_all: begin with the first launch that the newest file tells of, and not with the newest.

    Raises: UserError when the folder is no run's.
    """
    places: dict[Path, int] = {}
    if not is_all:
        places = {file: _newest_launch(file) for file in files(run, rank) if file.is_file()}
    last: Path | None = None
    follower = queue.Follower(run)
    if list(array.runs(run)):
        raise UserError(_absent(run, rank))
    while True:
        is_over = _is_over(run, follower)
        for file in files(run, rank):
            text = _from(file, places.get(file, 0)) if file.is_file() else b""
            if text:
                yield ("" if file == last else _title(file, True)) + text.decode(errors="replace")
                places[file], last = places.get(file, 0) + len(text), file
        if is_over:  # known before the last look
            return
        time.sleep(FOLLOW_EVERY_S)


def files(run: RunDir, rank: int | None = None) -> list[Path]:
    """Where the newest launch writes: the job's log and its first node's, or one rank's; they may not be there yet."""
    job = queue.job_of(run)
    if job is None:
        here, over_ssh = run.log(rank or 0), sorted((run.path / "nodes").glob("attempt-*"), key=_number)
        there = over_ssh[-1] / here.name if over_ssh else here
        return [max((here, there), key=lambda file: file.stat().st_mtime if file.is_file() else 0.0)]
    attempts = sorted((run.path / "slurm" / job).glob("attempt-*"), key=_number)
    if rank is not None:
        return [attempts[-1] / f"rank-{rank}.log"] if attempts else []
    nodes = sorted(attempts[-1].glob("node-*.log")) if attempts else []
    return [run.path / "slurm" / f"job-{job}.log", *(file for file in nodes if _is_first_node(file))]


def _all_files(run: RunDir, rank: int | None) -> list[Path]:
    """As `files`, of every launch; those over ssh and of earlier jobs too."""
    jobs = sorted((run.path / "slurm").glob("job-*.log"), key=lambda file: file.stat().st_mtime) if rank is None else []
    attempts = sorted(run.path.glob("slurm/*/attempt-*"), key=lambda path: (path.stat().st_ctime, _number(path)))
    nodes = [
        file
        for attempt in attempts
        for file in sorted(attempt.glob("node-*.log" if rank is None else f"rank-{rank}.log"))
        if rank is not None or _is_first_node(file)
    ]
    name = run.log(rank or 0).name
    over_ssh = [attempt / name for attempt in sorted((run.path / "nodes").glob("attempt-*"), key=_number)]
    return [*jobs, *nodes, *over_ssh, run.log(rank or 0)]


def _newest_launch(file: Path) -> int:
    """Where in a rank's log the newest launch begins; 0 in a file that has no such lines."""
    return max((found.start() for found in LAUNCH.finditer(file.read_bytes())), default=0)


def _number(attempt: Path) -> int:
    return int(attempt.name.rpartition("-")[2])


def _is_first_node(file: Path) -> bool:
    with file.open(errors="replace") as log:
        return ": node 0 of " in log.readline()


def _from(file: Path, place: int) -> bytes:
    with file.open("rb") as log:
        log.seek(place)
        return log.read()


def _has_ended(run: RunDir) -> bool:
    return run.status.is_file() and read_status(run).state not in ACTIVE


def _is_over(run: RunDir, follower: queue.Follower) -> bool:
    """Whether nothing will be written any more: the queue's word first, where there is one."""
    jobs = follower.look(_has_ended(run))
    if jobs:
        return all(job.is_over for job in jobs)
    if queue.job_of(run) is not None and not run.status.is_file():
        return False  # it waits, and the queue gives no answer
    status = read_status(run)
    return status.state not in ACTIVE or status.is_lost()


def _title(file: Path, is_shown: bool) -> str:
    return f"==> {file} <==\n" if is_shown else ""


def _absent(run: RunDir, rank: int | None) -> str:
    if tasks := [task.path for task, _ in array.runs(run)]:
        return f"{run.path} is an array, whose tasks have logs of their own: thawline logs {shlex.quote(str(tasks[0]))}"
    there = [
        file
        for place in ("logs", "slurm/*/attempt-*", "nodes/attempt-*")
        for file in run.path.glob(f"{place}/rank-*.log")
    ]
    if rank is not None and there:
        ranks = sorted({int(file.stem.removeprefix("rank-")) for file in there})
        return f"{run.path} has no log of rank {rank}; its ranks are {ranks[0]} to {ranks[-1]}"
    read_status(run)  # says what is wrong with the folder
    return f"{run.path} has no log yet; `thawline status {run.quoted}` says where it stands"
