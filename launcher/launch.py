"""Starts the ranks of this machine, passes signals on, ends them together.

Owns the processes of one launch from their start to the exit code. Refuses to know what the ranks compute: it runs any
command that keeps the contract below. `cli` calls `train`; `verdict` says which error was first.

What a rank gets: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun sets them, and
the two variables of `orphans`. Rank 0 has the terminal's stdout; everything else goes to ``logs/rank-N.log``. What it
owes: exit code 0; 75 after SIGTERM or SIGUSR1, or 130 after SIGINT, with a checkpoint written; or another code, with
`rank_error.record` written before.

One rank's failure ends all: the others get SIGTERM, and SIGKILL after a grace, with everything they started.
"""

from __future__ import annotations

import os
import random
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO

from launcher import orphans, rank_error, session
from launcher.cluster import threads_per_rank
from launcher.errors import EnvironmentProblem, Interrupted, OutOfMemory, StoppedEarly, UserError
from launcher.plan import micro_size
from launcher.rank_process import RankProcess
from launcher.run_dir import RunDir
from launcher.session import Claim
from launcher.status import close_status, read_status
from launcher.verdict import STOPPED_CODES, Ended, LaunchResult, judge

FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
}
"""What the launcher is sent -> what the ranks are."""
_PORTS = range(20_000, 32_768)
"""Below the range that Linux hands out for outgoing connections, so that none takes the port before rank 0 does."""


@dataclass(frozen=True)
class Grace:
    """How long ranks may take to end by themselves before they are killed."""

    after_failure_s: float = 15.0
    """When another rank failed: there is nothing left to save."""
    after_stop_s: float = 600.0
    """When a stop was asked for: they finish a step and write a checkpoint. A second Ctrl-C cuts it short."""


def train(claim: Claim, say: Callable[[str], None]) -> None:
    """Start the ranks of a run and wait for their end; nothing but a word when it is finished already.

    Raises: a ThawlineError with the first real error, or StoppedEarly or Interrupted when a stop was asked for.
    """
    run_dir = RunDir(claim.path)
    if claim.standing == "finished":
        say(f"{claim.path} is finished: {read_status(run_dir).message or run_dir.model}")
        return
    say(f"{claim.path}: {'a new run' if claim.standing == 'new' else 'goes on'} on {claim.cluster}")
    command = [sys.executable, "-m", "launcher.worker", *claim.arguments]
    if claim.standing == "unfinished" and (told := _with_less_memory(run_dir)):
        say(told)  # it ended under a launcher that starts no ranks again
    result = run_ranks(command, claim.cluster.ranks_per_node, run_dir)
    while (
        result.exit_code == OutOfMemory.exit_code
        and not result.is_asked
        and (told := _with_less_memory(run_dir, result.rank))
    ):
        say(told)
        # The recipe as it was: the user's own file may be another by now.
        command = [sys.executable, "-m", "launcher.worker", str(run_dir.recipe), "--run-dir", str(run_dir.path)]
        result = run_ranks(command, claim.cluster.ranks_per_node, run_dir)
    if result.exit_code in (UserError.exit_code, *STOPPED_CODES):
        session.withdraw(claim)
    _close_status(run_dir, result)
    result.raise_if_failed()


def _with_less_memory(run_dir: RunDir, rank: int | None = None) -> str | None:
    """After a rank (that one) ran out of memory: plan its stage anew, and say so. None: none did, or nothing helps."""
    for error in rank_error.read_all(run_dir):
        if error.shortage is not None and rank in (None, error.rank):
            told = micro_size.after_out_of_memory(run_dir, error.shortage, error.rank, error.message)
            # It is dealt with: a launcher that comes after this one was killed must not do so again.
            rank_error.clear(run_dir)
            return told
    return None


def _close_status(run_dir: RunDir, result: LaunchResult) -> None:
    """Say in the status what the first rank could not: it was killed, or knew nothing of the others' errors."""
    if result.exit_code == StoppedEarly.exit_code:
        close_status(run_dir, "stopped", result.message)
    elif result.exit_code == Interrupted.exit_code:
        close_status(run_dir, "interrupted", result.message)
    elif result.exit_code:
        close_status(run_dir, "failed", result.message)


def run_ranks(
    command: Sequence[str],
    num_ranks: int,
    run_dir: RunDir,
    env: Mapping[str, str] | None = None,
    grace: Grace = Grace(),
) -> LaunchResult:
    """Run ``command`` once a rank until all have ended; ``env`` is added to this process's environment.

    Must be called on the main thread: it handles SIGTERM, SIGUSR1, SIGHUP, SIGINT and SIGCHLD meanwhile. When the
    rendezvous port is taken by another process in the moment before rank 0 opens it, all start once more on another.

    Raises: EnvironmentProblem when the command cannot be started at all.
    """
    run_dir.create()
    result = _run_once(command, num_ranks, run_dir, env or {}, grace)
    if result.is_port_taken and not result.is_asked:
        result = _run_once(command, num_ranks, run_dir, env or {}, grace)
    return result


