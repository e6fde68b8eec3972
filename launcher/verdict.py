"""What a launch came to: one exit code and one message out of all the ranks' ends.

Owns the question which error was first. Pure: `launch` hands in how each rank ended and what it wrote. The first real
error is shown once, with its log; what other ranks said because that one was gone is not shown.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import EnvironmentProblem, Interrupted, StoppedEarly, ThawlineError, TrainingFailed, UserError
from launcher.rank_error import RankError
from launcher.run_dir import RunDir

STOPPED_CODES = (StoppedEarly.exit_code, Interrupted.exit_code)
LOG_TAIL_LINES = 12
_LIKELY = {
    signal.SIGKILL: "most likely the kernel's out-of-memory killer (`dmesg` says so): use a smaller "
    "batch.micro_size, fewer ranks, or less offload",
    signal.SIGBUS: "often a full /dev/shm: set data.num_workers to 0, or give the container more shared memory",
    signal.SIGSEGV: "a crash in native code: the log shows where each thread was",
    signal.SIGTERM: "something outside of thawline stopped this one process",
}


@dataclass(frozen=True)
class Ended:
    """How one rank's process ended."""

    rank: int
    code: int
    """As `subprocess.Popen.returncode`: minus the signal for one that a signal ended."""
    at: float
    """Seconds since 1970, when the launcher saw it."""
    sent: frozenset[int] = frozenset()
    """Signals that the launcher had sent it."""

    @property
    def is_by_launcher(self) -> bool:
        """Whether a signal of the launcher's ended it."""
        return -self.code in self.sent


@dataclass(frozen=True)
class LaunchResult:
    """What the user is told, and the code the process ends with."""

    exit_code: int
    message: str = ""
    """Empty when all went well."""
    rank: int | None = None
    """Whose error it was."""
    is_port_taken: bool = False
    is_asked: bool = False
    """The launcher had been asked to stop; then nothing is started again."""
    is_passing: bool = False
    """It failed for a machine's sake, and another attempt may go well."""

    def raise_if_failed(self) -> None:
        """Raise what `cli` turns into the message and the exit code; nothing for 0."""
        if self.exit_code:
            raise _ERRORS.get(self.exit_code, RankCrashed)(self.message)


class RankCrashed(ThawlineError):
    """A rank met an exception that is a bug; the message holds its traceback."""

    exit_code = 1


_ERRORS: dict[int, type[ThawlineError]] = {
    error.exit_code: error for error in (UserError, EnvironmentProblem, TrainingFailed, StoppedEarly, Interrupted)
}


def judge(
    ended: Sequence[Ended], errors: Sequence[RankError], asked: signal.Signals | None, run_dir: RunDir
) -> LaunchResult:
    """The earliest real error; else the earliest echo of one; else the stop that was asked for; else success.

    ``errors`` are what the ranks wrote, ``asked`` is the first signal that the launcher itself was sent.
    """
    written = {error.rank: error for error in errors if error.exit_code not in STOPPED_CODES}
    causes: list[tuple[bool, float, LaunchResult]] = []
    for end in ended:
        if end.code == 0:
            continue
        if error := written.get(end.rank):
            causes.append((error.secondary, error.time, _from_error(error, run_dir)))
        elif end.code not in STOPPED_CODES and not end.is_by_launcher:
            causes.append((False, end.at, _from_silence(end, len(ended), run_dir)))
    if causes:
        return replace(min(causes, key=lambda cause: cause[:2])[2], is_asked=asked is not None)
    if all(end.code == 0 for end in ended):
        return LaunchResult(0)
    return _stopped(ended, errors, asked, run_dir)


def _from_error(error: RankError, run_dir: RunDir) -> LaunchResult:
    is_bug = error.exit_code not in _ERRORS
    body = f"{error.traceback.rstrip()}\nThawline has no advice on this one." if is_bug else error.message
    is_unplanned = error.exit_code == UserError.exit_code and not run_dir.plan.is_file()  # then the log says no more
    message = body if is_unplanned else f"{body}\n{_where(error.rank, run_dir)}"
    return LaunchResult(1 if is_bug else error.exit_code, message, error.rank, error.is_port_taken)


def _from_silence(end: Ended, num_ranks: int, run_dir: RunDir) -> LaunchResult:
    who = f"rank {end.rank} of {num_ranks}"
    if end.code < 0:
        number = signal.Signals(-end.code)
        likely = _LIKELY.get(number, "nothing in thawline sends it")
        return LaunchResult(
            TrainingFailed.exit_code,
            f"{who} was killed by {number.name} ({-end.code}): {likely}.\n"
            f"{_where(end.rank, run_dir)}\n{_going_on(run_dir)}.",
            end.rank,
        )
    tail = _tail(run_dir.log(end.rank))
    code = end.code if end.code in (1, *_ERRORS) else TrainingFailed.exit_code
    message = f"{who} ended with exit code {end.code} and left no error.\n{_where(end.rank, run_dir)}"
    return LaunchResult(code, f"{message}, which ends:\n{tail}" if tail else message, end.rank)


def _stopped(
    ended: Sequence[Ended], errors: Sequence[RankError], asked: signal.Signals | None, run_dir: RunDir
) -> LaunchResult:
    is_interrupt = asked is signal.SIGINT or (asked is None and any(end.code == Interrupted.exit_code for end in ended))
    code = (Interrupted if is_interrupt else StoppedEarly).exit_code
    killed = [str(end.rank) for end in ended if end.code == -signal.SIGKILL]
    words = (error.message for error in errors if error.exit_code in STOPPED_CODES and not error.secondary)
    message = next(words, f"{'interrupted' if is_interrupt else 'stopped on request'}; {_going_on(run_dir)}")
    if killed:
        message += f" (rank {', '.join(killed)} did not stop by itself and was killed)"
    return LaunchResult(code, message)


def _going_on(run_dir: RunDir) -> str:
    """What to do next."""
    if not run_dir.plan.is_file():
        return "there is no plan yet: the same command begins anew"
    return f"`{run_dir.going_on()}` goes on from the newest checkpoint"


def _where(rank: int, run_dir: RunDir) -> str:
    return f"Log of rank {rank}: {run_dir.log(rank)}"


def _tail(log: Path) -> str:
    """The log's last lines, indented."""
    if not log.is_file():
        return ""
    lines = log.read_bytes()[-8192:].decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
