"""How long `thawline --help` takes, from the shell's view; the goal is under half a second."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_S = 0.5


def help_s(repeats: int = 15) -> list[float]:
    """Seconds of each start, the first, which fills the caches, left out."""
    command = [str(Path(sys.executable).with_name("thawline")), "--help"]
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def report(taken: list[float]) -> str:
    median = statistics.median(taken)
    return (
        f"thawline --help: median {median:.3f} s of {len(taken)} starts ({min(taken):.3f} to {max(taken):.3f}); "
        f"goal {GOAL_S} s {'met' if median < GOAL_S else 'MISSED'}"
    )