def _run_once(
    command: Sequence[str], num_ranks: int, run_dir: RunDir, env: Mapping[str, str], grace: Grace
) -> LaunchResult:
    rank_error.clear(run_dir)
    token = secrets.token_hex(16)
    shared = _shared_environment(num_ranks, token, env)
    guard = orphans.start_guard(token)
    launch = _Launch(grace)
    try:
        with _signals_to(launch) as wakeup:
            for rank in range(num_ranks):
                launch.ranks.append(RankProcess.start(command, rank, shared, run_dir))
            launch.wait(wakeup)
    finally:
        launch.kill_all()
        for started in launch.ranks:
            started.process.wait()
        if sys.stdout.isatty():
            print("\x1b[?25h", end="", flush=True)  # a rank that was killed while it drew a bar left the cursor hidden
        guard.communicate()  # closes its stdin: it sweeps up what the ranks left behind, and ends
    return judge(launch.ended, rank_error.read_all(run_dir), launch.asked, run_dir)


def _shared_environment(num_ranks: int, token: str, env: Mapping[str, str]) -> dict[str, str]:
    """The variables that are the same for every rank, on top of this process's."""
    threads = {"OMP_NUM_THREADS": str(threads_per_rank(num_ranks))}
    defaults = threads | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    ours = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        orphans.LAUNCHER_PID: str(os.getpid()),
        orphans.LAUNCH_TOKEN: token,
    }
    return defaults | dict(os.environ) | dict(env) | ours


def free_port() -> int:
    """A TCP port that nobody listens on now.

    Raises: EnvironmentProblem when none is found.
    """
    for port in random.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise EnvironmentProblem(
        f"no free TCP port: 200 ports between {_PORTS.start} and {_PORTS.stop} are all in use; "
        "see `ss -ltn` for what holds them"
    )


class _Launch:
    """The ranks of one attempt, and what has been asked of them."""

    def __init__(self, grace: Grace) -> None:
        self.grace = grace
        self.ranks: list[RankProcess] = []
        self.pending: list[signal.Signals] = []
        """Signals that came and were not acted on yet."""
        self.asked: signal.Signals | None = None
        """The first of them."""
        self.deadline: float | None = None
        """Monotonic time at which the ranks that are left are killed."""

    @property
    def ended(self) -> list[Ended]:
        return [rank.ended for rank in self.ranks if rank.ended]

    def wait(self, wakeup: IO[bytes]) -> None:
        """Until every rank has ended."""
        while True:
            for number in self._take_pending():
                self._on_signal(number)
            for rank in self.ranks:
                if rank.reap():
                    self._on_end(rank)
            if all(rank.ended for rank in self.ranks):
                return
            remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            if remaining == 0.0:
                self.kill_all()
                self.deadline = remaining = None
            select.select([wakeup], [], [], remaining)
            wakeup.read()

    def kill_all(self) -> None:
        for rank in self.ranks:
            rank.kill()

    def _take_pending(self) -> list[signal.Signals]:
        taken, self.pending = self.pending, []
        return taken

    def _on_signal(self, number: signal.Signals) -> None:
        is_second = number is signal.SIGINT and self.asked is signal.SIGINT
        self.asked = self.asked or number
        if is_second:
            self.kill_all()
            return
        self._end_within(self.grace.after_stop_s)
        for rank in self.ranks:
            rank.send(FORWARDED[number])

    def _on_end(self, rank: RankProcess) -> None:
        """A rank that stopped as asked, or finished, hurries nobody; one that failed ends the rest soon."""
        assert rank.ended
        if rank.ended.code == 0:
            return
        is_stop = rank.ended.code in STOPPED_CODES or (self.asked is not None and rank.ended.is_by_launcher)
        self._end_within(self.grace.after_stop_s if is_stop else self.grace.after_failure_s)
        for other in self.ranks:
            if signal.SIGTERM not in other.sent and not (is_stop and self.asked):
                other.send(signal.SIGTERM)

    def _end_within(self, seconds: float) -> None:
        proposed = time.monotonic() + seconds
        self.deadline = proposed if self.deadline is None else min(self.deadline, proposed)


@contextmanager
def _signals_to(launch: _Launch) -> Iterator[IO[bytes]]:
    """Queue signals in ``launch.pending``; yields a stream that becomes readable when one comes or a child ends."""

    def queue(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            launch.pending.append(signal.Signals(number))

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # nohup ignores SIGHUP on purpose; the others are ours even where a shell's `&` ignored them.
    handled = [n for n in FORWARDED if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, queue) for number in (*handled, signal.SIGCHLD)}
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with open(reader, "rb", buffering=0) as stream:
            yield stream
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
