"""One rank's process: started with its log, sent signals, killed with its group, reaped without a race.

Owns the operating system's side of a rank. `launch` decides when each of these happens.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.errors import EnvironmentProblem
from launcher.run_dir import RunDir
from launcher.verdict import Ended


@dataclass
class RankProcess:
    """The process of one rank, not yet reaped or with its end known."""

    number: int
    process: subprocess.Popen[bytes]
    sent: set[int] = field(default_factory=set)
    ended: Ended | None = None

    @classmethod
    def start(cls, command: Sequence[str], rank: int, shared: Mapping[str, str], run_dir: RunDir) -> RankProcess:
        """Start ``command`` as a rank, in a session of its own, with ``shared`` and its number as its environment.

        Raises: EnvironmentProblem when the program cannot be run.
        """
        with run_dir.log(rank).open("ab") as log:
            log.write(_log_header(rank, shared))
            log.flush()
            try:
                process = subprocess.Popen(
                    command,
                    env=dict(shared) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else log,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C reaches the launcher alone
                )
            except OSError as error:
                raise EnvironmentProblem(f"rank {rank} cannot start {command[0]!r}: {error}") from error
        return cls(rank, process)

    def send(self, number: signal.Signals) -> None:
        """To the rank's own process; what it started is its own to end."""
        if self.ended is None:
            self.sent.add(number)
            os.kill(self.process.pid, number)  # not reaped yet, so the id is still its own

    def kill(self) -> None:
        """The rank and its process group; `orphans` sees to what left the group."""
        if self.ended is None:
            self.sent.add(signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> bool:
        """Whether it has ended since the last look. What is left of its group dies before its id can be another's."""
        if self.ended is not None:
            return False
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        at = time.time()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.ended = Ended(self.number, self.process.wait(), at, frozenset(self.sent))
        return True


def _log_header(rank: int, shared: Mapping[str, str]) -> bytes:
    threads = shared["OMP_NUM_THREADS"]
    origin = "as set" if "OMP_NUM_THREADS" in os.environ else "its share of the cores"
    now = time.strftime("%Y-%m-%d %H:%M:%S%z")
    return f"== {now} rank {rank} of {shared['WORLD_SIZE']}; OMP_NUM_THREADS={threads} ({origin})\n".encode()
