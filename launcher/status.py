"""Where a run stands: ``status.json``, written by the run itself and read by anybody.

Owns the file's fields, the states and their text. Pure from files: a reader needs no contact with the run. Written by
`session` while it prepares, by `tracking` on the first rank, by `launch` when the ranks are gone.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.errors import EnvironmentProblem, UserError
from launcher.memory_record import read_all
from launcher.plan import measured_time, micro_size
from launcher.run_dir import RunDir, write_atomic

State = Literal["preparing", "running", "evaluating", "stopped", "interrupted", "failed", "finished"]
Phase = Literal["importing", "reading data", "planning", "building", "first step"]
"""What a run is at before a stage's first step is done."""
ACTIVE: tuple[State, ...] = ("preparing", "running", "evaluating")
RESUMABLE = (*ACTIVE, "stopped", "interrupted", "failed")
QUIET_AFTER_S = 10.0
"""A run whose processes are gone is lost once its status is older than this: younger, it may just be ending."""

FOLLOW_EVERY_S = 1.0


class Status(BaseModel):
    """One moment of a run. Numbers that are not finite stand in the file as "nan", "inf" and "-inf"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The recipe's."""
    state: State
    phase: Phase | None = None
    """What it is at while it starts; None once a stage's first step is done."""
    stage: str | None = None
    stage_index: int | None = None
    stages: int
    """How many there are."""
    step: int = 0
    """Optimizer steps done in this stage."""
    steps: int = 0
    """Optimizer steps of this stage."""
    epoch: float = 0.0
    """Passes over the training split in this stage."""
    loss: float | None = None
    """Training loss, mean since the last record."""
    learning_rate: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    """Peak of the first rank."""
    eta_s: float | None = None
    """Seconds until this stage's last step, evaluations included as far as they were seen."""
    metrics: dict[str, float] = {}
    """Of the last evaluation."""
    checkpoint: str | None = None
    """The newest one's folder name."""
    message: str | None = None
    """How it ended, or what it waits for."""
    ranks: int
    hostname: str
    """Where the first rank runs."""
    pid: int
    """Process that wrote this: the first rank's, or the launcher's before and after the ranks."""
    launcher_pid: int | None = None
    """None under torchrun or accelerate."""
    started: float
    """Seconds since 1970, of the first start."""
    updated: float
    """Seconds since 1970."""

    def is_lost(self, now: float | None = None) -> bool:
        """Whether it says that it is at work although its processes, on this host, are gone."""
        if self.state not in ACTIVE or self.hostname != socket.gethostname():
            return False
        age_s = (time.time() if now is None else now) - self.updated
        alive = [pid for pid in (self.pid, self.launcher_pid) if pid is not None and _is_alive(pid)]
        return age_s > QUIET_AFTER_S and not alive


