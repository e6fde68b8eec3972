"""Signs of life: a thread of each rank writes a small file anew every few seconds, and `Watch` reads them all.

Owns the file's format and what the files of all ranks mean together. A rank whose file no longer changes is silent: its
process is stopped, or its machine is gone. A rank that writes and yet has not moved stands still; while one hangs, all
the others wait for it, so those that stand elsewhere than most are named. Refuses to end anything: `slurm.watch` does.
Needs no torch: `worker` begins it before anything slow.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

HANG_TIMEOUT = "THAWLINE_HANG_TIMEOUT"
"""Environment variable: seconds without a movement after which a rank hangs; without it there are no signs of life."""
SILENT_AFTER_S = 180.0
"""A rank that writes nothing for so long is stopped or gone: the thread that writes waits for nobody. Shared disks show
another node's writes up to a minute late."""
FIRST_WITHIN_S = 300.0
"""What a rank has at least for its first sign: its launcher imports torch before, from a disk that many share."""
TRANSFER_BYTES = 2**20
"""From one sign to the next; a sign itself takes a few hundred."""
MOST_NAMED = 8
_PACKAGE = str(Path(__file__).parent)
_ticks = 0


@dataclass(frozen=True)
class Beat:
    """What a rank last said."""

    host: str
    pid: int
    beats: int
    """How often it has written."""
    moves: int
    """How often its main thread was found elsewhere than before, or had done a step meanwhile, or the process had read
    or written `TRANSFER_BYTES`: a large checkpoint is one call that lasts."""
    where: str
    """Where its main thread stands."""
    is_over: bool = False
    """Its work has ended, well or not."""


def tick() -> None:
    """The main thread has done something: a collective, a batch of an evaluation."""
    global _ticks  # noqa: PLW0603  one process is one rank
    _ticks += 1


def every_s(hang_timeout_s: float) -> float:
    """Seconds between two writes."""
    return min(15.0, max(0.5, hang_timeout_s / 8))


