"""The launcher with real processes: a small script stands in for the worker, so that every way to end can be had."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WAIT_S = 60.0

LAUNCHER = """
import json, sys
from launcher.launch import Grace, run_ranks
from launcher.run_dir import RunDir
command, ranks, run_dir, grace, env = json.loads(sys.argv[1])
result = run_ranks([sys.executable, *command], ranks, RunDir(run_dir), env, Grace(**grace))
if result.message:
    print(result.message, file=sys.stderr)
sys.exit(result.exit_code)
"""

WORKER_PRELUDE = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path
from launcher import errors, rank_error
from launcher.run_dir import RunDir
from launcher.orphans import die_with_parent
RANK = int(os.environ["RANK"])
RUN = RunDir(sys.argv[1])
def ready():
    path = RUN.path / f"ready-{RANK}"
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
def fail(error):
    entry = rank_error.record(RUN, RANK, error)
    sys.exit(entry.exit_code)
def stop_with(code):
    return lambda number, frame: os._exit(code)
def wait_for(name):
    while not (RUN.path / name).exists():
        time.sleep(0.01)
"""


class Launched:
    """A launcher at work."""

    def __init__(self, process: subprocess.Popen[str], run: Path, num_ranks: int) -> None:
        self.process, self.run, self.num_ranks = process, run, num_ranks

    def pids(self) -> list[int]:
        """Of all ranks, once each has said that it is ready."""
        files = [self.run / f"ready-{rank}" for rank in range(self.num_ranks)]
        until(lambda: all(file.exists() for file in files) or self.process.poll() is not None)
        return [int(file.read_text()) for file in files]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Launched] = []

    def start(worker: str, ranks: int = 2, grace: dict[str, float] | None = None, **env: str) -> Launched:
        script = tmp_path / "worker.py"
        script.write_text(WORKER_PRELUDE + textwrap.dedent(worker))
        run = tmp_path / "run"
        request = json.dumps([[str(script), str(run)], ranks, str(run), grace or {}, env])
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, request], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(Launched(process, run, ranks))
        return started[-1]

    yield start
    for launched in started:
        launched.process.kill()
        launched.process.communicate()


STOPPABLE = """
die_with_parent()
signal.signal(signal.SIGTERM, stop_with(75))
signal.signal(signal.SIGUSR1, stop_with(75))
signal.signal(signal.SIGINT, stop_with(130))
ready()
while True:
    time.sleep(60)
"""
STUBBORN = """
die_with_parent()
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: (RUN.path / f"got-{number}-{RANK}").touch())
ready()
while True:
    time.sleep(60)
"""


def test_all_well(launch: Launch) -> None:
    """Rank 0 speaks to the terminal, the others to their logs; each is told its place."""
    worker = """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "EXTRA")
    print(*(os.environ[name] for name in names))
    print("to stderr", file=sys.stderr)
    """
    launched = launch(worker, ranks=2, OMP_NUM_THREADS="3", EXTRA="given")
    assert launched.end() == (0, "0 0 2 2 127.0.0.1 3 given\n", "")
    zero, one = ((launched.run / f"logs/rank-{rank}.log").read_text() for rank in (0, 1))
    assert "to stderr" in zero
    assert "1 1 2 2 127.0.0.1 3 given" in one
    assert "OMP_NUM_THREADS=3 (as set)" in one


