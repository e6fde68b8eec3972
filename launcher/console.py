"""What the first rank shows: a progress bar with rich on a terminal, plain lines anywhere else and in its log.

Owns the text. Called by `tracking` alone; everything it prints can be found again in ``metrics.jsonl``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from launcher.status import duration, number

LINE_EVERY_S = 2.0
"""Plain lines come no closer than this, but for a stage's first and last."""


class Console(Protocol):
    """Where the run's progress is shown."""

    def say(self, text: str) -> None:
        """One line."""

    def stage_started(self, stage: str, step: int, steps: int) -> None: ...

    def trained(self, step: int, loss: float, samples_per_second: float, eta_s: float | None) -> None: ...

    def stage_finished(self) -> None: ...


def open_console(*, has_log: bool = False) -> Console:
    """Bars when stdout is a terminal, lines otherwise. ``has_log``: stderr is the rank's log, and has the lines too."""
    shown: Console = BarConsole() if sys.stdout.isatty() else LineConsole(sys.stdout)
    return Consoles([shown, LineConsole(sys.stderr, has_time=True)]) if has_log else shown


def encodable(text: str, stream: TextIO) -> str:
    """The text, with escapes for what the stream's encoding lacks: a label's name must not end a run."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Consoles:
    """Several, each told everything."""

    def __init__(self, consoles: Sequence[Console]) -> None:
        self._consoles = consoles

    def say(self, text: str) -> None:
        for console in self._consoles:
            console.say(text)

    def stage_started(self, stage: str, step: int, steps: int) -> None:
        for console in self._consoles:
            console.stage_started(stage, step, steps)

    def trained(self, step: int, loss: float, samples_per_second: float, eta_s: float | None) -> None:
        for console in self._consoles:
            console.trained(step, loss, samples_per_second, eta_s)

    def stage_finished(self) -> None:
        for console in self._consoles:
            console.stage_finished()


class LineConsole:
    """Plain lines, each flushed; ``has_time``: each begins with the time, as a log's do."""

    def __init__(self, stream: TextIO, *, has_time: bool = False) -> None:
        self._stream, self._has_time = stream, has_time
        self._stage, self._steps, self._is_first, self._printed = "", 0, True, 0.0

    def say(self, text: str) -> None:
        at = time.strftime("%Y-%m-%d %H:%M:%S ") if self._has_time else ""
        print(at + encodable(text, self._stream), file=self._stream, flush=True)

    def stage_started(self, stage: str, step: int, steps: int) -> None:
        self._stage, self._steps, self._is_first = stage, steps, True

    def trained(self, step: int, loss: float, samples_per_second: float, eta_s: float | None) -> None:
        now = time.monotonic()
        if not self._is_first and step < self._steps and now - self._printed < LINE_EVERY_S:
            return
        self._is_first, self._printed = False, now
        left = f"  {duration(eta_s)} left" if eta_s is not None and step < self._steps else ""
        width = len(str(self._steps))
        rate = f"{number(samples_per_second)} samples/s"
        self.say(f"{self._stage}  step {step:>{width}}/{self._steps}  loss {loss:.4f}  {rate}{left}")

    def stage_finished(self) -> None:
        pass


class BarConsole:
    """A bar a stage, redrawn in place; lines go above it."""

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        self._rich.print(Text(encodable(text, sys.stdout)))

    def stage_started(self, stage: str, step: int, steps: int) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[now]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._rich, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task(stage, completed=step, total=steps, now="")
        self._progress.start()

    def trained(self, step: int, loss: float, samples_per_second: float, eta_s: float | None) -> None:
        if self._progress is not None:
            left = f"  {duration(eta_s)} left" if eta_s is not None else ""
            now = f"loss {loss:.4f}  {number(samples_per_second)} samples/s{left}"
            self._progress.update(self._task, completed=step, now=now)

    def stage_finished(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def metrics_text(metrics: Mapping[str, float]) -> str:
    """``accuracy 0.7812, loss 0.5321``"""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