class Heart:
    """The thread that writes a rank's file. Begins when it is made, on the main thread."""

    def __init__(self, folder: Path, rank: int, hang_timeout_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._every_s = folder / f"rank-{rank}", every_s(hang_timeout_s)
        self._main = threading.get_ident()
        self._beats = self._moves = self._transfers = 0
        self._moved_bytes = _bytes_moved()
        self._last: object = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say that this rank's work is over."""
        self._end.set()
        self._thread.join()
        self._write(is_over=True)

    def _run(self) -> None:
        while True:
            self._write()
            if self._end.wait(self._every_s):
                return

    def _write(self, *, is_over: bool = False) -> None:
        frame = sys._current_frames().get(self._main)
        moved = _bytes_moved()
        self._transfers += moved - self._moved_bytes >= TRANSFER_BYTES  # its own few do not add up to one
        self._moved_bytes = moved
        now = (_ticks, self._transfers, *((id(one.f_code), one.f_lasti) for one in _stack(frame)))
        if now != self._last:
            self._last, self._moves = now, self._moves + 1
        self._beats += 1
        beat = Beat(socket.gethostname(), os.getpid(), self._beats, self._moves, _where(frame), is_over)
        try:
            self._file.write_text(json.dumps(asdict(beat)))  # a reader that finds half of it looks again
        except OSError:  # a full or absent disk is for the checkpoints to tell
            return


def _bytes_moved() -> int:
    """What this process has read and written by now, to files mostly: the ranks' own messages are not counted."""
    try:
        counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0
    return int(counted["rchar"]) + int(counted["wchar"])


def _stack(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def _where(frame: FrameType | None) -> str:
    """The innermost frame, and the innermost of thawline's own that called it."""
    stack = _stack(frame)
    if not stack:
        return "at its end"
    ours = next((one for one in stack if one.f_code.co_filename.startswith(_PACKAGE)), stack[-1])
    inner = "" if ours is stack[0] else f"{_place(stack[0])} under "
    return inner + _place(ours)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def read(folder: Path) -> dict[int, Beat]:
    """Rank -> its last sign. One that is being written this moment is left out."""
    found = {}
    for file in folder.glob("rank-*"):
        try:
            found[int(file.name.removeprefix("rank-"))] = Beat(**json.loads(file.read_text()))
        except (OSError, ValueError):  # a shared disk may lose a file that is replaced this moment
            continue
    return found


@dataclass
class _Seen:
    beat: Beat
    changed: float
    moved: float


@dataclass
class Watch:
    """The signs of all ranks over time, by this process's own clock: those of other machines may differ."""

    ranks: int
    hang_timeout_s: float
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _began: float | None = None
    _looked: float = 0.0

    def look(self, beats: Mapping[int, Beat], now: float | None = None) -> str | None:
        """Which ranks hang, in words; None while none does. To be called every few seconds."""
        now = time.monotonic() if now is None else now
        if self._began is None or now - self._looked > max(30.0, min(SILENT_AFTER_S, self.hang_timeout_s) / 2):
            # This process slept too (a suspended job, a stopped machine), or waited for the disk that the signs are on:
            # nobody is to blame for the time it missed.
            self._began, self._seen = now, {}
        self._looked = now
        for rank, beat in beats.items():
            before = self._seen.get(rank)
            changed = now if before is None or beat.beats != before.beat.beats else before.changed
            moved = now if before is None or beat.moves != before.beat.moves else before.moved
            self._seen[rank] = _Seen(beat, changed, moved)
        return self._absent(now) or self._silent(now) or self._still(now) or self._lingering(now)

    def _at_work(self) -> dict[int, _Seen]:
        return {rank: seen for rank, seen in sorted(self._seen.items()) if not seen.beat.is_over}

    def _absent(self, now: float) -> str | None:
        assert self._began is not None
        limit_s = max(FIRST_WITHIN_S, self.hang_timeout_s)
        if now - self._began < limit_s:
            return None
        absent = [f"rank {rank}" for rank in range(self.ranks) if rank not in self._seen]
        return f"{_listed(absent)} gave no first sign of life in {limit_s:.0f} s" if absent else None

    def _silent(self, now: float) -> str | None:
        limit_s = min(SILENT_AFTER_S, self.hang_timeout_s)
        silent = {rank: seen for rank, seen in self._at_work().items() if now - seen.changed >= limit_s}
        if not silent:
            return None
        named = [f"rank {rank} on {seen.beat.host} (process {seen.beat.pid})" for rank, seen in silent.items()]
        return (
            f"{_listed(named)} gave no sign of life for {limit_s:.0f} s: stopped by a signal, or its machine is "
            f"gone or cannot write to the run's folder; last seen in {next(iter(silent.values())).beat.where}"
        )

    def _still(self, now: float) -> str | None:
        at_work = self._at_work()
        if len(self._seen) < self.ranks:  # the others wait for one that is still to come
            return None
        if not at_work or any(now - seen.moved < self.hang_timeout_s for seen in at_work.values()):
            return None
        usual, count = Counter(seen.beat.where for seen in at_work.values()).most_common(1)[0]
        odd = [
            f"rank {rank} on {seen.beat.host} in {seen.beat.where}"
            for rank, seen in at_work.items()
            if seen.beat.where != usual
        ]
        others = "all" if not odd else f"{count} of {len(at_work)}"
        apart = f", apart from {_listed(odd)}" if odd else ""
        return f"no rank moved for {self.hang_timeout_s:.0f} s: {others} stand in {usual}{apart}"

    def _lingering(self, now: float) -> str | None:
        """Its work is done: the run is judged by what it has left."""
        if len(self._seen) < self.ranks or any(
            not seen.beat.is_over or now - seen.changed < self.hang_timeout_s for seen in self._seen.values()
        ):
            return None
        return f"all ranks ended their work {self.hang_timeout_s:.0f} s ago, and their launchers did not end"


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
