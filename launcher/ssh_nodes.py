"""``thawline run --nodes A,B``: the same run on several machines without SLURM, printed or started over ssh.

Owns the command of each machine: one torchrun with the same world, whose worker is the one of ``thawline run``. The
run's folder, the recipe, model, data and environment must be at the same paths on all of them. Refuses to look after
the machines: what a cluster's scheduler does (queues, limits, lost nodes) is not done here. Called by `cli`.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from launcher import session
from launcher.cluster import EXPECTED_GPUS, EXPECTED_RANKS, Cluster, here
from launcher.errors import EnvironmentProblem, UserError
from launcher.recipe import reading
from launcher.run_dir import RunDir, write_atomic
from launcher.slurm.attempt import begin, judge
from launcher.status import close_status
from launcher.stop import ATTEMPT

PORT = 29_400
AFTER_FAILURE_S = 20.0
"""What the other machines get to end by themselves once one has failed."""
LOOK_EVERY_S = 0.2
SSH_LOST = 255
"""What ssh itself ends with: the machine was not reached, or is gone."""
SSH = ("ssh", "-tt", "-o", "BatchMode=yes")
"""With a terminal of its own, so that what runs there is hung up when this end goes."""
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:-]*")


@dataclass(frozen=True)
class OnNodes:
    """A run and its machines."""

    hosts: Sequence[str]
    """The first is where the ranks meet. ``user@`` may stand before each."""
    recipe: Path
    overrides: Sequence[str]
    run: RunDir
    machine: Cluster
    """What each of them has, and how many ranks it starts."""

    @property
    def command(self) -> str:
        """What asks for the same again."""
        words = ["thawline", "run", str(self.recipe), "--run-dir", str(self.run.path), "--nodes", ",".join(self.hosts)]
        words += ["--ranks", str(self.machine.ranks_per_node)]
        return shlex.join([*words, *(word for override in self.overrides for word in ("--set", override)), "--ssh"])


def asked(hosts: str, recipe_path: Path, overrides: Sequence[str], run_dir: Path | None, ranks: int | None) -> OnNodes:
    """What ``--nodes`` asks for.

    Raises: UserError for a wrong host or recipe, or a folder that holds another run.
    """
    names = [name.strip() for name in hosts.split(",")]
    for name in names:
        if not _HOST.fullmatch(name):
            raise UserError(f"--nodes {hosts!r}: {name!r} is no host name; give them as hostA,hostB")
    if len(set(names)) < len(names):
        raise UserError(f"--nodes {hosts!r} names a host twice; more processes on it are --ranks")
    recipe = reading.load(recipe_path, overrides)
    run = RunDir((run_dir or session.RUNS / recipe.name).absolute())
    machine = here(ranks)
    session.make_way(run, recipe, len(names), machine.ranks_per_node)
    return OnNodes(names, recipe_path.absolute(), tuple(overrides), run, machine)


def commands(nodes: OnNodes, attempt: Path | None = None) -> list[str]:
    """What each machine runs, for a shell there."""
    machine, head = nodes.machine, nodes.hosts[0].rpartition("@")[2]
    variables = {
        EXPECTED_RANKS: str(len(nodes.hosts) * machine.ranks_per_node),
        EXPECTED_GPUS: str(machine.gpus_per_node),
    } | ({ATTEMPT: str(attempt)} if attempt else {})
    found = []
    for number in range(len(nodes.hosts)):
        words = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable]
        words += ["-m", "torch.distributed.run", f"--nnodes={len(nodes.hosts)}"]
        words += [f"--nproc-per-node={machine.ranks_per_node}", f"--node-rank={number}"]
        words += [f"--master-addr={head}", f"--master-port={PORT}", "-m", "launcher.worker", str(nodes.recipe)]
        words += ["--run-dir", str(nodes.run.path)]
        words += [word for override in nodes.overrides for word in ("--set", override)]
        found.append(f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}")
    return found


def start(nodes: OnNodes, say: Callable[[str], None]) -> None:
    """Run the commands over ssh, and wait. A first SIGINT or SIGTERM saves and stops, a second ends everything.

    Raises: a ThawlineError with the first real error of a rank, or StoppedEarly when a stop was asked for.
    """
    folder = nodes.run.path / "nodes"
    attempt = folder / f"attempt-{len(list(folder.glob('attempt-*')))}"
    nodes.run.require_possible()
    attempt.mkdir(parents=True)
    begin(nodes.run, attempt, budget=sys.maxsize)
    write_atomic(nodes.run.command, nodes.command + "\n")
    started: list[subprocess.Popen[str]] = []
    readers = []
    try:
        with _stops(attempt / "stop", started):
            for host, command in zip(nodes.hosts, commands(nodes, attempt), strict=True):
                started.append(_ssh(host, command))
                readers.append(threading.Thread(target=_echo, args=(host, started[-1].stdout, say)))
                readers[-1].start()
            code = _wait(started)
    finally:
        _end(started)
        for reader in readers:
            reader.join()
    for number, (host, process) in enumerate(zip(nodes.hosts, started, strict=True)):
        if process.returncode >= 0 and process.returncode != SSH_LOST:
            (attempt / f"rc.{number}").write_text(f"{process.returncode} {time.time()} {host}\n")
    result = judge(nodes.run, attempt, code, len(nodes.hosts))
    if result.exit_code:
        close_status(nodes.run, "stopped" if (attempt / "stop").exists() else "failed", result.message)
    result.raise_if_failed()


def _ssh(host: str, command: str) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [*SSH, host, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            "ssh is not on PATH; without --ssh the commands are printed, to run them by hand"
        ) from error


def _echo(host: str, stream: IO[str] | None, say: Callable[[str], None]) -> None:
    assert stream is not None
    for line in stream:
        say(f"{host}: {line.rstrip()}")


def _wait(started: Sequence[subprocess.Popen[str]]) -> int:
    """The first code that is not 0, once all have ended, or had their time after one failed."""
    failed_at: float | None = None
    code = 0
    while True:
        ended = [process.poll() for process in started]
        if failed_at is None and (failed := [one for one in ended if one]):
            failed_at, code = time.monotonic(), failed[0]
        is_late = failed_at is not None and time.monotonic() - failed_at > AFTER_FAILURE_S
        if all(one is not None for one in ended) or is_late:
            return code
        time.sleep(LOOK_EVERY_S)


def _end(started: Sequence[subprocess.Popen[str]]) -> None:
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait()


@contextmanager
def _stops(file: Path, started: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """The ranks look for the file after each step, save, and end together."""

    def handle(number: int, frame: FrameType | None) -> None:
        if file.exists():
            _end(started)
        file.touch()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
