"""One attempt of a SLURM job, before and after its ranks: ``python -m launcher.slurm.attempt begin|end RUN ATTEMPT``.

The script of `slurm.script` calls it. Owns two questions: how did this attempt end, in one exit code and one message,
and is it worth another. Refuses to talk to SLURM: it leaves ``ATTEMPT/requeue``, and the script asks the queue.

    RUN/slurm/JOBID/attempt-N/ began        the newest checkpoint when it began
                               stop         asked to save and stop (the script's traps leave it)
                               beats/       signs of life of the ranks, and in `hung` what `slurm.watch` made of them
                               rc.NODE      exit code, time and host of a node's launcher
                               requeue      worth another attempt
                               node-HOST.log  its launcher's words, and on the first node how the run goes
                               rank-R.log
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher import rank_error
from launcher.cluster import EXPECTED_RANKS
from launcher.errors import EnvironmentProblem, Interrupted, StoppedEarly, ThawlineError, TrainingFailed, UserError
from launcher.rank_error import RankError
from launcher.run_dir import RunDir, write_atomic
from launcher.status import State, close_status, read_status
from launcher.stop import last_stage
from launcher.verdict import STOPPED_CODES, LaunchResult

_OWN_CODES = {error.exit_code for error in (UserError, EnvironmentProblem, TrainingFailed, StoppedEarly, Interrupted)}
_FROM_SIGNALS = (143, 137)
"""128 + SIGTERM and 128 + SIGKILL: ended because of another."""
_NOT_STARTED = (126, 127)
"""What bash says of a command that cannot be run, or is not there."""


def begin(run: RunDir, attempt: Path, budget: int) -> None:
    """Remember where the run stands, and forget the last attempt's errors.

    Raises: StoppedEarly when ``budget`` attempts in a row have saved nothing new; SLURM itself queues a job again that
        lost a node, and would for ever.
    """
    run.create()
    stalled = num_stalled(run, attempt.parent)
    if stalled >= budget:
        raise StoppedEarly(f"{stalled} attempts in a row saved nothing new: this job gives up; see {attempt.parent}")
    for earlier in attempt.parent.glob("attempt-*"):
        if earlier != attempt:  # its ranks may live on where SLURM lost sight of them
            (earlier / "stop").touch()
    rank_error.clear(run)
    write_atomic(attempt / "began", newest_checkpoint(run))


def end(run: RunDir, attempt: Path, budget: int, srun_code: int) -> LaunchResult:
    """How it ended; the run's status says so too, and ``requeue`` is there when another attempt is worth it."""
    result = judge(run, attempt, srun_code)
    goes_on = result.exit_code == StoppedEarly.exit_code or result.is_passing
    states: dict[int, State] = {StoppedEarly.exit_code: "stopped", Interrupted.exit_code: "interrupted"}
    if result.exit_code:
        close_status(run, states.get(result.exit_code, "failed"), result.message)
    if not goes_on:
        return result
    stalled = num_stalled(run, attempt.parent)
    if stalled < budget:
        write_atomic(attempt / "requeue", "")
        return result
    more = f"{stalled} attempts in a row saved nothing new: this job gives up"
    return LaunchResult(result.exit_code, f"{result.message}\n{more}")


def judge(run: RunDir, attempt: Path, srun_code: int, nodes: int | None = None) -> LaunchResult:
    """One exit code and message from what the ranks wrote, else from their launchers' codes, else from srun's.

    ``nodes``: how many the ranks were on; None: as the job's script says.
    """
    errors = [error for error in rank_error.read_all(run) if not error.attempt or Path(error.attempt) == attempt]
    real = [error for error in errors if error.exit_code not in STOPPED_CODES]
    if first := next((error for error in real if not error.secondary), None):
        # Of several ranks that ran out of memory one planned anew, not always the first of them.
        is_passing = first.shortage is not None and any(error.goes_on for error in real)
        return _from_error(first, attempt, is_passing=is_passing)
    last = last_stage()
    proofs = run.stages.glob(f"*/{run.proof(0, '').name}")
    is_done = last is not None and any(re.fullmatch(rf"[0-9]+-{re.escape(last)}", file.parent.name) for file in proofs)
    is_finished = is_done or (run.status.is_file() and read_status(run).state == "finished")
    if is_finished and not errors:  # whatever was said of it in its last moment
        return LaunchResult(0)
    if (hung := attempt / "hung").is_file():
        return LaunchResult(TrainingFailed.exit_code, f"{hung.read_text()}; {_logs(attempt)}", is_passing=True)
    if real:
        return _silent_end(run, real, attempt, nodes or int(os.environ.get("THAWLINE_NODES", "1")))
    if errors:
        said = min(errors, key=lambda error: error.secondary)
        return LaunchResult(said.exit_code, said.message)
    if srun_code == 0 and is_finished:
        return LaunchResult(0)
    if srun_code == 0:
        message = "every rank ended with 0 and the run is not finished"
        return LaunchResult(EnvironmentProblem.exit_code, f"{message}; {_logs(attempt)}")
    if (attempt / "stop").exists():
        return LaunchResult(StoppedEarly.exit_code, "stopped on request before anything new was saved")
    code = first_code(attempt) or srun_code
    if code in _NOT_STARTED:
        message = "a node cannot run python: is it at the same path on all nodes, on a disk that they share?"
        return LaunchResult(EnvironmentProblem.exit_code, f"{message} {_logs(attempt)}")
    return LaunchResult(code, f"ended with exit code {code}, and no rank left a word; {_logs(attempt)}")