def read_status(run_dir: RunDir) -> Status:
    """What the run last said.

    Raises: UserError when the folder is no run's.
    """
    try:
        return Status.model_validate_json(run_dir.status.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist"
        if run_dir.path.exists():
            what = "holds no run: it has no status.json" if run_dir.path.is_dir() else "is a file, and no run's folder"
        raise UserError(f"{run_dir.path} {what}{_runs_nearby(run_dir.path)}") from error
    except OSError as error:
        raise EnvironmentProblem(f"{run_dir.status} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(
            f"{run_dir.status} is not a status of this version of thawline: {error.errors()[0]['msg']}; "
            + (
                "`thawline resume` on the run writes it anew"
                if run_dir.plan.is_file()
                else "start in another --run-dir"
            )
        ) from error


def new_status(
    run_dir: RunDir, name: str, stages: int, ranks: int, launcher_pid: int | None, phase: Phase | None = None
) -> Status:
    """The status of a run that starts, or starts again, in this process."""
    now = time.time()
    try:
        started = read_status(run_dir).started
    except UserError:  # there is none yet, or none that can be read; it is replaced either way
        started = now
    return Status(
        name=name,
        state="preparing",
        phase=phase,
        stages=stages,
        ranks=ranks,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        launcher_pid=launcher_pid,
        started=started,
        updated=now,
    )


def write_status(run_dir: RunDir, status: Status) -> None:
    """Replace the file. Readers see the old one or the new one."""
    write_atomic(run_dir.status, json_line(status.model_dump()) + "\n")


def close_status(run_dir: RunDir, state: State, message: str) -> None:
    """Say how a run ended. A rank that said by itself that it stopped is left its words; a failure's are replaced.

    Does nothing when there is no status to close: the ranks never came that far, and the user sees the message anyway.
    """
    try:
        status = read_status(run_dir)
    except UserError:
        return
    if status.state != state or state == "failed":
        changes = {"state": state, "phase": None, "message": message, "eta_s": None, "updated": time.time()}
        write_status(run_dir, status.model_copy(update=changes))


def as_shown(status: Status) -> dict[str, Any]:
    """``status.json``, and ``lost``: whether its processes are gone although it says that it is at work."""
    return {name: _finite_or_text(value) for name, value in status.model_dump().items()} | {"lost": status.is_lost()}


def json_line(record: Mapping[str, Any]) -> str:
    """One line of valid JSON: numbers that are not finite become the strings "nan", "inf" and "-inf"."""
    return json.dumps({key: _finite_or_text(value) for key, value in record.items()}, allow_nan=False)


def render(status: Status, run_dir: RunDir, now: float | None = None, *, is_queued: bool = False) -> str:
    """The lines that ``thawline status`` prints. ``is_queued``: it goes on without a command."""
    moment = time.time() if now is None else now
    is_lost = status.is_lost(moment)
    state = "lost (resumable)" if is_lost else status.state
    rows = [
        ("run", f"{status.name}, {run_dir.path}"),
        ("state", f"{state}, updated {duration(moment - status.updated)} ago"),
    ]
    if status.phase is not None and status.state in ACTIVE:
        rows.append(("phase", status.phase))
    if status.stage is not None and status.stage_index is not None:
        rows.append(("stage", f"{status.stage}, {status.stage_index + 1} of {status.stages}"))
        share = f" ({100 * status.step / status.steps:.0f}%)" if status.steps else ""
        left = f", {duration(status.eta_s)} left in this stage" if status.eta_s is not None and not is_lost else ""
        rows.append(("step", f"{status.step} of {status.steps}{share}, epoch {status.epoch:.2f}{left}"))
    if status.loss is not None:
        rows.append(("loss", number(status.loss)))
    if status.samples_per_second is not None:
        rows.append(("speed", f"{number(status.samples_per_second)} samples/s on {status.ranks} rank(s)"))
    if status.metrics:
        rows.append(("metrics", ", ".join(f"{name} {number(value)}" for name, value in status.metrics.items())))
    rows += [("memory", f"{one.stage}: {found}") for one in read_all(run_dir) if (found := one.compared())]
    rows += [("time", f"{one.stage}: {one}") for one in measured_time.of_run(run_dir)]
    rows += [("event", event_words(one)) for one in micro_size.events(run_dir)]
    if status.checkpoint:
        rows.append(("checkpoint", status.checkpoint))
    if status.message:
        rows.append(("message", status.message.replace("\n", "\n" + " " * 12)))
    if not is_queued and (is_lost or (status.state in RESUMABLE and status.state not in ACTIVE)):
        has_begun = status.stage is not None or status.loss is not None or run_dir.plan.is_file()
        rows.append(("next", run_dir.going_on() if has_begun else "the same `thawline run`: there is no plan yet"))
    if status.state == "finished":
        rows.append(("model", str(run_dir.model)))
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def event_words(event: Mapping[str, Any]) -> str:
    """A line of ``events.jsonl``, for people."""
    if event["event"] == "other_ranks":
        return f"planned for {event['before']}, goes on with {event['after']} from {event['checkpoint'] or 'its start'}"
    size = "evaluate.micro_size" if event.get("during") == "evaluation" else "micro size"
    sizes = f"{size} {event['micro_size']} became {event['next_micro_size']}"
    return f"{event['stage']}: rank {event['rank']} ran out of memory, {sizes}"


def duration(seconds: float) -> str:
    """``75`` -> ``1m 15s``; the two largest units."""
    whole = max(0, round(seconds))
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(units) > 1 and not units[0][0]:
        units.pop(0)
    return " ".join(f"{amount}{unit}" for amount, unit in units[:2])


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # float("nan"), float("inf") and pydantic read these back
    if isinstance(value, Mapping):
        return {key: _finite_or_text(inner) for key, inner in value.items()}
    return value


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _runs_nearby(path: Path) -> str:
    """The runs in the folder that was named, or beside it, to choose from."""
    for folder in (path, path.parent):
        names = sorted(str(file.parent) for file in folder.glob("*/status.json")) if folder.is_dir() else []
        if names:
            return f". Runs here: {', '.join(names[:8])}"
    return "; name the folder that `thawline run` wrote to"
