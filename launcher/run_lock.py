"""The lock that lets one process at a time work on a run.

The launcher's under ``thawline run``, the first rank's where another program started the ranks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from launcher import heartbeat, orphans
from launcher.errors import StoppedEarly, UserError
from launcher.run_dir import RunDir
from launcher.stop import ATTEMPT

log = logging.getLogger(__name__)
PATIENCE_S = 120.0
"""For a rank of a SLURM job's last attempt, which may live on for a while where SLURM lost sight of it."""
_held: dict[Path, IO[str]] = {}
"""Locks of this process. The kernel lets go of them when it ends, however it ends."""


def take(run: RunDir) -> None:
    """Take the run for this process until it ends.

    Raises: UserError when another process has it; StoppedEarly when it keeps it from the next attempt of a SLURM job.
    """
    key = run.path.resolve()
    if key in _held or orphans.launcher_pid() is not None:  # the launcher has it, and ends with its ranks
        return
    try:
        file = run.launcher_lock.open("a+")
    except OSError as error:
        raise run.refusal(run.launcher_lock, error) from error
    is_job = ATTEMPT in os.environ
    try:
        _lock(file, PATIENCE_S if is_job else 0.0)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if is_job:
            raise StoppedEarly(f"process {holder} of an earlier attempt still works on {run.path}") from error
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


def holder(run: RunDir) -> int | None:
    """The process on this host that took the run last, if it lives; looking at the lock itself would be in its way."""
    try:
        pid = int(run.launcher_lock.read_text())
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return pid
    except (OSError, ValueError):
        return None
    return pid


def _lock(file: IO[str], patience_s: float) -> None:
    """Raises: BlockingIOError when another process keeps it all the while."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)
            heartbeat.tick()  # it waits, and does not hang
