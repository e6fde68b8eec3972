"""Why a rank ended, as a small file the launcher reads: ``logs/rank-N.error.json``.

Owns the file's format and what an exception means: a failure with advice, an echo of another rank's end, or a bug.
`worker` writes one with `record`; `launch` reads them all and shows the first real one.
"""

from __future__ import annotations

import os
import time
import traceback as traceback_module
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.errors import EnvironmentProblem, FollowsFirst, OutOfMemory, Shortage, ThawlineError, TrainingFailed
from launcher.run_dir import RunDir, write_atomic
from launcher.stop import ATTEMPT

_ECHOES = (
    "connection reset by peer", "connection closed by peer", "connection refused", "broken pipe", "socket closed",
    "remote process exited", "remote peer", "failed to recv", "failed to send", "store shut down", "watchdog",
    "collective operation timeout", "ncclremoteerror", "ncclsystemerror", "timed out waiting", "wait timeout",
)  # fmt: skip
"""What torch.distributed, gloo and NCCL say when a peer is gone, in lower case."""
_ECHO_TYPES = ("DistNetworkError", "DistStoreError", "DistBackendError", "RuntimeError", "TimeoutError")
_PORT_TAKEN = ("eaddrinuse", "address already in use")
_HOST_MEMORY = ("defaultcpuallocator", "not enough memory: you tried to allocate")
"""What torch's allocator for the host says, in lower case, in a plain RuntimeError."""
_GPU_MEMORY = ("cuda error: out of memory", "cuda out of memory", "cuda failure 2 'out of memory'")
"""What CUDA and NCCL say when it is not torch's own allocator that finds the GPU full."""
_LESS_ON_GPU = (
    "The GPU's memory is full. Set a smaller batch.micro_size (batch.global_size may stay), precision: bf16, "
    "sharding.strategy: zero2 or zero3 with several ranks, or sharding.offload: cpu"
)
_LESS_ON_HOST = (
    "The machine's memory is full. Set a smaller batch.micro_size (batch.global_size may stay), start fewer ranks, set "
    "sharding.strategy: zero2 or zero3, precision: bf16, or sharding.offload: none where it is cpu"
)
_LOSS_SCALE = "current loss scale already at minimum"
_OUT_OF_FP16 = (
    "The gradients overflow fp16 at every loss scale. Set precision: bf16 or fp32, or a lower optimizer.learning_rate"
)


class RankError(BaseModel):
    """One rank's last word."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    """Seconds since 1970, on the rank's host."""
    rank: int
    type: str
    """Name of the exception's class; ``OutOfMemory``, ``LossScale``, ``port`` (it was taken) for libraries' errors."""
    message: str
    """For people; complete without the traceback when the error is the user's or the machine's."""
    exit_code: int
    """What the rank exits with; 1 for an exception that is a bug."""
    traceback: str
    secondary: bool
    """True: it only says that another rank is gone."""
    shortage: Shortage | None = None
    """Where, if memory ran out in a stage."""
    attempt: str = ""
    """Folder of the attempt of a SLURM job that the rank was of; empty elsewhere."""
    goes_on: str = ""
    """What was planned anew because of it: another launch goes on with that."""

    @property
    def is_port_taken(self) -> bool:
        return self.type == "port"


def describe(rank: int, error: BaseException) -> RankError:
    """What an exception means; its ``exit_code`` is what the rank should exit with."""
    text = str(error) or type(error).__name__
    lower = text.lower()
    kind, exit_code, is_echo = type(error).__name__, 1, False
    if isinstance(error, ThawlineError):
        exit_code, is_echo = error.exit_code, isinstance(error, FollowsFirst)
    elif known := _known_failure(error, lower):
        kind, advice = known
        text, exit_code = f"{text.rstrip()}\n{advice}.", TrainingFailed.exit_code
    elif any(words in lower for words in _PORT_TAKEN):
        kind, exit_code, is_echo = "port", EnvironmentProblem.exit_code, isinstance(error, ConnectionError)
    else:
        is_echo = isinstance(error, ConnectionError) or (
            kind in _ECHO_TYPES and any(words in lower for words in _ECHOES)
        )
    return RankError(
        time=time.time(), rank=rank, type=kind, message=text, exit_code=exit_code,
        traceback="".join(traceback_module.format_exception(error)), secondary=is_echo,
        shortage=error.shortage if isinstance(error, OutOfMemory) else None, attempt=os.environ.get(ATTEMPT, ""),
    )  # fmt: skip


def record(run_dir: RunDir, rank: int, error: BaseException) -> RankError:
    """Write why this rank ends; returns what was written, whose ``exit_code`` the rank should exit with."""
    return write(run_dir, describe(rank, error))


def write(run_dir: RunDir, entry: RankError) -> RankError:
    """Leave a rank's last word, which is returned."""
    run_dir.logs.mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir.error(entry.rank), entry.model_dump_json(indent=1))
    return entry


def memory_advice(error: BaseException) -> str | None:
    """What to do about an error that says that memory ran out; None for any other."""
    known = _known_failure(error, str(error).lower())
    return known[1] if known and known[0] == "OutOfMemory" else None


def _known_failure(error: BaseException, lower: str) -> tuple[str, str] | None:
    """(type, advice) of a library's exception that is no bug; by name, since torch may not be imported here."""
    names = {base.__name__ for base in type(error).__mro__}
    is_runtime = isinstance(error, RuntimeError)
    if "OutOfMemoryError" in names or (is_runtime and any(words in lower for words in _GPU_MEMORY)):
        return "OutOfMemory", _LESS_ON_GPU
    if isinstance(error, MemoryError) or (is_runtime and any(words in lower for words in _HOST_MEMORY)):
        return "OutOfMemory", _LESS_ON_HOST
    if _LOSS_SCALE in lower:  # DeepSpeed raises a bare Exception
        return "LossScale", _OUT_OF_FP16
    return None


def read_all(run_dir: RunDir) -> list[RankError]:
    """Every rank's error, the earliest first; a file that holds none counts as not written."""
    found = []
    for file in run_dir.logs.glob("rank-*.error.json"):
        try:
            found.append(RankError.model_validate_json(file.read_bytes()))
        except ValidationError:
            continue
    return sorted(found, key=lambda entry: entry.time)


def clear_own(run_dir: RunDir, rank: int) -> None:
    """Forget the rank's error of an earlier launch."""
    with suppress(FileNotFoundError, NotADirectoryError):  # that the path leads through a file is told later
        run_dir.error(rank).unlink()


def clear(run_dir: RunDir) -> None:
    """Forget the errors of an earlier launch."""
    for file in run_dir.logs.glob("rank-*.error.json"):
        file.unlink()
