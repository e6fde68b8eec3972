"""The request to stop: what a signal leaves behind for the loop to find.

A handler only sets a flag. The loop adds the ranks' flags up once a step, so all stop after the same step, save, and
leave together; saving inside a handler would catch some ranks in the middle of a collective. Imports nothing heavy:
`worker` installs it before anything slow, so that an early signal is not lost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Interrupted, StoppedEarly

ATTEMPT = "THAWLINE_ATTEMPT"
"""Environment variable: the folder of this attempt of a SLURM job; a file ``stop`` in it is a request too."""
UNTIL = "THAWLINE_UNTIL_STAGE"
"""Environment variable: the stage after which this SLURM job ends; not set where one job trains them all."""
LOOK_EVERY_S = 1.0
"""How often the file is looked for: it lies on a file system that many share."""


def last_stage() -> str | None:
    """The last stage of this job; None: the run's."""
    return os.environ.get(UNTIL) or None


class _AtOnce(BaseException):
    """Raised by the handler where nothing waits to be saved; no ``except Exception`` on the way keeps it."""


@dataclass
class StopRequest:
    """Whether somebody asked this rank, or by now all of them, to save and end."""

    is_requested: bool = False
    is_interrupt: bool = False
    is_agreed: bool = False
    """Set after the same step on all ranks."""
    file: Path | None = None
    """Requests a stop by being there."""
    _looked: float = -LOOK_EVERY_S
    _is_at_once: bool = False

    def look(self) -> bool:
        """Whether a stop was requested by now, by a signal or by the file."""
        now = time.monotonic()
        if self.file is not None and not self.is_requested and now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self.is_requested = self.file.exists()
        return self.is_requested

    @contextmanager
    def at_once(self, words: str) -> Iterator[None]:
        """Let a signal end what is done here, instead of leaving it to the loop.

        Raises: Interrupted or StoppedEarly with ``words``, also when the signal came before.
        """
        try:
            self._is_at_once = True
            if self.is_requested:
                raise _AtOnce
            yield
        except _AtOnce:
            raise (Interrupted if self.is_interrupt else StoppedEarly)(words) from None
        finally:
            self._is_at_once = False

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 as a request to stop resumably, and SIGINT as Ctrl-C."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.is_requested = True
        self.is_interrupt = self.is_interrupt or number == signal.SIGINT
        if self._is_at_once:
            self._is_at_once = False
            raise _AtOnce
