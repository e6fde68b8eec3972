"""One rank: ``python -m launcher.worker RECIPE [--run-dir DIR] [--set a.b=c]…``

The same under ``thawline run``, ``accelerate launch -m`` and ``torchrun -m``: the first rank plans a new run.
Owns the process: its signals, its log, its exit code and its last word. What is trained is `walk`'s.
Whatever is slow to import is imported inside `main`, once signals are caught and the parent is watched.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import sys
from pathlib import Path

from launcher import heartbeat, host_memory, orphans, phases, rank_error
from launcher.ending import Ending, end_now
from launcher.errors import StoppedEarly, ThawlineError
from launcher.rank_error import RankError
from launcher.run_dir import RunDir
from launcher.stop import ATTEMPT, StopRequest


def main(argv: list[str] | None = None) -> int:
    """Train as one rank; return the exit code."""
    arguments = parse(argv)
    orphans.die_with_parent()
    host_memory.keep_freed_blocks()
    own_programs_first()
    stop = StopRequest()
    stop.listen()
    rank = int(os.environ.get("RANK", "0"))
    if ATTEMPT in os.environ:
        write_to_own_log(Path(os.environ[ATTEMPT]) / f"rank-{rank}.log", rank)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    if rank == 0 and ATTEMPT in os.environ:  # one rank looks, all agree
        stop.file = Path(os.environ[ATTEMPT]) / "stop"
    run_dir = arguments.run_dir
    if rank == 0:
        phases.begin(RunDir(run_dir) if run_dir is not None else None)
    heart = None
    if ATTEMPT in os.environ and heartbeat.HANG_TIMEOUT in os.environ:
        hang_timeout_s = float(os.environ[heartbeat.HANG_TIMEOUT])
        heart = heartbeat.Heart(Path(os.environ[ATTEMPT]) / "beats", rank, hang_timeout_s)
    try:
        if run_dir is not None and orphans.LAUNCHER_PID not in os.environ:  # thawline's launcher has cleared them all
            rank_error.clear_own(RunDir(run_dir), rank)
        gc.disable()  # it would look through all that is imported, again and again
        from launcher import walk

        gc.freeze()
        gc.enable()
        runtime = walk.join()
        is_planned = orphans.launcher_pid() is not None and not arguments.unplanned
        run_dir = walk.opened_run_dir(
            runtime, arguments.recipe, arguments.overrides, arguments.run_dir, stop,
            is_planned=is_planned, data_facts=arguments.data_facts,
        )  # fmt: skip
        if run_dir is not None:
            walk.walk(runtime, RunDir(run_dir), stop)
        runtime.close()
        return 0
    except BaseException as error:
        return leave(run_dir, rank, error)
    finally:
        if heart is not None:
            heart.stop()


def own_programs_first() -> None:
    """Let what is compiled be compiled by this environment's ninja, whether it was activated or not.

    Ninja takes what another release of it has built for old: a job without the environment on PATH and a shell with it
    would each compile the other's operators anew, about a minute every time.
    """
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def write_to_own_log(file: Path, rank: int) -> None:
    """What this rank prints goes to its file, as under ``thawline run``: a node's log has its launcher and all ranks.

    The first rank's stdout, which tells how the run goes, stays in the node's.
    """
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, sys.stderr.fileno())
    if rank:
        os.dup2(log, sys.stdout.fileno())
    os.close(log)


def leave(run_dir: Path | None, rank: int, error: BaseException) -> int:
    """Write why this rank ends where the launcher looks; without a launcher the first rank tells the user itself.

    A run directory that is not there is not made: it was refused before anything began.
    """
    is_written = run_dir is not None and run_dir.is_dir()
    if run_dir is not None and is_written:
        entry = rank_error.record(RunDir(run_dir), rank, error)
        if orphans.LAUNCHER_PID not in os.environ:
            entry = with_less_memory(RunDir(run_dir), entry)
    else:
        entry = rank_error.describe(rank, error)
    is_told = orphans.LAUNCHER_PID in os.environ
    if entry.exit_code == 1:
        logging.getLogger(__name__).critical("rank %d ends", rank, exc_info=error)
        return 1
    # Under thawline the log is a file; elsewhere it is the terminal, and the traceback is in the error's file.
    has_traceback = not isinstance(error, ThawlineError) and (is_told or not is_written)
    logging.getLogger(__name__).error("%s", entry.message, exc_info=error if has_traceback else None)
    if not is_told and rank == 0:
        print(f"{entry.type}: {entry.message}", file=sys.stderr)
    return entry.exit_code


def with_less_memory(run_dir: RunDir, entry: RankError) -> RankError:
    """Where nobody else would: after a rank ran out of memory, plan its stage anew for the next start of the ranks, by
    torchrun's or accelerate's ``--max-restarts``, by SLURM's queue or by hand."""
    from launcher.plan import micro_size

    told = entry.shortage and micro_size.after_out_of_memory(run_dir, entry.shortage, entry.rank, entry.message)
    if not told:
        return entry
    message = f"{entry.message}\n{told}, when the ranks are started again"
    return rank_error.write(run_dir, entry.model_copy(update={"message": message, "goes_on": told}))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The worker's own arguments."""
    parser = argparse.ArgumentParser(prog="launcher.worker", description="One rank of a Thawline run.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--unplanned", action="store_true", help=argparse.SUPPRESS)  # thawline run: a new run
    parser.add_argument("--data-facts", type=Path, help=argparse.SUPPRESS)  # and what it found in the data
    return parser.parse_args(argv)


if __name__ == "__main__":
    ending = Ending()
    code = main()
    if code:
        # A rank that failed must not wait for others in a destructor. In a SLURM job the code is read from the error's
        # file: torchrun's agents would take 75 for a crash.
        end_now(0 if code == StoppedEarly.exit_code and ATTEMPT in os.environ else code)
    ending.is_done = True
