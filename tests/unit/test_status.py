"""Where a run stands, as its files tell it."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import phases
from launcher.errors import UserError
from launcher.run_dir import RunDir
from launcher.slurm import status as slurm_status
from launcher.slurm.status import follow
from launcher.status import (
    Status,
    as_shown,
    close_status,
    duration,
    json_line,
    new_status,
    number,
    read_status,
    render,
    write_status,
)

NOW = 1_700_000_000.0


def a_status(**changes: Any) -> Status:
    fields: dict[str, Any] = {
        "name": "tiny", "state": "running", "stage": "full", "stage_index": 1, "stages": 2, "step": 30, "steps": 120,
        "epoch": 0.25, "loss": 0.51234, "samples_per_second": 812.4, "eta_s": 252.0, "metrics": {"accuracy": 0.78},
        "checkpoint": "01-full-step-00000020", "ranks": 2, "hostname": socket.gethostname(), "pid": os.getpid(),
        "started": NOW - 100, "updated": NOW - 3,
    }  # fmt: skip
    return Status(**fields | changes)


@pytest.fixture
def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def test_text() -> None:
    assert render(a_status(), RunDir("runs/tiny"), NOW).splitlines() == [
        "run         tiny, runs/tiny",
        "state       running, updated 3s ago",
        "stage       full, 2 of 2",
        "step        30 of 120 (25%), epoch 0.25, 4m 12s left in this stage",
        "loss        0.5123",
        "speed       812.4 samples/s on 2 rank(s)",
        "metrics     accuracy 0.78",
        "checkpoint  01-full-step-00000020",
    ]


@pytest.mark.parametrize("state", ["stopped", "interrupted", "failed"])
def test_what_to_do_next(state: str) -> None:
    text = render(a_status(state=state, message="first line\nsecond"), RunDir("runs/tiny"), NOW)
    assert f"state       {state}, updated" in text
    assert "message     first line\n            second\n" in text
    assert text.endswith("next        thawline resume runs/tiny")


def test_finished_names_the_model() -> None:
    assert render(a_status(state="finished"), RunDir("runs/tiny"), NOW).endswith("model       runs/tiny/model")


def test_lost(dead_pid: int) -> None:
    """Says that it runs, has been quiet, and its processes on this host are gone: only all three make it lost."""
    lost = a_status(pid=dead_pid, launcher_pid=dead_pid, updated=NOW - 60)
    assert lost.is_lost(NOW)
    assert "lost (resumable)" in render(lost, RunDir("r"), NOW)
    assert "left in this stage" not in render(lost, RunDir("r"), NOW)
    assert as_shown(lost)["lost"] is True
    others = ({"updated": NOW - 1}, {"launcher_pid": os.getpid()}, {"hostname": "elsewhere"}, {"state": "failed"})
    for change in others:
        assert not lost.model_copy(update=change).is_lost(NOW), change


def test_file_is_valid_json_with_any_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_status(run, a_status(loss=math.nan, metrics={"perplexity": math.inf, "low": -math.inf}))
    plain = json.loads(run.status.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (plain["loss"], plain["metrics"]) == ("nan", {"perplexity": "inf", "low": "-inf"})
    found = read_status(run)
    assert found.loss is not None
    assert math.isnan(found.loss)
    assert found.metrics == {"perplexity": math.inf, "low": -math.inf}


def test_lines_of_json() -> None:
    assert json_line({"a": 1, "b": math.nan, "c": {"d": math.inf}, "e": None}) == (
        '{"a": 1, "b": "nan", "c": {"d": "inf"}, "e": null}'
    )


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing does not exist; name the folder"):
        read_status(RunDir(tmp_path / "nothing"))
    run = RunDir(tmp_path / "runs" / "tiny")
    run.create()
    write_status(run, a_status())
    with pytest.raises(UserError, match=r"runs holds no run: .*Runs here: .*runs/tiny"):
        read_status(RunDir(tmp_path / "runs"))
    with pytest.raises(UserError, match=r"tinny does not exist\. Runs here: .*runs/tiny"):
        read_status(RunDir(tmp_path / "runs" / "tinny"))
    run.status.write_text("{}")
    with pytest.raises(UserError, match="not a status of this version"):
        read_status(run)


def test_a_path_that_leads_to_or_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, and no run's folder"):
        read_status(RunDir(tmp_path / "file"))
    with pytest.raises(UserError, match="run does not exist"):
        read_status(RunDir(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="is a file"):
        next(follow(RunDir(tmp_path / "file")))


def test_a_folder_that_a_launcher_has_just_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has written nothing yet: status and watch wait a moment, and then say that it starts."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.launcher_lock.write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(slurm_status, "STARTS_WITHIN_S", 0.0)
    assert f"run: process {os.getpid()} is starting a run here" in slurm_status.as_text(run)
    assert slurm_status.as_json(run)["state"] == "preparing"
    monkeypatch.setattr(slurm_status, "FOLLOW_EVERY_S", 0.0)
    seen = follow(run)
    assert "waiting 20 s for one to start" in next(seen)
    write_status(run, a_status(state="preparing", phase="importing", stage=None, stage_index=None, updated=time.time()))
    assert "phase       importing" in next(seen)
    write_status(run, a_status(state="failed", phase=None, message="no"))
    assert "state       failed" in next(seen)
    assert list(seen) == []


def test_where_nobody_starts_a_run_a_watch_ends_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    monkeypatch.setattr(slurm_status, "AWAITED_S", 0.0)
    monkeypatch.setattr(slurm_status, "FOLLOW_EVERY_S", 0.0)
    run = RunDir(tmp_path / "run")
    run.create()
    run.launcher_lock.write_text(f"{dead_pid}\n")
    with pytest.raises(UserError, match="holds no run"):
        slurm_status.as_text(run)
    for folder in (run, RunDir(tmp_path / "nothing")):
        with pytest.raises(UserError, match=r"holds no run|does not exist"):
            list(follow(folder))


def test_phases_are_said_once_and_end_with_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    phases.enter("planning")
    assert (phases.current(), phases.end(), capsys.readouterr().out) == (None, None, ""), "not the first rank"
    write_status(run, a_status(state="preparing"))
    phases.begin(None)
    phases.knows(run)
    assert phases.current() == "importing"
    seen = []
    for phase in ("reading data", "planning", "reading data", "reading data", "building", "first step"):
        phases.enter(phase)
        seen.append(read_status(run).phase)
    assert seen == ["reading data", "planning", "reading data", "reading data", "building", "first step"]
    done = phases.end()
    assert done is not None
    assert re.fullmatch(
        r"first step done after [\d.]+ s: importing [\d.]+, reading data [\d.]+, planning [\d.]+, building [\d.]+, "
        r"first step [\d.]+", done
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["importing", "reading", "planning", "building", "taking"]


def test_closing(tmp_path: Path) -> None:
    """A failure's words replace what the first rank believed; a stop that it told of itself stays."""
    run = RunDir(tmp_path)
    close_status(run, "failed", "nobody wrote a status")
    assert not run.status.exists()
    write_status(run, a_status())
    close_status(run, "failed", "rank 1 was killed")
    assert (read_status(run).state, read_status(run).message, read_status(run).eta_s) == (
        "failed",
        "rank 1 was killed",
        None,
    )
    close_status(run, "failed", "more exactly")
    assert read_status(run).message == "more exactly"
    write_status(run, a_status(state="stopped", message="at step 3"))
    close_status(run, "stopped", "stopped on request")
    assert read_status(run).message == "at step 3"


