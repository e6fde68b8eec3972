"""What a starting run is at: importing, reading the data, planning, building the model, its first step.

Owns the lines on the terminal and ``phase`` in ``status.json``. The process that `begin` was called in speaks, that of
the first rank; in any other `enter` does nothing, so that whoever does the work can say so wherever it is called.
"""

from __future__ import annotations

import time
from contextlib import suppress

from launcher.errors import UserError
from launcher.run_dir import RunDir
from launcher.status import ACTIVE, Phase, read_status, write_status

SAID = {
    "importing": "importing torch, transformers and DeepSpeed",
    "reading data": "reading the data",
    "planning": "planning",
    "building": "building the model",
    "first step": "taking the first step",
}
"""What is printed when each begins."""


class _Clock:
    """The phases of this process so far."""

    def __init__(self, run_dir: RunDir | None) -> None:
        self.run_dir = run_dir
        self.phase: Phase | None = None
        self.seconds: dict[Phase, float] = {}
        self.since = time.monotonic()

    def enter(self, phase: Phase | None) -> None:
        now = time.monotonic()
        if self.phase is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"first step done after {sum(self.seconds.values()):.1f} s: {parts}"


_clocks: list[_Clock] = []
"""This process's, from `begin` to `end`."""


def begin(run_dir: RunDir | None) -> None:
    """This process is the first rank's and starts now. ``run_dir``: None where it is not known yet."""
    _clocks[:] = [_Clock(run_dir)]
    enter("importing")


def knows(run_dir: RunDir) -> None:
    """Where the run is, once it is known."""
    for clock in _clocks:
        clock.run_dir = run_dir


def enter(phase: Phase) -> None:
    """The next phase begins."""
    for clock in _clocks:
        if clock.phase == phase:
            continue
        if phase not in clock.seconds:
            print(f"{SAID[phase]} …", flush=True)
        clock.enter(phase)
        _tell(clock.run_dir, phase)


def current() -> Phase | None:
    """The phase that this process is in."""
    return _clocks[0].phase if _clocks else None


def end() -> str | None:
    """The first step is done: how long all of it took, in a line; None where it was said, or is not this process's."""
    if not _clocks:
        return None
    clock = _clocks.pop()
    clock.enter(None)
    return str(clock)


def _tell(run_dir: RunDir | None, phase: Phase) -> None:
    """Into the status, where there is one of a run that starts."""
    if run_dir is None:
        return
    with suppress(UserError, OSError):  # no status yet, or one that is about to be written anew
        status = read_status(run_dir)
        if status.state in ACTIVE:
            write_status(run_dir, status.model_copy(update={"phase": phase, "updated": time.time()}))
