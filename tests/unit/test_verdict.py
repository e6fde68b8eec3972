"""Which of several ranks' ends is the one the user is told."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from launcher import rank_error
from launcher.errors import FollowsFirst, Interrupted, StoppedEarly, TrainingFailed, UserError
from launcher.rank_error import RankError
from launcher.run_dir import RunDir
from launcher.verdict import Ended, RankCrashed, judge

RUN = RunDir("runs/x")
TERM, KILL = signal.SIGTERM, signal.SIGKILL


def error(rank: int, time: float, exit_code: int = 4, secondary: bool = False) -> RankError:
    return RankError(
        time=time, rank=rank, type="T", message=f"error of rank {rank}", exit_code=exit_code,
        traceback=f"Traceback of rank {rank}", secondary=secondary,
    )  # fmt: skip


def test_all_done() -> None:
    result = judge([Ended(0, 0, 1.0), Ended(1, 0, 1.0)], [], None, RUN)
    assert (result.exit_code, result.message) == (0, "")
    result.raise_if_failed()


def test_earliest_real_error() -> None:
    ended = [Ended(0, 1, 3.0), Ended(1, 4, 1.0), Ended(2, 2, 2.0)]
    errors = [error(0, 0.1, 1, secondary=True), error(1, 0.5, 4), error(2, 0.4, 2)]
    result = judge(ended, errors, None, RUN)
    assert (result.exit_code, result.rank) == (2, 2)
    with pytest.raises(UserError, match="error of rank 2"):
        result.raise_if_failed()


def test_only_echoes() -> None:
    """A hang shows on every rank as the others' absence; the first to say so is shown."""
    result = judge([Ended(0, 1, 2.0), Ended(1, 1, 2.1)], [error(0, 2, 1, True), error(1, 1, 1, True)], None, RUN)
    assert (result.exit_code, result.rank) == (1, 1)
    with pytest.raises(RankCrashed, match="Traceback of rank 1"):
        result.raise_if_failed()


def test_a_killed_rank_before_the_error_it_causes() -> None:
    ended = [Ended(0, 4, 1.2), Ended(1, -KILL, 1.0)]
    result = judge(ended, [error(0, 1.1, 4)], None, RUN)
    assert result.rank == 1
    assert "rank 1 of 2 was killed by SIGKILL (9)" in result.message
    assert "runs/x/logs/rank-1.log" in result.message


def test_what_the_launcher_killed_is_no_cause() -> None:
    ended = [Ended(0, -KILL, 9.0, frozenset({TERM, KILL})), Ended(1, -TERM, 1.1, frozenset({TERM})), Ended(2, 4, 1.0)]
    result = judge(ended, [error(2, 0.9)], None, RUN)
    assert (result.exit_code, result.rank) == (4, 2)


@pytest.mark.parametrize(
    ("number", "advice"), [(signal.SIGBUS, "/dev/shm"), (signal.SIGSEGV, "native code"), (signal.SIGQUIT, "SIGQUIT")]
)
def test_other_signals(number: signal.Signals, advice: str) -> None:
    with pytest.raises(TrainingFailed, match=advice):
        judge([Ended(0, -number, 1.0)], [], None, RUN).raise_if_failed()


def test_stops(tmp_path: Path) -> None:
    planned = RunDir(tmp_path)
    planned.plan.touch()
    stopped = [Ended(0, 75, 1.0), Ended(1, -TERM, 1.0, frozenset({TERM}))]
    with pytest.raises(StoppedEarly, match=f"thawline resume {tmp_path}` goes on"):
        judge(stopped, [], TERM, planned).raise_if_failed()
    with pytest.raises(StoppedEarly, match="no plan yet: the same command begins anew"):
        judge(stopped, [], TERM, RUN).raise_if_failed()
    with pytest.raises(Interrupted):
        judge([Ended(0, 75, 1.0)], [], signal.SIGINT, RUN).raise_if_failed()
    with pytest.raises(Interrupted):  # Ctrl-C reached a rank, not the launcher
        judge([Ended(0, 130, 1.0)], [], None, RUN).raise_if_failed()
    own_words = error(0, 1, 75).model_copy(update={"message": "saved as 00-head-step-00000003"})
    follower = rank_error.describe(1, FollowsFirst(75)).model_copy(update={"time": 0.5})
    assert judge([Ended(0, 75, 1.0)], [follower, own_words], TERM, RUN).message == "saved as 00-head-step-00000003"


def test_an_error_while_stopping_is_an_error() -> None:
    result = judge([Ended(0, 75, 1.0), Ended(1, 4, 1.0)], [error(1, 1.0)], TERM, RUN)
    assert (result.exit_code, result.rank) == (4, 1)


def test_unknown_exit_code_becomes_a_known_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.create()
    run.log(0).write_text("\n".join(f"line {number}" for number in range(100)))
    result = judge([Ended(0, 139, 1.0)], [], None, run)
    assert result.exit_code == 4
    assert "line 99" in result.message
    assert "line 50" not in result.message


@pytest.mark.parametrize(
    ("raised", "kind", "exit_code", "secondary"),
    [
        (UserError("column is missing"), "UserError", 2, False),
        (KeyError("x"), "KeyError", 1, False),
        (RuntimeError("shape mismatch"), "RuntimeError", 1, False),
        (RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:1"), "RuntimeError", 1, True),
        (RuntimeError("NCCL error: ncclRemoteError: remote process exited"), "RuntimeError", 1, True),
        (ConnectionResetError("Connection reset by peer"), "ConnectionResetError", 1, True),
        (RuntimeError("The server socket has failed to listen: EADDRINUSE"), "port", 3, False),
        (OSError(98, "Address already in use"), "port", 3, False),
        (UserError("the file says: connection refused"), "UserError", 2, False),
    ],
)
def test_kinds_of_errors(tmp_path: Path, raised: Exception, kind: str, exit_code: int, secondary: bool) -> None:
    run = RunDir(tmp_path)
    written = rank_error.record(run, 3, raised)
    assert (written.type, written.exit_code, written.secondary) == (kind, exit_code, secondary)
    assert rank_error.read_all(run) == [written]
    run.error(4).write_text("{")
    assert rank_error.read_all(run) == [written]
    rank_error.clear(run)
    assert rank_error.read_all(run) == []


@pytest.mark.parametrize(
    ("raised", "kind", "advice"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "OutOfMemory",
            "sharding.offload: cpu",
        ),
        (RuntimeError("CUDA error: out of memory"), "OutOfMemory", "batch.micro_size"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            "OutOfMemory",
            "zero2",
        ),
        (MemoryError(), "OutOfMemory", "precision: bf16"),
        (
            Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run."),
            "LossScale",
            "precision: bf16 or fp32",
        ),
    ],
)
def test_failures_that_have_advice(tmp_path: Path, raised: Exception, kind: str, advice: str) -> None:
    """A library's exception, but no bug: what it said and what to do are shown, its traceback is only in the file."""
    try:
        raise raised
    except Exception as caught:
        written = rank_error.record(RunDir(tmp_path), 0, caught)
    assert (written.type, written.exit_code, written.secondary) == (kind, 4, False)
    assert "Traceback" in written.traceback
    shown = judge([Ended(0, 4, 1.0)], rank_error.read_all(RunDir(tmp_path)), None, RunDir(tmp_path))
    assert shown.exit_code == 4
    assert (str(raised) or "MemoryError") in shown.message
    assert advice in shown.message
    assert "Traceback" not in shown.message


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="allocate memory") as caught:
        torch.empty(10**15)
    assert rank_error.describe(0, caught.value).type == "OutOfMemory"
