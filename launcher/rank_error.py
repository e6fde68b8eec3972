"""Why a rank ended, as a small file the launcher reads: ``logs/rank-N.error.json``.

Owns the file's format and the question whether an error is a rank's own or only the echo of another rank's end.
`worker` writes one with `record`; `launch` reads them all and shows the first real one.
"""

from __future__ import annotations

import time
import traceback as traceback_module

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.errors import ThawlineError
from launcher.run_dir import RunDir, write_atomic

_ECHOES = (
    "connection reset by peer", "connection closed by peer", "connection refused", "broken pipe", "socket closed",
    "remote process exited", "remote peer", "failed to recv", "failed to send", "store shut down", "watchdog",
    "collective operation timeout", "ncclremoteerror", "ncclsystemerror", "timed out waiting", "wait timeout",
)  # fmt: skip
"""What torch.distributed, gloo and NCCL say when a peer is gone, in lower case."""
_ECHO_TYPES = ("DistNetworkError", "DistStoreError", "DistBackendError", "RuntimeError", "TimeoutError")
_PORT_TAKEN = ("eaddrinuse", "address already in use")


class RankError(BaseModel):
    """One rank's last word."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    """Seconds since 1970, on the rank's host."""
    rank: int
    type: str
    """Name of the exception's class; ``port`` when the rendezvous port was taken."""
    message: str
    """For people; complete without the traceback when the error is the user's or the machine's."""
    exit_code: int
    """What the rank exits with; 1 for an exception that is a bug."""
    traceback: str
    secondary: bool
    """True: it only says that another rank is gone."""

    @property
    def is_port_taken(self) -> bool:
        return self.type == "port"


def record(run_dir: RunDir, rank: int, error: BaseException) -> RankError:
    """Write why this rank ends; returns what was written, whose ``exit_code`` the rank should exit with."""
    text = str(error) or type(error).__name__
    if isinstance(error, ThawlineError):
        kind, exit_code, is_echo = type(error).__name__, error.exit_code, False
    else:
        lower = text.lower()
        is_port = any(words in lower for words in _PORT_TAKEN)
        kind = "port" if is_port else type(error).__name__
        exit_code = 3 if is_port else 1
        is_echo = not is_port and type(error).__name__ in _ECHO_TYPES and any(words in lower for words in _ECHOES)
        if isinstance(error, ConnectionError):
            is_echo = True
    entry = RankError(
        time=time.time(), rank=rank, type=kind, message=text, exit_code=exit_code,
        traceback="".join(traceback_module.format_exception(error)), secondary=is_echo,
    )  # fmt: skip
    run_dir.logs.mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir.error(rank), entry.model_dump_json(indent=1))
    return entry


def read_all(run_dir: RunDir) -> list[RankError]:
    """Every rank's error, the earliest first; a file that holds none counts as not written."""
    found = []
    for file in run_dir.logs.glob("rank-*.error.json"):
        try:
            found.append(RankError.model_validate_json(file.read_bytes()))
        except ValidationError:
            continue
    return sorted(found, key=lambda entry: entry.time)


def clear(run_dir: RunDir) -> None:
    """Forget the errors of an earlier launch."""
    for file in run_dir.logs.glob("rank-*.error.json"):
        file.unlink()