def test_threads_are_shared_out(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OMP_NUM_THREADS each rank has its share of the cores, never none; the log says so."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    launched = launch("print(os.environ['OMP_NUM_THREADS'])", ranks=2)
    assert launched.end() == (0, f"{max(1, len(os.sched_getaffinity(0)) // 2)}\n", "")
    assert "its share of the cores" in (launched.run / "logs/rank-0.log").read_text()


@pytest.mark.parametrize("asks_the_kernel", [True, False])
def test_killed_launcher_leaves_no_orphan(launch: Launch, asks_the_kernel: bool) -> None:
    """`kill -9` of the launcher ends the ranks and what they started, in other sessions too, whether or not they had
    come as far as die_with_parent."""
    worker = STUBBORN if asks_the_kernel else STUBBORN.replace("die_with_parent()", "")
    children = """
    children = [subprocess.Popen(["sleep", "600"], start_new_session=new) for new in (False, True)]
    (RUN.path / f"children-{RANK}").write_text(" ".join(str(child.pid) for child in children))
    """
    launched = launch(textwrap.dedent(children) + worker)
    pids = launched.pids()
    children = [int(pid) for rank in (0, 1) for pid in (launched.run / f"children-{rank}").read_text().split()]
    assert all(map(is_alive, pids + children))
    launched.process.kill()
    until(lambda: not any(map(is_alive, pids + children)))


def test_die_with_parent_needs_no_guard(tmp_path: Path) -> None:
    """The kernel alone ends a rank whose launcher is killed."""
    child = (
        "import time; from launcher.orphans import die_with_parent\n"
        "die_with_parent(); print('ready', flush=True); time.sleep(600)"
    )
    program = (
        "import os, subprocess, sys\n"
        "env = os.environ | {'THAWLINE_LAUNCHER_PID': str(os.getpid())}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], env=env)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = [parent.stdout.readline(), parent.stdout.readline()]
    pid = next(int(line) for line in lines if line.strip().isdecimal())
    assert "ready\n" in lines
    parent.kill()
    until(lambda: not is_alive(pid))
    parent.communicate()


def test_killed_rank_ends_the_others(launch: Launch) -> None:
    launched = launch(STOPPABLE, ranks=3)
    pids = launched.pids()
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = launched.end()
    assert code == 4
    assert "rank 1 of 3 was killed by SIGKILL (9)" in err
    assert "out-of-memory" in err
    assert err.count("Log of rank") == 1
    assert str(launched.run / "logs/rank-1.log") in err
    assert not any(map(is_alive, pids))


def test_what_a_rank_started_ends_with_it(launch: Launch) -> None:
    """A rank that fails and its helper processes, in whatever session, are gone when the launcher returns."""
    worker = """
    for new in (False, True):
        child = subprocess.Popen(["sleep", "600"], start_new_session=new)
        (RUN.path / f"child-{RANK}-{new}").write_text(str(child.pid))
    while RANK and len([file for file in RUN.path.glob("child-*") if file.read_text()]) < 4:
        time.sleep(0.01)
    fail(errors.TrainingFailed("loss is nan")) if RANK else None
    """
    launched = launch(worker)
    assert launched.end()[0] == 4
    children = [int(file.read_text()) for file in launched.run.glob("child-*")]
    assert len(children) == 4
    assert not any(map(is_alive, children))


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_signals_are_passed_on(launch: Launch, sent: signal.Signals, code: int) -> None:
    launched = launch(STOPPABLE)
    launched.pids()
    (launched.run / "plan.json").touch()
    launched.process.send_signal(sent)
    exit_code, _, err = launched.end()
    assert exit_code == code
    assert "thawline resume" in err


def test_stop_waits_for_the_slowest(launch: Launch) -> None:
    """A rank that has stopped does not hurry one that still writes its part of the checkpoint."""
    worker = """
    def stop(number, frame):
        if RANK == 0:
            wait_for("release")
        os._exit(75)
    signal.signal(signal.SIGTERM, stop)
    ready()
    while True:
        time.sleep(60)
    """
    launched = launch(worker, grace={"after_failure_s": 0.0})
    zero, one = launched.pids()
    launched.process.send_signal(signal.SIGTERM)
    until(lambda: not is_alive(one))
    assert is_alive(zero)
    (launched.run / "release").touch()
    assert launched.end()[0] == 75


def test_done_before_the_signal_was_seen(launch: Launch) -> None:
    worker = "signal.signal(signal.SIGTERM, stop_with(0)); ready(); time.sleep(600)"
    launched = launch(worker)
    launched.pids()
    launched.process.send_signal(signal.SIGTERM)
    assert launched.end() == (0, "", "")


def test_second_interrupt_kills(launch: Launch) -> None:
    launched = launch(STUBBORN)
    pids = launched.pids()
    launched.process.send_signal(signal.SIGINT)
    until((launched.run / "got-2-1").exists)
    launched.process.send_signal(signal.SIGINT)
    code, _, err = launched.end()
    assert code == 130
    assert "killed" in err
    assert not any(map(is_alive, pids))


def test_stubborn_rank_is_killed_after_the_grace(launch: Launch) -> None:
    """Rank 1 fails, rank 0 ignores SIGTERM: the error is rank 1's and the launcher does not wait for ever."""
    failing = "ready()\nif RANK: wait_for('ready-0'); fail(errors.TrainingFailed('diverged'))"
    worker = STUBBORN.replace("ready()", failing)
    launched = launch(worker, grace={"after_failure_s": 0.2})
    pids = launched.pids()
    code, _, err = launched.end()
    assert (code, err) == (4, f"diverged\nLog of rank 1: {launched.run / 'logs/rank-1.log'}\n")
    assert not any(map(is_alive, pids))


def test_stubborn_rank_after_a_stop(launch: Launch) -> None:
    launched = launch(STUBBORN, grace={"after_stop_s": 0.2})
    launched.pids()
    launched.process.send_signal(signal.SIGTERM)
    code, _, err = launched.end()
    assert code == 75
    assert "rank 0, 1 did not stop by itself and was killed" in err


def test_first_real_error_is_shown_once(launch: Launch) -> None:
    """Rank 0 only says that its peer is gone, and says it first; rank 1's own error is what the user sees."""
    worker = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes as soon as rank 0 has ended
    if RANK == 0:
        wait_for("ready")
        try:
            fail(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"))
        finally:
            (RUN.path / "echoed").touch()
    RUN.plan.touch()
    (RUN.path / "ready").touch()
    wait_for("echoed")
    fail(errors.UserError("column 'text' is missing"))
    """
    launched = launch(worker, grace={"after_failure_s": 30.0})
    code, out, err = launched.end()
    assert (code, out) == (2, "")
    assert err == f"column 'text' is missing\nLog of rank 1: {launched.run / 'logs/rank-1.log'}\n"


def test_earliest_error_decides(launch: Launch) -> None:
    worker = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if RANK == 1:
        wait_for("logs/rank-0.error.json")
    fail(errors.EnvironmentProblem("no such GPU") if RANK == 0 else errors.TrainingFailed("later"))
    """
    code, _, err = launch(worker).end()
    assert code == 3
    assert "no such GPU" in err
    assert "later" not in err


def test_bug_shows_its_traceback(launch: Launch) -> None:
    worker = """
    try:
        {}["missing"]
    except KeyError as error:
        fail(error)
    """
    code, _, err = launch(worker, ranks=1).end()
    assert code == 1
    assert "Traceback" in err
    assert "KeyError: 'missing'" in err


def test_silent_exit_shows_the_log(launch: Launch) -> None:
    """A rank that could not even say why: the end of its log is the message."""
    code, _, err = launch("import no_such_module", ranks=1).end()
    assert code == 1
    assert "rank 0 of 1 ended with exit code 1 and left no error" in err
    assert "No module named 'no_such_module'" in err


def test_errors_of_an_earlier_launch_are_forgotten(launch: Launch) -> None:
    assert launch("fail(errors.UserError('old')) if RANK == 1 else None").end()[0] == 2
    assert launch("sys.exit(0)").end() == (0, "", "")


@pytest.mark.parametrize(("takes", "code"), [(1, 0), (9, 3)])
def test_port_taken(launch: Launch, takes: int, code: int) -> None:
    """Another process takes the port before rank 0 does: one more try with another port, then the error."""
    worker = f"""
    port = os.environ["MASTER_PORT"]
    if RANK == 0:
        with (RUN.path / "ports").open("a") as file:
            print(port, file=file)
        if len((RUN.path / "ports").read_text().split()) <= {takes}:
            fail(RuntimeError(f"The server socket has failed to listen: EADDRINUSE, port {{port}}"))
    """
    launched = launch(worker, grace={"after_failure_s": 0.1})
    exit_code, _, err = launched.end()
    ports = (launched.run / "ports").read_text().split()
    assert exit_code == code
    assert len(set(ports)) == 2
    assert ("EADDRINUSE" in err) == (code == 3)


def test_program_that_is_not_there(tmp_path: Path) -> None:
    from launcher.errors import EnvironmentProblem
    from launcher.launch import run_ranks
    from launcher.run_dir import RunDir

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(EnvironmentProblem, match="no-such-program"):
        run_ranks(["/no-such-program"], 1, RunDir(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is handler


def test_free_port_is_free() -> None:
    from launcher.launch import free_port

    with socket.socket() as first:
        first.bind(("", port := free_port()))
        first.listen()
        assert port not in [free_port() for _ in range(20)]


def test_ranks_that_torchrun_starts_again_meet_again() -> None:
    ranks = Path(__file__).with_name("restarted_ranks.py")
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run([*started, ranks], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["[0, 1]"]
