"""No process of a run outlives its launcher, however that one ends.

Two nets, since the launcher may be killed with a signal that nothing can handle. Each rank asks the kernel to be
killed when its parent dies (`die_with_parent`, called by `worker` first of all). And a small guard process, started by
`launch`, waits for the launcher's end of a pipe to close, then kills whatever still carries the launch's token in its
environment: what the ranks themselves started too, in whatever session or process group it hides.

Under torchrun or accelerate neither is in force: their agents look after their own children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

LAUNCHER_PID = "THAWLINE_LAUNCHER_PID"
"""Environment variable: the process that started this rank."""
LAUNCH_TOKEN = "THAWLINE_LAUNCH_TOKEN"
"""Environment variable: the same unusual text in all processes of one launch, in no other."""
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def launcher_pid() -> int | None:
    """The process of ``thawline run`` that started this rank; None under torchrun or accelerate, and in itself."""
    pid = os.environ.get(LAUNCHER_PID)
    return int(pid) if pid else None


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the launcher dies. Does nothing when THAWLINE_LAUNCHER_PID is not set.

    SIGKILL, because a rank that waits in a collective for one that is gone handles no other signal.
    """
    launcher = launcher_pid()
    if launcher is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != launcher:  # it died before the request was made, so no signal will come
        os.kill(os.getpid(), signal.SIGKILL)


def start_guard(token: str) -> subprocess.Popen[bytes]:
    """Start the guard; it acts when its stdin closes. A session of its own keeps Ctrl-C and hang-ups from it."""
    environment = {name: value for name, value in os.environ.items() if name != LAUNCH_TOKEN}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment, start_new_session=True, cwd="/",
    )  # fmt: skip


def kill_bearers(token: str) -> None:
    """SIGKILL every process whose environment carries ``token``, until none is found: they may fork meanwhile."""
    while bearers := _bearers(token):
        for pid in bearers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _bearers(token: str) -> list[int]:
    mark = f"{LAUNCH_TOKEN}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()  # empty for a zombie
        except OSError:  # gone meanwhile, or another user's
            continue
        if mark in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def _guard() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # returns when the launcher closes its end, or dies
    kill_bearers(sys.argv[1])


if __name__ == "__main__":
    _guard()