def first_code(attempt: Path) -> int | None:
    """The exit code of the launcher that failed first by itself; None when none did."""
    ends = [(at, code) for _, code, at in _launchers(attempt) if code not in (0, *_FROM_SIGNALS)]
    return min(ends)[1] if ends else None


def _launchers(attempt: Path) -> Iterator[tuple[int, int, float]]:
    """(node, exit code, seconds since 1970) of each launcher that ended by itself."""
    for file in attempt.glob("rc.*"):
        said = re.match(r"([0-9]+) ([0-9.]+) ", file.read_text())
        if said:  # else its node went off while it was written, or the disk is full
            yield int(file.name.removeprefix("rc.")), int(said[1]), float(said[2])


def num_stalled(run: RunDir, job: Path) -> int:
    """Attempts of a job, counted back from the last, that began with the checkpoint that is the newest now."""
    numbered = sorted(job.glob("attempt-*/began"), key=lambda file: int(file.parent.name.rpartition("-")[2]))
    newest, count = newest_checkpoint(run), 0
    for file in reversed(numbered):
        if file.read_text() != newest:
            break
        count += 1
    return count


def newest_checkpoint(run: RunDir) -> str:
    """Its name; empty when there is none."""
    return run.latest.read_text().strip() if run.latest.is_file() else ""


def _from_error(error: RankError, attempt: Path, *, is_passing: bool) -> LaunchResult:
    is_bug = error.exit_code not in _OWN_CODES
    body = f"{error.traceback.rstrip()}\nThawline has no advice on this one." if is_bug else error.message
    message = f"rank {error.rank}: {body}\n{_logs(attempt)}"
    return LaunchResult(1 if is_bug else error.exit_code, message, error.rank, is_passing=is_passing)


def _silent_end(run: RunDir, echoes: list[RankError], attempt: Path, nodes: int) -> LaunchResult:
    """All that wrote something say that another rank was gone; with its launcher if its node was lost."""
    heard = {error.rank for error in echoes}
    told = int(os.environ.get(EXPECTED_RANKS, "0"))  # the status may be that of an attempt on other nodes
    ranks = told or (read_status(run).ranks if run.status.is_file() else max(heard) + 1)
    silent = [rank for rank in range(ranks) if rank not in heard]
    if not silent:
        return LaunchResult(TrainingFailed.exit_code, f"{echoes[0].message}; {_logs(attempt)}")
    ranks_per_node = max(1, ranks // nodes)
    spoke = {node for node, code, _ in _launchers(attempt) if code not in _FROM_SIGNALS}
    is_lost = not any(rank // ranks_per_node in spoke for rank in silent)
    why = "their node was lost" if is_lost else "most likely killed (no memory left)"
    who = f"rank {', '.join(map(str, silent))} ended without a word, {why}; {_logs(attempt)}"
    return LaunchResult(TrainingFailed.exit_code, who, is_passing=is_lost)


def _logs(attempt: Path) -> str:
    return f"logs: {attempt}/node-*.log and rank-*.log there"


def main(argv: list[str] | None = None) -> int:
    """Begin or end an attempt; what there is to say goes to the job's log."""
    parser = argparse.ArgumentParser(prog="launcher.slurm.attempt", description="One attempt of a SLURM job.")
    parser.add_argument("moment", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--srun-code", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        if given.moment == "begin":
            begin(RunDir(given.run), given.attempt, given.budget)
            return 0
        result = end(RunDir(given.run), given.attempt, given.budget, given.srun_code)
    except ThawlineError as error:
        print(f"thawline: {error}", flush=True)
        return error.exit_code
    except OSError as error:
        print(f"thawline: the run's folder cannot be used here: {error}; check its disk and your quota", flush=True)
        return EnvironmentProblem.exit_code
    done = f"stage {last_stage()} is done" if last_stage() else "finished"
    print(f"thawline: {result.message or done}", flush=True)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
