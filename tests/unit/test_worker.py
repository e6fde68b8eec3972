"""How a rank takes its leave: its exit code, its file, and what it says where no launcher speaks for it."""

from __future__ import annotations

import logging
import shutil
import sys
import types
from pathlib import Path

import pytest

import launcher
from launcher import orphans, rank_error, worker
from launcher.errors import UserError
from launcher.run_dir import RunDir


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("has_launcher", [True, False])
def test_out_of_memory_shows_no_traceback_to_the_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    has_launcher: bool,
) -> None:
    """Under thawline the rank's log is a file and has the traceback; under torchrun it is the terminal."""
    if has_launcher:
        monkeypatch.setenv(orphans.LAUNCHER_PID, "1")
    assert worker.leave(tmp_path, 0, raised(MemoryError("no 9 GiB"))) == 4
    (written,) = rank_error.read_all(RunDir(tmp_path))
    assert "Traceback" in written.traceback
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert (logged.exc_info is not None) == has_launcher
    told = "" if has_launcher else f"OutOfMemory: {written.message}\n"
    assert capsys.readouterr().err == told


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.leave(tmp_path / "run", 0, UserError("no such recipe")) == 2
    assert capsys.readouterr().err == "UserError: no such recipe\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_launcher", [True, False])
def test_under_torchrun_a_rank_forgets_its_own_last_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_launcher: bool
) -> None:
    """The launcher of thawline clears them itself, before any rank starts."""
    runtime = types.SimpleNamespace(close=lambda: None)
    walk = types.SimpleNamespace(join=lambda: runtime, opened_run_dir=lambda *_, **__: None)
    monkeypatch.setattr(launcher, "walk", walk, raising=False)
    monkeypatch.setattr(orphans, "die_with_parent", lambda: None)
    monkeypatch.setattr(worker.StopRequest, "listen", lambda self: None)
    monkeypatch.setattr(worker.faulthandler, "enable", lambda: None)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    monkeypatch.setenv("RANK", "1")
    if has_launcher:
        monkeypatch.setenv(orphans.LAUNCHER_PID, "1")
    run = RunDir(tmp_path)
    for rank in (0, 1):
        rank_error.record(run, rank, ValueError("of last time"))
    assert worker.main(["recipe.yaml", "--run-dir", str(tmp_path)]) == 0
    assert [error.rank for error in rank_error.read_all(run)] == ([0, 1] if has_launcher else [0])


def test_ninja_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment was not activated: another release's would compile all operators anew."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    worker.own_programs_first()
    assert shutil.which("ninja") == str(Path(sys.executable).with_name("ninja"))
    assert shutil.which("sh") in ("/usr/bin/sh", "/bin/sh")
