"""Beside the ranks of a SLURM job: ``python -m launcher.slurm.watch ATTEMPT --ranks N --hang-timeout S``.

The script of `slurm.script` starts it on the first node and ends it with the ranks. Owns what happens when a rank
hangs: why goes to ``ATTEMPT/hung``, the ranks' step is killed, and `slurm.attempt` decides whether the job goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from launcher import heartbeat

LONGEST_PAUSE_S = 15.0
ANSWER_TIMEOUT_S = 20
"""Longer, and the job might have begun its next attempt, whose steps have the same numbers."""
AGAIN_AFTER_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Watch until a rank hangs."""
    parser = argparse.ArgumentParser(prog="launcher.slurm.watch", description="Find a rank that hangs.")
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--hang-timeout", type=float, required=True)
    given = parser.parse_args(argv)
    watch = heartbeat.Watch(given.ranks, given.hang_timeout)
    while (found := watch.look(heartbeat.read(given.attempt / "beats"))) is None:
        time.sleep(min(LONGEST_PAUSE_S, heartbeat.every_s(given.hang_timeout)))
    (given.attempt / "hung").write_text(found)
    job = os.environ["SLURM_JOB_ID"]
    while not (steps := _steps(job, given.attempt / "step")) or not all(map(_killed, steps)):
        time.sleep(AGAIN_AFTER_S)
    return 0


def _steps(job: str, noted: Path) -> list[str]:
    """The ranks' step; all that run, where its first node never came to note it; empty: the queue gives no answer."""
    if noted.is_file():
        return [f"{job}.{noted.read_text().strip()}"]
    asked = ["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False).stdout
    except subprocess.TimeoutExpired:
        return []
    return [step for step in said.split() if step.rpartition(".")[2].isdigit()]  # not the script, which is a step too


def _killed(step: str) -> bool:
    """Ask for the step's end; the script ends this process when it has come."""
    # KILL: a stopped process, or one that waits in a collective, handles no other signal.
    try:
        return not subprocess.run(["scancel", "--signal=KILL", step], timeout=ANSWER_TIMEOUT_S, check=False).returncode
    except subprocess.TimeoutExpired:  # a busy controller
        return False


if __name__ == "__main__":
    sys.exit(main())