def test_new_status_keeps_the_first_start(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = new_status(run, "tiny", 2, 1, None)
    assert time.time() - first.started < 60
    write_status(run, first.model_copy(update={"started": NOW}))
    assert new_status(run, "tiny", 2, 1, None).started == NOW
    run.status.write_text("damaged")
    assert new_status(run, "tiny", 2, 1, None).started != NOW


def test_follow_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    told = [a_status(step=1), a_status(step=1), a_status(step=2), a_status(state="finished")]
    write_status(run, told.pop(0))
    monkeypatch.setattr(time, "sleep", lambda seconds: write_status(run, told.pop(0)))
    shown = ["".join(line for line in text.splitlines() if line.startswith(("state", "step"))) for text in follow(run)]
    assert [("running" in text, " 1 of" in text, " 2 of" in text) for text in shown] == [
        (True, True, False), (True, False, True), (False, False, False)
    ]  # fmt: skip


def test_follow_ends_when_the_run_is_lost(tmp_path: Path, dead_pid: int) -> None:
    run = RunDir(tmp_path)
    write_status(run, a_status(pid=dead_pid, updated=0.0))
    assert len(list(follow(run))) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (75, "1m 15s"), (3600, "1h 0m"), (90061, "1d 1h"), (-5, "0s"), (59.6, "1m 0s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (12345.6, "12346"), (math.nan, "nan"), (1e-5, "1e-05")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
