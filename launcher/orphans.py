"""A process that must not outlive the one that started it.

Owns the two lines of Linux that make a rank die with its launcher, however that one ends. `worker` calls it first of
all; `launch` sets the variable. Under torchrun or accelerate the variable is not set and nothing happens: their agents
look after their own children.
"""

from __future__ import annotations

import ctypes
import os
import signal

LAUNCHER_PID = "THAWLINE_LAUNCHER_PID"
"""Environment variable: the process that started this rank."""
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the launcher dies. Does nothing when THAWLINE_LAUNCHER_PID is not set.

    SIGKILL, because a rank that waits in a collective for one that is gone handles no other signal.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if not launcher:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != int(launcher):  # it died before the request was made, so no signal will come
        os.kill(os.getpid(), signal.SIGKILL)
